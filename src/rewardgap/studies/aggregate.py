"""From records to results: every number of a study with its interval. Nothing here loads a model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rewardgap.core.errors import ConfigError
from rewardgap.core.results import ResultRow, Sample, StudyResults
from rewardgap.data.base import AuthoredDataset
from rewardgap.data.proof import OVERLAPS
from rewardgap.metrics.catalog import METRICS
from rewardgap.metrics.policy_accuracy import HEADLINE, VARIANT_NAMES
from rewardgap.metrics.rm_accuracy import pair_accuracy, ties
from rewardgap.policies.catalog import POLICIES
from rewardgap.stats.bootstrap import clustered_mean
from rewardgap.studies.across import across_points
from rewardgap.studies.compare import baseline_results, control_results
from rewardgap.studies.comparisons import (
    comparison_results,
    heterogeneity_results,
    regret_results,
    support_results,
)
from rewardgap.studies.correlations import tau_results
from rewardgap.studies.decomposition import decompose
from rewardgap.studies.methods import config_of
from rewardgap.studies.scores import Scores, is_baseline
from rewardgap.studies.splitting import support_notes, support_size
from rewardgap.studies.user_means import UserMeans
from rewardgap.studies.win_rates import judge_notes, win_rows
from rewardgap.studies.workbench import retriever_of, shown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.results import Stage, TauResult
    from rewardgap.data.partition import Split
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.deployments import Deployment
    from rewardgap.studies.run import Finished
    from rewardgap.studies.spec import RewardModelSpec

SCORE_PREFIX = "chosen_"
ALWAYS = ("empty_rate", "length_ratio")
"""Behaviour that every deployment is measured by, listed under metrics or not."""


class Tables:
    """Records of a finished point of a study, read once; `means` has those of users, as rows are estimated."""

    def __init__(self, finished: Finished) -> None:
        self.bench, self.plan = finished.bench, finished.plan
        self.study = finished.bench.study
        self.means = UserMeans()
        self._records: dict[str, list[dict[str, Any]]] = {}

    def done(self, cell: Cell) -> bool:
        """Return whether a cell is finished."""
        return self.bench.folder(cell).done

    def records(self, cell: Cell) -> list[dict[str, Any]]:
        """Return the records of a finished cell."""
        if cell.id not in self._records:
            self._records[cell.id] = self.bench.folder(cell).records()
        return self._records[cell.id]

    def part(self, cell: Cell, part: str) -> list[dict[str, Any]]:
        """Return the records of one part of a cell."""
        return [record for record in self.records(cell) if record["part"] == part]

    @property
    def dataset(self) -> str:
        """Return the dataset's name in results."""
        return self.bench.dataset.name

    @property
    def pairing(self) -> str | None:
        """Return the pairing rule, None where users chose between the completions themselves."""
        data = self.bench.dataset
        return self.study.pairing.rule if isinstance(data, AuthoredDataset) else data.pairing

    @property
    def support_size(self) -> int:
        """Return how many pairs an adapt user reveals; where a named split fixes no number, the most of any."""
        return support_size(self.bench.split, self.study.split)

    @property
    def point(self) -> dict[str, Any]:
        """Return the columns that name this point among those of a study."""
        row = self.template("unseen", "behaviour", "")
        return {name: getattr(row, name) for name in ("dataset", "pairing", "policy", "support_size", "seed")}

    @cached_property
    def scores(self) -> Scores:
        """Return the scores of every query example as arrays."""
        return Scores(self, lambda one: deployed(self.template("unseen", "behaviour", ""), self, one))

    @cached_property
    def taus(self) -> list[TauResult]:
        """Return the rank correlations between stages."""
        return tau_results(self)

    def template(self, users: Literal["seen", "unseen"], stage: Stage, metric: str) -> ResultRow:
        """Return a row with the columns that all rows of the study share."""
        return ResultRow(
            dataset=self.dataset,
            pairing=self.pairing,
            policy=shown_name(self.study.policy),
            support_size=self.support_size,
            users=users,
            seed=self.study.seed,
            stage=stage,
            metric=metric,
            value=None,
            n_users=0,
            n_examples=0,
        )

    def estimated(
        self, row: ResultRow, values: Sequence[float | None], users: Sequence[str], *, micro: bool = False
    ) -> ResultRow:
        """Return a row with the estimate of its values; None is missing."""
        numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
        found = clustered_mean(numbers, list(users), self.study.resamples, self.study.seed, micro=micro)
        if not micro:
            self.means.add(row, numbers, users)
        return replace(
            row,
            value=found.value,
            ci_low=found.low,
            ci_high=found.high,
            n_users=found.n_users,
            n_examples=found.n_examples,
            n_missing=row.n_missing + found.n_missing,
        )


