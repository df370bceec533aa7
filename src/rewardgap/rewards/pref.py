"""PReF: every user weighs a few base rewards, with weights of any sign."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch

from rewardgap.numerics.logistic import Gaussian, choice_variance, map_weights
from rewardgap.numerics.matrix_completion import coin_flip_level, soft_impute
from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.fitting import Features, LossAggregation, check_choice, check_count, check_positive
from rewardgap.rewards.linear import LinearHead
from rewardgap.rewards.states import UserState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Start: TypeAlias = Literal["auto", "svd", "random"]

_RATERS_FOR_SVD = 3
_INITIAL_SPREAD = 0.1


class PReF(LinearHead):
    """A factorised reward: shared base rewards, and a user's unconstrained weights of them.

        r_u(h) = λ_uᵀ Uᵀ h
        min_{U, λ}  Σ_i c_i · softplus(-(r_u(h+) - r_u(h-))) + ridge ‖U‖² + R/(2N τ²) Σ_u ‖λ_u - λ₀‖²,   λ₀ = 1/√R

    The penalties are Gaussian priors of both factors, over N. Rewards do not change when U grows and λ shrinks, so a
    factor without a prior takes all the size, and the other's prior fades to nothing. λ₀ is any vector of length one:
    a rotation of both factors turns it. As τ falls to zero everybody is the mean user, and the head is the global one.

    A new user's weights solve a strictly convex problem with U as it is:

        min_λ  Σ_i softplus(-λᵀ v_i) + ½ (λ - λ̄)ᵀ Σ⁻¹ (λ - λ̄),   v = Uᵀ(h+ - h-)

    λ̄ is the mean of the training users' weights. Σ is their covariance, each counted with its own posterior covariance:
    the law of total variance. It is positive definite with one training user as well, so nothing has to be added to it.

    Args:
        rank: R, the number of base rewards.
        prior_margin: s, the standard deviation of a typical pair's margin for the mean user under the prior; the ridge
            is E‖Δ‖² / (2 N s²) on standardised features.
        l2: the ridge itself, in nats a pair, instead of `prior_margin`.
        user_spread: τ, how far training users are from λ₀ under their prior, in units of its length.
        start: "svd" completes the matrix of pairs and users and starts there; "random" does not; "auto" takes "svd"
            where the median pair was judged by at least 3 users.
        loss_agg: "pair" counts every pair alike, "user" every user.

    Attributes:
        median_raters: how many users judged the median pair.
        started_from: "svd" or "random"; "random" too where the matrix shows nothing but noise.

    Raises:
        ConfigError: if a value is out of range.

    Source: PReF, arXiv 2503.06358: the reward factorisation and its two-stage training. Peer: idanshen/PReF_code,
        model.py. What is done differently is listed on `CARD`.
    """

    name: ClassVar[str] = "pref"
    # Not convex: digits beyond these tell nothing, and cost as many steps again.
    tolerance: float = 1e-5

    def __init__(
        self,
        *,
        rank: int = 5,
        prior_margin: float = 1.5,
        l2: float | None = None,
        user_spread: float = 1.0,
        start: Start = "auto",
        loss_agg: LossAggregation = "pair",
    ) -> None:
        super().__init__(prior_margin=prior_margin, l2=l2)
        check_count(self.name, rank=rank)
        check_positive(self.name, user_spread=user_spread)
        check_choice(self.name, "start", start, ("auto", "svd", "random"))
        check_choice(self.name, "loss_agg", loss_agg, ("pair", "user"))
        self.rank, self.user_spread, self.start, self.loss_agg = rank, user_spread, start, loss_agg
        self.basis = torch.zeros(0, rank)
        self.weights = torch.zeros(0, rank)
        self.precision = torch.eye(rank)
        self.median_raters = 0.0
        self.started_from: Start = "random"

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""
        return {entry.name: getattr(self, entry.name) for entry in fields(PReFConfig)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return U (D, R), the training users' weights (U, R), and the precision Σ⁻¹ (R, R) of a new user's prior."""
        return {"basis": self.basis, "weights": self.weights, "precision": self.precision}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw base rewards of unit size, and users who all weigh them nearly alike."""
        basis = torch.randn(self.width, self.rank, generator=generator, dtype=torch.float64) / self.width**0.5
        noise = torch.randn(len(self.users), self.rank, generator=generator, dtype=torch.float64)
        self.basis = basis.to(self.dtype).requires_grad_()
        self.weights = (self._typical_weight + _INITIAL_SPREAD * noise).to(self.dtype).requires_grad_()
        self.precision = torch.eye(self.rank, dtype=self.dtype) * self._spread_precision

    def observe(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> None:
        """Take moments and ridge; where the same pairs were judged by several users, start from their matrix."""
        super().observe(chosen, rejected, user_index)
        if self.l2 is None:
            # Weights have unit length under their prior here; the linear heads' ridge is made for weights 1/R.
            self.ridge *= self.rank
        pairs = shared_pairs(chosen, rejected)
        self.median_raters = pairs.median_raters(user_index)
        asked = self.start == "svd" or (self.start == "auto" and self.median_raters >= _RATERS_FOR_SVD)
        structured = asked and self._start_from_matrix(pairs, self.differences(chosen, rejected), user_index)
        self.started_from = "svd" if structured else "random"

    def _start_from_matrix(self, pairs: SharedPairs, differences: torch.Tensor, user_index: torch.Tensor) -> bool:
        """Set U and λ from the completed matrix of signed choices; if it has no structure, leave them, and say so."""
        shape = (len(pairs.first), len(self.users))
        rank = min(self.rank, *shape)
        found = soft_impute(
            pairs.index,
            user_index.cpu().numpy(),
            pairs.sign,
            self.weights[:, :rank].detach().double().cpu().numpy(),
            num_rows=shape[0],
            # Choices of users with a taste are less noisy than coin flips: the full level would hide weak structure.
            shrinkage=coin_flip_level(len(pairs.index), shape) / 2,
        )
        kept = np.flatnonzero(found.singular > 0)
        if not len(kept):
            return False
        size = np.sqrt(found.singular[kept])
        weights, targets = found.right[:, kept] * size, found.left[:, kept] * size
        rows = pairs.sign[pairs.first, None] * differences.double().cpu().numpy()[pairs.first]
        # A mean sign of t stands for a margin of 2 artanh t, about 2t.
        basis = 2 * _ridge_regression(rows, targets, 2 * len(differences) * self.ridge)
        length = float(np.sqrt(np.square(weights).sum(axis=1).mean()))
        turn = _turn(weights.mean(axis=0))
        with torch.no_grad():
            # A column that is zero in both factors would have no slope and stay there: the other weights remain drawn.
            self.basis.zero_()
            self.basis[:, kept] = torch.from_numpy(basis @ turn * length).to(self.basis)
            self.weights[:, kept] = torch.from_numpy(weights @ turn / length).to(self.weights)
        return True

    @property
    def _typical_weight(self) -> float:
        return 1 / math.sqrt(self.rank)

    @property
    def _spread_precision(self) -> float:
        return self.rank / self.user_spread**2

    def parameters(self) -> list[dict[str, Any]]:
        """Return U and the users' weights."""
        shared: dict[str, Any] = {"params": [self.basis], "lr": 1e-3}
        return [shared, {"params": [self.weights], "lr": 1e-2, "unit": len(self.users) ** 0.5}]

    def penalty(self) -> torch.Tensor:
        """Return the priors of both factors, in nats a pair."""
        apart = (self.weights - self._typical_weight).square().sum()
        return super().penalty() + self._spread_precision * apart / (2 * max(1, int(self.counts.sum())))

    def calibrate(
        self,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        user_index: torch.Tensor,
        losses: Sequence[float],
        converged: bool,
    ) -> None:
        """Set scale and history, and the prior of new users from what the training users' weights are.

        Σ = 1/U Σ_u [(λ_u - λ̄)(λ_u - λ̄)ᵀ + A_u⁻¹],   A_u = R/τ² · I + Σ_{i of u} σ'(λ_uᵀ v_i) v_i v_iᵀ
        """
        super().calibrate(chosen, rejected, user_index, losses, converged)
        basis, weights = self.basis.double(), self.weights.double()
        rows = self.differences(chosen, rejected).double() @ basis
        variance = torch.from_numpy(choice_variance((rows * weights[user_index]).sum(-1).cpu().numpy())).to(rows)
        outer = variance[:, None, None] * rows[:, :, None] * rows[:, None, :]
        known = torch.eye(self.rank).to(rows).mul(self._spread_precision).repeat(len(self.users), 1, 1)
        known = known.index_add(0, user_index, outer)
        apart = weights - weights.mean(dim=0)
        covariance = apart.T @ apart / len(self.users) + torch.linalg.inv(known).mean(dim=0)
        precision = torch.linalg.inv(covariance)
        self.precision = ((precision + precision.T) / 2).to(self.precision)

    def training_weights(self) -> torch.Tensor:
        """Return the (U, R) weights of the training users."""
        return self.weights

    def weights_of(self, state: UserState) -> torch.Tensor:
        """Return the (R,) weights of a state."""
        return state.values["weights"]

    def user_prior(self) -> Gaussian:
        """Return the belief about a user without pairs, N(λ̄, Σ) over (R,) weights."""
        mean = self.weights.detach().double().cpu().mean(dim=0)
        return Gaussian(mean.numpy(), self.precision.double().cpu().numpy())

    def user_rows(self, left: Features, right: Features) -> NDArray[np.float64]:
        """Return the (n, R) margins of pairs under each base reward, whose product with weights is the margin."""
        first, second = self.support_pairs(left, right)
        rows: NDArray[np.float64] = (
            ((first - second) / self.std.double().cpu()) @ self.basis.detach().double().cpu()
        ).numpy()
        return rows

    def user_state(self, weights: NDArray[np.float64], num_support: int) -> UserState:
        """Return the state of a user with these (R,) weights."""
        return UserState(self.name, {"weights": torch.from_numpy(weights).to(self.dtype)}, num_support)

    def adapt(self, chosen: Features, rejected: Features) -> UserState:
        """Return a new user's weights, the one optimum of a convex problem.

        Args:
            chosen: (n, D) features of the support's chosen completions; n = 0 gives λ̄.
            rejected: (n, D) features of the rejected ones.

        Returns:
            A state with `weights` (R,).

        Raises:
            DataError: if a feature is not finite.
            ShapeError: if the shapes disagree.
        """
        rows = self.user_rows(chosen, rejected)
        return self.user_state(map_weights(rows, self.user_prior()), len(rows))

    def _own_state(self, row: int) -> UserState:
        return UserState(self.name, {"weights": self.weights[row]}, int(self.counts[row]))


