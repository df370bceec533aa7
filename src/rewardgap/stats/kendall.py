"""Kendall's tau-b between two measures of the same methods, and what users and chance leave of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ShapeError
from rewardgap.stats.matrix import check_resampling, complete, user_counts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

EXACT_LIMIT = 8
_TIE = 1e-12
_CHUNK_CELLS = 1 << 21


@dataclass(frozen=True, slots=True)
class TauInterval:
    """Kendall's tau-b over methods, with an interval over users and a p-value over methods.

    Attributes:
        tau: tau-b of the two macro means; None where it is undefined.
        low: lower end of the user bootstrap interval.
        high: upper end.
        n: methods compared.
        ties_x: pairs of methods that tie in x.
        ties_y: pairs of methods that tie in y.
        undefined_resamples: resamples in which one side was constant; the interval is of the others.
        p_value: two-sided permutation p-value of |tau|: what is left for chance if methods were exchangeable.
        n_users: users with a value for every method in both metrics.
        n_dropped_users: the other users.
        n_dropped_methods: methods without any value in one of the metrics.
        reason: why something is None.
    """

    tau: float | None
    low: float | None
    high: float | None
    n: int
    ties_x: int
    ties_y: int
    undefined_resamples: int
    p_value: float | None
    n_users: int = 0
    n_dropped_users: int = 0
    n_dropped_methods: int = 0
    reason: str | None = None


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Return Kendall's tau-b of two vectors.

        τ_b = (C − D) / √((C + D + T_a)(C + D + T_b))

    C and D count concordant and discordant pairs, T_a and T_b pairs tied in one side only.

    Args:
        a: (n,) numbers.
        b: (n,) numbers.

    Returns:
        tau-b in [−1, 1]; NaN where a side is constant, n < 2, or a value is NaN.

    Raises:
        ShapeError: if the two are not vectors of one length.

    Example:
        >>> round(kendall_tau([1, 1, 2, 3], [1, 2, 2, 3]), 12)
        0.8
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape:
        raise ShapeError(f"a and b have shapes {left.shape} and {right.shape}, expected (n,) both: one value a method.")
    return float(kendall_tau_rows(left[None], right[None])[0])


def kendall_tau_rows(a: ArrayLike, b: ArrayLike, *, tolerance: float = 0.0) -> NDArray[np.float64]:
    """Return tau-b of each row.

    Args:
        a: (B, n) numbers.
        b: (B, n) numbers.
        tolerance: differences up to this are ties; 0 is scipy's rule.

    Returns:
        (B,) tau-b, NaN as in `kendall_tau`.

    Raises:
        ShapeError: if the two shapes differ or are not matrices.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.ndim != 2 or left.shape != right.shape:
        raise ShapeError(f"a and b have shapes {left.shape} and {right.shape}, expected (B, n) both.")
    taus = np.full(len(left), np.nan)
    step = max(1, _CHUNK_CELLS // max(1, left.shape[1] ** 2))
    for begin in range(0, len(left), step):
        rows = slice(begin, begin + step)
        signs_a, signs_b = _signs(left[rows], tolerance), _signs(right[rows], tolerance)
        signal, untied_a, untied_b = (
            np.einsum("bp,bp->b", one, other).astype(np.float64)
            for one, other in ((signs_a, signs_b), (signs_a, signs_a), (signs_b, signs_b))
        )
        size = np.sqrt(untied_a * untied_b)
        defined = (size > 0) & ~np.isnan(left[rows]).any(axis=1) & ~np.isnan(right[rows]).any(axis=1)
        taus[rows] = np.divide(signal, size, out=np.full(len(size), np.nan), where=defined)
    return np.asarray(np.clip(taus, -1.0, 1.0), dtype=np.float64)


def _signs(rows: NDArray[np.float64], tolerance: float) -> NDArray[np.float32]:
    """Return (B, n(n−1)/2) signs of all pairwise differences; counts stay exact in float32 up to n = 5,000."""
    first, second = np.triu_indices(rows.shape[1], k=1)
    with np.errstate(invalid="ignore"):
        low, high = rows[:, first], rows[:, second]
        return (high > low + tolerance).astype(np.float32) - (low > high + tolerance).astype(np.float32)


def tau_bootstrap(
    acc_x: ArrayLike, acc_y: ArrayLike, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> TauInterval:
    """Return tau-b between two metrics over methods, with a user bootstrap and a permutation p-value.

        τ = τ_b( mean_u x_mu, mean_u y_mu )

    A resample draws users with replacement, the same draw for both metrics and all methods. The interval covers the
    choice of users and not the choice of methods; the p-value is about the methods. Users must have a value for every
    method in both metrics, so that no method is compared on easier users; the others are dropped and counted. The order
    of the users has no say.

    Args:
        acc_x: (M, U) mean of each user under each method, NaN for a missing user.
        acc_y: (M, U) the same methods and users under the other metric.
        resamples: bootstrap resamples.
        seed: seed of both draws.
        level: coverage of the percentile interval.

    Raises:
        ShapeError: if the two shapes differ or are not matrices.
        ConfigError: if a value is infinite, or `resamples` or `level` is out of range.

    Source: own. `scipy.stats.bootstrap` gives a NaN interval as soon as one resample is constant.
    """
    check_resampling(resamples, level)
    found = complete([acc_x, acc_y])
    x, y = found.stages
    num_methods, num_users = x.shape
    blank = TauInterval(
        None, None, None, num_methods, 0, 0, 0, None, num_users, found.n_dropped_users, found.n_dropped_methods
    )
    if num_methods < 2 or num_users == 0:
        reason = "fewer than two methods" if num_methods < 2 else "no user has a value for every method in both metrics"
        return replace(blank, reason=reason)

    # A mean over the same users can differ in its last digit between two equal methods; that is still a tie.
    tie_x, tie_y = (_TIE * float(np.abs(side).max()) or 1.0 for side in (x, y))
    x, y = x / tie_x, y / tie_y
    mean_x, mean_y = x.mean(axis=1), y.mean(axis=1)
    ties_x, ties_y = (int((_signs(mean[None], 1.0) == 0).sum()) for mean in (mean_x, mean_y))
    point = replace(blank, ties_x=ties_x, ties_y=ties_y)
    tau = float(kendall_tau_rows(mean_x[None], mean_y[None], tolerance=1.0)[0])
    if np.isnan(tau):
        return replace(point, reason="all methods tie in one of the metrics")
    point = replace(point, tau=tau, p_value=permutation_p(mean_x, mean_y, seed=seed, tolerance=1.0))
    if num_users == 1:
        return replace(point, reason="one user: an interval over users is not identified")
    draws = _resampled_taus(x, y, resamples, seed)
    finite = draws[~np.isnan(draws)]
    point = replace(point, undefined_resamples=resamples - len(finite))
    if not len(finite):
        return replace(point, reason="tau is undefined in every resample")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return replace(point, low=float(low), high=float(high))


def _resampled_taus(x: NDArray[np.float64], y: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return (resamples,) tau-b, each of the means over one draw of users; one unit of x or y is a tie."""
    rng = np.random.default_rng(seed)
    num_users = x.shape[1]
    taus = np.empty(resamples)
    step = max(1, _CHUNK_CELLS // num_users)
    for begin in range(0, resamples, step):
        num = min(step, resamples - begin)
        shares = user_counts(num_users, num, rng) / num_users
        taus[begin : begin + num] = kendall_tau_rows(shares @ x.T, shares @ y.T, tolerance=1.0)
    return taus


def permutation_p(a: ArrayLike, b: ArrayLike, *, draws: int = 9999, seed: int = 0, tolerance: float = 0.0) -> float:
    """Return the two-sided permutation p-value of |tau-b|.

        p = share of relabellings of b with |τ_b| ≥ observed

    Args:
        a: (n,) numbers.
        b: (n,) numbers.
        draws: Monte Carlo relabellings where n > 8; all n! are counted up to n = 8.
        seed: seed of the Monte Carlo draw.
        tolerance: differences up to this are ties.

    Returns:
        The p-value, NaN where tau-b is undefined. A Monte Carlo p counts the observed order, so it is never 0.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if np.isnan(kendall_tau_rows(left[None], right[None], tolerance=tolerance)[0]):
        return float("nan")
    num = len(left)
    if num <= EXACT_LIMIT:
        orders = np.array(list(permutations(range(num))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(num), (draws, 1)), axis=1)
    first, second = np.triu_indices(num, k=1)
    signs_a = _signs(left[None], tolerance)[0]
    square = np.zeros((num, num), dtype=np.float32)
    square[first, second] = _signs(right[None], tolerance)[0]
    square -= square.T
    # Relabelling leaves both tie counts alone, so |C − D| orders as |tau| does, in whole numbers.
    extreme = 0
    observed = abs(float(square[first, second] @ signs_a))
    step = max(1, _CHUNK_CELLS // num**2)
    for begin in range(0, len(orders), step):
        order = orders[begin : begin + step]
        signal = square[order[:, first], order[:, second]] @ signs_a
        extreme += int((np.abs(signal) >= observed - 0.5).sum())
    return extreme / len(orders) if num <= EXACT_LIMIT else (extreme + 1) / (len(orders) + 1)


def leave_one_out_tau(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Return the lowest and highest tau-b with one method left out, over the defined ones; NaN if none is.

    Args:
        a: (n,) numbers.
        b: (n,) numbers.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(left) < 3:
        return float("nan"), float("nan")
    kept = [[i for i in range(len(left)) if i != out] for out in range(len(left))]
    taus = kendall_tau_rows(left[kept], right[kept])
    taus = taus[~np.isnan(taus)]
    return (float(taus.min()), float(taus.max())) if len(taus) else (float("nan"), float("nan"))
