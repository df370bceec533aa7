"""The straight line of a study: plan the cells, run those that are not finished, add the records up."""

from __future__ import annotations

import fcntl
import re
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from rewardgap.core.errors import CellsFailedError, ConfigError, RewardGapError
from rewardgap.core.records import pair_to_json
from rewardgap.core.store import write_json, write_text
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.catalog import DATASETS
from rewardgap.decoding.catalog import DECODERS
from rewardgap.metrics.catalog import METRICS
from rewardgap.policies.catalog import POLICIES
from rewardgap.retrieval.catalog import RETRIEVERS
from rewardgap.rewards.catalog import REWARD_MODELS, build_head
from rewardgap.studies import controls, stages
from rewardgap.studies.cells import Cell
from rewardgap.studies.environment import environment
from rewardgap.studies.spec import expand
from rewardgap.studies.workbench import Workbench, deal, shown_name, split_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rewardgap.studies.progress import Progress
    from rewardgap.studies.spec import Deployment, RewardModelSpec, StudySpec


@dataclass
class Plan:
    """Every cell of a study, by role.

    Attributes:
        pairing: makes the pairs; None where the data are pairs already.
        rewards: (settings, cell) of each reward model.
        written: (deployment, cell, cell of its reward model) of each deployment.
        behaviour: (written cell, metric) -> cell.
        judgements: (written cell, index of the judge in `rewards`) -> cell.
        shuffled: (settings, cell) of each shuffled-label control.
        synthetic: the control on synthetic text.
    """

    pairing: Cell | None = None
    rewards: list[tuple[RewardModelSpec, Cell]] = field(default_factory=list)
    written: list[tuple[Deployment, Cell, Cell | None]] = field(default_factory=list)
    behaviour: dict[tuple[str, str], Cell] = field(default_factory=dict)
    judgements: dict[tuple[str, int], Cell] = field(default_factory=dict)
    shuffled: list[tuple[RewardModelSpec, Cell]] = field(default_factory=list)
    synthetic: Cell | None = None

    def cells(self) -> list[Cell]:
        """Return every cell in an order that respects needs."""
        firsts = [self.pairing] if self.pairing else []
        lasts = [self.synthetic] if self.synthetic else []
        return [
            *firsts,
            *(cell for _, cell in self.rewards),
            *(cell for _, cell, _ in self.written),
            *self.behaviour.values(),
            *self.judgements.values(),
            *(cell for _, cell in self.shuffled),
            *lasts,
        ]


@dataclass
class Finished:
    """A study after its run: where everything is, what failed, and how many cells had to be computed."""

    bench: Workbench
    plan: Plan
    failures: list[dict[str, str]]
    computed: int


def check_names(study: StudySpec) -> None:
    """Refuse unknown names and options before anything is loaded.

    Raises:
        UnknownNameError: naming the nearest known one.
        ConfigError: for options that a method does not have.
    """
    DATASETS[study.data.name]
    for spec in study.reward_models:
        REWARD_MODELS[spec.method]
        build_head(spec.method, **spec.options)
    for deployment in expand(study):
        if deployment.kind == "policy":
            POLICIES[deployment.name]
            if deployment.retriever is not None:
                RETRIEVERS[deployment.retriever]
        elif not DECODERS[deployment.name].guided:
            raise ConfigError(f"decoder '{deployment.name}' takes no reward model; use policy: zero_shot.")
    for metric in study.metrics:
        if METRICS[metric].stage != "behaviour":
            raise ConfigError(f"metric '{metric}' belongs to another stage; under metrics list behaviour metrics only.")
        METRICS[metric].build()


