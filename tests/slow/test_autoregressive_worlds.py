"""Planted tastes: users who judge the same texts in opposite ways, seen and new, on a tiny random network."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from autoregressive import opposite_users, ranked
from rewardgap.backbones.lora import LoraSettings
from rewardgap.core.records import PreferencePair
from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.build import reward_model
from standins import text_backbone

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("method", "options", "seen_floor", "new_floor"),
    [
        ("p_dpo", {"num_user_tokens": 3}, 0.9, 0.9),
        ("p_dpo", {"num_user_tokens": 3, "form": "individual"}, 0.88, 0.9),
        ("genarm", {"num_user_tokens": 3}, 0.75, 0.8),
        ("farma", {"num_user_tokens": 3}, 0.85, 0.8),
        ("genarm", {"form": "mixture", "num_bases": 2}, 0.95, 0.95),
        ("genarm", {"form": "mixture", "num_bases": 2, "relative": True}, 0.95, 0.95),
        ("pad", {"num_examples": 2, "text_tokens": 150}, 0.95, 0.9),
        ("pad", {"num_examples": 1, "text_tokens": 150, "text": "written", "ref": "same"}, 0.95, 0.95),
    ],
)
def test_planted_tastes_are_found_in_users_seen_and_new(
    method: str, options: dict[str, Any], seen_floor: float, new_floor: float, seed: int
) -> None:
    """Four users fit on eight shared pairs each; four new users reveal four pairs. Nobody's taste is in the prompt."""
    seen, test = opposite_users(10 * seed, 4, 8), opposite_users(10 * seed + 2, 4, 8)
    new = opposite_users(10 * seed + 1, 4, 12, first=10)
    model = reward_model(method, text_backbone("llama", dtype=torch.float32), lora=LoraSettings(8, 16, 0.0), **options)
    assert isinstance(model, AutoregressiveModel)
    model.fit([p for rows in seen.values() for p in rows], epochs=30, batch_size=16, learning_rate=1e-2, seed=seed)
    assert model.diagnostics["accuracy"] == 1.0
    assert np.mean([ranked(model, test[user], model.state_of(user)) for user in test]) >= seen_floor
    assert np.mean([ranked(model, rows[4:], model.adapt(rows[:4])) for rows in new.values()]) >= new_floor
    cold = [ranked(model, rows[4:], model.adapt([])) for rows in new.values()]
    assert np.mean(cold) == 0.5  # without a pair, opposite users are one


def test_farma_gives_prefixes_of_a_known_tree_their_best_leaf() -> None:
    """Four texts of two tokens, judged as often as Bradley-Terry with odds 4 : 1 : 1 : 2 says; values up to a level."""
    odds = {" of 2": 4, " of 3": 1, " and 2": 1, " and 3": 2}
    pairs = [
        PreferencePair(user_id="u", example_id=f"{left}{right}{n}", prompt="Why?", chosen=left, rejected=right)
        for left, right in itertools.permutations(odds, 2)
        for n in range(odds[left])
    ]
    model = reward_model(
        "farma", text_backbone("llama", dtype=torch.float32), num_user_tokens=0, lora=LoraSettings(8, 16, 0.0)
    )
    with pytest.warns(UserWarning, match="contradict"):
        model.fit(pairs, epochs=200, batch_size=len(pairs), learning_rate=1e-2)
    along = {text: model.prefix_rewards("Why?", text, model.adapt([])) * model.scale for text in odds}
    level = np.mean([values[-1] - np.log(odds[text]) for text, values in along.items()])
    best = {" of": np.log(4), " and": np.log(2)}
    for text, values in along.items():
        first = " of" if text.startswith(" of") else " and"
        expected = [best[first], np.log(odds[text]), np.log(odds[text])]  # one token, two, and the end
        np.testing.assert_allclose(values[1:] - level, expected, rtol=0, atol=0.12)
