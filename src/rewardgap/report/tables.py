"""Terminal tables, and the writers of `results.csv` and Markdown."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from rewardgap.core.results import RESULT_COLUMNS
from rewardgap.core.store import write_text
from rewardgap.report.answer import answer
from rewardgap.report.board import Board, boards
from rewardgap.report.findings import crossover_sentence, measured_tau, tau_text
from rewardgap.report.markdown import markdown_table, study_markdown
from rewardgap.report.numbers import DASH, Cell, Footnotes, counted, finite, span, superscript
from rewardgap.report.overview import across_sentences
from rewardgap.report.signatures import failure_signatures
from rewardgap.report.texts import encodable, plain
from rewardgap.report.words import COLUMNS, GROUPS, RM_ACCURACY, axis, failure_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from rewardgap.core.results import StudyResults

__all__ = ["csv_text", "leaderboard", "markdown_table", "print_summary", "study_markdown", "write_csv"]

_LABEL_WIDTH = 34
_MARKS = {True: Text("✓ pass", "green"), False: Text("✗ FAIL", "bold red"), None: Text(DASH)}


def write_csv(results: StudyResults, path: Path) -> None:
    """Write every row to a CSV file, atomically."""
    write_text(path, csv_text(results))


def csv_text(results: StudyResults) -> str:
    """Return every row as CSV: floats by `repr`, None as an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(RESULT_COLUMNS)
    for row in results.rows:
        writer.writerow(["" if value is None else repr(value) if isinstance(value, float) else value
                         for value in astuple(row)])  # fmt: skip
    return encodable(stream.getvalue())


def leaderboard(
    results: StudyResults,
    *,
    board: Board | None = None,
    groups: Sequence[str] = GROUPS,
    footnotes: Footnotes | None = None,
) -> Table:
    """Return the leaderboard of one point of a study, best behaviour first.

    Args:
        results: the study.
        board: of `boards(results)`; by default the first, of the study's main dataset.
        groups: which groups of columns to show (`words.GROUPS`), so that a narrow terminal takes several tables.
        footnotes: collects the reasons of missing numbers; without it they stand in the table's caption.
    """
    if board is None:
        board = next(iter(boards(results)), None)
    notes = Footnotes() if footnotes is None else footnotes
    columns = [column for column in COLUMNS if column.group in groups]
    lines = [] if board is None else board.ordered()
    cells = [[] if board is None else [board.cell(line, column) for line in lines] for column in columns]
    heads = [column.short for column in columns]
    table = _table(", ".join(groups), heads, [line.label for line in lines], cells, notes)
    if footnotes is None and notes.texts:
        table.caption = _footnotes(notes)
        table.caption_justify = "left"
    return table


def print_summary(results: StudyResults, console: Console) -> None:
    """Print a study: leaderboard by stage, reward models, taus, controls, failure signatures, and the answer last."""
    found = boards(results)
    for board in found:
        users, examples = board.counts()
        console.print()
        counts = f"{span(users)} unseen users, {span(examples)} examples"
        console.print(Text.assemble((plain(board.name), "bold"), f"  {counts}"))
        _print_leaderboard(results, board, console)
        _print_reward_models(board, console)
    _print_taus(results, found, console)
    _print_controls(results, console)
    _print_list("Warning signs", results.signatures or failure_signatures(results), console)
    _print_list("Notes", results.notes, console)
    if results.failures:
        _print_list("Failed cells", [failure_line(one) for one in results.failures], console)
    said = answer(results, found[0] if found else None)
    console.print()
    console.print(Text(plain(said.headline), "bold"))
    for sentence in (*said.cautions, *said.sentences):
        console.print(Text(plain(sentence)))
    rule = "In points, with 95 % intervals over users. Deployments are compared on the same users, p after Holm."
    console.print(Text(rule, "dim"))


def _print_leaderboard(results: StudyResults, board: Board, console: Console) -> None:
    """Print as many groups of columns side by side as the terminal has room for."""
    notes = Footnotes()
    waiting = list(GROUPS)
    while waiting:
        taken = [waiting.pop(0)]
        while waiting and _width(results, board, [*taken, waiting[0]], console) <= console.width:
            taken.append(waiting.pop(0))
        console.print()
        console.print(leaderboard(results, board=board, groups=taken, footnotes=notes))
    if notes.texts:
        console.print(_footnotes(notes))


