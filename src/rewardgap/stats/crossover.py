"""Where one curve overtakes another: the model size, or the number of shots, from which on it is ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.core.seeds import child_seed
from rewardgap.stats.matrix import check_resampling, complete, user_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_CHUNK_CELLS = 1 << 20


@dataclass(frozen=True, slots=True)
class Crossover:
    """Where the first curve overtakes the second, on a logarithmic axis.

    Attributes:
        where: 'inside' the measured range, 'below' it (the first is ahead from the start) or 'above' it (it never is).
        at: the place, in the units of x; None outside the range.
        low: lower end of its interval over users; None where that end lies below or above the range.
        high: its upper end, likewise.
        low_where: where the lower end lies: 'below', 'inside' or 'above'; None with one user.
        high_where: where the upper end lies.
        share_below: share of resamples in which the first curve is ahead from the start.
        share_above: share in which it never is.
        differences: (K,) first minus second at each x, means over users.
        n_users: users with a value at every x on both curves.
        n_dropped_users: users left out.
        range: smallest and largest x measured.
        level: coverage of the interval.
    """

    where: Literal["below", "inside", "above"]
    at: float | None
    low: float | None
    high: float | None
    low_where: Literal["below", "inside", "above"] | None
    high_where: Literal["below", "inside", "above"] | None
    share_below: float | None
    share_above: float | None
    differences: tuple[float, ...]
    n_users: int
    n_dropped_users: int
    range: tuple[float, float]
    level: float

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        lowest, highest = self.range
        if self.at is not None:
            text = f"The first overtakes the second at {self.at:.4g}"
        elif self.where == "below":
            text = f"Outside the range: the first is ahead from the smallest value measured, {lowest:.4g}"
        else:
            text = f"Outside the range: the first is not ahead up to the largest value measured, {highest:.4g}"
        if self.low_where is None or self.high_where is None:
            return f"{text}; one user gives no interval."
        ends = [
            f"{end:.4g}" if end is not None else f"{side} the range"
            for end, side in ((self.low, self.low_where), (self.high, self.high_where))
        ]
        return (
            f"{text} ({100 * self.level:g} % interval: {ends[0]} to {ends[1]}; measured {lowest:.4g} to {highest:.4g})."
        )


def crossover(
    x: Sequence[float],
    first: ArrayLike,
    second: ArrayLike,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    *,
    monotone: bool = True,
) -> Crossover:
    """Return where the first curve overtakes the second, for example in-context learning reward guidance.

        D(x) = mean_u( first_u(x) − second_u(x) ), linear in log x between the measured places;  crossover: D = 0

    Monotone: D is first fitted by the nearest non-decreasing curve, which says that the first only gains with x; else
    the last place is taken from which on it is ahead at all larger x measured. Resamples without a crossover inside
    the range count as one below or above it, so an interval may end outside.

    Args:
        x: (K,) places, above zero and rising: parameters, or shots.
        first: (K, U) mean of each user at each place on the first curve, NaN for missing.
        second: (K, U) the same users on the second.
        resamples: bootstrap resamples of whole users.
        seed: of the draw. The order of the users has no say.
        level: coverage of the percentile interval.
        monotone: fit the difference by a non-decreasing curve.

    Raises:
        ShapeError: if shapes differ or K is not that of x.
        ConfigError: if x does not rise from above zero, a value is infinite, no user has all values, or `resamples` or
            `level` is out of range.

    Source: isotonic fit by the min-max formula (Barlow et al. 1972).
    """
    check_resampling(resamples, level)
    places = np.asarray(x, dtype=np.float64)
    if places.ndim != 1 or len(places) < 2 or not (np.isfinite(places).all() and places[0] > 0):
        raise ConfigError(f"x is {list(x)}; expected two places or more above zero, for a logarithmic axis.")
    if not (np.diff(places) > 0).all():
        raise ConfigError(f"x is {list(x)}; expected places in rising order, each once.")
    found = complete([first, second], "first and second")
    if found.n_dropped_methods or found.stages[0].shape[0] != len(places):
        raise ShapeError(
            f"the curves have {found.stages[0].shape[0]} places with values, expected (K, U) with K = {len(places)}."
        )
    gaps = found.stages[0] - found.stages[1]
    num_users = gaps.shape[1]
    if num_users == 0:
        raise ConfigError("no user has a value at every place on both curves; leave out the place that lacks them.")
    log_x = np.log(places)
    mean = gaps.mean(axis=1)
    point = float(_crossings(log_x, mean[None], monotone=monotone)[0])
    low = high = None
    shares: tuple[float | None, float | None] = (None, None)
    if num_users > 1:
        rng = np.random.default_rng(child_seed(seed, "crossover"))
        step = max(1, _CHUNK_CELLS // num_users)
        found_at = np.concatenate(
            [
                _crossings(
                    log_x, user_counts(num_users, min(step, resamples - b), rng) @ gaps.T / num_users, monotone=monotone
                )
                for b in range(0, resamples, step)
            ]
        )
        # Ends are resamples themselves: between a place inside and one outside there is nothing to interpolate.
        low = float(np.quantile(found_at, (1 - level) / 2, method="lower"))
        high = float(np.quantile(found_at, (1 + level) / 2, method="higher"))
        shares = float(np.mean(np.isneginf(found_at))), float(np.mean(np.isposinf(found_at)))
    return Crossover(
        where=_side(point),
        at=_place(point),
        low=None if low is None else _place(low),
        high=None if high is None else _place(high),
        low_where=None if low is None else _side(low),
        high_where=None if high is None else _side(high),
        share_below=shares[0],
        share_above=shares[1],
        differences=tuple(mean.tolist()),
        n_users=num_users,
        n_dropped_users=found.n_dropped_users,
        range=(float(places[0]), float(places[-1])),
        level=level,
    )


def _side(log_place: float) -> Literal["below", "inside", "above"]:
    return "below" if np.isneginf(log_place) else "above" if np.isposinf(log_place) else "inside"


def _place(log_place: float) -> float | None:
    return float(np.exp(log_place)) if np.isfinite(log_place) else None


def isotonic_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest non-decreasing curve of each row, in squared distance.

        fit_k = max_{i ≤ k} min_{j ≥ k} mean(row_i … row_j)

    Args:
        rows: (B, K) numbers.
    """
    num_places = rows.shape[1]
    sums = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(rows, axis=1)], axis=1)
    fit = np.full(rows.shape, -np.inf)
    for i in range(num_places):
        means = (sums[:, i + 1 :] - sums[:, [i]]) / np.arange(1, num_places - i + 1)
        least = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
        fit[:, i:] = np.maximum(fit[:, i:], least)
    return fit


def _crossings(log_x: NDArray[np.float64], gaps: NDArray[np.float64], *, monotone: bool) -> NDArray[np.float64]:
    """Return (B,) log places from which on the gap is above zero; −inf below the range, inf above it."""
    curve = isotonic_rows(gaps) if monotone else gaps
    behind = curve <= 0
    out = np.full(len(curve), np.inf)
    out[~behind.any(axis=1)] = -np.inf
    last = curve.shape[1] - 1 - np.argmax(behind[:, ::-1], axis=1)
    inside = np.flatnonzero(behind.any(axis=1) & (last < curve.shape[1] - 1))
    at = last[inside]
    left, right = curve[inside, at], curve[inside, at + 1]
    out[inside] = log_x[at] + (log_x[at + 1] - log_x[at]) * left / (left - right)
    return out
