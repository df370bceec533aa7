"""Running a job: its cells one after the other, each held against other processes, noted, and made sure of."""

from __future__ import annotations

import errno
import re
import traceback
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import CellsFailedError, RewardGapError, StorageError
from rewardgap.core.records import pair_to_json
from rewardgap.core.store import write_text
from rewardgap.data.base import PreferenceDataset
from rewardgap.studies import journal
from rewardgap.studies.cells import ERROR
from rewardgap.studies.folders import held
from rewardgap.studies.jobs import PREPARE, STAGES
from rewardgap.studies.workbench import deal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rewardgap.studies.cells import Cell
    from rewardgap.studies.jobs import Job, Step
    from rewardgap.studies.plan import Plan
    from rewardgap.studies.workbench import StudyPairs, Workbench

LOG_CHARACTERS = 4000
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "the disk is read-only"}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@dataclass
class Outcome:
    """What came of a job.

    Attributes:
        computed: ids of the cells that were computed.
        failures: cell, title, error and log of each cell that failed.
        notes: sentences for the results.
    """

    computed: list[str] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return asdict(self)


def run_job(bench: Workbench, plan: Plan, job: Job) -> Outcome:
    """Run what is left of a job; a cell that fails is noted, and the others go on.

    Raises:
        RewardGapError: if nothing of the study can be run: prompts that leave no room, texts that cannot be paired.
        StorageError: if nothing can be written any more.
    """
    outcome = Outcome()
    if not all(bench.folder(cell).done for cell in job.of):
        return outcome
    if job.kind != "pairing" and bench.pairs is None:
        bench.pairs = dealt(bench, plan)
    with writable(bench.root):
        if job.kind in PREPARE:
            PREPARE[job.kind](bench, *job.rest)
        for step in job.steps:
            run_cell(bench, step, outcome)
    if job.kind == "pairing" and outcome.failures:
        raise CellsFailedError(f"the texts could not be paired: {outcome.failures[0]['error']}.")
    return outcome


def run_cell(bench: Workbench, step: Step, outcome: Outcome) -> None:
    """Run a cell unless it is finished or cannot be, and note what came of it."""
    cell, folder = step.cell, bench.folder(step.cell)
    if folder.done:
        return
    missing = [need.title for need in cell.needs if not bench.folder(need).done]
    if missing:
        outcome.failures.append(failure(cell, f"needs '{missing[0]}', which failed"))
        return
    with held(bench.root, cell.id):
        if folder.done:
            return
        damage = folder.damage()
        if damage is not None:
            bench.progress.say(f"  {cell.title}: damaged on disk ({damage}); computing it again.")
            outcome.notes.append(f"'{cell.title}' was damaged on disk ({damage}) and was computed again.")
            journal.note(bench.root, "damaged", cell)
            folder.clear()
        journal.note(bench.root, "start", cell)
        try:
            STAGES[cell.kind](bench, cell, *step.rest)
        except Exception as error:
            if storage_problem(error) or (isinstance(error, RewardGapError) and cell.kind == "pairing"):
                raise
            sentence = str(error) if isinstance(error, RewardGapError) else f"{type(error).__name__}: {error}"
            log = without_folders(traceback.format_exc())
            outcome.failures.append(failure(cell, without_folders(sentence), log))
            write_text(folder.path / ERROR, log)
            journal.note(bench.root, "failed", cell)
            bench.progress.say(f"  {cell.title}: failed, {sentence}")
        else:
            outcome.computed.append(cell.id)
            journal.note(bench.root, "end", cell)


def failure(cell: Cell, error: str, log: str = "") -> dict[str, str]:
    """Return the note of a cell that failed; of its log the end, where the cause stands."""
    return {"cell": cell.id, "title": cell.title, "error": error, **({"log": log[-LOG_CHARACTERS:]} if log else {})}


def dealt(bench: Workbench, plan: Plan) -> StudyPairs:
    """Return the pairs of a study, dealt out; those of a pairing cell that is done, or those the data are."""
    if plan.pairing is not None:
        return deal(bench.split, bench.folder(plan.pairing).records())
    assert isinstance(bench.dataset, PreferenceDataset)
    return deal(bench.split, [pair_to_json(pair) for pair in bench.dataset.pairs])


@contextmanager
def writable(root: Path) -> Iterator[None]:
    """Turn a full disk, or one that cannot be written to, into one sentence.

    Raises:
        StorageError: saying what to do.
    """
    try:
        yield
    except Exception as error:
        problem = storage_problem(error)
        if problem is None or isinstance(error, StorageError):
            raise
        raise StorageError(
            f"cannot write results to '{root}' or to the cache: {problem}. Make room, or give another folder with "
            "--output or REWARDGAP_CACHE; what was finished is kept, and the same command goes on from there."
        ) from error


def storage_problem(error: BaseException | None) -> str | None:
    """Return what is wrong with the disk, where that is what an error is about; None for every other error."""
    if error is None:
        return None
    if isinstance(error, StorageError):
        return str(error)
    number = error.errno if isinstance(error, OSError) else None
    # Libraries that are not written in Python name the system's error in their own.
    named = _OS_ERROR.search(str(error))
    found = _FULL.get(number or 0) or _FULL.get(int(named.group(1)) if named else 0)
    return found or storage_problem(error.__cause__)


def without_folders(text: str) -> str:
    """Return a text with every absolute path cut to its last part: artefacts name no folder of a machine."""
    return re.sub(r"""(?<![\w.])[/\\](?:[^\s'":/\\]+[/\\])+""", "", text)
