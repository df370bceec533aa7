"""A tuning of the guidance weight as a table, as rows of a file, and as a drawing; made from its JSON value alone."""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rewardgap.report.dots import ends
from rewardgap.report.numbers import Cell, finite
from rewardgap.report.svg import Scale, coordinate, percent, scale, tag, tick_text
from rewardgap.report.texts import encodable, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from rewardgap.report.numbers import Unit

COLUMNS = ("study", "reward_model", "judge", "decoder", "top_k", "guidance_weight", "measure")
ESTIMATE = ("value", "low", "high", "n_users", "n_examples", "n_missing")
_HEADS = {
    "reward": "own reward",
    "judge_reward": "judge",
    "fluency_gap": "fluency gap",
    "guidance_ratio": "ratio",
    "changed": "changed",
    "near_ties": "near ties",
    "new_tokens": "tokens",
}
_UNITS: Mapping[str, Unit] = {
    "reward": "ratio",
    "judge_reward": "ratio",
    "fluency_gap": "ratio",
    "guidance_ratio": "ratio",
    "near_ties": "ratio",
    "new_tokens": "count",
}
"""What is not a fraction, which is shown as points."""
WIDTH, PANEL, GAP, LEFT, RIGHT, TOP = 720.0, 190.0, 62.0, 58.0, 24.0, 64.0
_STYLE = """
text { font: 12px ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  fill: #1c2127; }
.title { font-size: 15px; font-weight: 600; } .soft, .tick { fill: #59626d; } .tick { font-size: 11.5px; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: #e9e6e0; } .none { stroke: currentColor; stroke-dasharray: 4 3; opacity: .7; }
.chosen { fill: #fbe6b8; opacity: .6; }
.whisker { stroke: currentColor; stroke-width: 1.5; opacity: .55; } .path { stroke: currentColor; stroke-width: 2; }
.dot { fill: currentColor; stroke: #fff; stroke-width: 1.5; }
.own { color: #1f5f8b; } .judge { color: #86459b; } .true { color: #a8551c; }
.key { stroke: currentColor; stroke-width: 3; }
"""


def cell(found: Mapping[str, Any], measure: str) -> Cell:
    """Return a number of a tuning with its interval."""
    low, high = finite(found["low"]), finite(found["high"])
    unit = _UNITS.get(measure, "points")
    return Cell(finite(found["value"]), low, high, unit, found["n_users"], found["n_examples"], found["reason"])


def csv_text(tuning: Mapping[str, Any]) -> str:
    """Return one line a number, as CSV: floats by `repr`, None as an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, *ESTIMATE])
    for row in tuning["weights"]:
        for measure in tuning["measures"]:
            known = {**tuning, **row, "measure": measure}
            values = [*(known[name] for name in COLUMNS), *(row[measure][name] for name in ESTIMATE)]
            shown = [repr(value) if isinstance(value, float) else "" if value is None else value for value in values]
            writer.writerow(shown)
    return encodable(stream.getvalue())


def print_tuning(tuning: Mapping[str, Any], console: Console) -> None:
    """Print every number with its interval, what the columns are, the choice, and the line for the study."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    waiting = list(tuning["measures"])
    while waiting:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
        table.add_column("λ", justify="right")
        taken: list[str] = []
        while waiting and (not taken or _width(tuning, [*taken, waiting[0]]) <= console.width):
            taken.append(waiting.pop(0))
        for measure in taken:
            table.add_column(Text(_HEADS.get(measure, measure)), no_wrap=True)
        for row in tuning["weights"]:
            style = "bold" if row["guidance_weight"] == tuning["chosen"] else ""
            cells = [cell(row[measure], measure) for measure in taken]
            table.add_row(_weight(row["guidance_weight"]), *(_numbers(one) for one in cells), style=style)
        console.print()
        console.print(table)
    console.print()
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(style="dim", overflow="fold")
    for measure, summary in tuning["measures"].items():
        unit = ", in points" if _UNITS.get(measure, "points") == "points" else ""
        grid.add_row(_HEADS.get(measure, measure), Text(plain(summary + unit)))
    console.print(grid)
    counts = f"{tuning['users']} users seen in fitting, {tuning['rows']} held-out prompts"
    rule = f"Means over {counts}; 95 % intervals over users."
    console.print(Text(rule, "dim"))
    for name, value in tuning["reward_scales"].items():
        known = "not fitted here" if value is None else f"{value:.4g}"
        console.print(Text(f"reward scale of {plain(name)} (deviation of its training margins): {known}", "dim"))
    for note in tuning["notes"]:
        console.print(Text(plain(note), "dim"))
    console.print()
    console.print(Text(plain(tuning["sentence"]), "bold"))
    if tuning["line"] is not None:
        console.print(Text("For the study, under deployments:"))
        console.print(Text(f"  {plain(tuning['line'])}"), soft_wrap=True)


