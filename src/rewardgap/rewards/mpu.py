"""MPU: one reward model per user, with nothing shared but where it starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.numerics.logistic import Gaussian, map_weights
from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.fitting import (
    Features,
    FitTrace,
    LossAggregation,
    TrainingPairs,
    check_choice,
    check_count,
    fit_direction,
    pair_weights,
)
from rewardgap.rewards.linear import LinearHead
from rewardgap.rewards.states import UserState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

StartingPoint: TypeAlias = Literal["base", "global", "head_only"]


class MPU(LinearHead):
    """One direction a user, fitted on that user's pairs alone.

        r_u(h) = (v + o_u)ᵀ h
        o_u = argmin_o  Σ_{i of u} softplus(-(r_u(h+) - r_u(h-))) + p/2 ‖o‖²,   p = E‖Δ‖² / s²

    The centre v is zero, or the global direction of the same pairs. Every user's problem is strictly convex and stands
    alone: it is solved to its optimum in the span of the user's pairs. A new user's problem is the same one, so
    adapting on a training user's own pairs gives that user's state. With one user and the centre at zero, this is the
    global head.

    Args:
        init: where a user starts. "base": the centre is zero; a user without pairs prefers nothing. "global": the
            reward model of all training users. "head_only": the same, with a backbone that is not trained for the
            user; on frozen features it is "global".
        prior_margin: s, the standard deviation of a typical pair's margin under the Gaussian prior of the user's own
            part; also that of the global direction.
        l2: instead of `prior_margin`, the ridge on ‖o_u‖² in nats a pair for a user with as many pairs as the average
            training user; also that of the global direction, over all pairs.
        loss_agg: whether pairs or users count alike in the global direction, and in what a backbone hears when one is
            trained as well; on frozen features a user's own part does not depend on it.
        user_steps: about how many steps a user's own adapter is trained for; nothing on frozen features.

    Raises:
        ConfigError: if a value is out of range.

    Source: one model per user is the baseline "MPU" of arXiv 2512.23067; what is done differently is listed on `CARD`.
    """

    name: ClassVar[str] = "mpu"

    def __init__(
        self,
        *,
        init: StartingPoint = "base",
        prior_margin: float = 1.5,
        l2: float | None = None,
        loss_agg: LossAggregation = "pair",
        user_steps: int = 60,
    ) -> None:
        super().__init__(prior_margin=prior_margin, l2=l2)
        check_count(self.name, user_steps=user_steps)
        check_choice(self.name, "init", init, ("base", "global", "head_only"))
        check_choice(self.name, "loss_agg", loss_agg, ("pair", "user"))
        self.init, self.loss_agg, self.user_steps = init, loss_agg, user_steps
        self.basis = torch.zeros(0, 1)
        self.offsets = torch.zeros(0, 0)
        self.precision = torch.ones(())

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""
        return {entry.name: getattr(self, entry.name) for entry in fields(MPUConfig)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the centre (D, 1), the training users' own parts (U, D), and the precision p of their prior."""
        return {"basis": self.basis, "offsets": self.offsets, "precision": self.precision}

    def initialise(self, generator: torch.Generator) -> None:
        """Start everybody at the centre."""
        self.basis = torch.zeros(self.width, 1, dtype=self.dtype)
        self.offsets = torch.zeros(len(self.users), self.width, dtype=self.dtype, requires_grad=True)
        self.precision = torch.ones((), dtype=self.dtype)

    def observe(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> None:
        """Take moments, turn the stated prior into a precision, and find the centre."""
        super().observe(chosen, rejected, user_index)
        # The ridge is that of one direction for all pairs; a user's own prior is as wide, whoever else there is.
        alike = len(chosen) if self.l2 is None else len(chosen) / len(self.users)
        self.precision = self.precision.new_tensor(2 * alike * self.ridge)
        if self.init != "base":
            weights = pair_weights(user_index, self.loss_agg)
            centre = fit_direction(self.differences(chosen, rejected), weights, self.ridge)
            self.basis = centre.unsqueeze(1).to(self.basis)

    def solve(self, pairs: TrainingPairs) -> FitTrace:
        """Solve each user's own problem."""
        differences = self.differences(pairs.chosen, pairs.rejected)
        before = self._objective(differences, pairs.user_index)
        rows, prior = differences.double().cpu().numpy(), self.user_prior()
        order = torch.argsort(pairs.user_index, stable=True).cpu()
        with torch.no_grad():
            for user, own in enumerate(torch.split(order, self.counts.tolist())):
                weights = map_weights(rows[own.numpy()], prior)
                self.offsets[user] = torch.from_numpy(weights - prior.mean).to(self.offsets)
        return FitTrace([before, self._objective(differences, pairs.user_index)], True)

    def _objective(self, differences: torch.Tensor, user_index: torch.Tensor) -> float:
        with torch.no_grad():
            losses = pair_loss(self._combine(differences, user_index)).double()
            return float(pair_weights(user_index, self.loss_agg) @ losses + self.penalty())

    def parameters(self) -> list[dict[str, Any]]:
        """Return the users' own parts; the centre is what it was found to be."""
        return [{"params": [self.offsets], "lr": 1e-3, "unit": len(self.users) ** 0.5}]

    def penalty(self) -> torch.Tensor:
        """Return Σ_u c_u · p/2 ‖o_u‖², with c_u the weight of one pair of u: no user's optimum depends on others."""
        counts = self.counts.to(self.mean).clamp_min(1)
        shares = 1 / counts.sum() if self.loss_agg == "pair" else 1 / (len(self.users) * counts)
        return (shares * self.offsets.square().sum(1)).sum() * self.precision / 2

    def training_weights(self) -> torch.Tensor:
        """Return ones: everybody has the centre."""
        return self.basis.new_ones(len(self.users), 1)

    def weights_of(self, state: UserState) -> torch.Tensor:
        """Return one."""
        return self.basis.new_ones(1)

    def _combine(self, rows: torch.Tensor, user_index: torch.Tensor) -> torch.Tensor:
        return super()._combine(rows, user_index) + (rows * self.offsets[user_index]).sum(-1)

    def direction(self, state: UserState) -> torch.Tensor:
        """Return the (D,) vector whose dot product with centred features is the reward."""
        return super().direction(state) + state.values["offset"].to(self.basis) / self.std

    def user_prior(self) -> Gaussian:
        """Return the belief about a user without pairs: N(v, I/p) over (D,) directions in standardised features."""
        return Gaussian(self.basis[:, 0].detach().double().cpu().numpy(), float(self.precision))

    def user_rows(self, left: Features, right: Features) -> NDArray[np.float64]:
        """Return the (n, D) standardised differences of pairs, whose product with a direction is the margin."""
        first, second = self.support_pairs(left, right)
        rows: NDArray[np.float64] = ((first - second) / self.std.double().cpu()).numpy()
        return rows

    def user_state(self, weights: NDArray[np.float64], num_support: int) -> UserState:
        """Return the state of a user with that (D,) direction."""
        offset = torch.from_numpy(weights) - self.basis[:, 0].detach().double().cpu()
        return UserState(self.name, {"offset": offset.to(self.dtype)}, num_support)

    def adapt(self, chosen: Features, rejected: Features) -> UserState:
        """Return a new user's own part, the one optimum of a convex problem.

        Args:
            chosen: (n, D) features of the support's chosen completions; n = 0 gives the centre.
            rejected: (n, D) features of the rejected ones.

        Returns:
            A state with `offset` (D,), in standardised features.

        Raises:
            DataError: if a feature is not finite.
            ShapeError: if the shapes disagree.
        """
        rows = self.user_rows(chosen, rejected)
        return self.user_state(map_weights(rows, self.user_prior()), len(rows))

    def _own_state(self, row: int) -> UserState:
        return UserState(self.name, {"offset": self.offsets[row]}, int(self.counts[row]))


@dataclass(frozen=True)
class MPUConfig:
    """Settings of `MPU`."""

    init: StartingPoint = field(
        default="base",
        metadata=meaning(
            "where a user starts: 'base' at zero, 'global' at the reward of all training users, 'head_only' likewise "
            "with the user's own backbone left out"
        ),
    )
    prior_margin: float = field(
        default=1.5,
        metadata=meaning("standard deviation of a typical pair's margin under the prior of the user's own part"),
    )
    l2: float | None = field(
        default=None,
        metadata=meaning(
            "ridge on the user's own part in nats a pair, for a user with as many pairs as the average one, instead of "
            "prior_margin"
        ),
    )
    loss_agg: LossAggregation = field(
        default="pair",
        metadata=meaning("in the global direction 'pair' counts every pair alike, 'user' every user"),
    )
    user_steps: int = field(
        default=60, metadata=meaning("about how many steps a user's own adapter is trained for, fit_mode lora")
    )


CARD = MethodCard(
    name="mpu",
    summary="One reward model per user, fitted on that user's pairs alone.",
    paper="The baseline of one model per user in arXiv 2512.23067",
    equation="r_u(x, y) = (v + oᵤ)ᵀ h(x, y);  min_o  Σ -log σ(Δr_u) + p/2 ‖oᵤ‖²,  v = 0 or the global direction",
    peer="scikit-learn LogisticRegression(fit_intercept=False), one a user",
    deviations=(
        "On frozen features a user owns a direction and no adapter, so 'global' and 'head_only' are one; with fit_mode "
        "lora each user has an own adapter and direction.",
        "Features are standardised by the moments of all training users' pairs.",
        "Each user's convex problem is solved to its optimum, where models per user are usually stopped early after a "
        "few dozen steps.",
        "The ridge follows from a stated prior of the margin, alike for every user, so that it fades as a user reveals "
        "more.",
    ),
    config=MPUConfig,
    build=lambda config: MPU(**asdict(config)),
    personal=True,
    family="head",
    adapter_per_user=True,
)
