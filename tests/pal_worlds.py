"""Worlds of ideal points and of ideal answers: users at either of two, a third of them midway."""

from __future__ import annotations

from typing import Literal

import numpy as np

from worlds import Pairs, World

SHARES = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))


def ideal_point_world(
    seed: int, *, num_seen: int = 30, num_unseen: int = 9, train: int = 40, support: int = 20, test: int = 200
) -> World:
    """Draw items from N(0, I) in 16 dimensions and two ideal points of norm 2; chosen is the nearer item."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(2, 16))
    points *= 2 / np.linalg.norm(points, axis=1, keepdims=True)
    users = [f"u{number:03d}" for number in range(num_seen + num_unseen)]
    ideal = {user: np.asarray(SHARES[number % 3]) @ points for number, user in enumerate(users)}

    def draw(user, count):
        left, right = rng.normal(size=(2, count, 16))
        first = np.linalg.norm(left - ideal[user], axis=1) < np.linalg.norm(right - ideal[user], axis=1)
        return Pairs(np.where(first[:, None], left, right), np.where(first[:, None], right, left))

    return _world(
        users, num_seen, lambda user: draw(user, train), lambda user: draw(user, support), lambda user: draw(user, test)
    )


def ideal_answer_world(
    seed: int,
    kind: Literal["turning", "fixed"],
    *,
    num_seen: int = 30,
    num_unseen: int = 9,
    train: int = 40,
    support: int = 20,
    test: int = 200,
) -> World:
    """Draw features [y; x] from N(0, I), 16 and 16 wide; chosen is the answer with the larger cosine to the ideal.

    r_u(x, y) = cos(F y, Σ_j w_uj (c_j + G_j x))     with G = 0 where ideal answers are "fixed"
    """
    rng = np.random.default_rng(seed)
    size = 1.0 if kind == "fixed" else 0.5
    constant, read = size * rng.normal(size=(2, 8)), rng.normal(size=(8, 16)) / 4
    turn = rng.normal(size=(2, 8, 16)) / 4 * (kind == "turning")
    users = [f"u{number:03d}" for number in range(num_seen + num_unseen)]
    weights = {user: np.asarray(SHARES[number % 3]) for number, user in enumerate(users)}

    def draw(user, count):
        left, right, prompt = rng.normal(size=(3, count, 16))
        ideal = np.einsum("j,jnd->nd", weights[user], constant[:, None] + prompt @ turn.transpose(0, 2, 1))
        ideal /= np.linalg.norm(ideal, axis=1, keepdims=True)
        rewards = [(y @ read.T * ideal).sum(1) / np.linalg.norm(y @ read.T, axis=1) for y in (left, right)]
        first = (rewards[0] > rewards[1])[:, None]
        return Pairs(
            np.hstack([np.where(first, left, right), prompt]), np.hstack([np.where(first, right, left), prompt])
        )

    return _world(
        users, num_seen, lambda user: draw(user, train), lambda user: draw(user, support), lambda user: draw(user, test)
    )


def _world(users, num_seen, train, support, test):
    parts = [train(user) for user in users[:num_seen]]
    return World(
        train=Pairs(np.concatenate([p.chosen for p in parts]), np.concatenate([p.rejected for p in parts])),
        user=[user for user, part in zip(users, parts, strict=False) for _ in part.chosen],
        seen=users[:num_seen],
        unseen=users[num_seen:],
        support={user: support(user) for user in users[num_seen:]},
        test={user: test(user) for user in users},
    )
