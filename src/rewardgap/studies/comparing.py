"""Two runs side by side: what differs between them, and by how much each deployment does, on the same users."""

from __future__ import annotations

import operator
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from rewardgap.core.errors import ConfigError, DataError, UnknownNameError
from rewardgap.core.results import KEY_COLUMNS, ResultRow, distinct_labels
from rewardgap.core.store import read_json
from rewardgap.data.reading import MissingFileError
from rewardgap.stats import compare_deployments, holm
from rewardgap.studies.user_means import FILE_NAME, UserMeans

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rewardgap.studies.user_means import Key

STAGE, METRIC, USERS = (KEY_COLUMNS.index(name) for name in ("stage", "metric", "users"))
_GATE = re.compile(r"\s*([\w]+)(?:\.(low|high|difference))?\s*(<=|>=|<|>)\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One line of the results in both runs.

    Attributes:
        label: the deployment, or the reward model where the line speaks of one.
        stage: of the chain.
        metric: what was measured.
        users: seen or unseen.
        a: mean over the common users in the first run.
        b: in the second.
        difference: b − a, mean over the common users; None without any.
        low: lower end of its 95 % interval over users; None with one user.
        high: its upper end.
        p_value: two-sided sign-flip p of the difference.
        p_holm: the same, corrected for all lines of one metric.
        n_users: common users.
        n_only_a: users of this line in the first run only.
        n_only_b: in the second only.
        reason: why something is None.
    """

    label: str
    stage: str
    metric: str
    users: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    n_users: int
    n_only_a: int
    n_only_b: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Two runs side by side.

    Attributes:
        lines: in both runs.
        only_a: "stage metric label" of lines that the first run alone has.
        only_b: of those that the second alone has.
        settings: (setting, value in the first run, in the second) where the studies differ.
        versions: the same of what they were run with.
        ignored: columns of the results that differ between the runs as a whole, and so tell no lines apart.
    """

    lines: tuple[Compared, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    settings: tuple[tuple[str, Any, Any], ...]
    versions: tuple[tuple[str, Any, Any], ...]
    ignored: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition under which a comparison fails: a part of a metric's difference, an order, a number.

    `rouge1.low < -0.01` fails where a loss of more than one point cannot be ruled out, `rouge1.high < 0` only where a
    loss is sure.
    """

    text: str
    metric: str
    part: str
    order: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read a condition.

        Raises:
            ConfigError: if it is none.
        """
        found = _GATE.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"'{text}' is no condition; write a metric, optionally .low, .high or .difference, one of < <= > >=, "
                "and a number, such as 'rouge1.low < -0.01'."
            )
        metric, part, order, number = found.groups()
        return cls(text.strip(), metric, part or "difference", order, float(number))

    def failures(self, comparison: RunComparison) -> list[str]:
        """Return a sentence for every line that meets the condition, or of which nobody can say whether it does.

        Raises:
            UnknownNameError: if no line has the metric.
        """
        lines = [line for line in comparison.lines if line.metric == self.metric]
        if not lines:
            raise UnknownNameError("metric of both runs", self.metric, sorted({ln.metric for ln in comparison.lines}))
        out = []
        for line in lines:
            value = getattr(line, self.part)
            if value is None:
                out.append(f"{line.label}: {self.metric}.{self.part} is not known ({line.reason})")
            elif _COMPARE[self.order](value, self.number):
                out.append(f"{line.label}: {self.metric}.{self.part} is {value:+.4g}")
        return out


def compare_runs(
    a: Path, b: Path, *, metrics: Sequence[str] | None = None, resamples: int = 10_000, seed: int = 0
) -> RunComparison:
    """Compare two finished runs line by line, on the users that both have.

    A line is known by its key columns; those that have one value in each run and differ between the runs (another
    policy, another seed) tell no lines apart, and are named in `ignored`.

    Args:
        a: results folder of the first run.
        b: of the second.
        metrics: which metrics; all but costs unless given.
        resamples: bootstrap resamples.
        seed: of the draws.

    Raises:
        MissingFileError: if a folder holds no finished run.
        DataError: if its files cannot be read.
        UnknownNameError: if no line of either run has a metric.
    """
    runs = [_read(folder) for folder in (a, b)]
    means = [run.lines for run, _ in runs]
    known = {key[METRIC] for lines in means for key in lines}
    for name in metrics or ():
        if name not in known:
            raise UnknownNameError("metric", name, sorted(known))
    ignored = _ignored(means)
    keyed = [_stripped(lines, ignored, metrics) for lines in means]
    shared = [key for key in keyed[0] if key in keyed[1]]
    labels = dict(zip(shared, _labels(shared), strict=True))
    lines = [_compared(key, labels[key], keyed[0][key], keyed[1][key], resamples, seed) for key in shared]
    only = [[key for key in own if key not in other] for own, other in (keyed, keyed[::-1])]
    studies, environments = zip(*(documents for _, documents in runs), strict=True)
    return RunComparison(
        lines=tuple(_corrected(lines)),
        only_a=tuple(_titles(only[0])),
        only_b=tuple(_titles(only[1])),
        settings=_differences(*map(dict, map(_flat, studies))),
        versions=_differences(*map(dict, map(_flat, environments))),
        ignored=tuple(KEY_COLUMNS[place] for place in ignored),
    )


def _read(folder: Path) -> tuple[UserMeans, tuple[dict[str, Any], dict[str, Any]]]:
    for name in (FILE_NAME, "study.yaml", "env.json"):
        if not (folder / name).exists():
            raise MissingFileError(
                f"'{folder}' holds no {name}; run the study there again with this version: finished cells are kept."
            )
    try:
        study = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
        found = dict(study), dict(read_json(folder / "env.json"))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"'{folder}' holds a study that cannot be read ({error}).") from error
    return UserMeans.read(folder / FILE_NAME), found


