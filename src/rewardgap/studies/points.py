"""The points of a study that varies: one plain study for every combination of the values on its axes."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError
from rewardgap.studies.spec import parse_study

if TYPE_CHECKING:
    from rewardgap.studies.spec import StudySpec


@dataclass(frozen=True)
class Point:
    """One combination.

    Attributes:
        study: the plain study, without axes.
        settings: dotted setting -> value, in the order of the axes; what sets this point apart.
    """

    study: StudySpec
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        """Return the settings on one line, '' for a study without axes."""
        return ", ".join(f"{key}={_shown(value)}" for key, value in self.settings.items())


def points(study: StudySpec) -> list[Point]:
    """Return every point of a study, the last axis fastest; a study without axes is its only point.

    Raises:
        ConfigError: if a point is no valid study, or two points are the same, naming the settings.
    """
    base = study.model_dump(exclude={"vary"})
    out: list[Point] = []
    for overlays in itertools.product(*map(_overlays, study.vary)):
        settings: dict[str, Any] = {}
        for key, value in (item for overlay in overlays for item in overlay.items()):
            if key in settings:
                raise ConfigError(f"vary: '{key}' is on two axes; let one of them set it.")
            settings[key] = value
        changed = copy.deepcopy(base)
        for key, value in settings.items():
            _set(changed, key, copy.deepcopy(value))
        title = Point(study, settings).title
        out.append(Point(parse_study(changed, f"vary, {title}") if settings else study, settings))
    seen: dict[str, Point] = {}
    for point in out:
        other = seen.setdefault(point.study.model_dump_json(), point)
        if other is not point:
            raise ConfigError(f"vary: two points are the same study, {point.title}; leave a value out.")
    return out


def _overlays(axis: dict[str, list[Any]] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an axis as a list of settings that go together."""
    if isinstance(axis, list):
        return axis
    ((key, values),) = axis.items()
    return [{key: value} for value in values]


def _set(value: dict[str, Any], key: str, new: Any) -> None:
    """Set a dotted setting; a part of the path that is a number counts the items of a list."""
    if key.split(".")[0] in ("name", "vary"):
        raise ConfigError(f"vary: '{key}' cannot differ between the points of one study.")
    *parents, last = key.split(".")
    at: Any = value
    for parent in parents:
        at = _child(at, parent)
    if isinstance(at, dict):
        at[last] = new
    elif isinstance(at, list) and last.isdigit() and int(last) < len(at):
        at[int(last)] = new
    else:
        raise ConfigError(f"vary: '{key}' is no setting of the study.")


def _child(at: Any, name: str) -> Any:
    if isinstance(at, dict):
        return at.setdefault(name, {})
    if isinstance(at, list) and name.isdigit() and int(name) < len(at):
        return at[int(name)]
    return None


def _shown(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return str(value["name"])
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
