"""The answer a reader came for: what to deploy, how sure that is, and what ranking accuracy would have cost.

It follows from differences on the same users and from what a choice costs, never from whether two intervals overlap.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewardgap.report.findings import (
    at_point,
    by_stage,
    chance,
    chooser,
    own_choices,
    points,
    price,
    signed,
    standing,
    titles,
    verdict,
)
from rewardgap.report.numbers import counted, interval, number
from rewardgap.report.words import SECONDS, axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.results import ComparisonResult, HeterogeneityResult, RegretResult, StudyResults
    from rewardgap.report.board import Board, Line
    from rewardgap.report.findings import Standing
    from rewardgap.report.numbers import Cell

MOST_POINTS = 8
"""Points of a study that are answered one by one; the tables hold them all."""
_ALIKE: tuple[Standing, ...] = ("equivalent", "same", "undecided")


@dataclass(frozen=True, slots=True)
class Fact:
    """A number worth large print: what it is, the number, whose it is."""

    title: str
    text: str
    interval: str
    detail: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One sentence to remember, the sentences behind it, and up to three numbers."""

    headline: str
    sentences: tuple[str, ...]
    facts: tuple[Fact, ...]
    cautions: tuple[str, ...]


def answer(results: StudyResults, board: Board | None) -> Answer:
    """Say in plain words which deployment to pick on a dataset."""
    cautions = _cautions(results)
    if board is None or board.criterion is None:
        return Answer("Nothing was measured that could choose a deployment.", (), (), cautions)
    choices = own_choices(results, board.dataset)
    if not choices:
        return _without_pairs(board, cautions)
    if len(choices) > 1:
        return _over_points(results, choices, cautions)
    found = _Point(results, choices[0])
    return Answer(found.headline(), found.sentences(results, board), found.facts(board), cautions)


