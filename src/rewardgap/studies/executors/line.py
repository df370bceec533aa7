"""The jobs of all points of a results folder, the workbenches they run on, and what came of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.studies import jobs
from rewardgap.studies.plan import make_plan
from rewardgap.studies.running import run_job
from rewardgap.studies.shelf import Shelf, backbone_keys
from rewardgap.studies.workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rewardgap.studies.jobs import Job
    from rewardgap.studies.plan import Plan
    from rewardgap.studies.progress import Progress
    from rewardgap.studies.running import Outcome
    from rewardgap.studies.spec import StudySpec


class Line:
    """Jobs in the order in which one worker runs them.

    Args:
        studies: the points, each a plain study.
        root: the results folder.
        progress: where progress goes.
        fingerprints: of backbones, where another process found them already: nothing is loaded to plan then.
    """

    def __init__(
        self,
        studies: Sequence[StudySpec],
        root: Path,
        progress: Progress,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.studies, self.root, self.progress = list(studies), root, progress
        self.shelf = Shelf(fingerprints)
        self.benches = [Workbench(study, root, progress, self.shelf) for study in self.studies]
        self._keys = [backbone_keys(study) for study in self.studies]
        self.plans: list[Plan] = []
        for bench, keys in zip(self.benches, self._keys, strict=True):
            self.shelf.keep(keys)
            self.plans.append(make_plan(bench))
            bench.put_away()
        self.jobs = {job.key: job for job in jobs.line(list(zip(self.studies, self.plans, strict=True)))}
        self.failures: list[list[dict[str, str]]] = [[] for _ in self.studies]
        self.notes: list[list[str]] = [[] for _ in self.studies]
        self.computed: dict[str, int] = {}

    def left(self) -> list[Job]:
        """Return the jobs with something to do."""
        bench = self.benches[0]
        return jobs.left(list(self.jobs.values()), lambda cell: bench.folder(cell).done)

    def run(self, job: Job) -> Outcome:
        """Run a job in this process; of models, only those of its point stay in memory."""
        keys = self._keys[job.point]
        self.shelf.keep(keys)
        for bench, others in zip(self.benches, self._keys, strict=True):
            if others != keys:
                bench.put_away()
        return run_job(self.benches[job.point], self.plans[job.point], job)

    def note(self, job: Job, outcome: Outcome) -> None:
        """Keep what came of a job."""
        self.failures[job.point] += outcome.failures
        self.notes[job.point] += outcome.notes
        self.computed |= dict.fromkeys(outcome.computed, job.point)

    def computed_of(self, point: int) -> list[str]:
        """Return the cells that were computed for a point."""
        return [cell for cell, of in self.computed.items() if of == point]
