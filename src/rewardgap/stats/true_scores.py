"""What methods would score with endless users: draws from a normal posterior, for tau, regret and who is best.

Measured scores are true ones plus the noise of which users came. That noise spreads methods out and breaks their order:
tau of measured scores lies nearer to zero than tau of the true ones, and the best measured score is too good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.core.seeds import child_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

NUM_TAUS = 33
LATTICE = (21, 13)
"""Points and step of the Fibonacci lattice over the variances of two stages."""
NUM_VARIANCES = 64
"""Variances tried where there is one stage only."""
_JITTER = 1e-10
_CHUNK_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class TrueScores:
    """Draws of the true scores of M methods in one stage or two.

    Attributes:
        draws: (D, S, M) true scores in the units of the stage, up to a constant in each draw and stage: only
            differences between methods mean anything.
        population_tau: (D,) tau in the population that the methods are taken to come from; None for one stage.
    """

    draws: NDArray[np.float64]
    population_tau: NDArray[np.float64] | None


def true_scores(stages: Sequence[ArrayLike], draws: int = 10_000, seed: int = 0) -> TrueScores:
    """Draw the true scores of methods, given each user's scores.

        measured = true + noise,   noise ~ N(0, V),   true_m ~ N(μ, Σ),   draws from p(true | measured)

    V is the covariance of user means over users, over U: it knows that methods are judged on the same users, that some
    err alike, and that two stages share their users. It is shrunk towards its average over methods, by as much as it is
    uncertain itself. μ is flat. The prior of a stage's total variance T, true and noise, is 1/T above the noise.
    The correlation of two stages is sin(πt/2), t uniform on a grid from −1 to 1 with both ends on it: that two stages
    have one order is a possibility, not a limit never reached.

    Args:
        stages: one or two (M, U) arrays, the same methods and users in each; M ≥ 2, U ≥ 2, no NaN.
        draws: D, draws from the posterior.
        seed: of the draws.

    Raises:
        ShapeError: if the shapes differ or are too small.
        ConfigError: if a value is not finite, there are not one or two stages, or `draws` is below 1.

    Source: own combination. Normal means with a common prior are Efron and Morris (1973), the prior of T Strawderman
        (1971), the shrinkage of V Ledoit and Wolf (2004); a draw is made by Matheron's rule. `benchmarks/coverage.py`
        compares it with other intervals.
    """
    data = _checked(stages, draws)
    num_stages, num_methods, num_users = data.shape
    rng = np.random.default_rng(child_seed(seed, "true_scores"))
    # Contrasts are free of μ, and of what a user adds to all methods alike.
    basis = _contrasts(num_methods)
    rotated = np.einsum("mc,smu->scu", basis, data - data.mean(axis=1, keepdims=True))
    seen = rotated.mean(axis=2)
    residual = rotated - seen[:, :, None]
    unit = np.sqrt(np.mean(seen**2, axis=1) + np.mean(residual**2, axis=(1, 2)) / num_users)
    unit = np.where(unit > 0, unit, 1.0)
    seen, residual = seen / unit[:, None], residual / unit[:, None, None]
    noise, levels = _noise(residual)
    prior, taus, offset = _prior_grid(np.mean(seen**2, axis=1), levels, num_methods - 1)
    weights = _weights(prior, noise, seen, offset)
    picks = np.sort(rng.choice(len(prior), size=draws, p=weights))
    flat = _posterior_draws(prior, noise, seen, picks, rng)
    scores = np.einsum("mc,dsc->dsm", basis, flat * unit[:, None])
    if num_stages == 1:
        return TrueScores(scores, None)
    cell = 1 / (NUM_TAUS - 1)
    within = taus[picks] + rng.uniform(-cell, cell, draws)
    return TrueScores(scores, np.where(np.abs(taus[picks]) == 1.0, taus[picks], within))


def _checked(stages: Sequence[ArrayLike], draws: int) -> NDArray[np.float64]:
    arrays = [np.asarray(stage, dtype=np.float64) for stage in stages]
    if len(arrays) not in (1, 2) or draws < 1:
        raise ConfigError(
            f"got {len(arrays)} stages and draws={draws}; expected one or two stages, and a draw or more."
        )
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2 or min(shapes[0]) < 2:
        raise ShapeError(f"stages have shapes {shapes}, expected (M, U) each, of at least 2 methods and 2 users.")
    data = np.stack(arrays)
    if not np.isfinite(data).all():
        raise ConfigError("a stage holds NaN or an infinite value; keep users with a finite value for every method.")
    return data


def _contrasts(num_methods: int) -> NDArray[np.float64]:
    """Return (M, M−1) Helmert contrasts: orthonormal columns, each summing to zero."""
    columns = np.tril(np.ones((num_methods, num_methods)), -1).T[:, 1:]
    columns[np.arange(1, num_methods), np.arange(num_methods - 1)] = -np.arange(1.0, num_methods)
    return np.asarray(columns / np.linalg.norm(columns, axis=0))


def _noise(residual: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (SF, SF) covariance of the measured contrasts, shrunk, and (S,) the mean noise variance of each stage."""
    num_stages, freedom, num_users = residual.shape
    size = num_stages * freedom
    flat = residual.reshape(size, num_users)
    products = flat @ flat.T / num_users
    average = np.einsum("afbf->ab", products.reshape(num_stages, freedom, num_stages, freedom)) / freedom
    target = np.kron(average, np.eye(freedom))
    distance = float(np.sum((products - target) ** 2))
    error = (float(np.mean(np.sum(flat**2, axis=0) ** 2)) - float(np.sum(products**2))) / num_users
    # The weight that is best in expectation is at most 1: further than the target there is nothing to learn.
    weight = min(1.0, error / distance) if distance > 0 else 1.0
    scale = 1 / (num_users - 1)
    noise = scale * ((1 - weight) * products + weight * target) + _JITTER * np.eye(size)
    average = scale * average
    return noise, np.diagonal(average) + _JITTER


