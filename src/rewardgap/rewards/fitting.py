"""Fitting on frozen features: checked training pairs, standardisation, and the one training loop.

The loop sees numbers only: (N, D) features of chosen and rejected completions, and whose pair each row is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from rewardgap.core.errors import ConfigError, DataError, ShapeError
from rewardgap.numerics.bradley_terry import pair_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.rewards.base import Head

Features: TypeAlias = torch.Tensor | NDArray[Any]
LossAggregation: TypeAlias = Literal["pair", "user"]
Optimiser: TypeAlias = Literal["lbfgs", "adam"]

_HISTORY_POINTS = 50
_CHECK_EVERY = 100


@dataclass(frozen=True)
class FitHistory:
    """What a fit went through, on its training pairs.

    `loss` is the objective with its penalty, in nats a pair, thinned to at most 51 points, the last one final.
    `accuracy` counts ties as one half; `margin` is the mean of r+ - r-.
    """

    loss: tuple[float, ...]
    final_loss: float
    steps: int
    converged: bool
    accuracy: float
    margin: float


class FitTrace(NamedTuple):
    """The objective after each step of an optimiser, and whether it stopped by itself."""

    losses: list[float]
    converged: bool


@dataclass(frozen=True)
class TrainingPairs:
    """Checked training pairs: (N, D) features, and the row of each pair's user in `users`, which is sorted."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    user_index: torch.Tensor
    users: tuple[str, ...]


def as_features(values: Features | Sequence[Any], name: str) -> torch.Tensor:
    """Return features as a floating tensor; half precision and integers become float32.

    Raises:
        DataError: if a value is NaN or infinite; the message names the row.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        bad = tuple(int(i) for i in (~torch.isfinite(tensor)).nonzero()[0])
        raise DataError(
            f"{name} is {float(tensor[bad])} at row {bad[0]}, column {bad[-1]}; features must be finite. "
            f"Drop the row, or encode it in float32."
        )
    return tensor


def paired_features(chosen: Features, rejected: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sides of pairs as (N, D) tensors of one dtype.

    Raises:
        ShapeError: if they are no matrices of one shape.
        DataError: if a value is NaN or infinite.
    """
    left, right = as_features(chosen, "chosen"), as_features(rejected, "rejected")
    if left.ndim != 2 or left.shape != right.shape:
        raise ShapeError(
            f"chosen has shape {tuple(left.shape)} and rejected {tuple(right.shape)}; expected (N, D) for both."
        )
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.detach().to(dtype), right.detach().to(dtype)


def training_pairs(chosen: Features, rejected: Features, user: Sequence[str]) -> TrainingPairs:
    """Return checked pairs.

    Args:
        chosen: (N, D) features of the chosen completions.
        rejected: (N, D) features of the rejected completions.
        user: (N,) user ids.

    Raises:
        DataError: if there is no pair, a feature is not finite, or a user id is no string.
        ShapeError: if the shapes disagree.
    """
    left, right = paired_features(chosen, rejected)
    names = list(user)
    if len(names) != len(left):
        raise ShapeError(f"user has {len(names)} entries for {len(left)} pairs; expected one user id a pair.")
    if not names or left.shape[1] == 0:
        raise DataError(f"expected at least 1 training pair of at least 1 feature, got shape {tuple(left.shape)}.")
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise DataError(f"user id of row {row} is {name!r} ({type(name).__name__}); user ids must be strings.")
    users = tuple(sorted({str(name) for name in names}))
    place = {name: row for row, name in enumerate(users)}
    index = torch.tensor([place[str(name)] for name in names], dtype=torch.long, device=left.device)
    return TrainingPairs(left, right, index, users)


