"""What statistics found, in words: verdicts on pairs, prices of a choice, rank correlations, crossovers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rewardgap.report.numbers import DASH, counted, finite, interval, number, with_interval
from rewardgap.report.words import axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.results import (
        ComparisonResult,
        CrossoverResult,
        MetaResult,
        PointResult,
        RegretResult,
        StudyResults,
        TauResult,
    )

LEVEL = 0.05
Standing: TypeAlias = Literal["better", "worse", "equivalent", "same", "undecided", "unknown"]
_CHOOSERS = {
    "rm_accuracy": "RM accuracy",
    "rm_accuracy_seen": "RM accuracy on seen users",
    "policy_accuracy": "policy accuracy",
    "win_self": "the guide's own verdict (circular)",
    "win_cross": "the other judges",
}
_UNITS = {"parameters": "parameters of the policy", "shots": "demonstrations", "support": "support pairs"}
_OLDER = "not identified: these results are older than the corrected interval"


def standing(one: ComparisonResult) -> Standing:
    """Return what a paired comparison says of its first deployment; a difference comes before equivalence."""
    if one.difference is not None and one.p_holm is not None and one.p_holm <= LEVEL:
        return "better" if one.difference > 0 else "worse"
    if one.equivalent:
        return "equivalent"
    if one.difference == 0 and one.ci_low == 0 and one.ci_high == 0:
        return "same"
    return "unknown" if one.p_holm is None else "undecided"


def verdict(one: ComparisonResult) -> str:
    """Return the same in words."""
    within = f"within {points(one.margin)}"
    kind = standing(one)
    if kind in ("better", "worse"):
        return f"{kind}, though {within}" if one.equivalent else kind
    if kind == "equivalent":
        return f"as good {within}"
    if kind == "same":
        return "the same with every user"
    if kind == "unknown":
        return f"not known: {one.reason or 'no interval'}"
    return "not told apart" + ("" if one.detectable is None else f"; {points(one.detectable)} would show")


def difference(one: ComparisonResult) -> str:
    """Return the difference with its sign and interval."""
    if finite(one.difference) is None:
        return DASH
    return f"{signed(one.difference)} {interval(one.ci_low, one.ci_high)}".rstrip()


def signed(value: float | None) -> str:
    """Return a difference in points with its sign, '+1.2' or '−0.3'."""
    text = number(value)
    return text if value is None or value <= 0 or text.startswith("−") else f"+{text}"


def points(value: float | None) -> str:
    """Return '1.0 point' or '2.3 points'."""
    text = number(value)
    return f"{text} {'point' if text == '1.0' else 'points'}"


def chance(p_value: float | None) -> str:
    """Return a p-value with two digits."""
    return DASH if finite(p_value) is None else f"{p_value:.2g}"


def chooser(one: RegretResult) -> str:
    """Return the name of the stage that chooses."""
    return _CHOOSERS.get(one.stage, f"{axis(one.stage)} itself" if one.stage == one.metric else axis(one.stage))


def price(one: RegretResult) -> str:
    """Return what a choice costs in points, '2.1 [0.3, 4.0]'; as measured where no interval is known."""
    if finite(one.expected) is None:
        return f"{number(one.regret)} as measured"
    return with_interval(one.expected, one.ci_low, one.ci_high)


def tau_text(one: TauResult) -> str:
    """Return the corrected tau with its interval, or that it is not identified and why."""
    if finite(one.corrected) is not None:
        return with_interval(one.corrected, one.low, one.high, "tau")
    return one.reason or _OLDER


def measured_tau(one: TauResult) -> str:
    """Return tau as measured, its naive interval named so."""
    span = interval(one.naive_low, one.naive_high, "tau")
    return number(one.tau, "tau") + (f" (naive {span})" if span else "")


def crossover_sentence(one: CrossoverResult) -> str:
    """Return where in-context learning overtakes guidance."""
    unit = _UNITS[one.axis]
    pair = f"{one.first} overtakes {one.second} in {axis(one.metric)}"
    if one.where is None:
        return f"Whether {pair} over {unit} is not known: {one.reason}."
    lowest, highest = (place(end) for end in (min(one.places), max(one.places)))
    if one.at is not None:
        text = f"{pair} at {place(one.at)} {unit}"
    elif one.where == "below":
        text = f"{one.first} is ahead of {one.second} in {axis(one.metric)} from {lowest} {unit} on, the fewest tried"
    else:
        text = f"{one.first} is not ahead of {one.second} in {axis(one.metric)} up to {highest} {unit}, the most tried"
    outside = "" if one.at is not None else ": the crossover lies outside the range"
    if one.low_where is None or one.high_where is None:
        return f"{text}{outside}; one user gives no interval."
    ends = [
        place(end) if end is not None else f"{side} the range"
        for end, side in ((one.ci_low, one.low_where), (one.ci_high, one.high_where))
    ]
    span = f"{ends[0]} to {ends[1]}" if ends[0] != ends[1] else f"all of it {ends[0]}"
    users = counted(one.n_users, "user")
    return f"{text}{outside} (95 % interval: {span}; measured from {lowest} to {highest}; {users})."


def place(value: float) -> str:
    """Return a place on an axis, '1.5B' for so many parameters."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def meta_sentence(one: MetaResult) -> str:
    """Return what the taus of several points come to."""
    what = f"τ between {axis(one.x)} and {axis(one.y)}" + (f", {one.decoder}" if one.decoder else "")
    left = f"; {counted(one.n_left_out, 'point')} left out, where it is not identified or ±1" if one.n_left_out else ""
    if one.tau is None:
        return f"{what}: {one.reason}."
    mean = f"{what}, mean of {counted(one.n_taus, 'point')}: {with_interval(one.tau, one.ci_low, one.ci_high, 'tau')}"
    if one.ci_low is None:
        return f"{mean}, without an interval ({one.reason}){left}."
    return (
        f"{mean}; at another point like these it would lie in "
        f"{interval(one.predicted_low, one.predicted_high, 'tau')}; {number(one.i_squared)} % of the spread is not "
        f"chance (I²){left}."
    )


def titles(findings: Sequence[PointResult]) -> dict[tuple[Any, ...], str]:
    """Return a title for each point, of what tells points apart; '' where there is one."""
    found = list(dict.fromkeys(one.point() for one in findings))
    forms = ("{}", "{} pairs", "{}", "n={}", "seed {}")
    differ = [index for index in range(len(forms)) if len({point[index] for point in found}) > 1]
    return {
        point: ", ".join(forms[index].format(point[index]) for index in differ if point[index] is not None)
        for point in found
    }


def own_choices(results: StudyResults, dataset: str) -> list[RegretResult]:
    """Return for each point of a dataset the choice that behaviour itself makes among all deployments."""
    return [one for one in results.regrets if one.dataset == dataset and one.stage == one.metric and one.among == "all"]


def at_point(results: StudyResults, where: RegretResult) -> tuple[list[ComparisonResult], list[RegretResult]]:
    """Return the comparisons by the same metric, and the choices of stages, at the point of a choice."""
    compared = [one for one in results.comparisons if one.point() == where.point() and one.metric == where.metric]
    return compared, [one for one in results.regrets if one.point() == where.point() and one.metric == where.metric]


def by_stage(regrets: Sequence[RegretResult], stage: str) -> RegretResult | None:
    """Return what a stage's choice costs among all deployments; among guided ones where there are no others."""
    found = {one.among: one for one in regrets if one.stage == stage}
    return found.get("all") or found.get("guided")
