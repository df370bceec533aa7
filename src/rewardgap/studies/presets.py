"""Studies that ship with the package: found by name, and run on data of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rewardgap.core.errors import ConfigError, DataError, UnknownNameError
from rewardgap.data.base import PreferenceDataset
from rewardgap.data.catalog import DATASETS, load_dataset
from rewardgap.data.recognising import loader_of
from rewardgap.studies.spec import filled, load_study

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.studies.spec import StudySpec

FOLDER = Path(__file__).parent / "presets"
PREFIX = "preset:"
WRITTEN = ("circular", "icl_vs_rgd")
"""Presets whose outcome is what users wrote themselves: without references they would have none."""
DRAWN = {"max_users": 40, "max_rows_per_user": 16}
"""Most users and rows of each that a preset draws from a file, so that two cores are enough; --set goes before it."""


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """Return the study file of a preset.

    Raises:
        UnknownNameError: if there is none of that name; the message has those that there are.
    """
    if name not in preset_names():
        raise UnknownNameError("preset", name, preset_names())
    return FOLDER / f"{name}.yaml"


def find_study(study: str, data: Path | None = None, overrides: Sequence[str] = ()) -> StudySpec:
    """Read a study by its file or as preset:NAME, on data of one's own where they are given.

    Args:
        study: a path, or "preset:" and a name.
        data: a file in any form that `loader_of` recognises, a dataset folder or a git repository; it replaces the
            study's `data` section.
        overrides: "a.b=value"; they go before what `data` sets.

    Raises:
        UnknownNameError: if there is no such preset.
        ConfigError: if a preset has no data, or as `load_study`.
        DataError: if the data cannot be recognised, or have no references and the preset needs them.
    """
    if not study.startswith(PREFIX):
        return load_study(study, [*_data_overrides(data, overrides, {}), *overrides])
    name = study.removeprefix(PREFIX)
    path = preset_path(name)
    own = "data" in yaml.safe_load(path.read_text(encoding="utf-8"))
    given = any(override.partition("=")[0].split(".")[0] == "data" for override in overrides)
    if data is None and not own and not given:
        raise ConfigError(f"{study} has no data of its own; say which with --data FILE, for example prefs.jsonl.")
    found = load_study(path, [*_data_overrides(data, overrides, DRAWN), *overrides])
    if name in WRITTEN:
        _check_references(study, found)
    return found


def _data_overrides(data: Path | None, overrides: Sequence[str], drawn: dict[str, int]) -> list[str]:
    """Return the `data` section of a file as an override: its loader, its path and what is drawn of it."""
    if data is None:
        return []
    settings = dict(override.partition("=")[::2] for override in overrides)
    loader = settings.get("data.name") or loader_of(data, yaml.safe_load(settings.get("data.options.columns", "null")))
    options: dict[str, Any] = {"path": str(data)}
    options |= {option: most for option, most in drawn.items() if option in DATASETS[loader].options}
    return [f"data={json.dumps({'name': loader, 'options': options})}"]


def _check_references(study: str, found: StudySpec) -> None:
    dataset = load_dataset(found.data.name, **filled(found.data.options))
    if isinstance(dataset, PreferenceDataset) and not any(pair.reference for pair in dataset.pairs):
        raise DataError(
            f"{study} compares what is written with what users wrote, and no row of dataset '{dataset.name}' has a "
            f"reference; add the column reference, or run {PREFIX}correlation, which does without."
        )