def column_moments(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (D,) mean and standard deviation of the features of both sides, in float64.

    A column that does not vary beyond rounding has standard deviation one, so that it is centred and left alone.
    """
    rows = torch.cat([chosen, rejected])
    mean = rows.mean(dim=0, dtype=torch.float64)
    std = (rows.double() - mean).square().mean(dim=0).sqrt()
    varies = std > 8 * torch.finfo(rows.dtype).eps * mean.abs()
    return mean, torch.where(varies, std, torch.ones_like(std))


def pair_weights(user_index: torch.Tensor, loss_agg: LossAggregation) -> torch.Tensor:
    """Return the (N,) weight of each pair in the loss, in float64, with sum one.

    pair: 1/N        user: 1/(U · N_u)
    """
    if loss_agg == "pair":
        return torch.full((len(user_index),), 1 / len(user_index), dtype=torch.float64, device=user_index.device)
    counts = torch.bincount(user_index).double()
    return 1 / (int((counts > 0).sum()) * counts[user_index])


def fit_head(head: Head, pairs: TrainingPairs) -> FitTrace:
    """Train the parameters of a built head on all pairs at once.

        L(θ, z) = Σ_i c_i · loss_i(θ, z) + penalty(θ, z)

    Deterministic: full batches, no randomness beyond the head's initialisation.

    Args:
        head: built for the users of `pairs`; its parameters are changed.
        pairs: the training pairs; `c_i` comes from `head.loss_agg`.
    """
    losses = head.bind_losses(pairs.chosen, pairs.rejected, pairs.user_index)
    weights = pair_weights(pairs.user_index, head.loss_agg)

    def objective() -> torch.Tensor:
        values = losses()
        return weights.to(values.dtype) @ values + head.penalty()

    groups = head.parameters()
    parameters = [tensor for group in groups for tensor in group["params"]]
    if head.optimiser == "lbfgs":
        units = [float(group.get("unit", 1.0)) for group in groups for _ in group["params"]]
        return minimise_lbfgs(objective, parameters, units, head.max_steps, head.tolerance)
    return minimise_adam(objective, parameters, head.learning_rate, head.max_steps, head.tolerance)


def minimise_lbfgs(
    objective: Callable[[], torch.Tensor],
    parameters: Sequence[torch.Tensor],
    units: Sequence[float],
    max_steps: int,
    tolerance: float,
) -> FitTrace:
    """Minimise in place by L-BFGS in float64, until no slope exceeds `tolerance` or the objective stands still.

    Args:
        objective: the value under the present parameters.
        parameters: leaf tensors; they end at the optimum.
        units: one number a tensor; the search moves in multiples of it. A per-user tensor sees 1/U of the loss, and in
            units of √U its curvature is like that of the shared ones: ten times fewer steps with 500 users.
        max_steps: limit on the steps taken.
        tolerance: on the largest slope; a step that gains less than 1e-5 of it ends the search as well.
    """
    sizes = [tensor.numel() for tensor in parameters]
    ends = np.cumsum(sizes)[:-1]
    scale = np.repeat(np.asarray(units, dtype=np.float64), sizes)
    losses: list[float] = []

    def write(point: NDArray[np.float64]) -> None:
        with torch.no_grad():
            for tensor, part in zip(parameters, np.split(point * scale, ends), strict=True):
                tensor.copy_(torch.from_numpy(part).view_as(tensor))

    def value_and_slope(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        write(point)
        value = objective()
        slopes = torch.autograd.grad(value, list(parameters))
        flat = torch.cat([slope.reshape(-1) for slope in slopes])
        return float(value.detach()), flat.double().cpu().numpy() * scale

    def record(intermediate_result: Any) -> None:
        losses.append(float(intermediate_result.fun))

    start = torch.cat([tensor.detach().reshape(-1) for tensor in parameters]).double().cpu().numpy() / scale
    found = minimize(
        value_and_slope,
        start,
        jac=True,
        method="L-BFGS-B",
        callback=record,
        options={
            "maxiter": max_steps,
            "maxfun": 2 * max_steps,
            "maxcor": 20,
            "gtol": tolerance,
            "ftol": 1e-5 * tolerance,
        },
    )
    write(found.x)
    return FitTrace([*losses, float(found.fun)], bool(found.success))


def minimise_adam(
    objective: Callable[[], torch.Tensor],
    parameters: Sequence[torch.Tensor],
    learning_rate: float,
    max_steps: int,
    tolerance: float,
) -> FitTrace:
    """Minimise in place by full-batch Adam, until 100 steps lower the objective by less than `tolerance` nats."""
    optimiser = torch.optim.Adam(list(parameters), lr=learning_rate)
    losses: list[float] = []
    for step in range(1, max_steps + 1):
        optimiser.zero_grad()
        value = objective()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(value.detach()))
        if step % _CHECK_EVERY == 1 and step > _CHECK_EVERY and losses[-1 - _CHECK_EVERY] - losses[-1] < tolerance:
            return FitTrace(losses, True)
    return FitTrace(losses, False)


def fit_direction(differences: torch.Tensor, weights: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the (D,) regularised Bradley-Terry direction of (N, D) differences h+ - h-, everybody taken together."""
    direction = torch.zeros(differences.shape[1], dtype=torch.float64, requires_grad=True)
    rows, weights = differences.double().cpu(), weights.double().cpu()

    def objective() -> torch.Tensor:
        return weights @ pair_loss(rows @ direction) + ridge * direction.square().sum()

    minimise_lbfgs(objective, [direction], [1.0], max_steps=1000, tolerance=1e-7)
    return direction.detach()


def thinned(losses: Sequence[float]) -> tuple[float, ...]:
    """Return at most 51 evenly spaced losses, the last one included."""
    stride = max(1, -(-len(losses) // _HISTORY_POINTS))
    kept = list(losses[:-1:stride])
    return (*kept, losses[-1])


def check_positive(method: str, **values: float) -> None:
    """Raise ConfigError for the first value that is not a positive finite number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ConfigError(f"{method}: {name} is {value!r}; expected a positive number.")


def check_count(method: str, **values: int) -> None:
    """Raise ConfigError for the first value that is not an integer of at least one."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{method}: {name} is {value!r}; expected an integer of at least 1.")


def check_choice(method: str, name: str, value: str, known: Sequence[str]) -> None:
    """Raise ConfigError unless the value is one of those known."""
    if value not in known:
        raise ConfigError(f"{method}: {name} is {value!r}; expected one of {', '.join(known)}.")