@dataclass(frozen=True, eq=False)
class SharedPairs:
    """Which training pairs are the same one, judged by several users.

    Attributes:
        index: (N,) the distinct pair of each row, numbered by first appearance.
        sign: (N,) +1 or -1, so that sign · (h+ - h-) is alike in all rows of a pair.
        first: (P,) the first row of each distinct pair.
    """

    index: NDArray[np.int64]
    sign: NDArray[np.float64]
    first: NDArray[np.int64]

    def median_raters(self, user_index: torch.Tensor) -> float:
        """Return how many users judged the median pair."""
        judged = np.unique(np.stack([self.index, user_index.cpu().numpy()]), axis=1)
        return float(np.median(np.bincount(judged[0])))


def shared_pairs(chosen: torch.Tensor, rejected: torch.Tensor) -> SharedPairs:
    """Find pairs with the same two feature rows, whichever was chosen.

    Which side counts as the first is decided by a hash of the features, so it tells nothing about what was chosen.

    Args:
        chosen: (N, D) features.
        rejected: (N, D) features.
    """
    sides = [[blake2b(row.tobytes(), digest_size=16).digest() for row in _rows(side)] for side in (chosen, rejected)]
    index: list[int] = []
    sign: list[float] = []
    first: list[int] = []
    places: dict[tuple[bytes, bytes], int] = {}
    for row, (left, right) in enumerate(zip(*sides, strict=True)):
        key = min((left, right), (right, left))
        if key not in places:
            places[key] = len(first)
            first.append(row)
        index.append(places[key])
        sign.append(1.0 if key == (left, right) else -1.0)
    return SharedPairs(np.array(index), np.array(sign), np.array(first))


