"""Points and workers that share a folder, a full disk named, a damaged cell computed again, a failure with its log."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import call, refused

from rewardgap.core.errors import DataError, RewardGapError, StorageError, UnknownNameError
from rewardgap.studies import cells, jobs, journal, running
from rewardgap.studies.aggregate import aggregate
from rewardgap.studies.executors.array import Member
from rewardgap.studies.executors.line import Line
from rewardgap.studies.executors.worker import Worker, orders, outcome_of
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import Finished, run_points, run_study
from several import STUDY, Said, records, run, study


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("alone") / "run", patch)


def test_points_share_cells_and_have_the_numbers_of_runs_of_their_own(
    alone: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    wider = study(deployments=[*STUDY["deployments"], {"decoder": "args_greedy", "guidance_weight": 3, "top_k": 3}])
    first, second = run_points([study(), wider], tmp_path / "run", Silent())
    assert records(first) == records(alone)
    assert first.computed == len(first.plan.cells())
    # Two reward models at one more weight; each is compared by one metric and judged by two.
    assert second.computed == 2 * (1 + 1 + 2)
    shared = {cell.id for cell in first.plan.cells()} & {cell.id for cell in second.plan.cells()}
    assert len(shared) == len(first.plan.cells())
    again = run_points([study(), wider], tmp_path / "run", Silent())
    assert [finished.computed for finished in again] == [0, 0]


def test_members_of_an_array_share_a_folder(alone: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    both: list[Finished] = []

    def work(number: int) -> None:
        both.append(run_study(study(), tmp_path / "run", Silent(), Member(number, 2)))

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(both) == 2
    assert records(both[0]) == records(alone)
    assert sum(finished.computed for finished in both) == len(alone.plan.cells())
    starts = [line["cell"] for line in journal.read(tmp_path / "run") if line["event"] == "start"]
    assert len(starts) == len(set(starts)) == len(alone.plan.cells())


@pytest.mark.parametrize("error", [DataError("too long"), StorageError("full"), UnknownNameError("metric", "x", ["y"])])
def test_an_error_that_ends_a_study_comes_back_from_a_worker(
    error: RewardGapError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise error

    monkeypatch.setitem(jobs.PREPARE, "check", refuses)
    told = json.loads(json.dumps(orders(Line([study()], tmp_path, Silent()), 1)))
    worker = Worker(told, lambda text: None)
    key = next(key for key, job in worker.line.jobs.items() if job.kind == "check")
    with pytest.raises(RewardGapError, match=str(error)) as found:
        outcome_of(json.loads(json.dumps(worker.run(key))))
    assert found.value.exit_code == error.exit_code


def test_a_damaged_cell_is_named_and_computed_again(
    alone: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    first = run(root, monkeypatch)
    _, fit = first.plan.rewards[0]
    _, written, _ = first.plan.written[0]
    (root / "cells" / fit.id / "model" / "head.safetensors").write_bytes(b"rotten")
    (root / "cells" / written.id / "records.parquet").unlink()
    monkeypatch.setattr(cells, "_PROVEN", {})
    said = Said()
    again = run_study(study(), root, said)
    assert again.computed == 2
    assert sorted(again.notes) == [
        "'fit global_bt' was damaged on disk (model/head.safetensors is not what was written) and was computed again.",
        "'zero_shot' was damaged on disk (records.parquet is missing) and was computed again.",
    ]
    assert set(again.notes) <= set(aggregate(again, "x").notes)
    assert sum("damaged on disk" in line for line in said.lines) == 2
    assert records(again) == records(alone)
    assert [line["cell"] for line in journal.read(root) if line["event"] == "damaged"] == [fit.id, written.id]


def test_the_log_of_a_failure_travels_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> None:
        raise ValueError("x" * 5000 + f" in {tmp_path}/somewhere/file")

    monkeypatch.setitem(jobs.STAGES, "behaviour", breaks)
    finished = run(tmp_path / "run", monkeypatch)
    assert {failure["title"] for failure in finished.failures} == {
        f"rouge1 of {cell.title}" for _, cell, _ in finished.plan.written
    }
    for failure in finished.failures:
        assert failure["log"].endswith("x in file\n")
        assert len(failure["log"]) == running.LOG_CHARACTERS
        assert str(tmp_path) not in failure["log"]


def test_what_the_system_says_of_a_disk_is_known_in_any_library() -> None:
    def led_to_by(error: Exception) -> Exception:
        try:
            raise RuntimeError("could not be kept") from error
        except RuntimeError as other:
            return other

    full, read_only = "the disk is full", "the disk is read-only"
    assert running.storage_problem(OSError(28, "No space left on device")) == full
    assert running.storage_problem(OSError(30, "Read-only file system")) == read_only
    assert running.storage_problem(RuntimeError("I/O error: No space left on device (os error 28)")) == full
    assert running.storage_problem(led_to_by(led_to_by(OSError(28, "full")))) == full
    for other in (OSError(2, "No such file"), RuntimeError("(os error 2)"), ValueError("28"), led_to_by(KeyError(28))):
        assert running.storage_problem(other) is None


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of a fit: no other cell is tried, what was finished stays, and the run goes on."""
    calls = 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(jobs.STAGES, "reward_model", full)
        with pytest.raises(StorageError, match="the disk is full"):
            run(tmp_path / "run", patch)
    assert calls == 1
    finished = run(tmp_path / "run", monkeypatch)
    assert not finished.failures
    assert finished.computed == len(finished.plan.cells()) - 1, "the check of the data was finished"


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    assert "give --executor ray" in refused(2, "run", path, "--address", "auto")
    assert "neither --jobs" in refused(2, "run", path, "--worker", "1/2", "--jobs", 2)
    assert "of the form I/N" in refused(2, "run", path, "--worker", "x", "--output", tmp_path / "out", "--threads", 1)
    assert "numbered from 1 to 2" in refused(2, "run", path, "--worker", "3/2", "--output", tmp_path / "out")
    assert call("run", path, "--executor", "cloud").exit_code == 2
