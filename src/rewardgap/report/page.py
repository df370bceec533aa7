"""One self-contained HTML page: no network, no library, every text from data escaped.

The content security policy of the page allows its own style and script by their hashes and nothing else, so that a
text which slipped through escaping could still not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rewardgap.core.store import write_text
from rewardgap.report import checks, figures
from rewardgap.report.answer import answer
from rewardgap.report.board import Board, Line, at, boards, dataset_name
from rewardgap.report.diagnosis import SOUND, diagnose
from rewardgap.report.explorer import explorer
from rewardgap.report.findings import crossover_sentence, standing
from rewardgap.report.goodhart import Goodhart, goodhart
from rewardgap.report.judge_sheet import judge_sheet
from rewardgap.report.lines import draw
from rewardgap.report.numbers import Cell, Footnotes
from rewardgap.report.overview import across_sentences, overview, several_points
from rewardgap.report.sheets import choice_sheet, comparison_sheets, tau_sheets, user_sheet
from rewardgap.report.signatures import failure_signatures
from rewardgap.report.sweep import MOST, sweeps
from rewardgap.report.templates import CONTROLS, content_hash, source, template_environment
from rewardgap.report.texts import encodable
from rewardgap.report.values import as_yaml, flat
from rewardgap.report.waterfall import waterfall
from rewardgap.report.words import COLUMNS, DETAILS, GLOSSARY, POLICY_ACCURACY, RM_ACCURACY, ROUGE_1, Column

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rewardgap.core.results import StudyResults
    from rewardgap.report.figures import Chart

SMALL = 110.0
"""Height in pixels of a chart among many alike."""


def write(results: StudyResults, path: Path) -> None:
    """Write the page of a study, atomically."""
    write_text(path, render(results))


def render(results: StudyResults) -> str:
    """Return the page of a study. The same results give the same bytes."""
    found = boards(results)
    swept = sweeps(found)
    style, script = source("page.css"), source("page.js")
    page = (
        template_environment()
        .get_template("page.html.j2")
        .render(
            study=results,
            answer=answer(results, found[0] if found else None),
            views=[_view(at(results, board), board) for board in found],
            choosing=several_points(found),
            names=list(dict.fromkeys(board.dataset for board in found)),
            overview=overview(results, found),
            sweeps=[chart for one in swept[:MOST] if (chart := draw(one)) is not None],
            sweeps_left_out=max(0, len(swept) - MOST),
            across=across_sentences(results, found),
            signatures=results.signatures or failure_signatures(results),
            statistics=[(dataset_name(one), flat(_without_name(one))) for one in results.datasets],
            checks=[checks.view(one["check"]) for one in results.datasets if "check" in one],
            explorer=explorer(results, found),
            failure_columns=list(dict.fromkeys(name for one in results.failures for name in one)),
            study_yaml=as_yaml(results.study) if results.study else "",
            environment=flat(results.environment),
            sound=SOUND,
            glossary=GLOSSARY,
            style=Markup(style),  # our own file
            script=Markup(script),  # our own file
            style_hash=content_hash(style),
            script_hash=content_hash(script),
        )
    )
    return encodable(page).translate(CONTROLS)


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell of a table, with what the page needs besides the number."""

    cell: Cell
    mark: int
    standing: str


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of lines by columns; `sorted_by` is the index of the column it is sorted by, -1 for none."""

    columns: tuple[Column, ...]
    groups: tuple[tuple[str, int], ...]
    rows: tuple[tuple[str, str, tuple[Shown, ...]], ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    sorted_by: int


def _view(results: StudyResults, board: Board) -> dict[str, Any]:
    """Return everything the page shows of one point; the results hold what statistics found there alone."""
    return {
        "name": board.name,
        "counts": board.counts(),
        "seeds": board.seeds,
        "board": _grid(board, board.ordered(), COLUMNS, _worse(results, board)),
        "details": _grid(board, board.ordered(), DETAILS, set()),
        "models": _models(board),
        "forest": figures.forest(board),
        "scatters": [figures.scatter(board, POLICY_ACCURACY), figures.scatter(board, ROUGE_1)],
        "taus": tau_sheets(results, board.dataset),
        "compared": comparison_sheets(results, board.dataset),
        "choice": choice_sheet(results, board.dataset),
        "gains": user_sheet(results, board.dataset),
        "crossovers": [crossover_sentence(one) for one in results.crossovers],
        "waterfall": waterfall(results.decompositions),
        "goodhart": [_multiples(one) for one in goodhart(results.decompositions)],
        "faults": diagnose(results.decompositions),
        "judges": figures.judges(board),
        "verdicts": judge_sheet(board),
        "shots": figures.shots(board),
        "baselines": figures.baselines(board, results.baselines),
        "baseline_rows": results.baselines,
    }


def _worse(results: StudyResults, board: Board) -> set[tuple[str, str]]:
    """Return metric and label of what is worse than the best of its metric on the same users."""
    own = [one for one in results.comparisons if one.dataset == board.dataset and one.b_is == "best"]
    return {(one.metric, one.a) for one in own if standing(one) == "worse"}


def _grid(board: Board, lines: Sequence[Line], columns: Sequence[Column], worse: set[tuple[str, str]]) -> Grid:
    kept = [column for column in columns if board.has(column)]
    best = {column.name: ranked[0][1] for column in kept if column.ranked and (ranked := board.ranked(column))}
    notes = Footnotes()
    rows = []
    for line in lines:
        shown = []
        for column in kept:
            cell = board.cell(line, column)
            top = best.get(column.name)
            is_best = top is not None and cell.value is not None and cell.value == top.value
            behind = (column.metric, line.label) in worse
            shown.append(Shown(cell, notes.mark(cell.note), "best" if is_best else "behind" if behind else ""))
        rows.append((line.label, figures.kind(line), tuple(shown)))
    groups: dict[str, int] = {}
    for column in kept:
        groups[column.group] = groups.get(column.group, 0) + 1
    criterion = board.criterion
    at = kept.index(criterion) if criterion in kept else -1
    left_out = tuple(column.title for column in columns if column not in kept)
    return Grid(tuple(kept), tuple(groups.items()), tuple(rows), tuple(notes.texts), left_out, at)


def _models(board: Board) -> list[tuple[str, Cell, Cell, Cell]]:
    """Return label, seen and unseen accuracy and tie rate of each reward model."""
    ties = Column("ties", "", "ties", "", "rm_accuracy", "tie_rate")
    missing = Cell(note="not measured")
    return [
        (
            model.label,
            model.find(RM_ACCURACY, "seen") or missing,
            model.find(RM_ACCURACY) or missing,
            model.find(ties) or missing,
        )
        for model in board.reward_models
    ]


def _multiples(one: Goodhart) -> dict[str, Any]:
    """Return the small charts of one decoder, reward above behaviour, and their numbers as a table."""
    rewards, behaviours = one.scales()
    charts: list[tuple[str, list[Chart]]] = []
    for trial in one.trials:
        pair = [draw(one.rewards(trial), SMALL, rewards), draw(one.behaviours(trial), SMALL, behaviours)]
        charts.append((trial.method, [chart for chart in pair if chart is not None]))
    return {"decoder": one.decoder, "charts": charts, "sheet": one.sheet()}


def _without_name(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("name", "dataset", "check")}