def make_plan(bench: Workbench) -> Plan:
    """Lay out every cell of a study."""
    study, plan = bench.study, Plan()
    common = {"seed": study.seed, "split": split_hash(bench.split), "data": bench.dataset.fingerprint()}
    lengths = study.generation.model_dump() | {"first_line": bench.dataset.first_line}
    needs: tuple[Cell, ...] = ()
    if isinstance(bench.dataset, AuthoredDataset):
        key = {
            **common,
            **study.pairing.model_dump(),
            "lengths": lengths,
            "template": bench.dataset.prompt_template,
            "policy": bench.policy.fingerprint,
        }
        plan.pairing = Cell("pairing", key, f"pair the texts ({study.pairing.rule})")
        needs = (plan.pairing,)
    for spec in study.reward_models:
        backbone = bench.reward_backbone(spec)
        limit = [bench.limit.max_tokens, bench.limit.on_long]
        key = {**common, **spec.model_dump(exclude={"backbone"}), "backbone": backbone.fingerprint, "limit": limit}
        plan.rewards.append((spec, Cell("reward_model", key, f"fit {_title(spec)}", needs)))
    fitted = {spec.model_dump_json(): cell for spec, cell in plan.rewards}
    for deployment in expand(study):
        model = deployment.reward_model
        reward = fitted[model.model_dump_json()] if model else None
        key = {
            **common,
            **deployment.model_dump(exclude={"reward_model"}),
            "policy": bench.policy.fingerprint,
            "lengths": lengths,
        }
        cell = Cell("deployment", key, deployment_title(deployment), (*needs, *((reward,) if reward else ())))
        plan.written.append((deployment, cell, reward))
    has_references = _has_references(bench)
    signatures = {name: METRICS[name].build().signature for name in study.metrics} if has_references else {}
    for _, cell, _ in plan.written:
        for name in study.metrics if has_references else ():
            key = {"metric": name, "signature": signatures[name]}
            plan.behaviour[cell.id, name] = Cell("behaviour", key, f"{name} of {cell.title}", (cell,))
        for index, (spec, judge) in enumerate(plan.rewards):
            plan.judgements[cell.id, index] = Cell(
                "judgement", {"judge": spec.method}, f"{_title(spec)} judges {cell.title}", (cell, judge)
            )
    draws = study.controls.shuffled_labels
    for spec, cell in plan.rewards:
        if draws and spec.fit_mode == "frozen":
            key = {**cell.key, "draws": draws}
            plan.shuffled.append((spec, Cell("shuffled", key, f"shuffled labels, {_title(spec)}", needs)))
    if study.controls.synthetic_text:
        frozen = [spec.model_dump() for spec in study.reward_models if spec.fit_mode == "frozen"]
        plan.synthetic = Cell("synthetic_text", {"seed": study.seed, "rewards": frozen}, "control: synthetic_text")
    return plan


def run_study(study: StudySpec, root: Path, progress: Progress) -> Finished:
    """Run a study into a folder; finished cells are found, not repeated.

    Args:
        study: what to run.
        root: the results folder.
        progress: where progress goes.

    Raises:
        ConfigError: if the folder belongs to another study, or another run is at work in it.
    """
    check_names(study)
    _claim(study, root)
    with _locked(root):
        bench = Workbench(study, root, progress)
        bench.split.save(root / "splits" / f"{split_hash(bench.split)}.json")
        write_json(root / "env.json", environment())
        plan = make_plan(bench)
        runner = _Runner(bench)
        if plan.pairing is not None:
            runner.run(plan.pairing, lambda cell: stages.run_pairing(bench, cell))
            if not bench.folder(plan.pairing).done:
                raise CellsFailedError(f"the texts could not be paired: {runner.failures[0]['error']}.")
            bench.pairs = deal(bench.split, bench.folder(plan.pairing).records())
        elif isinstance(bench.dataset, PreferenceDataset):
            bench.pairs = deal(bench.split, [pair_to_json(pair) for pair in bench.dataset.pairs])
        stages.check_prompts(bench)
        for spec, cell in plan.rewards:
            runner.run(cell, lambda cell, spec=spec: stages.run_reward_model(bench, cell, spec))  # type: ignore[misc]
        for deployment, cell, reward in plan.written:
            runner.run(
                cell,
                lambda cell, d=deployment, r=reward: stages.run_deployment(bench, cell, d, r),  # type: ignore[misc]
            )
        written = [cell for _, cell, _ in plan.written if bench.folder(cell).done]
        for cell in written:
            for name in study.metrics:
                scored = plan.behaviour.get((cell.id, name))
                if scored is not None:
                    runner.run(
                        scored,
                        lambda scored, cell=cell, name=name: stages.run_behaviour(bench, scored, cell, name),  # type: ignore[misc]
                        quiet=True,
                    )
        open_judgements = [c for c in plan.judgements.values() if not bench.folder(c).done]
        if open_judgements:
            stages.encode_written(bench, written, [spec for spec, cell in plan.rewards if bench.folder(cell).done])
        for cell in written:
            for index, (spec, judge) in enumerate(plan.rewards):
                runner.run(
                    plan.judgements[cell.id, index],
                    lambda j, cell=cell, judge=judge, spec=spec: stages.run_judgement(bench, j, cell, judge, spec),  # type: ignore[misc]
                    quiet=True,
                )
        for spec, cell in plan.shuffled:
            runner.run(
                cell,
                lambda cell, spec=spec: controls.run_shuffled(bench, cell, spec, study.controls.shuffled_labels),  # type: ignore[misc]
            )
        if plan.synthetic is not None:
            runner.run(plan.synthetic, lambda cell: controls.run_synthetic_text(bench, cell))
        return Finished(bench, plan, runner.failures, runner.computed)


