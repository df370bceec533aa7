"""Two points of a study of the paper, end to end at toy size; all studies are in tests/slow."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from paper_worlds import Toys, points_of
from rewardgap.core.results import StudyResults
from rewardgap.studies.aggregate import aggregate
from rewardgap.studies.deployments import expand
from rewardgap.studies.merging import merge
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import run_points
from rewardgap.studies.spec import StudySpec


def run(studies: list[StudySpec], folder: Path) -> StudyResults:
    finished = run_points(studies, folder, Silent())
    assert not [failure for done in finished for failure in done.failures]
    return merge([aggregate(done, "again") for done in finished], {}, 4)


def test_two_numbers_of_shots_of_icl_against_guidance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero-shot reads no support, but its query rows are others at every support size: a line of its own for each."""
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    toys = Toys(tmp_path)
    found = points_of("icl_vs_rgd")
    chosen = [
        p for p in found if p.study.data.name == "folder" and p.study.seed == 0 and p.study.split.support in (2, 4)
    ]
    few = [{"method": "lore", "fit_mode": "lora", "epochs": 1, "batch_size": 4}]
    studies = [toys.point(point, reward_models=few) for point in chosen if "0.5B" in point.study.policy]
    assert [study.split.support for study in studies] == [2, 4]
    results = run(studies, tmp_path / "out")
    written = {
        (r.method, r.fit_mode, r.guidance_weight, r.shots, r.support_size) for r in results.rows if r.metric == "rouge1"
    }
    expected = {("zero_shot", None, None, None, n) for n in (2, 4)}
    expected |= {(name, None, None, n, n) for name in ("icl", "icl_rag") for n in (2, 4)}
    expected |= {("lore", "lora", weight, None, n) for weight in (0.5, 1, 2, 4) for n in (2, 4)}
    assert written == expected
    assert all(r.value is not None and math.isfinite(r.value) for r in results.rows if r.metric == "rouge1")
    keys = [row.key() for row in results.rows]
    assert len(keys) == len(set(keys))


def test_toys_change_sizes_and_places_only(tmp_path: Path) -> None:
    """What is run at toy size is the study: the same methods, modes, decoders, weights, shots and seeds."""
    toys = Toys(tmp_path)
    for name in ("correlation", "ratings", "pref_lamp_behaviour"):
        for point in points_of(name)[:1]:
            toy, whole = toys.point(point), point.study
            assert [(m.name, m.mode) for m in toy.reward_models] == [(m.name, m.mode) for m in whole.reward_models]
            shapes = [
                [
                    (d.name, d.reward_model and d.reward_model.name, d.guidance_weight, d.shots, d.options)
                    for d in expand(s)
                ]
                for s in (toy, whole)
            ]
            assert shapes[0] == shapes[1]
            assert (toy.seed, toy.data.name, toy.split.protocol) == (whole.seed, whole.data.name, whole.split.protocol)
