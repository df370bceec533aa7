"""Cells: units of work with an identity. A finished cell is never run again; a killed one resumes where it was.

A cell's folder holds `cell.json` (what it is), while it runs `records.partial.jsonl` (fsynced lines, one batch a time),
and at the end `records.parquet`, whatever files the cell adds, and `DONE`, which is written last and proves them: it
holds the hash of the records and the SHA-256 of every other file.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rewardgap.core.store import (
    append_lines,
    canonical_json,
    content_hash,
    file_hash,
    read_json,
    read_lines,
    write_bytes,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

VERSIONS = {
    "pairing": 2,
    "data_check": 2,
    "reward_model": 2,
    "prefixes": 1,
    "deployment": 4,
    "behaviour": 2,
    "judgement": 2,
    "judge": 1,
    "verdict": 1,
    "shuffled": 2,
    "synthetic_text": 2,
    "synthetic_swap": 1,
    "tuning": 1,
    "tuning_value": 1,
}
"""Kind of cell to version of its code, a part of the cell's identity; raise it when code changes a cell's numbers."""


RECORDS, PARTIAL, ERROR = "records.parquet", "records.partial.jsonl", "error.txt"
_PROVEN: dict[Path, int] = {}
"""DONE -> its time, of every cell whose files this process has compared with it."""


@dataclass(frozen=True)
class Cell:
    """A unit of work.

    Attributes:
        kind: which stage does it.
        key: everything its records depend on, as a JSON value; ids of the cells it needs are part of it.
        title: one line for progress.
        needs: cells that must be finished before.
    """

    kind: str
    key: dict[str, Any]
    title: str
    needs: tuple[Cell, ...] = field(default=(), repr=False)

    @cached_property
    def id(self) -> str:
        """Return the hash of everything the cell depends on."""
        return content_hash([VERSIONS[self.kind], self.kind, self.key, [cell.id for cell in self.needs]])


class CellFolder:
    """Where a cell's artefacts lie."""

    def __init__(self, root: Path, cell: Cell) -> None:
        self.cell = cell
        self.path = root / "cells" / cell.id

    @property
    def done(self) -> bool:
        """Return whether the cell is finished: DONE is there, and every file is as it says."""
        return self.marker.exists() and self.damage() is None

    @property
    def marker(self) -> Path:
        """Return the file that is written last."""
        return self.path / "DONE"

    def damage(self) -> str | None:
        """Return what is wrong with a finished cell; None where nothing is, or where it is not finished.

        Files are read once a process; after that only that the records and the same DONE are there.
        """
        try:
            written = self.marker.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if not (self.path / RECORDS).exists():
            return f"{RECORDS} is missing"
        if _PROVEN.get(self.marker) != written:
            found = self._compared()
            if found is not None:
                return found
            _PROVEN[self.marker] = written
        return None

    def _compared(self) -> str | None:
        text = self.marker.read_text(encoding="utf-8", errors="replace").strip()
        if re.fullmatch(r"[0-9a-f]{16}", text):
            # DONE of earlier versions proves no bytes; that the records can be read is all there is to see.
            try:
                self.records()
            except Exception:  # a damaged file raises anything that Arrow has
                return f"{RECORDS} cannot be read"
            return None
        try:
            files = dict(json.loads(text)["files"])
        except (ValueError, TypeError, KeyError):
            return "DONE cannot be read"
        for name, digest in files.items():
            path = self.path / name
            if not path.is_file():
                return f"{name} is missing"
            if file_hash(path) != digest:
                return f"{name} is not what was written"
        return None

    def start(self) -> list[dict[str, Any]]:
        """Describe the cell on disk and return the records that an earlier run left."""
        write_json(self.path / "cell.json", {"id": self.cell.id, "kind": self.cell.kind, "key": self.cell.key})
        return read_lines(self.path / PARTIAL)

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Keep a batch of records for good."""
        append_lines(self.path / PARTIAL, records)

    def rewrite(self, records: Sequence[dict[str, Any]]) -> None:
        """Replace the partial records."""
        write_text(self.path / PARTIAL, "".join(canonical_json(record) + "\n" for record in records))

    def finish(self, extra: dict[str, Any] | None = None, scratch: Collection[str] = ()) -> None:
        """Turn the partial records into `records.parquet` and mark the cell as done.

        Args:
            extra: what `facts` is to return beside what the cell is.
            scratch: files of the cell that are of no use once it is done; they are removed.
        """
        records = read_lines(self.path / PARTIAL)
        write_bytes(self.path / RECORDS, to_parquet(records))
        facts = {"id": self.cell.id, "kind": self.cell.kind, "key": self.cell.key, **(extra or {})}
        write_json(self.path / "cell.json", facts)
        passing = {self.marker.name, PARTIAL, ERROR, *scratch}
        found = (path for path in self.path.rglob("*") if path.is_file())
        names = sorted(path.relative_to(self.path).as_posix() for path in found)
        # A name that begins with a dot is what a killed write left.
        files = {n: file_hash(self.path / n) for n in names if n not in passing and "/." not in f"/{n}"}
        write_json(self.marker, {"records": content_hash(records), "files": files})
        _PROVEN[self.marker] = self.marker.stat().st_mtime_ns
        for name in passing - {self.marker.name}:
            (self.path / name).unlink(missing_ok=True)

    def records(self) -> list[dict[str, Any]]:
        """Return the records of a finished cell."""
        return from_parquet((self.path / RECORDS).read_bytes())

    def facts(self) -> dict[str, Any]:
        """Return what `finish` noted."""
        return dict(read_json(self.path / "cell.json"))

    def clear(self, keep: str = "") -> None:
        """Remove everything of the cell, but for one file."""
        for child in self.path.iterdir() if self.path.is_dir() else ():
            if child.is_dir():
                shutil.rmtree(child, ignore_errors=True)
            elif child.name != keep:
                child.unlink(missing_ok=True)


def to_parquet(records: Sequence[dict[str, Any]]) -> bytes:
    """Return records as parquet; nested values are JSON text in columns whose name ends in `_json`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for record in records for name in record))
    columns: dict[str, Any] = {}
    for name in names:
        values = [record.get(name) for record in records]
        if any(isinstance(value, (dict, list)) for value in values):
            columns[f"{name}_json"] = pa.array([json.dumps(value, ensure_ascii=False) for value in values], pa.string())
        elif all(value is None for value in values):
            columns[name] = pa.nulls(len(values), pa.string())
        elif any(isinstance(value, float) for value in values):
            columns[name] = pa.array([None if value is None else float(value) for value in values], pa.float64())
        else:
            columns[name] = pa.array(values)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def from_parquet(payload: bytes) -> list[dict[str, Any]]:
    """Read what `to_parquet` wrote."""
    import pyarrow.parquet as pq

    # One thread: files are small, and a pool that is still alive at exit can abort the process.
    rows = pq.read_table(io.BytesIO(payload), use_threads=False, pre_buffer=False).to_pylist()
    return [
        {
            name.removesuffix("_json"): json.loads(value) if name.endswith("_json") and value is not None else value
            for name, value in row.items()
        }
        for row in rows
    ]
