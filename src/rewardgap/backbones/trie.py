"""The primitive: many continuations of one prefix, packed into one sequence where each node sees its ancestors only.

This module knows slots, parents, positions and visibility; it knows no network. A slot is a place in a row of the
packed sequence; a node's position is its depth, so a packed node meets exactly the keys and the rotary angles that it
would meet alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ROOT = -1
_PADDING = -2


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes appended to one row: token ids and, for each, the slot of its parent (ROOT for the first token).

    A parent is an absolute slot: of a node that is there already, or of an earlier node of this block.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]


def chain(tokens: Sequence[int], parent: int, start: int) -> Block:
    """Return a block in which each token follows the one before it; `start` is the slot of the first."""
    parents = (parent, *range(start, start + len(tokens) - 1)) if tokens else ()
    return Block(tuple(tokens), parents)


def siblings(tokens: Sequence[int], parent: int) -> Block:
    """Return a block of alternatives for one next token."""
    return Block(tuple(tokens), (parent,) * len(tokens))


@dataclass(frozen=True, slots=True)
class Trie:
    """Continuations of one prefix with their common beginnings merged.

    Attributes:
        tokens: token id of each node.
        parents: index of each node's parent in `tokens`, ROOT for children of the prefix.
        paths: for each continuation, the node of each of its tokens.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    def block(self, *, parent: int, start: int) -> Block:
        """Return the nodes as a block whose root hangs below slot `parent` and whose first node is slot `start`."""
        return Block(self.tokens, tuple(parent if p == ROOT else start + p for p in self.parents))


def build_trie(continuations: Sequence[Sequence[int]]) -> Trie:
    """Merge continuations into a trie; equal beginnings share nodes, and equal continuations share a path.

    Example:
        >>> build_trie([[5, 6], [5, 7]]).paths
        ((0, 1), (0, 2))
    """
    tokens: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    paths = []
    for continuation in continuations:
        at = ROOT
        path = []
        for token in continuation:
            node = children.get((at, token))
            if node is None:
                node = len(tokens)
                children[at, token] = node
                tokens.append(token)
                parents.append(at)
            path.append(node)
            at = node
        paths.append(tuple(path))
    return Trie(tuple(tokens), tuple(parents), tuple(paths))


