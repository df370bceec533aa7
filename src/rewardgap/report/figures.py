"""Figures as inline SVG that follows the page: its colours, its width and its dark mode.

Every function is pure and deterministic. Where there is nothing to draw it returns None, and the page says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.report.dots import DotPlot, Row, baselines, ends, forest, judges, kind
from rewardgap.report.lines import Chart, Curve, Curves, draw, draw_chart, draw_grid, draw_level, draw_upright
from rewardgap.report.svg import Place, Scale, Spot, join, percent, place_labels, scale, tag
from rewardgap.report.texts import plain
from rewardgap.report.words import RM_ACCURACY, ROUGE_1, Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

    from rewardgap.report.board import Board, Line
    from rewardgap.report.numbers import Cell

__all__ = ["Chart", "DotPlot", "Row", "baselines", "forest", "judges", "kind", "scatter", "shots"]

HEIGHT = 300.0
_MODEL_COLOURS = 6
_PROMPTED_COLOURS = 4


def scatter_points(board: Board, y: Column) -> list[tuple[Line, Cell, Cell]]:
    """Return each guided deployment that has both, with its RM accuracy and its number in another column."""
    return [
        (line, a, b)
        for line in board.lines
        if line.is_guided
        and (a := board.cell(line, RM_ACCURACY)).value is not None
        and (b := board.cell(line, y)).value is not None
    ]


def scatter_levels(board: Board, y: Column) -> list[tuple[str, Cell, str]]:
    """Return what guided deployments are held against: zero-shot, and the best in context where texts are compared."""
    base = None if board.baseline is None else board.cell(board.baseline, y)
    levels = [] if base is None or base.value is None or y is not ROUGE_1 else [("zero-shot", base, "base")]
    context = [(line, cell) for line, cell in board.ranked(y) if not line.is_guided and not line.is_baseline]
    if y is ROUGE_1 and context:
        levels.append((context[0][0].label, context[0][1], "context"))
    return levels


def scatter(board: Board, y: Column) -> Chart | None:
    """Return RM accuracy across against another column upwards, a cross of intervals at each guided deployment."""
    points = scatter_points(board, y)
    if not points:
        return None
    levels = scatter_levels(board, y)
    across = scale([value for _, a, _ in points for value in ends(a)])
    up = scale([value for cell in [*(b for _, _, b in points), *(c for _, c, _ in levels)] for value in ends(cell)])
    methods = list(dict.fromkeys(model.label for model in board.reward_models))
    spots = [
        Spot(across(a.value or 0.0), HEIGHT * (1 - up(b.value or 0.0)), label)
        for (_, a, b), label in zip(points, _short([line for line, _, _ in points]), strict=True)
    ]
    places = place_labels(spots, HEIGHT)
    key: list[tuple[str, str]] = []
    if places is None:
        key = [(str(i), line.label) for i, (line, _, _) in enumerate(points, 1)]
        spots = [Spot(spot.x, spot.y, str(i)) for i, spot in enumerate(spots, 1)]
        places = place_labels(spots, HEIGHT) or [Place(8, -7, "start")] * len(spots)
    drawn = [draw_grid(across, up, HEIGHT), *(draw_level(cell, style, up, HEIGHT) for _, cell, style in levels)]
    arms, dots, names = [], [], []
    for (line, a, b), spot, place in zip(points, spots, places, strict=True):
        model = board.reward_model(line)
        colour = f"k{methods.index(model.label) % _MODEL_COLOURS}" if model is not None else "k0"
        words = f"{plain(line.label)}: RM accuracy {a.full}; {y.title} {b.full}"
        arms.append(tag("g", _arms(spot, a, b, across, up), class_=colour))
        dots.append(tag("circle", tag("title", words), cx=percent(spot.x), cy=spot.y, r=5, class_=f"dot {colour}"))
        at, style = percent(spot.x), f"label {place.anchor}"
        names.append(tag("text", spot.label, x=at, y=spot.y, dx=place.dx, dy=place.dy, class_=style))
    title = f"RM accuracy against {y.title}, in points"
    for label, _, style in levels:
        key.append(("band " + style, label))
    return Chart(
        draw_chart([*drawn, *arms, *dots, *names], HEIGHT, title),
        tuple(key),
        title,
        y.title,
        "RM accuracy, unseen users",
    )


def shots(board: Board) -> Chart | None:
    """Return ROUGE-1 against the number of demonstrations; bands are zero-shot and the best guided deployment."""
    found = shot_curves(board)
    return None if found is None else draw(found)


def shot_curves(board: Board) -> Curves | None:
    """Return the numbers of that chart."""
    series: dict[str, list[tuple[int, Line, Cell]]] = {}
    for line in board.lines:
        cell = board.cell(line, ROUGE_1)
        if line.identity.shots and cell.value is not None:
            own = line.identity
            name = str(own.method) + line.label.removeprefix(f"{own.method} {own.shots}")
            series.setdefault(name, []).append((own.shots or 0, line, cell))
    if not series:
        return None
    base = None if board.baseline is None else board.cell(board.baseline, ROUGE_1)
    levels = [] if base is None or base.value is None else [("zero-shot", base, "base")]
    guided = [(line, cell) for line, cell in board.ranked(ROUGE_1) if line.is_guided]
    if guided:
        levels.append((guided[0][0].label, guided[0][1], "guided"))
    columns = sorted({shot for points in series.values() for shot, _, _ in points})
    curves = tuple(
        Curve(
            name,
            f"c{place % _PROMPTED_COLOURS}",
            tuple((columns.index(shot), line.label, cell) for shot, line, cell in sorted(points, key=lambda p: p[0])),
        )
        for place, (name, points) in enumerate(series.items())
    )
    title = "ROUGE-1 in points against the number of demonstrations"
    return Curves(title, "ROUGE-1", "demonstrations in the prompt", tuple(map(str, columns)), curves, tuple(levels))


def growth(points: Sequence[tuple[str, Cell]], levels: Sequence[tuple[str, Cell, str]], name: str) -> Chart | None:
    """Return accuracy against rows of support, with levels to compare it with; None for fewer than two points.

    Args:
        points: rows of support and the accuracy after them, in order.
        levels: name, accuracy and colour of what has no support.
        name: of the curve.
    """
    known = [(label, cell) for label, cell in points if cell.value is not None]
    if len(known) < 2:
        return None
    curve = Curve(name, "k0", tuple((at, f"{name}, {label} rows", cell) for at, (label, cell) in enumerate(known)))
    title = "Accuracy in points against rows of support"
    held = tuple(level for level in levels if level[1].value is not None)
    across = "rows of the user's support"
    return draw(Curves(title, "Accuracy", across, tuple(label for label, _ in known), (curve,), held))


def _short(lines: Sequence[Line]) -> list[str]:
    """Return labels without what all of them share, cut to fit a figure."""
    decoders = {(line.identity.decoder, line.identity.top_k) for line in lines}
    names = []
    for line in lines:
        own = line.identity
        if len(decoders) == 1 and own.guidance_weight is not None:
            rest = line.label.partition(f"k={own.top_k}")[2] if own.top_k is not None else ""
            names.append(plain(f"{own.method} λ={own.guidance_weight:g}{rest}", 22))
        else:
            names.append(plain(line.label, 22))
    return names if len(set(names)) == len(names) else [plain(line.label, 30) for line in lines]


def _arms(spot: Spot, a: Cell, b: Cell, across: Scale, up: Scale) -> Markup:
    parts = [draw_upright(spot.x, b, up, HEIGHT)]
    if a.low is not None and a.high is not None:
        left, right = percent(across(a.low)), percent(across(a.high))
        parts.append(tag("line", x1=left, x2=right, y1=spot.y, y2=spot.y, class_="whisker"))
    return join(parts)
