"""The straight line of a study: plan the cells, run those that are not finished, add the records up."""

from __future__ import annotations

import re
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import CellsFailedError, RewardGapError
from rewardgap.core.records import pair_to_json
from rewardgap.core.store import write_json, write_text
from rewardgap.data.base import PreferenceDataset
from rewardgap.studies import controls, stages
from rewardgap.studies.environment import environment
from rewardgap.studies.folders import claim, locked, refuse_strangers
from rewardgap.studies.plan import Plan, check_names, make_plan
from rewardgap.studies.workbench import Workbench, deal, split_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rewardgap.studies.cells import Cell
    from rewardgap.studies.progress import Progress
    from rewardgap.studies.spec import StudySpec
    from rewardgap.studies.workbench import StudyPairs


@dataclass
class Finished:
    """A study after its run: where everything is, what failed, and how many cells had to be computed."""

    bench: Workbench
    plan: Plan
    failures: list[dict[str, str]]
    computed: int


def run_study(study: StudySpec, root: Path, progress: Progress) -> Finished:
    """Run a study into a folder; finished cells are found, not repeated.

    Args:
        study: what to run.
        root: the results folder.
        progress: where progress goes.

    Raises:
        ConfigError: if the folder belongs to another study, or another run is at work in it.
    """
    with opened(study, root, progress) as bench:
        plan = make_plan(bench)
        runner = _Runner(bench)
        if plan.pairing is not None:
            runner.run(plan.pairing, stages.run_pairing)
            if not bench.folder(plan.pairing).done:
                raise CellsFailedError(f"the texts could not be paired: {runner.failures[0]['error']}.")
        bench.pairs = dealt(bench, plan)
        stages.check_prompts(bench)
        if plan.check is not None:
            runner.run(plan.check, stages.run_data_check)
        for spec, cell in plan.rewards:
            runner.run(cell, stages.run_reward_model, spec)
        for deployment, cell, reward in plan.written:
            runner.run(cell, stages.run_deployment, deployment, reward)
        written = {cell.id: cell for _, cell, _ in plan.written if bench.folder(cell).done}
        for (owner, name), cell in plan.behaviour.items():
            if owner in written:
                runner.run(cell, stages.run_behaviour, written[owner], name)
        judged = {key: cell for key, cell in plan.judgements.items() if key[0] in written}
        if not all(bench.folder(cell).done for cell in judged.values()):
            judges = [spec for spec, cell in plan.rewards if bench.folder(cell).done]
            stages.encode_written(bench, list(written.values()), judges)
        for (owner, index), cell in judged.items():
            spec, judge = plan.rewards[index]
            runner.run(cell, stages.run_judgement, written[owner], judge, spec)
        for spec, cell in plan.shuffled:
            runner.run(cell, controls.run_shuffled, spec, study.controls.shuffled_labels)
        if plan.synthetic is not None:
            runner.run(plan.synthetic, controls.run_synthetic_text)
        for spec, cell in plan.planted:
            runner.run(cell, controls.run_synthetic_swap, controls.swap_spec(spec))
        if runner.computed:
            write_json(root / "env.json", environment())
        return Finished(bench, plan, runner.failures, runner.computed)


@contextmanager
def opened(study: StudySpec, root: Path, progress: Progress) -> Iterator[Workbench]:
    """Keep a results folder for this process and this study, and yield its workbench.

    Raises:
        ConfigError: if the folder belongs to another study, or another run is at work in it.
    """
    check_names(study)
    refuse_strangers(root)
    with locked(root):
        claim(study, root)
        bench = Workbench(study, root, progress)
        bench.split.save(root / "splits" / f"{split_hash(bench.split)}.json")
        if not (root / "env.json").exists():
            write_json(root / "env.json", environment())
        yield bench


def dealt(bench: Workbench, plan: Plan) -> StudyPairs:
    """Return the pairs of a study, dealt out; those of a pairing cell that is done, or those the data are."""
    if plan.pairing is not None:
        return deal(bench.split, bench.folder(plan.pairing).records())
    assert isinstance(bench.dataset, PreferenceDataset)
    return deal(bench.split, [pair_to_json(pair) for pair in bench.dataset.pairs])


class _Runner:
    """Runs cells that are not finished; a cell that fails is noted, and the others go on."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.failures: list[dict[str, str]] = []
        self.computed = 0

    def run(self, cell: Cell, stage: Callable[..., None], *rest: Any) -> None:
        folder = self.bench.folder(cell)
        if folder.done:
            return
        missing = [need.title for need in cell.needs if not self.bench.folder(need).done]
        if missing:
            self.failures.append({"cell": cell.id, "title": cell.title, "error": f"needs '{missing[0]}', which failed"})
            return
        try:
            stage(self.bench, cell, *rest)
        except Exception as error:
            if isinstance(error, RewardGapError) and cell.kind == "pairing":
                raise
            sentence = str(error) if isinstance(error, RewardGapError) else f"{type(error).__name__}: {error}"
            self.failures.append({"cell": cell.id, "title": cell.title, "error": without_folders(sentence)})
            write_text(folder.path / "error.txt", without_folders(traceback.format_exc()))
            self.bench.progress.say(f"  {cell.title}: failed, {sentence}")
        else:
            (folder.path / "error.txt").unlink(missing_ok=True)
            self.computed += 1


def without_folders(text: str) -> str:
    """Return a text with every absolute path cut to its last part: artefacts name no folder of a machine."""
    return re.sub(r"""(?<![\w.])[/\\](?:[^\s'":/\\]+[/\\])+""", "", text)
