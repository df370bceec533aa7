"""The straight line of a study: plan the cells, run those that are not finished, add the records up."""

from __future__ import annotations

import fcntl
import re
import traceback
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from rewardgap.backbones.lora import LoraSettings
from rewardgap.backbones.serving import is_served
from rewardgap.core.errors import CellsFailedError, ConfigError, RewardGapError
from rewardgap.core.records import pair_to_json
from rewardgap.core.store import write_json, write_text
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.catalog import DATASETS
from rewardgap.decoding.catalog import DECODERS
from rewardgap.metrics.catalog import METRICS
from rewardgap.policies.catalog import POLICIES
from rewardgap.retrieval.catalog import RETRIEVERS
from rewardgap.rewards.catalog import build_head
from rewardgap.rewards.model import check_fit_settings
from rewardgap.studies import controls, stages
from rewardgap.studies.cells import Cell
from rewardgap.studies.deployments import expand
from rewardgap.studies.environment import environment
from rewardgap.studies.methods import METHODS, config_of, steers
from rewardgap.studies.served import check_served
from rewardgap.studies.workbench import Workbench, deal, retriever_of, shown_name, split_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rewardgap.studies.deployments import Deployment
    from rewardgap.studies.progress import Progress
    from rewardgap.studies.spec import RewardModelSpec, StudySpec
    from rewardgap.studies.workbench import StudyPairs


