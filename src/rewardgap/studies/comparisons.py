"""Deployments against each other on the same users: differences, what a choice by a stage costs, and who gains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rewardgap.core.errors import ConfigError
from rewardgap.core.results import ComparisonResult, HeterogeneityResult, RegretResult, SupportResult
from rewardgap.stats import (
    compare_deployments,
    equivalence,
    minimal_detectable_difference,
    selection_regret,
    user_effects,
    wins_by_support,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rewardgap.studies.aggregate import Tables
    from rewardgap.studies.scores import Scores, Written

CHOOSING = ("rm_accuracy", "rm_accuracy_seen", "policy_accuracy", "win_self", "win_cross")
"""Stages that could have chosen a deployment."""
FLIPS = 400
"""Resamples for each comparison made together: the smallest p that Holm can give then lies well below 5 %."""
NEVER = -1.0
"""The score of a deployment that a stage cannot choose, since it has none there; those of stages are fractions."""


@dataclass(frozen=True)
class Outcome:
    """How well the deployments of a point do by one metric.

    Attributes:
        metric: its name.
        written: M deployments with a value.
        users: (M, U) means of users, NaN for missing.
    """

    metric: str
    written: list[Written]
    users: NDArray[np.float64]

    @property
    def names(self) -> list[str]:
        """Return the M labels."""
        return [one.label for one in self.written]

    @property
    def best(self) -> int:
        """Return the row with the highest mean over the users that all have, the first of equals."""
        whole = ~np.isnan(self.users).any(axis=0)
        return int(np.argmax(np.nanmean(self.users[:, whole] if whole.any() else self.users, axis=1)))


def outcome(scores: Scores, metric: str) -> Outcome:
    """Return the deployments that have a metric, with their users' means."""
    known = [(one, values) for one in scores.written if (values := scores.stage(metric, one)) is not None]
    return Outcome(metric, [one for one, _ in known], np.array([scores.by_user(values) for _, values in known]))


def comparison_results(tables: Tables) -> list[ComparisonResult]:
    """Compare every deployment with the baseline and with the best measured one, by each metric.

    Holm's correction is over the comparisons with one deployment by one metric. The best is chosen by the same users,
    so what is below it is judged a little too harshly; `regret_results` says how sure it is the best.
    """
    out = []
    for metric in tables.scores.outcomes():
        found = outcome(tables.scores, metric)
        base = next((index for index, one in enumerate(found.written) if one.is_baseline), None)
        anchors: tuple[tuple[Literal["baseline", "best"], int | None], ...] = (("baseline", base), ("best", found.best))
        for kind, anchor in anchors:
            if anchor is not None:
                out += _compared(tables, found, anchor, kind)
    return out


def _compared(tables: Tables, found: Outcome, anchor: int, kind: Literal["baseline", "best"]) -> list[ComparisonResult]:
    study = tables.study
    others = [index for index in range(len(found.written)) if index != anchor]
    resamples = max(study.resamples, FLIPS * len(others))
    made = compare_deployments(
        found.users, found.names, against=found.names[anchor], resamples=resamples, seed=study.seed
    )
    base, users, margin = found.users[anchor], tables.scores.users, study.equivalence_margin
    return [
        ComparisonResult(
            **tables.point,
            metric=found.metric,
            a=one.a,
            b=one.b,
            b_is=kind,
            difference=one.difference,
            ci_low=one.low,
            ci_high=one.high,
            p_value=one.p_value,
            p_holm=one.p_holm,
            n_users=one.n_users,
            margin=margin,
            **_alike(found.users[index], base, users, margin, one.reason),
        )
        for index, one in zip(others, made, strict=True)
    ]


def _alike(
    a: NDArray[np.float64], b: NDArray[np.float64], users: Sequence[str], margin: float, reason: str | None
) -> dict[str, Any]:
    """Return equivalence and what the users could show; of equal scores with every user there is nothing to test."""
    gaps = (a - b)[~np.isnan(a - b)]
    if len(gaps) > 1 and float(np.ptp(gaps)) <= 1e-12 * max(1.0, float(np.abs(gaps).max())):
        return {"reason": "every user's difference is the same, so there is no spread to test with"}
    if len(gaps) < 2:
        return {"reason": reason}
    same = equivalence(a, b, users, margin)
    least = minimal_detectable_difference(a, b, users)
    return {
        "equivalent": same.equivalent,
        "equivalence_p": same.p_value,
        "equivalence_low": same.low,
        "equivalence_high": same.high,
        "detectable": least.difference,
        "reason": reason,
    }


