"""Training a head together with the backbone's adapter, through the packed pair forward: the prompt is read once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rewardgap.backbones.features import encode_texts, prompt_tree
from rewardgap.backbones.lora import adapter_parameters
from rewardgap.backbones.session import tree_states
from rewardgap.core.seeds import child_seed
from rewardgap.rewards.fitting import pair_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.features import PromptLimit
    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import PreferencePair
    from rewardgap.rewards.base import Head

WARM_UP = 0.03
LAST_RATE = 0.1
WEIGHT_DECAY = 0.01
CLIP = 1.0


def fit_joint(
    head: Head,
    backbone: Backbone,
    pairs: Sequence[PreferencePair],
    *,
    initial: tuple[NDArray[np.float32], NDArray[np.float32]],
    limit: PromptLimit,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train head and adapter on preference pairs.

        loss = mean (over pairs, or over users of their means, as the head says) of its pair losses + its penalty

    AdamW with warm-up and a cosine to a tenth; gradients clipped at norm 1. Features are standardised by their moments
    before training; the adapter then moves within that frame.

    Args:
        head: a head that was not fitted; it is built here.
        backbone: with fresh adapters, which this trains in place.
        pairs: of the training users.
        initial: (N, D) features of chosen and rejected under the base backbone, for the frame.
        limit: for prompts.
        seed: decides the head's initialisation and the order of pairs.
        epochs: passes over the pairs.
        batch_size: pairs a step.
        learning_rate: of the adapter; the head's groups have their own.
        progress: called with (steps done, steps in all).
    """
    users = sorted({pair.user_id for pair in pairs})
    place = {user: index for index, user in enumerate(users)}
    index = torch.tensor([place[pair.user_id] for pair in pairs])
    head.build(initial[0].shape[1], users, seed=child_seed(seed, "head") % (1 << 31), device=backbone.device)
    head.observe(torch.from_numpy(initial[0]), torch.from_numpy(initial[1]), index)
    weights = pair_weights(index, head.loss_agg).float()
    adapter = adapter_parameters(backbone.model)
    groups: list[dict[str, Any]] = [{"params": adapter, "lr": learning_rate, "weight_decay": WEIGHT_DECAY}]
    groups += [{**group, "weight_decay": 0.0} for group in head.parameters()]
    everything = [parameter for group in groups for parameter in group["params"]]
    optimiser = torch.optim.AdamW(groups)
    steps = epochs * math.ceil(len(pairs) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    order = np.random.Generator(np.random.PCG64(child_seed(seed, "order")))
    losses: list[float] = []
    backbone.model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(seed, "dropout") % (1 << 31))
        for _ in range(epochs):
            shuffled = order.permutation(len(pairs))
            for begin in range(0, len(pairs), batch_size):
                rows = shuffled[begin : begin + batch_size].tolist()
                chosen, rejected = pair_states(backbone, [pairs[row] for row in rows], limit)
                # Weights are those of the whole set, so that a step's gradient is an unbiased part of its gradient.
                share = weights[rows] * (len(pairs) / len(rows))
                losses_of = head.losses(chosen, rejected, index[rows].to(chosen.device))
                loss = (share.to(losses_of) * losses_of).sum() + head.penalty()
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(everything, CLIP)
                optimiser.step()
                schedule.step()
                losses.append(float(loss.detach()))
                if progress is not None:
                    progress(len(losses), steps)
    backbone.model.eval()
    head.finish()
    with torch.no_grad():
        batches = [
            pair_states(backbone, pairs[begin : begin + batch_size], limit)
            for begin in range(0, len(pairs), batch_size)
        ]
        chosen = torch.cat([batch[0] for batch in batches])
        rejected = torch.cat([batch[1] for batch in batches])
        head.calibrate(chosen, rejected, index, losses, True)


def pair_states(
    backbone: Backbone, pairs: Sequence[PreferencePair], limit: PromptLimit
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, D) states at the last content tokens of chosen and rejected, with gradient, each prompt read once."""
    blocks, ends = [], []
    for pair in pairs:
        block, nodes = prompt_tree(*encode_texts(backbone, pair.prompt, (pair.chosen, pair.rejected), limit))
        blocks.append(block)
        ends.append(nodes)
    states = tree_states(backbone, blocks)
    rows = torch.arange(len(pairs), device=states.device)
    places = torch.tensor(ends, device=states.device)
    return states[rows, places[:, 0]], states[rows, places[:, 1]]


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    part = (step - warm) / max(1, steps - warm)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * part))
