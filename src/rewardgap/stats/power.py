"""What a number of users can show: the smallest difference that is found, and whether two deployments are as good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.stats.clustered import scored_rows, user_means

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_NO_SPREAD = 1e-12
"""A standard error below it, relative to the differences, is rounding."""


@dataclass(frozen=True, slots=True)
class DetectableDifference:
    """The smallest paired difference that so many users would show.

    Attributes:
        difference: in the units of the scores.
        standard_error: of the mean over users of their mean difference.
        n_users: users with a value under both.
        level: two-sided level of the test.
        power: probability of finding a difference of this size.
    """

    difference: float
    standard_error: float
    n_users: int
    level: float
    power: float

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        return (
            f"{self.n_users} users show a difference of {self.difference:.4g} with a probability of {self.power:.0%}; "
            "a smaller one would often be missed, so that no finding is no proof of equality."
        )


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether two deployments are as good as each other, within a margin stated beforehand.

    Attributes:
        difference: mean over users of a − b.
        margin: the largest difference that does not matter, in the same units.
        low: lower end of the interval of the difference, of coverage 1 − 2 · level.
        high: its upper end.
        p_lower: p of the one-sided test that a − b is above −margin.
        p_upper: p of the one-sided test that a − b is below margin.
        p_value: the larger of the two.
        equivalent: p_value ≤ level; the same as an interval inside the margin.
        n_users: users with a value under both.
        level: level of each test.
    """

    difference: float
    margin: float
    low: float
    high: float
    p_lower: float
    p_upper: float
    p_value: float
    equivalent: bool
    n_users: int
    level: float

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        span = f"{self.difference:+.4g}, {100 * (1 - 2 * self.level):g} % interval {self.low:.4g} to {self.high:.4g}"
        if self.equivalent:
            return f"The two are as good as each other within {self.margin:g} ({span}; {self.n_users} users)."
        if self.low > self.margin or self.high < -self.margin:
            return f"The two differ by more than {self.margin:g} ({span}; {self.n_users} users)."
        return f"It is not shown that the two are within {self.margin:g} of each other ({span}; {self.n_users} users)."


def detectable_factor(num_users: int, level: float = 0.05, power: float = 0.8) -> float:
    """Return how many standard errors a difference must have to be found.

        t₁₋ₗ/₂ + t_power,   t with U − 1 degrees of freedom

    Args:
        num_users: U ≥ 2.
        level: l, two-sided.
        power: probability of finding it, at least one half.

    Raises:
        ConfigError: if a number is out of range.

    Example:
        >>> round(detectable_factor(10_000), 2)
        2.8
    """
    from scipy.special import stdtrit

    if num_users < 2 or not 0 < level < 1 or not 0.5 <= power < 1:
        raise ConfigError(
            f"num_users is {num_users}, level {level} and power {power}; expected at least 2 users, a level in (0, 1) "
            "and a power in [0.5, 1)."
        )
    return float(stdtrit(num_users - 1, 1 - level / 2) + stdtrit(num_users - 1, power))


def minimal_detectable_difference(
    values_a: ArrayLike,
    values_b: ArrayLike,
    users: Sequence[str] | NDArray[np.str_],
    *,
    level: float = 0.05,
    power: float = 0.8,
) -> DetectableDifference:
    """Return the smallest mean difference that a paired t test over users would find.

        (t₁₋ₗ/₂ + t_power) · s / √U,   s of the users' mean differences

    Args:
        values_a: (N,) one number an example, NaN for missing.
        values_b: (N,) the same examples under the other deployment.
        users: (N,) user ids.
        level: two-sided level.
        power: probability of finding it.

    Raises:
        ShapeError: if lengths differ.
        ConfigError: if a value is infinite, fewer than two users have one, all users differ alike so that there is no
            spread to test with, or a number is out of range.
    """
    means = _user_differences(values_a, values_b, users)
    error = _standard_error(means)
    return DetectableDifference(detectable_factor(len(means), level, power) * error, error, len(means), level, power)


def equivalence(
    values_a: ArrayLike,
    values_b: ArrayLike,
    users: Sequence[str] | NDArray[np.str_],
    margin: float,
    *,
    level: float = 0.05,
) -> Equivalence:
    """Test that two deployments differ by less than a margin: two one-sided t tests over users.

        t_lower = (d̄ + margin) / SE,   t_upper = (d̄ − margin) / SE,   p = max( P(T ≥ t_lower), P(T ≤ t_upper) )

    Args:
        values_a: (N,) one number an example, NaN for missing.
        values_b: (N,) the same examples under the other deployment.
        users: (N,) user ids.
        margin: the largest difference that does not matter, fixed before looking; for ROUGE-1 one point is 0.01.
        level: of each test.

    Raises:
        ShapeError: if lengths differ.
        ConfigError: if a value is infinite, fewer than two users have one, all users differ alike so that there is no
            spread to test with, or `margin` or `level` is out of range.

    Source: Schuirmann (1987).
    """
    from scipy.special import stdtr, stdtrit

    if not (margin > 0 and np.isfinite(margin)) or not 0 < level < 0.5:
        raise ConfigError(f"margin is {margin} and level {level}; expected a margin above 0 and a level in (0, 0.5).")
    means = _user_differences(values_a, values_b, users)
    freedom = len(means) - 1
    difference = float(means.mean())
    error = _standard_error(means)
    lower = float(stdtr(freedom, -(difference + margin) / error))
    upper = float(stdtr(freedom, (difference - margin) / error))
    reach = float(stdtrit(freedom, 1 - level)) * error
    p_value = max(lower, upper)
    return Equivalence(
        difference,
        margin,
        difference - reach,
        difference + reach,
        lower,
        upper,
        p_value,
        p_value <= level,
        len(means),
        level,
    )


def _user_differences(
    values_a: ArrayLike, values_b: ArrayLike, users: Sequence[str] | NDArray[np.str_]
) -> NDArray[np.float64]:
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.shape != b.shape:
        raise ShapeError(f"values_b has shape {b.shape}, expected that of values_a, {a.shape}: the same examples.")
    if np.isinf(a).any() or np.isinf(b).any():
        raise ConfigError("values_a or values_b holds an infinite value; pass NaN where one is missing.")
    rows = scored_rows(a - b, users)
    if len(rows.partition) < 2:
        raise ConfigError(f"{len(rows.partition)} user(s) with a value under both; a spread over users needs two.")
    return user_means(rows)


def _standard_error(means: NDArray[np.float64]) -> float:
    error = float(np.std(means, ddof=1) / np.sqrt(len(means)))
    if error <= _NO_SPREAD * float(np.abs(means).max()):
        raise ConfigError("every user's difference is the same, so it has no spread to test with; compare it directly.")
    return error
