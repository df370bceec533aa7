"""Worlds with a known truth for reward heads: users' margins are linear in features, through few directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """(n, D) features of chosen and rejected."""

    chosen: Array
    rejected: Array


@dataclass(frozen=True)
class World:
    """Training pairs of seen users, support of unseen users, test pairs of all."""

    train: Pairs
    user: list[str]
    seen: list[str]
    unseen: list[str]
    support: dict[str, Pairs]
    test: dict[str, Pairs]


def planted_world(
    kind: Literal["simplex", "sphere", "one"],
    seed: int,
    *,
    num_seen: int = 60,
    num_unseen: int = 20,
    train: int = 40,
    support: int = 20,
    test: int = 200,
    width: int = 32,
    rank: int = 3,
    slope: float | None = None,
) -> World:
    """Draw a world.

        m = (φ1 - φ2)ᵀ Q w_u,   Q orthonormal,   chosen = the side with m > 0, or with probability σ(slope · m)

    `simplex`: w_u ~ Dirichlet(0.3); `sphere`: w_u uniform on the unit sphere; `one`: everybody has the first direction.
    """
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(width, rank)))[0]
    users = [f"u{number:03d}" for number in range(num_seen + num_unseen)]
    if kind == "simplex":
        weights = rng.dirichlet([0.3] * rank, size=len(users))
    elif kind == "sphere":
        weights = rng.normal(size=(len(users), rank))
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    else:
        weights = np.eye(rank)[np.zeros(len(users), dtype=int)]
    direction = {user: basis @ weight for user, weight in zip(users, weights, strict=True)}

    def draw(user: str, count: int, noisy: bool = True) -> Pairs:
        left, right = rng.normal(size=(2, count, width))
        margins = (left - right) @ direction[user]
        sure = slope is None or not noisy
        first = margins > 0 if sure else rng.random(count) < 1 / (1 + np.exp(-slope * margins))
        return Pairs(np.where(first[:, None], left, right), np.where(first[:, None], right, left))

    seen, unseen = users[:num_seen], users[num_seen:]
    parts = [draw(user, train) for user in seen]
    return World(
        train=Pairs(np.concatenate([p.chosen for p in parts]), np.concatenate([p.rejected for p in parts])),
        user=[user for user in seen for _ in range(train)],
        seen=seen,
        unseen=unseen,
        support={user: draw(user, support) for user in unseen},
        test={user: draw(user, test, noisy=False) for user in users},
    )


def macro_accuracy(head, world: World, users: list[str]) -> float:
    """Return the mean over users of the accuracy on their test pairs, ties as one half."""
    values = []
    for user in users:
        state = head.state_of(user) if user in world.seen else head.adapt(*_sides(world.support[user]))
        chosen, rejected = _sides(world.test[user])
        margins = head.rewards(chosen, state) - head.rewards(rejected, state)
        values.append(np.mean((margins > 0) + 0.5 * (margins == 0)))
    return float(np.mean(values))


def _sides(pairs: Pairs) -> tuple[Array, Array]:
    return pairs.chosen, pairs.rejected