def regret_results(tables: Tables) -> list[RegretResult]:
    """Return what a choice by each stage loses by the main metric, among guided deployments and among all.

    The metric's own choice comes first: how likely the best measured deployment is the best. RM accuracy on seen users
    is of other users than those served, so its scores are fixed; a deployment without a stage cannot be its choice.
    """
    scores = tables.scores
    metrics = scores.outcomes()
    if not metrics:
        return []
    found = outcome(scores, metrics[0])
    out = [_regret(tables, found, found.metric, found.users, "all")]
    guided = [index for index, one in enumerate(found.written) if one.deployment.reward_model is not None]
    kinds: tuple[tuple[Literal["guided", "all"], list[int]], ...] = (
        ("guided", guided),
        ("all", list(range(len(found.written)))),
    )
    for stage in CHOOSING:
        choice = _choice(scores, found, stage)
        for among, rows in kinds:
            part = Outcome(found.metric, [found.written[i] for i in rows], found.users[rows])
            repeated = among == "all" and len(guided) == len(rows)
            if stage != found.metric and not repeated and len(rows) > 1 and (choice[rows] != NEVER).any():
                out.append(_regret(tables, part, stage, choice[rows], among))
    return out


def _choice(scores: Scores, found: Outcome, stage: str) -> NDArray[np.float64]:
    """Return (M, U) scores of deployments at a stage that chooses."""
    rows = []
    for one in found.written:
        if stage == "rm_accuracy_seen":
            mean = scores.seen_accuracy(one)
            rows.append(np.full(len(scores.users), NEVER if mean is None else mean))
        else:
            values = scores.stage(stage, one)
            rows.append(np.full(len(scores.users), NEVER) if values is None else scores.by_user(values))
    return np.array(rows)


def _regret(
    tables: Tables, found: Outcome, stage: str, choice: NDArray[np.float64], among: Literal["guided", "all"]
) -> RegretResult:
    whole = np.asarray(~(np.isnan(found.users) | np.isnan(choice)).any(axis=0))
    named = tables.point | {"metric": found.metric, "stage": stage, "among": among}
    if not whole.any():
        best = found.names[found.best]
        reason = "no user has a value for every deployment"
        return RegretResult(**named, chosen=best, best=best, regret=0.0, n_dropped_users=len(whole), reason=reason)
    # Of deployments that a stage cannot tell apart it takes the first: the one that does best.
    order = np.argsort(-found.users[:, whole].mean(axis=1), kind="stable")
    names = [found.names[index] for index in order]
    study = tables.study
    lost = selection_regret(choice[order], found.users[order], names, study.resamples, study.seed)
    return RegretResult(
        **named,
        chosen=lost.chosen,
        best=lost.best,
        regret=lost.regret,
        expected=lost.expected,
        ci_low=lost.low,
        ci_high=lost.high,
        out_of_bag=lost.out_of_bag,
        p_chosen_best=lost.p_chosen_best,
        p_best=dict(lost.p_best or ()),
        n_users=lost.n_users,
        n_dropped_users=lost.n_dropped_users,
        reason=lost.reason,
    )


def heterogeneity_results(tables: Tables) -> list[HeterogeneityResult]:
    """Return for how many users each deployment is better than the baseline, by the main metric."""
    out = []
    owners = [tables.scores.users[index] for index in tables.scores.owners]
    for metric, one, base, gaps in _gains(tables):
        known = ~np.isnan(gaps)
        blank = HeterogeneityResult(
            **tables.point,
            metric=metric,
            deployment=one.label,
            baseline=base.label,
            n_users=len(np.unique(tables.scores.owners[known])),
            n_examples=int(known.sum()),
        )
        try:
            found = user_effects(gaps, owners, tables.study.resamples, tables.study.seed)
        except ConfigError as error:
            out.append(replace(blank, reason=str(error)))
            continue
        out.append(
            replace(
                blank,
                mean=found.mean,
                between=found.between,
                noise=found.noise,
                share=found.share_positive,
                ci_low=found.low,
                ci_high=found.high,
                share_measured=found.share_measured,
            )
        )
    return out


def support_results(tables: Tables) -> list[SupportResult]:
    """Count users who win and lose by each deployment against the baseline, by how many pairs they revealed."""
    scores = tables.scores
    support = tables.bench.study_pairs().support
    sizes = np.array([len(support[user]) for user in scores.users])[scores.owners]
    owners = [scores.users[index] for index in scores.owners]
    out = []
    for metric, one, base, gaps in _gains(tables):
        for row in wins_by_support(gaps, owners, sizes, tables.study.resamples, tables.study.seed):
            named = tables.point | {"support_size": row.support_size}
            found = row.difference
            out.append(
                SupportResult(
                    **named,
                    metric=metric,
                    deployment=one.label,
                    baseline=base.label,
                    wins=row.wins,
                    ties=row.ties,
                    losses=row.losses,
                    difference=found.value,
                    ci_low=found.low,
                    ci_high=found.high,
                )
            )
    return out


def _gains(tables: Tables) -> list[tuple[str, Written, Written, NDArray[np.float64]]]:
    """Return by the main metric each deployment, the baseline, and (N,) what an example gains over it."""
    scores = tables.scores
    metrics, base = scores.outcomes(), scores.baseline
    level = scores.stage(metrics[0], base) if metrics and base is not None else None
    if base is None or level is None:
        return []
    others = [(one, scores.stage(metrics[0], one)) for one in scores.written if one is not base]
    return [(metrics[0], one, base, values - level) for one, values in others if values is not None]
