"""Intervals that respect the unit of the data: users are resampled first, then each user's examples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.stats.clustered import ScoredRows, scored_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

ONE_USER = "one user: an interval over users is not identified"
NO_VALUES = "no value"
_CHUNK_DRAWS = 1 << 20
_KEPT_DRAWS = 1 << 24
"""Draws up to so many are kept for the next numbers of the same users: 128 MiB."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        value: the mean, None where there is no value at all.
        low: lower end, None where it is not identified.
        high: upper end, None where it is not identified.
        n_users: users with at least one value.
        n_examples: examples with a value.
        n_missing: examples without one; they are dropped, never taken as zero.
        reason: why `value` or the interval is None.
    """

    value: float | None
    low: float | None
    high: float | None
    n_users: int
    n_examples: int
    n_missing: int
    reason: str | None = None


def clustered_mean(
    values: ArrayLike,
    users: Sequence[str] | NDArray[np.str_],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    *,
    micro: bool = False,
    within: bool = True,
) -> Estimate:
    """Average over users of their own averages, with a user-clustered bootstrap interval.

        macro:  mean_u( mean_{i∈u} v_i )        micro:  Σ_i v_i / N

    One resample draws U users with replacement and then, for each drawn user afresh, as many of its examples as it has.
    The interval is the percentile interval. Renaming users or reordering rows changes nothing, not even the draw.

    Args:
        values: (N,) one number an example; NaN is missing.
        users: (N,) user ids.
        resamples: bootstrap resamples.
        seed: seed of the draw.
        level: coverage, strictly between 0 and 1.
        micro: average over examples instead.
        within: also resample the examples within a user. False resamples whole users, which is narrower: a user's mean
            already carries the noise of its examples, so the second draw adds it again and errs to the wide side.

    Returns:
        The estimate. No value: `value` is None. One user: the interval is None; `reason` says so.

    Raises:
        ShapeError: if the two lengths differ.
        ConfigError: if a value is infinite, or `resamples` or `level` is out of range.

    Example:
        >>> clustered_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).value
        0.5
    """
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}; the bootstrap needs at least 1.")
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}; a coverage lies strictly between 0 and 1, for example 0.95.")
    rows = scored_rows(values, users)
    num_users, num_examples = len(rows.partition), len(rows.values)
    if num_examples == 0:
        return Estimate(None, None, None, 0, 0, rows.n_missing, NO_VALUES)
    flat, sizes = _canonical(rows)
    starts = np.concatenate([np.zeros(1, np.intp), np.cumsum(sizes)[:-1]])
    sums = np.add.reduceat(flat, starts)
    value = float(flat.mean()) if micro else float(np.mean(sums / sizes))
    if num_users == 1:
        return Estimate(value, None, None, 1, num_examples, rows.n_missing, ONE_USER)
    draws = _resampled_means(flat, sizes, resamples, seed, micro=micro, within=within)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), num_users, num_examples, rows.n_missing)


def paired_difference(
    values_a: ArrayLike,
    values_b: ArrayLike,
    users: Sequence[str] | NDArray[np.str_],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    *,
    micro: bool = False,
    within: bool = True,
) -> Estimate:
    """Average of a − b over the same examples, with a user-clustered interval.

        mean_u( mean_{i∈u} (a_i − b_i) )

    Args:
        values_a: (N,) one number an example; NaN is missing.
        values_b: (N,) the same examples under the other method.
        users: (N,) user ids.
        resamples: as in `clustered_mean`.
        seed: as in `clustered_mean`.
        level: as in `clustered_mean`.
        micro: as in `clustered_mean`.
        within: as in `clustered_mean`.

    Returns:
        The estimate; `n_missing` counts the pairs in which either side is missing.

    Raises:
        ShapeError: if the lengths differ.
        ConfigError: as in `clustered_mean`.
    """
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.shape != b.shape:
        raise ShapeError(f"values_b has shape {b.shape}, expected that of values_a, {a.shape}: the same examples.")
    for name, side in (("values_a", a), ("values_b", b)):
        if np.isinf(side).any():
            row = int(np.flatnonzero(np.isinf(side))[0])
            raise ConfigError(
                f"{name}[{row}] is {side[row]}; a difference needs finite values. Pass NaN for a missing one."
            )
    return clustered_mean(a - b, users, resamples, seed, level, micro=micro, within=within)


def _canonical(rows: ScoredRows) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the values grouped by user and the group sizes, in an order that depends on the values alone.

    Users come by size, so that equal sizes are neighbours, then by sorted values: names and row order have no say.
    """
    part = rows.partition
    grouped = np.split(rows.values[part.order], part.starts[1:])
    blocks = sorted((len(block), *sorted(block.tolist())) for block in grouped)
    flat = np.array([value for block in blocks for value in block[1:]], dtype=np.float64)
    return flat, np.array([block[0] for block in blocks], dtype=np.intp)


def _resampled_means(
    flat: NDArray[np.float64],
    sizes: NDArray[np.intp],
    resamples: int,
    seed: int,
    *,
    micro: bool,
    within: bool,
) -> NDArray[np.float64]:
    """Return (resamples,) means. What is drawn depends on the sizes alone, so that one draw serves many numbers."""
    totals, counts = flat, np.ones(len(flat))
    owners = np.repeat(np.arange(len(sizes)), sizes)
    if not within:
        totals, counts = np.bincount(owners, weights=flat).astype(np.float64), sizes.astype(np.float64)
        owners = np.arange(len(sizes))
    units = np.bincount(owners)
    shares = totals if micro else totals / sizes[owners] / len(sizes)
    key = (tuple(units.tolist()), resamples, seed)
    is_kept = resamples * len(totals) <= _KEPT_DRAWS
    blocks: Iterable[NDArray[np.float64]] = [_kept_counts(*key)] if is_kept else _counts(*key)
    return np.concatenate([block @ shares / (block @ counts if micro else 1.0) for block in blocks])


@lru_cache(maxsize=2)
def _kept_counts(sizes: tuple[int, ...], resamples: int, seed: int) -> NDArray[np.float64]:
    return np.concatenate(list(_counts(sizes, resamples, seed)))


def _counts(sizes: tuple[int, ...], resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Return in blocks (B, N) how often resamples draw each unit: whole users first, then units within each.

    Users of one size are neighbours and are drawn together, since they form a rectangle.
    """
    rng = np.random.default_rng(seed)
    num_users, num_units = len(sizes), sum(sizes)
    starts = np.concatenate([np.zeros(1, np.intp), np.cumsum(sizes)[:-1]])
    bounds = np.flatnonzero(np.diff(sizes, prepend=-1, append=-1))
    step = max(1, _CHUNK_DRAWS // num_units)
    for begin in range(0, resamples, step):
        num = min(step, resamples - begin)
        drawn = rng.integers(0, num_users, size=(num, num_users))
        cells = drawn + np.arange(num)[:, None] * num_users
        users = np.bincount(cells.ravel(), minlength=num * num_users).reshape(num, num_users)
        block = np.empty((num, num_units))
        for lo, hi in pairwise(bounds.tolist()):
            size = sizes[lo]
            columns = slice(int(starts[lo]), int(starts[lo]) + size * (hi - lo))
            if size == 1:
                block[:, columns] = users[:, lo:hi]
                continue
            slots = np.repeat(np.arange(num * (hi - lo)), users[:, lo:hi].ravel())
            picks = rng.integers(0, size, size=(len(slots), size), dtype=np.int32)
            found = np.bincount((slots[:, None] * size + picks).ravel(), minlength=num * (hi - lo) * size)
            block[:, columns] = found.reshape(num, -1)
        yield block
