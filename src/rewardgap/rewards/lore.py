"""LoRe: every user is a mixture of a few shared reward directions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch.nn.functional import cosine_similarity

from rewardgap.numerics.simplex import likeliest_weights, softmax_weights
from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.fitting import (
    Features,
    LossAggregation,
    check_choice,
    check_count,
    check_positive,
    fit_direction,
    pair_weights,
)
from rewardgap.rewards.linear import LinearHead
from rewardgap.rewards.states import UserState

WeightPrior: TypeAlias = Literal["mean", "uniform"]

_INITIAL_BASIS = 0.02


class LoRe(LinearHead):
    """A low-rank mixture of reward directions.

        r_u(h) = w_uᵀ Vᵀ h,   w_u = softmax(ω_u)
        min_{V, ω}  Σ_i c_i · softplus(-(r_u(h+) - r_u(h-))) + ridge ‖V‖² + ‖ω‖² / (2 N τ²) + α mean_j (1 - cos(V_j, v))

    A user's reward lies in the convex hull of the basis rewards, so users can only want opposite things where the
    basis holds both. A new user's weights solve a strictly convex problem with V as it is:

        min_w  mean softplus(-M w) + ρ ‖w - w₀‖²   with  w ≥ 0, Σ w = 1,   M = (h+ - h-) V

    With rank 1 every weight is one and the head is the global one, to the bit.

    Args:
        rank: R, the number of directions.
        prior_margin: s, the standard deviation of a typical pair's margin for a user with equal weights, under the
            Gaussian prior of the directions; the ridge is E‖Δ‖² / (2 N R s²) on standardised features.
        l2: the ridge itself, in nats a pair, instead of `prior_margin`.
        logit_std: τ, the standard deviation of a training user's logits under their prior. Without one, few pairs a
            user drive every user to a vertex, which fits noise and never converges.
        user_ridge: ρ > 0.
        weight_prior: w₀, also the cold start: "mean" of the training users' weights, or "uniform".
        reference_pull: α ≥ 0, towards the global direction v of the same pairs.
        loss_agg: "user" counts every user alike, "pair" every pair.

    Raises:
        ConfigError: if a value is out of range.

    Source: LoRe, arXiv 2504.14439: low-rank reward modelling and its few-shot adaptation. Peer: facebookresearch/LoRe,
        utils.py. What is done differently is listed on `CARD`.
    """

    name: ClassVar[str] = "lore"

    def __init__(
        self,
        *,
        rank: int = 5,
        prior_margin: float = 1.5,
        l2: float | None = None,
        logit_std: float = 1.0,
        user_ridge: float = 1e-2,
        weight_prior: WeightPrior = "mean",
        reference_pull: float = 0.0,
        loss_agg: LossAggregation = "user",
    ) -> None:
        super().__init__(prior_margin=prior_margin, l2=l2)
        check_count(self.name, rank=rank)
        check_positive(self.name, logit_std=logit_std, user_ridge=user_ridge)
        if reference_pull != 0:
            check_positive(self.name, reference_pull=reference_pull)
        check_choice(self.name, "weight_prior", weight_prior, ("mean", "uniform"))
        check_choice(self.name, "loss_agg", loss_agg, ("pair", "user"))
        self.rank, self.logit_std, self.user_ridge = rank, logit_std, user_ridge
        self.weight_prior, self.reference_pull, self.loss_agg = weight_prior, reference_pull, loss_agg
        if rank > 1:
            # Not convex: digits beyond these tell nothing, and cost as many steps again.
            self.tolerance = 1e-5
        self.basis = torch.zeros(0, rank)
        self.logits = torch.zeros(0, rank)
        self._reference: torch.Tensor | None = None

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""
        return {entry.name: getattr(self, entry.name) for entry in fields(LoReConfig)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the basis (D, R) and the training users' logits (U, R)."""
        return {"basis": self.basis, "logits": self.logits}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw small directions and logits of unit size; with one direction there is nothing to tell apart: zero."""
        size = _INITIAL_BASIS if self.rank > 1 else 0.0
        basis = size * torch.randn(self.width, self.rank, generator=generator, dtype=torch.float64)
        logits = torch.randn(len(self.users), self.rank, generator=generator, dtype=torch.float64)
        self.basis = basis.to(self.dtype).requires_grad_()
        self.logits = logits.to(self.dtype).requires_grad_(self.rank > 1)

    def observe(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> None:
        """Take moments and ridge, and where directions are pulled, the global direction of these pairs."""
        super().observe(chosen, rejected, user_index)
        if self.reference_pull > 0:
            weights = pair_weights(user_index, self.loss_agg)
            reference = fit_direction(self.differences(chosen, rejected), weights, self.ridge)
            self._reference = reference.to(self.basis)

    def parameters(self) -> list[dict[str, Any]]:
        """Return the basis, and the logits where they mean anything."""
        shared: dict[str, Any] = {"params": [self.basis], "lr": 1e-3}
        if self.rank == 1:
            return [shared]
        return [shared, {"params": [self.logits], "lr": 1e-2, "unit": len(self.users) ** 0.5}]

    def penalty(self) -> torch.Tensor:
        """Return the ridge of the basis, the prior of the logits and the pull, in nats a pair."""
        total = super().penalty()
        if self.rank > 1:
            total = total + self.logits.square().sum() / (2 * max(1, int(self.counts.sum())) * self.logit_std**2)
        if self._reference is not None:
            total = total + self.reference_pull * (1 - cosine_similarity(self.basis.T, self._reference, dim=-1)).mean()
        return total

    def training_weights(self) -> torch.Tensor:
        """Return the (U, R) weights of the training users."""
        return softmax_weights(self.logits)

    def weights_of(self, state: UserState) -> torch.Tensor:
        """Return the (R,) weights of a state."""
        return state.values["weights"]

    def prior_weights(self) -> torch.Tensor:
        """Return w₀ (R,) in float64: what a user without pairs gets."""
        if self.weight_prior == "uniform":
            return torch.full((self.rank,), 1 / self.rank, dtype=torch.float64)
        return softmax_weights(self.logits.detach().double().cpu()).mean(dim=0)

    def adapt(self, chosen: Features, rejected: Features) -> UserState:
        """Return a new user's weights, the one optimum of a convex problem.

        Args:
            chosen: (n, D) features of the support's chosen completions; n = 0 gives w₀.
            rejected: (n, D) features of the rejected ones.

        Returns:
            A state with `weights` (R,), non-negative with sum one.

        Raises:
            DataError: if a feature is not finite.
            ShapeError: if the shapes disagree.
        """
        left, right = self.support_pairs(chosen, rejected)
        margins = ((left - right) / self.std.double().cpu()) @ self.basis.detach().double().cpu()
        weights = likeliest_weights(margins.numpy(), self.prior_weights().numpy(), self.user_ridge)
        return UserState(self.name, {"weights": torch.from_numpy(weights).to(self.dtype)}, len(left))

    def _own_state(self, row: int) -> UserState:
        return UserState(self.name, {"weights": self.training_weights()[row]}, int(self.counts[row]))


@dataclass(frozen=True)
class LoReConfig:
    """Settings of `LoRe`."""

    rank: int = field(default=5, metadata=meaning("number of shared reward directions"))
    prior_margin: float = field(
        default=1.5, metadata=meaning("standard deviation of a typical pair's margin under the prior, at equal weights")
    )
    l2: float | None = field(
        default=None, metadata=meaning("ridge on the standardised basis in nats a pair, instead of prior_margin")
    )
    logit_std: float = field(
        default=1.0, metadata=meaning("standard deviation of a training user's logits under their prior")
    )
    user_ridge: float = field(
        default=1e-2, metadata=meaning("pull of a new user's weights to the prior weights, in nats a pair")
    )
    weight_prior: WeightPrior = field(
        default="mean", metadata=meaning("prior weights: 'mean' of the training users, or 'uniform'")
    )
    reference_pull: float = field(
        default=0.0, metadata=meaning("pull of every direction to the global one, on 1 - cosine")
    )
    loss_agg: LossAggregation = field(
        default="user", metadata=meaning("'user' counts every user alike, 'pair' every pair")
    )


CARD = MethodCard(
    name="lore",
    summary="Users are mixtures of a few shared reward directions.",
    paper="LoRe: Personalizing LLMs via Low-Rank Reward Modeling, arXiv 2504.14439",
    equation="r_u(x, y) = wᵤᵀ Vᵀ h(x, y), wᵤ on the simplex;  min_{V,w}  mean_u mean_i -log σ(Δr_u) + penalties",
    peer="facebookresearch/LoRe utils.py",
    deviations=(
        "Features are standardised by the training mean and standard deviation, and rewards are not divided by 100.",
        "The ridge on V follows from a stated prior of the margin, where the peer uses none or 1e-4: with fewer pairs "
        "than features that memorises the pairs.",
        "The training users' logits have a Gaussian prior; the peer's are free and run to the vertices.",
        "V and the logits are fitted together by L-BFGS to convergence, where the peer takes a fixed number of Adam "
        "steps.",
        "A new user's weights are solved exactly on the simplex with a ridge towards the mean training user, where the "
        "peer takes Adam steps on the logits from a random start.",
        "The reference direction is the global reward on the same features; the peer's is a column of an MLP matrix.",
        "Directions with little weight are kept; the peer drops them without refitting.",
    ),
    config=LoReConfig,
    build=lambda config: LoRe(**asdict(config)),
    personal=True,
    family="head",
)
