"""What judges that only judge say of each deployment, how independent they are of it, and how they judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.report.numbers import DASH
from rewardgap.report.sheets import Sheet
from rewardgap.report.words import Column

if TYPE_CHECKING:
    from rewardgap.report.board import Board, Line

STANDINGS = {
    "win_independent": "independent",
    "win_related": "related: the network of the policy or of the guide",
    "win_self": "circular: it picked the text",
}
OPPONENTS = {"": "zero-shot", "_over_reference": "the user's own text"}
MANNERS = ("orders_disagree", "first_place", "unread")


def judge_sheet(board: Board) -> Sheet | None:
    """Return a row for each deployment, judge and opponent; None where the study has no judges that only judge."""
    rows = tuple(
        (
            line.label,
            judge,
            opponent,
            STANDINGS[standing],
            *(_text(line, judge, name + suffix) for name in (standing, *MANNERS)),
        )
        for line in board.ordered()
        for judge in dict.fromkeys(row.judge for row in line.rows if row.stage == "cost" and row.judge is not None)
        for suffix, opponent in OPPONENTS.items()
        for standing in STANDINGS
        if any((row.judge, row.metric) == (judge, standing + suffix) for row in line.rows)
    )
    heads = ("Deployment", "Judge", "Against", "Standing of the judge", "Wins", "Orders disagree", "First place named",
             "Unread")  # fmt: skip
    return Sheet("Judges that only judge", heads, rows, 4, 4) if rows else None


def _text(line: Line, judge: str, metric: str) -> str:
    cells = [cell for cell in line.cells(Column("", "", "", "", "win_rate", metric)) if cell.judge == judge]
    return cells[0].full if cells else DASH
