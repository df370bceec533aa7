"""A study before it runs: its settings, its cells with what they need, and about what they will take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import typer

from rewardgap.cli.errors import json_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rewardgap.cli.executors import Working
    from rewardgap.studies.spec import StudySpec

GIB = 2**30


def dry_run(
    points: Sequence[StudySpec], whole: StudySpec, folder: Path, working: Working, threads: int, as_json: bool
) -> None:
    """Print the resolved study and its cells, and how long they take one worker and as many as were asked for.

    Where data or models are missing, only how many cells of each kind there are can be told.

    Args:
        points: the plain studies that it consists of.
        whole: the study as it was given.
        folder: the results folder; nothing is written to it.
        working: who is to run it.
        threads: torch threads of a worker.
        as_json: print a JSON value.
    """
    from rewardgap.core.errors import ModelError, RewardGapError
    from rewardgap.studies.estimate import Estimate, probe, wall_seconds
    from rewardgap.studies.executors.line import Line
    from rewardgap.studies.folders import study_yaml
    from rewardgap.studies.plan import check_names
    from rewardgap.studies.progress import Silent

    for study in points:
        check_names(study)
    try:
        line = Line(points, folder, Silent())
    except RewardGapError as error:
        if error.exit_code != ModelError.exit_code:
            raise
        _outline(points, whole, folder, str(error), as_json)
        return
    rate = probe()
    costs: dict[str, Any] = {}
    for bench, plan in zip(line.benches, line.plans, strict=True):
        costs = Estimate(bench, plan, rate).costs | costs
    cells = {cell.id: cell for plan in line.plans for cell in plan.cells()}
    rows = [
        {
            "id": cell.id,
            "kind": cell.kind,
            "title": cell.title,
            "done": line.benches[0].folder(cell).done,
            "needs": [need.id for need in cell.needs],
            "seconds": round(costs[cell.id].seconds, 1),
            "memory_bytes": costs[cell.id].memory,
        }
        for cell in cells.values()
    ]
    workers = sorted({1, working.jobs or 1})
    totals = {number: wall_seconds(line, costs, number) for number in workers}
    widest = max((row["memory_bytes"] for row in rows if not row["done"]), default=0)
    if as_json:
        found = {str(number): round(seconds, 1) for number, seconds in totals.items()}
        typer.echo(
            json_text(
                {"study": whole.model_dump(), "cells": rows, "threads": threads, "seconds_by_workers": found}
                | {"memory_bytes": widest}
            )
        )
        return
    typer.echo(study_yaml(whole))
    for row in rows:
        needs = ", ".join(cells[need].title for need in row["needs"])
        cost = "" if row["done"] else f"about {_clock(row['seconds'])}"
        behind = f"  needs {needs}" if needs else ""
        typer.echo(f"{'done' if row['done'] else 'to do':6}{cost:14}{row['title']}{behind}")
    open_rows = sum(not row["done"] for row in rows)
    times = ", ".join(f"about {_clock(totals[n])} with {n} worker{'s' if n > 1 else ''}" for n in workers)
    gib = math.ceil(10 * widest / GIB) / 10
    typer.echo(
        f"\n{open_rows} of {len(rows)} cells to do: {times} of {threads} thread{'s' if threads > 1 else ''}, about "
        f"{gib:.1f} GiB a worker. The rate is this machine's, {rate / 1e9:.0f} GFLOP/s in a short probe."
    )


def _outline(points: Sequence[StudySpec], whole: StudySpec, folder: Path, missing: str, as_json: bool) -> None:
    from rewardgap.studies.folders import study_yaml
    from rewardgap.studies.outline import outline

    kinds = outline(points, folder)
    if as_json:
        counts = {"points": len(points), "cells_by_kind": dict(kinds), "missing": missing}
        typer.echo(json_text({"study": whole.model_dump(), **counts}))
        return
    typer.echo(study_yaml(whole))
    for kind, count in kinds.items():
        typer.echo(f"{count:8}  {kind.replace('_', ' ')}")
    typer.echo(
        f"\n{len(points)} point{'s' if len(points) > 1 else ''}, at most {sum(kinds.values())} cells. Which are done, "
        f"and how long the others take, is not known here: {missing}"
    )


def memory_gib(points: Sequence[StudySpec], folder: Path) -> int:
    """Return the whole GiB that a worker should be given."""
    from rewardgap.studies.estimate import widest
    from rewardgap.studies.executors.line import Line
    from rewardgap.studies.progress import Silent

    return -(-widest(Line(points, folder, Silent())) // GIB)


def _clock(seconds: float) -> str:
    """Return a time as coarse as the estimate is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
