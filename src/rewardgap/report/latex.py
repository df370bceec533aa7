"""Results as LaTeX: booktabs tables to paste into a paper, each with its caption and label."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from rewardgap.report.board import Board, at, boards
from rewardgap.report.diagnosis import SOUND, diagnose
from rewardgap.report.goodhart import goodhart
from rewardgap.report.judge_sheet import judge_sheet
from rewardgap.report.numbers import DASH, Cell, Footnotes, span
from rewardgap.report.overview import overview
from rewardgap.report.sheets import Sheet, choice_sheet, comparison_sheets, tau_sheets, user_sheet
from rewardgap.report.texts import plain
from rewardgap.report.waterfall import step_sheet
from rewardgap.report.words import COLUMNS, RM_ACCURACY, Column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewardgap.core.results import StudyResults

HEAD = (
    "% Written by `rewardgap report RUN --format latex`. Needs \\usepackage{booktabs}, and a font with Greek letters\n"
    "% for names that have some."
)
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "λ": r"$\lambda$", "τ": r"$\tau$", "·": r"$\cdot$", "−": "$-$", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$",
    "→": r"$\to$", "²": r"$^2$", "±": r"$\pm$", "–": "--", "…": r"\dots{}",
}  # fmt: skip
_INTERVAL = re.compile(r" \[[^\[\]]*\]$")


def latex(text: object) -> str:
    """Return one line of LaTeX that prints the text literally."""
    return "".join(_SPECIAL.get(character, character) for character in plain(text))


def study_latex(results: StudyResults) -> str:
    """Return every table of a study."""
    found = boards(results)
    parts = [HEAD]
    whole = overview(results, found)
    parts += [] if whole is None else [_sheet(whole, f"{whole.title}.", _named(results.name, "points"))]
    for board in found:
        own = at(results, board)
        parts.append(_leaderboard(results, board))
        if board.reward_models:
            parts.append(_reward_models(results, board))
        steps = step_sheet(own.decompositions)
        sheets = [
            *comparison_sheets(own, board.dataset),
            choice_sheet(own, board.dataset),
            user_sheet(own, board.dataset),
            *tau_sheets(own, board.dataset),
            judge_sheet(board),
            steps,
            *(one.sheet() for one in goodhart(own.decompositions)),
        ]
        for number, sheet in enumerate((sheet for sheet in sheets if sheet is not None), 1):
            parts.append(_sheet(sheet, f"{sheet.title}. {board.name}.", _label(results, board, str(number))))
        if steps is not None:
            parts.append(_sentences(diagnose(own.decompositions) or [SOUND]))
    return "\n\n".join(parts) + "\n"


def _sheet(sheet: Sheet, caption: str, label: str) -> str:
    kinds = "l" * sheet.left + "r" * sheet.numbers + "l" * (len(sheet.heads) - sheet.left - sheet.numbers)
    rows = [[_number(text) for text in row] for row in sheet.rows]
    return _table(kinds, [latex(head) for head in sheet.heads], rows, caption, label)


def _sentences(texts: Iterable[str]) -> str:
    return "\n".join([r"\begin{itemize}", *(rf"\item {latex(text)}" for text in texts), r"\end{itemize}"])


def _leaderboard(results: StudyResults, board: Board) -> str:
    notes = Footnotes()
    lines = board.ordered()
    shown = [column for column in COLUMNS if any(board.cell(line, column).value is not None for line in lines)]
    rows = [
        [latex(line.label), *_marked([board.cell(line, column) for column in shown], shown, notes, board)]
        for line in lines
    ]
    users, examples = board.counts()
    caption = (
        f"Deployments on {board.name}: {span(users)} unseen users, {span(examples)} examples. Points, with the 95 "
        "percent interval of a bootstrap over users; the highest of a column is bold."
    )
    notes_text = "".join(f" {number}: {text}." for number, text in enumerate(notes.texts, 1))
    heads = ["Deployment", *(latex(column.title) for column in shown)]
    return _table("l" + "r" * len(shown), heads, rows, caption + notes_text, _label(results, board, "deployments"))


def _marked(cells: Sequence[Cell], columns: Sequence[Column], notes: Footnotes, board: Board) -> list[str]:
    out = []
    for cell, column in zip(cells, columns, strict=True):
        mark = notes.mark(cell.note)
        text = _number(cell.full) + (f"$^{{{mark}}}$" if mark else "")
        values = [other for line in board.lines if (other := board.cell(line, column).value) is not None]
        best = column.ranked and cell.value is not None and min(values) < cell.value == max(values)
        out.append(rf"\textbf{{{text}}}" if best else text)
    return out


def _reward_models(results: StudyResults, board: Board) -> str:
    rows = [
        [
            latex(model.label),
            *(_number((model.find(RM_ACCURACY, users) or Cell(note="not measured")).full) for users in _USERS),
        ]
        for model in board.reward_models
    ]
    heads = ["Reward model", "Seen users", "Unseen users"]
    caption = f"Accuracy of reward models on held-out pairs of {board.name}, in points."
    return _table("lrr", heads, rows, caption, _label(results, board, "reward-models"))


_USERS: tuple[Literal["seen", "unseen"], ...] = ("seen", "unseen")


def _number(text: str) -> str:
    """Return a number with its interval in small print."""
    found = _INTERVAL.search(text)
    if found is None or text == DASH:
        return latex(text)
    return f"{latex(text[: found.start()])} {{\\scriptsize {latex(found.group().strip())}}}"


def _label(results: StudyResults, board: Board, part: str) -> str:
    return _named(results.name, board.name, part)


def _named(*parts: str) -> str:
    return "tab:" + re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def _table(kinds: str, heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str, label: str) -> str:
    body = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ])  # fmt: skip
