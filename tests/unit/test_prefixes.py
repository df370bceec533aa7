"""Values along both sides of a pair, from one packed pass, against a forward of its own for every prefix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from test_reward_model import PAIRS, SUPPORT, plain_reward

from autoregressive import fitted as fitted_autoregressive
from autoregressive import plain_rewards
from rewardgap.backbones.features import FeatureCache
from rewardgap.backbones.lora import LoraSettings
from rewardgap.backbones.traces import TraceCache
from rewardgap.core.records import PreferencePair
from rewardgap.metrics.prefix_accuracy import first_right, prefix_margins
from rewardgap.rewards import prefixes
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.model import RewardModel
from standins import text_backbone

if TYPE_CHECKING:
    from pathlib import Path

    from rewardgap.rewards.prefixes import PairPrefixes
    from rewardgap.rewards.states import UserState

ASKED = [
    PreferencePair(user_id="u1", example_id="1", prompt="Name a colour.", chosen="the light of winter", rejected="red"),
    PreferencePair(user_id="u1", example_id="2", prompt="Why?", chosen="é", rejected="the light <|im_end|> of the"),
    PreferencePair(user_id="u1", example_id="3", prompt="Why?", chosen="", rejected="stone and stone"),
]


def head_model(method: str, mode: str, folder: Path, **options: object) -> RewardModel:
    """Return a fitted model whose head reads in float64, as its backbone computes."""
    model = reward_model(
        method, text_backbone("mistral"), fit_mode=mode, features=FeatureCache(folder / "features"),  # type: ignore[arg-type]
        lora=LoraSettings(4, 8, 0.2), **options,
    )  # fmt: skip
    extra = {} if mode == "frozen" else {"epochs": 2, "batch_size": 5, "learning_rate": 2e-2}
    model.fit(PAIRS, seed=1, **extra)
    model.head.to(dtype=torch.float64)
    return model


def slow_margins(chosen: list[float], rejected: list[float]) -> tuple[list[float], float]:
    """The margins after each quarter, and the share from which all later ones are right, one share after the other."""
    own, other = len(chosen) - 1, len(rejected) - 1
    cuts = [chosen[math.ceil(q * own / 4)] - rejected[math.ceil(q * other / 4)] for q in (1, 2, 3, 4)]
    steps = max(own, 1) * max(other, 1)
    margins = [chosen[-(-n * own // steps)] - rejected[-(-n * other // steps)] for n in range(1, steps + 1)]
    right = [n for n in range(steps) if all(margin > 0 for margin in margins[n:])]
    return cuts, (right[0] + 1) / steps if right else math.nan


def check(along: PairPrefixes, chosen: list[float], rejected: list[float], within: float = 1e-9) -> None:
    np.testing.assert_allclose(along.chosen, chosen, rtol=0, atol=within)
    np.testing.assert_allclose(along.rejected, rejected, rtol=0, atol=within)
    cuts, first = slow_margins(chosen, rejected)
    np.testing.assert_allclose(prefix_margins(along.chosen, along.rejected), cuts, rtol=0, atol=2 * within)
    # A change of either text is at most one step of the slow loop's grid away.
    assert first_right(along.chosen, along.rejected) == pytest.approx(
        _next_change(first, chosen, rejected), nan_ok=True
    )


def _next_change(share: float, chosen: list[float], rejected: list[float]) -> float:
    changes = [i / n for n in (len(chosen) - 1, len(rejected) - 1) if n for i in range(1, n + 1)]
    return share if math.isnan(share) else min(change for change in changes if change >= share - 1e-12)


def along_pair(model: RewardModel, pair: PreferencePair, state: UserState) -> list[list[float]]:
    encoder = model.backbone.encoder
    tails = [encoder.encode_completion(text, after=pair.prompt) for text in (pair.chosen, pair.rejected)]
    return [[plain_reward(model, pair.prompt, tail[:t], state) for t in range(len(tail) + 1)] for tail in tails]


@pytest.mark.parametrize(
    ("method", "mode", "options"),
    [
        ("global_bt", "frozen", {}),
        ("lore", "frozen", {"rank": 2}),
        ("pal_a", "lora", {"tokens": "cumulative"}),
        ("pal_b", "frozen", {"max_steps": 20, "patience": 20}),
        ("mpu", "lora", {"user_steps": 10}),
    ],
)
def test_prefixes_of_heads_are_those_of_separate_forwards(
    method: str, mode: str, options: dict[str, object], tmp_path: Path
) -> None:
    model = head_model(method, mode, tmp_path, **options)
    state = model.adapt(SUPPORT)
    for pair in ASKED:
        along = model.pair_prefixes(pair, state)
        # The state of a prompt that is read apart, and a user's own adapter, are kept in float32.
        check(along, *along_pair(model, pair, state), within=2e-6 if method in ("pal_b", "mpu") else 1e-9)
        assert along.chosen_ids == model.backbone.encoder.encode_completion(pair.chosen, after=pair.prompt)


@pytest.mark.parametrize("variant", ["p_dpo", "genarm_mixture", "farma", "pad"])
def test_prefixes_over_the_vocabulary_are_running_sums_of_separate_forwards(variant: str) -> None:
    model = fitted_autoregressive(variant)
    state = model.adapt(SUPPORT)
    for pair in ASKED:
        along = model.pair_prefixes(pair, state)
        sides = [plain_rewards(model, state, pair.prompt, text) for text in (pair.chosen, pair.rejected)]
        check(along, *([0.0, *np.cumsum(side).tolist()] for side in sides))
        assert along.rejected_ids[-1] == model.base.encoder.end_id


def test_the_last_margin_is_that_of_the_whole_texts(tmp_path: Path) -> None:
    model = head_model("lore", "frozen", tmp_path, rank=2)
    state = model.adapt(SUPPORT)
    whole = model.margins(ASKED, [state] * len(ASKED))
    cut = [prefix_margins(*model.pair_prefixes(pair, state)[2:])[-1] for pair in ASKED]
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-5)  # whole texts are kept in float32


def test_heads_on_one_frozen_backbone_read_what_the_first_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, pair = TraceCache(tmp_path / "traces"), ASKED[0]
    first, second = head_model("global_bt", "frozen", tmp_path), head_model("lore", "frozen", tmp_path, rank=2)
    fresh = second.pair_prefixes(pair, second.adapt(SUPPORT))
    first.pair_prefixes(pair, first.adapt(SUPPORT), cache)
    passes: list[object] = []
    monkeypatch.setattr(prefixes, "tree_states", lambda *parts: passes.append(parts))
    kept = second.pair_prefixes(pair, second.adapt(SUPPORT), cache)
    assert not passes
    np.testing.assert_array_equal(kept.chosen, fresh.chosen)
    np.testing.assert_array_equal(kept.rejected, fresh.rejected)
    with pytest.raises(TypeError):
        second.pair_prefixes(ASKED[1], second.adapt(SUPPORT), cache)  # not kept, and nothing can be read here
    assert len(passes) == 1


def test_an_adapters_states_are_not_kept(tmp_path: Path) -> None:
    cache = TraceCache(tmp_path / "traces")
    model = head_model("lore", "lora", tmp_path, rank=2)
    model.pair_prefixes(ASKED[0], model.adapt(SUPPORT), cache)
    assert not list((tmp_path / "traces").rglob("*.safetensors"))
