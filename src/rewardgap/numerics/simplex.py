"""Mixture weights: points of the probability simplex, and the most likely one given pairwise choices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rewardgap.core.errors import ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_STEPS = 200


def softmax_weights(logits: torch.Tensor) -> torch.Tensor:
    """Return mixture weights.

        w_j = exp(ω_j) / Σ_i exp(ω_i)

    Args:
        logits: (..., R) free numbers; a constant added to a row changes nothing.

    Returns:
        (..., R) weights, each row non-negative with sum one.
    """
    return torch.softmax(logits, dim=-1)


def project_to_simplex(points: torch.Tensor) -> torch.Tensor:
    """Return the nearest mixture weights in Euclidean distance.

        argmin_w ‖w - v‖²  with  w ≥ 0, Σ w = 1

    Args:
        points: (..., R) any points.

    Returns:
        (..., R) weights; a row that is on the simplex comes back as it is, up to rounding.

    Source: Held, Wolfe and Crowder (1974): subtract the one threshold that makes the positive part sum to one.
    """
    ordered = points.sort(dim=-1, descending=True).values
    counts = torch.arange(1, points.shape[-1] + 1, dtype=points.dtype, device=points.device)
    thresholds = (ordered.cumsum(-1) - 1) / counts
    last = (ordered > thresholds).sum(-1, keepdim=True) - 1
    return (points - thresholds.gather(-1, last)).clamp_min(0)


def likeliest_weights(
    vertex_margins: NDArray[np.float64], prior: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    """Return the mixture weights under which a user's choices are likeliest.

        argmin_w  1/n Σ_i softplus(-(M w)_i) + ρ ‖w - w₀‖²   with  w ≥ 0, Σ w = 1

    The objective is strictly convex for ρ > 0, so the answer is unique and does not depend on the order of the rows.
    Solved by a primal-dual interior-point method in float64, to a duality gap of 1e-13 of the largest slope.

    Args:
        vertex_margins: (n, R) margin of each pair under each vertex of the simplex.
        prior: (R,) weights w₀, the answer for n = 0.
        ridge: ρ > 0.

    Returns:
        (R,) weights.

    Raises:
        ShapeError: if the widths differ.
    """
    margins = np.asarray(vertex_margins, dtype=np.float64)
    prior = np.asarray(prior, dtype=np.float64)
    if margins.ndim != 2 or prior.shape != (margins.shape[1],):
        raise ShapeError(f"prior has shape {prior.shape}, expected (R,) for vertex_margins of shape {margins.shape}.")
    num_pairs, rank = margins.shape
    if num_pairs == 0 or rank == 1:
        return prior.copy()

    def slope(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        wrong = 0.5 * (1.0 - np.tanh(0.5 * (margins @ weights)))
        gradient = -(wrong @ margins) / num_pairs + 2 * ridge * (weights - prior)
        return wrong, gradient

    def residual(
        weights: NDArray[np.float64], duals: NDArray[np.float64], level: float, barrier: float
    ) -> NDArray[np.float64]:
        stationarity = slope(weights)[1] + level - duals
        return np.concatenate([stationarity, weights * duals - barrier, [weights.sum() - 1.0]])

    weights = np.full(rank, 1.0 / rank)
    scale = max(1.0, float(np.abs(slope(weights)[1]).max()))
    duals = np.full(rank, scale)
    level = 0.0
    for _ in range(_MAX_STEPS):
        gap = float(weights @ duals)
        wrong, gradient = slope(weights)
        stationarity = float(np.abs(gradient + level - duals).max())
        if gap < 1e-13 * scale and stationarity < 1e-12 * scale:
            break
        barrier = 0.1 * gap / rank
        curvature = (margins.T * (wrong * (1.0 - wrong))) @ margins / num_pairs
        curvature[np.diag_indices(rank)] += 2 * ridge + duals / weights
        system = np.ones((rank + 1, rank + 1))
        system[:rank, :rank] = curvature
        system[rank, rank] = 0.0
        right = np.append(-(gradient + level - barrier / weights), 1.0 - weights.sum())
        step = np.linalg.solve(system, right)
        dual_step = barrier / weights - duals - duals / weights * step[:rank]
        length = _largest_step(weights, step[:rank], duals, dual_step)
        size = float(np.linalg.norm(residual(weights, duals, level, barrier)))
        for _ in range(30):
            tried = weights + length * step[:rank], duals + length * dual_step, level + length * float(step[rank])
            if float(np.linalg.norm(residual(*tried, barrier))) <= (1 - 0.01 * length) * size:
                break
            length *= 0.5
        weights, duals, level = tried
    answer: NDArray[np.float64] = weights / weights.sum()
    return answer


def _largest_step(
    weights: NDArray[np.float64],
    step: NDArray[np.float64],
    duals: NDArray[np.float64],
    dual_step: NDArray[np.float64],
) -> float:
    """Return the longest step, at most one, that keeps weights and multipliers positive."""
    both, change = np.concatenate([weights, duals]), np.concatenate([step, dual_step])
    falling = change < 0
    limit = float((-both[falling] / change[falling]).min()) if falling.any() else np.inf
    return min(1.0, 0.99 * limit)
