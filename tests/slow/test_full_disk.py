"""A study on a disk that is full, and on one that is read-only: one sentence, nothing lost, and it goes on afterwards."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from rewardgap.studies import cells
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import run_study
from several import STUDY, records, run, study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow
SENTENCE = "cannot write results to '{}' or to the cache: {}. Make room, or give another folder"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Mount a small disk at `disk` under the test's folder; the function mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> None:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"this test may not mount: {made.stderr.strip()}")

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("room", ["60k", "100k"])
def test_a_full_disk(
    jobs: int, room: str, tmp_path: Path, disk: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(f"size={room}")
    root, path = tmp_path / "disk" / "run", tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-c", "from rewardgap.cli.app import main; main()", "run", str(path), "-o", str(root)]
    full = subprocess.run([*command, "--threads", "1", "--jobs", str(jobs)], capture_output=True, text=True)
    assert full.returncode == 1, full.stderr
    assert SENTENCE.format(root, "the disk is full") in " ".join(full.stderr.split())
    assert "Traceback" not in full.stderr
    finished = {marker.parent.name: marker.stat().st_mtime_ns for marker in root.glob("cells/*/DONE")}
    assert finished
    disk("remount,size=50m")
    monkeypatch.setattr(cells, "_PROVEN", {})
    again = run_study(study(), root, Silent())
    assert not again.failures
    assert not again.notes, "what was finished is whole"
    assert again.computed == len(again.plan.cells()) - len(finished)
    assert {name: (root / "cells" / name / "DONE").stat().st_mtime_ns for name in finished} == finished
    assert records(again) == records(run(tmp_path / "plain", monkeypatch))


def test_a_read_only_disk(tmp_path: Path, disk: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    disk("size=50m")
    root, path = tmp_path / "disk" / "run", tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    root.mkdir()
    disk("remount,ro")
    command = [sys.executable, "-c", "from rewardgap.cli.app import main; main()", "run", str(path), "-o", str(root)]
    refused = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert SENTENCE.format(root, "the disk is read-only") in " ".join(refused.stderr.split())
