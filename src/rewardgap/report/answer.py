"""The answer a reader came for: what to deploy, how sure that is, and what ranking accuracy would have cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewardgap.report.numbers import Cell, compare, counted, number
from rewardgap.report.words import RM_ACCURACY, ROUGE_1, SECONDS, Column

if TYPE_CHECKING:
    from rewardgap.core.results import StudyResults
    from rewardgap.report.board import Board, Line


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
    column = None if board is None else board.criterion
    if board is None or column is None:
        return Answer("Nothing was measured that could choose a deployment.", (), (), cautions)
    ranked = board.ranked()
    best, top = ranked[0]
    sentences = [f"{_by(column)} the best of {counted(len(ranked), 'deployment')} is {best.label} with {top.full}."]
    facts = [Fact(f"Best {column.title}", top.text, top.interval, best.label)]
    base = next(((line, cell) for line, cell in ranked if line.is_baseline), None)
    alike = sum(compare(cell, top) == "overlap" for line, cell in ranked[1:])
    headline = f"Deploy {best.label}."
    if alike:
        headline = f"Deploy {best.label}; {counted(alike, 'other')} cannot be told from it."
    if base is not None and not best.is_baseline:
        line, cell = base
        verdict = compare(top, cell)
        if verdict == "overlap":
            headline = f"{best.label} is ahead, but not distinguishable from {line.label}."
        elif verdict == "unknown":
            headline = f"{best.label} is ahead of {line.label}; without intervals nobody can say how surely."
        sentences.append(
            f"That is {_gap(top, cell)} above {line.label} ({cell.full}); "
            + _outside(verdict, "the lead is outside the intervals", "the lead is not distinguishable", cell.n_users)
        )
        facts.append(Fact(line.label, cell.text, cell.interval, f"{_gap(top, cell)} behind"))
    elif best.is_baseline:
        headline = f"Deploy {best.label}: nothing here was measured to write better."
    rest = [pair for pair in ranked[1:] if base is None or pair[0] is not base[0]]
    if rest:
        line, cell = rest[0]
        sentences.append(
            f"{'Next' if best.is_baseline else 'Second'} is {line.label} with {cell.full}, {_gap(top, cell)} behind; "
            + _outside(compare(top, cell), "the two are distinguishable", "they are not distinguishable", top.n_users)
        )
    sentences += _choice(board, column, best, top, facts)
    sentences += _cheapest(board, ranked, top)
    return Answer(headline, tuple(sentences), tuple(facts), cautions)


def _choice(board: Board, column: Column, best: Line, top: Cell, facts: list[Fact]) -> list[str]:
    """Say what choosing by RM accuracy would have deployed; of its settings the one that writes best."""
    models = [(model, cell) for model in board.reward_models if (cell := model.find(RM_ACCURACY)) is not None]
    models = [pair for pair in models if pair[1].value is not None]
    if not models:
        return []
    model, accuracy = max(models, key=lambda pair: pair[1].value or 0.0)
    settings = [pair for pair in board.ranked() if board.reward_model(pair[0]) is model]
    named = f"{model.label}, the highest RM accuracy of {counted(len(models), 'reward model')} ({accuracy.full})"
    if not settings:
        return [f"Choosing by RM accuracy would take {named}, but no deployment guided by it has a {column.title}."]
    line, cell = settings[0]
    gap = _gap(top, cell)
    kind = "at the best of its settings, " if len(settings) > 1 else ""
    facts.append(
        Fact(f"{column.title} when chosen by RM accuracy", cell.text, cell.interval,
             line.label if line is best else f"{line.label}, {gap} below the best")
    )  # fmt: skip
    if line is best:
        return [f"Choosing by RM accuracy would have deployed the same: {named}, and this costs nothing here."]
    return [
        f"Choosing by RM accuracy would have deployed {named}: {kind}{line.label} has {cell.full}. That costs {gap}; "
        + _outside(compare(top, cell), "the cost is outside the intervals", "the cost is not distinguishable from none",
                   cell.n_users)
    ]  # fmt: skip


def _cheapest(board: Board, ranked: list[tuple[Line, Cell]], top: Cell) -> list[str]:
    """Name the cheapest of the deployments that the intervals cannot tell from the best."""
    alike = [line for line, cell in ranked if cell is top or compare(cell, top) == "overlap"]
    timed = [(line, cell) for line in alike if (cell := board.cell(line, SECONDS)).value is not None]
    if len(alike) < 2 or not timed:
        return []
    line, cell = min(timed, key=lambda pair: pair[1].value or 0.0)
    return [
        f"{counted(len(alike), 'deployment')} (the best included) cannot be told apart by their intervals; the "
        f"cheapest of them is {line.label} at {cell.text} seconds per completion."
    ]


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


def _by(column: Column) -> str:
    if column is ROUGE_1:
        return "By ROUGE-1 against what the users wrote,"
    return f"No text of the users to compare with; by {column.title.lower()}"


def _gap(a: Cell, b: Cell) -> str:
    return f"{number((a.value or 0.0) - (b.value or 0.0))} points"


def _outside(verdict: str, yes: str, no: str, users: int) -> str:
    if verdict == "unknown":
        return "no interval was computed, so whether this is more than chance is unknown."
    if verdict == "overlap":
        return f"the intervals overlap: on {counted(users, 'user')} {no}."
    return f"{yes} ({counted(users, 'user')})."
