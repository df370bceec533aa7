"""What several points of one study say together: where in-context learning overtakes guidance, and tau over them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rewardgap.backbones.serving import is_served
from rewardgap.core.results import Across, CrossoverResult, MetaResult
from rewardgap.stats import crossover, meta_analysis
from rewardgap.studies.comparisons import outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.core.results import TauResult
    from rewardgap.studies.aggregate import Tables
    from rewardgap.studies.scores import Written

Axis = Literal["parameters", "shots", "support"]
_NORMAL = 1.959963984540054
"""A 95 % interval of a normal distribution reaches so many standard deviations to either side."""


def across_points(tables: Sequence[Tables]) -> Across:
    """Say what several points of a study say together.

    Args:
        tables: the records of each point.
    """
    return Across(crossovers=crossover_results(tables), meta=meta_results([tau for one in tables for tau in one.taus]))


def crossover_results(tables: Sequence[Tables]) -> list[CrossoverResult]:
    """Return from where on in-context learning is ahead of guidance, by the main metric.

    Three axes: parameters of the policy, over points alike in all else; support pairs, likewise, with as many
    demonstrations as a point shows; and demonstrations at one point, where guidance stays as it is. One deployment of
    each side is followed, the one with the highest mean over all places, so that no place has a choice of its own.
    """
    out: list[CrossoverResult] = []
    for one in tables:
        out += _over_shots(one)
    out += _over_points(tables, "support", lambda one: float(one.support_size))
    local = [one for one in tables if not is_served(one.study.policy)]
    out += _over_points(local, "parameters", lambda one: float(one.bench.policy.num_weights))
    return out


_COLUMN = {"parameters": "policy", "support": "support_size"}


def _over_points(tables: Sequence[Tables], axis: Axis, place: Callable[[Tables], float]) -> list[CrossoverResult]:
    groups: dict[tuple[Any, ...], list[Tables]] = {}
    for one in tables:
        fixed = one.point | {_COLUMN[axis]: None}
        groups.setdefault(tuple(fixed.values()), []).append(one)
    out = []
    for members in groups.values():
        if len({place(one) for one in members}) < 2 or not members[0].scores.outcomes():
            continue
        metric = members[0].scores.outcomes()[0]
        ordered = sorted(members, key=place)
        curves = [_sides(one, metric, by_shots=axis == "support") for one in ordered]
        first, second = (_followed([curve[side] for curve in curves]) for side in (0, 1))
        if first is None or second is None:
            continue
        named = members[0].point | {_COLUMN[axis]: None, "metric": metric, "first": first[0], "second": second[0]}
        places = [place(one) for one in ordered]
        if len(set(places)) < len(places):
            reason = f"two points have {axis} {max(places, key=places.count):g}; what else differs has no column"
            out.append(CrossoverResult(**named, axis=axis, places=places, reason=reason))
            continue
        out.append(_crossing(members[0], named, axis, places, first[1], second[1]))
    return out


def _over_shots(tables: Tables) -> list[CrossoverResult]:
    metrics = tables.scores.outcomes()
    if not metrics:
        return []
    found = outcome(tables.scores, metrics[0])
    by_name = [dict(zip(tables.scores.users, row, strict=True)) for row in found.users]
    families: dict[str, dict[int, dict[str, float]]] = {}
    guided: dict[str, dict[str, float]] = {}
    for one, row in zip(found.written, by_name, strict=True):
        if one.deployment.reward_model is not None:
            guided[one.label] = row
        elif one.deployment.shots:
            families.setdefault(_family(one), {})[one.deployment.shots] = row
    best = _followed([guided])
    out = []
    for family, rows in families.items():
        if best is not None and len(rows) > 1:
            places = sorted(rows)
            named = tables.point | {"metric": metrics[0], "first": family, "second": best[0]}
            second = best[1] * len(places)
            out.append(_crossing(tables, named, "shots", [*map(float, places)], [rows[k] for k in places], second))
    return out


def _sides(tables: Tables, metric: str, *, by_shots: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return users' means in context and guided, by a name that stays the same from point to point.

    With `by_shots` the number of demonstrations is no part of it, and the deployment that shows most stands for all.
    """
    found = outcome(tables.scores, metric)
    context: dict[str, Any] = {}
    guided: dict[str, Any] = {}
    shown: dict[str, int] = {}
    for one, row in zip(found.written, found.users, strict=True):
        means = dict(zip(tables.scores.users, row, strict=True))
        if one.deployment.reward_model is not None:
            guided[one.label] = means
        elif one.deployment.shots:
            name = _family(one) if by_shots else one.label
            if one.deployment.shots > shown.get(name, 0):
                shown[name] = one.deployment.shots
                context[name] = means
    return context, guided


