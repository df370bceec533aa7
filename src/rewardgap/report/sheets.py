"""Tables of what statistics found, as texts that the page, Markdown and the terminal show alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from rewardgap.core.results import PointResult
from rewardgap.report.findings import (
    chance,
    chooser,
    difference,
    measured_tau,
    own_choices,
    price,
    signed,
    tau_text,
    titles,
    verdict,
)
from rewardgap.report.numbers import DASH, finite, interval, number, with_interval
from rewardgap.report.words import axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.results import ComparisonResult, StudyResults, TauResult

P = TypeVar("P", bound=PointResult)
NOT_IDENTIFIED = "not identified"


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of texts: the first `left` columns are words, the next `numbers` numbers, the rest words again."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int
    numbers: int


def tau_sheets(results: StudyResults, dataset: str) -> list[Sheet]:
    """Return rank correlations, a table for each second stage: that of the main metric of behaviour first."""
    taus = _of(results.taus, dataset)
    main = next((one.metric for one in own_choices(results, dataset)), None)
    seconds = sorted(dict.fromkeys(tau.y for tau in taus), key=lambda y: y != main)
    heads = ("With", "Decoder", "Identified", "Reward models, users", "τ-b, corrected", "measured", "permutation p",
             "Spearman, p", "one left out", "reliability of both")  # fmt: skip
    sheets = []
    for second in seconds:
        rows = [
            (
                axis(tau.x),
                tau.decoder or DASH,
                "yes" if finite(tau.corrected) is not None else f"no: {_why(tau)}",
                f"{tau.n_models}, {tau.n_users or DASH}",
                tau_text(tau) if finite(tau.corrected) is not None else NOT_IDENTIFIED,
                measured_tau(tau),
                chance(tau.p_value),
                DASH if tau.spearman is None else f"{number(tau.spearman, 'tau')}, {chance(tau.spearman_p)}",
                interval(tau.leave_one_out_low, tau.leave_one_out_high, "tau") or DASH,
                f"{number(tau.reliability_x, 'tau')}, {number(tau.reliability_y, 'tau')}",
            )
            for tau in taus
            if tau.y == second
        ]
        own = [tau for tau in taus if tau.y == second]
        sheets.append(_pointed(Sheet(f"Rank correlation with {axis(second)}", heads, tuple(rows), 3, 7), own))
    return sheets


def comparison_sheets(results: StudyResults, dataset: str) -> list[Sheet]:
    """Return paired comparisons with the baseline and with the best, a table for each metric."""
    compared = _of(results.comparisons, dataset)
    chances = {(one.point(), one.metric): one.p_best for one in own_choices(results, dataset)}
    sheets = []
    for metric in dict.fromkeys(one.metric for one in compared):
        own = [one for one in compared if one.metric == metric]
        pairs: dict[tuple[tuple[object, ...], str], dict[str, ComparisonResult]] = {}
        for one in own:
            pairs.setdefault((one.point(), one.a), {})[one.b_is] = one
        rows, keys = [], []
        for (point, name), found in sorted(pairs.items(), key=_rank):
            base, best = found.get("baseline"), found.get("best")
            probability = chances.get((point, metric), {}).get(name)
            texts = [_against(base), _against(best)]
            rows.append(
                (
                    name,
                    texts[0][0],
                    texts[0][1],
                    texts[1][0],
                    texts[1][1],
                    number(probability, "ratio"),
                    texts[0][2],
                    texts[1][2],
                )
            )
            keys.append(base or best or own[0])
        against = next((one.b for one in own if one.b_is == "baseline"), "the baseline")
        heads = ("Deployment", f"Against {against}", "p, Holm", "Against the best", "p, Holm", "Best with probability",
                 f"Verdict against {against}", "Verdict against the best")  # fmt: skip
        sheets.append(_pointed(Sheet(axis(metric), heads, tuple(rows), 1, 5), keys))
    return sheets


def choice_sheet(results: StudyResults, dataset: str) -> Sheet | None:
    """Return what each stage would have chosen and what that loses; None where nothing could be chosen."""
    regrets = _of(results.regrets, dataset)
    rows = tuple(
        (
            chooser(one),
            one.among,
            one.chosen,
            price(one),
            number(one.regret),
            number(one.out_of_bag),
            number(one.p_chosen_best, "ratio"),
        )
        for one in regrets
    )
    heads = (
        "Chosen by",
        "among",
        "Chosen",
        "Loses, points",
        "as measured",
        "on users left out",
        "Best with probability",
    )
    return _pointed(Sheet("What a choice costs", heads, rows, 3, 4), regrets) if rows else None


def user_sheet(results: StudyResults, dataset: str) -> Sheet | None:
    """Return for how many users each deployment is better than the baseline; None without a baseline."""
    effects = _of(results.heterogeneity, dataset)
    if not effects:
        return None
    effects.sort(key=lambda one: (str(one.point()), -(one.mean or 0.0)))
    counts: dict[tuple[str, object, object], list[str]] = {}
    for row in _of(results.support, dataset):
        text = f"n={row.support_size}: {row.wins} / {row.ties} / {row.losses}"
        counts.setdefault((row.deployment, row.policy, row.seed), []).append(text)
    rows = tuple(
        (
            one.deployment,
            with_interval(one.share, one.ci_low, one.ci_high),
            signed(one.mean),
            number(one.between),
            f"{one.n_users} / {one.n_examples}",
            one.reason or "; ".join(counts.get((one.deployment, one.policy, one.seed), [])),
        )
        for one in effects
    )
    base = effects[0].baseline
    heads = ("Deployment", f"% of users above {base}", "Mean gain", "Users differ by", "Users / examples",
             "Users better / same / worse, by support")  # fmt: skip
    return _pointed(Sheet(f"For whom it pays, by {axis(effects[0].metric)}", heads, rows, 1, 4), effects)


def _why(tau: TauResult) -> str:
    """Return why a tau is not identified, without what would help."""
    return tau_text(tau).removeprefix(f"{NOT_IDENTIFIED}: ").partition(": more users")[0].replace(" -", " −")


def _against(one: ComparisonResult | None) -> tuple[str, str, str]:
    return (DASH, DASH, "this one") if one is None else (difference(one), chance(one.p_holm), verdict(one))


def _rank(item: tuple[tuple[tuple[object, ...], str], dict[str, ComparisonResult]]) -> tuple[str, float]:
    """Return what rows are sorted by: the point, then the difference from the baseline, the largest first."""
    (point, _), found = item
    one = found.get("best") or found.get("baseline")
    if "best" not in found:
        return str(point), -1e9
    return str(point), -(one.difference if one is not None and one.difference is not None else -1e9)


def _of(findings: Sequence[P], dataset: str) -> list[P]:
    return [one for one in findings if one.dataset == dataset]


def _pointed(sheet: Sheet, findings: Sequence[PointResult]) -> Sheet:
    """Return a table with a first column for the point, where there are several."""
    named = titles(findings)
    if len(named) < 2:
        return sheet
    rows = tuple((named[one.point()], *row) for one, row in zip(findings, sheet.rows, strict=True))
    return replace(sheet, heads=("Point", *sheet.heads), rows=rows, left=sheet.left + 1)
