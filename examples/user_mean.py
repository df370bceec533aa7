"""A new method in one file: the global direction plus the mean of the differences that a user has revealed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.linear import LinearHead
from rewardgap.rewards.states import UserState


class UserMean(LinearHead):
    """r_u(h) = (w + pull · m_u)ᵀ (h - mean) / std, m_u the mean standardised difference of the user's pairs over √D."""

    name = "user_mean"

    def __init__(self, *, pull: float = 1.0) -> None:
        super().__init__(prior_margin=1.5, l2=None)
        self.pull = pull
        self.basis, self.means = torch.zeros(0, 1), torch.zeros(0, 0)

    def config(self) -> dict[str, Any]:
        return {"pull": self.pull}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"basis": self.basis, "means": self.means}

    def initialise(self, generator: torch.Generator) -> None:
        self.basis = torch.zeros(self.width, 1, dtype=self.dtype, requires_grad=True)
        self.means = torch.zeros(len(self.users), self.width, dtype=self.dtype)

    def parameters(self) -> list[dict[str, Any]]:
        return [{"params": [self.basis], "lr": 1e-3}]

    def observe(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> None:
        super().observe(chosen, rejected, user_index)
        sums = torch.zeros_like(self.means).index_add_(0, user_index, self.differences(chosen, rejected).to(self.means))
        self.means = sums / self.counts.clamp(min=1)[:, None] / self.width**0.5

    def training_weights(self) -> torch.Tensor:
        return self.basis.new_ones(len(self.users), 1)

    def weights_of(self, state: UserState) -> torch.Tensor:
        return self.basis.new_ones(1)

    def _combine(self, rows: torch.Tensor, user_index: torch.Tensor) -> torch.Tensor:
        return super()._combine(rows, user_index) + self.pull * (rows * self.means[user_index].to(rows)).sum(-1)

    def direction(self, state: UserState) -> torch.Tensor:
        return super().direction(state) + self.pull * state.values["mean"].to(self.basis) / self.std

    def adapt(self, chosen: Any, rejected: Any) -> UserState:
        chosen, rejected = self.support_pairs(chosen, rejected)
        mean = self.differences(chosen, rejected).sum(0) / max(1, len(chosen)) / self.width**0.5
        return UserState(self.name, {"mean": mean}, len(chosen))

    def _own_state(self, row: int) -> UserState:
        return UserState(self.name, {"mean": self.means[row]}, int(self.counts[row]))


@dataclass(frozen=True)
class UserMeanConfig:
    """Settings of `UserMean`."""

    pull: float = field(default=1.0, metadata=meaning("how strongly a user's own mean counts"))


CARD = MethodCard(
    name="user_mean",
    summary="The global direction plus the user's own mean difference.",
    paper="none: an example",
    equation="r_u(h) = (w + pull · m_u)ᵀ (h - mean) / std",
    peer="none",
    deviations=(),
    config=UserMeanConfig,
    build=lambda config: UserMean(**asdict(config)),
    personal=True,
)