def aggregate(finished: Finished, command: str, tables: Tables | None = None) -> StudyResults:
    """Add up one point of a study.

    Args:
        finished: the point after its run.
        command: how to run it again, for the report.
        tables: its records, if they were read before.
    """
    tables = tables or Tables(finished)
    rows: list[ResultRow] = []
    for spec, cell in finished.plan.rewards:
        if tables.done(cell):
            rows += _reward_rows(tables, spec, cell)
    for deployment, cell, _ in finished.plan.written:
        if tables.done(cell):
            rows += _deployment_rows(tables, deployment, cell)
    keys = Counter(row.key() for row in rows)
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        raise ConfigError(f"two results have the key {twice[0]}; give what differs a name of its own.")
    bench = finished.bench
    return StudyResults(
        name=bench.study.name,
        rows=rows,
        taus=tables.taus,
        comparisons=comparison_results(tables),
        regrets=regret_results(tables),
        heterogeneity=heterogeneity_results(tables),
        support=support_results(tables),
        crossovers=across_points([tables]).crossovers,
        controls=control_results(tables),
        baselines=baseline_results(tables),
        decompositions=decompose(tables),
        samples=_samples(tables),
        notes=[*_notes(tables), *finished.notes],
        datasets=[_dataset(tables)],
        failures=finished.failures,
        command=command,
        study=_plain_study(finished),
        environment=_environment(finished),
    )


def _reward_rows(tables: Tables, spec: RewardModelSpec, cell: Cell) -> list[ResultRow]:
    facts = tables.bench.folder(cell).facts()["facts"]
    rows = []
    parts: tuple[tuple[Literal["seen", "unseen"], str, str], ...] = (
        ("seen", "seen", "accuracy"),
        ("unseen", "unseen", "accuracy"),
        ("unseen", "other_state", "accuracy_other_state"),
    )
    for users, part, metric in parts:
        records = tables.part(cell, part)
        if not records:
            continue
        margins = np.array([np.nan if r["margin"] is None else r["margin"] for r in records])
        owners = [record["user_id"] for record in records]
        row = _named(tables.template(users, "rm_accuracy", metric), tables, spec)
        row = replace(row, n_missing=facts["missing_seen"] if part == "seen" else _missing_query(tables))
        if part == "seen":
            row = replace(row, support_size=None)
        hits = pair_accuracy(margins)
        rows.append(tables.estimated(row, hits.tolist(), owners))
        if metric == "accuracy":
            rows.append(tables.estimated(replace(row, metric="accuracy_micro"), hits.tolist(), owners, micro=True))
            rows.append(tables.estimated(replace(row, metric="tie_rate"), ties(margins).tolist(), owners))
    cost = _named(tables.template("seen", "cost", "seconds_fit"), tables, spec)
    pairs = tables.bench.study_pairs()
    users_fit = len({pair.user_id for pair in pairs.train})
    rows.append(replace(cost, value=facts["seconds_fit"], n_users=users_fit, n_examples=len(pairs.train)))
    adapt = replace(cost, users="unseen", metric="seconds_adapt_per_user", value=facts["seconds_adapt_per_user"])
    rows.append(replace(adapt, n_users=len(pairs.adapt_users), n_examples=sum(map(len, pairs.support.values()))))
    return rows


