"""Results as Markdown: one table, or a page for a folder of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.report.answer import answer
from rewardgap.report.board import Board, at, boards
from rewardgap.report.diagnosis import SOUND, diagnose
from rewardgap.report.findings import crossover_sentence
from rewardgap.report.goodhart import goodhart
from rewardgap.report.judge_sheet import judge_sheet
from rewardgap.report.numbers import DASH, Cell, Footnotes, span, superscript
from rewardgap.report.overview import across_sentences, overview
from rewardgap.report.sheets import choice_sheet, comparison_sheets, tau_sheets, user_sheet
from rewardgap.report.signatures import failure_signatures
from rewardgap.report.texts import fenced, markdown
from rewardgap.report.values import as_yaml, flat
from rewardgap.report.waterfall import step_sheet
from rewardgap.report.words import COLUMNS, RM_ACCURACY, failure_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewardgap.core.results import StudyResults
    from rewardgap.report.sheets import Sheet

_MARKS = {True: "pass", False: "**fail**", None: DASH}


def markdown_table(results: StudyResults) -> str:
    """Return the leaderboard of the study as one Markdown table with footnotes, best behaviour first."""
    found = boards(results)
    notes = Footnotes()
    rows = []
    for board in found:
        first = [markdown(board.name)] if len(found) > 1 else []
        rows += [[*first, *row] for row in _leaderboard(board, notes)]
    several = any(board.is_one_of_several for board in found)
    heads = [*(["Point" if several else "Dataset"] if len(found) > 1 else []), *_HEADS]
    return _table(heads, rows, len(heads) - len(COLUMNS)) + _footnotes(notes)


def study_markdown(results: StudyResults) -> str:
    """Return a page: what was run, the answer, and every table of the study."""
    found = boards(results)
    said = answer(results, found[0] if found else None)
    parts = [f"# {markdown(results.name)}", f"**{markdown(said.headline)}**"]
    parts.append(_bullets((*said.cautions, *said.sentences, *results.notes)))
    whole = overview(results, found)
    parts += ["## Points", *_sheets([whole])[1:]] if whole is not None else []
    across = across_sentences(results, found)
    parts += ["## Across points", _bullets(across)] if across else []
    for board in found:
        users, examples = board.counts()
        notes = Footnotes()
        parts += [
            f"## {markdown(board.name)}",
            f"{span(users)} unseen users, {span(examples)} examples. Numbers in points, each with the 95 % interval of "
            "a bootstrap over users.",
            _table(_HEADS, _leaderboard(board, notes), 1) + _footnotes(notes),
        ]
        if board.reward_models:
            notes = Footnotes()
            parts += ["### Reward models", _table(("Reward model", "Seen users", "Unseen users"), (
                [markdown(model.label), *(_cell(model.find(RM_ACCURACY, users) or Cell(note="not measured"), notes)
                                          for users in ("seen", "unseen"))]
                for model in board.reward_models
            ), 1) + _footnotes(notes)]  # fmt: skip
        parts += _findings(at(results, board), board)
    parts += _controls(results) + _baselines(results)
    signs = results.signatures or failure_signatures(results)
    parts += ["## Warning signs", _bullets(signs)] if signs else []
    if results.failures:
        parts += ["## Failed cells", _bullets(failure_line(one) for one in results.failures)]
    parts += ["## What was run"]
    parts += [fenced(results.command, "sh")] if results.command else []
    parts += [fenced(as_yaml(results.study), "yaml")] if results.study else []
    if results.environment:
        rows = [[markdown(name), markdown(value)] for name, value in flat(results.environment)]
        parts.append(_table(("Environment", "Value"), rows, 2))
    return "\n\n".join(part for part in parts if part) + "\n"


_HEADS = ("Deployment", *(column.title for column in COLUMNS))


def _leaderboard(board: Board, notes: Footnotes) -> list[list[str]]:
    return [
        [markdown(line.label), *(_cell(board.cell(line, column), notes) for column in COLUMNS)]
        for line in board.ordered()
    ]


def _findings(results: StudyResults, board: Board) -> list[str]:
    """Return the tables of what statistics found at a point, and in words where it is lost and where curves cross."""
    steps, faults = step_sheet(results.decompositions), diagnose(results.decompositions)
    parts = _sheets([
        *comparison_sheets(results, board.dataset),
        choice_sheet(results, board.dataset),
        user_sheet(results, board.dataset),
        *tau_sheets(results, board.dataset),
        judge_sheet(board),
        steps,
        *(one.sheet() for one in goodhart(results.decompositions)),
    ])  # fmt: skip
    if steps is not None:
        parts += ["### What the steps show", _bullets(faults or (SOUND,))]
    crossings = [crossover_sentence(one) for one in results.crossovers]
    return parts + (["### Where in context overtakes guidance", _bullets(crossings)] if crossings else [])


def _sheets(found: Sequence[Sheet | None]) -> list[str]:
    parts = []
    for sheet in found:
        if sheet is not None:
            rows = [[markdown(text) for text in row] for row in sheet.rows]
            heads = [markdown(head) for head in sheet.heads]
            parts += [f"### {markdown(sheet.title)}", _table(heads, rows, sheet.left, sheet.numbers)]
    return parts


def _controls(results: StudyResults) -> list[str]:
    rows = [
        [markdown(one.name), markdown(one.dataset), markdown(one.method or DASH),
         Cell(one.value, one.ci_low, one.ci_high, unit=one.unit).full, markdown(one.expectation), _MARKS[one.passed],
         markdown(one.sentence)]
        for one in results.controls
    ]  # fmt: skip
    heads = ("Control", "Dataset", "Method", "Value", "Expected", "Outcome", "In words")
    return ["## Controls", _table(heads, rows, 3, 1)] if rows else []


def _baselines(results: StudyResults) -> list[str]:
    rows = [
        [markdown(one.dataset), markdown(one.name), Cell(one.value, one.ci_low, one.ci_high).full,
         f"{one.n_users} / {one.n_examples}", markdown(one.summary)]
        for one in results.baselines
    ]  # fmt: skip
    heads = ("Dataset", "Ranker", "Accuracy", "Users / pairs", "What it does")
    return ["## What can be had without a reward model", _table(heads, rows, 2, 2)] if rows else []


def _cell(cell: Cell, notes: Footnotes) -> str:
    mark = notes.mark(cell.note)
    return cell.full + (superscript(mark) if mark else "")


def _footnotes(notes: Footnotes) -> str:
    if not notes.texts:
        return ""
    return "\n\n" + "  \n".join(f"{superscript(i)} {markdown(text)}" for i, text in enumerate(notes.texts, 1))


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {markdown(text)}" for text in texts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int, numbers: int | None = None) -> str:
    """Return a Markdown table whose first `left` columns are text, the next `numbers` (default: the rest) numbers."""
    right = len(heads) if numbers is None else left + numbers
    rule = ["---:" if left <= i < right else "---" for i in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))
