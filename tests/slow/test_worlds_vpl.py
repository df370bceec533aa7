"""VPL in worlds whose truth is known: what it must reach, what its options do, and that the fit does not depend on time."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from rewardgap.rewards.active import ask
from rewardgap.rewards.heads import VPL, GlobalBT
from rewardgap.rewards.vpl_active import LatentInformation
from worlds import Pairs, World, macro_accuracy, planted_world

pytestmark = pytest.mark.slow


def opposite_users(seed, users=200, per_user=20, width=16, unseen=40):
    """Users who want θ or -θ: chosen is the side with the larger ±θᵀφ."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=width)
    names = [f"u{number:03d}" for number in range(users + unseen)]
    sign = {name: rng.choice([-1, 1]) for name in names}

    def draw(name, count):
        left, right = rng.normal(size=(2, count, width))
        first = ((left - right) @ direction * sign[name] > 0)[:, None]
        return Pairs(np.where(first, left, right), np.where(first, right, left))

    parts = [draw(name, per_user) for name in names[:users]]
    return World(
        train=Pairs(np.concatenate([p.chosen for p in parts]), np.concatenate([p.rejected for p in parts])),
        user=[name for name in names[:users] for _ in range(per_user)],
        seen=names[:users],
        unseen=names[users:],
        support={name: draw(name, 8) for name in names[users:]},
        test={name: draw(name, 200) for name in names},
    )


def fitted(world, seed=0, **options):
    """Return a head fitted to a world; what it warns of is looked at where it matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return VPL(**options).fit(world.train.chosen, world.train.rejected, world.user, seed=seed)


def unseen_accuracy(head, world, count, *, swapped=False):
    values = []
    for user in world.unseen:
        support, test = world.support[user], world.test[user]
        sides = (support.chosen[:count], support.rejected[:count])
        state = head.adapt(*(sides[::-1] if swapped else sides))
        values.append((head.rewards(test.chosen, state) > head.rewards(test.rejected, state)).mean())
    return float(np.mean(values))


def mirror_error(head, world):
    """Return ‖μ(C) + μ(C swapped)‖ over ‖μ(C)‖, for all unseen users together."""
    means = [
        [head.adapt(*sides).values["mean"].numpy() for sides in ((p.chosen, p.rejected), (p.rejected, p.chosen))]
        for p in (world.support[user] for user in world.unseen)
    ]
    own, swapped = np.array(means).transpose(1, 0, 2)
    return float(np.linalg.norm(own + swapped) / np.linalg.norm(own))


@pytest.fixture(scope="module", params=[0, 1])
def opposites(request):
    return opposite_users(request.param)


RECIPE = {"latent": 16, "encoder_width": 64, "decoder_width": 64}


def test_opposite_users(opposites):
    head = fitted(opposites, **RECIPE, beta=3e-4)
    assert unseen_accuracy(head, opposites, 1) >= 0.92
    for count in (2, 4, 8):
        assert unseen_accuracy(head, opposites, count) >= 0.97
        assert unseen_accuracy(head, opposites, count, swapped=True) <= 0.05
    assert macro_accuracy(head, opposites, opposites.seen) >= 0.97
    assert head.diagnostics["active_units"] >= 1
    assert head.diagnostics["swap_gap"] > 0.3


def test_a_strong_prior_collapses_and_free_bits_keep_it_from_that(opposites):
    collapsed = fitted(opposites, **RECIPE, beta=1.0)
    assert collapsed.diagnostics["active_units"] == 0
    assert 0.45 < unseen_accuracy(collapsed, opposites, 8) < 0.55
    kept = fitted(opposites, **RECIPE, beta=1.0, free_bits=0.1)
    assert kept.diagnostics["active_units"] >= 1
    assert unseen_accuracy(kept, opposites, 8) >= 0.9


def test_the_swap_guide_puts_opposite_contexts_opposite():
    world = opposite_users(0, users=100, per_user=10, width=8)
    plain = fitted(world, latent=8, beta=3e-4, max_steps=600)
    guided = fitted(world, latent=8, beta=3e-4, swap_guide=0.1, max_steps=600)
    assert mirror_error(guided, world) < 0.1 < mirror_error(plain, world)
    assert unseen_accuracy(guided, world, 8) >= 0.97


def test_users_on_a_sphere():
    world = planted_world("sphere", 0)
    small = fitted(world, long_support="thin")
    assert macro_accuracy(small, world, world.seen) >= 0.8
    assert macro_accuracy(small, world, world.unseen) >= 0.7
    # A context as large as the support: more is known of everybody.
    large = fitted(world, context=20)
    assert macro_accuracy(large, world, world.seen) >= 0.86
    assert macro_accuracy(large, world, world.unseen) >= 0.8


def test_users_who_are_mixtures():
    world = planted_world("simplex", 0)
    head = fitted(world, context=20)
    everybody = GlobalBT().fit(world.train.chosen, world.train.rejected, world.user)
    assert macro_accuracy(head, world, world.seen) >= macro_accuracy(everybody, world, world.seen) + 0.08
    assert macro_accuracy(head, world, world.unseen) >= macro_accuracy(everybody, world, world.unseen) + 0.05


def test_many_features_do_not_make_it_memorise():
    world = planted_world("simplex", 0, num_seen=150, num_unseen=30, train=40, support=8, test=60, width=192, slope=4.0)
    head = fitted(world)
    everybody = GlobalBT().fit(world.train.chosen, world.train.rejected, world.user)
    assert macro_accuracy(head, world, world.unseen) >= macro_accuracy(everybody, world, world.unseen) - 0.03
    # Without held-out pairs to stop it, it knows the training pairs by heart and is worse on others.
    memory = fitted(world, patience=1500, max_steps=1500, kl_warm_up=1500)
    assert memory.diagnostics["accuracy"] > 0.95
    assert macro_accuracy(head, world, world.unseen) > macro_accuracy(memory, world, world.unseen)


def test_a_fit_of_500_users_does_not_depend_on_its_limit():
    world = planted_world("simplex", 0, num_seen=500, num_unseen=2, train=40, test=10, width=576, slope=4.0)
    heads = [fitted(world, max_steps=limit) for limit in (3000, 15000)]
    assert heads[0].history.converged
    assert heads[0].history == heads[1].history
    assert torch.equal(heads[0].decode_features, heads[1].decode_features)


def test_chosen_questions_tell_more_than_random_ones():
    world = planted_world("sphere", 3, num_seen=150, num_unseen=60, train=20, support=8, test=100, width=8)
    head, rng = fitted(world), np.random.default_rng(0)
    chosen, random = [], []
    for user in world.unseen:
        pairs, turned = world.test[user], rng.random(50) < 0.5
        left = np.where(turned[:, None], pairs.rejected[:50], pairs.chosen[:50])
        right = np.where(turned[:, None], pairs.chosen[:50], pairs.rejected[:50])
        interview = LatentInformation(head, left, right, [str(row) for row in range(50)])
        asked = list(ask(interview, lambda row, turned=turned: float(not turned[row]), 4).items())
        drawn = [(int(row), float(not turned[row])) for row in rng.choice(50, 4, replace=False)]
        # Chosen one at a time, so the first of four questions are those of a shorter interview.
        for count in (2, 3, 4):
            for values, answers in ((chosen, asked), (random, drawn)):
                state = interview.state(dict(answers[:count]))
                margins = head.rewards(pairs.chosen[50:], state) - head.rewards(pairs.rejected[50:], state)
                values.append((margins > 0).mean())
    assert np.mean(chosen) > np.mean(random) + 0.01
