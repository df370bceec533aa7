"""A study run that kills itself at the n-th write of a kind: what a test starts in a process of its own.

Loaded by every Python process of the run through `sitecustomize`, so that workers kill themselves too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

PLACES = ("rename", "parquet", "DONE", "append")


def arm(place: str, counter: Path, last: int) -> None:
    """Let the `last`-th write of a kind, counted over all processes, end its process with half of it done."""

    def counted() -> bool:
        import fcntl

        with counter.open("a+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(".")
            stream.flush()
            return stream.tell() == last

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()

    from rewardgap.core import store

    if place == "rename":
        real_replace = Path.replace

        def replace(self: Path, target: Any) -> Any:
            if counted():
                die()
            return real_replace(self, target)

        Path.replace = replace  # type: ignore[assignment,method-assign]
    elif place == "append":
        real_append = store.append_lines

        def append(path: Path, rows: Any) -> None:
            rows = list(rows)
            if counted():
                payload = "".join(store.canonical_json(row) + "\n" for row in rows)
                with path.open("a") as stream:
                    stream.write(payload[: 2 * len(payload) // 3])
                die()
            real_append(path, rows)

        from rewardgap.studies import cells, journal

        for module in (store, cells, journal):
            module.append_lines = append  # type: ignore[attr-defined]
    else:
        real_write = store._write

        def write(path: Path, payload: bytes) -> None:
            wanted = path.name == "DONE" if place == "DONE" else path.suffix == ".parquet"
            if wanted and counted():
                path.with_name(f".{path.name}.half.tmp").write_bytes(payload[: len(payload) // 2])
                die()
            real_write(path, payload)

        store._write = write


def hook(folder: Path) -> Path:
    """Write a `sitecustomize` that arms a process when the package's store is first imported; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('TEST_KILL'):\n"
        "    import importlib.abc, importlib.util\n"
        f"    sys.path.append({str(here)!r})\n"
        "    class Finder(importlib.abc.MetaPathFinder):\n"
        "        def find_spec(self, name, path, target=None):\n"
        "            if name != 'rewardgap.studies.running':\n"
        "                return None\n"
        "            sys.meta_path.remove(self)\n"
        "            import study_runner\n"
        "            place, counter, last = os.environ['TEST_KILL'].split('|')\n"
        "            study_runner.arm(place, study_runner.Path(counter), int(last))\n"
        "            return importlib.util.find_spec(name)\n"
        "    sys.meta_path.insert(0, Finder())\n"
    )
    return folder


def command(*arguments: object) -> list[str]:
    """Return the command line of the program."""
    return [sys.executable, "-c", "from rewardgap.cli.app import main; main()", *map(str, arguments)]
