"""Identities of the linear heads, their settings, and users with odd data."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rewardgap.core.errors import ConfigError, DataError, ShapeError, UnknownNameError
from rewardgap.rewards.catalog import REWARD_MODELS, build_head
from rewardgap.rewards.heads import GlobalBT, LoRe
from rewardgap.rewards.states import UserState, states_from_tensors, states_to_tensors
from worlds import macro_accuracy, planted_world


def small(seed=0, users=6, per_user=10, width=8):
    return planted_world("simplex", seed, num_seen=users, num_unseen=3, train=per_user, support=6, test=20, width=width)


def fitted(head, world):
    return head.fit(world.train.chosen, world.train.rejected, world.user)


def test_loss_before_the_first_step_is_log_two():
    world = small()
    head = fitted(GlobalBT(), world)
    head.build(8, world.seen, dtype=torch.float64)
    features = torch.from_numpy(world.train.chosen), torch.from_numpy(world.train.rejected)
    losses = head.losses(*features, torch.zeros(60, dtype=torch.long))
    torch.testing.assert_close(losses, torch.full((60,), math.log(2), dtype=torch.float64))


def test_gradient_of_one_pair():
    # d/dw softplus(-wᵀΔ) = -σ(-wᵀΔ) Δ
    head = GlobalBT()
    head.build(3, ["a"], dtype=torch.float64)
    head.basis = torch.tensor([[0.2], [-0.4], [1.0]], dtype=torch.float64, requires_grad=True)
    chosen, rejected = torch.tensor([[1.0, 2.0, 0.5]]).double(), torch.tensor([[0.0, -1.0, 1.5]]).double()
    head.losses(chosen, rejected, torch.zeros(1, dtype=torch.long)).sum().backward()
    difference = torch.tensor([1.0, 3.0, -1.0], dtype=torch.float64)
    margin = 0.2 * 1 - 0.4 * 3 - 1.0
    expected = -torch.sigmoid(torch.tensor(-margin, dtype=torch.float64)) * difference
    torch.testing.assert_close(head.basis.grad.squeeze(1), expected)


def test_a_planted_reward_of_everybody_is_found():
    world = planted_world("one", 0, num_seen=20, num_unseen=0, train=100, width=32)
    assert len(world.user) == 2000
    head = fitted(GlobalBT(), world)
    assert macro_accuracy(head, world, world.seen) >= 0.95
    assert head.history.converged
    assert head.diagnostics["accuracy"] >= 0.95


def test_global_optimum_is_that_of_logistic_regression():
    world = small(width=5)
    head = fitted(GlobalBT(), world)
    mean, std = head.mean.numpy(), head.std.numpy()
    rows = (world.train.chosen - world.train.rejected) / std
    flip = np.where(np.arange(len(rows)) % 2 == 0, 1.0, -1.0)
    # sklearn minimises Σ loss + ‖w‖²/(2C); ours is that over N with ridge = 1/(2CN).
    peer = LogisticRegression(fit_intercept=False, C=1 / (2 * head.ridge * len(rows)), tol=1e-10, max_iter=1000)
    peer.fit(rows * flip[:, None], flip > 0)
    np.testing.assert_allclose(head.basis[:, 0].numpy(), peer.coef_[0], atol=2e-6)
    own = head.rewards(world.train.chosen, head.state_of(world.seen[0]))
    np.testing.assert_allclose(own, (world.train.chosen - mean) / std @ peer.coef_[0], atol=1e-5)


@pytest.mark.parametrize("loss_agg", ["pair", "user"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lore_of_rank_one_is_global_to_the_bit(loss_agg, dtype):
    world = small()
    user = world.user[:40] + [world.seen[0]] * 20
    sides = world.train.chosen.astype(dtype), world.train.rejected.astype(dtype)
    one = LoRe(rank=1, loss_agg=loss_agg).fit(*sides, user, seed=3)
    other = GlobalBT(loss_agg=loss_agg).fit(*sides, user, seed=3)
    assert torch.equal(one.basis, other.basis)
    assert one.history == other.history
    features = torch.from_numpy(world.test[world.unseen[0]].chosen.astype(dtype))
    support = world.support[world.unseen[0]]
    states = [head.adapt(support.chosen, support.rejected) for head in (one, other)]
    assert torch.equal(one.rewards(features, states[0]), other.rewards(features, states[1]))


def test_user_aggregation_is_pair_aggregation_for_equal_users_and_not_otherwise():
    world = small()
    equal = [fitted(GlobalBT(loss_agg=agg), world).basis for agg in ("pair", "user")]
    torch.testing.assert_close(*equal, atol=1e-6, rtol=1e-5)
    user = [world.seen[0]] * 55 + [world.seen[1]] * 5
    skewed = [
        GlobalBT(loss_agg=agg).fit(world.train.chosen, world.train.rejected, user).basis for agg in ("pair", "user")
    ]
    assert (skewed[0] - skewed[1]).abs().max() > 1e-3


def test_rewards_lie_in_the_convex_hull_of_the_basis():
    world = small()
    head = fitted(LoRe(rank=3), world)
    features = torch.from_numpy(world.test[world.unseen[0]].chosen)
    corners = torch.stack([head.rewards(features, UserState("lore", {"weights": w}, 0)) for w in torch.eye(3).double()])
    for user in world.unseen:
        support = world.support[user]
        rewards = head.rewards(features, head.adapt(support.chosen, support.rejected))
        assert bool((rewards >= corners.amin(0) - 1e-9).all() and (rewards <= corners.amax(0) + 1e-9).all())


def test_order_of_the_basis_columns_means_nothing():
    world = small()
    head = fitted(LoRe(rank=3), world)
    features, support = torch.from_numpy(world.train.chosen), world.support[world.unseen[0]]
    before = [
        head.rewards(features, head.state_of(world.seen[1])),
        head.rewards(features, head.adapt(support.chosen, support.rejected)),
    ]
    order = [2, 0, 1]
    head.basis, head.logits = head.basis[:, order], head.logits[:, order]
    after = [
        head.rewards(features, head.state_of(world.seen[1])),
        head.rewards(features, head.adapt(support.chosen, support.rejected)),
    ]
    torch.testing.assert_close(before, after, atol=1e-9, rtol=1e-9)


def test_lore_weights_are_on_the_simplex_and_the_cold_start_is_the_mean_user():
    world = small()
    head = fitted(LoRe(rank=4), world)
    rows = torch.stack([head.state_of(user).values["weights"] for user in world.seen])
    support = world.support[world.unseen[0]]
    rows = torch.cat([rows, head.adapt(support.chosen, support.rejected).values["weights"][None]])
    assert bool((rows >= 0).all())
    torch.testing.assert_close(rows.sum(1), torch.ones(len(rows), dtype=rows.dtype), atol=1e-12, rtol=0)
    cold = head.adapt(np.zeros((0, 8)), np.zeros((0, 8)))
    torch.testing.assert_close(cold.values["weights"], rows[:-1].mean(0), atol=1e-12, rtol=0)
    uniform = fitted(LoRe(rank=4, weight_prior="uniform"), world)
    assert uniform.adapt([], []).values["weights"].tolist() == [0.25] * 4


def test_reference_pull_turns_every_direction_to_the_global_one():
    world = small()
    direction = fitted(GlobalBT(loss_agg="user"), world).basis[:, 0]

    def cosines(pull):
        basis = fitted(LoRe(rank=3, reference_pull=pull), world).basis
        return torch.nn.functional.cosine_similarity(basis.T, direction, dim=-1)

    free, pulled = cosines(0.0), cosines(100.0)
    assert free.min() < 0.9
    assert pulled.min() > 0.99


def test_an_offset_of_the_features_changes_no_margin():
    world = small()
    left, right = (fitted(GlobalBT(), world), GlobalBT())
    shift = np.linspace(-50, 50, 8)
    right.fit(world.train.chosen + shift, world.train.rejected + shift, world.user)
    features = world.test[world.unseen[0]].chosen
    a, b = left.rewards(features, left.adapt([], [])), right.rewards(features + shift, right.adapt([], []))
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert abs(left.rewards(world.train.chosen, left.adapt([], [])).mean()) < 2 * left.reward_scale


def test_units_of_the_features_change_no_reward():
    world = small()
    units = 10.0 ** np.arange(-4, 4)
    left = fitted(GlobalBT(), world)
    right = GlobalBT().fit(world.train.chosen * units, world.train.rejected * units, world.user)
    features = world.test[world.unseen[0]].chosen
    np.testing.assert_allclose(
        left.rewards(features, left.adapt([], [])), right.rewards(features * units, right.adapt([], [])), atol=1e-6
    )


def test_a_huge_column_does_not_eat_the_digits_of_float32():
    world = small()
    shift = np.array([3e3] + [0.0] * 7)
    sides = [(x + shift).astype(np.float32) for x in (world.train.chosen, world.train.rejected)]
    head = GlobalBT().fit(*sides, world.user)
    features = (world.test[world.unseen[0]].chosen + shift).astype(np.float32)
    exact = (features.astype(np.float64) - head.mean.double().numpy()) @ head.direction(
        head.adapt([], [])
    ).double().numpy()
    np.testing.assert_allclose(head.rewards(features, head.adapt([], [])), exact, atol=1e-5)


def test_the_prior_makes_the_margin_what_it_says_and_fades_with_pairs():
    world = small(per_user=40)
    head = fitted(GlobalBT(prior_margin=1.5), world)
    energy = (((world.train.chosen - world.train.rejected) / head.std.numpy()) ** 2).sum(1).mean()
    # std(wᵀΔ) = s for w ~ N(0, σ² I) with σ² = s²/E‖Δ‖², and the ridge of that prior a pair is 1/(2 N σ²).
    assert head.ridge == pytest.approx(energy / (2 * 240 * 1.5**2))
    assert fitted(GlobalBT(l2=0.3), world).ridge == 0.3


def test_dtype_follows_the_features():
    world = small()
    single = GlobalBT().fit(world.train.chosen.astype(np.float32), world.train.rejected.astype(np.float32), world.user)
    assert single.basis.dtype == torch.float32
    assert single.rewards(torch.zeros(2, 8, dtype=torch.bfloat16), single.adapt([], [])).dtype == torch.float32
    assert fitted(GlobalBT(), world).basis.dtype == torch.float64


def test_one_pair_contradictory_pairs_and_ties():
    world = small()
    head = fitted(LoRe(rank=3), world)
    support = world.support[world.unseen[0]]
    one = head.adapt(support.chosen[:1], support.rejected[:1])
    assert one.num_support == 1
    assert bool(torch.isfinite(one.values["weights"]).all())
    both = head.adapt(
        np.concatenate([support.chosen, support.rejected]), np.concatenate([support.rejected, support.chosen])
    )
    # A pair and its opposite say nothing about which is better, only that margins are small.
    swapped = head.adapt(
        np.concatenate([support.rejected, support.chosen]), np.concatenate([support.chosen, support.rejected])
    )
    torch.testing.assert_close(both.values, swapped.values, atol=1e-10, rtol=0)
    tied = head.adapt(support.chosen, support.chosen)
    torch.testing.assert_close(tied.values, head.adapt([], []).values, atol=1e-8, rtol=0)


def test_all_ties_give_a_head_that_prefers_nothing():
    features = np.random.default_rng(0).normal(size=(12, 4))
    for head in (GlobalBT(), LoRe(rank=2)):
        head.fit(features, features, ["a", "b"] * 6)
        assert np.abs(head.rewards(features, head.adapt([], []))).max() < 1e-3
        assert head.reward_scale > 0
        assert head.diagnostics["accuracy"] == 0.5
        assert head.history.final_loss == pytest.approx(math.log(2), abs=1e-6)


def test_one_training_pair_is_enough_to_fit():
    for head in (GlobalBT(), LoRe(rank=2)):
        head.fit(np.ones((1, 3)), np.zeros((1, 3)), ["a"])
        assert head.diagnostics["accuracy"] == 1.0
        assert head.reward_scale == pytest.approx(head.diagnostics["margin"])


def test_an_unknown_user_is_refused_with_the_nearest():
    head = fitted(LoRe(rank=2), small())
    with pytest.raises(DataError, match=r"'u0001' is none of the 6 training users\. Did you mean 'u001'"):
        head.state_of("u0001")


def test_misuse_is_one_sentence():
    head = fitted(LoRe(rank=2), small())
    with pytest.raises(ShapeError, match="7 columns, expected D = 8"):
        head.rewards(np.zeros((2, 7)), head.adapt([], []))
    with pytest.raises(ShapeError, match=r"D = 8"):
        head.adapt(np.zeros((2, 7)), np.zeros((2, 7)))
    with pytest.raises(ConfigError, match="'global_bt' was given to 'lore'"):
        head.rewards(np.zeros((2, 8)), UserState("global_bt", {}, 0))
    with pytest.raises(ShapeError, match="1 user states for 2"):
        head.batch_rewards(torch.zeros(2, 8), [head.adapt([], [])])
    with pytest.raises(ConfigError, match="not fitted"):
        GlobalBT().adapt([], [])
    with pytest.raises(ConfigError, match="before fit"):
        _ = GlobalBT().diagnostics
    with pytest.raises(DataError, match="at row 1, column 2"):
        head.adapt(np.zeros((2, 8)), np.where(np.arange(16).reshape(2, 8) == 10, np.nan, 0.0))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lore", {"rank": 0}, "rank is 0"),
        ("lore", {"rank": "4"}, "rank is '4'"),
        ("lore", {"rank": True}, "rank is True"),
        ("lore", {"user_ridge": -1}, "user_ridge is -1"),
        ("lore", {"weight_prior": "median"}, "weight_prior is 'median'"),
        ("lore", {"reference_pull": float("nan")}, "reference_pull is nan"),
        ("global_bt", {"l2": 0}, "l2 is 0"),
        ("global_bt", {"prior_margin": float("inf")}, "prior_margin is inf"),
        ("global_bt", {"loss_agg": "users"}, "loss_agg is 'users'"),
        ("lore", {"rnak": 4}, "no option 'rnak'. Did you mean 'rank'"),
    ],
)
def test_settings_are_checked(name, options, words):
    with pytest.raises(ConfigError, match=words):
        build_head(name, **options)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'lore'"):
        build_head("lor")


def test_loading_a_head_of_other_settings_is_refused():
    tensors = fitted(LoRe(rank=3), small()).state_dict()
    with pytest.raises(ConfigError, match="basis has shape"):
        LoRe(rank=4).load_state_dict(tensors)
    with pytest.raises(ConfigError, match="tensors are"):
        GlobalBT().load_state_dict(tensors)


def test_states_are_values():
    weights = torch.tensor([0.5, 0.5])
    state = UserState("lore", {"weights": weights}, 3)
    weights[0] = 9.0
    assert state == UserState("lore", {"weights": torch.tensor([0.5, 0.5])}, 3)
    assert hash(state) == hash(UserState("lore", {"weights": torch.tensor([0.5, 0.5])}, 3))
    assert state != UserState("lore", {"weights": torch.tensor([0.5, 0.5])}, 4)
    assert state != UserState("lore", {"weights": torch.tensor([0.4, 0.6])}, 3)
    assert state != "lore"
    assert state.to_arrays()["weights"].tolist() == [0.5, 0.5]


def test_a_table_of_states_refuses_mixtures_and_damage():
    lore = UserState("lore", {"weights": torch.tensor([0.5, 0.5])}, 3)
    with pytest.raises(DataError, match="state of user 'b'"):
        states_to_tensors({"a": lore, "b": UserState("global_bt", {}, 0)})
    assert states_from_tensors(*states_to_tensors({})) == {}
    tensors, metadata = states_to_tensors({"a": lore})
    with pytest.raises(DataError, match="one row an id"):
        states_from_tensors(tensors, {**metadata, "users": "[]"})
    with pytest.raises(DataError, match="no table of user states"):
        states_from_tensors(tensors, {})


@pytest.mark.parametrize("card", list(REWARD_MODELS), ids=lambda card: card.name)
def test_cards_are_complete(card):
    assert card.summary.endswith(".")
    assert card.paper
    assert card.equation
    assert all(sentence.endswith(".") for sentence in card.deviations)
    assert all(entry.metadata["meaning"] for entry in fields(card.config))
