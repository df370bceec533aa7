"""Whether two stages order reward models alike: rank correlations of a study's stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.core.results import TauResult
from rewardgap.stats import MIN_METHODS, rank_correlation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rewardgap.studies.aggregate import Tables
    from rewardgap.studies.scores import Scores, Written

PREDICTORS = ("rm_accuracy", "policy_accuracy", "win_self", "win_cross")
"""Stages that could tell how a deployment will write. A verdict of the guide itself is circular: does it tell?"""


def stage_pairs(metrics: list[str]) -> list[tuple[str, str]]:
    """Return the pairs of stages that are correlated: RM with policy accuracy, then each stage with each behaviour."""
    return [("rm_accuracy", "policy_accuracy"), *((x, y) for y in metrics for x in PREDICTORS)]


def tau_results(tables: Tables) -> list[TauResult]:
    """Return rank correlations of stages over reward models under one decoder, one k and one guidance weight.

    Values of the guidance weight are not points: each is a family of its own. With fewer reward models than
    `stats.MIN_METHODS` no tau is given, and one line says so for all families.
    """
    scores = tables.scores
    families: dict[str, list[Written]] = {}
    for one in scores.written:
        if one.deployment.reward_model is not None and one.reward is not None and tables.done(one.reward):
            families.setdefault(one.deployment.decoder_title, []).append(one)
    out: list[TauResult] = []
    for decoder, members in families.items():
        for x, y in stage_pairs(scores.metrics()):
            left, right = (_matrix(scores, members, name) for name in (x, y))
            known = int((~np.isnan(left).all(axis=1) & ~np.isnan(right).all(axis=1)).sum())
            if known >= MIN_METHODS:
                out.append(_tau(tables, decoder, x, y, left, right))
            elif known and not any(tau.tau is None for tau in out):
                reason = f"not identified: {known} reward models; a rank correlation needs {MIN_METHODS}"
                named = tables.point | {"x": x, "y": y, "decoder": decoder}
                out.append(TauResult(**named, n_models=known, reason=reason))
    return out


def _tau(
    tables: Tables, decoder: str, x: str, y: str, left: NDArray[np.float64], right: NDArray[np.float64]
) -> TauResult:
    found = rank_correlation(left, right, tables.study.resamples, tables.study.seed)
    lowest, highest = found.leave_one_out or (None, None)
    return TauResult(
        **tables.point,
        x=x,
        y=y,
        decoder=decoder,
        n_models=found.n_methods,
        n_users=found.n_users,
        n_ties_x=found.ties_x,
        n_ties_y=found.ties_y,
        tau=found.tau,
        naive_low=found.naive_low,
        naive_high=found.naive_high,
        p_value=found.p_value,
        corrected=found.corrected,
        low=found.low,
        high=found.high,
        population=found.population,
        population_low=found.population_low,
        population_high=found.population_high,
        spearman=found.spearman,
        spearman_p=found.spearman_p,
        disattenuated=found.spearman_disattenuated,
        leave_one_out_low=lowest,
        leave_one_out_high=highest,
        reliability_x=found.reliability_x.value,
        reliability_y=found.reliability_y.value,
        undefined_resamples=found.undefined_resamples,
        reason=found.reason,
    )


def _matrix(scores: Scores, members: list[Written], stage: str) -> NDArray[np.float64]:
    """Return (M, U) means of users; a reward model without the stage is a row of NaN."""
    rows: list[Any] = []
    for one in members:
        values = scores.stage(stage, one)
        rows.append(np.full(len(scores.users), np.nan) if values is None else scores.by_user(values))
    return np.array(rows)
