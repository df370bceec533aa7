"""Choosing the guidance weight: on held-out prompts of users the reward models were fitted on, never on adapt users.

The reward that steers rises with its own weight whether or not the text gets better, so it cannot choose. What the
users wrote can, by a behaviour metric; where they wrote nothing, another reward model of the study stands in. The fits
are the cells of the study itself; each weight is a cell of its own, so a killed tuning goes on where it was.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError, DataError, UnknownNameError
from rewardgap.core.seeds import child_seed
from rewardgap.core.store import content_hash
from rewardgap.metrics.catalog import METRICS
from rewardgap.stats.bootstrap import clustered_mean
from rewardgap.studies import stages, tuning_cells
from rewardgap.studies.cells import Cell
from rewardgap.studies.methods import steers
from rewardgap.studies.plan import make_plan
from rewardgap.studies.run import opened
from rewardgap.studies.running import dealt
from rewardgap.studies.tuning_choice import Candidate, choose
from rewardgap.studies.workbench import split_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rewardgap.core.records import PreferencePair
    from rewardgap.studies.plan import Plan
    from rewardgap.studies.progress import Progress
    from rewardgap.studies.spec import RewardModelSpec, StudySpec
    from rewardgap.studies.tuning_settings import TuningSettings
    from rewardgap.studies.workbench import Workbench

OWN = "reward"
JUDGE = "judge_reward"
GAP = "fluency_gap"
RECORDED = {
    "guidance_ratio": "spread of λ times the reward over the spread of log π among the candidates of a step",
    "changed": "share of tokens that are not the policy's own choice",
    "near_ties": "steps a text whose two best scores lie within 2e-4",
    "new_tokens": "tokens a text",
}
"""Columns of a written cell that are averaged as they are."""


@dataclass(frozen=True)
class _Models:
    """The reward model that steers and the one that judges, where there is one."""

    guide: RewardModelSpec
    judge: RewardModelSpec | None


def tune(study: StudySpec, settings: TuningSettings, root: Path, progress: Progress) -> dict[str, Any]:
    """Try guidance weights on the held-out rows of the training users, and choose one.

    Args:
        study: whose data, split, policy, lengths and reward models are used.
        settings: what is tried.
        root: the study's results folder; fits that a run left there are taken, and those made here serve a run.
        progress: where progress goes.

    Returns:
        A JSON value: settings, every number with its interval by weight, and the choice. The same study gives the same
        value, killed and resumed or not.

    Raises:
        UnknownNameError: if a reward model, decoder or metric is not known.
        ConfigError: if a setting does not fit the study, or the folder belongs to another study.
        DataError: if the split holds no pair of a training user out.
    """
    models = _models(study, settings)
    card = METRICS[settings.metric]
    if card.stage != "behaviour" or card.higher_is_better is None:
        raise ConfigError(
            f"metric '{settings.metric}' does not say which of two texts is better; use rouge1, for example."
        )
    decoder = settings.build(0.0)
    below = [weight for weight in settings.grid if weight < 0]
    if below:
        warnings.warn(f"guidance weight {below[0]:g} is below 0: it steers away from what is rewarded.", stacklevel=2)
    with opened(study, root, progress) as bench:
        plan = make_plan(bench)
        cells = {spec.name: cell for spec, cell in plan.rewards}
        _share(bench, plan, [models.guide, *([models.judge] if models.judge else [])])
        rows, notes = _held_out(bench, settings, models, cells)
        candidates = _tried(bench, settings, models, cells, rows)
        compared = settings.metric in candidates[0].values
        criterion = settings.metric if compared else JUDGE if models.judge else None
        chosen = choose(candidates, criterion, study.resamples, study.seed)
        return {
            "study": study.name,
            "seed": study.seed,
            "reward_model": models.guide.name,
            "judge": models.judge.name if models.judge else None,
            "decoder": settings.decoder,
            "top_k": decoder.top_k,
            "users": len({row.user_id for row in rows}),
            "rows": len(rows),
            "measures": _measures(settings, models, compared),
            "weights": [
                {
                    "guidance_weight": one.weight,
                    **{
                        name: asdict(clustered_mean(values, one.users, study.resamples, study.seed))
                        for name, values in one.values.items()
                    },
                }
                for one in candidates
            ],
            **chosen.to_json(),
            "line": None if chosen.weight is None else settings.line(models.guide.name, chosen.weight),
            "reward_scales": {
                spec.name: bench.folder(cell).facts()["facts"]["reward_scale"] if bench.folder(cell).done else None
                for spec, cell in plan.rewards
            },
            "notes": notes,
        }


def _models(study: StudySpec, settings: TuningSettings) -> _Models:
    able = [spec for spec in study.reward_models if steers(spec.method)]
    if not able:
        raise ConfigError(f"study '{study.name}' has no reward model that steers; list some under reward_models.")
    guide = _named(able, settings.reward_model) if settings.reward_model is not None else able[0]
    others = [spec for spec in study.reward_models if spec is not guide]
    if settings.judge is not None:
        judge = _named(study.reward_models, settings.judge)
        if judge is guide:
            raise ConfigError(f"'{guide.name}' steers, so as a judge it would praise itself; name another --judge.")
        return _Models(guide, judge)
    return _Models(guide, next((spec for spec in others if steers(spec.method)), None))


def _named(specs: Sequence[RewardModelSpec], name: str) -> RewardModelSpec:
    found = [spec for spec in specs if spec.name == name] or [spec for spec in specs if spec.method == name]
    if not found:
        raise UnknownNameError("reward model of the study", name, [spec.name for spec in specs])
    if len(found) > 1:
        raise ConfigError(
            f"'{name}' is {len(found)} reward models: {', '.join(spec.name for spec in found)}; name one."
        )
    return found[0]


def _share(bench: Workbench, plan: Plan, specs: Sequence[RewardModelSpec]) -> None:
    """Finish the study's own cells that are needed, and leave the bench with the training users alone."""
    if plan.pairing is not None and not bench.folder(plan.pairing).done:
        stages.run_pairing(bench, plan.pairing)
    bench.pairs = dealt(bench, plan)
    missing = [(spec, cell) for spec, cell in plan.rewards if spec in specs and not bench.folder(cell).done]
    if missing:
        stages.check_prompts(bench)
    for spec, cell in missing:
        stages.run_reward_model(bench, cell, spec)
    # From here on no adapt user can be asked about: there is none.
    bench.pairs = replace(bench.study_pairs(), support={}, query={}, shown={})
    stages.check_prompts(bench)


