"""One person's linear Bradley-Terry weights under a Gaussian prior: the likeliest ones, how sure they are, what to ask.

A row is v = φ(y+) - φ(y-), so that the margin of weights w is wᵀv. All arithmetic is in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, solve_triangular
from scipy.special import expit

from rewardgap.core.errors import DataError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_STEPS = 200
_ARMIJO = 1e-4
_LARGEST = 1e75
_SMOOTH = 30.0
_COOLING = 4.0


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A belief about somebody's weights: N(mean, precision⁻¹).

    Attributes:
        mean: (R,).
        precision: (R, R), symmetric and positive definite; or one positive number p for p·I, which is never formed.
    """

    mean: NDArray[np.float64]
    precision: NDArray[np.float64] | float

    def __post_init__(self) -> None:
        """Take copies; refuse shapes that do not belong together, and a precision that is not positive definite."""
        mean, precision = np.array(self.mean, dtype=np.float64), np.asarray(self.precision, dtype=np.float64)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "precision", precision.copy() if precision.ndim else float(precision))
        if mean.ndim != 1 or precision.shape not in ((), (len(mean), len(mean))):
            raise ShapeError(
                f"precision has shape {precision.shape} and mean {mean.shape}; expected (R, R) or a number, and (R,)."
            )
        if not (np.isfinite(mean).all() and np.isfinite(precision).all()):
            raise DataError(
                "the mean or the precision of a Gaussian is not finite; look at what it was estimated from."
            )
        if not _is_positive_definite(precision):
            raise DataError(
                "the precision of a Gaussian is not symmetric and positive definite; add a ridge to its diagonal."
            )

    def dense_precision(self) -> NDArray[np.float64]:
        """Return the precision as an (R, R) matrix."""
        if isinstance(self.precision, np.ndarray):
            return self.precision.copy()
        return np.eye(len(self.mean)) * self.precision


