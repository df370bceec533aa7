"""Training a head together with the backbone's adapter, through the packed pair forward: the prompt is read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from rewardgap.backbones.features import encode_texts, prompt_tree
from rewardgap.backbones.lora import adapter_parameters
from rewardgap.backbones.session import tree_states
from rewardgap.core.records import pair_to_json
from rewardgap.core.seeds import child_seed
from rewardgap.rewards.fitting import pair_weights
from rewardgap.rewards.training import train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rewardgap.backbones.features import PromptLimit
    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import PreferencePair
    from rewardgap.rewards.base import Head
    from rewardgap.rewards.training import Schedule

    StatesOf: TypeAlias = Callable[[Backbone, Sequence[PreferencePair]], tuple[torch.Tensor, torch.Tensor]]

WEIGHT_DECAY = 0.01


def fit_joint(
    head: Head,
    backbone: Backbone,
    pairs: Sequence[PreferencePair],
    *,
    initial: tuple[NDArray[np.float32], NDArray[np.float32]],
    states_of: StatesOf,
    schedule: Schedule,
    learning_rate: float,
    checkpoint: Path | None = None,
    identity: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train head and adapter on preference pairs.

        loss = mean (over pairs, or over users of their means, as the head says) of its pair losses + its penalty

    Features are standardised by their moments before training; the adapter then moves within that frame.

    Args:
        head: a head that was not fitted; it is built here.
        backbone: with fresh adapters, which this trains in place.
        pairs: of the training users.
        initial: (N, D) features of chosen and rejected under the base backbone, for the frame.
        states_of: (backbone, pairs) -> (B, D) states of chosen and of rejected, with gradient.
        schedule: epochs, pairs a step, and the seed, which decides the head's initialisation too.
        learning_rate: of the adapter; the head's groups have their own.
        checkpoint: where an unfinished fit is kept.
        identity: what else the result depends on, such as how prompts are cut.
        progress: called with (steps done, steps in all).
    """
    users = sorted({pair.user_id for pair in pairs})
    place = {user: index for index, user in enumerate(users)}
    index = torch.tensor([place[pair.user_id] for pair in pairs])
    head.build(initial[0].shape[1], users, seed=child_seed(schedule.seed, "head") % (1 << 31), device=backbone.device)
    head.observe(torch.from_numpy(initial[0]), torch.from_numpy(initial[1]), index)
    weights = pair_weights(index, head.loss_agg).float()
    groups: list[dict[str, Any]] = [
        {"params": adapter_parameters(backbone.model), "lr": learning_rate, "weight_decay": WEIGHT_DECAY}
    ]
    groups += [{"params": g["params"], "lr": g["lr"], "weight_decay": 0.0} for g in head.parameters()]

    def loss_of(rows: list[int]) -> torch.Tensor:
        chosen, rejected = states_of(backbone, [pairs[row] for row in rows])
        # Weights are those of the whole set, so that a step's gradient is an unbiased part of its gradient.
        share = weights[rows] * (len(pairs) / len(rows))
        losses_of = head.losses(chosen, rejected, index[rows].to(chosen.device))
        return (share.to(losses_of) * losses_of).sum() + head.penalty()

    whole = [head.name, head.config(), backbone.fingerprint, [pair_to_json(pair) for pair in pairs], identity]
    backbone.model.train()
    losses = train(loss_of, groups, len(pairs), schedule, checkpoint=checkpoint, identity=whole, progress=progress)
    backbone.model.eval()
    head.finish()
    with torch.no_grad():
        batches = [
            states_of(backbone, pairs[begin : begin + schedule.batch_size])
            for begin in range(0, len(pairs), schedule.batch_size)
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
