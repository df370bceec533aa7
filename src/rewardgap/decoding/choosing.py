"""What a search does with chains: have them rewarded in one pass, keep one of each row, and write it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rewardgap.backbones.trie import Trie, build_trie
from rewardgap.core.errors import ConfigError
from rewardgap.decoding.outcome import NEAR_TIE, check_rewards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.chains import Chain, Undergrowth
    from rewardgap.decoding.outcome import Decoded, StopRule, Watch
    from rewardgap.rewards.guide import Guide


@dataclass(frozen=True)
class ChainRewards:
    """Rewards along the chains of a batch.

    Attributes:
        paths: the guide's nodes of each chain of each row; an end token without a reward of its own has none.
        nodes: (B, Q) rewards at the guide's nodes; None where there are no nodes.
        values: (B,) rewards at the tips.
    """

    paths: list[list[tuple[int, ...]]]
    nodes: torch.Tensor | None
    values: list[float]

    def at(self, place: int, number: int, length: int | None = None) -> float:
        """Return the reward of a chain's first tokens, of all of them unless a length is given."""
        path = self.paths[place][number][:length]
        if not path:
            return self.values[place]
        assert self.nodes is not None
        return float(self.nodes[place, path[-1]])

    def of_row(self, place: int) -> list[float]:
        """Return the reward of each chain of a row."""
        return [self.at(place, number) for number in range(len(self.paths[place]))]


def reward_chains(
    guide: Guide,
    below: Undergrowth | None,
    chains: Sequence[Sequence[Chain]],
    values: Sequence[float],
    stop: StopRule,
    rows: Sequence[int],
) -> ChainRewards:
    """Ask the guide about all chains of a batch in one pass; `guide.commit` forgets its nodes.

    Args:
        guide: at the session's tips.
        below: the nodes that were read; needed by a guide that reads the policy's states.
        chains: of each row.
        values: the guide's reward at each tip.
        stop: an end token has the reward of the prefix it closes, unless the guide gives it one.
        rows: numbers of the rows, for messages.

    Raises:
        ModelError: if the reward of a chain is NaN or infinite.
    """
    states = None
    if guide.reads_policy:
        assert below is not None
        whole = zip(below.tokens, below.parents, chains, strict=True)
        tries = [Trie(tuple(t), tuple(p), tuple(tuple(c.nodes) for c in row)) for t, p, row in whole]
        states = below.all_states()
    else:
        unrewarded = () if guide.rewards_ends else stop.end_ids
        tries = [build_trie([[t for t in chain.tokens if t not in unrewarded] for chain in row]) for row in chains]
    nodes = guide.tree(tries, states).double() if any(trie.tokens for trie in tries) else None
    found = ChainRewards([list(trie.paths) for trie in tries], nodes, list(values))
    for place, row in enumerate(rows):
        check_rewards(torch.tensor([found.of_row(place)], dtype=torch.float64), [row])
    return found


def keep_chains(
    guide: Guide, below: Undergrowth, rewards: ChainRewards, kept: Sequence[tuple[Chain, int] | None], length: int = 0
) -> None:
    """Move session and guide along a chain of each row, and forget the others.

    Args:
        guide: was asked about these chains last.
        below: holds them.
        rewards: what it said.
        kept: each row's chain and its number, or None to stay where the row is.
        length: tokens kept of it; all for 0.
    """
    below.keep([choice[0].nodes[: length or None] if choice is not None else [] for choice in kept])
    if rewards.nodes is not None:
        paths = enumerate(kept)
        guide.commit([rewards.paths[p][c[1]][: length or None] if c is not None else () for p, c in paths])


def leave(session: TrieSession, guide: Guide, kept: Sequence[int], rows: int) -> None:
    """Let rows that have ended leave session and guide."""
    if len(kept) < rows:
        session.select(kept)
        guide.select(list(kept))


def write_down(done: Decoded, tokens: Sequence[int], stop: StopRule, row: int, watch: Watch | None = None) -> bool:
    """Append the tokens of a piece to a text, and return whether the text goes on."""
    goes_on = True
    for token in tokens:
        goes_on = done.take(token, stop)
        if watch is not None:
            watch(row, done)
    return goes_on


def is_near_tie(scores: Sequence[float], chains: Sequence[Chain], choice: int) -> bool:
    """Return whether another piece, not the same one drawn twice, scored within 2e-4 of the chosen one."""
    others = [s for s, chain in zip(scores, chains, strict=True) if chain.tokens != chains[choice].tokens]
    return bool(others) and abs(scores[choice] - max(others)) < NEAR_TIE


def distinct(chains: Sequence[Chain]) -> int:
    """Return the number of different pieces."""
    return len({tuple(chain.tokens) for chain in chains})


def needs_guide(name: str, guide: Guide | None) -> Guide:
    """Return the guide.

    Raises:
        ConfigError: if there is none.
    """
    if guide is None:
        raise ConfigError(f"decoder '{name}' chooses by a reward; give it a reward model, or decode with sample.")
    return guide
