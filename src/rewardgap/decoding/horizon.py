"""How far to look ahead: a draft goes on for as long as its next token is expected to be worth what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rewardgap.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

NODE_COST = {"cpu": 0.03, "cuda": 0.004}
"""Assumed, not measured here: they decide how far is looked ahead, never what is written."""
RIVALS = 16
"""Candidates that are asked whether a reward could lift them above the draft; those behind hardly ever are."""
_POINTS = 33


@dataclass(frozen=True)
class LookAhead:
    """How far to look, and what it is taken to cost.

    A pass over n tokens of a network of W weights is taken to cost W (1 + node_cost · n): reading the weights, and the
    arithmetic. The costs are given, not timed, so that the same command takes the same steps.

    Args:
        most: steps at most.
        node_cost: of one token in a pass, against reading the weights once; by device unless given.
        fixed: always look this far, whatever it costs.

    Raises:
        ConfigError: if a value is out of range.
    """

    most: int = 8
    node_cost: float | None = None
    fixed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, value in (("most", self.most), ("fixed", self.fixed)):
            if value is not None and value < 1:
                raise ConfigError(f"look-ahead {name} must be at least 1, got {value}.")
        if self.node_cost is not None and not self.node_cost >= 0:
            raise ConfigError(f"look-ahead node_cost must be at least 0, got {self.node_cost}.")

    def cost(self, device: str) -> float:
        """Return the cost of a token in a pass on this kind of device."""
        return NODE_COST.get(device, NODE_COST["cuda"]) if self.node_cost is None else self.node_cost


class Horizon:
    """Decides after each drafted token whether the draft goes on: the running estimates of one decode.

    A drafted token stands if no other candidate's reward outweighs what it is behind. With rewards of the candidates
    taken for independent and normal, with the standard deviation s that λ r was seen to have,

        p = ∫ φ(x) Π_j Φ(x + (log π_1 - log π_j) / s) dx,

    which is near 1 in the middle of a word and far from it where the policy hesitates. Where a decoder draws, p is the
    share of drafts that stood so far. A draft of t steps is expected to give E_t = Σ_{i<t} Π_{j≤i} p_j tokens, for t
    passes of the policy (fewer where it has read the runners-up as well) and one of the guide; it goes on while that
    makes a token cheaper.

    Args:
        look_ahead: the costs and the limit.
        policy: weights of the policy.
        guide: weights of the guide.
        nodes: tokens that the guide reads a step and row.
        draws: whether the decoder draws.
        device: kind of device, decides the cost of a token.
    """

    def __init__(
        self, look_ahead: LookAhead, *, policy: float, guide: float, nodes: int, draws: bool, device: str
    ) -> None:
        self.look_ahead, self.draws, self.nodes = look_ahead, draws, nodes
        self.policy, self.guide, self.cost = policy, guide, look_ahead.cost(device)
        # Before anything is seen, four of five drafts stand, and two of three changes are to a runner-up.
        self._stood, self._seen = 4.0, 5.0
        self._covered, self._changed = 2.0, 3.0
        self._spread, self._spreads = 0.0, 0
        self._stands: list[list[float]] = []
        self._lengths: list[int] = []
        self._width = 1

    @property
    def limit(self) -> int:
        """Return the steps that a draft has at most."""
        return self.look_ahead.fixed or self.look_ahead.most

    def begin(self, rows: int, width: int) -> None:
        """Begin drafts of one step.

        Args:
            rows: A drafts.
            width: tokens that the policy reads a step and row, the draft's own first.
        """
        self._stands = [[1.0] for _ in range(rows)]
        self._lengths = [1] * rows
        self._width = width

    def goes_on(self, fluency: torch.Tensor, going: Sequence[int]) -> list[int]:
        """Return which drafts take another step.

        Args:
            fluency: (A, K) log π of the candidates of the last step, the draft's own among them.
            going: rows that could.
        """
        if self.look_ahead.fixed is not None or not going:
            return list(going)
        for row, p in zip(going, self._probabilities(fluency[list(going)]), strict=True):
            self._stands[row].append(self._stands[row][-1] * p)
        tokens = sum(math.fsum(row[:length]) for row, length in zip(self._stands, self._lengths, strict=True))
        now = tokens / self._spent(self._lengths)
        node = self.cost * (self.policy * self._width + self.guide * self.nodes)
        further = [row for row in going if self._stands[row][-1] > now * node]
        longer = [length + (row in further) for row, length in enumerate(self._lengths)]
        gained = math.fsum(self._stands[row][-1] for row in further)
        if not further or (tokens + gained) / self._spent(longer) <= now:
            return []
        self._lengths = longer
        return further

    def learn(self, taken: int, stood: int, spreads: Sequence[float], covered: bool | None) -> None:
        """Take in what became of one row's draft.

        Args:
            taken: steps that were decided.
            stood: those at which the draft's token was taken.
            spreads: of λ r among the candidates, at each of them.
            covered: whether the token taken instead had been read; None if none was, or nothing could have been.
        """
        self._seen += taken
        self._stood += stood
        self._spread += math.fsum(spreads)
        self._spreads += len(spreads)
        if covered is not None:
            self._changed += 1
            self._covered += covered

    def _probabilities(self, fluency: torch.Tensor) -> list[float]:
        if self.draws or not self._spreads:
            return [self._stood / self._seen] * len(fluency)
        best = torch.topk(fluency.double(), min(RIVALS, fluency.shape[-1]), dim=-1).values
        behind = (best[:, :1] - best[:, 1:]) / max(self._spread / self._spreads, 1e-9)
        points = torch.linspace(-4, 4, _POINTS, dtype=torch.float64, device=fluency.device)
        weights = torch.exp(-points.square() / 2)
        below = torch.special.ndtr(points[:, None] + behind[:, None]).prod(-1)
        found: list[float] = (below @ (weights / weights.sum())).tolist()
        return found

    def _spent(self, lengths: Sequence[int]) -> float:
        """Return what a round of drafts of these lengths is expected to cost."""
        passes = float(max(lengths))
        if self._width > 1:
            # One row: the token taken last is to be read unless it is a runner-up of a step before the draft's last.
            before, covered = self._stands[0][max(lengths) - 1], self._covered / self._changed
            passes -= (1 - before) * covered
        read = self.policy * (passes + self.cost * self._width * sum(lengths))
        return read + self.guide * (1 + self.cost * self.nodes * sum(lengths))


LOOK_AHEAD = LookAhead()
