"""Every chart of a report as SVG and PDF for a paper: one and two columns wide, the same bytes whenever rebuilt."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from rewardgap.core.errors import MissingExtraError
from rewardgap.core.store import write_bytes
from rewardgap.report.board import at, boards
from rewardgap.report.dots import CHANCE, kind
from rewardgap.report.figures import scatter_levels, scatter_points, shot_curves
from rewardgap.report.goodhart import goodhart
from rewardgap.report.numbers import Cell, finite
from rewardgap.report.sweep import sweeps
from rewardgap.report.texts import plain
from rewardgap.report.waterfall import waterfall
from rewardgap.report.words import POLICY_ACCURACY, RM_ACCURACY, ROUGE_1, WIN_CROSS, WIN_SELF, Column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rewardgap.core.results import StudyResults
    from rewardgap.report.board import Board
    from rewardgap.report.goodhart import Goodhart, Trial
    from rewardgap.report.lines import Curves
    from rewardgap.report.waterfall import Waterfall

    Draw: TypeAlias = Callable[[Any], None]

WIDTHS = {"1col": 3.3, "2col": 6.9}
"""Name of a width to inches: a column of a paper, and its page."""
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that are told apart with any colour vision (Okabe and Ito 2008), without the yellow, too light on paper."""
NARROW_LABEL, WIDE_LABEL = 36, 60
"""Characters of a row's label in a figure of one column, and of two."""
MARKERS, DASHES = "osD^vPX", ("-", "--", "-.", ":")
_FAMILIES = {"guided": (OKABE_ITO[0], "o"), "context": (OKABE_ITO[1], "s"), "base": ("#000000", "D")}
_LOOKS = _FAMILIES | {
    "c0": (OKABE_ITO[1], "s"), "c1": (OKABE_ITO[4], "^"), "c2": (OKABE_ITO[3], "v"), "c3": (OKABE_ITO[5], "P"),
    "k2": (OKABE_ITO[2], "s"),
}  # fmt: skip
"""Style of a curve on the page to what it looks like on paper."""
_FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "ModDate": None},
}
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "legend.fontsize": 6.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.6,
    "errorbar.capsize": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.hashsalt": "rewardgap",
    "svg.fonttype": "path",
    "hatch.linewidth": 0.4,
    "pdf.fonttype": 42,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure: its file name, its height in inches, and what draws it on the axes of each of its rows and columns."""

    name: str
    height: float
    draw: Draw
    grid: tuple[int, int] = field(default=(1, 1))


def write_figures(results: StudyResults, folder: Path) -> list[Path]:
    """Write every chart of a study into a folder, each in two widths as SVG and PDF.

    Args:
        results: the study.
        folder: made where it is missing; files of the same names are replaced.

    Returns:
        The files, in the order of the report.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "figures for a paper are drawn by matplotlib, which is not installed; pip install 'rewardgap[figures]'."
        ) from error
    written = []
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **_STYLE}):
        for plot in plots(results):
            for width, inches in WIDTHS.items():
                for form in _FORMATS:
                    path = folder / f"{plot.name}-{width}.{form}"
                    write_bytes(path, _drawn(plot, inches, form))
                    written.append(path)
    return written


def plots(results: StudyResults) -> Iterator[Plot]:
    """Yield the figures for which there are numbers, in the order of the report."""
    found = boards(results)
    for number, curves in enumerate(sweeps(found), 1):
        yield Plot(f"points-{number}", 2.3, partial(_curves, curves))
    for board in found:
        yield from _of_board(at(results, board), board, f"{_slug(board.name)}-" if len(found) > 1 else "")


def _of_board(results: StudyResults, board: Board, prefix: str) -> Iterator[Plot]:
    ranked = board.ranked(ROUGE_1)
    if ranked:
        yield Plot(f"{prefix}behaviour", _tall(len(ranked)), partial(_forest, board))
    for column in (POLICY_ACCURACY, ROUGE_1):
        if scatter_points(board, column):
            yield Plot(f"{prefix}rm-accuracy-{column.name}", 2.5, partial(_scatter, board, column))
    steps = waterfall(results.decompositions)
    if steps is not None:
        rows = sum(len(fall.bars) + 1 for fall in steps.falls)
        yield Plot(f"{prefix}waterfall", _tall(rows, 0.14), partial(_waterfall, steps))
    for one in goodhart(results.decompositions):
        name = f"{prefix}goodhart-{_slug(one.decoder)}"
        yield Plot(name, 1.25 * len(one.trials), partial(_goodhart, one), (len(one.trials), 2))
    judged = [line for line in board.ordered() if line.is_guided and (line.cells(WIN_SELF) + line.cells(WIN_CROSS))]
    if judged:
        yield Plot(f"{prefix}judges", _tall(len(judged)), partial(_judges, board))
    shots = shot_curves(board)
    if shots is not None:
        yield Plot(f"{prefix}shots", 2.3, partial(_curves, shots))
    if results.baselines:
        count = len(results.baselines) + len(board.reward_models)
        yield Plot(f"{prefix}baselines", _tall(count), partial(_baselines, results, board))


