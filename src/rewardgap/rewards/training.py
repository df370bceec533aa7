"""The one loop that trains through a network: seeded step by step, so that a killed fit resumes to the same bits."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from rewardgap.core.errors import DataError
from rewardgap.core.seeds import child_seed
from rewardgap.core.store import content_hash, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

WARM_UP = 0.03
LAST_RATE = 0.1
CLIP = 1.0
SECONDS_BETWEEN_CHECKPOINTS = 30.0

_STATE, _VALUE, _LOSSES, _FACTS = "state", "value", "losses", "facts"


class FitDefaults(NamedTuple):
    """How a method is trained through a network unless the caller says otherwise."""

    epochs: int
    batch_size: int
    learning_rate: float

    def filled(self, epochs: int | None, batch_size: int | None, learning_rate: float | None) -> FitDefaults:
        """Return what was given, and the method's own for the rest."""
        return FitDefaults(
            self.epochs if epochs is None else epochs,
            self.batch_size if batch_size is None else batch_size,
            self.learning_rate if learning_rate is None else learning_rate,
        )


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Args:
        epochs: passes over the examples.
        batch_size: examples a step.
        seed: decides the order of examples and the dropout masks.
    """

    epochs: int
    batch_size: int
    seed: int

    def steps(self, count: int) -> int:
        """Return the steps that `count` examples make."""
        return self.epochs * math.ceil(count / self.batch_size)

    def batch(self, count: int, step: int) -> list[int]:
        """Return the examples of a step; each epoch has an order of its own."""
        per_epoch = math.ceil(count / self.batch_size)
        epoch, place = divmod(step, per_epoch)
        order = np.random.Generator(np.random.PCG64(child_seed(self.seed, "order", epoch))).permutation(count)
        return [int(row) for row in order[place * self.batch_size : (place + 1) * self.batch_size]]


def train(
    loss_of: Callable[[list[int]], torch.Tensor],
    groups: Sequence[dict[str, Any]],
    count: int,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    identity: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train parameters in place by AdamW with warm-up and a cosine to a tenth, gradients clipped at norm 1.

    Every step is seeded by its number. With a checkpoint, parameters and moments are kept on disk now and then; a fit
    that starts with the same identity goes on from there and ends with the bits of an uninterrupted one.

    Args:
        loss_of: the loss, in nats, of a batch given by the rows of its examples.
        groups: optimiser groups with `params`, `lr` and `weight_decay`.
        count: number of examples.
        schedule: epochs, batch size and seed.
        checkpoint: a safetensors file; it is removed at the end by whoever owns the result.
        identity: everything the result depends on; another one's checkpoint is not used.
        progress: called with (steps done, steps in all).

    Returns:
        The loss of each step.

    Raises:
        DataError: if a loss is not finite; the message names the step.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimiser = torch.optim.AdamW([dict(group) for group in groups])
    rates = [group["lr"] for group in optimiser.param_groups]
    steps = schedule.steps(count)
    mark = content_hash([identity, count, vars(schedule), [list(p.shape) for p in parameters], rates])
    losses = _restore(checkpoint, mark, parameters, optimiser)
    saved = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        for step in range(len(losses), steps):
            torch.manual_seed(child_seed(schedule.seed, "dropout", step) % (1 << 31))
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * relative_rate(step, steps)
            loss = loss_of(schedule.batch(count, step))
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise DataError(f"the loss of training step {step + 1} is {losses[-1]}; lower the learning rate.")
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimiser.step()
            if progress is not None:
                progress(step + 1, steps)
            if checkpoint is not None and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                _keep(checkpoint, mark, parameters, optimiser, losses)
                saved = time.monotonic()
    return losses


def relative_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the highest."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    part = (step - warm) / max(1, steps - warm)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * part))


def _keep(
    path: Path, mark: str, parameters: Sequence[torch.Tensor], optimiser: torch.optim.Optimizer, losses: list[float]
) -> None:
    from safetensors.torch import save

    tensors = {_LOSSES: torch.tensor(losses, dtype=torch.float64)}
    for number, parameter in enumerate(parameters):
        tensors[f"{_VALUE}.{number}"] = parameter.detach().cpu().contiguous().clone()
        for name, value in optimiser.state[parameter].items():
            tensors[f"{_STATE}.{number}.{name}"] = value.detach().cpu().contiguous().clone()
    write_bytes(path, save(tensors, {_FACTS: json.dumps({"mark": mark})}))


def _restore(
    path: Path | None, mark: str, parameters: Sequence[torch.Tensor], optimiser: torch.optim.Optimizer
) -> list[float]:
    """Put back what `_keep` wrote and return the losses so far; nothing where it belongs to something else."""
    from safetensors import SafetensorError, safe_open

    if path is None or not path.exists():
        return []
    try:
        with safe_open(str(path), framework="pt") as file:
            if json.loads((file.metadata() or {}).get(_FACTS, "{}")).get("mark") != mark:
                return []
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        # Written whole or not at all, so only a failing disk leaves one that cannot be read: the fit starts afresh.
        return []
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.copy_(tensors[f"{_VALUE}.{number}"])
            prefix = f"{_STATE}.{number}."
            held = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            if held:
                place = optimiser.state[parameter]
                # AdamW counts its steps on the CPU wherever the parameters are.
                place.update({n: t if n == "step" else t.to(parameter.device) for n, t in held.items()})
    return [float(loss) for loss in tensors[_LOSSES]]
