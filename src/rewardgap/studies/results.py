"""From finished points to the results of a study: each added up, all as one, and what they say together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import yaml

from rewardgap.core.results import KEY_COLUMNS
from rewardgap.studies.across import across_points
from rewardgap.studies.aggregate import Tables, aggregate
from rewardgap.studies.folders import study_yaml
from rewardgap.studies.merging import merge
from rewardgap.studies.points import points
from rewardgap.studies.user_means import UserMeans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.results import StudyResults
    from rewardgap.studies.run import Finished
    from rewardgap.studies.spec import StudySpec

_SUPPORT = KEY_COLUMNS.index("support_size")


def study_results(finished: Sequence[Finished], study: StudySpec, command: str = "") -> tuple[StudyResults, UserMeans]:
    """Add up every point of a study.

    Args:
        finished: its points after the run, in order.
        study: the whole study, with its axes.
        command: how to run it again, for the report.

    Returns:
        The results, and the means of users behind them.

    Raises:
        ConfigError: if two numbers have the same columns: what differs needs a name of its own.
    """
    tables = [Tables(point) for point in finished]
    parts = [aggregate(point, command, one) for point, one in zip(finished, tables, strict=True)]
    if not study.vary:
        return parts[0], tables[0].means
    titles = [point.title for point in points(study)]
    parts = [
        replace(part, samples=[replace(sample, point=title) for sample in part.samples])
        for part, title in zip(parts, titles, strict=True)
    ]
    together = across_points(tables)
    whole = merge(parts, dict(yaml.safe_load(study_yaml(study))), study.samples)
    known, means = {row.key() for row in whole.rows}, UserMeans()
    for one in tables:
        for key, found in one.means.lines.items():
            # Merged, a line that reads no support has the support size of its point where points differ in it.
            means.lines[key if key in known else (*key[:_SUPPORT], one.support_size, *key[_SUPPORT + 1 :])] = found
    return replace(whole, crossovers=together.crossovers, meta=together.meta), means