def _deployment_rows(tables: Tables, deployment: Deployment, cell: Cell) -> list[ResultRow]:
    records = tables.records(cell)
    users = [record["user_id"] for record in records]

    def row(stage: Stage, metric: str) -> ResultRow:
        return deployed(tables.template("unseen", stage, metric), tables, deployment)

    rows = []
    scored = {name for record in records for name in record}
    variants = [name for name in VARIANT_NAMES if f"{SCORE_PREFIX}{name}" in scored]
    for variant in variants:
        margins = np.array([_margin(record, variant) for record in records])
        rows.append(tables.estimated(row("policy_accuracy", variant), pair_accuracy(margins).tolist(), users))
    for side in ("chosen", "rejected") if not_scorable(tables, cell) is None else ():
        name = f"coverage_{side}"
        rows.append(tables.estimated(row("policy_accuracy", name), [r.get(name) for r in records], users))
    if not_scorable(tables, cell) is not None:
        rows.append(replace(row("policy_accuracy", HEADLINE), n_missing=len(records)))
    for metric in dict.fromkeys(tables.study.metrics):
        if metric in ALWAYS:
            continue
        compared = tables.plan.behaviour.get((cell.id, metric))
        if compared is not None and tables.done(compared):
            values = tables.records(compared)
            owners = [record["user_id"] for record in values]
            rows.append(tables.estimated(row("behaviour", metric), [record["value"] for record in values], owners))
    rows.append(tables.estimated(row("behaviour", "empty_rate"), [float(not r["completion"]) for r in records], users))
    if tables.plan.behaviour:
        texts, references = zip(*_with_references(tables, cell), strict=True)
        lengths = METRICS["length_ratio"].build().score(texts, references)
        rows.append(tables.estimated(row("behaviour", "length_ratio"), lengths.tolist(), users))
    searches = "proposed" in scored
    if deployment.kind == "guided" and not searches:
        for name in ("guidance_ratio", "changed"):
            rows.append(tables.estimated(row("behaviour", name), [r[name] for r in records], users))
    rows += win_rows(tables, deployment, cell, row("win_rate", ""))
    for name, column in (
        ("seconds_per_completion", "seconds"),
        ("tokens_per_completion", "network_tokens"),
        ("forwards_per_completion", "forwards"),
        ("new_tokens_per_completion", "new_tokens"),
    ):
        rows.append(tables.estimated(row("cost", name), [record[column] for record in records], users))
    if searches:
        for name, share in (("distinct_share", "distinct"), ("accepted_share", "accepted")):
            shares = [record[share] / record["proposed"] for record in records]
            rows.append(tables.estimated(row("behaviour", name), shares, users))
        proposed = [record["proposed"] for record in records]
        rows.append(tables.estimated(row("cost", "pieces_per_completion"), proposed, users))
    if "questions" in scored:
        asked = [float(record["questions"]) for record in records]
        rows.append(tables.estimated(row("cost", "questions_per_completion"), asked, users))
    if deployment.shots is not None:
        for name in ("demonstrations", "demonstrations_dropped"):
            rows.append(tables.estimated(row("cost", name), [float(record[name]) for record in records], users))
    seconds, tokens = sum(r["seconds"] for r in records), round(sum(r["network_tokens"] for r in records))
    own = {"seconds": seconds, "tokens": tokens}
    return [replace(entry, **own) if entry.stage == "cost" and entry.judge is None else entry for entry in rows]


def not_scorable(tables: Tables, cell: Cell) -> str | None:
    """Return why a deployment has no policy accuracy, None where it has one."""
    reason = tables.bench.folder(cell).facts().get("facts", {}).get("not_scorable")
    return None if reason is None else str(reason)


def deployed(row: ResultRow, tables: Tables, deployment: Deployment) -> ResultRow:
    """Fill a row's columns with what names a deployment."""
    if deployment.reward_model is None:
        retriever, card = retriever_of(deployment), POLICIES[deployment.name]
        return replace(
            row, method=deployment.name, shots=deployment.shots, retriever=retriever,
            support_size=row.support_size if card.personal else None,
            guidance_weight=config_of(card, deployment.options).get("guidance_weight"),
        )  # fmt: skip
    row = _named(row, tables, deployment.reward_model)
    decoder = deployment.decoder_name
    return replace(row, decoder=decoder, guidance_weight=deployment.guidance_weight, top_k=deployment.top_k)


def _named(row: ResultRow, tables: Tables, spec: RewardModelSpec) -> ResultRow:
    backbone = shown_name(spec.backbone or tables.study.policy)
    return replace(row, method=spec.label or spec.method, fit_mode=spec.mode, reward_backbone=backbone)


def _margin(record: dict[str, Any], variant: str) -> float:
    chosen, rejected = record.get(f"chosen_{variant}"), record.get(f"rejected_{variant}")
    return np.nan if chosen is None or rejected is None else chosen - rejected


def _missing_query(tables: Tables) -> int:
    return sum(item.pair is None for items in tables.bench.study_pairs().query.values() for item in items)