def _prior_grid(
    scatter: NDArray[np.float64], levels: NDArray[np.float64], freedom: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return (H, S, S) covariances of true scores, (H,) taus, and (H,) logs of the likelihood already spent on them.

    Total variances are quantiles of their posterior as it would be with noise alike and independent for all methods,
    T = F·scatter / χ²_F above the noise; the weights then need only that likelihood taken out again.
    """
    from scipy.special import gammainc, gammaincinv

    num_stages = len(scatter)
    count, step = LATTICE if num_stages == 2 else (NUM_VARIANCES, 1)
    index = np.arange(count)
    lattice = np.stack([index, index * step % count], axis=1)[:, :num_stages]
    highest = gammainc(freedom / 2, freedom * scatter / levels / 2)
    chi = 2 * gammaincinv(freedom / 2, (lattice + 0.5) / count * highest)
    total = np.divide(freedom * scatter, chi, out=np.zeros_like(chi), where=chi > 0)
    total = np.maximum(total, levels * (1 + _JITTER))
    spent = np.sum(-0.5 * freedom * (np.log(total) + scatter / total), axis=1)
    deviation = np.sqrt(total - levels)
    if num_stages == 1:
        return deviation[:, :, None] ** 2, np.zeros(count), spent
    taus = np.linspace(-1, 1, NUM_TAUS)
    rho = np.sin(np.pi * taus / 2)
    correlation = np.ones((NUM_TAUS, 1, 2, 2))
    correlation[:, 0, 0, 1] = correlation[:, 0, 1, 0] = rho
    prior = correlation * deviation[:, :, None] * deviation[:, None, :]
    return prior.reshape(-1, 2, 2), np.repeat(taus, count), np.tile(spent, NUM_TAUS)


def _weights(
    prior: NDArray[np.float64], noise: NDArray[np.float64], seen: NDArray[np.float64], spent: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (H,) posterior weights of the grid, from the normal likelihood of the measured contrasts."""
    size, freedom = len(noise), seen.shape[1]
    logs = np.empty(len(prior))
    step = max(1, _CHUNK_CELLS // size**2)
    for begin in range(0, len(prior), step):
        part = prior[begin : begin + step]
        # With the data as a last row and column, the last row of the root is L⁻¹z: one factorisation, no solve.
        joint = np.empty((len(part), size + 1, size + 1))
        joint[:, :size, :size] = _kron(part, freedom) + noise
        joint[:, size, :size] = joint[:, :size, size] = seen.ravel()
        joint[:, size, size] = (1 + np.sum(seen**2)) / _JITTER
        root = np.linalg.cholesky(joint)
        volume = np.log(np.diagonal(root, axis1=1, axis2=2)[:, :size]).sum(axis=1)
        logs[begin : begin + step] = -0.5 * np.sum(root[:, size, :size] ** 2, axis=1) - volume
    logs -= spent
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def _kron(blocks: NDArray[np.float64], freedom: int) -> NDArray[np.float64]:
    """Return (H, SF, SF): each (S, S) block times the identity over contrasts."""
    size = blocks.shape[1] * freedom
    return np.asarray(np.einsum("hab,fg->hafbg", blocks, np.eye(freedom)).reshape(-1, size, size))


def _posterior_draws(
    prior: NDArray[np.float64],
    noise: NDArray[np.float64],
    seen: NDArray[np.float64],
    picks: NDArray[np.intp],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return (D, S, F) contrasts of true scores: a draw from the prior, moved by the gain Σ(Σ + V)⁻¹ to the data."""
    num_stages, freedom = seen.shape
    size = num_stages * freedom
    standard = rng.standard_normal((len(picks), num_stages, freedom))
    errors = rng.standard_normal((len(picks), size)) @ np.linalg.cholesky(noise).T
    out = np.empty((len(picks), size))
    used, starts = np.unique(picks, return_index=True)
    ends = [*starts[1:].tolist(), len(picks)]
    variances, axes = np.linalg.eigh(prior[used])
    # A correlation of 1 has a variance of zero, which rounding may put below it.
    roots = axes * np.sqrt(np.where(variances > 0, variances, 0.0))[:, None, :]
    step = max(1, _CHUNK_CELLS // size**2)
    for first in range(0, len(used), step):
        covariance = _kron(prior[used[first : first + step]], freedom)
        gains = np.linalg.solve(covariance + noise, covariance)
        for index, gain in enumerate(gains, start=first):
            rows = slice(int(starts[index]), ends[index])
            start = np.einsum("ab,dbf->daf", roots[index], standard[rows]).reshape(-1, size)
            out[rows] = start + (seen.ravel() - start - errors[rows]) @ gain
    return out.reshape(len(picks), num_stages, freedom)
