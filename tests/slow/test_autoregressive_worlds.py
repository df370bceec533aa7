"""Planted tastes: users who judge the same texts in opposite ways, seen and new, on a tiny random network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autoregressive import opposite_users, ranked
from rewardgap.backbones.lora import LoraSettings
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
        ("genarm", {"form": "mixture", "num_bases": 2}, 0.95, 0.95),
        ("genarm", {"form": "mixture", "num_bases": 2, "relative": True}, 0.95, 0.95),
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
