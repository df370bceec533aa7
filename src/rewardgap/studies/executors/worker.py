"""A worker: a process that is told which points a folder has, and then one job after another by its key.

It runs as `python -m rewardgap.studies.executors.worker FD`, talks JSON over the socket FD, and ends when that closes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rewardgap.core import errors
from rewardgap.core.errors import ConfigError, RewardGapError
from rewardgap.studies.progress import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from rewardgap.studies.executors.line import Line
    from rewardgap.studies.running import Outcome


def orders(line: Line, threads: int) -> dict[str, Any]:
    """Return what a worker is told first, as a JSON value.

    Args:
        line: whose jobs it will be given.
        threads: torch threads of the worker.
    """
    return {
        "studies": [study.model_dump(mode="json") for study in line.studies],
        "root": str(line.root),
        "fingerprints": line.shelf.fingerprints,
        "threads": threads,
    }


class Worker:
    """Runs jobs of a folder's points, and keeps what it loaded for the next one.

    Args:
        told: what `orders` returned.
        say: takes the lines of progress.
    """

    def __init__(self, told: dict[str, Any], say: Callable[[str], None]) -> None:
        import torch

        from rewardgap.studies.executors.line import Line
        from rewardgap.studies.spec import parse_study

        torch.set_num_threads(told["threads"])
        studies = [parse_study(study) for study in told["studies"]]
        self.say = say
        self.line = Line(studies, Path(told["root"]), Lines(lambda text: self.say(text)), told["fingerprints"])

    def run(self, key: str) -> dict[str, Any]:
        """Run a job and return its outcome as a JSON value; an error that ends the study is in `fatal`."""
        from rewardgap.studies.running import Outcome

        try:
            return self.line.run(self.line.jobs[key]).to_json()
        except RewardGapError as error:
            return Outcome().to_json() | {"fatal": [type(error).__name__, str(error)]}


def outcome_of(value: dict[str, Any]) -> Outcome:
    """Return what a worker's `run` returned as an outcome.

    Raises:
        RewardGapError: the error that ends the study, if one came.
    """
    from rewardgap.studies.running import Outcome

    fatal = value.pop("fatal", None)
    if fatal is not None:
        kind, sentence = fatal
        # The one error with arguments of its own comes before any job: here it is a wrong setting like others.
        found = ConfigError if kind == "UnknownNameError" else getattr(errors, kind)
        raise found(sentence)
    return Outcome(**value)


def main(descriptor: int) -> None:
    """Serve jobs until the other side is gone."""
    from multiprocessing.connection import Connection

    connection = Connection(descriptor)
    inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()
    outbox = threading.Lock()

    def listen() -> None:
        try:
            while True:
                inbox.put(json.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            # Whoever gave the orders is gone: a worker left alone would hold cells against the next run.
            os._exit(1)

    def send(value: dict[str, Any]) -> None:
        with outbox:
            connection.send_bytes(json.dumps(value).encode())

    threading.Thread(target=listen, daemon=True).start()
    # A run in the background of a shell ignores interrupts, and its workers inherit that; theirs come from the run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with _ending_quietly():
        worker = Worker(inbox.get(), lambda text: send({"say": text}))
        send({"ready": os.getpid()})
        while True:
            send({"outcome": worker.run(inbox.get()["job"])})


@contextmanager
def _ending_quietly() -> Iterator[None]:
    """End without a traceback where an interrupt asks for it."""
    try:
        yield
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)


def connected(connection: Connection, value: dict[str, Any]) -> bool:
    """Send a worker something; return whether it is still there to hear it."""
    try:
        connection.send_bytes(json.dumps(value).encode())
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]))
