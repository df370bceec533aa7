"""The way from ranking to writing as a figure: for each reward model, what is there at each stage and lost between.

Every bar is in points over nothing: over one half where pairs are ranked, over zero-shot where texts are compared. So
all bars of all reward models stand on one scale. Each row says in words and numbers what its drawing shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewardgap.report.numbers import DASH, Cell
from rewardgap.report.sheets import Sheet
from rewardgap.report.svg import Scale, join, percent, scale, tag, tick_text
from rewardgap.report.words import axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from markupsafe import Markup

    from rewardgap.core.decomposition import Decomposition

CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: from where to where a bar goes, and the number that it stands for.

    Attributes:
        label: what is there, or where it is lost.
        begin: where the bar begins, as a fraction over nothing.
        cell: the number; the bar ends at `begin` plus its value, and its interval lies around that end.
        is_stage: whether it is what is there at a stage, rather than a change between two.
    """

    label: str
    begin: float
    cell: Cell
    is_stage: bool

    @property
    def end(self) -> float:
        """Return where the bar ends."""
        return self.begin + (self.cell.value or 0.0)

    @property
    def style(self) -> str:
        """Return what the bar is: a stage, a loss or a gain."""
        if self.is_stage:
            return "stage"
        return "loss" if (self.cell.value or 0.0) < 0 else "gain"

    @property
    def text(self) -> str:
        """Return the number, with a sign."""
        text = self.cell.text
        return text if text.startswith("−") or self.cell.value is None else f"+{text}"


@dataclass(frozen=True, slots=True)
class Fall:
    """The rows of one reward model; `detail` names the deployment."""

    method: str
    detail: str
    bars: tuple[tuple[Bar, Markup], ...]


@dataclass(frozen=True, slots=True)
class Waterfall:
    """All reward models of one board on one scale."""

    falls: tuple[Fall, ...]
    axis: Markup
    title: str


def waterfall(decomposition: Sequence[Decomposition]) -> Waterfall | None:
    """Return the figure of one dataset, None where no reward model has more than one stage.

    A reward model is shown with the token-guided deployment of it that wrote best, by the highest gain in behaviour
    over zero-shot; without behaviour, with that of the highest policy accuracy. So what is lost is lost at least.
    Points of a study (policies, support sizes, seeds) are reward models of their own here.

    Args:
        decomposition: numbers of one dataset.
    """
    ways: dict[tuple[object, ...], list[Decomposition]] = {}
    for one in decomposition:
        ways.setdefault((*one.point(), one.method), []).append(one)
    several = len({way[0].point() for way in ways.values()}) > 1
    made = [(_name(numbers[0], several), *_bars(numbers)) for numbers in ways.values()]
    made = [(name, detail, bars) for name, detail, bars in made if len(bars) > 1]
    if not made:
        return None
    across = scale([0.0, *(end for _, _, bars in made for bar in bars for end in _ends(bar))])
    falls = tuple(Fall(name, detail, tuple((bar, _track(across, bar)) for bar in bars)) for name, detail, bars in made)
    title = "From ranking to writing, in points over a coin or over zero-shot"
    return Waterfall(falls, _axis(across), title)


def step_sheet(decomposition: Sequence[Decomposition]) -> Sheet | None:
    """Return the same as a table: a row a reward model, a column a step; None where there is no figure."""
    plot = waterfall(decomposition)
    if plot is None:
        return None
    steps = list(dict.fromkeys(bar.label for fall in plot.falls for bar, _ in fall.bars))
    rows = []
    for fall in plot.falls:
        own = {bar.label: f"{bar.text} {bar.cell.interval}".rstrip() for bar, _ in fall.bars}
        rows.append((fall.method, fall.detail or DASH, *(own.get(step, DASH) for step in steps)))
    return Sheet(plot.title, ("Reward model", "Deployment shown", *steps), tuple(rows), 2, len(steps))


