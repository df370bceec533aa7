"""Log-probabilities of given completions under trees: each prompt is read once, whatever hangs below it.

The logits of a batch are never there at once: they are formed for a few hundred positions at a time, reduced to the
numbers asked for, and formed again in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from rewardgap.backbones.features import NODES_PER_FORWARD
from rewardgap.backbones.session import tree_states
from rewardgap.backbones.soft_prompts import put_first, soft_ids, with_soft_prompts
from rewardgap.backbones.traces import LOGIT_ROWS
from rewardgap.backbones.trie import Block, build_trie, chain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone


@dataclass(frozen=True, slots=True)
class Branches:
    """A prompt and completions of it, as token ids.

    Attributes:
        prompt: ids of the prompt, as a trained network reads it.
        completions: (T,) scored ids of each completion, T ≥ 1; the last, its end token, is predicted and never read.
        tables: (T, C) ids to look up at each position of each completion; the scored ids alone, C = 1, unless given.
        plain: ids of the prompt as a reference reads it, where that is another one.
    """

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    tables: tuple[NDArray[np.int64], ...] | None = None
    plain: tuple[int, ...] | None = None

    def for_reference(self) -> Branches:
        """Return what a reference reads."""
        return self if self.plain is None else replace(self, prompt=self.plain, plain=None)

    def table(self, number: int) -> NDArray[np.int64]:
        """Return the (T, C) ids to look up along a completion."""
        return np.array(self.completions[number])[:, None] if self.tables is None else self.tables[number]

    @property
    def size(self) -> int:
        """Return about how many nodes the tree has."""
        return len(self.prompt) + sum(len(ids) - 1 for ids in self.completions)


class _Tree(NamedTuple):
    """A packed tree: its block, the node of the prompt's last token, and where each scored token is predicted."""

    block: Block
    tip: int
    nodes: list[list[int]]


def log_probs_at(backbone: Backbone, states: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of single tokens, without ever holding the logits of all states.

        out_m = log softmax(logits(states[rows_m]))[tokens_m]

    Args:
        backbone: gives logits; its output head gets no gradient of its own here, being frozen.
        states: (N, D) hidden states after the final norm.
        rows: (M,) which state.
        tokens: (M,) which token.

    Returns:
        (M,) in nats, float32 or wider, differentiable in the states.
    """
    parts, places = [], []
    for begin in range(0, len(states), LOGIT_ROWS):
        here = ((rows >= begin) & (rows < begin + LOGIT_ROWS)).nonzero().flatten()
        chunk, at, which = states[begin : begin + LOGIT_ROWS], rows[here] - begin, tokens[here]
        if torch.is_grad_enabled() and chunk.requires_grad:
            values: torch.Tensor = checkpoint(
                _read, backbone, chunk, at, which, use_reentrant=False, preserve_rng_state=False
            )
        else:
            values = _read(backbone, chunk, at, which)
        parts.append(values)
        places.append(here)
    return torch.cat(parts)[torch.cat(places).argsort()]


def _read(backbone: Backbone, states: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    logits = backbone.logits(states)
    return logits[rows, tokens] - logits.logsumexp(-1)[rows]


def token_log_probs(
    backbone: Backbone, batch: Sequence[Branches], prompts: torch.Tensor | None = None
) -> list[list[torch.Tensor]]:
    """Return log π of the ids to look up along each completion, in one packed forward pass.

    Args:
        backbone: the network π.
        batch: B prompts with their completions.
        prompts: (B, T_u, D) a soft prompt a row, read before the prompt's tokens; None for none.

    Returns:
        For each row, for each completion, (T, C) nats; differentiable in the network and the soft prompts.
    """
    return look_up(backbone, batch, read_trees(backbone, batch, prompts))


class ReadTrees(NamedTuple):
    """What a network read of a batch of trees.

    Attributes:
        states: (N, D) at every node that predicts something, of all rows.
        nodes: for each row, for each completion, the T of them at which its tokens are predicted.
    """

    states: torch.Tensor
    nodes: list[list[list[int]]]

    def along(self, row: int, number: int) -> torch.Tensor:
        """Return (T, D) states before each scored token of a completion."""
        return self.states[self.nodes[row][number]]


def read_trees(backbone: Backbone, batch: Sequence[Branches], prompts: torch.Tensor | None = None) -> ReadTrees:
    """Read prompts with their completions in one packed forward pass; arguments as in `token_log_probs`."""
    trees = [_tree(backbone, row, branches, prompts) for row, branches in enumerate(batch)]
    reader = backbone if prompts is None else with_soft_prompts(backbone, prompts)
    states = tree_states(reader, [tree.block for tree in trees])
    # A prompt's inner nodes predict nothing that is scored.
    used = torch.cat([states[row, tree.tip : len(tree.block.tokens)] for row, tree in enumerate(trees)])
    begins = np.cumsum([0, *(len(tree.block.tokens) - tree.tip for tree in trees)]).tolist()
    nodes = [
        [[node - tree.tip + begin for node in places] for places in tree.nodes]
        for tree, begin in zip(trees, begins, strict=False)
    ]
    return ReadTrees(used, nodes)


def look_up(backbone: Backbone, batch: Sequence[Branches], trees: ReadTrees) -> list[list[torch.Tensor]]:
    """Return log π of the ids to look up, (T, C) nats for each row, for each completion, from what the network read."""
    rows, tokens, shapes = [], [], []
    for branches, paths in zip(batch, trees.nodes, strict=True):
        for number, nodes in enumerate(paths):
            table = branches.table(number)
            rows.append(np.repeat(np.array(nodes), table.shape[1]))
            tokens.append(table.reshape(-1))
            shapes.append(table.shape)
    if not rows:
        return [[] for _ in batch]
    device = trees.states.device
    index, wanted = (torch.from_numpy(np.concatenate(parts)).to(device) for parts in (rows, tokens))
    values = log_probs_at(backbone, trees.states, index, wanted)
    pieces = iter(torch.split(values, [int(np.prod(shape)) for shape in shapes]))
    shaped = iter([piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)])
    return [[next(shaped) for _ in paths] for paths in trees.nodes]


def _tree(backbone: Backbone, row: int, branches: Branches, prompts: torch.Tensor | None) -> _Tree:
    soft = () if prompts is None else soft_ids(backbone, row, prompts.shape[1])
    ids = put_first(backbone.encoder, branches.prompt, soft)
    trie = build_trie([ids[:-1] for ids in branches.completions])
    head, tail = chain(ids, -1, 0), trie.block(parent=len(ids) - 1, start=len(ids))
    nodes = [[len(ids) - 1, *(len(ids) + node for node in path)] for path in trie.paths]
    return _Tree(Block(head.tokens + tail.tokens, head.parents + tail.parents), len(ids) - 1, nodes)


def forward_batches(sizes: Sequence[int], limit: int = NODES_PER_FORWARD) -> list[list[int]]:
    """Deal items into forward passes of at most `limit` nodes with padding, an item at least; longest first."""
    order = sorted(range(len(sizes)), key=lambda item: (-sizes[item], item))
    batches: list[list[int]] = []
    for item in order:
        if batches and sizes[batches[-1][0]] * (len(batches[-1]) + 1) <= limit:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches
