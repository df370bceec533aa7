"""FaRMA's two losses in turn: pairs say what whole texts are worth, and a prefix is worth the best it can become."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from rewardgap.backbones.traces import LOGIT_ROWS
from rewardgap.backbones.trie import ROOT, build_trie
from rewardgap.core.errors import ConfigError
from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.rewards.token_rewards import read_trees
from rewardgap.rewards.training import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.rewards.token_networks import TokenNetworks
    from rewardgap.rewards.token_rewards import Branches, ReadTrees
    from rewardgap.rewards.value_table import ValueTable

    _Node: TypeAlias = dict[int, "_Node"]
    _Key: TypeAlias = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]


class Scored(NamedTuple):
    """The M scored tokens of a batch of trees, completion after completion.

    Attributes:
        nodes: (M,) which of the read states predicts each.
        tokens: (M,) their ids.
        rows: (M,) the row of the batch each is of.
        follows: (M,) whether it stands behind another token of its completion.
    """

    nodes: torch.Tensor
    tokens: torch.Tensor
    rows: torch.Tensor
    follows: torch.Tensor


def scored_tokens(batch: Sequence[Branches], trees: ReadTrees) -> Scored:
    """Return the scored tokens of a batch and where they are predicted."""
    found: list[tuple[int, int, int, bool]] = []
    for row, (branches, paths) in enumerate(zip(batch, trees.nodes, strict=True)):
        for ids, nodes in zip(branches.completions, paths, strict=True):
            found += [(node, token, row, place > 0) for place, (node, token) in enumerate(zip(nodes, ids, strict=True))]
    return Scored(*(torch.tensor(part, device=trees.states.device) for part in zip(*found, strict=True)))


@dataclass
class Continuations:
    """The tokens that a backup looks at, at every node of a tree.

    They are those that any of the given texts goes on with after the same prompt and the same prefix, end tokens among
    them, and the K that the frozen backbone finds most probable. They never change: each row's are found once.

    Args:
        base: the frozen backbone, without adapter and without soft prompts.
        rows: the texts, prompts with their completions.
        count: K ≥ 0.

    Raises:
        ConfigError: if the vocabulary has fewer than K tokens.
    """

    base: Backbone
    rows: InitVar[Sequence[Branches]]
    count: int = 0
    _texts: dict[tuple[int, ...], set[tuple[int, ...]]] = field(default_factory=dict, init=False, repr=False)
    _kept: dict[_Key, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self, rows: Sequence[Branches]) -> None:
        """Collect the texts of each prompt."""
        if self.count > self.base.vocabulary:
            raise ConfigError(
                f"backup_top_k is {self.count}, and {self.base.name} has {self.base.vocabulary} tokens; lower it, or "
                "give null for the whole vocabulary."
            )
        for row in rows:
            self._texts.setdefault(row.prompt, set()).update(row.completions)

    def of(self, batch: Sequence[Branches]) -> torch.Tensor:
        """Return (N, C) ids, a line a node that `read_trees` returns a state of; shorter lines repeat their first.

        The rows are among those given, or parts of them.
        """
        parts = [self._of_row(branches) for branches in batch]
        width = max(part.shape[1] for part in parts)
        wide = [torch.cat([part, part[:, :1].expand(-1, width - part.shape[1])], 1) for part in parts]
        return torch.cat(wide).long().to(self.base.device)

    @torch.no_grad()
    def _of_row(self, row: Branches) -> torch.Tensor:
        key = row.prompt, row.completions
        if key in self._kept:
            return self._kept[key]
        trie = build_trie([ids[:-1] for ids in row.completions])
        top = _grown(self._texts[row.prompt])
        inner: list[_Node] = []
        for token, parent in zip(trie.tokens, trie.parents, strict=True):
            inner.append((top if parent == ROOT else inner[parent])[token])
        lines = [sorted(node) for node in (top, *inner)]
        width = max(map(len, lines))
        found = torch.tensor([[*line, *line[:1] * (width - len(line))] for line in lines], dtype=torch.int32)
        if self.count:
            states = read_trees(self.base, [row.for_reference()]).states
            chunks = torch.split(states, LOGIT_ROWS)
            likely = [self.base.logits(part).topk(self.count).indices for part in chunks]
            found = torch.cat([found, torch.cat(likely).int().cpu()], 1)
        self._kept[key] = found
        return found


def _grown(texts: Iterable[tuple[int, ...]]) -> _Node:
    """Return texts as a tree of dictionaries; it is large, and dropped after use."""
    top: _Node = {}
    for ids in texts:
        node = top
        for token in ids:
            node = node.setdefault(token, {})
    return top


def preference_losses(
    networks: TokenNetworks, batch: Sequence[Branches], prompts: torch.Tensor, centre_weight: float
) -> torch.Tensor:
    """Return the Bradley-Terry losses of pairs, with a pull of their values to zero.

        softplus(-(r+ - r-)) + c (r+ + r-)²

    Pairs leave the level of the values open, and maxima can raise it: the pull holds it. It is of every pair, not of
    their mean, so a large one costs texts that are good or bad together what they are worth.

    Args:
        networks: one network, with its table.
        batch: B pairs, chosen before rejected.
        prompts: (B, T_u, D) soft prompts.
        centre_weight: c, in nats a squared logit.

    Returns:
        (B,) nats.

    Source: the pull is that of Eisenstein et al. 2023, arXiv 2312.09244, equation 2; trl has it as
        `center_rewards_coefficient`.
    """
    (network,) = networks.adapted
    found = networks.look_up(network, batch, read_trees(network, batch, prompts))
    chosen, rejected = (torch.stack([row[side].sum() for row in found]) for side in (0, 1))
    return pair_loss(chosen - rejected) + centre_weight * (chosen + rejected).square()


def consistency_losses(
    table: ValueTable,
    network: Backbone,
    looked_at: Continuations | None,
    batch: Sequence[Branches],
    prompts: torch.Tensor,
) -> torch.Tensor:
    """Return how far the values along completions are from what can still be made of each prefix.

        mean_i ( V(y_i | x, e, y<i) - max_v V(v | x, e, y≤i) )²,    i = 1 .. T - 1 of every completion

    The maximum is a constant: no gradient goes into it. The last token of a completion ends the text: its value is
    what the pair loss trains.

    Args:
        table: gives the values.
        network: read once; it gives the values and the backups.
        looked_at: the tokens v of the maximum; None for the whole vocabulary.
        batch: B prompts with their completions.
        prompts: (B, T_u, D) soft prompts.

    Returns:
        (B,) in squared Bradley-Terry logits, means over the prefixes of a row; 0 where its completions are all empty.

    Source: FaRMA, the second of its two losses. What is done differently is listed on its card.
    """
    trees = read_trees(network, batch, prompts)
    scored, features = scored_tokens(batch, trees), table.features(trees.states)
    values = table.values(network, features[scored.nodes], scored.tokens)
    best = table.best(network, features.detach(), None if looked_at is None else looked_at.of(batch))
    ends = scored.follows.nonzero().flatten()
    gaps = (values[ends - 1] - best[scored.nodes[ends]]).square()
    sums = gaps.new_zeros(len(batch)).index_add(0, scored.rows[ends], gaps)
    return sums / torch.bincount(scored.rows[ends], minlength=len(batch)).clamp(min=1)


@dataclass(frozen=True)
class Turns(Schedule):
    """Two losses that take turns: even steps ask for the first of their examples, odd ones for the second.

    Of N examples, row n stands for example n under the first loss, and row N + n for it under the second.
    """

    def batch(self, count: int, step: int) -> list[int]:
        """Return the rows of a step."""
        rows = super().batch(count, step)
        return rows if step % 2 == 0 else [count + row for row in rows]
