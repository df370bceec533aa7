"""The journal of a results folder: a kill costs the line in flight and no other; several processes may write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core import store
from rewardgap.studies import journal
from rewardgap.studies.cells import Cell
from rewardgap.studies.folders import held

if TYPE_CHECKING:
    from pathlib import Path

CELLS = [Cell("deployment", {"number": number}, f"number {number}") for number in range(4)]


@given(cut=st.integers(0, 400))
def test_a_torn_line_is_the_only_one_lost(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("run")
    for cell in CELLS[:3]:
        journal.note(root, "start", cell)
    path = root / journal.JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    kept = whole[: min(cut, len(whole))].count(b"\n")
    journal.note(root, "end", CELLS[3], more="said")
    found = [(line["event"], line["cell"]) for line in journal.read(root)]
    # A cut right before the line's end loses nothing of it.
    torn = [line for line in whole[: min(cut, len(whole))].split(b"\n")[kept:] if line]
    assert found[:kept] == [("start", cell.id) for cell in CELLS[:kept]]
    assert found[-1] == ("end", CELLS[3].id)
    assert len(found) == kept + 1 + sum(_reads(line) for line in torn)


def _reads(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def test_processes_write_whole_lines(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rewardgap.studies import journal; from rewardgap.studies.cells import Cell\n"
        "for n in range(60): journal.note(Path(sys.argv[1]), 'start', Cell('deployment', {'n': n}, 'x'), who=sys.argv[2] * 50)"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [process.wait() for process in started] == [0, 0]
    lines = journal.read(tmp_path)
    assert sorted(line["who"][0] for line in lines) == ["a"] * 60 + ["b"] * 60


def test_what_one_holds_another_does_not(tmp_path: Path) -> None:
    with held(tmp_path, "x") as mine, held(tmp_path, "x", wait=False) as other, held(tmp_path, "y", wait=False) as free:
        assert (mine, other, free) == (True, False, True)
    with held(tmp_path, "x", wait=False) as again:
        assert again


@pytest.mark.parametrize("write", ["bytes", "lines"])
def test_an_interrupt_waits_for_the_write_in_flight(
    write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, 0

    def interrupted(handle: int) -> None:
        nonlocal calls
        calls += 1
        os.kill(os.getpid(), signal.SIGINT)
        real(handle)

    monkeypatch.setattr(store.os, "fsync", interrupted)
    path = tmp_path / "file"
    work: Any = {
        "bytes": lambda: store.write_bytes(path, b"all of it\n"),
        "lines": lambda: store.append_lines(path, [{}]),
    }
    # In the background of a shell interrupts are ignored, unless one asks for them.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            work[write]()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls
    assert path.read_bytes() == {"bytes": b"all of it\n", "lines": b"{}\n"}[write]
    assert [child.name for child in tmp_path.iterdir()] == ["file"]
