"""The rows that are decoded together, and those that take the places of rows that ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from rewardgap.decoding.outcome import Decoded, Uniforms
from rewardgap.rewards.guide import JoiningGuide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.rewards.guide import Guide


class Newcomers(NamedTuple):
    """Prompts that were read and wait for a place.

    Attributes:
        session: prefilled with them.
        states: (B, D) the policy's hidden states at their ends.
        guide: their rewards, not started; None decodes the policy alone.
        seeds: one a row.
    """

    session: TrieSession
    states: torch.Tensor
    guide: Guide | None
    seeds: Sequence[int]


class Feed(Protocol):
    """Where further prompts come from."""

    def __call__(self, places: int, guide: Guide | None) -> Newcomers | None:
        """Return the next prompts, as many as there are places at most, that can join a running guide; None for none.

        What cannot join it waits for another batch.
        """
        ...


class Rows:
    """Rows of different progress, numbered as they came.

    Args:
        session: prefilled.
        states: (B, D) the policy's hidden states at its tips.
        guide: rewards of candidates, not started; None decodes the policy alone.
        seeds: one a row; None where nothing is drawn.
        feed: where rows come from that take the places of those that ended; None for nowhere.

    Attributes:
        states: (A, D) at the tips of the rows that go on.
        values: (A,) rewards of their prefixes; None without a guide.
        alive: their numbers.
        out: what every row holds, by number.
    """

    def __init__(
        self,
        session: TrieSession,
        states: torch.Tensor,
        guide: Guide | None,
        seeds: Sequence[int] | None,
        feed: Feed | None = None,
    ) -> None:
        self.session, self.states, self.guide, self.feed = session, states, guide, feed
        self.values = guide.start(states).double() if guide is not None else None
        self.uniforms = None if seeds is None else Uniforms(seeds)
        self.alive = list(range(session.rows))
        self.out = [Decoded() for _ in self.alive]
        self.places = session.rows

    def drawn(self, ahead: int = 0) -> torch.Tensor | None:
        """Return (A,) random numbers of the step after `ahead` more, in [0, 1); None where nothing is drawn."""
        if self.uniforms is None:
            return None
        return self.uniforms.at(self.alive, [self.out[row].steps + ahead for row in self.alive], self.states.device)

    def select(self, kept: Sequence[int]) -> torch.Tensor:
        """Let go of the rows that ended, in session and guide too, and return the places of the others as an index."""
        if len(kept) < len(self.alive):
            self.session.select(kept)
            if self.guide is not None:
                self.guide.select(list(kept))
            self.alive = [self.alive[place] for place in kept]
        return torch.tensor(list(kept), dtype=torch.long, device=self.states.device)

    def refill(self) -> None:
        """Let further prompts take the places of rows that ended, as long as any row goes on beside them."""
        while self.feed is not None and 0 < len(self.alive) < self.places:
            fresh = self.feed(self.places - len(self.alive), self.guide)
            if fresh is None:
                return
            if self.guide is not None:
                assert isinstance(self.guide, JoiningGuide) and fresh.guide is not None and self.values is not None
                values = fresh.guide.start(fresh.states).double()
                self.guide.join(fresh.guide)
                self.values = torch.cat([self.values, values.to(self.values.device)])
            if self.uniforms is not None:
                self.uniforms.add(fresh.seeds)
            self.session.join(fresh.session)
            self.states = torch.cat([self.states, fresh.states])
            self.alive += range(len(self.out), len(self.out) + fresh.session.rows)
            self.out += [Decoded() for _ in range(fresh.session.rows)]
