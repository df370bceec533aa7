"""Files that survive a kill: atomic writes, append-only JSON lines, content hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


_UMASK = os.umask(0)
os.umask(_UMASK)


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; NaN is refused, since it would not survive a round trip."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:length]


@contextmanager
def whole() -> Iterator[None]:
    """Put an interrupt (Ctrl-C) off until what is done here is through."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *event: came.append(event))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])


def write_bytes(path: Path, payload: bytes) -> None:
    """Write a file atomically: a temporary name in the same folder, fsync, rename, fsync of the folder."""
    with whole():
        _write(path, payload)


def _write(path: Path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        # A temporary file is private; an artefact has the permissions that any new file has.
        Path(temporary).chmod(0o666 & ~_UMASK)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder whole or not at all: yield a scratch folder beside it, and rename that at the end.

    Where another process made the folder in the meantime, its copy is kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield scratch
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows as JSON lines in one write and fsync, so that a kill loses at most this call."""
    payload = "".join(canonical_json(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(), path.open("ab") as stream:
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read what `append_lines` wrote; a torn last line (the batch in flight at a kill) is cut off the file."""
    if not path.exists():
        return []
    payload = path.read_bytes()
    whole = payload.rfind(b"\n") + 1
    if whole != len(payload):
        with path.open("rb+") as stream:
            stream.truncate(whole)
    return [json.loads(line) for line in payload[:whole].splitlines() if line]


def cache_root() -> Path:
    """Return the cache folder: `$REWARDGAP_CACHE`, else `$XDG_CACHE_HOME/rewardgap`, else `~/.cache/rewardgap`."""
    own = os.environ.get("REWARDGAP_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "rewardgap"
