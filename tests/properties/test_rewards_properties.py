"""Properties of heads and of tables of states under generated data."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save

from rewardgap.numerics.simplex import likeliest_weights, project_to_simplex
from rewardgap.rewards.heads import GlobalBT, LoRe
from rewardgap.rewards.states import UserState, states_from_tensors, states_to_tensors

SEED = st.integers(0, 2**20)


@given(SEED, st.integers(1, 6), st.integers(0, 12), st.sampled_from([1e-3, 1.0, 1e3]))
def test_likeliest_weights_are_on_the_simplex_in_any_order(seed, rank, count, scale):
    rng = np.random.default_rng(seed)
    margins, prior = scale * rng.normal(size=(count, rank)), rng.dirichlet(np.ones(rank))
    weights = likeliest_weights(margins, prior, 1e-2)
    assert weights.min() >= 0
    assert abs(weights.sum() - 1) < 1e-12
    np.testing.assert_allclose(likeliest_weights(margins[rng.permutation(count)], prior, 1e-2), weights, atol=1e-8)
    columns = rng.permutation(rank)
    np.testing.assert_allclose(
        likeliest_weights(margins[:, columns], prior[columns], 1e-2), weights[columns], atol=1e-8
    )


@given(SEED, st.integers(1, 7))
def test_projection_is_idempotent_and_no_vertex_is_nearer(seed, rank):
    point = torch.from_numpy(np.random.default_rng(seed).normal(scale=3, size=rank))
    near = project_to_simplex(point)
    torch.testing.assert_close(project_to_simplex(near), near)
    assert abs(float(near.sum()) - 1) < 1e-12
    assert bool(((near - point) @ (torch.eye(rank, dtype=near.dtype) - near).T >= -1e-9).all())


@settings(max_examples=10)
@given(SEED)
def test_order_of_pairs_and_names_of_users_change_no_global_reward(seed):
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.normal(size=(2, 15, 4))
    user = [f"u{number}" for number in rng.integers(3, size=15)]
    order = rng.permutation(15)
    head = GlobalBT().fit(chosen, rejected, user)
    other = GlobalBT().fit(chosen[order], rejected[order], [f"x{user[row]}" for row in order])
    torch.testing.assert_close(head.basis, other.basis, atol=1e-5, rtol=1e-5)


@settings(max_examples=10)
@given(SEED, st.integers(1, 3))
def test_swapping_sides_turns_a_global_reward_around(seed, width):
    chosen, rejected = np.random.default_rng(seed).normal(size=(2, 9, width))
    head = GlobalBT().fit(chosen, rejected, ["a"] * 9)
    other = GlobalBT().fit(rejected, chosen, ["a"] * 9)
    torch.testing.assert_close(head.basis, -other.basis, atol=1e-5, rtol=1e-5)


@given(st.lists(st.text(), unique=True, max_size=5), st.integers(0, 4), SEED)
def test_a_table_of_states_survives_a_file(users, rank, seed):
    rng = np.random.default_rng(seed)
    states = {
        user: UserState("lore", {"weights": torch.from_numpy(rng.normal(size=rank))}, int(rng.integers(100)))
        for user in users
    }
    tensors, metadata = states_to_tensors(states)
    assert states_from_tensors(load(save(tensors, metadata)), metadata) == states


def test_odd_user_ids_survive_the_metadata_of_a_file(tmp_path):
    users = ["", " ", "\x00", 'quote"', "naïve", "用户", "a/b\\c", "line\nbreak", "\ud800", "<|im_start|>"]
    states = {user: UserState("global_bt", {}, row) for row, user in enumerate(users)}
    tensors, metadata = states_to_tensors(states)
    path = tmp_path / "states.safetensors"
    path.write_bytes(save(tensors, metadata))
    with safe_open(path, framework="pt") as file:
        assert states_from_tensors(load(path.read_bytes()), file.metadata()) == states


@settings(max_examples=10)
@given(SEED)
def test_a_user_is_adapted_alike_whoever_came_before(seed):
    rng = np.random.default_rng(seed)
    head = LoRe(rank=2).fit(*rng.normal(size=(2, 12, 3)), ["a", "b", "c"] * 4)
    supports = rng.normal(size=(3, 2, 5, 3))
    forward = [head.adapt(*support) for support in supports]
    backward = [head.adapt(*support) for support in supports[::-1]][::-1]
    assert forward == backward
