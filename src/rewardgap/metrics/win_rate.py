"""Wins of one deployment over another under a judge, and whether that judge also steered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from rewardgap.core.errors import CircularEvaluationError, ShapeError
from rewardgap.metrics.rm_accuracy import pair_accuracy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


FIRST, SECOND, TIE = "A", "B", "tie"
"""What a judge answers: the text in the first place, the one in the second, neither."""
Opponent: TypeAlias = Literal["zero_shot", "reference"]


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


def verdicts(answers: Sequence[str | None], swapped: Sequence[str | None]) -> NDArray[np.float64]:
    """Return what a judge's two answers to each comparison come to.

        w = 1 if both prefer this deployment's text, 0 if both prefer the other, else ½

    Args:
        answers: (N,) "A", "B" or "tie", this deployment's text in the first place; None where it cannot be read.
        swapped: (N,) the same with it in the second place.

    Returns:
        (N,) of 1, ½, 0; NaN where either answer cannot be read. A preference that does not survive the change of places
        is a tie.

    Raises:
        ShapeError: if the numbers of answers differ.

    Example:
        >>> verdicts(["A", "B", "A", "A"], ["B", "A", "A", "tie"]).tolist()
        [1.0, 0.0, 0.5, 0.5]
    """
    if len(answers) != len(swapped):
        raise ShapeError(f"{len(swapped)} swapped answers for {len(answers)}: expected one for each.")
    pairs = zip(answers, swapped, strict=True)
    decided: dict[tuple[str | None, str | None], float] = {(FIRST, SECOND): 1.0, (SECOND, FIRST): 0.0}
    return np.array([np.nan if None in pair else decided.get(pair, 0.5) for pair in pairs], dtype=np.float64)


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


def judged_name(guide: str | None, judge: str, *, related: bool, opponent: Opponent = "zero_shot") -> str:
    """Return the metric's name for a judge that only judges.

    `win_self`: the judge picked the text itself, which is circular. `win_related`: another judge on the network that
    wrote the text or on the guide's, so no independent one. `win_independent`: neither.

    Args:
        guide: identity of who guided or picked; None for a deployment without one.
        judge: identity of who judges, in the same terms.
        related: whether the judge's network is the policy's or the guide's.
        opponent: whose text the deployment's is compared with; against the user's own text the name says so.
    """
    name = "win_self" if is_circular(guide, judge) else "win_related" if related else "win_independent"
    return name if opponent == "zero_shot" else f"{name}_over_{opponent}"


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
