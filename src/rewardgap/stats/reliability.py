"""How well a stage's scores of methods would repeat with other users, and when a rank correlation is not identified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError
from rewardgap.core.seeds import child_seed
from rewardgap.stats.matrix import complete

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MIN_METHODS = 6
"""Fewest methods: with 5, only the same order or its reverse passes 5 % (2 of 120 orders; |τ| = .8 does not)."""
MIN_RELIABILITY = 0.8
"""Lowest split-half reliability of either stage. Where both reach it, the corrected interval of `rank_correlation` held
the truth in 94 to 99 % of simulated worlds (docs/statistics.md). Below, it spans about half the range of tau and more
with 6 to 9 methods, and with 32 methods and 60 users it missed up to one time in eight."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Split-half reliability of the scores of methods.

    Attributes:
        value: share of the variance between method scores that is not noise of users; 1 is perfect, below 0 is possible
            where halves disagree; None where it is undefined.
        n_methods: M.
        n_users: users with a value for every method.
        n_splits: random halvings averaged; those in which a half has all methods tied are left out.
        reason: why `value` is None.
    """

    value: float | None
    n_methods: int
    n_users: int
    n_splits: int
    reason: str | None = None

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        if self.value is None:
            return f"How well the scores would repeat with other users is not known: {self.reason}."
        return (
            f"Scores of {self.n_methods} methods over {self.n_users} users have a split-half reliability of "
            f"{self.value:.2f}: with as many other users, they would correlate about so much with these."
        )


def split_half_reliability(scores: ArrayLike, splits: int = 200, seed: int = 0) -> Reliability:
    """Return how much the scores of methods over one half of the users tell of those over the other half.

        r = mean over random halvings of corr_m( mean of half 1, mean of half 2 ),   reliability = 2r / (1 + r)

    Args:
        scores: (M, U) mean of each user under each method, NaN for missing; users without a value for every method are
            left out. With an odd number, one user sits out each time.
        splits: random halvings.
        seed: of the halvings. The order of the users has no say.

    Raises:
        ShapeError: if `scores` is not a matrix.
        ConfigError: if a value is infinite or `splits` is below 1.

    Source: Spearman (1910), Brown (1910).
    """
    if splits < 1:
        raise ConfigError(f"splits is {splits}; expected at least 1.")
    (matrix,) = complete([scores], "scores").stages
    num_methods, num_users = matrix.shape
    if num_methods < 3 or num_users < 2:
        few = "fewer than three methods" if num_methods < 3 else "fewer than two users"
        return Reliability(None, num_methods, num_users, 0, few)
    rng = np.random.default_rng(child_seed(seed, "split_half"))
    half = num_users // 2
    # A mean of equal numbers can differ in its last digit between two methods; that is a tie, not a correlation.
    rounding = 1e-12 * float(np.abs(matrix).max())
    order = rng.permuted(np.tile(np.arange(num_users), (splits, 1)), axis=1)
    member = np.zeros((2, splits, num_users))
    for side in range(2):
        np.put_along_axis(member[side], order[:, side * half : (side + 1) * half], 1 / half, axis=1)
    correlations = row_correlations(member[0] @ matrix.T, member[1] @ matrix.T, rounding)
    defined = correlations[~np.isnan(correlations)]
    if not len(defined):
        return Reliability(None, num_methods, num_users, 0, "all methods tie in one half of the users")
    mean = float(defined.mean())
    if mean <= -0.5:
        reason = f"halves of the users contradict each other (correlation {mean:.2f})"
        return Reliability(None, num_methods, num_users, len(defined), reason)
    return Reliability(2 * mean / (1 + mean), num_methods, num_users, len(defined))


def row_correlations(a: NDArray[np.float64], b: NDArray[np.float64], rounding: float = 0.0) -> NDArray[np.float64]:
    """Return (B,) Pearson correlations of the rows of two (B, n) arrays, NaN where one varies no more than rounding."""
    left, right = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt(np.sum(left**2, axis=1) * np.sum(right**2, axis=1))
    defined = (np.abs(left).max(axis=1) > rounding) & (np.abs(right).max(axis=1) > rounding) & (size > 0)
    products = np.sum(left * right, axis=1)
    return np.asarray(np.divide(products, size, out=np.full(len(a), np.nan), where=defined), dtype=np.float64)


def not_identified(num_methods: int, *reliabilities: Reliability) -> str | None:
    """Return why a rank correlation of these stages is not identified, None where it is.

    Args:
        num_methods: M.
        reliabilities: of each stage.
    """
    if num_methods < MIN_METHODS:
        return f"{num_methods} methods; a rank correlation needs {MIN_METHODS}"
    for found in reliabilities:
        if found.value is None:
            return f"the reliability of a stage is not known: {found.reason}"
    lowest = min((found.value for found in reliabilities if found.value is not None), default=1.0)
    if lowest < MIN_RELIABILITY:
        return (
            f"split-half reliability {lowest:.2f} is below {MIN_RELIABILITY}: more users, or methods further apart, "
            "are needed"
        )
    return None
