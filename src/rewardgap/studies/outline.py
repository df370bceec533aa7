"""The cells of a study whose data or models are not here: how many of each kind, and nothing about their numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rewardgap.core.records import AuthoredText, PreferencePair
from rewardgap.core.store import canonical_json, content_hash
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.catalog import DATASETS
from rewardgap.studies.plan import make_plan
from rewardgap.studies.progress import Silent
from rewardgap.studies.shelf import Shelf
from rewardgap.studies.workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rewardgap.data.partition import Split
    from rewardgap.studies.spec import StudySpec


class OutlineShelf(Shelf):
    """Stands for data, splits and models by their settings: enough to lay out cells, not to run one."""

    def dataset(self, study: StudySpec) -> PreferenceDataset | AuthoredDataset:
        """Return a dataset of one row, of the kind that the loader makes."""
        key = canonical_json(study.data.model_dump())
        if key not in self._datasets:
            name = study.data.name
            row: dict[str, Any] = {"user_id": "u", "example_id": "e", "reference": "text"}
            made: PreferenceDataset | AuthoredDataset
            if DATASETS[name].kind == "authored":
                made = AuthoredDataset(name, (AuthoredText(prompt_source="text", **row),), "{prompt_source}")
            else:
                pair = PreferencePair(prompt="text", chosen="one", rejected="other", **row)
                made = PreferenceDataset(name, (pair,))
            self._datasets[key] = made
            self._hashes[id(made)] = (made, content_hash(key))
        return self._datasets[key]

    def split(self, study: StudySpec) -> Split:
        """Return something that stands for the split."""
        key = canonical_json([study.data.model_dump(), study.split.model_dump(), study.seed])
        if key not in self._splits:
            made: Any = object()
            self._splits[key] = made
            self._hashes[id(made)] = (made, content_hash(key))
        return self._splits[key]

    def fingerprint(self, name: str, study: StudySpec) -> str:
        """Return the name of a backbone in the place of its fingerprint."""
        return f"{name} {study.dtype}"


def outline(points: Sequence[StudySpec], root: Path) -> Counter[str]:
    """Return how many cells of each kind a study has, at most: of data without references there is no behaviour.

    Args:
        points: the plain studies that it consists of.
        root: the results folder; nothing is read from it.
    """
    shelf = OutlineShelf()
    cells = {
        cell.id: cell.kind for study in points for cell in make_plan(Workbench(study, root, Silent(), shelf)).cells()
    }
    return Counter(cells.values())
