"""Goodhart curves: each number at its weight, the reward in standard deviations between users, by hand."""

from __future__ import annotations

import math

import pytest
from test_diagnosis import number

from rewardgap.core.decomposition import Decomposition
from rewardgap.report.goodhart import goodhart
from rewardgap.report.lines import draw


def along(method: str, rewards: list[float], gains: list[float], half: float | None = 0.5) -> list[Decomposition]:
    """Return numbers at weights 2, 1, ... (out of order), the reward with one half-width."""
    found = []
    for weight, reward, gain in reversed(list(zip((0.5, 1.0, 2.0), rewards, gains, strict=True))):
        names = {"deployment": f"{method} · args_greedy λ={weight:g} k=10", "guidance_weight": weight}
        found.append(number("own_reward", reward, half, unit="reward", **names))
        found.append(number("behaviour_gain", gain, 0.01, metric="rouge1", **names))
    return [one if method == "lore" else _renamed(one, method) for one in found]


def _renamed(one: Decomposition, method: str) -> Decomposition:
    from dataclasses import replace

    return replace(one, method=method)


def test_each_number_stands_at_its_weight() -> None:
    (found,) = goodhart(along("lore", [1.0, 2.0, 3.0], [0.02, 0.0, -0.03]))
    assert (found.decoder, found.metric) == ("args_greedy k=10", "rouge1")
    (trial,) = found.trials
    assert [step.weight for step in trial.steps] == [0.5, 1.0, 2.0]
    assert [step.reward.value for step in trial.steps] == [1.0, 2.0, 3.0]
    assert [step.behaviour.value for step in trial.steps] == [0.02, 0.0, -0.03]
    assert found.behaviours(trial).places == ("0.5", "1", "2")


def test_a_unit_of_the_reward_is_its_standard_deviation_between_users() -> None:
    """A half-width of 1.96 standard errors over 20 users."""
    (found,) = goodhart(along("lore", [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]))
    spread = 0.5 / 1.959963984540054 * math.sqrt(20)
    (trial,) = found.trials
    assert trial.spread == pytest.approx(spread)
    assert [step.standard.value for step in trial.steps] == pytest.approx([1 / spread, 2 / spread, 3 / spread])
    assert trial.steps[0].standard.high == pytest.approx(1.5 / spread)


def test_a_reward_in_another_unit_has_the_same_curve() -> None:
    plain = goodhart(along("lore", [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]))[0].trials[0]
    scaled = goodhart(along("lore", [10.0, 20.0, 30.0], [0.0, 0.0, 0.0], 5.0))[0].trials[0]
    assert [step.standard.value for step in scaled.steps] == pytest.approx([s.standard.value for s in plain.steps])


def test_reward_models_share_scales_and_a_table() -> None:
    (found,) = goodhart([*along("lore", [1.0, 2.0, 3.0], [0.02, 0.0, -0.03]),
                         *along("pref", [2.0, 4.0, 9.0], [0.01, 0.05, 0.08])])  # fmt: skip
    reward, behaviour = found.scales()
    assert reward is not None and behaviour is not None
    assert behaviour.low < -0.04 and behaviour.high > 0.09
    chart = draw(found.rewards(found.trials[0]), 110, reward)
    assert chart is not None and "Own reward of lore" in chart.drawing
    table = found.sheet()
    assert table.rows[0][:3] == ("lore", "0.5", "1.00 [0.50, 1.50]")
    assert table.rows[-1][4] == "8.0 [7.0, 9.0]"
    assert len(table.rows) == 6


def test_without_an_interval_there_is_no_standard_deviation() -> None:
    (found,) = goodhart(along("lore", [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], None))
    assert found.scales()[0] is None
    assert draw(found.rewards(found.trials[0])) is None
    assert found.sheet().rows[0][2:4] == ("1.00", "–")


def test_one_weight_is_no_curve() -> None:
    numbers = [one for one in along("lore", [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]) if one.guidance_weight == 1.0]
    assert goodhart(numbers) == []
