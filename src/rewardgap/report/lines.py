"""Curves over a few places: a line for each, its points with their intervals, and levels to hold them against."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rewardgap.report.dots import ends
from rewardgap.report.svg import coordinate, join, percent, scale, tag, tick_text
from rewardgap.report.texts import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from markupsafe import Markup

    from rewardgap.report.numbers import Cell
    from rewardgap.report.svg import Scale

HEIGHT = 260.0
SIDE_BY_SIDE = 9.0
"""Pixels between the points of neighbouring curves at one place, or their intervals would hide each other."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, and the key to what is numbered or coloured in it."""

    drawing: Markup
    key: tuple[tuple[str, str], ...]
    title: str
    y_title: str
    x_title: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A line over places.

    Attributes:
        name: for the key.
        style: its colour, a class of the page.
        points: index of the place, what is there, and its number; those without a number are left out.
    """

    name: str
    style: str
    points: tuple[tuple[int, str, Cell], ...]

    def known(self) -> list[tuple[int, str, Cell]]:
        """Return the points that have a number."""
        return [point for point in self.points if point[2].value is not None]


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves over the same places.

    Attributes:
        title: of the chart, for screen readers.
        y_title: what goes upwards.
        x_title: what goes across.
        places: names of the places, from left to right.
        curves: the lines.
        levels: name, number and colour of what does not change with the place.
        plain_units: whether ticks show the numbers as they are, rather than fractions in points.
    """

    title: str
    y_title: str
    x_title: str
    places: tuple[str, ...]
    curves: tuple[Curve, ...]
    levels: tuple[tuple[str, Cell, str], ...] = ()
    plain_units: bool = False

    def values(self) -> list[float]:
        """Return every number and end of an interval."""
        cells = [cell for curve in self.curves for _, _, cell in curve.known()]
        return [value for cell in [*cells, *(cell for _, cell, _ in self.levels)] for value in ends(cell)]

    def tick(self, value: float) -> str:
        """Return the text of a tick upwards."""
        return f"{value:.6g}".replace("-", "−") if self.plain_units else tick_text(value)


def draw(curves: Curves, height: float = HEIGHT, up: Scale | None = None) -> Chart | None:
    """Return the chart, None where no curve has a number.

    Args:
        curves: what to draw.
        height: in pixels.
        up: the scale upwards; by default one that fits the numbers.
    """
    if not any(curve.known() for curve in curves.curves):
        return None
    up = up or scale(curves.values(), max(2, round(height / 44)))
    count = len(curves.places)
    drawn = [draw_grid(None, up, height, curves.tick)]
    drawn += [
        tag("text", plain(name, 24), x=percent((at + 0.5) / count), y=height + 18, class_="tick middle")
        for at, name in enumerate(curves.places)
    ]
    drawn += [draw_level(cell, style, up, height) for _, cell, style in curves.levels]
    for place, curve in enumerate(curves.curves):
        spots = [((at + 0.5) / count, height * (1 - up(cell.value or 0.0)), said, cell)
                 for at, said, cell in curve.known()]  # fmt: skip
        parts = [tag("line", x1=percent(a[0]), y1=a[1], x2=percent(b[0]), y2=b[1], class_="path")
                 for a, b in pairwise(spots)]  # fmt: skip
        for x, y, said, cell in spots:
            parts.append(draw_upright(x, cell, up, height))
            parts.append(
                tag("circle", tag("title", f"{plain(said)}: {cell.full}"), cx=percent(x), cy=y, r=4.5, class_="dot")
            )
        shift = (place - (len(curves.curves) - 1) / 2) * SIDE_BY_SIDE
        drawn.append(tag("g", *parts, class_=curve.style, transform=f"translate({coordinate(shift)} 0)"))
    key = [(f"line {curve.style}", curve.name) for curve in curves.curves]
    key += [("band " + style, label) for label, _, style in curves.levels]
    shown = tuple(key) if len(key) > 1 else ()
    return Chart(draw_chart(drawn, height, curves.title), shown, curves.title, curves.y_title, curves.x_title)


def draw_chart(drawn: Iterable[Markup], height: float, title: str) -> Markup:
    """Return a drawing as wide as its place, with a name for screen readers."""
    return tag("svg", *drawn, class_="chart", height=height, width="100%", role="img", aria_label=title)


def draw_grid(across: Scale | None, up: Scale, height: float, text: Callable[[float], str] = tick_text) -> Markup:
    """Return the lines of a grid with their ticks; `text` is that of a tick upwards."""
    parts = []
    for tick in up.ticks:
        y = height * (1 - up(tick))
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(tag("text", text(tick), x="0", y=y + 4, dx="-8", class_="tick end"))
    for tick in across.ticks if across is not None else ():
        x = percent(across(tick)) if across is not None else "0"
        parts.append(tag("line", x1=x, x2=x, y1=0, y2=height, class_="grid"))
        parts.append(tag("text", tick_text(tick), x=x, y=height + 18, class_="tick middle"))
    return join(parts)


def draw_level(cell: Cell, style: str, up: Scale, height: float) -> Markup:
    """Return a horizontal line for a deployment without reward model, in the band of its interval."""
    y = height * (1 - up(cell.value or 0.0))
    parts = []
    if cell.low is not None and cell.high is not None:
        top = height * (1 - up(cell.high))
        parts.append(
            tag("rect", x="0", y=top, width="100%", height=height * (1 - up(cell.low)) - top, class_=f"band {style}")
        )
    parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_=f"level {style}"))
    return join(parts)


def draw_upright(x: float, cell: Cell, up: Scale, height: float) -> Markup:
    """Return the interval of a number as an upright line, nothing where there is none."""
    if cell.low is None or cell.high is None:
        return join(())
    at = percent(x)
    return tag("line", x1=at, x2=at, y1=height * (1 - up(cell.low)), y2=height * (1 - up(cell.high)), class_="whisker")
