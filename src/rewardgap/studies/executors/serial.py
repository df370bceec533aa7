"""One worker: this process, one job after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.studies.executors.base import Schedule

if TYPE_CHECKING:
    from rewardgap.studies.executors.line import Line


class Serial:
    """Runs every job in this process, in the order of the line."""

    shares_folder = False

    def run(self, line: Line) -> None:
        """Run every job with something left to do."""
        schedule = Schedule(line, alone=True)
        while (job := schedule.take()) is not None:
            schedule.done(job, line.run(job))
