"""How loud the reward is beside the policy, at the step where the two are added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def guidance_ratio(
    log_probs: ArrayLike, rewards: ArrayLike, guidance_weight: float, mask: ArrayLike | None = None
) -> float:
    """Return the spread of the guidance over the spread of the fluency.

        ratio = mean_t std_v( λ · r_t(v) ) / mean_t std_v( log π_t(v) )

    It is a ratio of means over positions, not a mean of ratios: one position where the policy is nearly flat would
    decide a mean of ratios. Far below 1, guidance is a no-op; far above 1, the policy is ignored. A constant added to
    the rewards or log-probabilities of one position changes nothing.

    Args:
        log_probs: (T, K) log-probabilities of the candidates under the base policy, nats.
        rewards: (T, K) their rewards, in scale units.
        guidance_weight: λ.
        mask: (T, K) true where there is a candidate; None for all.

    Returns:
        The ratio, at least 0. NaN where no position has two candidates, or the policy is flat at all of them.

    Raises:
        ShapeError: if the shapes differ.
    """
    fluency, reward = np.asarray(log_probs, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if fluency.ndim != 2 or fluency.shape != reward.shape:
        raise ShapeError(f"rewards has shape {reward.shape} and log_probs {fluency.shape}, expected (T, K) both.")
    valid = np.ones(fluency.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if valid.shape != fluency.shape:
        raise ShapeError(f"mask has shape {valid.shape}, expected (T, K) = {fluency.shape}.")
    rows = valid.sum(axis=1) >= 2
    if not rows.any():
        return float("nan")
    policy = _spread(fluency[rows], valid[rows])
    return float(_spread(guidance_weight * reward[rows], valid[rows]) / policy) if policy > 0 else float("nan")


def _spread(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> float:
    """Return the mean over rows of the standard deviation over the valid columns."""
    return float(np.mean(np.std(values, axis=1, where=valid)))
