"""A control for reward heads: users with a known linear utility over Gaussian features.

    m = (φ₁ - φ₂)ᵀ u_k,   u_k = Q w_k,   φ ~ N(0, I_D),   Q orthonormal (D, R)

World A: w ~ Dirichlet(0.3), label m > 0. World B: w a random direction (opposite tastes exist), label m > 0.
World C: the weights of A, label ~ Bernoulli(σ(4m)).

One row: a chosen and a rejected feature vector of a user, `(0.13, -1.2, ...)`, `(0.71, 0.4, ...)`, `"seen00"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from rewardgap.core.errors import ConfigError
from rewardgap.core.seeds import child_seed
from rewardgap.data.base import DatasetCard
from rewardgap.data.collecting import check_choice

if TYPE_CHECKING:
    from collections.abc import Mapping

WorldKind: TypeAlias = Literal["A", "B", "C"]
FloatArray: TypeAlias = NDArray[np.float64]
LABEL_SHARPNESS = 4.0


@dataclass(frozen=True, eq=False)
class FeaturePairs:
    """Pairs of feature vectors.

    Args:
        chosen: (P, D).
        rejected: (P, D).
        user: (P,) user ids, as strings.
    """

    chosen: FloatArray
    rejected: FloatArray
    user: NDArray[np.str_]

    def __len__(self) -> int:
        """Return P."""
        return len(self.user)

    def of_user(self, user_id: str) -> FeaturePairs:
        """Return the pairs of one user."""
        mask = self.user == user_id
        return FeaturePairs(self.chosen[mask], self.rejected[mask], self.user[mask])


@dataclass(frozen=True, eq=False)
class World:
    """Users whose utility is known.

    Args:
        kind: "A", "B" or "C".
        seed: what it was drawn from.
        train: pairs of seen users.
        test_seen: other pairs of seen users.
        support: the pairs unseen users reveal.
        test_unseen: other pairs of unseen users.
        basis: (D, R) orthonormal Q.
        user_vectors: user id -> (D,) true u_k.
    """

    kind: WorldKind
    seed: int
    train: FeaturePairs
    test_seen: FeaturePairs
    support: FeaturePairs
    test_unseen: FeaturePairs
    basis: FloatArray
    user_vectors: Mapping[str, FloatArray]

    @property
    def seen_users(self) -> tuple[str, ...]:
        """Return the users of `train`."""
        return tuple(dict.fromkeys(self.train.user.tolist()))

    @property
    def unseen_users(self) -> tuple[str, ...]:
        """Return the users of `support`."""
        return tuple(dict.fromkeys(self.support.user.tolist()))

    def oracle_accuracy(self, pairs: FeaturePairs) -> float:
        """Return the accuracy of the true utilities, averaged over users: the ceiling of every method."""
        by_user: dict[str, list[bool]] = {}
        for chosen, rejected, user in zip(pairs.chosen, pairs.rejected, pairs.user.tolist(), strict=True):
            by_user.setdefault(user, []).append(bool((chosen - rejected) @ self.user_vectors[user] > 0))
        return float(np.mean([np.mean(hits) for hits in by_user.values()]))


def make_world(
    kind: WorldKind = "A",
    seed: int = 0,
    *,
    num_seen: int = 60,
    num_unseen: int = 20,
    dimension: int = 32,
    rank: int = 3,
    train_pairs: int = 40,
    support_pairs: int = 20,
    test_pairs: int = 200,
) -> World:
    """Draw a world.

    Args:
        kind: "A", "B" or "C".
        seed: decides everything.
        num_seen: users to train on.
        num_unseen: users met afterwards.
        dimension: D, the width of features.
        rank: R, the number of reward directions; at most D.
        train_pairs: per seen user.
        support_pairs: per unseen user.
        test_pairs: per user of either kind.

    Raises:
        ConfigError: if an option is out of range.
    """
    check_choice("world", kind, get_args(WorldKind))
    counts = {"num_seen": num_seen, "num_unseen": num_unseen, "dimension": dimension, "rank": rank}
    counts |= {"train_pairs": train_pairs, "support_pairs": support_pairs, "test_pairs": test_pairs}
    for option, value in counts.items():
        if value < 1:
            raise ConfigError(f"synthetic option {option} is {value}, expected at least 1.")
    if rank > dimension:
        raise ConfigError(f"synthetic option rank is {rank}, expected at most dimension = {dimension}.")
    rng = np.random.default_rng(child_seed(seed, "synthetic", kind))
    basis = np.linalg.qr(rng.standard_normal((dimension, rank)))[0]
    seen = [f"seen{number:02d}" for number in range(num_seen)]
    unseen = [f"new{number:02d}" for number in range(num_unseen)]
    vectors = {user: basis @ _weights(kind, rank, rng) for user in [*seen, *unseen]}

    def draw(users: list[str], count: int) -> FeaturePairs:
        user = np.repeat(np.array(users), count)
        first, second = rng.standard_normal((2, len(user), dimension))
        margin = np.einsum("pd,pd->p", first - second, np.stack([vectors[name] for name in user.tolist()]))
        certain = 1 / (1 + np.exp(-LABEL_SHARPNESS * margin)) if kind == "C" else (margin > 0).astype(float)
        wins = (rng.random(len(user)) < certain)[:, None]
        return FeaturePairs(np.where(wins, first, second), np.where(wins, second, first), user)

    return World(
        kind=kind,
        seed=seed,
        train=draw(seen, train_pairs),
        test_seen=draw(seen, test_pairs),
        support=draw(unseen, support_pairs),
        test_unseen=draw(unseen, test_pairs),
        basis=basis,
        user_vectors=vectors,
    )


def load_synthetic(*, world: WorldKind = "A", seed: int = 0) -> World:
    """Return a world of the default size.

    Raises:
        ConfigError: if there is no such world.
    """
    return make_world(world, seed)


def _weights(kind: WorldKind, rank: int, rng: np.random.Generator) -> FloatArray:
    if kind != "B":
        return rng.dirichlet(np.full(rank, 0.3))
    direction = rng.standard_normal(rank)
    unit: FloatArray = direction / np.linalg.norm(direction)
    return unit


CARD = DatasetCard(
    name="synthetic",
    summary="Control: feature vectors and users with a known linear utility (worlds A, B, C); for reward heads alone.",
    kind="features",
    source="generated",
    revision="1",
    licence="Apache-2.0",
    citation="none",
    options={"world": "'A' (simplex), 'B' (signed) or 'C' (simplex, noisy labels)", "seed": "decides everything"},
    build=load_synthetic,
    notes=("Returns arrays (a `World`), not texts; it has no policy or behaviour stage.",),
)
