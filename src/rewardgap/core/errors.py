"""The exception family: every mistake a caller can make ends in one of these.

A message has three parts in one or two sentences: what was expected, what came (name, value, which user, file or row),
and what to do. `exit_code` is what the command line returns.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class RewardGapError(Exception):
    """Base of every error that the command line prints as one sentence."""

    exit_code = 1


class ConfigError(RewardGapError, ValueError):
    """A setting, a study file or an argument is wrong."""

    exit_code = 2


class ShapeError(ConfigError):
    """An array has another shape than the docstring states."""


class UnknownNameError(RewardGapError, KeyError):
    """A catalogue has no entry of that name; the message names the nearest one."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = list(known)
        nearest = get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        super().__init__(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names)}.")

    def __str__(self) -> str:
        """Return the sentence itself; KeyError would show its repr."""
        return str(self.args[0])


class DataError(RewardGapError, ValueError):
    """A file, row or text cannot be used; the message names file, line and column where there are any."""

    exit_code = 3


class SplitError(DataError):
    """A split leaks, or asks for more than the data hold."""


class ModelError(RewardGapError):
    """A model, tokenizer or file is missing, offline or unfit for what is asked of it."""

    exit_code = 4


class OutOfMemoryError(RewardGapError, MemoryError):
    """A batch takes more memory than there is; the message names the batch size that would fit."""

    exit_code = 4


class MissingExtraError(RewardGapError, ImportError):
    """An optional dependency is not installed; the message names the extra."""

    exit_code = 4


class StorageError(RewardGapError):
    """Nothing can be written where results go: the disk is full, or the folder is read-only."""


class GateError(RewardGapError):
    """A condition of `compare --fail-if` is met."""

    exit_code = 6


class CellsFailedError(RewardGapError):
    """Some cells of a study failed; the others are finished and kept."""

    exit_code = 5


class CircularEvaluationError(RewardGapError):
    """A reward model would judge text that it steered."""

    exit_code = 2


class NotScorableError(RewardGapError):
    """A deployment has no tractable density, so it has no policy accuracy."""