def _drawn(plot: Plot, inches: float, form: str) -> bytes:
    from io import BytesIO

    from matplotlib.figure import Figure

    figure = Figure(figsize=(inches, plot.height), layout="constrained")
    axes = figure.subplots(*plot.grid, squeeze=False)
    plot.draw(axes)
    stream = BytesIO()
    figure.savefig(stream, format=form, metadata=_FORMATS[form])
    return stream.getvalue()


def _forest(board: Board, axes: Any) -> None:
    ax, ranked = axes[0][0], board.ranked(ROUGE_1)
    for place, (line, cell) in enumerate(ranked):
        colour, marker = _FAMILIES[kind(line)]
        _dot(ax, cell, place, colour, marker)
        if line.is_baseline and cell.low is not None and cell.high is not None:
            ax.axvspan(100 * cell.low, 100 * cell.high, color="0.9", zorder=0)
    _rows(ax, [plain(line.label) for line, _ in ranked], "ROUGE-1, points")


def _scatter(board: Board, y: Column, axes: Any) -> None:
    ax = axes[0][0]
    looks: dict[str, tuple[str, str]] = {}
    for line, a, b in scatter_points(board, y):
        model = board.reward_model(line)
        name = plain(line.identity.method if model is None else model.label)
        new = name not in looks
        colour, marker = looks.setdefault(name, _look(len(looks)))
        ax.errorbar(100 * (a.value or 0.0), 100 * (b.value or 0.0), yerr=_arms(b), xerr=_arms(a), color=colour,
                    marker=marker, linestyle="none", elinewidth=0.5, label=name if new else None)  # fmt: skip
    for name, cell, style in scatter_levels(board, y):
        dash = "--" if style == "base" else ":"
        ax.axhline(100 * (cell.value or 0.0), color=_FAMILIES[style][0], linestyle=dash, linewidth=0.8,
                   label=plain(name, 40))  # fmt: skip
    ax.set_xlabel(f"{RM_ACCURACY.title}, unseen users, points")
    ax.set_ylabel(f"{y.title}, points")
    _legend(ax)


def _curves(curves: Curves, axes: Any, *, ax: Any = None, legend: bool = True) -> None:
    ax = axes[0][0] if ax is None else ax
    size = 1.0 if curves.plain_units else 100.0
    for turn, curve in enumerate(curves.curves):
        colour, marker = _LOOKS.get(curve.style) or _look(turn)
        known = curve.known()
        shift = 0.06 * (turn - (len(curves.curves) - 1) / 2)
        ax.errorbar([place + shift for place, _, _ in known], [size * (c.value or 0.0) for _, _, c in known],
                    yerr=_stacked([c for _, _, c in known], size), color=colour, marker=marker, elinewidth=0.5,
                    linestyle=DASHES[turn % len(DASHES)], label=plain(curve.name, 40))  # fmt: skip
    for name, cell, style in curves.levels:
        dash = "--" if style == "base" else ":"
        if cell.low is not None and cell.high is not None:
            ax.axhspan(size * cell.low, size * cell.high, color=_FAMILIES[style][0], alpha=0.08, linewidth=0)
        ax.axhline(size * (cell.value or 0.0), color=_FAMILIES[style][0], linestyle=dash, linewidth=0.8,
                   label=plain(name, 40))  # fmt: skip
    ax.set_xticks(range(len(curves.places)), [plain(place, 18) for place in curves.places])
    ax.set_xlim(-0.5, len(curves.places) - 0.5)
    ax.set_xlabel(plain(curves.x_title))
    ax.set_ylabel(plain(curves.y_title) + ("" if curves.plain_units else ", points"))
    if legend:
        _legend(ax)


def _goodhart(one: Goodhart, axes: Any) -> None:
    def draw(trial: Trial, row: Any, is_last: bool) -> None:
        for ax, curves in zip(row, (one.rewards(trial), one.behaviours(trial)), strict=True):
            _curves(curves, None, ax=ax, legend=False)
            ax.set_xlabel("λ" if is_last else "")
        row[0].set_ylabel(f"{plain(trial.method, 18)}\nown reward, s.d.")
        row[1].set_ylabel(row[1].get_ylabel().replace(", points", "\nover zero-shot"))

    for place, trial in enumerate(one.trials):
        draw(trial, axes[place], place == len(one.trials) - 1)
    for column, span in enumerate(one.scales()):
        if span is not None:
            size = 1.0 if column == 0 else 100.0
            for row in axes:
                row[column].set_ylim(size * span.low, size * span.high)


