"""One tau out of several: random-effects meta-analysis over datasets and scales, on Fisher's z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

FEWEST_TAUS = 3
"""With two, how much taus differ from place to place rests on one difference."""
FIELLER = 0.437
_ITERATIONS = 500


@dataclass(frozen=True, slots=True)
class MetaAnalysis:
    """A mean tau over datasets and scales.

    Attributes:
        tau: mean, back from Fisher's z.
        low: lower end of its interval; None with fewer than three taus, as the five that follow.
        high: its upper end.
        predicted_low: lower end of where the true tau of another dataset would lie.
        predicted_high: its upper end.
        between: standard deviation between true values, in z.
        i_squared: share of the spread of the taus beyond their own errors, in [0, 1).
        q: Cochran's Q: squared standardised distances from the mean, χ² with k − 1 degrees of freedom if all are one.
        n_taus: k.
        level: coverage.
        method: how the spread between them was estimated.
        reason: why something is None.
    """

    tau: float
    low: float | None
    high: float | None
    predicted_low: float | None
    predicted_high: float | None
    between: float | None
    i_squared: float | None
    q: float
    n_taus: int
    level: float
    method: Literal["dersimonian_laird", "reml"]
    reason: str | None = None

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        if self.low is None or self.high is None or self.predicted_low is None or self.predicted_high is None:
            return f"Mean tau is {self.tau:.2f}; its interval is not identified: {self.reason}."
        return (
            f"Mean tau over {self.n_taus} settings is {self.tau:.2f} ({100 * self.level:g} % interval {self.low:.2f} "
            f"to {self.high:.2f}); in another setting like these it would lie between {self.predicted_low:.2f} and "
            f"{self.predicted_high:.2f}."
        )


def meta_analysis(
    taus: Sequence[float] | ArrayLike,
    num_methods: Sequence[int] | ArrayLike | None = None,
    standard_errors: Sequence[float] | ArrayLike | None = None,
    *,
    method: Literal["dersimonian_laird", "reml"] = "dersimonian_laird",
    level: float = 0.95,
) -> MetaAnalysis:
    """Pool taus of several datasets or scales under random effects.

        z_i = atanh τ_i,   var z_i = 0.437 / (n_i − 4)  or  (SE_i / (1 − τ_i²))²,   mean = Σ w_i z_i / Σ w_i,
        w_i = 1 / (var z_i + between²)

    The interval is Knapp and Hartung's, t with k − 1 degrees of freedom, never narrower than without their factor; the
    predicted range adds the spread between settings. Taus of one set of methods on several datasets are not
    independent: their errors must then be those over users.

    Args:
        taus: (k,) taus, strictly between −1 and 1.
        num_methods: (k,) methods behind each, at least 5: errors are those of methods as a sample.
        standard_errors: (k,) standard errors of the taus, instead.
        method: of the spread between settings.
        level: coverage.

    Raises:
        ShapeError: if lengths differ or there is no tau.
        ConfigError: if a tau is not strictly between −1 and 1, an error is not above zero, there are fewer than five
            methods, `level` is out of range, or not exactly one of the two kinds of error is given.

    Source: DerSimonian and Laird (1986); REML after Viechtbauer (2005); Knapp and Hartung (2003), with the factor of
        Röver et al. (2015); variance of z: Fieller, Hartley and Pearson (1957).
    """
    from scipy.special import stdtrit

    if not 0 < level < 1 or method not in ("dersimonian_laird", "reml"):
        raise ConfigError(f"level is {level} and method '{method}'; expected (0, 1), and dersimonian_laird or reml.")
    values = np.asarray(taus, dtype=np.float64)
    variances = _variances(values, num_methods, standard_errors)
    z = np.arctanh(values)
    count = len(z)
    fixed = 1 / variances
    center = float(fixed @ z / fixed.sum())
    q = float(fixed @ (z - center) ** 2)
    if count < FEWEST_TAUS:
        one = "tau" if count == 1 else "taus"
        reason = f"{count} {one}; how much it differs between settings needs {FEWEST_TAUS}"
        return MetaAnalysis(float(np.tanh(center)), None, None, None, None, None, None, q, count, level, method, reason)
    moment = (q - (count - 1)) / (fixed.sum() - (fixed**2).sum() / fixed.sum())
    # A spread smaller than chance alone makes gives a variance below zero, which stands for none.
    between = float(moment) if moment > 0 else 0.0
    if method == "reml":
        between = _reml(z, variances, between)
    weights = 1 / (variances + between)
    mean = float(weights @ z / weights.sum())
    spread = float(weights @ (z - mean) ** 2) / (count - 1)
    error = np.sqrt(max(1.0, spread) / weights.sum())
    reach = float(stdtrit(count - 1, (1 + level) / 2)) * error
    further = float(stdtrit(count - 2, (1 + level) / 2)) * np.sqrt(error**2 + between)
    return MetaAnalysis(
        tau=float(np.tanh(mean)),
        low=float(np.tanh(mean - reach)),
        high=float(np.tanh(mean + reach)),
        predicted_low=float(np.tanh(mean - further)),
        predicted_high=float(np.tanh(mean + further)),
        between=float(np.sqrt(between)),
        i_squared=1 - (count - 1) / q if q > count - 1 else 0.0,
        q=q,
        n_taus=count,
        level=level,
        method=method,
    )


def _variances(
    taus: NDArray[np.float64], num_methods: ArrayLike | None, standard_errors: ArrayLike | None
) -> NDArray[np.float64]:
    if taus.ndim != 1 or not len(taus):
        raise ShapeError(f"taus has shape {taus.shape}, expected (k,) with at least one.")
    outside = np.flatnonzero(~(np.abs(taus) < 1))
    if len(outside):
        raise ConfigError(
            f"taus[{outside[0]}] is {taus[outside[0]]}; Fisher's z needs one strictly between −1 and 1. Leave it out "
            "and say so."
        )
    if (num_methods is None) == (standard_errors is None):
        raise ConfigError("give either num_methods or standard_errors, so that the errors of the taus are known.")
    given = np.asarray(num_methods if num_methods is not None else standard_errors, dtype=np.float64)
    if given.shape != taus.shape:
        raise ShapeError(f"there are {len(taus)} taus and an array of shape {given.shape} for their errors.")
    if num_methods is not None:
        if not (given >= 5).all():
            raise ConfigError(f"num_methods is {given.min():g} somewhere; the variance of z needs 5 methods or more.")
        return np.asarray(FIELLER / (given - 4))
    if not ((given > 0) & np.isfinite(given)).all():
        raise ConfigError("a standard error is not above zero; a tau without error cannot be weighed.")
    return np.asarray((given / (1 - taus**2)) ** 2)


def _reml(z: NDArray[np.float64], variances: NDArray[np.float64], start: float) -> float:
    """Return the variance between settings that maximises the restricted likelihood, by Fisher scoring."""
    between = start
    for _ in range(_ITERATIONS):
        weights = 1 / (variances + between)
        mean = weights @ z / weights.sum()
        squares = weights**2
        leverage = squares.sum() / weights.sum()
        score = squares @ (z - mean) ** 2 - weights.sum() + leverage
        information = squares.sum() - 2 * (weights**3).sum() / weights.sum() + leverage**2
        moved = between + float(score / information)
        moved = moved if moved > 0 else 0.0
        if abs(moved - between) <= 1e-12 * (1 + between):
            return moved
        between = moved
    raise ConfigError(f"REML did not settle in {_ITERATIONS} steps; use method='dersimonian_laird'.")
