"""One of several runs that share a results folder and nothing else: the tasks of a Slurm array, for example.

Each takes the next job that no other holds, and waits for what a job needs. No run tells another of a failure, so each
tries a cell that fails once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rewardgap.core.errors import ConfigError
from rewardgap.studies.folders import held

if TYPE_CHECKING:
    from rewardgap.studies.executors.line import Line
    from rewardgap.studies.jobs import Job

WAIT = 1.0
"""Seconds between two looks at a folder in which others hold all that could be done."""


class Member:
    """Runs the jobs that no other member holds.

    Args:
        number: of this member, from 1.
        of: how many members there are; they begin at different places of the line.

    Raises:
        ConfigError: if there is no such member.
    """

    shares_folder = True

    def __init__(self, number: int, of: int) -> None:
        if not 1 <= number <= of:
            raise ConfigError(f"worker {number}/{of} does not exist; workers are numbered from 1 to {of}.")
        self.number, self.of = number, of

    @classmethod
    def parse(cls, text: str) -> Member:
        """Return the member that "I/N" names.

        Raises:
            ConfigError: if the text is no such thing.
        """
        number, sign, of = text.partition("/")
        if not (sign and number.isdigit() and of.isdigit()):
            raise ConfigError(f"--worker '{text}' is not of the form I/N, for example 1/8.")
        return cls(int(number), int(of))

    def run(self, line: Line) -> None:
        """Run jobs until none is left, here or elsewhere."""
        tried: set[str] = set()
        waits = False
        while True:
            open_jobs = {job.key: job for job in line.left() if job.key not in tried}
            if not open_jobs:
                return
            took = False
            for job in self._turned([job for job in open_jobs.values() if not _waits(job, line, open_jobs)]):
                with held(line.root, job.key, wait=False) as mine:
                    if mine:
                        tried.add(job.key)
                        line.note(job, line.run(job))
                        took = True
                if took:
                    break
            if not took and not waits:
                line.progress.say("  waiting for other workers")
            waits = not took
            if waits:
                time.sleep(WAIT)

    def _turned(self, jobs: list[Job]) -> list[Job]:
        """Return jobs from this member's own place in the line on, so that members seldom ask for the same one."""
        begin = (self.number - 1) * len(jobs) // self.of
        return [*jobs[begin:], *jobs[:begin]]


def _waits(job: Job, line: Line, open_jobs: dict[str, Job]) -> bool:
    """Return whether something that a job needs, directly or further back, is left to do."""
    seen, asked = set(job.needs), list(job.needs)
    while asked:
        need = asked.pop()
        if need in open_jobs:
            return True
        fresh = set(line.jobs[need].needs) - seen
        seen |= fresh
        asked += fresh
    return False