@dataclass(frozen=True, slots=True)
class Appended:
    """What a network needs to read one appended block of each row.

    Attributes:
        tokens: (B, Q) token ids; padding is 0.
        positions: (B, Q) depth of each node; padding is 0.
        visible: (B, Q, S) whether the node sees slot s, S = slots after the append; padding sees itself only.
        key_positions: (B, S) depth of each slot.
        valid: (B, Q) False for padding.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    visible: NDArray[np.bool_]
    key_positions: NDArray[np.int64]
    valid: NDArray[np.bool_]


class TokenForest:
    """A batch of growing token trees: which slot holds what, follows what, and sees what.

    Visibility is kept as bits, so a row of 8,192 slots costs 8 MiB rather than 64.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._tokens = np.zeros((rows, capacity), np.int64)
        self._parents = np.full((rows, capacity), ROOT, np.int64)
        self._positions = np.zeros((rows, capacity), np.int64)
        self._bits = np.zeros((rows, capacity, (capacity + 7) // 8), np.uint8)

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return int(self._tokens.shape[0])

    def append(self, blocks: Sequence[Block]) -> Appended:
        """Append one block to each row, padded on the right to the longest.

        Raises:
            ValueError: if the blocks do not fit, or a parent does not come before its child.
        """
        if len(blocks) != self.rows:
            raise ValueError(f"{len(blocks)} blocks for {self.rows} rows.")
        width = max((len(block.tokens) for block in blocks), default=0)
        old, new = self.length, self.length + width
        if new > self.capacity:
            raise ValueError(f"{new} slots needed, capacity is {self.capacity}.")
        visible = np.zeros((self.rows, width, new), np.bool_)
        valid = np.zeros((self.rows, width), np.bool_)
        for row, block in enumerate(blocks):
            self._place(row, block, old, visible[row])
            count = len(block.tokens)
            valid[row, :count] = True
            padding = np.arange(count, width)
            self._tokens[row, old + padding] = 0
            self._parents[row, old + padding] = _PADDING
            self._positions[row, old + padding] = 0
            visible[row, padding, old + padding] = True
        packed = np.packbits(visible, axis=-1)
        self._bits[:, old:new] = 0
        self._bits[:, old:new, : packed.shape[-1]] = packed
        self.length = new
        return Appended(
            self._tokens[:, old:new].copy(),
            self._positions[:, old:new].copy(),
            visible,
            self._positions[:, :new].copy(),
            valid,
        )

    def _place(self, row: int, block: Block, old: int, visible: NDArray[np.bool_]) -> None:
        count = len(block.tokens)
        self._tokens[row, old : old + count] = block.tokens
        self._parents[row, old : old + count] = block.parents
        begin = 0
        while begin < count:
            # A run in which each node follows the one before it is written as one triangle.
            end = begin + 1
            while end < count and block.parents[end] == old + end - 1:
                end += 1
            parent = block.parents[begin]
            if not ROOT <= parent < old + begin or (parent != ROOT and self._parents[row, parent] == _PADDING):
                raise ValueError(f"the parent of node {begin} is slot {parent}: no node that comes before it.")
            depth = 0
            if parent != ROOT:
                visible[begin:end] = (
                    visible[parent - old] if parent >= old else self._sees(row, parent, visible.shape[-1])
                )
                depth = int(self._positions[row, parent]) + 1
            size = end - begin
            visible[begin:end, old + begin : old + end] |= np.tri(size, dtype=np.bool_)
            self._positions[row, old + begin : old + end] = np.arange(depth, depth + size)
            begin = end

    def _sees(self, row: int, slot: int, width: int) -> NDArray[np.bool_]:
        return np.unpackbits(self._bits[row, slot], count=width).astype(np.bool_)

    def path(self, row: int, slot: int) -> list[int]:
        """Return the token ids from the root to a slot."""
        return [int(self._tokens[row, at]) for at in self.slots(row, slot)]

    def depth(self, row: int, slot: int) -> int:
        """Return the number of nodes from the root to a slot, itself included; 0 for ROOT."""
        return 0 if slot == ROOT else int(self._positions[row, slot]) + 1

    def slots(self, row: int, slot: int) -> list[int]:
        """Return the slots from the root to a slot, itself included."""
        found = []
        while slot != ROOT:
            found.append(slot)
            slot = int(self._parents[row, slot])
        return found[::-1]

    def keep(self, slots: Sequence[int], target: int) -> None:
        """Move one node of each row to slot `target` and forget every slot after it.

        The node must be childless and its parent must lie before `target`.
        """
        for row, slot in enumerate(slots):
            parent = int(self._parents[row, slot])
            if parent >= target:
                raise ValueError(f"slot {slot} of row {row} follows slot {parent}, which would be forgotten.")
            self._tokens[row, target] = self._tokens[row, slot]
            self._parents[row, target] = parent
            self._positions[row, target] = self._positions[row, slot]
            bits = self._bits[row, parent].copy() if parent != ROOT else np.zeros_like(self._bits[row, target])
            bits[target // 8] |= np.uint8(128 >> (target % 8))
            self._bits[row, target] = bits
        self.length = target + 1

    def commit(self, paths: Sequence[Sequence[int]], start: int) -> None:
        """Move a path of nodes of each row to the slots from `start` on and forget every other slot from there.

        Rows may keep paths of different lengths; what is left over of the longest is padding.

        Args:
            paths: for each row, slots of which each is the parent of the next; empty to keep none.
            start: first slot to be written; the parent of a path's first node lies before it.

        Raises:
            ValueError: if a path's nodes do not follow one another, or its first follows a slot from `start` on.
        """
        longest = max(map(len, paths), default=0)
        for row, path in enumerate(paths):
            count, end = len(path), start + len(path)
            if path:
                source = np.asarray(path, np.int64)
                parents = self._parents[row, source]
                if parents[0] >= start or (parents[1:] != source[:-1]).any():
                    raise ValueError(f"slots {list(path)} of row {row} are no path that begins before slot {start}.")
                first = int(parents[0])
                seen = self._sees(row, first, start) if first != ROOT else np.zeros(start, np.bool_)
                depth = int(self._positions[row, first]) + 1 if first != ROOT else 0
                self._tokens[row, start:end] = self._tokens[row, source]
                self._parents[row, start:end] = [first, *range(start, end - 1)]
                self._positions[row, start:end] = np.arange(depth, depth + count)
                visible = np.concatenate([np.tile(seen, (count, 1)), np.tri(count, dtype=np.bool_)], 1)
                packed = np.packbits(visible, axis=-1)
                self._bits[row, start:end] = 0
                self._bits[row, start:end, : packed.shape[-1]] = packed
            self._parents[row, end : start + longest] = _PADDING
            self._positions[row, end : start + longest] = 0
        self.length = start + longest

    def joined(self, other: TokenForest) -> TokenForest:
        """Return a forest of the rows of both, the other's last; slots keep their numbers, and gaps are padding."""
        both = TokenForest(self.rows + other.rows, max(self.capacity, other.capacity))
        both.length = max(self.length, other.length)
        for forest, rows in ((self, slice(0, self.rows)), (other, slice(self.rows, both.rows))):
            end = forest.length
            both._tokens[rows, :end] = forest._tokens[:, :end]
            both._parents[rows, :end] = forest._parents[:, :end]
            both._parents[rows, end : both.length] = _PADDING
            both._positions[rows, :end] = forest._positions[:, :end]
            both._bits[rows, :end, : forest._bits.shape[-1]] = forest._bits[:, :end]
        return both

    def truncate(self, length: int) -> None:
        """Forget every slot from `length` on."""
        self.length = min(self.length, length)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        index = np.asarray(rows, np.int64)
        self._tokens, self._parents = self._tokens[index], self._parents[index]
        self._positions, self._bits = self._positions[index], self._bits[index]
