"""Cells: units of work with an identity. A finished cell is never run again; a killed one resumes where it was.

A cell's folder holds `cell.json` (what it is), while it runs `records.partial.jsonl` (fsynced lines, one batch a time),
and at the end `records.parquet`, whatever files the cell adds, and `DONE`, which is written last.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rewardgap.core.store import (
    append_lines,
    canonical_json,
    content_hash,
    read_json,
    read_lines,
    write_bytes,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

VERSIONS = {
    "pairing": 2,
    "data_check": 2,
    "reward_model": 2,
    "deployment": 4,
    "behaviour": 2,
    "judgement": 2,
    "shuffled": 2,
    "synthetic_text": 2,
    "synthetic_swap": 1,
    "tuning": 1,
    "tuning_value": 1,
}
"""Kind of cell to version of its code, a part of the cell's identity; raise it when code changes a cell's numbers."""


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

    @property
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
        """Return whether the cell is finished: DONE and the records are there."""
        marker = self.path / "DONE"
        return marker.exists() and (self.path / "records.parquet").exists()

    def start(self) -> list[dict[str, Any]]:
        """Describe the cell on disk and return the records that an earlier run left."""
        write_json(self.path / "cell.json", {"id": self.cell.id, "kind": self.cell.kind, "key": self.cell.key})
        return read_lines(self.path / "records.partial.jsonl")

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Keep a batch of records for good."""
        append_lines(self.path / "records.partial.jsonl", records)

    def rewrite(self, records: Sequence[dict[str, Any]]) -> None:
        """Replace the partial records."""
        write_text(self.path / "records.partial.jsonl", "".join(canonical_json(record) + "\n" for record in records))

    def finish(self, extra: dict[str, Any] | None = None) -> None:
        """Turn the partial records into `records.parquet` and mark the cell as done."""
        records = read_lines(self.path / "records.partial.jsonl")
        write_bytes(self.path / "records.parquet", to_parquet(records))
        facts = {"id": self.cell.id, "kind": self.cell.kind, "key": self.cell.key, **(extra or {})}
        write_json(self.path / "cell.json", facts)
        write_text(self.path / "DONE", content_hash(records) + "\n")
        (self.path / "records.partial.jsonl").unlink(missing_ok=True)

    def records(self) -> list[dict[str, Any]]:
        """Return the records of a finished cell."""
        return from_parquet((self.path / "records.parquet").read_bytes())

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