def map_weights(
    rows: NDArray[np.float64], prior: Gaussian, answers: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the weights of largest posterior density.

        argmin_w  Σ_i [t_i softplus(-wᵀv_i) + (1 - t_i) softplus(wᵀv_i)] + ½ (w - m)ᵀ P (w - m)

    Strictly convex, so the answer is unique and does not depend on the order of the rows. Solved by damped Newton
    steps in coordinates where the prior is standard normal; with fewer rows than weights, inside the rows' span.

    Args:
        rows: (n, R) differences v; n = 0 gives the prior mean.
        prior: N(m, P⁻¹).
        answers: (n,) t in [0, 1], 1 where the first side was chosen and one half for "as good as each other"; all
            ones unless given.

    Returns:
        (R,) weights, to about 1e-12 of their size in units of the prior.

    Raises:
        ShapeError: if widths or lengths differ.
        DataError: if a row is not finite, an answer is outside [0, 1], or the optimum is beyond float64.

    Source: Rasmussen and Williams (2006), section 3.4 (the Newton step) and equation A.9 (the matrix inversion lemma).
    """
    rows, targets = _checked(rows, prior, answers)
    if len(rows) == 0:
        return prior.mean.copy()
    offset = rows @ prior.mean
    if not isinstance(prior.precision, np.ndarray):
        spread = 1 / math.sqrt(prior.precision)
        return prior.mean + spread * _standard_newton(rows * spread, offset, targets)
    root = cholesky(prior.precision, lower=True)
    white = solve_triangular(root, rows.T, lower=True).T
    shift: NDArray[np.float64] = solve_triangular(root.T, _standard_newton(white, offset, targets), lower=False)
    return prior.mean + shift


def posterior(rows: NDArray[np.float64], prior: Gaussian, answers: NDArray[np.float64] | None = None) -> Gaussian:
    """Return Laplace's approximation of the posterior, a Gaussian with a dense precision.

        mean = the likeliest weights ŵ,   precision = P + Σ_i σ'(ŵᵀv_i) v_i v_iᵀ

    Args:
        rows: (n, R) differences.
        prior: N(m, P⁻¹).
        answers: (n,) in [0, 1]; the precision does not depend on them but through ŵ.

    Raises:
        ShapeError: as `map_weights`.
        DataError: likewise.
    """
    mean = map_weights(rows, prior, answers)
    rows = np.asarray(rows, dtype=np.float64).reshape(-1, len(mean))
    precision = prior.dense_precision() + (rows.T * choice_variance(rows @ mean)) @ rows
    return Gaussian(mean, precision)


def choice_variance(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return σ'(m) = σ(m) σ(-m), the variance of a choice with that margin: 1/4 at zero, and never lost to rounding."""
    variance: NDArray[np.float64] = expit(margins) * expit(-margins)
    return variance


def log_det_gains(rows: NDArray[np.float64], belief: Gaussian) -> NDArray[np.float64]:
    """Return how much the answer to each question would raise the log-determinant of a belief's precision.

        log det(A + σ'(wᵀv) v vᵀ) - log det A = log(1 + σ'(wᵀv) · vᵀ A⁻¹ v)

    A question is informative if its answer is in doubt (σ') along a direction not yet known (A⁻¹): D-optimal design.

    Args:
        rows: (M, R) difference v of each question.
        belief: N(w, A⁻¹).

    Returns:
        (M,) gains in nats, ≥ 0.

    Raises:
        ShapeError: if the widths differ.
        DataError: if a row is not finite.
    """
    rows, _ = _checked(rows, belief, None)
    white = solve_triangular(cholesky(belief.dense_precision(), lower=True), rows.T, lower=True)
    gains: NDArray[np.float64] = np.log1p(choice_variance(rows @ belief.mean) * np.square(white).sum(axis=0))
    return gains


def _standard_newton(
    rows: NDArray[np.float64], offset: NDArray[np.float64], targets: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Minimise Σ_i [softplus(-m_i) + (1 - t_i) m_i] + ½ ‖u‖² with m = offset + rows u.

    Where margins can be huge the objective has edges on which Newton steps crawl: softplus(m) is then replaced by
    T softplus(m / T), and T lowered to one.
    """
    largest = float(np.abs(rows).max() + np.abs(offset).max())
    if largest > _LARGEST:
        raise _beyond_float64(len(rows), largest)
    reach = float(np.linalg.norm(rows, axis=1).max() + np.abs(offset).max())
    kernel = rows @ rows.T if len(rows) < rows.shape[1] else None
    weights, temperature = np.zeros(rows.shape[1]), max(1.0, reach / _SMOOTH)
    while temperature > 1:
        weights = _newton(rows, kernel, offset, targets, weights, temperature, enough=0.1 * temperature)
        temperature = max(1.0, temperature / _COOLING)
    return _newton(rows, kernel, offset, targets, weights, 1.0, enough=0.0)


def _newton(
    rows: NDArray[np.float64],
    kernel: NDArray[np.float64] | None,
    offset: NDArray[np.float64],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
    temperature: float,
    enough: float,
) -> NDArray[np.float64]:
    """Take damped Newton steps until the next promises a decrease of at most `enough`, or rounding is reached."""
    epsilon = float(np.finfo(np.float64).eps)
    reach = float(np.linalg.norm(rows, axis=1).sum())

    def value(weights: NDArray[np.float64], margins: NDArray[np.float64]) -> float:
        soft = temperature * np.logaddexp(0, -margins / temperature).sum()
        return float(soft + (1 - targets) @ margins + weights @ weights / 2)

    margins = offset + rows @ weights
    objective, last = value(weights, margins), np.inf
    for _ in range(_MAX_STEPS):
        logits = margins / temperature
        gradient = weights - (targets * expit(-logits) - (1 - targets) * expit(logits)) @ rows
        try:
            step = _newton_step(rows, kernel, choice_variance(logits) / temperature, gradient)
        except LinAlgError as error:
            raise _beyond_float64(len(rows), float(np.abs(margins).max())) from error
        # The decrement bounds the squared distance to the optimum, because no curvature is below one.
        decrement = float(gradient @ step)
        slack = 8 * epsilon * (1 + abs(objective) + np.abs(offset).sum() + reach * float(np.linalg.norm(weights)))
        at_the_floor = decrement < slack and decrement >= last / 4
        if decrement <= max(enough, 1e-26 * (1 + float(weights @ weights))) or at_the_floor:
            return weights
        last, length = decrement, 1.0
        while True:
            tried = weights - length * step
            margins = offset + rows @ tried
            reached = value(tried, margins)
            if reached <= objective - _ARMIJO * length * decrement + slack:
                break
            length /= 2
        weights, objective = tried, reached
    raise _beyond_float64(len(rows), float(np.abs(margins).max()))


def _beyond_float64(count: int, largest: float) -> DataError:
    return DataError(
        f"the weights of {count} pairs cannot be found in float64: differences or margins reach {largest:.1e} in units "
        f"of the prior. Standardise the features, or raise the ridge."
    )


def _newton_step(
    rows: NDArray[np.float64],
    kernel: NDArray[np.float64] | None,
    curvature: NDArray[np.float64],
    gradient: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return (I + rowsᵀ W rows)⁻¹ gradient, through the smaller of the two systems."""
    root = np.sqrt(curvature)
    step: NDArray[np.float64]
    if kernel is None:
        scaled = rows * root[:, None]
        system = scaled.T @ scaled
        system[np.diag_indices_from(system)] += 1
        step = cho_solve(cho_factor(system, lower=True), gradient)
        return step
    system = kernel * np.outer(root, root)
    system[np.diag_indices_from(system)] += 1
    step = gradient - (root * cho_solve(cho_factor(system, lower=True), root * (rows @ gradient))) @ rows
    return step


def _is_positive_definite(precision: NDArray[np.float64]) -> bool:
    if precision.ndim == 0:
        return bool(precision > 0)
    if np.abs(precision - precision.T).max() > 1e-8 * np.abs(precision).max():
        return False
    try:
        cholesky(precision, lower=True)
    except LinAlgError:
        return False
    return True


def _checked(
    rows: NDArray[np.float64], prior: Gaussian, answers: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(prior.mean):
        raise ShapeError(f"rows have shape {rows.shape}, expected (n, R) with R = {len(prior.mean)} as the prior.")
    if not np.isfinite(rows).all():
        bad = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise DataError(f"row {bad} of the differences is not finite; drop the pair or encode it again.")
    if answers is None:
        return rows, np.ones(len(rows))
    targets = np.asarray(answers, dtype=np.float64)
    if targets.shape != (len(rows),):
        raise ShapeError(f"answers have shape {targets.shape}, expected ({len(rows)},): one a row.")
    outside = ~((targets >= 0) & (targets <= 1))
    if outside.any():
        bad = int(np.argmax(outside))
        raise DataError(f"answer {bad} is {targets[bad]}; expected a number from 0 to 1.")
    return rows, targets
