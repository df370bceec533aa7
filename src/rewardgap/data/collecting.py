"""From raw rows to unique rows: bad rows, duplicates and example ids are dealt with here, once for all loaders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeAlias, get_args

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.store import content_hash
from rewardgap.data.base import RowT, row_to_json
from rewardgap.data.columns import check_unicode, nearest
from rewardgap.data.reading import RawRow, RowError, decode_row

OnBadRow: TypeAlias = Literal["error", "drop"]
ExampleIds: TypeAlias = Literal["given", "content"]

Parse: TypeAlias = Callable[[str, Mapping[str, Any]], RowT | None]


@dataclass(frozen=True)
class Collected(Generic[RowT]):
    """Rows with unique ids, and what was left out."""

    rows: tuple[RowT, ...]
    dropped: Mapping[str, int]
    notes: tuple[str, ...]


def collect(
    name: str,
    raw_rows: Iterable[RawRow],
    parse: Parse[RowT],
    *,
    on_bad_row: OnBadRow,
    example_ids: ExampleIds,
) -> Collected[RowT]:
    """Parse rows and give each an id that no other row has.

    An id that several users share (two people judging one item) becomes `user/id` on every row of the file.

    Args:
        name: the dataset's name, for messages.
        raw_rows: lines or mappings with their places.
        parse: reads one mapping; returns a row (with example_id '' where the file gives none), or None where the two
            completions are the same text.
        on_bad_row: raise at the first bad row, or leave bad rows out and count them by reason.
        example_ids: keep the ids of the file, or name every row by its content.

    Raises:
        RowError: at the first bad row, with on_bad_row "error".
        DataError: if one id of a user names two different rows, or no row is left.
    """
    check_choice("on_bad_row", on_bad_row, get_args(OnBadRow))
    check_choice("example_ids", example_ids, get_args(ExampleIds))
    dropped: Counter[str] = Counter()
    kept: dict[tuple[str, str], RowT] = {}
    places: dict[tuple[str, str], str] = {}
    for raw in raw_rows:
        try:
            row = parse(raw.where, decode_row(raw))
            if row is not None:
                check_unicode(raw.where, row_to_json(row))
        except RowError as error:
            if on_bad_row == "error":
                raise
            dropped[error.reason] += 1
            continue
        if row is None:
            dropped["identical_completions"] += 1
            continue
        if not row.example_id or example_ids == "content":
            row = replace(row, example_id=content_id(row))
        key = (row.user_id, row.example_id)
        if key not in kept:
            kept[key], places[key] = row, raw.where
        elif row_to_json(row) == row_to_json(kept[key]):
            dropped["duplicate_row"] += 1
        else:
            raise DataError(
                f"{raw.where}: example_id '{row.example_id}' of user '{row.user_id}' already names another row "
                f"({places[key]}); give each row its own id, or pass example_ids='content'."
            )
    if not kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "there was none"
        raise DataError(f"dataset '{name}' has no usable row ({reasons}).")
    notes: list[str] = []
    rows = tuple(kept.values())
    if len({row.example_id for row in rows}) < len(rows):
        rows = tuple(replace(row, example_id=f"{row.user_id}/{row.example_id}") for row in rows)
        notes.append("Example ids that several users share were made unique as 'user/id'.")
    if dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        notes.append(f"{sum(dropped.values())} rows were left out: {reasons}.")
    return Collected(rows, dict(sorted(dropped.items())), tuple(notes))


def content_id(row: RowT) -> str:
    """Return the first 16 hex digits of the SHA-256 of the canonical row without its id."""
    columns = row_to_json(row)
    del columns["example_id"]
    return content_hash(columns)


def check_choice(option: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse a value that an option does not have.

    Raises:
        ConfigError: naming the values it has.
    """
    if value not in known:
        raise ConfigError(f"{option} is {value!r}, expected one of {', '.join(known)}.{nearest(str(value), known)}")