class _Runner:
    """Runs cells that are not finished; a cell that fails is noted, and the others go on."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.failures: list[dict[str, str]] = []
        self.computed = 0

    def run(self, cell: Cell, stage: Callable[[Cell], None], *, quiet: bool = False) -> None:
        folder = self.bench.folder(cell)
        if folder.done:
            return
        missing = [need.title for need in cell.needs if not self.bench.folder(need).done]
        if missing:
            self.failures.append({"cell": cell.id, "title": cell.title, "error": f"needs '{missing[0]}', which failed"})
            return
        try:
            stage(cell)
        except Exception as error:
            if isinstance(error, RewardGapError) and cell.kind == "pairing":
                raise
            sentence = str(error) if isinstance(error, RewardGapError) else f"{type(error).__name__}: {error}"
            self.failures.append({"cell": cell.id, "title": cell.title, "error": sentence})
            # A traceback names files by their folders on this machine; artefacts name none.
            trace = re.sub(r'File "[^"\n]*[/\\]', 'File "', traceback.format_exc())
            write_text(folder.path / "error.txt", trace)
            self.bench.progress.say(f"  {cell.title}: failed, {sentence}")
        else:
            self.computed += 1


def deployment_title(deployment: Deployment) -> str:
    """Return a short name of a deployment for progress."""
    if deployment.reward_model is None:
        return deployment.name if deployment.shots is None else f"{deployment.name} {deployment.shots}"
    weight = f"λ={deployment.guidance_weight:g} k={deployment.top_k}"
    return f"{_title(deployment.reward_model)} · {deployment.name} {weight}"


def _title(spec: RewardModelSpec) -> str:
    return spec.method if spec.fit_mode == "frozen" else f"{spec.method} ({spec.fit_mode})"


def _has_references(bench: Workbench) -> bool:
    if isinstance(bench.dataset, AuthoredDataset):
        return True
    return any(pair.reference for pair in bench.dataset.pairs)


def _claim(study: StudySpec, root: Path) -> None:
    """Write the resolved study, unless the folder holds another one."""
    path = root / "study.yaml"
    if path.exists():
        held = _held_name(path)
        if held != study.name:
            raise ConfigError(
                f"folder '{root}' holds the results of study '{held}', not of '{study.name}'. "
                "Choose another folder with --output."
            )
    elif root.exists() and any(child.name != ".lock" for child in root.iterdir()):
        raise ConfigError(f"folder '{root}' is not empty and holds no study. Choose another folder with --output.")
    write_text(path, study_yaml(study))


def _held_name(path: Path) -> str:
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(held["name"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"'{path}' is no resolved study, so whose results these are is not known. "
                          "Choose another folder with --output.") from error  # fmt: skip


def study_yaml(study: StudySpec) -> str:
    """Return a study with every default written out, and of every path its last part only."""

    def masked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: masked(item) for key, item in value.items()}
        if isinstance(value, list):
            return [masked(item) for item in value]
        is_path = isinstance(value, str) and value.startswith(("/", "~"))
        return shown_name(value) if is_path else value

    return yaml.safe_dump(masked(study.model_dump()), sort_keys=False, allow_unicode=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with (root / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run is at work in '{root}'. Wait for it, or choose another --output.") from None
        yield
