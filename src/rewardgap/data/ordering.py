"""The order in which a user's rows are dealt to the sides of a split, and what two sides must not share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from rewardgap.core.records import AuthoredText, PreferencePair
from rewardgap.core.seeds import child_seed
from rewardgap.data.base import RowT, prompt_key
from rewardgap.data.columns import time_order

if TYPE_CHECKING:
    from collections.abc import Sequence

Disjoint: TypeAlias = Literal["prompt", "item", "row"]


def keys_of(row: PreferencePair | AuthoredText, disjoint: Disjoint) -> frozenset[str]:
    """Return what a row holds that the other side must not: its prompt, the texts judged, or itself."""
    if disjoint == "prompt":
        return frozenset({prompt_key(row)})
    if disjoint == "item":
        return frozenset({row.chosen, row.rejected} if isinstance(row, PreferencePair) else {row.reference})
    return frozenset({row.example_id})


def time_of(row: PreferencePair | AuthoredText) -> float | None:
    """Return the row's time as a number, None where it has none that can be ordered."""
    if row.timestamp is None:
        return None
    try:
        return time_order(row.timestamp)
    except ValueError:
        return None


def in_time(rows: Sequence[RowT]) -> list[RowT] | None:
    """Return the rows from first to last, None where a row has no time; equal times go by id."""
    timed = [(time, row) for row in rows if (time := time_of(row)) is not None]
    if len(timed) < len(rows):
        return None
    return [row for _, row in sorted(timed, key=lambda item: (item[0], item[1].example_id))]


def in_random_order(rows: Sequence[RowT], seed: int, user_id: str) -> list[RowT]:
    """Return the rows in an order that seed, user and ids decide, those of one prompt together.

    Together, because a side that took one row of every prompt would leave nothing for the other.
    """

    def draw(row: RowT) -> tuple[int, int, str]:
        prompt = child_seed(seed, "split", "prompt", user_id, prompt_key(row))
        return prompt, child_seed(seed, "split", "row", user_id, row.example_id), row.example_id

    return sorted(rows, key=draw)


def deal(rows: Sequence[RowT], first: int, second: int | None, disjoint: Disjoint) -> tuple[list[RowT], list[RowT]]:
    """Return the first `first` rows, and up to `second` later ones (None: all) that share no key with them."""
    taken = list(rows[:first])
    keys = {key for row in taken for key in keys_of(row, disjoint)}
    others = [row for row in rows[first:] if keys.isdisjoint(keys_of(row, disjoint))]
    return taken, others if second is None else others[:second]


def hold_out(rows: Sequence[RowT], count: int, disjoint: Disjoint) -> tuple[list[RowT], list[RowT]]:
    """Return the rows without the last `count`, and those; rows in front that share a key with them are left out."""
    held = list(rows[len(rows) - count :])
    keys = {key for row in held for key in keys_of(row, disjoint)}
    return [row for row in rows[: len(rows) - count] if keys.isdisjoint(keys_of(row, disjoint))], held