def _family(one: Written) -> str:
    """Return the name of a deployment without the number of its demonstrations."""
    own = one.deployment
    parts = [own.name, *([own.retriever] if own.retriever else [])]
    return " · ".join([*parts, *([json.dumps(own.options, sort_keys=True)] if own.options else [])])


def _followed(curves: Sequence[dict[str, dict[str, float]]]) -> tuple[str, list[dict[str, float]]] | None:
    """Return the deployment measured at every place that has the highest mean over them, None where there is none."""
    names = [name for name in curves[0] if all(name in curve for curve in curves)]
    if not names:
        return None
    best = max(names, key=lambda name: float(np.mean([np.nanmean([*curve[name].values()]) for curve in curves])))
    return best, [curve[best] for curve in curves]


def _crossing(
    tables: Tables,
    named: dict[str, Any],
    axis: Axis,
    places: list[float],
    first: Sequence[dict[str, float]],
    second: Sequence[dict[str, float]],
) -> CrossoverResult:
    """Return the crossover of two curves of users' means, each place on the users of all places."""
    users = sorted(set.union(*map(set, [*first, *second])))
    left, right = (np.array([[row.get(user, np.nan) for user in users] for row in rows]) for rows in (first, second))
    if np.isnan(left + right).any(axis=0).all():
        reason = "no user has a value at every place on both sides"
        return CrossoverResult(**named, axis=axis, places=places, reason=reason)
    found = crossover(places, left, right, tables.study.resamples, tables.study.seed)
    return CrossoverResult(
        **named,
        axis=axis,
        places=places,
        differences=list(found.differences),
        where=found.where,
        at=found.at,
        ci_low=found.low,
        ci_high=found.high,
        low_where=found.low_where,
        high_where=found.high_where,
        n_users=found.n_users,
    )


def meta_results(taus: Sequence[TauResult]) -> list[MetaResult]:
    """Pool the corrected taus of points: one result for each pair of stages and decoder that several points have.

    The error of a tau is that over users: its interval's length over 2 · 1.96. A tau that is not identified, or that is
    −1 or 1, where Fisher's z is infinite, is left out and counted.
    """
    groups: dict[tuple[str, str, str | None], list[TauResult]] = {}
    for tau in taus:
        groups.setdefault((tau.x, tau.y, tau.decoder), []).append(tau)
    return [_pooled(members) for members in groups.values() if len({tau.point() for tau in members}) > 1]


def _pooled(taus: list[TauResult]) -> MetaResult:
    known = [
        (tau.corrected, (tau.high - tau.low) / (2 * _NORMAL))
        for tau in taus
        if tau.corrected is not None and tau.low is not None and tau.high is not None and abs(tau.corrected) < 1
    ]
    known = [(value, error) for value, error in known if error > 0]
    shared = {name: getattr(taus[0], name) for name in ("pairing", "policy", "support_size", "seed")}
    named: dict[str, Any] = {
        "dataset": ", ".join(dict.fromkeys(tau.dataset for tau in taus)),
        **{name: value if all(getattr(t, name) == value for t in taus) else None for name, value in shared.items()},
        "x": taus[0].x,
        "y": taus[0].y,
        "decoder": taus[0].decoder,
        "n_taus": len(known),
        "n_left_out": len(taus) - len(known),
    }
    if not known:
        return MetaResult(**named, reason="not identified: tau is not identified at any point")
    found = meta_analysis([value for value, _ in known], standard_errors=[error for _, error in known])
    return MetaResult(
        **named,
        tau=found.tau,
        ci_low=found.low,
        ci_high=found.high,
        predicted_low=found.predicted_low,
        predicted_high=found.predicted_high,
        between=found.between,
        i_squared=found.i_squared,
        q=found.q,
        reason=found.reason,
    )