def _rows(features: torch.Tensor) -> NDArray[Any]:
    # Adding zero turns -0.0 into 0.0, which has other bytes and is the same number.
    rows: NDArray[Any] = np.ascontiguousarray(features.cpu().numpy() + 0.0)
    return rows


def _turn(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (R, R) reflection that turns a direction to the one of equal weights."""
    size = np.linalg.norm(direction)
    across = direction / size - len(direction) ** -0.5 if size > 0 else np.zeros_like(direction)
    width = across @ across
    return np.eye(len(direction)) - (2 / width * np.outer(across, across) if width > 0 else 0.0)


def _ridge_regression(rows: NDArray[np.float64], targets: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Return argmin_B ‖rows B - targets‖² + ridge ‖B‖², through the smaller system."""
    count, width = rows.shape
    if count < width:
        return np.asarray(rows.T @ np.linalg.solve(rows @ rows.T + ridge * np.eye(count), targets))
    return np.asarray(np.linalg.solve(rows.T @ rows + ridge * np.eye(width), rows.T @ targets))


@dataclass(frozen=True)
class PReFConfig:
    """Settings of `PReF`."""

    rank: int = field(default=5, metadata=meaning("number of shared base rewards"))
    prior_margin: float = field(
        default=1.5, metadata=meaning("standard deviation of a typical pair's margin for the mean user under the prior")
    )
    l2: float | None = field(
        default=None, metadata=meaning("ridge on the standardised basis in nats a pair, instead of prior_margin")
    )
    user_spread: float = field(
        default=1.0,
        metadata=meaning("how far training users are from the mean user under their prior, in units of its length"),
    )
    start: Start = field(
        default="auto",
        metadata=meaning(
            "'svd' starts from the completed matrix of pairs and users, 'random' does not, 'auto' takes 'svd' where "
            "the median pair was judged by at least 3 users"
        ),
    )
    loss_agg: LossAggregation = field(
        default="pair", metadata=meaning("'pair' counts every pair alike, 'user' every user")
    )


CARD = MethodCard(
    name="pref",
    summary="Users weigh a few shared base rewards, with weights of any sign.",
    paper="PReF: Language Model Personalization via Reward Factorization, arXiv 2503.06358",
    equation="r_u(x, y) = λᵤᵀ Uᵀ h(x, y);  min_{U,λ}  mean_i -log σ(Δr_u) + ridge ‖U‖² + ‖λᵤ - λ₀‖² / 2τ²",
    peer="idanshen/PReF_code model.py",
    deviations=(
        "Features are standardised by the training mean and standard deviation.",
        "Both factors have a Gaussian prior, stated as a standard deviation of the margin and a spread of users; the "
        "peer penalises base rewards, or both factors, by a constant.",
        "The matrix of choices is signed with zeros for what is missing, completed at the model's own rank, and its "
        "singular values are shrunk by half of what coin flips would give; the peer fills in one half at another rank.",
        "That start is used only where the median pair was judged by at least 3 users; elsewhere the matrix shows no "
        "structure.",
        "U and λ are fitted together by L-BFGS to convergence, where the peer takes a fixed number of steps.",
        "A new user's weights are the optimum under the Gaussian prior of the training users' weights, found by "
        "Newton steps; the peer takes gradient steps without a prior from a random start.",
    ),
    config=PReFConfig,
    build=lambda config: PReF(**asdict(config)),
    personal=True,
    family="head",
)
