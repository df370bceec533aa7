"""Presets: found by name, filled with data of one's own in any known form, refused in one sentence otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewardgap.core.errors import ConfigError, DataError, UnknownNameError
from rewardgap.studies.deployments import expand
from rewardgap.studies.plan import check_names
from rewardgap.studies.points import points
from rewardgap.studies.presets import DRAWN, WRITTEN, find_study, preset_names, preset_path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(path: Path, **more: Any) -> Path:
    return write(path, [{"user_id": "a", "prompt": "p", "chosen": "x", "rejected": "y", **more}])


FORMS: dict[str, dict[str, Any]] = {
    "jsonl": {"user_id": "a", "prompt": "p", "chosen": "x", "rejected": "y"},
    "ratings": {"user_id": "a", "prompt": "p", "completion": "x", "score": 3},
    "choices": {"user_id": "a", "prompt": "p", "completions": ["x", "y"], "choice": 0},
    "thumbs": {"user_id": "a", "prompt": "p", "completion": "x", "label": True},
    "authored": {"user_id": "a", "prompt_source": "p", "reference": "x"},
}


@pytest.mark.parametrize("loader", FORMS)
def test_data_in_any_known_form_take_the_place_of_the_section(loader: str, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [FORMS[loader]])
    study = find_study("preset:correlation", path)
    assert study.data.name == loader
    assert study.data.options == {"path": str(path), **DRAWN}
    demo = find_study("preset:demo", path)
    assert demo.data.options == {"path": str(path), **DRAWN}, "nothing is left of the data it came with"


def test_settings_go_before_what_the_data_bring(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [{"who": "a", "ask": "p", "good": "x", "bad": "y"}])
    columns = "data.options.columns={user_id: who, prompt: ask, chosen: good, rejected: bad}"
    study = find_study("preset:correlation", path, [columns, "data.options.max_users=3", "policy=synthetic-words"])
    assert study.data.options["columns"]["chosen"] == "good"
    assert study.data.options["max_users"] == 3
    assert study.policy == "synthetic-words"
    named = find_study("preset:correlation", path, ["data.name=jsonl", columns])
    assert named.data.name == "jsonl"


def test_a_folder_is_not_drawn_from(tmp_path: Path) -> None:
    (tmp_path / "rewardgap.json").write_text("{}")
    assert find_study("preset:correlation", tmp_path).data.options == {"path": str(tmp_path)}


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_studies_at_every_point(name: str, tmp_path: Path) -> None:
    path = pairs(tmp_path / "mine.jsonl", reference="z")
    study = find_study(f"preset:{name}", path)
    for point in points(study):
        check_names(point.study)
        assert expand(point.study)
        assert point.study.policy == "smollm2-135m"
        assert point.study.device == "cpu"


def test_in_context_and_guidance_have_one_budget(tmp_path: Path) -> None:
    for point in points(find_study("preset:icl_vs_rgd", pairs(tmp_path / "mine.jsonl", reference="z"))):
        assert {d.shots for d in expand(point.study) if d.shots is not None} == {point.study.split.support}


@pytest.mark.parametrize("name", WRITTEN)
def test_presets_about_what_is_written_need_references(name: str, tmp_path: Path) -> None:
    path = pairs(tmp_path / "mine.jsonl")
    with pytest.raises(DataError, match=rf"preset:{name} compares .* no row of dataset 'mine' has a reference"):
        find_study(f"preset:{name}", path)
    find_study("preset:correlation", path)
    texts = write(tmp_path / "texts.jsonl", [FORMS["authored"]])
    find_study(f"preset:{name}", texts, ["data.options.task=title"])
    with pytest.raises(ConfigError, match="needs either task or prompt_template"):
        find_study(f"preset:{name}", texts)


def test_unknown_presets_and_missing_data_are_named() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown preset 'nope'\. Known: circular, correlation, demo, icl_vs_rgd"
    ):
        find_study("preset:nope")
    with pytest.raises(UnknownNameError, match="Did you mean 'correlation'"):
        preset_path("correlaton")
    with pytest.raises(ConfigError, match="preset:correlation has no data of its own; say which with --data FILE"):
        find_study("preset:correlation")
    assert find_study("preset:demo").data.name == "docstrings"
    assert find_study("preset:correlation", None, ["data={name: docstrings}"]).data.name == "docstrings"


def test_a_study_file_takes_other_data_too(tmp_path: Path) -> None:
    path = pairs(tmp_path / "mine.jsonl")
    study = find_study(str(preset_path("demo")), path)
    assert study.data.model_dump() == {"name": "jsonl", "options": {"path": str(path)}}
