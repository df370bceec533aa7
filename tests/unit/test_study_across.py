"""What several points of a study say together: crossovers and pooled taus, planted and by hand."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from test_report_study import study

from made import made, noise, study_of
from rewardgap import stats
from rewardgap.core.results import StudyResults, TauResult
from rewardgap.studies.across import across_points, crossover_results, meta_results
from rewardgap.studies.merging import merge

if TYPE_CHECKING:
    from pathlib import Path

    from rewardgap.studies.aggregate import Tables

USERS, QUERY = 12, 2
POINT = {"policy": "p", "data": {"name": "d"}, "seed": 0}
SHOTS = [{"policy": "zero_shot"}, {"policy": "icl", "num_demonstrations": [1, 2]}, {"decoder": "args_greedy"}]


def point(folder: Path, place: float, gain: float, *, support: int = 2, **changes: Any) -> Tables:
    """Return a point at which in-context learning is ahead of guidance by `gain`, two shots by more than one."""

    def rouge(label: str, user: int, example: int) -> float:
        own = 0.01 * noise(label, place, user, example)
        return 0.3 + {"icl 1": gain - 0.02, "icl 2": gain, "lore": 0.0}.get(label, -0.1) + own

    settings = study_of(USERS, QUERY, support, reward_models=[{"method": "lore"}], **changes)
    settings["deployments"] = SHOTS
    return made(folder, settings, rouge)


def test_a_planted_crossover_over_support_is_found(tmp_path: Path) -> None:
    """Behind by 0.06 at 1, ahead by 0.06 at 4: on a logarithmic axis they meet at 2."""
    tables = [point(tmp_path / str(n), n, 0.06 * (np.log2(n) - 1), support=n) for n in (1, 4)]
    found = [one for one in across_points(tables).crossovers if one.axis == "support"]
    (one,) = found
    assert (one.first, one.second) == ("icl", "lore · args_greedy λ=1 k=10")
    assert one.places == [1.0, 4.0]
    assert (one.support_size, one.policy, one.where) == (None, "synthetic-words", "inside")
    assert one.ci_low < 2.0 < one.ci_high
    assert one.at == pytest.approx(2.0, rel=0.15)
    assert one.n_users == USERS


def test_a_crossover_over_parameters_is_that_of_stats(tmp_path: Path) -> None:
    tables = []
    for size, gain in ((1000, -0.05), (4000, 0.02), (16000, 0.05)):
        one = point(tmp_path / str(size), size, gain)
        one.bench.policy = SimpleNamespace(num_weights=size)
        tables.append(one)
    (found,) = [one for one in crossover_results(tables) if one.axis == "parameters"]
    assert (found.first, found.second) == ("icl 2", "lore · args_greedy λ=1 k=10")
    curves = [
        [next(one for one in t.scores.written if one.label == label) for t in tables]
        for label in (found.first, found.second)
    ]
    first, second = (
        np.array([t.scores.by_user(t.scores.stage("rouge1", one)) for t, one in zip(tables, side, strict=True)])
        for side in curves
    )
    by_hand = stats.crossover([1000, 4000, 16000], first, second, 500)
    assert (found.at, found.ci_low, found.ci_high) == (by_hand.at, by_hand.low, by_hand.high)
    assert found.differences == list(by_hand.differences)
    assert 1000 < found.at < 4000


def test_what_lies_outside_the_range_is_said(tmp_path: Path) -> None:
    ahead = [one for one in crossover_results([point(tmp_path / "a", 0, 0.2)]) if one.axis == "shots"]
    never = [one for one in crossover_results([point(tmp_path / "b", 0, -0.2)]) if one.axis == "shots"]
    assert [(one.where, one.at, one.places) for one in (*ahead, *never)] == [
        ("below", None, [1.0, 2.0]),
        ("above", None, [1.0, 2.0]),
    ]
    assert (ahead[0].low_where, never[0].high_where) == ("below", "above")


def test_points_that_no_column_tells_apart_are_not_put_on_one_curve(tmp_path: Path) -> None:
    tables = [point(tmp_path / f"{i}", i, 0.0, support=n) for i, n in enumerate((2, 2, 3))]
    (found,) = [one for one in crossover_results(tables) if one.axis == "support"]
    assert found.at is None
    assert found.reason.startswith("two points have support 2")


def test_pooled_taus_are_those_of_stats_over_the_identified_ones() -> None:
    blank = TauResult(dataset="a", x="rm_accuracy", y="rouge1", decoder="args", n_models=9)
    values = (("a", 0.5, 0.2, 0.8), ("b", 0.3, 0.0, 0.6), ("c", 0.7, 0.5, 0.9), ("d", 1.0, 0.8, 1.0))
    taus = [dataclasses.replace(blank, dataset=d, corrected=t, low=lo, high=hi) for d, t, lo, hi in values]
    taus.append(dataclasses.replace(blank, dataset="e", reason="not identified: 60 users"))
    (found,) = meta_results(taus)
    errors = [(hi - lo) / 2 / 1.959963984540054 for _, _, lo, hi in values[:3]]
    by_hand = stats.meta_analysis([0.5, 0.3, 0.7], standard_errors=errors)
    assert (found.tau, found.ci_low, found.ci_high) == pytest.approx((by_hand.tau, by_hand.low, by_hand.high))
    assert (found.i_squared, found.q) == pytest.approx((by_hand.i_squared, by_hand.q))
    assert (found.n_taus, found.n_left_out, found.dataset) == (3, 2, "a, b, c, d, e")
    assert not meta_results(taus[:1]), "one point has nothing to pool"
    (none,) = meta_results([dataclasses.replace(blank, dataset=name, reason="not identified") for name in "ab"])
    assert (none.tau, none.reason) == (None, "not identified: tau is not identified at any point")


@pytest.mark.parametrize("count", [2, 3])
def test_two_points_give_a_mean_and_no_interval(count: int) -> None:
    taus = [
        TauResult(dataset=f"d{i}", x="rm_accuracy", y="rouge1", n_models=9, corrected=0.4 + i / 10, low=0.1, high=0.8)
        for i in range(count)
    ]
    (found,) = meta_results(taus)
    assert (found.ci_low is None) == (count < 3)
    assert (found.reason is None) == (count > 2)


def test_findings_of_points_survive_merging_and_json() -> None:
    whole = study(hostile=False)
    others = [dataclasses.replace(one, seed=1) for one in whole.comparisons]
    second = dataclasses.replace(whole, comparisons=others, study=POINT)
    merged = merge([dataclasses.replace(whole, study=POINT), second], {"name": "both"}, 3)
    assert merged.comparisons == [*whole.comparisons, *others]
    assert (merged.regrets, merged.heterogeneity, merged.support) == (whole.regrets, whole.heterogeneity, whole.support)
    assert StudyResults.from_json(json.loads(json.dumps(merged.to_json()))) == merged
