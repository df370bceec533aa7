"""PReF: its objective, gauge freedom, limits and start, and accuracies in worlds whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rewardgap.core.errors import ConfigError
from rewardgap.rewards.catalog import build_head
from rewardgap.rewards.fitting import FitTrace, training_pairs
from rewardgap.rewards.heads import GlobalBT, PReF
from rewardgap.rewards.pref import shared_pairs
from worlds import Pairs, World, macro_accuracy, planted_world

SEEDS = (0, 1, 2)


def small(seed=0, users=6, per_user=12, width=8):
    return planted_world("sphere", seed, num_seen=users, num_unseen=3, train=per_user, support=6, test=20, width=width)


def fitted(head, world):
    return head.fit(world.train.chosen, world.train.rejected, world.user)


def judged_by_many(seed, *, kind="simplex", num_pairs=120, users=60, per_user=40, width=32):
    """Draw users who judge the same pairs: 20 users a pair, noisy choices."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(width, 3)))[0]
    weights = rng.dirichlet([0.3] * 3, size=users) if kind == "simplex" else rng.normal(size=(users, 3))
    directions = weights / np.linalg.norm(weights, axis=1, keepdims=True) @ basis.T
    left, right = rng.normal(size=(2, num_pairs, width))
    names = [f"u{number:03d}" for number in range(users)]
    chosen, rejected, test = [], [], {}
    for name, direction in zip(names, directions, strict=True):
        rows = rng.choice(num_pairs, per_user, replace=False)
        first = rng.random(per_user) < 1 / (1 + np.exp(-4 * (left[rows] - right[rows]) @ direction))
        chosen.append(np.where(first[:, None], left[rows], right[rows]))
        rejected.append(np.where(first[:, None], right[rows], left[rows]))
        sides = rng.normal(size=(2, 100, width))
        better = ((sides[0] - sides[1]) @ direction > 0)[:, None]
        test[name] = Pairs(np.where(better, sides[0], sides[1]), np.where(better, sides[1], sides[0]))
    user = [name for name in names for _ in range(per_user)]
    return World(Pairs(np.concatenate(chosen), np.concatenate(rejected)), user, names, [], {}, test)


class AsStarted(PReF):
    """PReF before the first step of its fit."""

    def solve(self, pairs):
        return FitTrace([0.0], True)


def test_the_objective_is_the_one_stated():
    world = small()
    head = PReF(rank=3, user_spread=0.7)
    pairs = training_pairs(world.train.chosen, world.train.rejected, world.user)
    head.build(8, pairs.users, seed=4, dtype=torch.float64)
    head.observe(pairs.chosen, pairs.rejected, pairs.user_index)
    basis, weights, std = head.basis.detach().numpy(), head.weights.detach().numpy(), head.std.numpy()
    total, energy = 0.0, 0.0
    for chosen, rejected, user in zip(world.train.chosen, world.train.rejected, world.user, strict=True):
        margin = sum(weights[head.users.index(user), j] * ((chosen - rejected) / std) @ basis[:, j] for j in range(3))
        total += math.log1p(math.exp(-margin))
        energy += (((chosen - rejected) / std) ** 2).sum()
    count = len(world.user)
    # U_j ~ N(0, s²/E‖Δ‖² I) and λ_u ~ N(1/√R, τ²/R I), as negative log-densities over N.
    prior = energy / count / (2 * 1.5**2) * (basis**2).sum() + 3 / (2 * 0.7**2) * ((weights - 3**-0.5) ** 2).sum()
    ours = head.losses(pairs.chosen, pairs.rejected, pairs.user_index).mean() + head.penalty()
    assert float(ours.detach()) == pytest.approx((total + prior) / count, abs=1e-12)


def test_a_fit_is_stationary_and_balances_both_priors():
    world = small()
    head = PReF(rank=3)
    head.tolerance = 1e-9
    fitted(head, world)
    pairs = training_pairs(world.train.chosen, world.train.rejected, world.user)
    head.basis.requires_grad_()
    head.weights.requires_grad_()
    loss = head.losses(pairs.chosen, pairs.rejected, pairs.user_index).mean() + head.penalty()
    loss.backward()
    assert head.history.converged
    assert head.basis.grad.abs().max() < 1e-6
    assert head.weights.grad.abs().max() < 1e-6
    # Were there scale to gain by U -> cU, λ -> λ/c, the derivative in c would not be zero.
    ridge = 2 * head.ridge * float(head.basis.detach().square().sum())
    spread = 3 / len(world.user) * float(((head.weights - 3**-0.5) * head.weights).detach().sum())
    assert ridge == pytest.approx(spread, rel=1e-4)


