"""The plan of a study: every cell it has, by role, and what each depends on. Nothing here computes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rewardgap.backbones.lora import LoraSettings
from rewardgap.core.errors import ConfigError
from rewardgap.data.base import AuthoredDataset
from rewardgap.data.catalog import DATASETS
from rewardgap.decoding.catalog import DECODERS
from rewardgap.metrics.catalog import METRICS
from rewardgap.policies.catalog import POLICIES
from rewardgap.retrieval.catalog import RETRIEVERS
from rewardgap.rewards.catalog import build_head
from rewardgap.rewards.model import check_fit_settings
from rewardgap.studies import controls
from rewardgap.studies.cells import Cell
from rewardgap.studies.deployments import expand
from rewardgap.studies.judging import check_judges, plan_judges
from rewardgap.studies.methods import METHODS, config_of, steers
from rewardgap.studies.oracles import check_oracles
from rewardgap.studies.served import check_served
from rewardgap.studies.workbench import retriever_of

if TYPE_CHECKING:
    from rewardgap.studies.deployments import Deployment
    from rewardgap.studies.spec import JudgeSpec, RewardModelSpec, StudySpec
    from rewardgap.studies.workbench import Workbench


@dataclass
class Plan:
    """Every cell of a study, by role.

    Attributes:
        pairing: makes the pairs; None where the data are pairs already.
        check: what the pairs can show, found without a language model.
        rewards: (settings, cell) of each reward model.
        prefixes: (cell of the reward model, cell) of each reward model that rewards prefixes.
        written: (deployment, cell, cell of its reward model) of each deployment.
        behaviour: (written cell, metric) -> cell.
        judgements: (written cell, index of the judge in `rewards`) -> cell.
        judges: (settings, cell) of each judge that only judges.
        verdicts: (written cell, index of the judge in `judges`, opponent) -> cell.
        shuffled: (settings, cell) of each shuffled-label control.
        synthetic: the control on synthetic text: oracle guidance.
        planted: (settings, cell) of each swap test on synthetic text.
    """

    pairing: Cell | None = None
    check: Cell | None = None
    rewards: list[tuple[RewardModelSpec, Cell]] = field(default_factory=list)
    prefixes: list[tuple[Cell, Cell]] = field(default_factory=list)
    written: list[tuple[Deployment, Cell, Cell | None]] = field(default_factory=list)
    behaviour: dict[tuple[str, str], Cell] = field(default_factory=dict)
    judgements: dict[tuple[str, int], Cell] = field(default_factory=dict)
    judges: list[tuple[JudgeSpec, Cell]] = field(default_factory=list)
    verdicts: dict[tuple[str, int, str], Cell] = field(default_factory=dict)
    shuffled: list[tuple[RewardModelSpec, Cell]] = field(default_factory=list)
    synthetic: Cell | None = None
    planted: list[tuple[RewardModelSpec, Cell]] = field(default_factory=list)

    def cells(self) -> list[Cell]:
        """Return every cell in an order that respects needs."""
        firsts = [cell for cell in (self.pairing, self.check) if cell]
        lasts = [self.synthetic] if self.synthetic else []
        return [
            *firsts,
            *(cell for _, cell in self.judges),
            *(cell for _, cell in self.rewards),
            *(cell for _, cell in self.prefixes),
            *(cell for _, cell, _ in self.written),
            *self.behaviour.values(),
            *self.judgements.values(),
            *self.verdicts.values(),
            *(cell for _, cell in self.shuffled),
            *lasts,
            *(cell for _, cell in self.planted),
        ]


def check_names(study: StudySpec) -> None:
    """Refuse unknown names and options before anything is loaded.

    Raises:
        UnknownNameError: naming the nearest known one.
        ConfigError: for options that a method does not have.
    """
    DATASETS[study.data.name]
    check_judges(study)
    check_served(study)
    for spec in study.reward_models:
        config_of(METHODS[spec.method], spec.options)
        if spec.mode is not None:
            build_head(spec.method, **spec.options)
            check_fit_settings(spec.method, spec.mode, spec.epochs, spec.batch_size, spec.learning_rate)
        elif spec.fit_mode or spec.epochs or spec.batch_size or spec.learning_rate:
            raise ConfigError(
                f"{spec.method} is not fitted; it takes no fit_mode, epochs, batch_size or learning_rate."
            )
    check_oracles(study)
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
    hashes = {"split": bench.shelf.hash_of(bench.split), "data": bench.shelf.hash_of(bench.dataset)}
    common = {"seed": study.seed, **hashes}
    lengths = study.generation.model_dump() | {"first_line": bench.dataset.first_line}
    needs: tuple[Cell, ...] = ()
    if isinstance(bench.dataset, AuthoredDataset):
        key = {
            **common,
            **study.pairing.model_dump(),
            "lengths": lengths,
            "template": bench.dataset.prompt_template,
            "policy": bench.fingerprint(),
        }
        plan.pairing = Cell("pairing", key, f"pair the texts ({study.pairing.rule})")
        needs = (plan.pairing,)
    plan.check = Cell("data_check", common, "check the data", needs)
    for spec in study.reward_models:
        limit = [bench.limit.max_tokens, bench.limit.on_long]
        key = {**common, **reward_key(spec), "backbone": bench.fingerprint(spec.backbone), "limit": limit}
        plan.rewards.append((spec, Cell("reward_model", key, f"fit {_title(spec)}", needs)))
    for spec, cell in plan.rewards:
        if steers(spec.method):
            plan.prefixes.append((cell, Cell("prefixes", {}, f"prefixes under {_title(spec)}", (cell,))))
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
            "policy": bench.fingerprint(),
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
    plan_judges(bench, plan, common, needs, has_references)
    draws = study.controls.shuffled_labels
    for spec, cell in plan.rewards:
        if draws and spec.mode == "frozen":
            key = {**cell.key, "draws": draws}
            plan.shuffled.append((spec, Cell("shuffled", key, f"shuffled labels, {_title(spec)}", needs)))
    if study.controls.synthetic_text:
        key = {"seed": study.seed, "users": controls.USERS, "rows": controls.ROWS, "split": controls.SPLIT}
        plan.synthetic = Cell("synthetic_text", key, "control: oracle guidance on synthetic_text")
        for spec in study.reward_models:
            if METHODS[spec.method].personal and spec.mode is not None:
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
