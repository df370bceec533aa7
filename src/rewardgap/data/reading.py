"""Bytes to rows: plain or gzip JSON lines, with the file and line of whatever is wrong."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from rewardgap.core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

GZIP_MAGIC = b"\x1f\x8b"
GENERIC_STEMS = frozenset({"completions", "preferences", "train", "test", "data", "pairs"})


class MissingFileError(DataError):
    """A data file does not exist or cannot be opened; the command line returns 4, as for a missing model."""

    exit_code = 4


class RowError(DataError):
    """One row cannot be used. `reason` is the key it is counted under when bad rows are dropped."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row before it is read: its place in words, and a line of bytes or a mapping."""

    where: str
    content: bytes | Mapping[str, Any]


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, unpacked if it is gzip (known by its first bytes, not by its name).

    Raises:
        MissingFileError: if there is no such file, or it cannot be opened.
        DataError: if the gzip stream is cut off or damaged.
    """
    try:
        payload = path.expanduser().read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"data file '{path}' does not exist; check the path.") from None
    except IsADirectoryError:
        raise MissingFileError(f"'{path}' is a folder, expected a JSON lines file inside it.") from None
    except OSError as error:
        raise MissingFileError(f"data file '{path}' cannot be opened: {error.strerror or error}.") from None
    if not payload.startswith(GZIP_MAGIC):
        return payload
    try:
        return gzip.decompress(payload)
    except EOFError:
        raise DataError(f"{path.name}: the gzip stream is cut off before its end; copy or download it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path.name}: the gzip stream is damaged ({error}); copy or download it again.") from None


def read_raw_rows(path: Path) -> list[RawRow]:
    """Return the lines of a JSON lines file that are not blank.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is empty, or its gzip stream is damaged.
    """
    return split_rows(read_bytes(path), path.name)


def split_rows(payload: bytes, title: str) -> list[RawRow]:
    """Return the lines of a JSON lines payload that are not blank; `title` names it in messages.

    Raises:
        DataError: if there is none.
    """
    payload = payload.removeprefix(b"\xef\xbb\xbf")
    # Only a line feed ends a line: text may hold U+2028 and other characters that str.splitlines would cut at.
    lines = enumerate(payload.split(b"\n"), start=1)
    rows = [RawRow(f"{title}, line {number}", line) for number, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{title} is empty; expected one JSON object on each line.")
    return rows


def decode_row(raw: RawRow) -> Mapping[str, Any]:
    """Return a raw row as a mapping.

    Raises:
        RowError: if the line is not UTF-8, not JSON, not an object, or holds text that UTF-8 cannot carry.
    """
    value: Any = _parse(raw.where, raw.content) if isinstance(raw.content, bytes) else raw.content
    if not isinstance(value, Mapping):
        raise RowError("not_an_object", f"{raw.where}: expected an object with columns, got {kind_name(value)}.")
    return value


def _parse(where: str, line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(
            "not_utf8",
            f"{where}: byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8; save it as UTF-8.",
        ) from None

    def refuse(constant: str) -> NoReturn:
        raise RowError(
            "malformed_json", f"{where}: {constant} is not a JSON number; use null where a number is missing."
        )

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise RowError(
            "malformed_json", f"{where}, column {error.colno}: not valid JSON ({error.msg}); one object on each line."
        ) from None
    except RowError:
        raise
    except (ValueError, RecursionError):
        raise RowError("malformed_json", f"{where}: not usable JSON (a number too long or nesting too deep).") from None


def dataset_name(path: Path) -> str:
    """Return a short name for a file: its stem, or its folder's name where the stem says nothing."""
    stem = path.name.split(".")[0]
    parent = path.expanduser().resolve().parent.name
    return parent if stem in GENERIC_STEMS and parent else stem


def kind_name(value: Any) -> str:
    """Return the type of a value in the words of JSON."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
