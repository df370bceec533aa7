"""Heads whose reward is linear in the features: one shared basis, one weight vector a user."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.rewards.base import Head
from rewardgap.rewards.fitting import check_positive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.rewards.states import UserState


class LinearHead(Head):
    """A head whose reward is one dot product a user.

        r_u(h) = dᵤᵀ (h - mean),   dᵤ = V wᵤ / std

    The basis V (D, R) is shared and trained with a Gaussian prior; what w_u may be is the method's.

    Attributes:
        basis: (D, R) directions in standardised features.
        l2: the ridge on ‖V‖² in nats a pair, or None to derive it from `prior_margin`.
        prior_margin: standard deviation, under the prior, of a typical training pair's margin for a user with equal
            weights.
        ridge: the ridge in force, set by `observe`.
    """

    basis: torch.Tensor

    def __init__(self, *, prior_margin: float, l2: float | None) -> None:
        super().__init__()
        check_positive(self.name, prior_margin=prior_margin, **({} if l2 is None else {"l2": l2}))
        self.prior_margin, self.l2, self.ridge = prior_margin, l2, 0.0

    @abstractmethod
    def training_weights(self) -> torch.Tensor:
        """Return the (U, R) differentiable weights of the training users."""

    @abstractmethod
    def weights_of(self, state: UserState) -> torch.Tensor:
        """Return the (R,) weights of a state."""

    def fit_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return float64: a linear fit is cheap, and its optimum should not depend on rounding."""
        return torch.float64

    def observe(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> None:
        """Take moments and counts, and turn the stated prior into a ridge.

        V_j ~ N(0, s² / E‖Δ‖² · I)  so that  std(V_jᵀΔ) = s,   ridge = E‖Δ‖² / (2 N s²)
        """
        super().observe(chosen, rejected, user_index)
        if self.l2 is None:
            energy = float(self.differences(chosen, rejected).square().sum(-1).mean())
            self.ridge = (energy or float(self.width)) / (2 * len(chosen) * self.basis.shape[1] * self.prior_margin**2)
        else:
            self.ridge = self.l2

    def differences(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        """Return standardised (h+ - h-); the mean cancels."""
        return (chosen.to(self.mean) - rejected.to(self.mean)) / self.std

    def penalty(self) -> torch.Tensor:
        """Return ridge · ‖V‖²."""
        return self.ridge * self.basis.square().sum()

    def train_rewards(self, features: torch.Tensor, user_index: torch.Tensor) -> torch.Tensor:
        """Return (N,) rewards w_uᵀ Vᵀ (h - mean) / std."""
        return self._combine(self.standardise(features), user_index)

    def bind_losses(
        self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        """Return the (N,) losses as a function of the parameters, from differences formed once."""
        differences = self.differences(chosen, rejected)
        return lambda: pair_loss(self._combine(differences, user_index))

    def _combine(self, rows: torch.Tensor, user_index: torch.Tensor) -> torch.Tensor:
        return ((rows @ self.basis) * self.training_weights()[user_index]).sum(-1)

    def direction(self, state: UserState) -> torch.Tensor:
        """Return the (D,) vector whose dot product with centred features is the reward."""
        return (self.basis @ self.weights_of(state).to(self.basis)) / self.std

    def batch_rewards(self, features: torch.Tensor, states: Sequence[UserState]) -> torch.Tensor:
        """Return (B, ...) rewards of (B, ..., D) features, one user a leading row."""
        features = self.check_use(features, states)
        directions = torch.stack([self.direction(state) for state in states])
        # Centred before the product: hidden states have a few huge columns whose offset would eat float32's digits.
        rows = (features - self.mean).reshape(len(states), -1, self.width)
        return (rows @ directions.unsqueeze(-1)).squeeze(-1).reshape(features.shape[:-1])
