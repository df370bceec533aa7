"""What an executor is, and the bookkeeping that those with several workers share: what is ready, running and over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rewardgap.studies.running import Outcome, failure

if TYPE_CHECKING:
    from collections.abc import Collection

    from rewardgap.studies.executors.line import Line
    from rewardgap.studies.jobs import Job

RETRIES = 2
"""How often a job is tried again whose worker was lost."""


class Executor(Protocol):
    """Runs what is left of a line of jobs."""

    @property
    def shares_folder(self) -> bool:
        """Return whether other processes work in the same results folder at the same time."""
        ...

    def run(self, line: Line) -> None:
        """Run every job with something left to do, and note in the line what came of each."""
        ...


class Schedule:
    """The jobs of a line that are left, and which of them may run now.

    A job may run once all it needs is over, finished or failed: what fails for want of a need says so itself.
    """

    def __init__(self, line: Line, *, alone: bool = False) -> None:
        todo = {job.key: job for job in line.left() if not (alone and job.is_ahead)}
        self.line = line
        self._place = {key: place for place, key in enumerate(todo)}
        self._waits = {key: _needed(key, line, todo) for key in todo}
        self._waiting = dict(todo)
        self._followers: dict[str, list[str]] = {}
        for key, needs in self._waits.items():
            for need in needs:
                self._followers.setdefault(need, []).append(key)
        self._ready = {key: job for key, job in todo.items() if not self._waits[key]}
        self.tries: dict[str, int] = {}

    @property
    def is_over(self) -> bool:
        """Return whether no job is left, running ones included."""
        return not self._waiting

    def take(self, warm: Collection[str] = ()) -> Job | None:
        """Return the job to run next, None where none may: the one that finds most in memory, the first of those."""
        if not self._ready:
            return None
        key = min(self._ready, key=lambda key: (-len(self._ready[key].wants & set(warm)), self._place[key]))
        self.tries[key] = self.tries.get(key, 0) + 1
        return self._ready.pop(key)

    def done(self, job: Job, outcome: Outcome) -> None:
        """Note what came of a job that ran."""
        self.line.note(job, outcome)
        del self._waiting[job.key]
        for follower in self._followers.get(job.key, ()):
            self._waits[follower].discard(job.key)
            if not self._waits[follower]:
                self._ready[follower] = self._waiting[follower]

    def lost(self, job: Job, how: str) -> str:
        """Take back a job whose worker was lost, or give it up; return the sentence to say.

        Args:
            job: what ran.
            how: what became of the worker, for example "was killed by SIGKILL".
        """
        tries = self.tries[job.key]
        if tries <= RETRIES:
            self._ready[job.key] = job
            return f"  {job.title}: its worker {how}; trying it again ({tries} of {RETRIES})."
        error = f"its worker {how}, at each of {tries} tries"
        if "SIGKILL" in how:
            error += "; where nobody killed it, memory ran out: take a smaller batch_size or fewer workers"
        bench = self.line.benches[job.point]
        open_cells = [step.cell for step in job.steps if not bench.folder(step.cell).done]
        self.done(job, Outcome(failures=[failure(cell, error) for cell in open_cells]))
        return f"  {job.title}: failed, {error}."


def _needed(key: str, line: Line, todo: Collection[str]) -> set[str]:
    """Return the jobs left that a job needs, directly or through jobs with nothing left to do."""
    found: set[str] = set()
    open_keys = list(line.jobs[key].needs)
    seen = set(open_keys)
    while open_keys:
        need = open_keys.pop()
        if need in todo:
            found.add(need)
            continue
        fresh = [deeper for deeper in line.jobs[need].needs if deeper not in seen]
        seen.update(fresh)
        open_keys += fresh
    return found
