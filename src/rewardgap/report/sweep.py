"""Behaviour over what a study varies: policies or support sizes across, in context, guided and zero-shot as lines."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from rewardgap.report.board import POINT_FORMS
from rewardgap.report.findings import place
from rewardgap.report.lines import Curve, Curves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.report.board import Board, Line
    from rewardgap.report.numbers import Cell
    from rewardgap.report.words import Column

MOST = 12
"""Charts of one study; the tables hold the rest."""
_PROMPTED_COLOURS = 4
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)\s?([MB])(?![A-Za-z0-9])", re.IGNORECASE)
_UNITS = {"m": 1e6, "b": 1e9}
_FIELDS = {"policy": (1, "policy"), "support": (2, "support pairs of a user")}
"""Axis -> its place in `Board.point`, and what it is called."""


def sweeps(found: Sequence[Board]) -> list[Curves]:
    """Return a chart for each axis, and on it for each combination of what else differs.

    One deployment of each side is followed along the axis, the one with the highest mean over all places, so that no
    place has a choice of its own. In context, each number of demonstrations of its method is a line; along support it
    is the most that a point shows.
    """
    out: list[Curves] = []
    for axis, (index, x_title) in _FIELDS.items():
        groups: dict[tuple[object, ...], list[Board]] = {}
        for board in found:
            if board.is_one_of_several and board.point[index] is not None:
                rest = (board.dataset, *(value for i, value in enumerate(board.point) if i != index))
                groups.setdefault(rest, []).append(board)
        several = len(groups) > 1
        for rest, boards in groups.items():
            if len(boards) > 1:
                where = _telling(rest, list(groups), index) if several else ""
                made = _sweep(axis, index, x_title, boards, where)
                out += [] if made is None else [made]
    return out


def parameters(policy: str) -> float | None:
    """Return the parameters that the name of a policy states, None where it states none or several numbers.

    Example:
        >>> parameters("Qwen/Qwen2.5-1.5B-Instruct"), parameters("smollm2-135m"), parameters("bigram")
        (1500000000.0, 135000000.0, None)
    """
    stated = {float(number) * _UNITS[unit.lower()] for number, unit in _SIZE.findall(policy)}
    return stated.pop() if len(stated) == 1 else None


def _sweep(axis: str, index: int, x_title: str, boards: list[Board], where: str) -> Curves | None:
    column = boards[0].criterion
    if column is None:
        return None
    if axis == "support":
        boards = sorted(boards, key=lambda board: board.point[index])
    else:
        sizes = [parameters(str(board.point[index])) for board in boards]
        if all(size is not None for size in sizes):
            boards = [board for _, board in sorted(zip(sizes, boards, strict=True), key=lambda pair: pair[0] or 0.0)]
            x_title = "policy, by the size in its name"
    curves = [
        _curve("zero-shot", "base", boards, column, lambda line: "zero-shot" if line.is_baseline else None),
        _followed("guided", boards, column, lambda line: line.label if line.is_guided else None),
        *_prompted(axis, boards, column),
    ]
    known = tuple(curve for curve in curves if curve is not None and curve.known())
    if not known:
        return None
    title = f"{column.title} over {x_title}" + (f", {where}" if where else "")
    names = tuple(str(board.point[index]) for board in boards)
    stated = [parameters(name) for name in names]
    if axis == "policy" and len(set(stated)) == len(names) and None not in stated:
        names = tuple(place(size or 0.0) for size in stated)
    return Curves(title, f"{column.title}{f' ({where})' if where else ''}", x_title, names, known)


def _prompted(axis: str, boards: Sequence[Board], column: Column) -> list[Curve | None]:
    """Return the lines of the in-context method that is best over all places."""
    best = _best(boards, column, _family)
    if best is None:
        return []
    if axis == "support":
        return [_curve(f"{best}, all that a point shows", "c0", boards, column, _family, best)]
    shots = sorted({line.identity.shots or 0 for board in boards for line in board.lines if _family(line) == best})
    curves: list[Curve | None] = []
    for turn, shot in enumerate(shots):
        name = partial(_family, shots=shot)
        curves.append(_curve(f"{best} {shot}", f"c{turn % _PROMPTED_COLOURS}", boards, column, name, best))
    return curves


def _followed(style: str, boards: Sequence[Board], column: Column, name: Callable[[Line], str | None]) -> Curve | None:
    best = _best(boards, column, name)
    return None if best is None else _curve(best, style, boards, column, name, best)


def _best(boards: Sequence[Board], column: Column, name: Callable[[Line], str | None]) -> str | None:
    """Return the name with the highest mean over all places, of those that have a number at every one."""
    found: dict[str, list[float]] = {}
    for board in boards:
        own: dict[str, Cell] = {}
        for line, cell in _shown(board, column):
            if (called := name(line)) is not None:
                own[called] = cell
        for called, cell in own.items():
            found.setdefault(called, []).append(cell.value or 0.0)
    whole = {called: sum(values) for called, values in found.items() if len(values) == len(boards)}
    return max(whole, key=lambda called: whole[called]) if whole else None


def _curve(
    title: str,
    style: str,
    boards: Sequence[Board],
    column: Column,
    name: Callable[[Line], str | None],
    wanted: str | None = None,
) -> Curve:
    points = []
    for at, board in enumerate(boards):
        own = [(line, cell) for line, cell in _shown(board, column) if name(line) == (wanted or title)]
        points += [(at, f"{board.name}, {line.label}", cell) for line, cell in own[-1:]]
    return Curve(title, style, tuple(points))


def _shown(board: Board, column: Column) -> list[tuple[Line, Cell]]:
    """Return the lines that have a number, those with most demonstrations last."""
    pairs = [(line, board.cell(line, column)) for line in board.lines]
    known = [(line, cell) for line, cell in pairs if cell.value is not None]
    return sorted(known, key=lambda pair: pair[0].identity.shots or 0)


def _family(line: Line, shots: int | None = None) -> str | None:
    """Return the name of an in-context deployment without the number of its demonstrations, None for others."""
    own = line.identity
    if line.is_guided or not own.shots or shots not in (None, own.shots):
        return None
    return f"{own.method}{line.label.removeprefix(f'{own.method} {own.shots}')}"


def _telling(rest: tuple[object, ...], groups: Sequence[tuple[object, ...]], index: int) -> str:
    """Return what tells one chart of an axis from the others."""
    forms = ("{}", *(form for i, form in enumerate(POINT_FORMS) if i != index))
    differ = [i for i in range(len(forms)) if len({one[i] for one in groups}) > 1]
    return ", ".join(forms[i].format(rest[i]) for i in differ if rest[i] is not None)
