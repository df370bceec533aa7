"""Deployments compared two at a time on the same users, with a p-value that knows how many comparisons were made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError, UnknownNameError
from rewardgap.core.seeds import child_seed
from rewardgap.stats.bootstrap import ONE_USER
from rewardgap.stats.matrix import check_resampling, user_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

EXACT_USERS = 12
"""Up to so many users all 2^U sign flips are counted."""
NO_COMMON_USER = "no user has a value under both"
_CHUNK_CELLS = 1 << 20


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """One deployment against another on the users that both served.

    Attributes:
        a: name of the one.
        b: name of the other.
        difference: mean over users of a − b; None without a common user.
        low: lower end of the interval over users; None with one user.
        high: its upper end.
        p_value: two-sided sign-flip p of the mean difference.
        p_holm: the same, corrected by Holm for all comparisons made together.
        n_users: users with a value under both.
        level: coverage of the interval, which stands for itself and is not corrected.
        reason: why something is None.
    """

    a: str
    b: str
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    n_users: int
    level: float
    reason: str | None = None

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        if self.difference is None or self.low is None or self.high is None or self.p_holm is None:
            return f"{self.a} and {self.b} cannot be compared: {self.reason}."
        finding = "cannot be told from"
        if self.p_holm <= 1 - self.level:
            finding = "is above" if self.difference > 0 else "is below"
        return (
            f"{self.a} {finding} {self.b}: {self.difference:+.4g} ({100 * self.level:g} % interval {self.low:.4g} to "
            f"{self.high:.4g}; p {self.p_holm:.3g} after Holm; {self.n_users} users)."
        )


def compare_deployments(
    scores: ArrayLike,
    names: Sequence[str],
    *,
    against: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[PairedComparison, ...]:
    """Compare all pairs of deployments, or all with one of them.

        difference = mean_u( a_u − b_u )

    The interval resamples whole users: a user's mean already carries the noise of its examples. Its percentiles are
    moved outwards for few users, to Φ(√(U/(U−1)) · t_{U−1}). p is the share of sign flips of the users' differences
    whose mean is at least as far from zero.

    Args:
        scores: (M, U) mean of each user under each deployment, NaN for missing; a pair uses its own common users.
        names: (M,) names.
        against: the one deployment that all others are compared with; None: all pairs, in the order of the names.
        resamples: bootstrap resamples, and sign flips where there are more than 12 users.
        seed: of the draws. The order of the users has no say.
        level: coverage.

    Raises:
        ShapeError: if `scores` is not (M, U), or names are not M.
        ConfigError: if a value is infinite, a name comes twice, or `resamples` or `level` is out of range.
        UnknownNameError: if `against` is not among the names.

    Source: expanded percentiles: Hesterberg (2015), What teachers should know about the bootstrap; Holm (1979).
    """
    check_resampling(resamples, level)
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) != len(names):
        raise ShapeError(f"scores has shape {matrix.shape}, expected (M, U) with M = {len(names)} names.")
    if np.isinf(matrix).any() or len(set(names)) < len(names):
        raise ConfigError("scores holds an infinite value, or two deployments have one name; a mean needs neither.")
    if against is not None and against not in names:
        raise UnknownNameError("deployment", against, names)
    indices = range(len(names))
    pairs = list(combinations(indices, 2))
    if against is not None:
        base = list(names).index(against)
        pairs = [(index, base) for index in indices if index != base]
    made = _compare(matrix, names, pairs, resamples, seed, level)
    known = [result.p_value for result in made if result.p_value is not None]
    corrected = iter(holm(known).tolist())
    return tuple(result if result.p_value is None else replace(result, p_holm=next(corrected)) for result in made)


def _compare(
    matrix: NDArray[np.float64],
    names: Sequence[str],
    pairs: list[tuple[int, int]],
    resamples: int,
    seed: int,
    level: float,
) -> list[PairedComparison]:
    """Compare pairs; those with equally many users share their draws, since users are sorted by difference in each."""
    from scipy.special import ndtr, stdtrit

    gaps = [matrix[first] - matrix[second] for first, second in pairs]
    gaps = [np.sort(gap[~np.isnan(gap)]) for gap in gaps]
    made = [
        PairedComparison(names[first], names[second], None, None, None, None, None, len(gap), level, NO_COMMON_USER)
        for (first, second), gap in zip(pairs, gaps, strict=True)
    ]
    for num_users in sorted({len(gap) for gap in gaps} - {0}):
        at = [index for index, gap in enumerate(gaps) if len(gap) == num_users]
        rows = np.stack([gaps[index] for index in at])
        points = [replace(made[i], difference=float(row.mean()), reason=None) for i, row in zip(at, rows, strict=True)]
        if num_users == 1:
            points = [replace(point, reason=ONE_USER) for point in points]
        else:
            tail = float(ndtr(np.sqrt(num_users / (num_users - 1)) * stdtrit(num_users - 1, (1 - level) / 2)))
            ends = np.quantile(_resampled_means(rows, resamples, seed), [tail, 1 - tail], axis=0)
            chances = _sign_flip_rows(rows, resamples, seed)
            points = [
                replace(point, low=float(low), high=float(high), p_value=float(chance))
                for point, low, high, chance in zip(points, *ends, chances, strict=True)
            ]
        for index, point in zip(at, points, strict=True):
            made[index] = point
    return made


def _resampled_means(rows: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return (R, P) means of each row over a draw of its users with replacement."""
    rng = np.random.default_rng(child_seed(seed, "paired"))
    num_users = rows.shape[1]
    step = max(1, _CHUNK_CELLS // num_users)
    sizes = [min(step, resamples - begin) for begin in range(0, resamples, step)]
    return np.concatenate([user_counts(num_users, size, rng) @ rows.T / num_users for size in sizes])


def sign_flip_p(differences: ArrayLike, *, draws: int = 9999, seed: int = 0) -> float:
    """Return the two-sided sign-flip p of a mean difference: what is left if a and b were exchangeable for each user.

        p = share of sign vectors s with |Σ s_u d_u| ≥ |Σ d_u|

    Args:
        differences: (U,) one difference a user.
        draws: Monte Carlo flips where U > 12; all 2^U are counted up to 12. The observed signs count as one of them.
        seed: of the Monte Carlo draw.

    Raises:
        ShapeError: if it is not a vector with a value.
        ConfigError: if a value is not finite.

    Example:
        >>> sign_flip_p([1.0, 2.0, 3.0])
        0.25
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ShapeError(f"differences has shape {values.shape}, expected (U,) with at least one user.")
    if not np.isfinite(values).all():
        raise ConfigError("differences holds NaN or an infinite value; leave the user out.")
    return float(_sign_flip_rows(np.sort(values)[None], draws, seed)[0])


def _sign_flip_rows(rows: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Return (P,) sign-flip p of each row of differences."""
    num_users = rows.shape[1]
    # Sums of the same numbers in another order differ by rounding; they are equally extreme.
    observed = np.abs(rows.sum(axis=1)) - 1e-12 * np.abs(rows).sum(axis=1)
    if num_users <= EXACT_USERS:
        signs = 1.0 - 2.0 * (np.arange(2**num_users)[:, None] >> np.arange(num_users) & 1)
        return np.asarray(np.mean(np.abs(signs @ rows.T) >= observed, axis=0), dtype=np.float64)
    rng = np.random.default_rng(child_seed(seed, "sign_flip"))
    extreme = np.zeros(len(rows))
    step = max(1, _CHUNK_CELLS // num_users)
    for begin in range(0, draws, step):
        flips = rng.integers(0, 2, size=(min(step, draws - begin), num_users), dtype=np.int8)
        extreme += (np.abs((1.0 - 2.0 * flips) @ rows.T) >= observed).sum(axis=0)
    return np.asarray((extreme + 1) / (draws + 1), dtype=np.float64)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return Holm's corrected p-values, in the order given.

        p̃_(i) = max_{j ≤ i} min(1, (m − j + 1) · p_(j))

    Args:
        p_values: (m,) p-values of comparisons made together.

    Raises:
        ShapeError: if it is not a vector.
        ConfigError: if a value is not a probability.

    Source: Holm (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1:
        raise ShapeError(f"p_values has shape {values.shape}, expected (m,).")
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(wrong):
        raise ConfigError(f"p_values[{wrong[0]}] is {values[wrong[0]]}; a p-value lies in [0, 1].")
    order = np.argsort(values, kind="stable")
    stepped = np.minimum(1.0, values[order] * np.arange(len(values), 0, -1))
    out = np.empty_like(values)
    out[order] = np.maximum.accumulate(stepped)
    return out
