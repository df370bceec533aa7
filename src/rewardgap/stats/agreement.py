"""Agreement of two judges beyond what chance alone would give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ShapeError
from rewardgap.stats.bootstrap import NO_VALUES, ONE_USER
from rewardgap.stats.matrix import check_resampling, user_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

NO_CHANCE = "both judges gave one and the same verdict throughout, so agreement by chance is certain"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two judges agree.

    Attributes:
        kappa: Cohen's kappa: 1 for full agreement, 0 for what chance gives; None where it is not defined.
        low: lower end of the interval over users; None where it is not identified.
        high: its upper end.
        observed: share of examples on which they agree; None without any.
        n_users: users with an example that both judged.
        n_examples: examples that both judged.
        n_missing: the others.
        undefined_resamples: resamples without a kappa; the interval is that of the rest.
        reason: why kappa or its interval is None.
    """

    kappa: float | None
    low: float | None
    high: float | None
    observed: float | None
    n_users: int
    n_examples: int
    n_missing: int
    undefined_resamples: int = 0
    reason: str | None = None


def cohen_kappa(
    a: ArrayLike, b: ArrayLike, users: Sequence[str], resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Agreement:
    """Return Cohen's kappa of two judges on the same examples, with a percentile interval over users.

        κ = (p_o - p_e) / (1 - p_e),   p_o = Σ_c p_cc,   p_e = Σ_c p_c· p_·c

    Whole users are resampled. Renaming users or reordering rows changes nothing, not even the draw.

    Args:
        a: (N,) verdicts of one judge, any numbers that stand for categories; NaN is missing.
        b: (N,) those of the other.
        users: (N,) user ids.
        resamples: bootstrap resamples.
        seed: seed of the draw.
        level: coverage of the interval.

    Raises:
        ShapeError: if the lengths differ.
        ConfigError: if `resamples` or `level` is out of range.

    Example:
        >>> cohen_kappa([1, 0, 1, 0], [1, 0, 1, 1], ["u", "u", "v", "v"]).kappa
        0.5

    Source: Cohen 1960, A coefficient of agreement for nominal scales, equation 1. Peer:
        sklearn.metrics.cohen_kappa_score.
    """
    check_resampling(resamples, level)
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or len(left) != len(users):
        raise ShapeError(f"verdicts have shapes {left.shape} and {right.shape} with {len(users)} users; expected (N,).")
    known = ~(np.isnan(left) | np.isnan(right))
    missing = int(len(left) - known.sum())
    if not known.any():
        return Agreement(None, None, None, None, 0, 0, missing, reason=NO_VALUES)
    classes, codes = np.unique(np.concatenate([left[known], right[known]]), return_inverse=True)
    rows, columns = codes.reshape(2, -1)
    names, owners = np.unique(np.asarray(users, dtype=str)[known], return_inverse=True)
    tables = np.zeros((len(names), len(classes), len(classes)))
    np.add.at(tables, (owners, rows, columns), 1)
    tables = tables[np.lexsort(tables.reshape(len(names), -1).T)]
    whole = tables.sum(0)
    kappa, count = float(_kappa(whole[None])[0]), int(whole.sum())
    observed = float(np.trace(whole) / count)
    if np.isnan(kappa):
        return Agreement(None, None, None, observed, len(names), count, missing, reason=NO_CHANCE)
    if len(names) == 1:
        return Agreement(kappa, None, None, observed, 1, count, missing, reason=ONE_USER)
    draws = _kappa(np.tensordot(user_counts(len(names), resamples, np.random.default_rng(seed)), tables, axes=1))
    defined = draws[~np.isnan(draws)]
    undefined = resamples - len(defined)
    if not len(defined):
        return Agreement(kappa, None, None, observed, len(names), count, missing, undefined, NO_CHANCE)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Agreement(kappa, float(low), float(high), observed, len(names), count, missing, undefined)


def _kappa(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (R,) kappas of (R, C, C) counts; NaN where chance alone agrees on everything."""
    shares = tables / tables.sum((1, 2), keepdims=True)
    observed = np.trace(shares, axis1=1, axis2=2)
    chance = (shares.sum(1) * shares.sum(2)).sum(1)
    certain = chance >= 1 - 1e-12
    return np.where(certain, np.nan, (observed - chance) / np.where(certain, 1.0, 1 - chance))
