"""Ranking accuracy: how often the chosen completion has the larger score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def pair_accuracy(margins: ArrayLike) -> NDArray[np.float64]:
    """Return whether each pair is ranked as the user ranked it.

        a = 1[m > 0] + ½ · 1[m = 0]

    Args:
        margins: (N,) score of chosen minus rejected; NaN is missing. Infinite margins count by their sign.

    Returns:
        (N,) of 1, ½, 0, or NaN where the margin is NaN.

    Example:
        >>> pair_accuracy([2.0, 0.0, -1.0]).tolist()
        [1.0, 0.5, 0.0]
    """
    array = np.asarray(margins, dtype=np.float64)
    return np.where(np.isnan(array), np.nan, (np.sign(array) + 1) / 2)


def ties(margins: ArrayLike) -> NDArray[np.float64]:
    """Return (N,) 1 where a margin is exactly 0, else 0; NaN where it is missing.

    Its mean is the tie rate: half of it is what breaking ties could add to the accuracy or take from it.
    """
    array = np.asarray(margins, dtype=np.float64)
    return np.where(np.isnan(array), np.nan, (array == 0).astype(np.float64))


def tie_rate(margins: ArrayLike) -> float:
    """Return the share of exact ties among the margins that are not missing; NaN where all are."""
    flags = ties(margins)
    flags = flags[~np.isnan(flags)]
    return float(flags.mean()) if len(flags) else float("nan")