def _bars(numbers: Sequence[Decomposition]) -> tuple[str, list[Bar]]:
    """Return the deployment that is shown, and the rows of one reward model."""
    shown = _shown(numbers)
    whole = _find(numbers, "rm_accuracy")
    if whole is None or whole.value is None:
        return "", []
    bars = [Bar("ranks whole texts", 0.0, _over_chance(whole), True)]
    level = whole.value - CHANCE
    cut, rest = _find(numbers, "to_half"), _find(numbers, "from_half", shown)
    policy, gain = _find(numbers, "policy_accuracy", shown), _find(numbers, "guidance_gain", shown)
    if cut is not None and cut.value is not None:
        bars.append(Bar("cut at one half", level, _cell(cut), False))
        level += cut.value
    if policy is not None and policy.value is not None:
        if rest is None or cut is None:
            rest = _find(numbers, "guidance_error", shown)
            bars.append(Bar("in steering", level, Cell() if rest is None else _negative(rest), False))
        else:
            bars.append(Bar("in steering", level, _cell(rest), False))
        bars.append(Bar("the guided policy ranks", 0.0, _over_chance(policy), True))
        if gain is not None and gain.value is not None:
            bars.append(Bar("of it by guidance", policy.value - CHANCE - gain.value, _cell(gain), False))
    writes = _find(numbers, "behaviour_gain", shown)
    if writes is not None:
        bars.append(Bar(f"writes, {axis(str(writes.metric))}", 0.0, _cell(writes), True))
    return (shown or "").removeprefix(f"{numbers[0].method} · "), [bar for bar in bars if bar.cell.value is not None]


def _shown(numbers: Sequence[Decomposition]) -> str | None:
    guided = {
        one.deployment: one.value for one in numbers if one.quantity == "policy_accuracy" and one.value is not None
    }
    written = {
        one.deployment: one.value for one in numbers if one.quantity == "behaviour_gain" and one.value is not None
    }
    ranked = {name: value for name, value in written.items() if name in guided} or guided or written
    return max(ranked, key=lambda name: ranked[name]) if ranked else None


def _find(
    numbers: Iterable[Decomposition], quantity: str, deployment: str | None = None, share: float | None = None
) -> Decomposition | None:
    wanted = (quantity, deployment, share)
    return next((one for one in numbers if (one.quantity, one.deployment, one.share) == wanted), None)


def _cell(one: Decomposition) -> Cell:
    return Cell(one.value, one.ci_low, one.ci_high, n_users=one.n_users, n_examples=one.n_examples)


def _over_chance(one: Decomposition) -> Cell:
    value, low, high = (None if end is None else end - CHANCE for end in (one.value, one.ci_low, one.ci_high))
    return Cell(value, low, high, n_users=one.n_users, n_examples=one.n_examples)


def _negative(one: Decomposition) -> Cell:
    value, low, high = (None if end is None else -end for end in (one.value, one.ci_high, one.ci_low))
    return Cell(value, low, high, n_users=one.n_users, n_examples=one.n_examples)


def _ends(bar: Bar) -> list[float]:
    return [bar.begin, *(bar.begin + end for end in (bar.cell.value, bar.cell.low, bar.cell.high) if end is not None)]


def _name(one: Decomposition, several: bool) -> str:
    if not several:
        return one.method
    parts = [one.policy, None if one.support_size is None else f"n={one.support_size}"]
    parts.append(None if one.seed is None else f"seed {one.seed}")
    return ", ".join([one.method, *(part for part in parts if part)])


def _track(across: Scale, bar: Bar) -> Markup:
    """Return one bar with the line of nothing; the row's text says the same, so the drawing is hidden from readers."""
    parts = [
        tag("line", x1=percent(x), x2=percent(x), y1=0, y2="100%", class_="chance" if tick == 0 else "grid")
        for tick in across.ticks
        for x in [across(tick)]
    ]
    left, right = sorted((across(bar.begin), across(bar.end)))
    parts.append(tag("rect", x=percent(left), y="50%", width=percent(right - left), height=12, rx=2, class_="bar"))
    if not bar.is_stage:
        at = percent(across(bar.begin))
        parts.append(tag("line", x1=at, x2=at, y1=0, y2="100%", class_="link"))
    if bar.cell.low is not None and bar.cell.high is not None:
        low, high = (percent(across(bar.begin + end)) for end in (bar.cell.low, bar.cell.high))
        parts.append(tag("line", x1=low, x2=high, y1="50%", y2="50%", class_="whisker"))
    return tag("svg", *parts, class_="track", width="100%", height="100%", aria_hidden="true")


def _axis(across: Scale) -> Markup:
    ticks = [tag("text", tick_text(tick), x=percent(across(tick)), y=14, class_="tick middle") for tick in across.ticks]
    return tag("svg", join(ticks), class_="track", height=20, width="100%", aria_hidden="true")
