"""A study from its settings to finished cells: plan, jobs, an executor that runs what is not finished."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rewardgap.core.store import write_json
from rewardgap.studies.environment import environment
from rewardgap.studies.executors.line import Line
from rewardgap.studies.executors.serial import Serial
from rewardgap.studies.folders import claim, locked, refuse_strangers
from rewardgap.studies.plan import Plan, check_names
from rewardgap.studies.running import dealt, writable
from rewardgap.studies.shelf import Shelf
from rewardgap.studies.workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rewardgap.studies.executors.base import Executor
    from rewardgap.studies.progress import Progress
    from rewardgap.studies.spec import StudySpec


@dataclass
class Finished:
    """A study after its run: where everything is, what failed, how many cells were computed, and what was noticed."""

    bench: Workbench
    plan: Plan
    failures: list[dict[str, str]]
    computed: int
    notes: list[str] = field(default_factory=list)


def run_study(study: StudySpec, root: Path, progress: Progress, executor: Executor | None = None) -> Finished:
    """Run a study into a folder; finished cells are found, not repeated.

    Args:
        study: what to run.
        root: the results folder.
        progress: where progress goes.
        executor: who runs the jobs; this process unless given.

    Raises:
        ConfigError: if the folder belongs to another study, or another run is at work in it.
        DataError: if a prompt leaves no room for what is to be written.
        StorageError: if results cannot be written any more.
    """
    return run_points([study], root, progress, executor)[0]


def run_points(
    points: Sequence[StudySpec],
    root: Path,
    progress: Progress,
    executor: Executor | None = None,
    whole: StudySpec | None = None,
) -> list[Finished]:
    """Run several studies into one folder: a cell that two of them share is run once.

    Args:
        points: plain studies, of one name.
        root: the results folder.
        progress: where progress goes.
        executor: who runs the jobs; this process unless given.
        whole: the study that the points come from, which the folder is claimed for; the only point unless given.

    Returns:
        What came of each point, in order. A failure is noted with the first point that has the cell.

    Raises:
        ConfigError, DataError, StorageError: as `run_study`.
    """
    for study in points:
        check_names(study)
    with writable(root), claimed(whole or points[0], root, shared=executor is not None and executor.shares_folder):
        work = Line(points, root, progress)
        for bench in work.benches:
            _keep_split(bench)
        (executor or Serial()).run(work)
        for bench, plan in zip(work.benches, work.plans, strict=True):
            if bench.pairs is None:
                bench.pairs = dealt(bench, plan)
        if work.computed:
            write_json(root / "env.json", environment())
        return [
            Finished(bench, plan, work.failures[number], len(work.computed_of(number)), work.notes[number])
            for number, (bench, plan) in enumerate(zip(work.benches, work.plans, strict=True))
        ]


@contextmanager
def opened(study: StudySpec, root: Path, progress: Progress) -> Iterator[Workbench]:
    """Keep a results folder for this process and this study, and yield its workbench.

    Raises:
        ConfigError: if the folder belongs to another study, or another run is at work in it.
    """
    check_names(study)
    with claimed(study, root):
        bench = Workbench(study, root, progress, Shelf())
        _keep_split(bench)
        yield bench


@contextmanager
def claimed(study: StudySpec, root: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep a results folder for this process, or for all that share it, and write whose it is.

    Raises:
        ConfigError: if the folder belongs to another study, or another run is at work in it.
    """
    refuse_strangers(root)
    with locked(root, shared=shared):
        claim(study, root)
        if not (root / "env.json").exists():
            write_json(root / "env.json", environment())
        yield


def _keep_split(bench: Workbench) -> None:
    path = bench.root / "splits" / f"{bench.shelf.hash_of(bench.split)}.json"
    if not path.exists():
        bench.split.save(path)