def _waterfall(steps: Waterfall, axes: Any) -> None:
    ax = axes[0][0]
    looks = {"stage": (OKABE_ITO[0], ""), "loss": (OKABE_ITO[1], "////"), "gain": (OKABE_ITO[2], "....")}
    labels: list[str] = []
    for fall in steps.falls:
        labels.append(plain(f"{fall.method}  {fall.detail}"))
        for bar, _ in fall.bars:
            colour, hatch = looks[bar.style]
            value = 100 * (bar.cell.value or 0.0)
            ax.barh(len(labels), value, left=100 * bar.begin, height=0.62, facecolor=_pale(colour), hatch=hatch,
                    edgecolor=colour, linewidth=0.4)  # fmt: skip
            if bar.cell.low is not None and bar.cell.high is not None:
                ends = [100 * (bar.begin + end) for end in (bar.cell.low, bar.cell.high)]
                ax.plot(ends, [len(labels)] * 2, color="0.2", linewidth=0.6)
            labels.append(f"   {bar.label}")
    ax.axvline(0, color="0.3", linewidth=0.6)
    _rows(ax, labels, "points over a coin or over zero-shot")


def _judges(board: Board, axes: Any) -> None:
    ax = axes[0][0]
    labels: list[str] = []
    for line in board.ordered():
        own, other = line.cells(WIN_SELF), line.cells(WIN_CROSS)
        if not line.is_guided or not own + other:
            continue
        # Of many judges only the least favourable has its interval drawn; all would hide each other.
        lowest = line.find(WIN_CROSS)
        for cell in other:
            bare = cell if cell == lowest else replace(cell, low=None, high=None)
            _dot(ax, bare, len(labels), OKABE_ITO[0], "s")
        for cell in own:
            _dot(ax, cell, len(labels), OKABE_ITO[1], "o", filled=False)
        labels.append(plain(line.label))
    ax.plot([], [], "o", color=OKABE_ITO[1], markerfacecolor="white", label="own judge, circular")
    ax.plot([], [], "s", color=OKABE_ITO[0], label="another judge")
    ax.axvline(100 * CHANCE, color="0.3", linestyle="--", linewidth=0.6)
    _rows(ax, labels, "win rate over zero-shot, points")
    _legend(ax)


def _baselines(results: StudyResults, board: Board, axes: Any) -> None:
    ax = axes[0][0]
    rows = [(one.name, Cell(finite(one.value), finite(one.ci_low), finite(one.ci_high)), "base")
            for one in results.baselines]  # fmt: skip
    rows += [(model.label, found, "guided") for model in board.reward_models
             if (found := model.find(RM_ACCURACY)) is not None]  # fmt: skip
    for place, (_, cell, style) in enumerate(rows):
        _dot(ax, cell, place, *_FAMILIES[style])
    ax.axvline(100 * CHANCE, color="0.3", linestyle="--", linewidth=0.6)
    _rows(ax, [plain(name) for name, _, _ in rows], "accuracy on query pairs, points")


def _dot(ax: Any, cell: Cell, place: int, colour: str, marker: str, filled: bool = True) -> None:
    if cell.value is not None:
        ax.errorbar(100 * cell.value, place, xerr=_arms(cell), color=colour, marker=marker, linestyle="none",
                    elinewidth=0.7, markerfacecolor=colour if filled else "white")  # fmt: skip


def _rows(ax: Any, labels: Sequence[str], x_title: str) -> None:
    """Name the rows from top to bottom; labels are one printable line each."""
    limit = NARROW_LABEL if ax.figure.get_figwidth() < 4 else WIDE_LABEL
    shown = [label if len(label) <= limit else label[: limit - 1].rstrip() + "…" for label in labels]
    ax.set_yticks(range(len(labels)), shown)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(x_title)


def _legend(ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    room = 54 if ax.figure.get_figwidth() > 4 else 24
    columns = 2 if max(map(len, labels), default=0) <= room else 1
    ax.figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _arms(cell: Cell) -> list[list[float]] | None:
    """Return the lengths of an interval below and above its number."""
    if cell.value is None or cell.low is None or cell.high is None:
        return None
    return [[100 * max(0.0, cell.value - cell.low)], [100 * max(0.0, cell.high - cell.value)]]


def _stacked(cells: Sequence[Cell], size: float) -> list[list[float]]:
    """Return the same for several numbers; without an interval both are zero."""
    below = [0.0 if c.low is None else max(0.0, (c.value or 0.0) - c.low) for c in cells]
    above = [0.0 if c.high is None else max(0.0, c.high - (c.value or 0.0)) for c in cells]
    return [[size * length for length in below], [size * length for length in above]]


def _look(turn: int) -> tuple[str, str]:
    lap, place = divmod(turn, len(OKABE_ITO))
    return OKABE_ITO[place], MARKERS[(place + lap) % len(MARKERS)]


def _pale(colour: str) -> str:
    """Return a colour mixed with the white of paper; SVG would lose a hatch on one that is see-through."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(0.35 * part + 0.65 * 255):02x}" for part in parts)


def _tall(rows: int, each: float = 0.17) -> float:
    return 0.75 + each * rows


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
