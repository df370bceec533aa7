"""Numbers as a reader sees them: fractions as points, intervals in brackets, a dash for what is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["points", "seconds", "ratio", "count", "whole", "tau"]
DASH = "–"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def finite(value: float | None) -> float | None:
    """Return the value, or None where it is missing or not a finite number."""
    return None if value is None or not math.isfinite(value) else float(value)


def number(value: float | None, unit: Unit = "points") -> str:
    """Return a number in its unit, without the unit's name.

    Example:
        >>> number(0.4123), number(None), number(-0.02), number(0.5, "seconds")
        ('41.2', '–', '−2.0', '0.50')
    """
    known = finite(value)
    if known is None:
        return DASH
    if unit == "points":
        text = f"{known * 100:.1f}"
    elif unit == "seconds":
        text = f"{known:.2f}" if abs(known) < 10 else f"{known:.1f}"
    elif unit == "count":
        text = f"{known:.1f}"
    elif unit == "whole":
        text = f"{known:,.0f}"
    else:
        text = f"{known:.2f}"
    if known == 0 or (unit != "whole" and float(text) == 0):
        text = text.lstrip("-")
    return text.replace("-", "−")


def interval(low: float | None, high: float | None, unit: Unit = "points") -> str:
    """Return '[low, high]', or nothing where there is no interval."""
    if finite(low) is None or finite(high) is None:
        return ""
    return f"[{number(low, unit)}, {number(high, unit)}]"


def with_interval(value: float | None, low: float | None, high: float | None, unit: Unit = "points") -> str:
    """Return 'value [low, high]'; a missing value is a dash."""
    if finite(value) is None:
        return DASH
    return f"{number(value, unit)} {interval(low, high, unit)}".rstrip()


def sortable(text: str) -> str:
    """Return a shown number as one a program sorts by, '' for what is none.

    Example:
        >>> sortable("−2.0"), sortable("+1.5"), sortable("–"), sortable("0.03,")
        ('-2.0', '1.5', '', '0.03')
    """
    plain = text.rstrip(",").replace("−", "-").removeprefix("+")
    try:
        return plain if math.isfinite(float(plain)) else ""
    except ValueError:
        return ""


def superscript(index: int) -> str:
    """Return a footnote mark, for example '²'."""
    return str(index).translate(_SUPERSCRIPTS)


def span(values: set[int]) -> str:
    """Return '8' for one value and '6–8' for several."""
    if not values:
        return DASH
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def counted(count: int, noun: str) -> str:
    """Return '1 user' or '8 users'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table. `note` says why it is missing, or what is missing from it."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: Unit = "points"
    n_users: int = 0
    n_examples: int = 0
    note: str | None = None
    judge: str | None = None

    @property
    def text(self) -> str:
        """Return the number alone."""
        return number(self.value, self.unit)

    @property
    def interval(self) -> str:
        """Return the interval alone, '' where there is none."""
        return "" if self.value is None else interval(self.low, self.high, self.unit)

    @property
    def full(self) -> str:
        """Return the number with its interval."""
        return with_interval(self.value, self.low, self.high, self.unit)


Verdict: TypeAlias = Literal["above", "below", "overlap", "unknown"]


def compare(a: Cell, b: Cell) -> Verdict:
    """Say where the interval of `a` lies against that of `b`; 'unknown' where one is missing."""
    if None in (a.value, a.low, a.high, b.value, b.low, b.high):
        return "unknown"
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    if a.low > b.high:
        return "above"
    return "below" if a.high < b.low else "overlap"


class Footnotes:
    """The notes of one table, each given once, numbered in the order they are met."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, note: str | None) -> int:
        """Return the number of a note, 0 for none."""
        if note is None:
            return 0
        if note not in self.texts:
            self.texts.append(note)
        return self.texts.index(note) + 1
