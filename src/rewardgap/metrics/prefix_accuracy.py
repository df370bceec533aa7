"""Ranking unfinished texts: what the values of prefixes say of a pair, before and after its texts are whole.

A decoder that is steered token by token never sees a whole text. It chooses by the values of prefixes.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

QUARTERS: tuple[int, ...] = (1, 2, 3, 4)
"""Where pairs are cut: after so many quarters of their tokens."""


def tokens_read(length: int, quarters: int) -> int:
    """Return how many of `length` tokens are there after some quarters of them, rounded up.

    Example:
        >>> [tokens_read(5, quarters) for quarters in QUARTERS]
        [2, 3, 4, 5]
    """
    return -(-length * quarters // 4)


def prefix_margins(chosen: ArrayLike, rejected: ArrayLike) -> NDArray[np.float64]:
    """Return the margins of a pair that is cut after 25, 50, 75 and 100 % of its tokens, each side at its own length.

        m(s) = R+(⌈s T⌉) - R-(⌈s T'⌉),   s = 1/4, 1/2, 3/4, 1

    Args:
        chosen: (T + 1,) value of each prefix of the chosen completion; index 0 is the bare prompt.
        rejected: (T' + 1,) the same of the rejected one.

    Returns:
        (4,) margins; the last is that of the whole texts.

    Raises:
        ShapeError: if a side is no vector of at least one value.
    """
    good, bad = _values(chosen, "chosen"), _values(rejected, "rejected")
    return np.array([good[tokens_read(len(good) - 1, cut)] - bad[tokens_read(len(bad) - 1, cut)] for cut in QUARTERS])


def first_right(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Return the share of both texts after which the chosen one is ahead and stays ahead, NaN where it never does.

        s* = min{ s : m(s') > 0 for all s' in [s, 1] },   m as in `prefix_margins`, for any share s in (0, 1]

    m changes only where either text gets another token, at i/T and j/T', so these shares are all there is to look at.

    Args:
        chosen: as in `prefix_margins`.
        rejected: as in `prefix_margins`.

    Returns:
        A share in (0, 1]. A tie is not ahead.

    Raises:
        ShapeError: as in `prefix_margins`.

    Example:
        >>> first_right([0.0, -1.0, 2.0], [0.0, 0.0, 1.0])
        1.0
    """
    good, bad = _values(chosen, "chosen"), _values(rejected, "rejected")
    own, other = max(len(good) - 1, 1), max(len(bad) - 1, 1)
    # Whole numbers: shares are counted in parts of a common denominator, so that no rounding moves a token.
    whole = own * other // gcd(own, other)
    shares = sorted(
        {i * (whole // own) for i in range(1, own + 1)} | {j * (whole // other) for j in range(1, other + 1)}
    )
    found = float("nan")
    for share in reversed(shares):
        margin = good[-(-share * (len(good) - 1) // whole)] - bad[-(-share * (len(bad) - 1) // whole)]
        if not margin > 0:
            break
        found = share / whole
    return found


def same_prefixes(chosen: Sequence[int], rejected: Sequence[int]) -> list[bool]:
    """Return whether both sides of a pair are still one text after 25, 50, 75 and 100 % of their tokens.

    There is nothing to rank then, for anybody.

    Args:
        chosen: (T,) token ids.
        rejected: (T',) token ids.
    """
    good, bad = list(chosen), list(rejected)
    return [good[: tokens_read(len(good), cut)] == bad[: tokens_read(len(bad), cut)] for cut in QUARTERS]


def _values(values: ArrayLike, side: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ShapeError(
            f"{side} has shape {array.shape}, expected (T + 1,): the bare prompt's value, then each prefix's."
        )
    return array
