"""Training a head together with the backbone's adapter, through the packed pair forward: the prompt is read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from rewardgap.backbones.features import encode_texts, prompt_tree
from rewardgap.backbones.lora import adapter_parameters
from rewardgap.backbones.session import tree_states
from rewardgap.backbones.trie import Block, build_trie, chain
from rewardgap.core.errors import ConfigError
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
    Tokens: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    TokensOf: TypeAlias = Callable[[Backbone, Sequence[PreferencePair]], Tokens]

WEIGHT_DECAY = 0.01


def fit_joint(
    head: Head,
    backbone: Backbone,
    pairs: Sequence[PreferencePair],
    *,
    initial: tuple[NDArray[np.float32], NDArray[np.float32]],
    states_of: StatesOf,
    tokens_of: TokensOf | None = None,
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
        tokens_of: the same for every token, as `token_states`; for heads that read tokens.
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

    def losses_of(rows: list[int]) -> torch.Tensor:
        batch, users = [pairs[row] for row in rows], index[rows].to(backbone.device)
        if not head.reads_tokens:
            return head.losses(*states_of(backbone, batch), users)
        if tokens_of is None:
            raise ConfigError(f"{head.name} trains on every token, which this model does not read; use only_last.")
        return head.token_losses(*tokens_of(backbone, batch), users)

    def loss_of(rows: list[int]) -> torch.Tensor:
        # Weights are those of the whole set, so that a step's gradient is an unbiased part of its gradient.
        share = weights[rows] * (len(pairs) / len(rows))
        found = losses_of(rows)
        return (share.to(found) * found).sum() + head.penalty()

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


def token_states(backbone: Backbone, pairs: Sequence[PreferencePair], limit: PromptLimit) -> Tokens:
    """Return the states of every token of chosen and rejected, with gradient, each prompt read once.

    Returns:
        (B, T, D) of chosen, (B, T', D) of rejected, and for each which tokens count, (B, T) and (B, T'): those from the
        first at which the two completions differ. A completion that the other one begins with counts by its last
        token, an empty one by the end of the prompt.
    """
    blocks, paths = [], []
    for pair in pairs:
        ids, tails = encode_texts(backbone, pair.prompt, (pair.chosen, pair.rejected), limit)
        trie = build_trie(tails)
        head, tail = chain(ids, -1, 0), trie.block(parent=len(ids) - 1, start=len(ids))
        blocks.append(Block(head.tokens + tail.tokens, head.parents + tail.parents))
        nodes = [[len(ids) + node for node in path] or [len(ids) - 1] for path in trie.paths]
        same = next((t for t, (a, b) in enumerate(zip(*nodes, strict=False)) if a != b), min(map(len, nodes)))
        paths.append([(side, min(same, len(side) - 1)) for side in nodes])
    states = tree_states(backbone, blocks)
    sides = []
    for number in (0, 1):
        longest = max(len(path[number][0]) for path in paths)
        places = torch.tensor([path[number][0] + [0] * (longest - len(path[number][0])) for path in paths])
        counts = [[first <= t < len(side) for t in range(longest)] for side, first in (path[number] for path in paths)]
        rows = torch.arange(len(pairs), device=states.device)[:, None]
        sides.append((states[rows, places.to(states.device)], torch.tensor(counts, device=states.device)))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]