def test_a_change_of_gauge_changes_no_reward():
    world = small()
    head = fitted(PReF(rank=3), world)
    features, support = world.test[world.unseen[0]].chosen, world.support[world.unseen[0]]

    def rewards():
        states = [head.state_of(world.seen[1]), head.adapt(support.chosen, support.rejected), head.adapt([], [])]
        return [head.rewards(features, state) for state in states]

    before = rewards()
    turn = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3)))
    # U -> U Rᵀ in columns, λ -> R⁻ᵀ λ; the prior of λ turns with it.
    head.basis, head.weights = head.basis @ turn.T, head.weights @ torch.linalg.inv(turn)
    precision = turn @ head.precision @ turn.T
    head.precision = (precision + precision.T) / 2
    np.testing.assert_allclose(rewards(), before, atol=1e-8)


def test_one_base_reward_with_weight_one_is_the_global_head():
    class Everybody(PReF):
        def initialise(self, generator):
            super().initialise(generator)
            self.weights = torch.ones(len(self.users), 1, dtype=self.dtype)

        def parameters(self):
            return super().parameters()[:1]

    world = small()
    heads = [Everybody(rank=1), GlobalBT()]
    for head in heads:
        head.tolerance = 1e-8
        fitted(head, world)
    torch.testing.assert_close(heads[0].basis, heads[1].basis, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rank", [1, 3])
def test_users_without_spread_are_the_global_head(rank):
    world = small()
    features, support = world.test[world.unseen[0]].chosen, world.support[world.unseen[0]]
    shared = fitted(GlobalBT(), world)
    expected = shared.rewards(features, shared.state_of(world.seen[0]))

    def distance(spread):
        head = fitted(PReF(rank=rank, user_spread=spread), world)
        states = [head.state_of(world.seen[0]), head.adapt(support.chosen, support.rejected), head.adapt([], [])]
        return max(np.abs(head.rewards(features, state) - expected).max() for state in states)

    # With the square of the spread, as a variance does.
    assert distance(0.1) < 0.05
    assert distance(0.01) < 1.5e-3


@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_a_new_user_is_a_logistic_regression_on_base_margins(ridge):
    world = small()
    head = fitted(PReF(rank=3), world)
    head.weights, head.precision = torch.zeros_like(head.weights), ridge * torch.eye(3, dtype=torch.float64)
    support = world.support[world.unseen[0]]
    rows = (support.chosen - support.rejected) / head.std.numpy() @ head.basis.numpy()
    flip = np.array([1.0, -1.0] * 3)
    peer = LogisticRegression(fit_intercept=False, C=1 / ridge, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    peer.fit(rows * flip[:, None], flip > 0)
    ours = head.adapt(support.chosen, support.rejected).values["weights"]
    np.testing.assert_allclose(ours, peer.coef_[0], atol=1e-7)


def test_the_prior_of_new_users_is_the_law_of_total_variance():
    world = small()
    head = fitted(PReF(rank=2, user_spread=0.8), world)
    rows = (world.train.chosen - world.train.rejected) / head.std.numpy() @ head.basis.numpy()
    weights = head.weights.numpy()
    within, between = np.zeros((2, 2)), np.zeros((2, 2))
    for number, user in enumerate(world.seen):
        precision = 2 / 0.8**2 * np.eye(2)
        for row, name in zip(rows, world.user, strict=True):
            if name == user:
                chance = 1 / (1 + math.exp(-row @ weights[number]))
                precision += chance * (1 - chance) * np.outer(row, row)
        within += np.linalg.inv(precision) / 6
        apart = weights[number] - weights.mean(axis=0)
        between += np.outer(apart, apart) / 6
    np.testing.assert_allclose(np.linalg.inv(head.precision.numpy()), within + between, rtol=1e-8)
    prior = head.user_prior()
    np.testing.assert_allclose(prior.mean, weights.mean(axis=0))
    np.testing.assert_array_equal(prior.precision, head.precision.numpy())


def test_nothing_revealed_is_the_mean_training_user():
    head = fitted(PReF(rank=3), small())
    cold = head.adapt(np.zeros((0, 8)), np.zeros((0, 8)))
    torch.testing.assert_close(cold.values["weights"], head.weights.mean(0), atol=1e-12, rtol=0)


def test_one_training_user_and_one_pair_are_enough():
    head = PReF(rank=3).fit(np.ones((1, 3)), np.zeros((1, 3)), ["a"])
    assert head.diagnostics["accuracy"] == 1.0
    state = head.adapt(np.zeros((2, 3)), np.ones((2, 3)))
    assert bool(torch.isfinite(state.values["weights"]).all())
    assert float(head.rewards(np.ones(3), state)) < float(head.rewards(np.ones(3), head.adapt([], [])))


def test_all_ties_give_a_head_that_prefers_nothing():
    features = np.random.default_rng(0).normal(size=(12, 4))
    head = PReF(rank=2).fit(features, features, ["a", "b"] * 6)
    assert np.abs(head.rewards(features, head.adapt([], []))).max() < 1e-3
    assert head.diagnostics["accuracy"] == 0.5
    assert head.history.final_loss == pytest.approx(math.log(2), abs=1e-6)


def test_single_precision_features_give_the_same_head():
    world = small()
    double = fitted(PReF(rank=2), world)
    single = PReF(rank=2).fit(
        world.train.chosen.astype(np.float32), world.train.rejected.astype(np.float32), world.user
    )
    assert single.basis.dtype == single.precision.dtype == torch.float32
    features, support = world.test[world.unseen[0]].chosen, world.support[world.unseen[0]]
    ours, theirs = (head.rewards(features, head.adapt(support.chosen, support.rejected)) for head in (single, double))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_shared_pairs_are_found_whichever_side_was_chosen():
    a, b, c = torch.tensor([1.0, 2.0]), torch.tensor([0.0, -1.0]), torch.tensor([-0.0, -1.0])
    chosen, rejected = torch.stack([a, b, a, c, b]), torch.stack([b, a, a, a, a])
    pairs = shared_pairs(chosen, rejected)
    assert pairs.index.tolist() == [0, 0, 1, 0, 0]
    assert pairs.first.tolist() == [0, 2]
    same = pairs.sign[0] * (chosen[0] - rejected[0])
    for row in (1, 3, 4):
        assert torch.equal(pairs.sign[row] * (chosen[row] - rejected[row]), same)
    # Two rows of one user count once: pair 0 was judged by users 0 and 1, pair 1 by user 0.
    assert pairs.median_raters(torch.tensor([0, 1, 0, 1, 1])) == 1.5


@pytest.mark.parametrize("kind", ["simplex", "sphere"])
def test_the_matrix_of_choices_is_a_start_where_pairs_are_shared(kind):
    world = judged_by_many(0, kind=kind)
    started = fitted(AsStarted(rank=3), world)
    assert started.median_raters > 15
    assert started.started_from == "svd"
    assert macro_accuracy(started, world, world.seen) > 0.8
    drawn = fitted(AsStarted(rank=3, start="random"), world)
    assert drawn.started_from == "random"
    assert macro_accuracy(drawn, world, world.seen) < 0.6
    # Both ways lead to one optimum: the start saves steps and decides nothing.
    ends = [fitted(PReF(rank=3, start=start), world) for start in ("auto", "random")]
    assert ends[0].history.final_loss == pytest.approx(ends[1].history.final_loss, abs=2e-4)
    assert ends[0].history.steps < ends[1].history.steps
    assert macro_accuracy(ends[0], world, world.seen) >= 0.88


def test_pairs_of_one_user_each_are_no_matrix_to_start_from():
    world = small()
    head = fitted(PReF(rank=3), world)
    assert head.median_raters == 1
    assert head.started_from == "random"
    # More base rewards than users, or than the matrix has structure for, are left as drawn and still learn.
    asked = fitted(PReF(rank=9, start="svd"), world)
    assert asked.diagnostics["accuracy"] > 0.8


def test_users_who_are_mixtures():
    worlds = [planted_world("simplex", seed) for seed in SEEDS]
    seen, unseen = accuracies(lambda: PReF(rank=3), worlds)
    assert seen >= 0.931
    assert unseen >= 0.91
    six = accuracies(lambda: PReF(rank=6), worlds[:1])
    assert six[0] >= 0.887
    assert six[1] >= 0.879


def test_users_who_want_opposite_things():
    worlds = [planted_world("sphere", seed) for seed in SEEDS]
    seen, unseen = accuracies(lambda: PReF(rank=3), worlds)
    assert seen >= 0.93
    assert unseen >= 0.916
    one = accuracies(lambda: PReF(rank=1), worlds)
    assert 0.66 <= one[0] <= 0.72
    assert 0.65 <= one[1] <= 0.71


def test_noisy_choices():
    worlds = [planted_world("simplex", seed, slope=4.0) for seed in SEEDS]
    seen, unseen = accuracies(lambda: PReF(rank=3), worlds)
    assert seen >= 0.90
    assert unseen >= 0.88


def accuracies(build, worlds):
    rows = []
    for world in worlds:
        head = fitted(build(), world)
        rows.append([macro_accuracy(head, world, users) for users in (world.seen, world.unseen)])
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"user_spread": 0.0}, r"user_spread is 0\.0"),
        ({"start": "warm"}, "start is 'warm'; expected one of auto, svd, random"),
        ({"loss_agg": "users"}, "loss_agg is 'users'"),
        ({"rnak": 4}, "no option 'rnak'. Did you mean 'rank'"),
    ],
)
def test_settings_are_checked(options, words):
    with pytest.raises(ConfigError, match=words):
        build_head("pref", **options)