def _with_references(tables: Tables, cell: Cell) -> list[tuple[str, str | None]]:
    known = {i.example_id: i.reference for items in tables.bench.study_pairs().query.values() for i in items}
    return [(record["completion"], known[record["example_id"]]) for record in tables.records(cell)]


def _samples(tables: Tables) -> list[Sample]:
    """Return query prompts with every deployment's completion: the users in turn, so that a short list has them all."""
    pairs = tables.bench.study_pairs()
    written: dict[str, dict[str, str]] = {}
    for one in tables.scores.written:
        for record in tables.records(one.cell):
            written.setdefault(record["example_id"], {})[one.label] = record["completion"]
    from rewardgap.core.records import prompt_text

    longest = max(map(len, pairs.query.values()), default=0)
    turns = [pairs.query[u][n] for n in range(longest) for u in pairs.adapt_users if n < len(pairs.query[u])]
    return [
        Sample(
            dataset=tables.dataset,
            user_id=item.user_id,
            example_id=item.example_id,
            prompt=prompt_text(item.prompt),
            reference=item.reference,
            generations=written.get(item.example_id, {}),
        )
        for item in turns[: tables.study.samples]
    ]


def _dataset(tables: Tables) -> dict[str, Any]:
    from rewardgap.data.catalog import DATASETS

    pairs, card = tables.bench.study_pairs(), DATASETS[tables.study.data.name]
    check = tables.plan.check
    checked = json.loads(tables.records(check)[0]["check"]) if check is not None and tables.done(check) else None
    return {
        "name": tables.dataset,
        "summary": card.summary,
        "licence": card.licence,
        "source": card.source,
        "pairing": tables.pairing,
        "statistics": tables.bench.dataset.statistics(),
        "dropped": dict(tables.bench.dataset.dropped) | pairs.dropped,
        "split": {
            "train users": len({pair.user_id for pair in pairs.train}),
            "train pairs": len(pairs.train),
            "valid pairs": len(pairs.valid),
            "adapt users": len(pairs.adapt_users),
            "support pairs": sum(map(len, pairs.support.values())),
            "query prompts": sum(map(len, pairs.query.values())),
            "query pairs": len(pairs.query_pairs),
            "prompts shortened": pairs.cut,
        },
        "proof": proof_of(tables.bench.split),
        **({} if checked is None else {"check": checked}),
    }


def proof_of(split: Split) -> dict[str, Any]:
    """Return the overlaps of a split, those it rules out first."""
    counts, promises = split.proof(), split.promises()
    return {
        "ruled out": {name.replace("_", " "): counts[name] for name in promises if name in counts},
        "not ruled out": {
            name.replace("_", " "): counts[name] for name in OVERLAPS if name in counts and name not in promises
        },
    }


def _notes(tables: Tables) -> list[str]:
    notes = [*tables.bench.dataset.notes, *tables.bench.split.notes]
    missing = _missing_query(tables)
    if missing:
        notes.append(
            f"{missing} query prompts have no pair under the pairing rule; they count as missing, not as wrong."
        )
    if not any(is_baseline(d) for d, _, _ in tables.plan.written):
        notes.append("No zero_shot deployment was run, so there is nothing that win rates could be over.")
    notes += judge_notes(tables)
    supports = tables.bench.study_pairs().support.values()
    notes += support_notes(tables.study.split, tables.support_size, [len(rows) for rows in supports])
    reasons = {not_scorable(tables, cell) for _, cell, _ in tables.plan.written if tables.done(cell)} - {None}
    notes += [f"Policy accuracy is missing where {reason}" for reason in sorted(map(str, reasons))]
    if not tables.plan.behaviour:
        notes.append(
            "The data have no texts written by users, so there is no behaviour stage: the chain ends at win rate."
        )
    return notes


def _plain_study(finished: Finished) -> dict[str, Any]:
    import yaml

    from rewardgap.studies.folders import study_yaml

    return dict(yaml.safe_load(study_yaml(finished.bench.study)))


def _environment(finished: Finished) -> dict[str, Any]:
    from rewardgap.core.store import read_json

    prompts = {
        cell.title: finished.bench.folder(cell).facts().get("facts", {}).get("first_prompt")
        for _, cell, _ in finished.plan.written
        if finished.bench.folder(cell).done
    }
    return dict(read_json(finished.bench.root / "env.json")) | {"first_prompts": prompts}
