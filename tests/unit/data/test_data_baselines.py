"""Rankers without a model, on pairs where the right answer is plain."""

from __future__ import annotations

import numpy as np
import pytest

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import PreferencePair
from rewardgap.data.baselines import RANKERS, fit_surface_classifier, human_or_machine, surface_features


def pair(chosen: str, rejected: str, prompt: str = "the red fox") -> PreferencePair:
    return PreferencePair(
        user_id="u", example_id=f"{chosen}|{rejected}", prompt=prompt, chosen=chosen, rejected=rejected
    )


def swapped(pairs: list[PreferencePair]) -> list[PreferencePair]:
    return [pair(item.rejected, item.chosen) for item in pairs]


def test_rankers_on_three_pairs():
    pairs = [pair("a b", "c"), pair("a", "b c"), pair("Fox, red!", "wolf blue")]
    assert RANKERS["longer"](pairs).tolist() == [1, 0, 0.5]
    assert RANKERS["shorter"](pairs).tolist() == [0, 1, 0.5]
    assert RANKERS["prompt_overlap"](pairs).tolist() == [0.5, 0.5, 1]
    assert RANKERS["prompt_overlap"]([pair("...", "fox")]).tolist() == [0]
    assert RANKERS["longer"]([]).shape == (0,)


def test_swapping_the_sides_turns_every_hit_round():
    pairs = [pair(f"{'x ' * (n % 4)}human text {n}", f"{'y ' * (n % 3)}machine {n}.") for n in range(12)]
    model = fit_surface_classifier(pairs)
    np.testing.assert_allclose(model.margins(swapped(pairs)), -model.margins(pairs), atol=1e-12)
    for ranker in [*RANKERS, model]:
        np.testing.assert_allclose(ranker(pairs) + ranker(swapped(pairs)), 1.0)


def test_a_visible_author_is_found_and_a_coin_is_not():
    rng = np.random.default_rng(0)
    words = np.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"])

    def text() -> str:
        return " ".join(rng.choice(words, 5))

    styled = [pair(text(), text().capitalize() + ".") for _ in range(120)]
    assert human_or_machine(styled[:80], styled[80:]).mean() == 1.0
    random = [pair(text(), text()) for _ in range(400)]
    assert abs(human_or_machine(random[:200], random[200:]).mean() - 0.5) < 0.12


def test_features_are_finite_for_any_text():
    for text in ("", " ", "\n", "\ud800", "x" * 5000, "日本語"):
        assert np.isfinite(surface_features(text)).all()
    assert human_or_machine([pair("a", "b")], [pair("c c", "c c")]).tolist() == [0.5]


def test_refusals():
    with pytest.raises(DataError, match="0 training pairs"):
        human_or_machine([], [])
    with pytest.raises(ConfigError, match="ridge is 0"):
        fit_surface_classifier([pair("a", "b")], ridge=0)