class _Point:
    """What one point of a study says."""

    def __init__(self, results: StudyResults, own: RegretResult) -> None:
        compared, self.regrets = at_point(results, own)
        self.own, self.best, self.title = own, own.best, axis(own.metric)
        self.behind = [one for one in compared if one.b_is == "best" and one.b == self.best]
        over = [one for one in compared if one.b_is == "baseline"]
        self.baseline = over[0].b if over else None
        self.over = next((one for one in over if one.a == self.best), None)
        self.by_accuracy = by_stage(self.regrets, "rm_accuracy")

    @property
    def probability(self) -> str:
        """Return how likely the best measured deployment is the best, in brackets."""
        chance = self.own.p_best.get(self.best)
        return "" if chance is None else f" (best with probability {_share(chance)})"

    def headline(self) -> str:
        return f"{self._verdict()}{self._price()}."

    def _verdict(self) -> str:
        if self.best == self.baseline:
            return f"Deploy {self.best}{self.probability}: nothing here was measured to write better"
        kind: Standing = "unknown" if self.over is None else standing(self.over)
        if self.over is None or kind == "better":
            return f"Deploy {self.best}{self.probability}"
        if kind in ("equivalent", "same"):
            within = "with every user" if kind == "same" else f"within {points(self.over.margin)}"
            return f"{self.best}{self.probability} is no better than {self.baseline}: the two are as good {within}"
        if kind == "undecided":
            return f"{self.best} is ahead{self.probability}, but cannot be told from {self.baseline}"
        return f"{self.best} is ahead of {self.baseline}; nobody can say how surely ({self.over.reason})"

    def _price(self) -> str:
        one = self.by_accuracy
        if one is None:
            return ""
        if one.chosen == self.best:
            return "; RM accuracy would have chosen it too"
        return f"; RM accuracy would have chosen {one.chosen}, costing {price(one)} {self.title} points"

    def sentences(self, results: StudyResults, board: Board) -> tuple[str, ...]:
        """Return what stands behind the headline."""
        cell = _cell(board, self.best)
        shown = f" with {cell.full}" if cell is not None else ""
        count = counted(len(self.behind) + 1, "deployment")
        out = [f"{_by(self.own.metric)} the best of {count} is {self.best}{shown}."]
        if self.over is not None:
            out.append(f"{self.best} against {self.baseline} on the same {_users(self.over)}: {_measured(self.over)}.")
        out += self._others() + self._choices()
        out += self._helped(results) + self._cheapest(board)
        return tuple(out)

    def _others(self) -> list[str]:
        """Say how many of the others are worse, as good, or not told apart."""
        kinds = Counter(standing(one) for one in self.behind)
        words: dict[Standing, str] = {
            "worse": "worse beyond chance",
            "equivalent": f"as good within {points(self.behind[0].margin)}" if self.behind else "",
            "same": "the same with every user",
            "undecided": "not told apart",
            "unknown": "without an interval",
        }
        parts = [f"{kinds[kind]} {text}" for kind, text in words.items() if kinds[kind]]
        if not parts:
            return []
        least = [one.detectable for one in self.behind if standing(one) == "undecided" and one.detectable is not None]
        ends = sorted({number(min(least)), number(max(least))}) if least else []
        shown = f"; a difference of {' to '.join(ends)} points would show in 4 of 5 studies like this" if ends else ""
        users = max(one.n_users for one in self.behind)
        return [f"Of the others, compared with it on the same {counted(users, 'user')}: {', '.join(parts)}{shown}."]

    def _choices(self) -> list[str]:
        """Say what each stage would have deployed."""
        parts = []
        for stage in dict.fromkeys(one.stage for one in self.regrets if one.stage != self.own.metric):
            one = by_stage(self.regrets, stage)
            if one is not None:
                cost = "the best" if one.chosen == self.best else f"{one.chosen}, costing {price(one)}"
                parts.append(f"{chooser(one)} {cost}")
        if not parts:
            return []
        known = any(one.expected is not None for one in self.regrets)
        rule = " The luck of the measured best, which these users gave it, is taken out of the costs." if known else ""
        return [f"What would have been chosen, and what it costs in points: by {'; by '.join(parts)}.{rule}"]

    def _helped(self, results: StudyResults) -> list[str]:
        named = [one for one in results.heterogeneity if one.point() == self.own.point() and one.share is not None]
        one: HeterogeneityResult | None = next((one for one in named if one.deployment == self.best), None)
        if one is None:
            return []
        spread = f"users differ by {points(one.between)} (standard deviation)"
        if not one.between:
            spread = "users do not differ more than noise makes them"
        return [
            f"{self.best} writes better than {one.baseline} for {number(one.share)} % of users "
            f"{interval(one.ci_low, one.ci_high)}; {spread}."
        ]

    def _cheapest(self, board: Board) -> list[str]:
        """Name the cheapest of the deployments that are not told from the best."""
        alike = [self.best, *(one.a for one in self.behind if standing(one) in _ALIKE)]
        lines = [line for line in board.lines if line.label in alike]
        timed = [(line, cell) for line in lines if (cell := board.cell(line, SECONDS)).value is not None]
        if len(alike) < 2 or not timed:
            return []
        line, cell = min(timed, key=lambda pair: pair[1].value or 0.0)
        return [
            f"The cheapest of the {counted(len(alike), 'deployment')} that are not told from the best, itself "
            f"included, is {line.label} at {cell.text} seconds per completion."
        ]

    def facts(self, board: Board) -> tuple[Fact, ...]:
        """Return the numbers worth large print."""
        out = []
        cell = _cell(board, self.best)
        if cell is not None:
            out.append(Fact(f"Best {self.title}", cell.text, cell.interval, self.best))
        if self.over is not None and self.over.difference is not None:
            ends = interval(self.over.ci_low, self.over.ci_high)
            out.append(Fact(f"Gain over {self.baseline}", signed(self.over.difference), ends, verdict(self.over)))
        one = self.by_accuracy
        if one is not None:
            value = one.regret if one.expected is None else one.expected
            title = "Cost of choosing by RM accuracy"
            chosen = f"{one.chosen}{_luck(one)}"
            out.append(Fact(title, number(value), interval(one.ci_low, one.ci_high), chosen))
        return tuple(out)


def _luck(one: RegretResult) -> str:
    """Return the measured loss beside the expected one, where the two differ in print."""
    if one.expected is None or number(one.expected) == number(one.regret):
        return ""
    return f"; {number(one.regret)} as measured, with the luck of the measured best"