def goodhart(tuning: Mapping[str, Any]) -> str:
    """Return the curve over the guidance weight as an SVG file: rewards above, the behaviour metric below.

    The two have no common unit, so each has a panel of its own over the same weights. The chosen weight is shaded; the
    dashed line is no guidance.
    """
    rows = tuning["weights"]
    behaviour = [name for name in tuning["measures"] if name not in _HEADS]
    panels: list[tuple[str, list[tuple[str, str, str]]]] = []
    rewards = [("reward", "own", f"{tuning['reward_model']}, which steers")]
    if "judge_reward" in tuning["measures"]:
        rewards.append(("judge_reward", "judge", f"{tuning['judge']}, which does not"))
    panels.append(("Reward, in deviations of its training margins", rewards))
    panels += [(f"{tuning['measures'][name]}, in points", [(name, "true", name)]) for name in behaviour]
    height = TOP + len(panels) * (PANEL + GAP)
    inner = WIDTH - LEFT - RIGHT
    drawn = [
        tag("rect", width="100%", height="100%", fill="#fff"),
        tag("text", f"Guidance weight of {plain(tuning['reward_model'], 40)}", x=LEFT, y=24, class_="title"),
        tag("text", _subtitle(tuning), x=LEFT, y=42, class_="soft"),
    ]
    for number, (title, series) in enumerate(panels):
        y = TOP + number * (PANEL + GAP) + 14
        drawn.append(tag("text", plain(title, 100), x=LEFT, y=y - 12))
        if len(series) > 1:
            drawn.append(_key(series, y - 16))
        body = _panel(rows, series, tuning["chosen"])
        drawn.append(tag("svg", body, x=LEFT, y=y, width=inner, height=PANEL, overflow="visible"))
    drawn.append(tag("text", "guidance weight λ", x=LEFT + inner / 2, y=height - 8, class_="soft middle"))
    size = f"0 0 {coordinate(WIDTH)} {coordinate(height)}"
    picture = tag("svg", tag("style", Markup(_STYLE)), *drawn, xmlns="http://www.w3.org/2000/svg", viewBox=size,
                  width=WIDTH, height=height, role="img", aria_label="Rewards and behaviour by weight")  # fmt: skip
    return encodable(str(picture)) + "\n"


def _panel(rows: Sequence[Mapping[str, Any]], series: Sequence[tuple[str, str, str]], chosen: float | None) -> Markup:
    cells = {measure: [cell(row[measure], measure) for row in rows] for measure, _, _ in series}
    up = scale([value for column in cells.values() for one in column for value in ends(one)], 5)
    weights = [row["guidance_weight"] for row in rows]
    across = [(place + 0.5) / len(rows) for place in range(len(rows))]
    parts = []
    if chosen is not None:
        left = across[weights.index(chosen)] - 0.5 / len(rows)
        parts.append(tag("rect", x=percent(left), width=percent(1 / len(rows)), height=PANEL, class_="chosen"))
    points = all(one.unit == "points" for column in cells.values() for one in column)
    for tick in up.ticks:
        at = PANEL * (1 - up(tick))
        words = tick_text(tick) if points else f"{tick:.6g}".replace("-", "−")
        parts.append(tag("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        parts.append(tag("text", words, x="0", y=at + 4, dx="-8", class_="tick end"))
    for x, weight in zip(across, weights, strict=True):
        said = _weight(weight) + (" chosen" if weight == chosen else "")
        parts.append(tag("text", said, x=percent(x), y=PANEL + 18, class_="tick middle"))
    for place, (measure, colour, name) in enumerate(series):
        base = cells[measure][weights.index(0.0)]
        if base.value is not None:
            at = PANEL * (1 - up(base.value))
            parts.append(tag("line", x1="0", x2="100%", y1=at, y2=at, class_=f"none {colour}"))
        parts.append(_curve(across, cells[measure], up, weights, name, colour, (place - (len(series) - 1) / 2) * 8))
    return Markup("").join(parts)


def _curve(
    across: Sequence[float],
    cells: Sequence[Cell],
    up: Scale,
    weights: Sequence[float],
    name: str,
    colour: str,
    shift: float,
) -> Markup:
    """Return one measure over the weights, moved aside by `shift` pixels so that intervals do not hide each other."""
    known = [
        (x, PANEL * (1 - up(one.value)), one, weight)
        for x, one, weight in zip(across, cells, weights, strict=True)
        if one.value is not None
    ]
    parts = [
        tag("line", x1=percent(a[0]), y1=a[1], x2=percent(b[0]), y2=b[1], class_="path") for a, b in pairwise(known)
    ]
    for x, y, one, weight in known:
        if one.low is not None and one.high is not None:
            top, foot = PANEL * (1 - up(one.high)), PANEL * (1 - up(one.low))
            parts.append(tag("line", x1=percent(x), x2=percent(x), y1=foot, y2=top, class_="whisker"))
        words = tag("title", f"{plain(name)}, λ = {_weight(weight)}: {one.full}")
        parts.append(tag("circle", words, cx=percent(x), cy=y, r=4.5, class_="dot"))
    return tag("g", *parts, class_=colour, transform=f"translate({coordinate(shift)} 0)")


def _key(series: Sequence[tuple[str, str, str]], y: float) -> Markup:
    parts, right = [], WIDTH - RIGHT
    for _, colour, name in reversed(series):
        label = plain(name, 34)
        left = right - 5.9 * len(label)
        parts.append(tag("text", label, x=right, y=y + 4, class_="tick end"))
        parts.append(tag("line", x1=left - 26, x2=left - 8, y1=y, y2=y, class_=f"key {colour}"))
        right = left - 40
    return Markup("").join(parts)


def _subtitle(tuning: Mapping[str, Any]) -> str:
    width = "" if tuning["top_k"] is None else f", k = {tuning['top_k']}"
    return (
        f"{tuning['decoder']}{width}; {tuning['users']} users seen in fitting, {tuning['rows']} held-out prompts; 95 % "
        "intervals; dashed: λ = 0"
    )


def _weight(weight: float) -> str:
    return f"{weight:g}".replace("-", "−")


def _numbers(one: Cell) -> Any:
    from rich.text import Text

    return Text.assemble(one.text, " ", (one.interval, "dim")) if one.interval else Text(one.text)


def _width(tuning: Mapping[str, Any], measures: Sequence[str]) -> int:
    def widest(measure: str) -> int:
        texts = [cell(row[measure], measure).full for row in tuning["weights"]]
        return max(len(_HEADS.get(measure, measure)), *map(len, texts)) + 3

    return 8 + sum(map(widest, measures))
