"""Sessions: a batch of growing token trees with their keys and values kept in place.

Generating, scoring and judging the same prompts are three uses of one session: prefill once, hang nodes below the
prompt, read their states, cut them off again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from rewardgap.backbones.trie import ROOT, TokenForest, chain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.trie import Block


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer in buffers allocated once: appending copies the new slots only."""

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros((rows, heads, self.capacity, width))
        rows, heads, _, width = value_states.shape
        self.values = value_states.new_zeros((rows, heads, self.capacity, width))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity

    def move(self, sources: torch.Tensor, target: int) -> None:
        rows = torch.arange(sources.shape[0], device=sources.device)
        self.keys[:, :, target] = self.keys[rows, :, sources]
        self.values[:, :, target] = self.values[rows, :, sources]
        self.length = target + 1

    def gather(self, sources: torch.Tensor, target: int) -> None:
        rows, end = torch.arange(sources.shape[0], device=sources.device)[:, None], target + sources.shape[1]
        self.keys[:, :, target:end] = self.keys[rows, :, sources].transpose(1, 2)
        self.values[:, :, target:end] = self.values[rows, :, sources].transpose(1, 2)
        self.length = end

    def select(self, rows: torch.Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = self.keys[rows], self.values[rows]

    def join(self, other: _SlotLayer, capacity: int) -> None:
        self.keys = _stacked(self.keys[:, :, : self.length], other.keys[:, :, : other.length], capacity)
        self.values = _stacked(self.values[:, :, : self.length], other.values[:, :, : other.length], capacity)
        self.capacity, self.length = capacity, max(self.length, other.length)


def _stacked(first: torch.Tensor, second: torch.Tensor, capacity: int) -> torch.Tensor:
    """Return the rows of two (B, G, S, d), each with `capacity` slots; slots that neither had are zero."""
    (rows, heads, length, width), more = first.shape, second.shape[0]
    out = first.new_zeros((rows + more, heads, capacity, width))
    out[:rows, :, :length] = first
    out[rows:, :, : second.shape[2]] = second
    return out


class TrieSession:
    """A batch of token trees over one backbone.

    Args:
        backbone: the network.
        rows: number B of trees.
        capacity: slots a row may ever hold at once.

    Attributes:
        tips: slot of the last token of each row's realised path (prompt, then the tokens kept).
        forwards: forward passes so far.
        tokens: real (unpadded) tokens sent through the network so far.
    """

    def __init__(self, backbone: Backbone, rows: int, capacity: int) -> None:
        self.backbone = backbone
        self.forest = TokenForest(rows, capacity)
        self.tips = [ROOT] * rows
        self.forwards = 0
        self.tokens = 0
        self._cache: Any = None
        if backbone.packs:
            layers = [_SlotLayer(capacity) for _ in range(int(backbone.config.num_hidden_layers))]
            self._cache = Cache(layers=layers)

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return self.forest.rows

    @torch.no_grad()
    def extend(self, blocks: Sequence[Block]) -> torch.Tensor:
        """Append a block to each row and return its hidden states, (B, Q, D), Q = longest block.

        The node j of a row's block is at slot `length before the call + j`.
        """
        if not any(block.tokens for block in blocks):
            nothing = (self.rows, 0, self.backbone.width)
            return torch.zeros(nothing, dtype=self.backbone.dtype, device=self.backbone.device)
        start = self.forest.length
        appended = self.forest.append(blocks)
        self.forwards += 1
        if self._cache is None:
            return self._extend_unpacked(blocks, start)
        self.tokens += int(appended.valid.sum())
        return self.backbone.hidden(appended, self._cache)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append the prompts below the tips, move the tips to their ends, and return the states there, (B, D)."""
        for row, ids in enumerate(prompts):
            if not len(ids):
                raise ValueError(f"the prompt of row {row} has no tokens.")
        start = self.forest.length
        states = self.extend([chain(ids, tip, start) for ids, tip in zip(prompts, self.tips, strict=True)])
        ends = torch.tensor([len(ids) - 1 for ids in prompts], device=states.device)
        self.tips = [start + len(ids) - 1 for ids in prompts]
        return states[torch.arange(self.rows, device=states.device), ends]

    def keep(self, choices: Sequence[int], width: int) -> None:
        """Of the `width` siblings appended last, keep one a row as the new tip and forget the others."""
        begin = self.forest.length - width
        slots = [begin + choice for choice in choices]
        self.forest.keep(slots, begin)
        if self._cache is not None:
            index = torch.tensor(slots, device=self.backbone.device)
            for layer in self._cache.layers:
                layer.move(index, begin)
        self.tips = [begin] * self.rows

    def commit(self, paths: Sequence[Sequence[int]], start: int) -> None:
        """Keep a path of nodes a row, move its tip to the path's end, and forget every other slot from `start` on.

        Args:
            paths: for each row, slots from `start` on of which each is the parent of the next; an empty path keeps
                nothing, and the row's tip stays.
            start: the length before the blocks that hold the paths were appended.
        """
        self.forest.commit(paths, start)
        longest = max(map(len, paths), default=0)
        if self._cache is not None:
            sources = [[*path, *[start] * (longest - len(path))] for path in paths]
            # What already lies in place is not copied: of a chain, only what comes after its first gap.
            still = next((i for i in range(longest) if any(row[i] != start + i for row in sources)), longest)
            index = torch.tensor(sources, dtype=torch.long, device=self.backbone.device)[:, still:]
            for layer in self._cache.layers:
                layer.gather(index, start + still)
        self.tips = [start + len(path) - 1 if path else tip for path, tip in zip(paths, self.tips, strict=True)]

    @property
    def free(self) -> int:
        """Return how many slots there are behind the longest row, once gaps are closed."""
        return self.forest.capacity - max(self.forest.depth(row, tip) for row, tip in enumerate(self.tips))

    def reserve(self, more: int) -> None:
        """Make room for more slots: where they would not fit, close the gaps that paths of different lengths left.

        Slots get new numbers then, so call it before blocks are built.

        Raises:
            ValueError: if they do not fit without gaps either.
        """
        if self.forest.length + more <= self.forest.capacity:
            return
        self.commit([self.forest.slots(row, tip) for row, tip in enumerate(self.tips)], 0)
        if self.forest.length + more > self.forest.capacity:
            raise ValueError(f"{self.forest.length + more} slots needed, capacity is {self.forest.capacity}.")

    def truncate(self, length: int) -> None:
        """Forget every slot from `length` on; tips must lie before it."""
        self.forest.truncate(length)
        if self._cache is not None:
            for layer in self._cache.layers:
                layer.length = min(layer.length, length)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order: finished rows leave the batch."""
        self.forest.select(rows)
        self.backbone = self.backbone.of_rows(rows)
        self.tips = [self.tips[row] for row in rows]
        if self._cache is not None:
            index = torch.tensor(list(rows), dtype=torch.long, device=self.backbone.device)
            for layer in self._cache.layers:
                layer.select(index)

    def join(self, other: TrieSession) -> None:
        """Take over the rows of another session behind the own ones: new rows enter the batch.

        Both are prefilled, over the same network; the other is spent afterwards. A row may be longer than another by
        any number of slots: call `reserve` before extending, which closes the gaps where they would not fit.
        """
        self.backbone = self.backbone.with_rows(self.rows, other.backbone, other.rows)
        self.forest = self.forest.joined(other.forest)
        self.tips += other.tips
        self.forwards += other.forwards
        self.tokens += other.tokens
        if self._cache is not None:
            for layer, more in zip(self._cache.layers, other._cache.layers, strict=True):
                layer.join(more, self.forest.capacity)

    def _extend_unpacked(self, blocks: Sequence[Block], start: int) -> torch.Tensor:
        """Encode the path of every leaf of the new blocks as a row of its own."""
        width = self.forest.length - start
        out: torch.Tensor | None = None
        for row, block in enumerate(blocks):
            inner = {parent - start for parent in block.parents}
            leaves = [node for node in range(len(block.tokens)) if node not in inner]
            paths = [self.forest.path(row, start + leaf) for leaf in leaves]
            self.tokens += sum(map(len, paths))
            for leaf, states in zip(leaves, self.backbone.hidden_unpacked(paths) if paths else [], strict=True):
                if out is None:
                    out = states.new_zeros((self.rows, width, states.shape[-1]))
                node, depth = leaf, states.shape[0] - 1
                while node >= 0:
                    out[row, node] = states[depth]
                    node, depth = block.parents[node] - start, depth - 1
        assert out is not None
        return out


def tree_states(backbone: Backbone, blocks: Sequence[Block]) -> torch.Tensor:
    """Return the hidden states of whole trees, (B, Q, D), with gradient: the forward pass of training.

    Where the backbone does not pack, each leaf's path is a row of its own.
    """
    forest = TokenForest(len(blocks), max(len(block.tokens) for block in blocks))
    appended = forest.append(blocks)
    if backbone.packs:
        return backbone.hidden(appended)
    rows = []
    for row, block in enumerate(blocks):
        inner = set(block.parents)
        owner: dict[int, torch.Tensor] = {}
        leaves = [node for node in range(len(block.tokens)) if node not in inner]
        for leaf, states in zip(
            leaves, backbone.hidden_unpacked([forest.path(row, leaf) for leaf in leaves]), strict=True
        ):
            node, depth = leaf, states.shape[0] - 1
            while node != ROOT:
                owner[node] = states[depth]
                node, depth = block.parents[node], depth - 1
        width = len(block.tokens)
        padding = [owner[0].new_zeros(owner[0].shape)] * (appended.tokens.shape[1] - width)
        rows.append(torch.stack([owner[node] for node in range(width)] + padding))
    return torch.stack(rows)