def _over_points(results: StudyResults, choices: Sequence[RegretResult], cautions: tuple[str, ...]) -> Answer:
    """Answer for each point of a study, and say whether they agree."""
    named = titles(choices)
    found = [_Point(results, own) for own in choices]
    winners = Counter(one.best for one in found)
    first, times = winners.most_common(1)[0]
    count = counted(len(found), "point")
    if times == len(found):
        chances = [p for one in found if (p := one.own.p_best.get(first)) is not None]
        ends = list(dict.fromkeys(map(_share, (min(chances), max(chances))))) if chances else []
        sure = f" (with probability {' to '.join(ends)})" if ends else ""
        headline = f"Deploy {first}: it is the best at all {count}{sure}."
    else:
        headline = f"What to deploy depends on the point: {first} is the best at {times} of {count}."
    sentences = [f"{named[one.own.point()]}: {one.headline()}" for one in found[:MOST_POINTS]]
    if len(found) > MOST_POINTS:
        sentences.append(f"The other {counted(len(found) - MOST_POINTS, 'point')} stand in the tables below.")
    missed = [one.by_accuracy for one in found if one.by_accuracy is not None and one.by_accuracy.chosen != one.best]
    judged = sum(one.by_accuracy is not None for one in found)
    if judged:
        costs = [one.regret if one.expected is None else one.expected for one in missed]
        ends = sorted({number(min(costs)), number(max(costs))}, key=float) if costs else []
        where = f"; elsewhere it costs {' to '.join(ends)} points" if ends else ""
        sentences.append(
            f"RM accuracy would have chosen the best at {judged - len(missed)} of {counted(judged, 'point')}{where}."
        )
    return Answer(headline, tuple(sentences), (), cautions)


def _without_pairs(board: Board, cautions: tuple[str, ...]) -> Answer:
    """Say what is highest, and that it was not compared."""
    column = board.criterion
    assert column is not None
    ranked = board.ranked()
    best, top = ranked[0]
    if len(ranked) < 2:
        return Answer(f"{best.label} is the only one with a number: {column.title} {top.full}.", (), (), cautions)
    headline = f"{best.label} has the highest {column.title} of {counted(len(ranked), 'deployment')}, {top.full}."
    sentence = (
        "These results hold no comparison of deployments on the same users, so nobody can say how surely it is the "
        "best. Run the study again: finished cells are kept, and only the comparisons are made."
    )
    return Answer(headline, (sentence,), (Fact(f"Best {column.title}", top.text, top.interval, best.label),), cautions)


def _cautions(results: StudyResults) -> tuple[str, ...]:
    failed = [control.name for control in results.controls if control.passed is False]
    cautions = []
    if failed:
        verb = "fails" if len(failed) == 1 else "fail"
        cautions.append(
            f"{len(failed)} of {counted(len(results.controls), 'control')} {verb} ({', '.join(failed)}): a check "
            "with a known answer came out wrong, so read every number here with that in mind."
        )
    if results.failures:
        cautions.append(f"{counted(len(results.failures), 'cell')} of the study failed; the numbers are missing here.")
    return tuple(cautions)


def _by(metric: str) -> str:
    if metric in ("win_cross", "policy_accuracy"):
        return f"No text of the users to compare with; by {axis(metric)}"
    return f"By {axis(metric)} against what the users wrote,"


def _cell(board: Board, label: str) -> Cell | None:
    line: Line | None = next((line for line in board.lines if line.label == label), None)
    column = board.criterion
    return None if line is None or column is None else board.cell(line, column)


def _users(one: ComparisonResult) -> str:
    return counted(one.n_users, "user")


def _measured(one: ComparisonResult) -> str:
    """Return a difference with its interval, its p and the verdict."""
    return (
        f"{signed(one.difference)} points {interval(one.ci_low, one.ci_high)}".rstrip()
        + (f", p {chance(one.p_holm)} after Holm" if one.p_holm is not None else "")
        + f": {verdict(one)}"
    )


def _share(value: float) -> str:
    """Return a probability; one that no draw of so many contradicts is not called certain."""
    return f"{value:.2f}" if 0.005 <= value <= 0.995 else "over 0.99" if value > 0.5 else "under 0.01"
