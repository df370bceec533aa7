"""The results of a study with axes: every point's numbers once, their users' means, and texts that say where from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rewardgap.studies.aggregate import aggregate
from rewardgap.studies.comparing import compare_runs
from rewardgap.studies.points import points
from rewardgap.studies.progress import Silent
from rewardgap.studies.results import study_results
from rewardgap.studies.run import run_points, run_study
from rewardgap.studies.spec import parse_study
from rewardgap.studies.user_means import FILE_NAME

if TYPE_CHECKING:
    from pathlib import Path

STUDY: dict[str, Any] = {
    "name": "grid",
    "data": {"name": "synthetic_text", "options": {"users": 10, "rows_per_user": 12}},
    "policy": "synthetic-words",
    "split": {"train_users": 5, "adapt_users": 4, "support": 3, "query": 3},
    "generation": {"max_new_tokens": 4},
    "reward_models": [{"method": "global_bt"}],
    "deployments": [{"policy": "zero_shot"}, {"decoder": "args_greedy"}],
    "metrics": ["rouge1"],
    "controls": {"shuffled_labels": 0, "swap": False, "synthetic_text": False},
    "resamples": 50,
    "samples": 6,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_grid_is_its_points_side_by_side(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(cache))
    study = parse_study({**STUDY, "vary": [{"seed": [0, 1]}, {"split.support": [2, 3]}]})
    plain = [point.study for point in points(study)]
    finished = run_points(plain, tmp_path / "grid", Silent(), whole=study)
    results, means = study_results(finished, study, "again")
    numbers = {row.key(): row.value for row in results.rows if row.stage != "cost"}
    for number, one in enumerate(plain):
        alone = aggregate(run_study(one, tmp_path / f"alone{number}", Silent()), "again")
        for row in alone.rows:
            if row.stage != "cost" and row.support_size is not None:
                assert numbers[row.key()] == row.value
    assert {(row.seed, row.support_size) for row in results.rows if row.support_size} == {
        (0, 2), (0, 3), (1, 2), (1, 3)
    }  # fmt: skip
    # A mean over users is the line's value.
    rows = {row.key(): row for row in results.rows}
    for key, (users, values, _) in means.lines.items():
        assert rows[key].n_users == len(users)
        if users:
            assert np.mean(values) == pytest.approx(rows[key].value)
    assert [sample.point for sample in results.samples[:4]] == [
        "seed=0, split.support=2", "seed=0, split.support=3", "seed=1, split.support=2", "seed=1, split.support=3"
    ]  # fmt: skip
    assert results.study["vary"] == [{"seed": [0, 1]}, {"split.support": [2, 3]}]


def test_two_runs_of_one_study_do_not_differ(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(cache))
    study = parse_study(STUDY)
    for name in ("a", "b"):
        finished = run_points([study], tmp_path / name, Silent())
        _, means = study_results(finished, study)
        means.write(tmp_path / name / FILE_NAME)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert found.lines
    assert {line.difference for line in found.lines if line.n_users} == {0.0}
    assert not (found.only_a or found.only_b or found.settings or found.ignored)
