"""Do two stages put methods in one order? Tau-b and Spearman with all that limits what they say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ShapeError
from rewardgap.core.seeds import child_seed
from rewardgap.stats.kendall import EXACT_LIMIT, kendall_tau_rows, leave_one_out_tau, tau_bootstrap
from rewardgap.stats.matrix import check_resampling, complete, user_counts
from rewardgap.stats.reliability import Reliability, not_identified, row_correlations, split_half_reliability
from rewardgap.stats.true_scores import true_scores

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_CHUNK_CELLS = 1 << 20
_TIE = 1e-12


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """How alike two stages order methods.

    Attributes:
        reliability_x: split-half reliability of the first stage.
        reliability_y: of the second.
        n_methods: methods compared.
        n_users: users with a value for every method in both stages.
        n_dropped_methods: methods without any value in one stage.
        n_dropped_users: users left out.
        level: coverage of the intervals.
        tau: tau-b of the measured scores; None where undefined.
        naive_low: lower end of the percentile interval over users; it does not cover (docs/statistics.md).
        naive_high: its upper end.
        spearman: Spearman's rank correlation of the measured scores.
        spearman_low: lower end of its percentile interval over users, as naive as that of tau.
        spearman_high: its upper end.
        p_value: two-sided permutation p of tau.
        spearman_p: the same of Spearman.
        leave_one_out: lowest and highest tau with one method left out; None where there is none.
        spearman_disattenuated: spearman / √(reliability_x · reliability_y); noise can put it beyond 1. None where a
            reliability is not above zero.
        corrected: median tau of the true scores of these methods; None where not identified, as the five that follow.
        low: lower end of its interval: tau of these methods, had there been endless users.
        high: its upper end.
        population: median tau in the population that the methods are taken to come from.
        population_low: lower end of its interval, which takes the methods for a sample; normal scores are assumed.
        population_high: its upper end.
        ties_x: pairs of methods that tie in the measured scores of the first stage.
        ties_y: in those of the second.
        undefined_resamples: resamples of users in which tau was undefined; the naive interval is of the others.
        reason: why something is None; begins with 'not identified' where the corrected values are withheld.
    """

    reliability_x: Reliability
    reliability_y: Reliability
    n_methods: int
    n_users: int
    n_dropped_methods: int
    n_dropped_users: int
    level: float
    tau: float | None = None
    naive_low: float | None = None
    naive_high: float | None = None
    spearman: float | None = None
    spearman_low: float | None = None
    spearman_high: float | None = None
    p_value: float | None = None
    spearman_p: float | None = None
    leave_one_out: tuple[float, float] | None = None
    spearman_disattenuated: float | None = None
    corrected: float | None = None
    low: float | None = None
    high: float | None = None
    population: float | None = None
    population_low: float | None = None
    population_high: float | None = None
    ties_x: int = 0
    ties_y: int = 0
    undefined_resamples: int = 0
    reason: str | None = None

    @property
    def identified(self) -> bool:
        """Return whether the corrected tau and its interval are given."""
        return self.corrected is not None

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        if self.corrected is None or self.low is None or self.high is None:
            measured = "" if self.tau is None else f" Measured tau is {self.tau:.2f}."
            return f"Whether the two stages order methods alike is {self.reason}.{measured}"
        verdict = (
            "the two stages order methods alike"
            if self.low > 0
            else "the two stages order methods in opposite ways"
            if self.high < 0
            else "these data do not tell whether the two stages order methods alike"
        )
        return (
            f"Tau of these {self.n_methods} methods is {self.corrected:.2f} with the noise of {self.n_users} users "
            f"taken out ({100 * self.level:g} % interval {self.low:.2f} to {self.high:.2f}, measured {self.tau:.2f}): "
            f"{verdict}."
        )


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation: Pearson's of the ranks, ties at their mean rank.

    Args:
        a: (n,) numbers.
        b: (n,) numbers.

    Returns:
        A number in [−1, 1]; NaN where a side is constant, n < 2, or a value is NaN.

    Raises:
        ShapeError: if the two are not vectors of one length.

    Example:
        >>> round(spearman([1, 2, 3, 4], [1, 3, 2, 4]), 12)
        0.8
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape:
        raise ShapeError(f"a and b have shapes {left.shape} and {right.shape}, expected (n,) both: one value a method.")
    if len(left) < 2 or np.isnan(left).any() or np.isnan(right).any():
        return float("nan")
    return float(_spearman_rows(left[None], right[None])[0])


def _spearman_rows(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return row_correlations(_ranks(a), _ranks(b))


def _ranks(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return np.asarray(rankdata(rows, axis=1), dtype=np.float64)


def spearman_permutation_p(a: ArrayLike, b: ArrayLike, *, draws: int = 9999, seed: int = 0) -> float:
    """Return the two-sided permutation p of |Spearman|: the share of relabellings of b at least as extreme.

    Args:
        a: (n,) numbers.
        b: (n,) numbers.
        draws: Monte Carlo relabellings where n > 8; all n! are counted up to n = 8.
        seed: of the Monte Carlo draw.

    Returns:
        The p-value, NaN where Spearman is undefined. A Monte Carlo p counts the observed order, so it is never 0.

    Raises:
        ShapeError: if the two are not vectors of one length.
    """
    if np.isnan(spearman(a, b)):
        return float("nan")
    # Twice the ranks are whole numbers, so equal sums are equal.
    left, right = (2 * _ranks(np.asarray(side, dtype=np.float64)[None])[0] for side in (a, b))
    num = len(left)
    if num <= EXACT_LIMIT:
        orders = np.array(list(permutations(range(num))))
    else:
        rng = np.random.default_rng(child_seed(seed, "spearman"))
        orders = rng.permuted(np.tile(np.arange(num), (draws, 1)), axis=1)
    center = left.sum() * right.sum()
    extreme = int((np.abs(num * (right[orders] @ left) - center) >= abs(num * (right @ left) - center)).sum())
    return extreme / len(orders) if num <= EXACT_LIMIT else (extreme + 1) / (len(orders) + 1)


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    splits: int = 200,
) -> RankCorrelation:
    """Return tau-b and Spearman of two stages over methods, and tau corrected for the noise of users.

    The corrected interval is that of tau of `true_scores`, not of a bootstrap: resampling users adds their noise once
    more, and the order that noise has broken does not come back. Where `not_identified` gives a reason it is withheld.

    Args:
        x: (M, U) mean of each user under each method in one stage, NaN for missing.
        y: (M, U) the same methods and users in the other.
        resamples: bootstrap resamples, and draws of true scores.
        seed: of all draws.
        level: coverage.
        splits: random halvings for the reliabilities.

    Raises:
        ShapeError: if the two shapes differ or are not matrices.
        ConfigError: if a value is infinite, or `resamples`, `level` or `splits` is out of range.

    Source: attenuation: Spearman (1904). Coverage of each interval: `benchmarks/coverage.py`.
    """
    check_resampling(resamples, level)
    found = complete([x, y], "x and y")
    left, right = found.stages
    num_methods, num_users = left.shape
    naive = tau_bootstrap(left, right, resamples, seed, level)
    reliability_x, reliability_y = (split_half_reliability(side, splits, seed) for side in (left, right))
    blank = RankCorrelation(
        reliability_x,
        reliability_y,
        n_methods=num_methods,
        n_users=num_users,
        n_dropped_methods=found.n_dropped_methods,
        n_dropped_users=found.n_dropped_users,
        level=level,
        ties_x=naive.ties_x,
        ties_y=naive.ties_y,
        undefined_resamples=naive.undefined_resamples,
    )
    if naive.tau is None:
        return replace(blank, reason=f"not identified: {naive.reason}")
    means = tuple(_untied(side) for side in (left, right))
    leave = leave_one_out_tau(*means)
    shares = (reliability_x.value or 0.0, reliability_y.value or 0.0)
    rank = spearman(*means)
    measured = replace(
        blank,
        tau=naive.tau,
        naive_low=naive.low,
        naive_high=naive.high,
        spearman=rank,
        p_value=naive.p_value,
        spearman_p=spearman_permutation_p(*means, seed=seed),
        leave_one_out=None if np.isnan(leave[0]) else leave,
        spearman_disattenuated=float(rank / np.sqrt(shares[0] * shares[1])) if min(shares) > 0 else None,
        reason=naive.reason,
    )
    tail = [(1 - level) / 2, 0.5, (1 + level) / 2]
    if num_users > 1:
        draws = _resampled_spearman(left, right, resamples, seed)
        draws = draws[~np.isnan(draws)]
        if len(draws):
            ends = np.quantile(draws, [tail[0], tail[2]])
            measured = replace(measured, spearman_low=float(ends[0]), spearman_high=float(ends[1]))
    reason = not_identified(num_methods, reliability_x, reliability_y)
    if reason is not None:
        return replace(measured, reason=f"not identified: {reason}")
    posterior = true_scores([left, right], resamples, seed)
    taus = kendall_tau_rows(posterior.draws[:, 0], posterior.draws[:, 1])
    low, middle, high = (float(end) for end in np.nanquantile(taus, tail))
    around = (float(end) for end in np.quantile(np.asarray(posterior.population_tau), tail))
    population_low, population, population_high = around
    return replace(
        measured,
        corrected=middle,
        low=low,
        high=high,
        population=population,
        population_low=population_low,
        population_high=population_high,
    )


def _untied(side: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (M,) means over users, with differences that are rounding alone made ties."""
    mean = side.mean(axis=1)
    order = np.argsort(mean)
    gaps = np.diff(mean[order]) > _TIE * float(np.abs(side).max())
    group = np.concatenate([np.zeros(1, np.intp), np.cumsum(gaps)])
    out = np.empty_like(mean)
    out[order] = mean[order][np.searchsorted(group, group)]
    return np.asarray(out, dtype=np.float64)


def _resampled_spearman(
    x: NDArray[np.float64], y: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    rng = np.random.default_rng(child_seed(seed, "spearman_users"))
    num_users = x.shape[1]
    # Ties by rounding are cut to twelve digits, as exact sums would tie.
    digits = [12 - int(np.ceil(np.log10(max(float(np.abs(side).max()), 1e-300)))) for side in (x, y)]
    out = np.empty(resamples)
    step = max(1, _CHUNK_CELLS // num_users)
    for begin in range(0, resamples, step):
        shares = user_counts(num_users, min(step, resamples - begin), rng) / num_users
        means = [np.round(shares @ side.T, digit) for side, digit in zip((x, y), digits, strict=True)]
        out[begin : begin + step] = _spearman_rows(*means)
    return out
