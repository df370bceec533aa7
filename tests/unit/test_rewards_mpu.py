"""MPU: every user's own optimum, its limits, and accuracies in worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rewardgap.core.errors import ConfigError
from rewardgap.rewards.catalog import build_head
from rewardgap.rewards.fitting import fit_head, training_pairs
from rewardgap.rewards.heads import MPU, GlobalBT
from worlds import macro_accuracy, planted_world

SEEDS = (0, 1, 2)


def small(seed=0, users=5, per_user=12, width=8):
    return planted_world("sphere", seed, num_seen=users, num_unseen=2, train=per_user, support=6, test=20, width=width)


def fitted(head, world, user=None):
    return head.fit(world.train.chosen, world.train.rejected, world.user if user is None else user)


def rows_of(head, world, user):
    own = np.array([name == user for name in world.user])
    return (world.train.chosen[own] - world.train.rejected[own]) / head.std.numpy()


@pytest.mark.parametrize("loss_agg", ["pair", "user"])
@pytest.mark.parametrize("width", [4, 60])
def test_one_user_is_the_global_head(loss_agg, width):
    world = small(width=width)
    other = GlobalBT(loss_agg=loss_agg)
    other.tolerance = 1e-13
    fitted(other, world, ["a"] * len(world.user))
    one = fitted(MPU(loss_agg=loss_agg), world, ["a"] * len(world.user))
    np.testing.assert_allclose(one.offsets[0], other.basis[:, 0], atol=1e-9)
    features = world.test[world.unseen[0]].chosen
    rewards = one.rewards(features, one.state_of("a")), other.rewards(features, other.state_of("a"))
    np.testing.assert_allclose(*rewards, atol=1e-9)
    assert one.history.final_loss == pytest.approx(other.history.final_loss, abs=1e-12)
    assert one.reward_scale == pytest.approx(other.reward_scale, abs=1e-9)


@pytest.mark.parametrize("init", ["base", "global"])
def test_two_users_who_want_the_opposite(init):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 150, 10))
    direction = rng.normal(size=10)
    first = ((left - right) @ direction > 0)[:, None]
    chosen, rejected = np.where(first, left, right), np.where(first, right, left)
    sides = np.concatenate([chosen[:100], rejected[:100]]), np.concatenate([rejected[:100], chosen[:100]])
    user = ["a"] * 100 + ["b"] * 100
    own, shared = MPU(init=init).fit(*sides, user), GlobalBT().fit(*sides, user)
    assert shared.diagnostics["accuracy"] == 0.5
    for name, sign in (("a", 1), ("b", -1)):
        state = own.state_of(name)
        margins = own.rewards(chosen[100:], state) - own.rewards(rejected[100:], state)
        assert (sign * margins > 0).mean() >= 0.95
        global_margins = shared.rewards(chosen[100:], shared.state_of(name)) - shared.rewards(
            rejected[100:], shared.state_of(name)
        )
        assert np.abs(global_margins).max() < 1e-6


@pytest.mark.parametrize("width", [5, 40])
def test_every_user_is_a_logistic_regression_of_their_own(width):
    world = small(width=width)
    head = fitted(MPU(), world)
    energy = (((world.train.chosen - world.train.rejected) / head.std.numpy()) ** 2).sum(1).mean()
    # w ~ N(0, I/p) makes a typical pair's margin N(0, s²) at p = E‖Δ‖²/s², for every user alike.
    assert float(head.precision) == pytest.approx(energy / 1.5**2)
    for user in world.seen:
        rows = rows_of(head, world, user)
        flip = np.where(np.arange(len(rows)) % 2 == 0, 1.0, -1.0)
        peer = LogisticRegression(
            fit_intercept=False, C=1 / float(head.precision), tol=1e-12, max_iter=10_000, solver="newton-cholesky"
        )
        peer.fit(rows * flip[:, None], flip > 0)
        np.testing.assert_allclose(head.state_of(user).values["offset"], peer.coef_[0], atol=1e-7)


@pytest.mark.parametrize("init", ["base", "global"])
@pytest.mark.parametrize("loss_agg", ["pair", "user"])
def test_the_loop_that_a_backbone_needs_ends_at_the_same_optimum(init, loss_agg):
    world = small()
    user = world.user[:30] + [world.seen[0]] * 30
    solved = fitted(MPU(init=init, loss_agg=loss_agg), world, user)
    looped = MPU(init=init, loss_agg=loss_agg)
    pairs = training_pairs(world.train.chosen, world.train.rejected, user)
    looped.build(8, pairs.users, dtype=torch.float64)
    looped.observe(pairs.chosen, pairs.rejected, pairs.user_index)
    looped.tolerance = 1e-10
    trace = fit_head(looped, pairs)
    torch.testing.assert_close(looped.offsets.detach(), solved.offsets, atol=1e-6, rtol=0)
    assert solved.history.final_loss == pytest.approx(trace.losses[-1], abs=1e-10)
    assert solved.history.loss[0] > solved.history.final_loss
    assert solved.history.converged


def test_adapting_on_a_training_users_own_pairs_gives_that_users_state():
    world = small()
    for init in ("base", "global"):
        head = fitted(MPU(init=init), world)
        own = np.array([name == world.seen[2] for name in world.user])
        again = head.adapt(world.train.chosen[own], world.train.rejected[own])
        torch.testing.assert_close(again.values, head.state_of(world.seen[2]).values, atol=1e-9, rtol=0)
        assert again.num_support == head.state_of(world.seen[2]).num_support == 12


def test_what_others_chose_does_not_matter_to_a_user():
    world = small()
    head = fitted(MPU(), world)
    # Swapping the sides of another user's pairs leaves the moments of the features as they are.
    other = np.array([name != world.seen[0] for name in world.user])[:, None]
    swapped = (
        np.where(other, world.train.rejected, world.train.chosen),
        np.where(other, world.train.chosen, world.train.rejected),
    )
    again = MPU().fit(*swapped, world.user)
    torch.testing.assert_close(again.offsets[0], head.offsets[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(again.offsets[1], -head.offsets[1], atol=1e-9, rtol=0)
    centred = MPU(init="global").fit(*swapped, world.user)
    assert (centred.offsets[0] - fitted(MPU(init="global"), world).offsets[0]).abs().max() > 1e-2


def test_nothing_revealed_is_nothing_preferred_or_the_global_reward():
    world = small()
    features = world.test[world.unseen[0]].chosen
    base = fitted(MPU(), world)
    assert base.rewards(features, base.adapt([], [])).tolist() == [0.0] * len(features)
    for loss_agg in ("pair", "user"):
        user = world.user[:30] + [world.seen[0]] * 30
        shared = fitted(GlobalBT(loss_agg=loss_agg), world, user)
        head = fitted(MPU(init="global", loss_agg=loss_agg), world, user)
        ours, theirs = (h.rewards(features, h.adapt([], [])) for h in (head, shared))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
        assert np.abs(ours).max() > 0.1


def test_on_frozen_features_head_only_is_global_to_the_bit():
    world = small()
    one, other = fitted(MPU(init="global"), world), fitted(MPU(init="head_only"), world)
    mine, theirs = one.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_tight_prior_leaves_everybody_at_the_centre_and_a_loose_one_separates():
    world = small()
    tight = fitted(MPU(init="global", prior_margin=1e-3), world)
    assert tight.offsets.abs().max() < 1e-4
    loose = fitted(MPU(prior_margin=100.0), world)
    assert loose.diagnostics["accuracy"] == 1.0
    assert loose.diagnostics["margin"] > 5


def test_a_ridge_given_as_such_is_that_of_the_average_user():
    world = small()
    head = fitted(MPU(l2=0.05), world)
    # 1/n Σ loss + l2 ‖o‖² for n = 12 pairs of each of 5 users, so p = 2 · 12 · l2.
    assert float(head.precision) == pytest.approx(2 * 12 * 0.05)
    rows, offset = rows_of(head, world, world.seen[1]), head.offsets[1].numpy()
    slope = -(0.5 * (1 - np.tanh(rows @ offset / 2))) @ rows / 12 + 2 * 0.05 * offset
    assert np.abs(slope).max() < 1e-12
    shared = fitted(GlobalBT(l2=0.05), world)
    centred = fitted(MPU(init="global", l2=0.05), world)
    torch.testing.assert_close(centred.basis, shared.basis, atol=1e-9, rtol=0)


def test_more_pairs_weigh_more_against_the_prior():
    world = small(per_user=40)
    head = fitted(MPU(), world)
    support = world.train.chosen[:40], world.train.rejected[:40]
    sizes = [
        float(head.adapt(support[0][:count], support[1][:count]).values["offset"].norm()) for count in (0, 1, 5, 40)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0


def test_users_who_want_opposite_things():
    worlds = [planted_world("sphere", seed) for seed in SEEDS]
    seen, unseen = np.mean([accuracies(MPU(), world) for world in worlds], axis=0)
    assert 0.74 <= seen <= 0.80
    assert 0.67 <= unseen <= 0.73


def test_users_who_are_mixtures():
    worlds = [planted_world("simplex", seed) for seed in SEEDS]
    seen, unseen = np.mean([accuracies(MPU(), world) for world in worlds], axis=0)
    assert 0.744 <= seen <= 0.804
    assert 0.675 <= unseen <= 0.735
    shared = np.mean([accuracies(GlobalBT(), world) for world in worlds], axis=0)
    assert unseen < shared[1]
    # Starting from what all want is better than the global reward and better than starting from nothing.
    centred = np.mean([accuracies(MPU(init="global"), world) for world in worlds], axis=0)
    assert (centred > np.maximum(shared, [seen, unseen]) + 0.01).all()


def accuracies(head, world):
    fitted(head, world)
    return [macro_accuracy(head, world, users) for users in (world.seen, world.unseen)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "zero"}, "init is 'zero'; expected one of base, global, head_only"),
        ({"prior_margin": 0}, "prior_margin is 0"),
        ({"l2": -1.0}, r"l2 is -1\.0"),
        ({"loss_agg": "users"}, "loss_agg is 'users'"),
    ],
)
def test_settings_are_checked(options, words):
    with pytest.raises(ConfigError, match=words):
        build_head("mpu", **options)
