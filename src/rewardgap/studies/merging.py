"""The results of several points as the results of one study."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from rewardgap.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewardgap.core.results import ResultRow, Sample, StudyResults

T = TypeVar("T")


def merge(parts: Sequence[StudyResults], study: dict[str, Any], samples: int) -> StudyResults:
    """Return the results of points as those of one study.

    What two points share (a control on synthetic texts, a deployment that an axis does not touch) stands once. What has
    no support size, zero-shot for one, has other query rows at every support size: there it takes that of its point.

    Args:
        parts: of each point, in order.
        study: the study with its axes, as JSON.
        samples: how many query prompts to keep, taken from the points in turn.

    Raises:
        ConfigError: if two points give two numbers for one line of the results: what differs has no column.
    """
    first = parts[0]
    return replace(
        first,
        rows=_rows(parts),
        taus=_once(tau for part in parts for tau in part.taus),
        comparisons=list(dict.fromkeys(one for part in parts for one in part.comparisons)),
        regrets=_once(regret for part in parts for regret in part.regrets),
        heterogeneity=list(dict.fromkeys(one for part in parts for one in part.heterogeneity)),
        support=list(dict.fromkeys(one for part in parts for one in part.support)),
        controls=_once(control for part in parts for control in part.controls),
        baselines=_once(baseline for part in parts for baseline in part.baselines),
        decompositions=list(dict.fromkeys(number for part in parts for number in part.decompositions)),
        samples=_in_turn([part.samples for part in parts], samples),
        notes=_once(note for part in parts for note in part.notes),
        datasets=_once(dataset for part in parts for dataset in part.datasets),
        failures=_once(failure for part in parts for failure in part.failures),
        study=study,
        environment=first.environment | {"first_prompts": _first_prompts(parts)},
    )


def _rows(parts: Sequence[StudyResults]) -> list[ResultRow]:
    sizes: dict[tuple[Any, ...], set[int]] = {}
    for row in (row for part in parts for row in part.rows):
        if row.support_size is not None:
            sizes.setdefault(_place(row), set()).add(row.support_size)
    kept: dict[tuple[Any, ...], ResultRow] = {}
    for part in parts:
        of_part = {_place(row): row.support_size for row in part.rows if row.support_size is not None}
        for row in part.rows:
            if row.support_size is None and len(sizes.get(_place(row), ())) > 1:
                row = replace(row, support_size=of_part.get(_place(row)))
            other = kept.setdefault(row.key(), row)
            if other != row:
                raise ConfigError(
                    f"two points of the study have a line for {row.stage} {row.metric} of {row.method} on "
                    f"{row.dataset}, seed, policy and support size alike: what differs between them has no column of "
                    "its own. Give the reward models a label, or the data a name (data.options.name), that says what "
                    "differs."
                )
    return list(kept.values())


def _place(row: ResultRow) -> tuple[Any, ...]:
    """Return what points have in common that differ in support size."""
    return row.dataset, row.pairing, row.policy, row.seed


def _once(items: Iterable[T]) -> list[T]:
    """Return items in order, those that are equal once."""
    out: list[T] = []
    for item in items:
        if item not in out:
            out.append(item)
    return out


def _in_turn(lists: Sequence[Sequence[Sample]], most: int) -> list[Sample]:
    longest = max(map(len, lists), default=0)
    turns = (items[number] for number in range(longest) for items in lists if number < len(items))
    return _once(turns)[:most]


def _first_prompts(parts: Sequence[StudyResults]) -> dict[str, Any]:
    """Return the first prompt of each deployment; where points differ, by the point's policy and dataset too."""
    out: dict[str, Any] = {}
    for part in parts:
        for title, prompt in part.environment.get("first_prompts", {}).items():
            where = f"{title} ({part.study['policy']}, {part.study['data']['name']}, seed {part.study['seed']})"
            out[title if out.get(title, prompt) == prompt else where] = prompt
    return out
