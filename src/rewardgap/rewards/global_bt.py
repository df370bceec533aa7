"""Global Bradley-Terry: one reward for everybody, the model every personal one must beat."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch

from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.fitting import Features, LossAggregation, check_choice
from rewardgap.rewards.linear import LinearHead
from rewardgap.rewards.states import UserState


class GlobalBT(LinearHead):
    """One linear reward, fitted by regularised maximum likelihood.

        min_w  Σ_i c_i · softplus(-wᵀ(h+ - h-)) + ridge · ‖w‖²

    Convex, so the optimum is unique and independent of seed and order. There is no bias: it cancels in every pair.

    Args:
        prior_margin: s, the standard deviation of a typical pair's margin under the Gaussian prior of w. The ridge is
            E‖Δ‖² / (2 N s²) on standardised features, so it fades as pairs are added and does not depend on D.
            With s = 1.5 the prior puts two thirds of the choice probabilities between .18 and .82.
        l2: the ridge itself, in nats a pair, instead of `prior_margin`.
        loss_agg: "pair" counts every pair alike, "user" every user.

    Raises:
        ConfigError: if a value is out of range; without a ridge, separable pairs have no finite optimum.

    Source: Bradley and Terry (1952); reward models of Ouyang et al. (2022), equation 1.
    """

    name: ClassVar[str] = "global_bt"

    def __init__(
        self, *, prior_margin: float = 1.5, l2: float | None = None, loss_agg: LossAggregation = "pair"
    ) -> None:
        super().__init__(prior_margin=prior_margin, l2=l2)
        check_choice(self.name, "loss_agg", loss_agg, ("pair", "user"))
        self.loss_agg = loss_agg
        self.basis = torch.zeros(0, 1)

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""
        return {entry.name: getattr(self, entry.name) for entry in fields(GlobalBTConfig)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the direction."""
        return {"basis": self.basis}

    def initialise(self, generator: torch.Generator) -> None:
        """Start at zero, where the loss is log 2 to the bit."""
        self.basis = torch.zeros(self.width, 1, dtype=self.dtype, requires_grad=True)

    def parameters(self) -> list[dict[str, Any]]:
        """Return the direction."""
        return [{"params": [self.basis], "lr": 1e-3}]

    def training_weights(self) -> torch.Tensor:
        """Return ones: everybody has the one reward."""
        return self.basis.new_ones(len(self.users), 1)

    def weights_of(self, state: UserState) -> torch.Tensor:
        """Return one."""
        return self.basis.new_ones(1)

    def adapt(self, chosen: Features, rejected: Features) -> UserState:
        """Return the state everybody has; the support is checked and not used."""
        return UserState(self.name, {}, len(self.support_pairs(chosen, rejected)[0]))

    def _own_state(self, row: int) -> UserState:
        return UserState(self.name, {}, int(self.counts[row]))


@dataclass(frozen=True)
class GlobalBTConfig:
    """Settings of `GlobalBT`."""

    prior_margin: float = field(
        default=1.5, metadata=meaning("standard deviation of a typical pair's margin under the prior")
    )
    l2: float | None = field(
        default=None, metadata=meaning("ridge on the standardised direction in nats a pair, instead of prior_margin")
    )
    loss_agg: LossAggregation = field(
        default="pair", metadata=meaning("'pair' counts every pair alike, 'user' every user")
    )


CARD = MethodCard(
    name="global_bt",
    summary="One linear Bradley-Terry reward for everybody.",
    paper="Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155",
    equation="r(x, y) = wᵀ h(x, y);  min_w  -mean log σ(r(x, y+) - r(x, y-)) + ridge ‖w‖²",
    peer="trl RewardTrainer: the same loss on a scalar head; scikit-learn LogisticRegression(fit_intercept=False)",
    deviations=(
        "Features are standardised by the training mean and standard deviation.",
        "The ridge follows from a stated prior of the margin; reward models are usually fitted with none, which "
        "memorises few pairs in many features.",
        "On frozen features the convex problem is solved to its optimum by L-BFGS.",
    ),
    config=GlobalBTConfig,
    build=lambda config: GlobalBT(**asdict(config)),
    personal=False,
    family="head",
)
