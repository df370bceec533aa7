"""What a split promises, checked against rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.core.errors import SplitError
from rewardgap.data.ordering import Disjoint, keys_of, time_of

if TYPE_CHECKING:
    from rewardgap.core.records import AuthoredText, PreferencePair
    from rewardgap.data.base import RowT, UserRows


def rows_of(
    dataset: UserRows[RowT], ids: tuple[str, ...], users: set[str], side: str, *, skip_unknown: bool = False
) -> list[RowT]:
    """Return the rows of ids.

    Raises:
        SplitError: if an id is unknown (unless skipped), or is of a user who is not among `users`.
    """
    rows = []
    for name in ids:
        row = dataset.find(name)
        if row is None:
            if skip_unknown:
                continue
            raise SplitError(f"{side} lists example '{name}', which dataset '{dataset.name}' does not have.")
        if row.user_id not in users:
            expected = f"user '{next(iter(users))}'" if len(users) == 1 else f"one of {len(users)} {side} users"
            raise SplitError(f"{side} lists example '{name}' of user '{row.user_id}', expected {expected}.")
        rows.append(row)
    return rows


def check_apart(user: str, left: list[RowT], right: list[RowT], disjoint: Disjoint, sides: tuple[str, str]) -> None:
    """Refuse two sides of a user that share a prompt, an item or a row.

    Raises:
        SplitError: naming the first two rows.
    """
    owners = {key: row.example_id for row in left for key in keys_of(row, disjoint)}
    for row in right:
        for key in keys_of(row, disjoint):
            if key in owners:
                raise SplitError(
                    f"user '{user}' has one {disjoint} on both sides: {sides[0]} '{owners[key]}' and {sides[1]} "
                    f"'{row.example_id}'; {sides[1]} would be known before it is asked."
                )


def check_time(user: str, rows: tuple[RowT, ...], support: list[RowT], query: list[RowT]) -> None:
    """Refuse a query row that is earlier than a support row, where every row of the user has a time.

    Raises:
        SplitError: naming both rows.
    """
    times = [time_of(row) for row in rows]
    if None in times or not support or not query:
        return
    last = max(support, key=_known_time)
    first = min(query, key=_known_time)
    if _known_time(first) < _known_time(last):
        raise SplitError(
            f"user '{user}' has query '{first.example_id}' ({first.timestamp}) earlier than support "
            f"'{last.example_id}' ({last.timestamp}); support must come first."
        )


def _known_time(row: PreferencePair | AuthoredText) -> float:
    time = time_of(row)
    return float("inf") if time is None else time
