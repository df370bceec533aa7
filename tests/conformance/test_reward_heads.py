"""What every head in the catalogue must do; a new method is tested by its line there."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from rewardgap.core.errors import DataError
from rewardgap.rewards.catalog import REWARD_MODELS, build_head
from rewardgap.rewards.states import states_from_tensors, states_to_tensors
from worlds import macro_accuracy, planted_world

HEADS = [card.name for card in REWARD_MODELS if card.family == "head"]


@pytest.fixture(scope="module")
def world():
    return planted_world("simplex", 7, num_seen=12, num_unseen=4, train=20, support=8, test=50, width=16, slope=4.0)


@pytest.fixture(scope="module", params=HEADS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def head(name, world):
    return build_head(name).fit(world.train.chosen, world.train.rejected, world.user, seed=5)


def support_of(world, user):
    pairs = world.support[user]
    return pairs.chosen, pairs.rejected


def shared(head):
    return {name: tensor.clone() for name, tensor in head.state_dict().items()}


def test_defaults_of_card_and_head_are_one(name):
    card = REWARD_MODELS[name]
    built = card.build(card.config())
    assert built.name == name
    assert built.config() == asdict(card.config())
    assert type(built)().config() == built.config()


def test_adapt_changes_nothing_and_draws_nothing(head, world):
    before, torch_rng, numpy_rng = shared(head), torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first = head.adapt(*support_of(world, world.unseen[0]))
    head.adapt(*support_of(world, world.unseen[1]))
    again = head.adapt(*support_of(world, world.unseen[0]))
    after = shared(head)
    assert first == again
    assert first.num_support == 8
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(torch_rng, torch.get_rng_state())
    assert np.array_equal(numpy_rng[1], np.random.get_state()[1])  # noqa: NPY002


def test_fit_leaves_the_global_generator_alone(name, world):
    before = torch.get_rng_state()
    build_head(name).fit(world.train.chosen[:40], world.train.rejected[:40], world.user[:40], seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_order_of_the_support_means_nothing(head, world):
    chosen, rejected = support_of(world, world.unseen[0])
    order = np.random.default_rng(0).permutation(len(chosen))
    features = world.test[world.unseen[0]].chosen
    np.testing.assert_allclose(
        head.rewards(features, head.adapt(chosen, rejected)),
        head.rewards(features, head.adapt(chosen[order], rejected[order])),
        atol=1e-6 * head.reward_scale,
    )


def test_one_seed_gives_one_head(head, name, world):
    again = build_head(name).fit(world.train.chosen, world.train.rejected, world.user, seed=5)
    ours, theirs = head.state_dict(), again.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_save_and_load_to_the_bit(head, name, world):
    loaded = build_head(name, **head.config()).load_state_dict(load(save(head.state_dict())))
    features = world.test[world.unseen[0]].chosen
    support = support_of(world, world.unseen[0])
    assert loaded.adapt(*support) == head.adapt(*support)
    assert loaded.state_of(world.seen[3]) == head.state_of(world.seen[3])
    assert np.array_equal(
        loaded.rewards(features, loaded.adapt(*support)), head.rewards(features, head.adapt(*support))
    )
    assert loaded.diagnostics == head.diagnostics
    assert loaded.history == head.history
    assert loaded.users == head.users


def test_a_table_of_states_to_the_bit(head, world):
    states = {user: head.adapt(*support_of(world, user)) for user in world.unseen}
    states |= {user: head.state_of(user) for user in world.seen}
    tensors, metadata = states_to_tensors(states)
    assert states_from_tensors(load(save(tensors, metadata)), metadata) == states


def test_cold_start_scores(head, world):
    empty = np.zeros((0, 16))
    cold = head.adapt(empty, empty)
    assert cold.num_support == 0
    rewards = head.rewards(world.test[world.unseen[0]].chosen, cold)
    assert np.isfinite(rewards).all()


def test_a_batch_of_users_is_one_by_one(head, world):
    states = [head.adapt(*support_of(world, user)) for user in world.unseen]
    features = torch.from_numpy(np.stack([world.test[user].chosen[:6].reshape(2, 3, 16) for user in world.unseen]))
    together = head.batch_rewards(features, states)
    assert together.shape == (4, 2, 3)
    alone = torch.stack([head.rewards(rows, state) for rows, state in zip(features, states, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(head.batch_rewards(features[:, 0, 0], states), alone[:, 0, 0], atol=1e-9, rtol=1e-9)


def test_arrays_and_tensors_give_the_same(head, world):
    features, state = world.test[world.unseen[0]].chosen, head.adapt(*support_of(world, world.unseen[0]))
    out = head.rewards(features, state)
    assert isinstance(out, np.ndarray)
    assert np.array_equal(out, head.rewards(torch.from_numpy(features), state).numpy())
    assert head.rewards(features[0], state).shape == ()


def test_rewards_in_training_and_afterwards_agree(head, world):
    features = torch.from_numpy(world.train.chosen)
    index = torch.tensor([head.users.index(user) for user in world.user])
    trained = head.train_rewards(features, index)
    for row in (0, 100, 239):
        state = head.state_of(world.user[row])
        torch.testing.assert_close(head.rewards(features[row], state), trained[row], atol=1e-9, rtol=1e-9)


def test_swapping_sides_negates_the_margin(head, world):
    state, pairs = head.adapt(*support_of(world, world.unseen[0])), world.test[world.unseen[0]]
    margin = head.rewards(pairs.chosen, state) - head.rewards(pairs.rejected, state)
    assert np.array_equal(-margin, head.rewards(pairs.rejected, state) - head.rewards(pairs.chosen, state))


def test_a_fit_is_better_than_chance_and_says_how_it_went(head, world):
    assert macro_accuracy(head, world, world.seen) > 0.6
    assert macro_accuracy(head, world, world.unseen) > 0.6
    diagnostics = head.diagnostics
    assert diagnostics["accuracy"] > 0.6
    assert diagnostics["margin"] > 0
    chosen, rejected = torch.from_numpy(world.train.chosen), torch.from_numpy(world.train.rejected)
    index = torch.tensor([head.users.index(user) for user in world.user])
    margins = head.train_rewards(chosen, index) - head.train_rewards(rejected, index)
    assert diagnostics["reward_scale"] == pytest.approx(float(margins.std(unbiased=False)), rel=1e-6)


def test_own_state_beats_another_users(head, name, world):
    if not REWARD_MODELS[name].personal:
        pytest.skip("everybody has the same state")
    own, other = [], []
    for user, wrong in zip(world.seen, world.seen[1:] + world.seen[:1], strict=True):
        pairs = world.test[user]
        for state, scores in ((head.state_of(user), own), (head.state_of(wrong), other)):
            scores.append((head.rewards(pairs.chosen, state) > head.rewards(pairs.rejected, state)).mean())
    assert np.mean(own) > np.mean(other) + 0.05


def test_a_loop_outside_can_train_it(name, world):
    head = build_head(name)
    chosen, rejected = (torch.from_numpy(x).float() for x in (world.train.chosen, world.train.rejected))
    users = sorted(set(world.user))
    index = torch.tensor([users.index(user) for user in world.user])
    head.build(16, users, seed=0)
    head.observe(chosen, rejected, index)
    optimiser = torch.optim.AdamW([{**group, "weight_decay": 0.0} for group in head.parameters()])
    for group in optimiser.param_groups:
        group["lr"] *= 10
    losses = []
    backbone = torch.ones(16, requires_grad=True)
    for _ in range(60):
        loss = head.losses(chosen * backbone, rejected * backbone, index).mean() + head.penalty()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert backbone.grad.abs().max() > 0
    head.finish()
    head.calibrate(chosen, rejected, index, losses, True)
    assert losses[-1] < losses[0]
    assert head.history.steps == 60
    assert not head.rewards(chosen, head.state_of(users[0])).requires_grad


def test_bad_training_data_is_one_sentence(name, world):
    head = build_head(name)
    with pytest.raises(DataError, match="at least 1 training pair"):
        head.fit(np.zeros((0, 4)), np.zeros((0, 4)), [])
    with pytest.raises(DataError, match="at row 0"):
        head.fit(np.full((2, 4), np.nan), np.zeros((2, 4)), ["a", "b"])
    with pytest.raises(DataError, match="training users"):
        build_head(name).fit(world.train.chosen[:20], world.train.rejected[:20], world.user[:20]).state_of("nobody")
