"""SVG elements and scales. Positions across are in per cent, so a figure fits a phone without shrinking its text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CHARACTER = 6.6
"""Width of a label's character in pixels, on the generous side."""
WIDTHS = (270.0, 420.0)
"""Plot widths at which labels must not touch: a phone and a desktop column."""


def tag(name: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """Return an element. Children that are not markup and all attribute values are escaped.

    An underscore in an attribute's name stands for a hyphen; a trailing one is dropped (`class_`).

    Example:
        >>> tag("text", "<b>", x="10%", class_="tick")
        Markup('<text x="10%" class="tick">&lt;b&gt;</text>')
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            text = coordinate(value) if isinstance(value, (int, float)) else str(escape(value))
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{text}"')
    body = "".join(str(escape(child)) for child in children)
    return Markup("".join(parts) + f">{body}</{name}>")  # every piece above is escaped


def join(parts: Iterable[Markup]) -> Markup:
    """Return elements one after the other."""
    return Markup("").join(parts)


def coordinate(value: float) -> str:
    """Return a coordinate with at most two decimals, the same on every machine."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def percent(fraction: float) -> str:
    """Return a share of the plot's width."""
    return coordinate(100 * fraction) + "%"


def tick_text(fraction: float) -> str:
    """Return a tick of a fraction in points."""
    return f"{fraction * 100:.6g}".replace("-", "−")


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear scale onto 0..1 with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Return where a value lies, 0 to 1."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def scale(values: Sequence[float], count: int = 6) -> Scale:
    """Return a scale a little wider than the values, with about `count` ticks at 1, 2 or 5 times a power of ten."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    pad = 0.05 * (high - low)
    low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, tuple(round(i * step, 12) for i in range(first, last + 1)))


@dataclass(frozen=True, slots=True)
class Spot:
    """A point to be labelled: `x` as a share of the width, `y` in pixels."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a label stands, as offsets from its point."""

    dx: float
    dy: float
    anchor: str


_PLACES = tuple(
    Place(dx, dy, anchor)
    for dx, dy, anchor in (
        (7, -7, "start"), (-7, -7, "end"), (7, 16, "start"), (-7, 16, "end"), (9, 4, "start"), (-9, 4, "end"),
        (0, -11, "middle"), (0, 20, "middle"), (7, -22, "start"), (-7, -22, "end"), (7, 30, "start"), (-7, 30, "end"),
    )
)  # fmt: skip


def place_labels(spots: Sequence[Spot], height: float) -> list[Place] | None:
    """Return a place for every label such that none touches another label, a point or the frame, or None."""
    taken: list[list[tuple[float, float, float, float]]] = [
        [(spot.x * width - 6, spot.y - 6, spot.x * width + 6, spot.y + 6) for spot in spots] for width in WIDTHS
    ]
    chosen: list[Place] = []
    for index, spot in enumerate(spots):
        for place in _PLACES:
            boxes = [_box(spot, place, width) for width in WIDTHS]
            if all(
                _fits(box, width, height) and not any(_touch(box, other) for i, other in enumerate(own) if i != index)
                for box, width, own in zip(boxes, WIDTHS, taken, strict=True)
            ):
                chosen.append(place)
                for box, own in zip(boxes, taken, strict=True):
                    own.append(box)
                break
        else:
            return None
    return chosen


def _box(spot: Spot, place: Place, width: float) -> tuple[float, float, float, float]:
    length = len(spot.label) * CHARACTER
    start = spot.x * width + place.dx - {"start": 0.0, "middle": length / 2, "end": length}[place.anchor]
    return start, spot.y + place.dy - 10, start + length, spot.y + place.dy + 3


def _fits(box: tuple[float, float, float, float], width: float, height: float) -> bool:
    return box[0] >= 0 and box[2] <= width + 8 and box[1] >= 0 and box[3] <= height


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