def _held_out(
    bench: Workbench, settings: TuningSettings, models: _Models, cells: dict[str, Cell]
) -> tuple[list[PreferencePair], list[str]]:
    """Return the rows that are written for, shortest prompt first, and what is to be said of those left out."""
    held = bench.study_pairs().valid
    known = set(bench.fitted(cells[models.guide.name], models.guide).users)
    if models.judge is not None:
        known &= set(bench.fitted(cells[models.judge.name], models.judge).users)
    rows = [row for row in held if row.user_id in known]
    if not rows:
        raise DataError(
            f"study '{bench.study.name}' holds out no pair of a training user to tune on; set "
            "split.valid_per_train_user, for example 4, or split.valid_fraction."
        )
    seed = bench.study.seed
    notes = [f"{len(held) - len(rows)} held-out rows are of users without a training pair."] if held != rows else []
    if settings.limit is not None and settings.limit < len(rows):
        notes.append(f"{settings.limit} of {len(rows)} held-out rows, drawn.")
        rows = sorted(rows, key=lambda row: child_seed(seed, "tune", row.user_id, row.example_id))[: settings.limit]
    encoder = bench.policy.encoder
    rows.sort(key=lambda row: (len(encoder.encode_prompt(row.prompt)), row.user_id, row.example_id))
    return rows, notes


def _tried(
    bench: Workbench, settings: TuningSettings, models: _Models, cells: dict[str, Cell], rows: list[PreferencePair]
) -> list[Candidate]:
    """Return what came of each weight, its cells finished."""
    study, reward = bench.study, cells[models.guide.name]
    key = {
        "seed": study.seed,
        "split": split_hash(bench.split),
        "data": bench.dataset.fingerprint(),
        "rows": content_hash([row.example_id for row in rows]),
        "policy": bench.policy.fingerprint,
        "lengths": study.generation.model_dump() | {"first_line": bench.dataset.first_line},
        "decoder": settings.decoder,
        "top_k": settings.build(0.0).top_k,
    }
    written = {}
    for weight in settings.grid:
        title = f"{models.guide.name} · {settings.decoder} λ={weight:g}"
        cell = Cell("tuning", {**key, "guidance_weight": weight}, title, (reward,))
        _finish(bench, cell, tuning_cells.run_tuning, rows, reward, models.guide, settings.build(weight))
        written[weight] = cell
    gaps = Cell("tuning_value", {"of": GAP}, "log-probabilities under the policy", tuple(written.values()))
    _finish(bench, gaps, tuning_cells.run_fluency_gaps, rows, list(written.values()))
    by_row = [record["gaps"] for record in bench.folder(gaps).records()]
    signature = METRICS[settings.metric].build().signature
    out = []
    for place, (weight, cell) in enumerate(written.items()):
        own = Cell("tuning_value", {"of": OWN}, f"{models.guide.name} rewards {cell.title}", (cell,))
        _finish(bench, own, tuning_cells.run_reward, rows, cell, reward, models.guide)
        values = {OWN: _column(bench, own, "value")}
        if models.judge is not None:
            other = cells[models.judge.name]
            judged = Cell("tuning_value", {"of": JUDGE}, f"{models.judge.name} rewards {cell.title}", (cell, other))
            _finish(bench, judged, tuning_cells.run_reward, rows, cell, other, models.judge)
            values[JUDGE] = _column(bench, judged, "value")
        if not METRICS[settings.metric].needs_reference or any(row.reference for row in rows):
            of = {"of": settings.metric, "signature": signature}
            compared = Cell("tuning_value", of, f"{settings.metric} of {cell.title}", (cell,))
            _finish(bench, compared, tuning_cells.run_metric, rows, cell, settings.metric)
            values[settings.metric] = _column(bench, compared, "value")
        values[GAP] = [_missing(row[place]) for row in by_row]
        values |= {name: _column(bench, cell, name) for name in RECORDED}
        out.append(Candidate(weight, [row.user_id for row in rows], values))
    return out


def _finish(bench: Workbench, cell: Cell, stage: Callable[..., None], *rest: Any) -> None:
    if not bench.folder(cell).done:
        stage(bench, cell, *rest)


def _column(bench: Workbench, cell: Cell, name: str) -> list[float]:
    return [_missing(record.get(name)) for record in bench.folder(cell).records()]


def _missing(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _measures(settings: TuningSettings, models: _Models, compared: bool) -> dict[str, str]:
    """Return what each number is, in the order of the table."""
    unit = "in deviations of its margin on training pairs"
    out = {OWN: f"reward by {models.guide.name}, which steers, {unit}; it rises whether or not the text gets better"}
    if models.judge is not None:
        out[JUDGE] = f"reward by {models.judge.name}, fitted on the same pairs, {unit}"
    if compared:
        out[settings.metric] = METRICS[settings.metric].summary
    out[GAP] = "mean of log π of the policy's best token minus log π of the chosen one, nats a token"
    return out | RECORDED