def _width(results: StudyResults, board: Board, groups: Sequence[str], console: Console) -> int:
    table = leaderboard(results, board=board, groups=groups, footnotes=Footnotes())
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _print_reward_models(board: Board, console: Console) -> None:
    if not board.reward_models:
        return
    notes = Footnotes()
    missing = Cell(note="not measured")
    seen = [model.find(RM_ACCURACY, "seen") or missing for model in board.reward_models]
    unseen = [model.find(RM_ACCURACY, "unseen") or missing for model in board.reward_models]
    labels = [model.label for model in board.reward_models]
    console.print()
    console.print(_table("Reward model, accuracy", ["seen users", "unseen users"], labels, [seen, unseen], notes))
    if notes.texts:
        console.print(_footnotes(notes))


def _print_taus(results: StudyResults, found: Sequence[Board], console: Console) -> None:
    lines = []
    for name, tau in ((board.name, tau) for board in found for tau in board.findings(results.taus)):
        models = counted(tau.n_models, "reward model")
        under = f", {tau.decoder}" if tau.decoder else ""
        measured = "" if finite(tau.tau) is None else f"; measured {measured_tau(tau)}"
        lines.append(f"{name}, {axis(tau.x)} with {axis(tau.y)}{under}, {models}: {tau_text(tau)}{measured}")
    _print_list("Kendall's τ-b, corrected for the noise of users", lines, console)
    own = [crossover_sentence(one) for board in found for one in board.findings(results.crossovers)]
    _print_list("Across points", [*own, *across_sentences(results, found)], console)


def _print_controls(results: StudyResults, console: Console) -> None:
    if not results.controls:
        return
    labels = [f"{one.name} ({one.method})" if one.method else one.name for one in results.controls]
    cells = [Cell(one.value, one.ci_low, one.ci_high, unit=one.unit) for one in results.controls]
    outcomes = [_MARKS[one.passed] for one in results.controls]
    expected = [Text(plain(one.expectation)) for one in results.controls]
    others = (("outcome", outcomes), ("expected", expected))
    table = _table("Control", ["value"], labels, [cells], Footnotes(), others)
    console.print()
    console.print(table)


def _print_list(title: str, texts: Sequence[str], console: Console) -> None:
    if not texts:
        return
    console.print()
    console.print(Text(title, "bold"))
    grid = Table.grid(padding=(0, 1))
    grid.add_column()
    grid.add_column(overflow="fold")
    for text in texts:
        grid.add_row("•", Text(plain(text)))
    console.print(grid)


def _table(
    first: str,
    heads: Sequence[str],
    labels: Sequence[str],
    columns: Sequence[Sequence[Cell]],
    notes: Footnotes,
    others: Sequence[tuple[str, Sequence[Text]]] = (),
) -> Table:
    """Return a table of labels, columns of numbers, and columns of other texts."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    table.add_column(first, overflow="fold", max_width=_LABEL_WIDTH)
    marks = [[notes.mark(column[i].note) for column in columns] for i in range(len(labels))]
    for head in heads:
        # The texts of a column are equally long; a column justified to the right would cut their blanks off.
        table.add_column(Text(head, justify="right"), overflow="fold")
    for head, _ in others:
        table.add_column(head, overflow="fold")
    numbers = [_aligned(column, [row[j] for row in marks], len(heads[j])) for j, column in enumerate(columns)]
    for i, label in enumerate(labels):
        table.add_row(plain(label), *(column[i] for column in numbers), *(texts[i] for _, texts in others))
    return table


def _aligned(cells: Sequence[Cell], marks: Sequence[int], width: int) -> list[Text]:
    """Return the texts of a column, at least `width` wide, with numbers, marks and intervals each in line."""
    signs = [superscript(mark) if mark else "" for mark in marks]
    signed = max((len(sign) for sign in signs), default=0)
    spread = max((len(cell.interval) for cell in cells), default=0)
    rest = signed + (spread + 1 if spread else 0)
    wide = max([width - rest, *(len(cell.text) for cell in cells)])
    texts = []
    for cell, sign in zip(cells, signs, strict=True):
        text = Text(cell.text.rjust(wide) + sign.ljust(signed))
        if spread:
            text.append(" " + cell.interval.ljust(spread), "dim")
        texts.append(text)
    return texts


def _footnotes(notes: Footnotes) -> Text:
    return Text("\n".join(f"{superscript(i)} {plain(text)}" for i, text in enumerate(notes.texts, 1)), "dim")
