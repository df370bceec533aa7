"""From exceptions to one sentence and an exit code: no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rewardgap.core.errors import RewardGapError

if TYPE_CHECKING:
    from collections.abc import Iterator

INTERRUPTED = 130


@contextmanager
def reported(as_json: bool = False) -> Iterator[None]:
    """Print a known error as one sentence on stderr (or as JSON on stdout) and leave with its exit code."""
    import typer

    try:
        yield
    except RewardGapError as error:
        if as_json:
            sys.stdout.write(json.dumps({"error": str(error), "kind": type(error).__name__}) + "\n")
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        sys.stderr.write("interrupted: what was finished is kept; the same command goes on from there.\n")
        raise typer.Exit(INTERRUPTED) from error
    except BrokenPipeError:
        # The reader of our output went away, for example `| head`.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        raise typer.Exit(0) from None
