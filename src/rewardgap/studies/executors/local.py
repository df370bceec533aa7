"""Several workers on this machine: processes of their own, each with its share of the threads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from rewardgap.studies.executors.base import Schedule
from rewardgap.studies.executors.worker import connected, orders, outcome_of

if TYPE_CHECKING:
    from rewardgap.studies.executors.line import Line
    from rewardgap.studies.jobs import Job

PATIENCE = 10.0
"""Seconds that workers have to finish the write in flight when the run ends early."""


class Local:
    """Runs jobs in processes of this machine. A worker that dies is replaced, and its job is tried again.

    Args:
        workers: processes.
        threads: torch threads of each. Numbers are those of one worker with as many threads.
    """

    shares_folder = False

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads

    def run(self, line: Line) -> None:
        """Run every job with something left to do."""
        schedule = Schedule(line)
        for bench in line.benches:
            bench.put_away()
        line.shelf.keep(())
        crew: list[_Hand] = []
        try:
            while not schedule.is_over:
                self._assign(schedule, crew, line)
                for connection in wait([hand.connection for hand in crew]):
                    hand = next(hand for hand in crew if hand.connection is connection)
                    self._hear(schedule, crew, hand, line)
        except BaseException:
            for hand in crew:
                hand.process.send_signal(signal.SIGINT)
            raise
        finally:
            for hand in crew:
                hand.dismiss()

    def _assign(self, schedule: Schedule, crew: list[_Hand], line: Line) -> None:
        """Give every free worker a job, and take on workers while there are jobs for them."""
        for hand in [hand for hand in crew if hand.job is None]:
            job = schedule.take(hand.warm)
            if job is None:
                return
            hand.give(job)
        while len(crew) < self.workers and (job := schedule.take()) is not None:
            hand = _Hand(orders(line, self.threads))
            crew.append(hand)
            hand.give(job)

    def _hear(self, schedule: Schedule, crew: list[_Hand], hand: _Hand, line: Line) -> None:
        try:
            said: dict[str, Any] = json.loads(hand.connection.recv_bytes())
        except (EOFError, OSError):
            how = hand.end()
            crew.remove(hand)
            if hand.job is not None:
                line.progress.say(schedule.lost(hand.job, how))
            return
        if "say" in said:
            line.progress.say(said["say"])
        elif "outcome" in said:
            assert hand.job is not None
            job, hand.job = hand.job, None
            schedule.done(job, outcome_of(said["outcome"]))


class _Hand:
    """A worker's process, seen from the one that gives the jobs."""

    def __init__(self, told: dict[str, Any]) -> None:
        own, other = socket.socketpair()
        command = [sys.executable, "-m", "rewardgap.studies.executors.worker", str(other.fileno())]
        # A session of its own: Ctrl-C reaches the run alone, which then tells its workers. What libraries print is no
        # answer, so it goes where messages go.
        self.process = subprocess.Popen(
            command, pass_fds=[other.fileno()], stdout=sys.stderr.fileno(), start_new_session=True
        )
        other.close()
        self.connection = Connection(own.detach())
        self.job: Job | None = None
        self.warm: frozenset[str] = frozenset()
        connected(self.connection, told)

    def give(self, job: Job) -> None:
        """Give the worker a job; one that is gone is noticed when it is heard."""
        self.job, self.warm = job, self.warm | job.wants
        connected(self.connection, {"job": job.key})

    def end(self) -> str:
        """Wait for a worker whose connection broke, and return what became of it."""
        self.connection.close()
        code = self.process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def dismiss(self) -> None:
        """Let the worker go: it ends when the connection closes, after the write in flight where it was interrupted."""
        try:
            if self.job is not None:
                self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.kill(self.process.pid, signal.SIGKILL)
        self.connection.close()
        self.process.wait()