def _ignored(means: Sequence[dict[Key, Any]]) -> list[int]:
    """Return the columns that have one value in each run, another one in each."""
    places = [place for place in range(len(KEY_COLUMNS)) if place not in (STAGE, METRIC, USERS)]
    values = [[{key[place] for key in lines} - {None} for place in places] for lines in means]
    return [
        place for place, one, other in zip(places, *values, strict=True) if len(one) == len(other) == 1 and one != other
    ]


def _stripped(lines: dict[Key, Any], ignored: Sequence[int], metrics: Sequence[str] | None) -> dict[Key, Any]:
    """Return the lines to compare, without the columns that tell none apart."""
    out = {}
    for key, found in lines.items():
        if key[METRIC] in metrics if metrics else key[STAGE] != "cost":
            out[tuple(None if place in ignored else value for place, value in enumerate(key))] = found
    return out


def _labels(keys: Sequence[Key]) -> list[str]:
    """Return the deployment or reward model that each key speaks of."""
    blank: dict[str, Any] = {field.name: None for field in fields(ResultRow)}
    rows = [ResultRow(**{**blank, **dict(zip(KEY_COLUMNS, key, strict=True)), "n_users": 0}) for key in keys]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row.stage, row.metric, row.users), []).append(index)
    out = [""] * len(rows)
    for indices in groups.values():
        for index, label in zip(indices, distinct_labels([rows[index] for index in indices]), strict=True):
            judge = rows[index].judge
            out[index] = label if judge is None else f"{label}, judged by {judge}"
    return out


def _titles(keys: Sequence[Key]) -> list[str]:
    return [f"{key[STAGE]} {key[METRIC]} {label}" for key, label in zip(keys, _labels(keys), strict=True)]


def _compared(key: Key, label: str, one: Any, other: Any, resamples: int, seed: int) -> Compared:
    first, second = (dict(zip(users, values, strict=True)) for users, values, _ in (one, other))
    common = sorted(first.keys() & second.keys())
    named: dict[str, Any] = {
        "label": label,
        "stage": key[STAGE],
        "metric": key[METRIC],
        "users": key[USERS],
        "n_users": len(common),
        "n_only_a": len(first) - len(common),
        "n_only_b": len(second) - len(common),
    }
    if not common:
        nothing: dict[str, Any] = dict.fromkeys(("a", "b", "difference", "low", "high", "p_value", "p_holm"))
        return Compared(**named, **nothing, reason="no user has a value in both runs")
    values = np.array([[found[user] for user in common] for found in (second, first)])
    (paired,) = compare_deployments(values, ["b", "a"], resamples=resamples, seed=seed)
    return Compared(
        **named,
        a=float(values[1].mean()),
        b=float(values[0].mean()),
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        p_value=paired.p_value,
        p_holm=None,
        reason=paired.reason,
    )


def _corrected(lines: Sequence[Compared]) -> list[Compared]:
    """Return lines with p corrected by Holm over all lines of one metric."""
    out = list(lines)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for index, line in enumerate(lines):
        if line.p_value is not None:
            groups.setdefault((line.stage, line.metric, line.users), []).append(index)
    for indices in groups.values():
        corrected = holm(np.array([lines[index].p_value for index in indices], dtype=np.float64))
        for index, value in zip(indices, corrected.tolist(), strict=True):
            out[index] = replace(lines[index], p_holm=value)
    return out


def _flat(value: Any, place: str = "") -> Iterable[tuple[str, Any]]:
    """Yield every leaf of nested settings with its dotted name."""
    if isinstance(value, (dict, list)) and value:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(item, f"{place}.{name}" if place else str(name))
    else:
        yield place, value


def _differences(one: dict[str, Any], other: dict[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    names = dict.fromkeys([*one, *other])
    return tuple((name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name))
