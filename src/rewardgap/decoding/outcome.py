"""When a row ends, what it holds then, and what guidance did at each step: shared by all loops over tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch

from rewardgap.core.errors import ModelError
from rewardgap.numerics.topk import top_candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NEAR_TIE = 2e-4


@dataclass(frozen=True)
class StopRule:
    """When a row ends.

    Attributes:
        end_ids: control tokens that end a completion and are not part of it.
        stop_ids: ordinary tokens after which a row ends, for example those with a line break.
        max_new_tokens: tokens at most, the ending one included.
        min_new_tokens: end and stop tokens may not be chosen before this many tokens.
    """

    end_ids: tuple[int, ...]
    max_new_tokens: int
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()

    @property
    def closers(self) -> list[int]:
        """Return every token that ends a row."""
        return sorted({*self.end_ids, *self.stop_ids})


class StepFacts(NamedTuple):
    """What guidance did at one step; see `Decoded`."""

    near_tie: bool
    reward_spread: float
    fluency_spread: float


@dataclass
class Decoded:
    """One finished row.

    Attributes:
        ids: tokens chosen, a stop token included, an end token not.
        ended: whether an end or stop token closed it (else the length limit did).
        steps: tokens chosen, an end token included.
        alternatives: step -> the policy's best token, where guidance took another.
        near_ties: steps whose two best scores lay within 2e-4: another batch may choose the other.
        reward_spread: per step, standard deviation of λ r over the candidates that were rewarded.
        fluency_spread: per step, standard deviation of log π over the candidates; 0 where one alone was rewarded.
        reward: the guide's reward of the finished prefix; None without a guide.
        guide_passes: times that candidates of this row were rewarded; below `steps` where several steps shared one.
        drafted: tokens that the policy proposed to them.
        pruned: candidates that no reward could have made win, so that none was read; None where rewards have no bound.
        proposed: pieces longer than a token that were judged; 0 where single tokens are chosen.
        distinct: how many of them were different from those of the same choice.
        accepted: how many of them were taken.
        questions: pairs of texts that a judge compared; None where a reward decided.
        ties: how many of them it could not tell apart.
    """

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    steps: int = 0
    alternatives: dict[int, int] = field(default_factory=dict)
    near_ties: int = 0
    reward_spread: list[float] = field(default_factory=list)
    fluency_spread: list[float] = field(default_factory=list)
    reward: float | None = None
    guide_passes: int = 0
    drafted: int = 0
    pruned: int | None = None
    proposed: int = 0
    distinct: int = 0
    accepted: int = 0
    questions: int | None = None
    ties: int | None = None

    @property
    def changed(self) -> int:
        """Return the number of steps at which guidance took another token than the policy's best."""
        return len(self.alternatives)

    def take(self, token: int, stop: StopRule) -> bool:
        """Append a chosen token and return whether the row goes on."""
        ended = token in stop.end_ids
        if not ended:
            self.ids.append(token)
        self.ended = ended or token in stop.stop_ids
        self.steps += 1
        return not self.ended and self.steps < stop.max_new_tokens

    def note(self, facts: StepFacts, best: int, chosen: int) -> None:
        """Record a guided step; call it before `take`."""
        if chosen != best:
            self.alternatives[self.steps] = best
        self.near_ties += int(facts.near_tie)
        self.reward_spread.append(facts.reward_spread)
        self.fluency_spread.append(facts.fluency_spread)


Watch: TypeAlias = "Callable[[int, Decoded], None]"
"""Called with a row's number and what it holds, after each token."""


class Uniforms:
    """The random numbers of a batch: number t of a row decides its step t, whatever happens around it.

    Args:
        seeds: one a row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators: list[np.random.Generator] = []
        self._drawn: list[list[float]] = []
        self.add(seeds)

    def add(self, seeds: Sequence[int]) -> None:
        """Add rows behind those that are there."""
        self._generators += [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        self._drawn += [[] for _ in seeds]

    def at(self, rows: Sequence[int], steps: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return (B,) numbers in [0, 1), float64."""
        for row, step in zip(rows, steps, strict=True):
            while len(self._drawn[row]) <= step:
                self._drawn[row].append(self._generators[row].random())
        values = [self._drawn[row][step] for row, step in zip(rows, steps, strict=True)]
        return torch.tensor(values, dtype=torch.float64, device=device)


def candidates_of(log_probs: torch.Tensor, top_k: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log π and ids of each row's candidates, best first; the whole vocabulary stays in the order of ids."""
    if top_k is not None:
        return top_candidates(log_probs, top_k)
    ids = torch.arange(log_probs.shape[-1], device=log_probs.device)
    return log_probs, ids.expand(log_probs.shape)


def step_facts(
    scores: torch.Tensor, fluency: torch.Tensor, weighted: torch.Tensor, rewarded: torch.Tensor | None = None
) -> list[StepFacts]:
    """Return what is to be noted of N steps.

    Args:
        scores: (N, K) of the candidates, K ≥ 2.
        fluency: (N, K) log π; -inf marks what may not be chosen.
        weighted: (N, K) λ r.
        rewarded: (N, K) which have a reward; None for all.
    """
    best = torch.topk(scores, 2, dim=-1).values
    seen = torch.isfinite(fluency)
    read = seen if rewarded is None else seen & rewarded
    compared = read.sum(-1) > 1
    spreads = [_spread(weighted.double(), read), torch.where(compared, _spread(fluency.double(), seen), 0.0)]
    close = (best[:, 0] - best[:, 1] < NEAR_TIE).tolist()
    pairs = torch.stack(spreads, -1).tolist()
    return [StepFacts(near, *pair) for near, pair in zip(close, pairs, strict=True)]


def _spread(values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    count = seen.sum(-1)
    mean = torch.where(seen, values, 0.0).sum(-1) / count
    squares = torch.where(seen, (values - mean[:, None]).square(), 0.0)
    return (squares.sum(-1) / count).sqrt()


def check_fluency(fluency: torch.Tensor, rows: Sequence[int]) -> None:
    """Refuse rows without a candidate.

    Raises:
        ModelError: naming the first row.
    """
    bad = ~torch.isfinite(fluency.max(-1).values)
    if bool(bad.any()):
        raise ModelError(
            f"the policy has no next token for row {rows[int(bad.to(torch.uint8).argmax())]}: its logits are not "
            "finite, or every token is an end token that min_new_tokens forbids. Check the weights and the dtype."
        )


def check_rewards(rewards: torch.Tensor, rows: Sequence[int]) -> None:
    """Refuse rewards that are NaN or infinite.

    Raises:
        ModelError: naming the first row.
    """
    bad = ~torch.isfinite(rewards).all(-1)
    if bool(bad.any()):
        place = int(bad.to(torch.uint8).argmax())
        raise ModelError(
            f"the reward of a candidate in row {rows[place]} is {rewards[place].tolist()}: not a finite number. "
            "Check the reward model's features and weights."
        )