@dataclass
class Plan:
    """Every cell of a study, by role.

    Attributes:
        pairing: makes the pairs; None where the data are pairs already.
        check: what the pairs can show, found without a language model.
        rewards: (settings, cell) of each reward model.
        written: (deployment, cell, cell of its reward model) of each deployment.
        behaviour: (written cell, metric) -> cell.
        judgements: (written cell, index of the judge in `rewards`) -> cell.
        shuffled: (settings, cell) of each shuffled-label control.
        synthetic: the control on synthetic text: oracle guidance.
        planted: (settings, cell) of each swap test on synthetic text.
    """

    pairing: Cell | None = None
    check: Cell | None = None
    rewards: list[tuple[RewardModelSpec, Cell]] = field(default_factory=list)
    written: list[tuple[Deployment, Cell, Cell | None]] = field(default_factory=list)
    behaviour: dict[tuple[str, str], Cell] = field(default_factory=dict)
    judgements: dict[tuple[str, int], Cell] = field(default_factory=dict)
    shuffled: list[tuple[RewardModelSpec, Cell]] = field(default_factory=list)
    synthetic: Cell | None = None
    planted: list[tuple[RewardModelSpec, Cell]] = field(default_factory=list)

    def cells(self) -> list[Cell]:
        """Return every cell in an order that respects needs."""
        firsts = [cell for cell in (self.pairing, self.check) if cell]
        lasts = [self.synthetic] if self.synthetic else []
        return [
            *firsts,
            *(cell for _, cell in self.rewards),
            *(cell for _, cell, _ in self.written),
            *self.behaviour.values(),
            *self.judgements.values(),
            *(cell for _, cell in self.shuffled),
            *lasts,
            *(cell for _, cell in self.planted),
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
    check_served(study)
    for spec in study.reward_models:
        config_of(METHODS[spec.method], spec.options)
        if steers(spec.method):
            build_head(spec.method, **spec.options)
            check_fit_settings(spec.method, spec.mode or "frozen", spec.epochs, spec.batch_size, spec.learning_rate)
        elif spec.fit_mode or spec.epochs or spec.batch_size or spec.learning_rate:
            raise ConfigError(
                f"{spec.method} is not fitted; it takes no fit_mode, epochs, batch_size or learning_rate."
            )
    for deployment in expand(study):
        if deployment.kind == "policy":
            if POLICIES[deployment.name].retriever is None and (deployment.shots is not None or deployment.retriever):
                raise ConfigError(
                    f"{deployment.name} takes neither num_demonstrations nor retriever; use icl or icl_rag."
                )
            if deployment.retriever is not None:
                RETRIEVERS[deployment.retriever]
            config_of(POLICIES[deployment.name], deployment.options)
        elif not DECODERS[deployment.name].guided:
            raise ConfigError(f"decoder '{deployment.name}' takes no reward model; use policy: zero_shot.")
        else:
            deployment.decoder()
    for spec in {model.name: model for model in study.reward_models}.values():
        same = [model for model in study.reward_models if model.name == spec.name]
        if len(same) > 1:
            raise ConfigError(f"{len(same)} reward models are called '{spec.name}'; give each a label of its own.")
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
    plan.check = Cell("data_check", common, "check the data", needs)
    for spec in study.reward_models:
        backbone = bench.reward_backbone(spec)
        limit = [bench.limit.max_tokens, bench.limit.on_long]
        key = {**common, **reward_key(spec), "backbone": backbone.fingerprint, "limit": limit}
        plan.rewards.append((spec, Cell("reward_model", key, f"fit {_title(spec)}", needs)))
    fitted = {spec.model_dump_json(): cell for spec, cell in plan.rewards}
    for deployment in expand(study):
        model = deployment.reward_model
        reward = fitted[model.model_dump_json()] if model else None
        retriever = retriever_of(deployment)
        options = deployment.options if model else config_of(POLICIES[deployment.name], deployment.options)
        key = {
            **common,
            **deployment.model_dump(exclude={"reward_model"}),
            "retriever": retriever,
            "options": options,
            "policy": bench.policy.fingerprint,
            "lengths": lengths,
            "score_top_k": bench.settings.score_top_k,
        }
        if retriever is not None and RETRIEVERS[retriever].compares:
            key["compared_without"] = bench.settings.prompt_template
        cell = Cell("deployment", key, deployment_title(deployment), (*needs, *((reward,) if reward else ())))
        plan.written.append((deployment, cell, reward))
    has_references = _has_references(bench)
    signatures = {name: METRICS[name].build().signature for name in study.metrics} if has_references else {}
    for _, cell, _ in plan.written:
        for name in dict.fromkeys(study.metrics) if has_references else ():
            key = {"metric": name, "signature": signatures[name]}
            plan.behaviour[cell.id, name] = Cell("behaviour", key, f"{name} of {cell.title}", (cell,))
        for index, (spec, judge) in enumerate(plan.rewards):
            plan.judgements[cell.id, index] = Cell(
                "judgement", {"judge": spec.method}, f"{_title(spec)} judges {cell.title}", (cell, judge)
            )
    draws = study.controls.shuffled_labels
    for spec, cell in plan.rewards:
        if draws and spec.mode == "frozen":
            key = {**cell.key, "draws": draws}
            plan.shuffled.append((spec, Cell("shuffled", key, f"shuffled labels, {_title(spec)}", needs)))
    if study.controls.synthetic_text:
        key = {"seed": study.seed, "users": controls.USERS, "rows": controls.ROWS, "split": controls.SPLIT}
        plan.synthetic = Cell("synthetic_text", key, "control: oracle guidance on synthetic_text")
        for spec in study.reward_models:
            if METHODS[spec.method].personal and steers(spec.method):
                title = f"control: swapped states on synthetic_text, {_title(spec)}"
                planted = controls.swap_spec(spec)
                plan.planted.append((spec, Cell("synthetic_swap", {**key, **reward_key(planted)}, title)))
    return plan


def reward_key(spec: RewardModelSpec) -> dict[str, Any]:
    """Return what decides a reward model beside its data and backbone, every default written out."""
    config = config_of(METHODS[spec.method], spec.options)
    key: dict[str, Any] = {"method": spec.method, "config": config, "fit_mode": spec.mode}
    version = getattr(METHODS[spec.method], "version", 1)
    if version > 1:
        key["version"] = version
    if spec.mode == "lora":
        own = build_head(spec.method, **spec.options).defaults
        key |= own.filled(spec.epochs, spec.batch_size, spec.learning_rate)._asdict() | {"lora": asdict(LoraSettings())}
    return key


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
    _refuse_strangers(root)
    with locked(root):
        _claim(study, root)
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


def deployment_title(deployment: Deployment) -> str:
    """Return a short name of a deployment for progress."""
    if deployment.reward_model is None:
        return " ".join([deployment.decoder_name, *([] if deployment.shots is None else [str(deployment.shots)])])
    return f"{_title(deployment.reward_model)} · {deployment.decoder_title}"


def _title(spec: RewardModelSpec) -> str:
    return spec.name


def _has_references(bench: Workbench) -> bool:
    if isinstance(bench.dataset, AuthoredDataset):
        return True
    return any(pair.reference for pair in bench.dataset.pairs)


def _refuse_strangers(root: Path) -> None:
    """Refuse a folder that holds something else than a study; what a killed write left does not count."""
    found = list(root.iterdir()) if root.is_dir() else []
    if any(not child.name.startswith(".") for child in found) and not (root / "study.yaml").exists():
        raise ConfigError(f"folder '{root}' is not empty and holds no study. Choose another folder with --output.")
    root.mkdir(parents=True, exist_ok=True)


def _claim(study: StudySpec, root: Path) -> None:
    """Write the resolved study, unless the folder holds another one: another name, other data or another policy."""
    path = root / "study.yaml"
    text = study_yaml(study)
    if path.exists():
        held, own = _held(path), yaml.safe_load(text)
        # A start that failed before its first cell holds nothing that other data or another policy could mix with.
        parts = ("name", "data", "policy") if any(root.glob("cells/*/DONE")) else ("name",)
        differs = next((part for part in parts if held.get(part) != own[part]), None)
        if differs is not None:
            other = f"not of '{study.name}'" if differs == "name" else f"on another {differs}"
            raise ConfigError(
                f"folder '{root}' holds the results of study '{held['name']}', {other}. "
                "Choose another folder with --output."
            )
    write_text(path, text)


def _held(path: Path) -> dict[str, Any]:
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {**held, "name": str(held["name"])}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"'{path}' is no resolved study, so whose results these are is not known. "
            "Choose another folder with --output."
        ) from error


def study_yaml(study: StudySpec) -> str:
    """Return a study with every default written out, and of every path its last part only."""

    def masked(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: masked(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [masked(item) for item in value]
        if not isinstance(value, str):
            return value
        is_place = value.startswith(("/", "~")) or (key in ("policy", "backbone") and is_served(value))
        return shown_name(value) if is_place else value

    return yaml.safe_dump(masked(study.model_dump()), sort_keys=False, allow_unicode=True)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep a run's folder for this process.

    Raises:
        ConfigError: if another process has it.
    """
    with (root / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run is at work in '{root}'. Wait for it, or choose another --output.") from None
        yield
