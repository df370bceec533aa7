"""What a study's numbers are held against: controls with a known answer, and what needs no model at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.core.results import BaselineResult, ControlResult
from rewardgap.data.baselines import RANKERS, human_or_machine
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.stats.bootstrap import clustered_mean, paired_difference
from rewardgap.studies.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.stats.bootstrap import Estimate
    from rewardgap.studies.aggregate import Tables
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.spec import RewardModelSpec


def baseline_results(tables: Tables) -> list[BaselineResult]:
    """Return how well rankers without a model rank the query pairs."""
    pairs = tables.bench.study_pairs()
    query = pairs.query_pairs
    users = [pair.user_id for pair in query]
    rankers: list[tuple[str, str, Any]] = [(r.name, r.summary, lambda r=r: r(query)) for r in RANKERS]
    if pairs.train:
        rankers.append(
            (
                "human_or_machine",
                "a user-blind classifier of surface features, fitted on the training pairs",
                lambda: human_or_machine(pairs.train, query),
            )
        )
    out = []
    for name, summary, rank in rankers if query else []:
        found = clustered_mean(rank(), users, tables.study.resamples, tables.study.seed)
        out.append(
            BaselineResult(
                dataset=tables.dataset,
                pairing=tables.pairing,
                name=name,
                summary=summary,
                value=found.value,
                ci_low=found.low,
                ci_high=found.high,
                n_users=found.n_users,
                n_examples=found.n_examples,
            )
        )
    return out


def control_results(tables: Tables) -> list[ControlResult]:
    """Return the checks with a known answer."""
    out = [_shuffled(tables, spec, cell) for spec, cell in tables.plan.shuffled if tables.done(cell)]
    synthetic = tables.plan.synthetic
    if synthetic is not None and tables.done(synthetic):
        out.append(_oracle(tables, synthetic))
    out += [_synthetic_swap(tables, cell, spec.name) for spec, cell in tables.plan.planted if tables.done(cell)]
    if tables.study.controls.swap:
        personal = [
            (spec, cell) for spec, cell in tables.plan.rewards if tables.done(cell) and METHODS[spec.method].personal
        ]
        out += [_swap(tables, spec, cell) for spec, cell in personal]
    return out


def _shuffled(tables: Tables, spec: RewardModelSpec, cell: Cell) -> ControlResult:
    records = tables.records(cell)
    draws = len({record["draw"] for record in records})
    # A draw is one random ranking of all pairs: draws are the unit that is resampled.
    by_draw = [f"{record['draw']}" for record in records]
    found = clustered_mean([r["correct"] for r in records], by_draw, tables.study.resamples, tables.study.seed)
    passed = _inside(found, 0.5)
    where = "at" if passed else "away from" if passed is False else "beside"
    return ControlResult(
        name="shuffled_labels",
        dataset=tables.dataset,
        method=spec.name,
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        expectation="one half lies in the interval",
        passed=passed,
        sentence=f"{spec.name} fitted on labels flipped by a coin, {draws} times, ranks the query pairs "
        f"{where} one half{_points(found)}.",
    )


def _oracle(tables: Tables, cell: Cell) -> ControlResult:
    steered, plain = tables.part(cell, "oracle"), tables.part(cell, "zero_shot")
    found = paired_difference(
        [r["value"] for r in steered],
        [r["value"] for r in plain],
        [r["user_id"] for r in steered],
        tables.study.resamples,
        tables.study.seed,
    )
    passed = _above(found)
    return ControlResult(
        name="oracle_guidance",
        dataset="synthetic_text",
        method="oracle",
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        expectation="utility gained over zero-shot (in units of utility), interval above zero",
        passed=passed,
        sentence="Where the truth is known, guidance by the true reward "
        f"{'writes better than' if passed else 'does not beat'} zero-shot.",
        unit="ratio",
    )


def _synthetic_swap(tables: Tables, cell: Cell, method: str) -> ControlResult:
    own, other = tables.part(cell, "own_state"), tables.part(cell, "other_state")
    users = [r["user_id"] for r in own]
    values = [[r["value"] for r in rows] for rows in (own, other)]
    return _swap_result(tables, "synthetic_text", method, values[0], values[1], users, expected=True)


def _swap(tables: Tables, spec: RewardModelSpec, cell: Cell) -> ControlResult:
    own, other = tables.part(cell, "unseen"), tables.part(cell, "other_state")
    if not other:
        return _no_swap(tables.dataset, spec.name)
    hits = [pair_accuracy([np.nan if r["margin"] is None else r["margin"] for r in rows]) for rows in (own, other)]
    users = [r["user_id"] for r in own]
    return _swap_result(tables, tables.dataset, spec.name, hits[0], hits[1], users, expected=False)


def _no_swap(dataset: str, method: str) -> ControlResult:
    return ControlResult(
        name="swap_test",
        dataset=dataset,
        method=method,
        value=None,
        ci_low=None,
        ci_high=None,
        expectation="accuracy gained over another user's state; not known beforehand",
        passed=None,
        sentence=f"{method}: with one adapt user there is no other user's state to compare with.",
    )


def _swap_result(
    tables: Tables, dataset: str, method: str, own: Any, other: Any, users: Sequence[str], *, expected: bool
) -> ControlResult:
    """Return own state against another user's; only where the truth is known is an answer expected."""
    found = paired_difference(own, other, users, tables.study.resamples, tables.study.seed)
    above = _above(found)
    below = found.high is not None and found.high < 0
    finding = "ranks better than" if above else "ranks worse than" if below else "cannot be told from"
    return ControlResult(
        name="swap_test",
        dataset=dataset,
        method=method,
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        expectation="accuracy gained over another user's state, interval above zero"
        if expected
        else "accuracy gained over another user's state; not known beforehand",
        passed=above if expected else None,
        sentence=f"{method}: a user's own state {finding} another user's{_points(found)}.",
    )


def _above(found: Estimate) -> bool | None:
    return None if found.low is None else found.low > 0


def _inside(found: Estimate, value: float) -> bool | None:
    return None if found.low is None or found.high is None else found.low <= value <= found.high


def _points(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return ""
    return f" ({100 * found.value:.1f} points, {100 * found.low:.1f} to {100 * found.high:.1f})"
