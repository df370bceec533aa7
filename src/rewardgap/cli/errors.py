"""From exceptions to one sentence and an exit code: no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import sys
import traceback
import unicodedata
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import RewardGapError

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED = 1
INTERRUPTED = 130
SHOW_TRACEBACK = "REWARDGAP_TRACEBACK"
_BLANKS = {"\t": "    ", "\u00a0": " ", "\u200c": "\u200c", "\u200d": "\u200d"}
"""What is not printable and harmless: blanks, and the joiners that some scripts and emoji are written with."""


@contextmanager
def reported(as_json: bool = False, *, resumable: bool = False) -> Iterator[None]:
    """Print an error as one sentence on stderr and leave with its exit code.

    Args:
        as_json: print the error as a JSON object on stdout too.
        resumable: whether the same command goes on where an interrupted one was.
    """
    import typer

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("ignore", FutureWarning)  # libraries to each other; nothing a user can act on
            yield
            sys.stdout.flush()
    except typer.Exit:
        raise
    except RewardGapError as error:
        _say(str(error), type(error).__name__, as_json)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        kept = ": what was finished is kept; the same command goes on from there" if resumable else ""
        sys.stderr.write(f"interrupted{kept}.\n")
        raise typer.Exit(INTERRUPTED) from error
    except BrokenPipeError:
        # The reader of our output went away, for example `| head`.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        raise typer.Exit(0) from None
    except OSError as error:
        place = f"cannot read or write '{error.filename}': " if error.filename else ""
        _say(f"{place}{error.strerror or error}.", type(error).__name__, as_json)
        raise typer.Exit(FAILED) from error
    except Exception as error:
        if os.environ.get(SHOW_TRACEBACK):
            raise
        _say(_unexpected(error), type(error).__name__, as_json)
        raise typer.Exit(FAILED) from error


def one_line(text: str) -> str:
    """Return a text without line breaks and without characters that steer a terminal."""
    return harmless(" ".join(text.split()))


def harmless(text: str) -> str:
    """Return a text without characters that steer a terminal; its line breaks and blanks stay."""
    return "".join(c if c.isprintable() or c == "\n" else _BLANKS.get(c, "\ufffd") for c in text)


def json_text(value: Any) -> str:
    r"""Return a value as one line of JSON: characters that steer a terminal are escaped, all others are as they are.

    Example:
        >>> print(json_text({"text": "é \u202e \u0085"}))
        {"text": "é \u202e \u0085"}
    """
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(c if _is_shown(c) else json.dumps(c)[1:-1] for c in text)


def _is_shown(character: str) -> bool:
    """Return whether a terminal shows a character, if only as a blank, and does nothing else."""
    return character.isprintable() or character in _BLANKS or unicodedata.category(character) == "Zs"


def _say(sentence: str, kind: str, as_json: bool) -> None:
    sentence = one_line(sentence)
    if as_json:
        sys.stdout.write(json.dumps({"error": sentence, "kind": kind}) + "\n")
    sys.stderr.write(f"error: {sentence}\n")


def _unexpected(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__} in {Path(last.filename).name}, line {last.lineno}: {error}; "
        f"set {SHOW_TRACEBACK}=1 to see where it comes from, and please report it."
    )


def _show_warning(message: Warning | str, *_rest: Any, **_more: Any) -> None:
    sys.stderr.write(f"warning: {one_line(str(message))}\n")
