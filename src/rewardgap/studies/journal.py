"""The journal of a results folder, `runs.jsonl`: one fsynced line when a cell begins and one when it ends."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Literal

from rewardgap.core.store import append_lines
from rewardgap.studies.folders import held

if TYPE_CHECKING:
    from pathlib import Path

    from rewardgap.studies.cells import Cell

JOURNAL = "runs.jsonl"
Event = Literal["start", "end", "failed", "damaged"]


def note(root: Path, event: Event, cell: Cell, **more: Any) -> None:
    """Append a line: when (seconds since 1970), which process, what happened to which cell.

    A kill inside the write leaves a torn line, which the next one closes; `read` leaves it out.
    """
    path = root / JOURNAL
    line = {"time": round(time.time(), 3), "process": os.getpid(), "event": event, "cell": cell.id, "kind": cell.kind}
    with held(root, JOURNAL):
        if path.exists() and (size := path.stat().st_size):
            with path.open("rb+") as stream:
                stream.seek(size - 1)
                if stream.read() != b"\n":
                    stream.write(b"\n")
        append_lines(path, [{**line, **more}])


def read(root: Path) -> list[dict[str, Any]]:
    """Return the lines of a folder's journal, oldest first."""
    path = root / JOURNAL
    out = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            out.append(dict(json.loads(line)))
        except ValueError:
            continue
    return out
