"""DONE proves every file of a cell: whatever is changed, cut or lost is named, and nothing else is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core.store import write_bytes
from rewardgap.studies import cells
from rewardgap.studies.cells import Cell, CellFolder

if TYPE_CHECKING:
    from pathlib import Path

CELL = Cell("reward_model", {"test": 1}, "a cell")
RECORDS = [{"user_id": "u", "value": 0.5}, {"user_id": "v", "value": None, "only_here": [1]}]


def finished(root: Path) -> CellFolder:
    folder = CellFolder(root, CELL)
    folder.start()
    folder.append(RECORDS)
    write_bytes(folder.path / "model" / "head.safetensors", b"0123456789")
    write_bytes(folder.path / "checkpoint.safetensors", b"half")
    write_bytes(folder.path / "error.txt", b"of an earlier try")
    (folder.path / ".cell.json.x1.tmp").write_text("what a killed write left")
    folder.finish({"facts": {"a": 1}}, scratch=["checkpoint.safetensors"])
    return folder


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """What this process has proven already, nothing at first: as in a new process."""
    proven: dict[Path, int] = {}
    monkeypatch.setattr(cells, "_PROVEN", proven)
    return proven


def test_what_is_finished_is_proven_and_only_that(tmp_path: Path, forgotten: dict[Path, int]) -> None:
    folder = finished(tmp_path)
    proof = json.loads((folder.path / "DONE").read_text())
    assert set(proof["files"]) == {"cell.json", "model/head.safetensors", "records.parquet"}
    left = {path.name for path in folder.path.rglob("*") if path.is_file()}
    assert left == {"DONE", "cell.json", "head.safetensors", "records.parquet", ".cell.json.x1.tmp"}
    forgotten.clear()
    assert folder.done
    assert folder.records() == [{**row, "only_here": row.get("only_here")} for row in RECORDS]


@given(name=st.sampled_from(["cell.json", "model/head.safetensors", "records.parquet"]), data=st.data())
def test_any_changed_byte_is_seen(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = finished(tmp_path_factory.mktemp("cell"))
    path = folder.path / name
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "gone"]))
    if kind == "flip":
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif kind == "cut":
        path.write_bytes(whole[:place])
    else:
        path.unlink()
    cells._PROVEN.clear()
    assert not folder.done
    damage = folder.damage()
    assert damage is not None
    assert damage.startswith(name)
    path.write_bytes(whole)
    assert folder.damage() is None


def test_a_marker_that_says_nothing_is_damage(tmp_path: Path, forgotten: dict[Path, int]) -> None:
    folder = finished(tmp_path)
    for text in ("", "{}", '{"files": ', "[1]"):
        forgotten.clear()
        (folder.path / "DONE").write_text(text)
        assert folder.damage() == "DONE cannot be read"
    (folder.path / "DONE").unlink()
    assert folder.damage() is None
    assert not folder.done


def test_cells_of_earlier_versions_count_where_their_records_can_be_read(
    tmp_path: Path, forgotten: dict[Path, int]
) -> None:
    folder = finished(tmp_path)
    (folder.path / "DONE").write_text("0123456789abcdef\n")
    forgotten.clear()
    assert folder.done
    records = folder.path / "records.parquet"
    records.write_bytes(records.read_bytes()[:-5])
    forgotten.clear()
    assert folder.damage() == "records.parquet cannot be read"


def test_files_are_read_once_a_process(
    tmp_path: Path, forgotten: dict[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished(tmp_path)
    read: list[str] = []
    real = cells.file_hash

    def counted(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(cells, "file_hash", counted)
    assert folder.done
    assert not read, "what this process wrote is known"
    forgotten.clear()
    assert all(CellFolder(tmp_path, CELL).done for _ in range(5))
    assert sorted(read) == ["cell.json", "head.safetensors", "records.parquet"]
