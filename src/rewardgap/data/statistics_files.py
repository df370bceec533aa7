"""The statistics that are committed beside the datasets whose rows are fixed."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError
from rewardgap.core.store import write_json
from rewardgap.data.catalog import load_dataset
from rewardgap.data.docstrings import installed_versions

if TYPE_CHECKING:
    from pathlib import Path

RECORDED = ("docstrings", "synthetic_text")


def current_statistics(name: str) -> dict[str, Any]:
    """Return the statistics of a dataset loaded now, with the versions its rows depend on.

    Raises:
        ConfigError: if statistics of this dataset are not recorded.
    """
    if name not in RECORDED:
        raise ConfigError(f"statistics of '{name}' are not recorded; recorded are {', '.join(RECORDED)}.")
    versions = installed_versions() if name == "docstrings" else {}
    return {"versions": versions, "statistics": load_dataset(name).statistics()}


def recorded_statistics(name: str) -> dict[str, Any]:
    """Return what `write_statistics` wrote for a dataset.

    Raises:
        ConfigError: if statistics of this dataset are not recorded.
    """
    if name not in RECORDED:
        raise ConfigError(f"statistics of '{name}' are not recorded; recorded are {', '.join(RECORDED)}.")
    file = resources.files("rewardgap.data") / "statistics" / f"{name}.json"
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value


def write_statistics(folder: Path) -> None:
    """Write the statistics of all recorded datasets: run it when rows change on purpose, and read the diff."""
    for name in RECORDED:
        write_json(folder / f"{name}.json", current_statistics(name))
