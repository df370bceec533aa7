"""Who runs a study's jobs, as the command line asks for it: options, the executor they name, a script for Slurm."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from rewardgap.studies.executors.base import Executor

JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Workers at a time; one unless given, with Ray all there are.")
]
ExecutorOption = Annotated[Literal["local", "ray"], typer.Option(help="Processes of this machine, or tasks of Ray.")]
AddressOption = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster, as `ray start --head` prints it; else Ray starts here."),
]
WorkerOption = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Be one of N runs that share the results folder; writes no report."),
]
SlurmOption = Annotated[bool, typer.Option("--print-slurm", help="Print a Slurm array script of --jobs runs and stop.")]


@dataclass(frozen=True)
class Working:
    """What was asked for."""

    jobs: int | None = None
    executor: Literal["local", "ray"] = "local"
    address: str | None = None
    worker: str | None = None
    print_slurm: bool = False

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises:
            ConfigError: naming them.
        """
        from rewardgap.core.errors import ConfigError

        if self.address is not None and self.executor != "ray":
            raise ConfigError("--address names a Ray cluster; give --executor ray with it.")
        if self.worker is not None and (self.jobs is not None or self.executor == "ray"):
            raise ConfigError("--worker is one run of many by itself; it takes neither --jobs nor --executor ray.")

    def threads(self, given: int | None, known: int | None) -> int | None:
        """Return the threads of a worker: as given, as the folder was begun with, else its share; None for a probe."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if given is not None or known is not None:
            return given if given is not None else known
        return max(1, cores // self.jobs) if self.jobs is not None and self.jobs > 1 else None

    def made(self, threads: int) -> Executor | None:
        """Return the executor, None for this process alone.

        Args:
            threads: torch threads of each worker.
        """
        if self.worker is not None:
            from rewardgap.studies.executors.array import Member

            return Member.parse(self.worker)
        if self.executor == "ray":
            from rewardgap.studies.executors.ray import Ray

            return Ray(threads, self.address, self.jobs)
        if self.jobs is not None and self.jobs > 1:
            from rewardgap.studies.executors.local import Local

            return Local(self.jobs, threads)
        return None


def slurm_script(name: str, command: str, folder: Path, members: int, threads: int, gib: int) -> str:
    """Return a Slurm script: an array of runs that share a folder, and one after them that writes the report.

    Args:
        name: of the study.
        command: that runs it.
        folder: the results folder.
        members: runs of the array.
        threads: of each.
        gib: memory of each.
    """
    whole = f"{command} --output {shlex.quote(str(folder))} --threads {threads}"
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name={name}",
            f"#SBATCH --array=1-{members}",
            f"#SBATCH --cpus-per-task={threads}",
            f"#SBATCH --mem={gib}G",
            "# The results folder and $REWARDGAP_CACHE must lie on storage that every node sees.",
            f"{whole} --worker $SLURM_ARRAY_TASK_ID/{members}",
            "# When the array is through, the same without --worker finds every cell and writes the report:",
            f"# sbatch --dependency=afterany:$SLURM_ARRAY_JOB_ID --wrap {shlex.quote(whole)}",
            "",
        ]
    )


HERE = Working()
"""This process alone."""
