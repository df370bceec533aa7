"""Every study of the paper end to end on random Qwen2 networks, a point of each dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from paper_worlds import STUDIES, Toys, points_of
from rewardgap.core.results import StudyResults
from rewardgap.report import page
from rewardgap.studies.aggregate import aggregate
from rewardgap.studies.deployments import expand
from rewardgap.studies.merging import merge
from rewardgap.studies.points import Point
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import run_points

pytestmark = pytest.mark.slow


def chosen(found: list[Point]) -> list[Point]:
    """The first point of every dataset; of a study of one dataset the last point too."""
    firsts: dict[str, Point] = {}
    for point in found:
        firsts.setdefault(point.study.data.name, point)
    return [*firsts.values()] if len(firsts) > 1 else [found[0], found[-1]]


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_study_of_the_paper_runs_end_to_end(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    toys = Toys(tmp_path)
    taken = chosen(points_of(path.stem))
    studies = [toys.point(point) for point in taken]
    finished = run_points(studies, tmp_path / "out", Silent())
    assert not [failure for done in finished for failure in done.failures]
    results = merge([aggregate(done, "again") for done in finished], {}, 4)
    for study, done in zip(studies, finished, strict=True):
        rows = [
            row
            for row in results.rows
            if (row.dataset, row.seed) == (done.bench.dataset.name, study.seed) and row.policy == done.bench.policy.name
        ]
        ranked = {
            row.method for row in rows if row.metric == "accuracy" and row.users == "unseen" and row.value is not None
        }
        assert ranked == {spec.label or spec.method for spec in study.reward_models}
        scored = {
            (row.method, row.decoder, row.guidance_weight, row.shots)
            for row in rows
            if row.metric == "rgd_topk" and row.value is not None
        }
        wanted = {
            (
                d.reward_model.method if d.reward_model else d.name,
                d.name if d.reward_model else None,
                d.guidance_weight,
                d.shots,
            )
            for d in expand(study)
            if d.name != "best_of_n"
        }
        assert scored == wanted
        assert {row.judge for row in rows if row.stage == "win_rate"} >= {spec.name for spec in study.reward_models}
    page.write(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert StudyResults.from_json(results.to_json()).rows == results.rows
