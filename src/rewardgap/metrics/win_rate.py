"""Wins of one deployment over another under a judge, and whether that judge also steered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from rewardgap.core.errors import CircularEvaluationError, ShapeError
from rewardgap.metrics.rm_accuracy import pair_accuracy

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def wins(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return who wins each example.

        w = 1[a > b] + ½ · 1[a = b]

    Args:
        a: (N,) score of this deployment's text under the judge; NaN is missing.
        b: (N,) score of the baseline's text for the same prompt and user.

    Returns:
        (N,) of 1, ½, 0; NaN where either is missing, or both are the same infinity and so do not compare.

    Raises:
        ShapeError: if the two shapes differ.

    Example:
        >>> wins([2.0, 1.0, 0.0], [1.0, 1.0, 1.0]).tolist()
        [1.0, 0.5, 0.0]
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise ShapeError(f"b has shape {right.shape}, expected that of a, {left.shape}: the same examples.")
    with np.errstate(invalid="ignore"):
        return pair_accuracy(left - right)


def is_circular(guide: str | None, judge: str) -> bool:
    """Return whether the judge is the reward model that steered.

    Args:
        guide: identity of the fitted reward model that guided decoding; None for a deployment without one.
        judge: identity of the fitted reward model that scores, in the same terms.
    """
    return guide is not None and guide == judge


def win_name(guide: str | None, judge: str) -> Literal["win_self", "win_cross"]:
    """Return the metric's name: `win_self` is circular, `win_cross` is not."""
    return "win_self" if is_circular(guide, judge) else "win_cross"


def require_independent(guide: str | None, judge: str, *, allow_circular: bool = False) -> None:
    """Refuse a circular judge unless it is asked for by name.

    Raises:
        CircularEvaluationError: if the judge steered and `allow_circular` is False.
    """
    if is_circular(guide, judge) and not allow_circular:
        raise CircularEvaluationError(
            f"judge and guide are the same model ({judge}). A win rate under it is circular; "
            "pass allow_circular=True to report it as such."
        )
