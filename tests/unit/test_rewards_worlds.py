"""Accuracies in worlds whose truth is known: what each head must reach, and what it must not."""

from __future__ import annotations

import numpy as np
import pytest

from rewardgap.rewards.heads import GlobalBT, LoRe
from worlds import macro_accuracy, planted_world

SEEDS = (0, 1, 2)


def accuracies(build, worlds):
    """Return the (seen, unseen) accuracy, averaged over the worlds."""
    rows = []
    for world in worlds:
        head = build().fit(world.train.chosen, world.train.rejected, world.user)
        rows.append([macro_accuracy(head, world, users) for users in (world.seen, world.unseen)])
    return np.mean(rows, axis=0)


@pytest.fixture(scope="module")
def mixtures():
    return [planted_world("simplex", seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def opposites():
    return [planted_world("sphere", seed) for seed in SEEDS]


def test_users_who_are_mixtures(mixtures):
    seen, unseen = accuracies(lambda: LoRe(rank=3), mixtures)
    assert seen >= 0.92
    assert unseen >= 0.91
    for build in (GlobalBT, lambda: LoRe(rank=1)):
        seen, unseen = accuracies(build, mixtures)
        assert 0.73 <= seen <= 0.79
        assert 0.72 <= unseen <= 0.79


def test_users_who_want_opposite_things_do_not_fit_in_a_hull_of_three(opposites):
    seen, unseen = accuracies(lambda: LoRe(rank=3), opposites)
    assert 0.76 <= seen <= 0.86
    assert 0.75 <= unseen <= 0.83
    seen, unseen = accuracies(GlobalBT, opposites)
    assert 0.47 <= seen <= 0.58
    assert 0.47 <= unseen <= 0.56
    # Six directions hold three axes and their opposites.
    assert accuracies(lambda: LoRe(rank=6), opposites[:1]).min() >= 0.85


def test_noisy_choices():
    worlds = [planted_world("simplex", seed, slope=4.0) for seed in SEEDS]
    assert accuracies(lambda: LoRe(rank=3), worlds).min() >= 0.88
    assert accuracies(GlobalBT, worlds).max() <= 0.79


def test_more_features_than_pairs_needs_a_prior():
    worlds = [
        planted_world("simplex", seed, num_seen=40, num_unseen=10, train=20, width=576, slope=2.0) for seed in SEEDS
    ]
    assert (accuracies(GlobalBT, worlds) > accuracies(lambda: GlobalBT(l2=1e-4), worlds) + 0.015).all()

    # Training users gain; what a new user gets from 20 pairs is the same within the noise of these worlds.
    stated = accuracies(lambda: LoRe(rank=3), worlds)
    published = accuracies(lambda: LoRe(rank=3, l2=1e-4, logit_std=1e3), worlds)
    assert stated[0] > published[0] + 0.02
    assert abs(stated[1] - published[1]) < 0.02


def test_few_pairs_of_few_users_in_many_features():
    worlds = [
        planted_world("simplex", seed, num_seen=20, num_unseen=8, train=8, support=8, width=576, slope=4.0)
        for seed in SEEDS
    ]
    stated = accuracies(lambda: LoRe(rank=3), worlds)
    assert (stated > accuracies(lambda: LoRe(rank=3, l2=1e-4), worlds)).all()
