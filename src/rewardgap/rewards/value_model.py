"""Reward models whose network tabulates values: one forward says what a prefix is worth with each next token.

The same face and training as other models over the vocabulary. A value is of the whole prefix, not a token's share:
what a token adds is the difference to the prefix before it, and such differences add up to the value again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.farma_objective import (
    Continuations,
    Turns,
    consistency_losses,
    preference_losses,
    scored_tokens,
)
from rewardgap.rewards.token_networks import TokenNetworks, batch_loss
from rewardgap.rewards.vocabulary_guide import NUMBERS_AT_ONCE, Along, Stream, VocabularyGuide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.rewards.conditioning import Condition
    from rewardgap.rewards.farma import Farma
    from rewardgap.rewards.guide import NodeRewards
    from rewardgap.rewards.token_networks import RatiosAlong
    from rewardgap.rewards.token_rewards import Branches, ReadTrees
    from rewardgap.rewards.training import Schedule
    from rewardgap.rewards.value_table import ValueTable


@dataclass
class ValueNetworks(TokenNetworks):
    """A network whose states are read by a table of values.

    Attributes:
        table: the values; a token's share is its value minus that of the prefix before it, the bare prompt's being 0.
    """

    table: ValueTable = field(kw_only=True)

    def look_up(self, network: Backbone, batch: Sequence[Branches], trees: ReadTrees) -> list[list[torch.Tensor]]:
        """Return what each of the ids to look up adds to its prefix, (T, C) for each row, for each completion."""
        if not any(trees.nodes):
            return [[] for _ in batch]
        scored, features = scored_tokens(batch, trees), self.table.features(trees.states)
        values = self.table.values(network, features[scored.nodes], scored.tokens)
        before = torch.where(scored.follows, values.roll(1), 0.0)
        out: list[list[torch.Tensor]] = []
        begin = 0
        for branches, paths in zip(batch, trees.nodes, strict=True):
            out.append([])
            for number, nodes in enumerate(paths):
                own = slice(begin, begin + len(nodes))
                begin += len(nodes)
                found = values[own, None]
                if branches.tables is not None:
                    wanted = torch.from_numpy(branches.tables[number]).to(trees.states.device)
                    held = features[nodes][:, None].expand(*wanted.shape, -1)
                    found = self.table.values(network, held.flatten(0, 1), wanted.flatten()).reshape(wanted.shape)
                out[-1].append(found - before[own, None])
        return out


@dataclass
class ValueTableModel(AutoregressiveModel):
    """A personalised table of values over texts.

    The reward of a whole completion is the value of its end token; that of a bare prompt is 0.
    """

    head: Farma

    def _networks(self, adapted: tuple[Backbone, ...]) -> TokenNetworks:
        return ValueNetworks(adapted, None, table=self.head.table)

    def _objective(
        self, networks: TokenNetworks, rows: Sequence[Branches], index: torch.Tensor, schedule: Schedule
    ) -> tuple[Callable[[list[int]], torch.Tensor], Schedule]:
        """Return the pair loss and the consistency loss of a batch, and the order in which they take turns."""
        head, (network,) = self.head, networks.adapted
        looked_at = None if head.backup_top_k is None else Continuations(self.base, rows, head.backup_top_k)

        def preferences(batch: Sequence[Branches], condition: Condition) -> torch.Tensor:
            return preference_losses(networks, batch, condition.prompts, head.centre_weight)

        def consistency(batch: Sequence[Branches], condition: Condition) -> torch.Tensor:
            losses = consistency_losses(head.table, network, looked_at, batch, condition.prompts)
            return head.consistency_weight * losses

        def loss_of(batch: list[int]) -> torch.Tensor:
            items = [row % len(rows) for row in batch]
            pairs = [rows[item] for item in items]
            losses = consistency if batch[0] >= len(rows) else preferences
            return batch_loss(head, networks, pairs, index[items], losses)

        return loss_of, Turns(schedule.epochs, schedule.batch_size, schedule.seed)

    def _guide(self, streams: Sequence[Stream], coefficients: torch.Tensor, room: int) -> VocabularyGuide:
        return ValueGuide(self.head.table, streams, coefficients, room)

    def _nodes(self, along: RatiosAlong, policy: Along) -> NodeRewards:
        nodes = super()._nodes(along, policy)
        ((weight, network),) = along.terms
        values = ValueRewards(policy, network, self.head.table, weight / self.nats_weight, nodes.prefixes[:-1])
        return replace(nodes, whole=values)


@dataclass(frozen=True)
class ValueRewards:
    """Rewards of every next token along one completion, from a table of values.

    Attributes:
        policy: what is steered.
        network: the reward model's, read by the table.
        table: the values.
        weight: what a value counts for, in reward units.
        before: (T,) reward of the prefix before each scored token.
    """

    policy: Along
    network: Along
    table: ValueTable
    weight: float
    before: NDArray[np.float64]

    @torch.no_grad()
    def log_normalisers(self, guidance_weight: float, temperature: float = 1.0) -> NDArray[np.float64]:
        """Return (T,) log Σ_v exp((log π(v) + λ (r(v) - r of the prefix)) / τ), v over ids that both networks have."""
        rows = self.table.rows(self.network.backbone)
        features = self.table.features(self.network.states)
        size = min(self.policy.backbone.vocabulary, len(rows))
        count = max(1, NUMBERS_AT_ONCE // size)
        before = torch.from_numpy(self.before)
        parts = []
        for begin in range(0, len(features), count):
            part = slice(begin, begin + count)
            scores = self.policy.log_probs(part)[:, :size]
            gained = self.weight * (features[part] @ rows[:size].T).double() - before[part, None].to(features.device)
            scores = scores + guidance_weight * gained.to(scores.device)
            parts.append((scores / temperature).logsumexp(-1).cpu())
        found: NDArray[np.float64] = torch.cat(parts).numpy()
        return found


class ValueGuide(VocabularyGuide):
    """Values of next tokens as rewards.

        r(x, y≤t) = c V(y_t | x, e, y<t),   r(x, ()) = 0

    Args:
        table: the values; the other arguments are those of `VocabularyGuide`, with one network.
    """

    def __init__(self, table: ValueTable, streams: Sequence[Stream], coefficients: torch.Tensor, room: int) -> None:
        super().__init__(streams, coefficients, room)
        self._table = table
        with torch.no_grad():
            self._rows = table.rows(streams[0].backbone)

    def _law(self, backbone: Backbone, states: torch.Tensor) -> torch.Tensor:
        return self._table.features(states) @ self._rows.T

    def _at(self, backbone: Backbone, states: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return (self._table.features(states)[rows] * self._rows[tokens]).sum(-1)

    def _before(self) -> torch.Tensor:
        return torch.zeros_like(self._values)

    def _summed(self, gained: torch.Tensor) -> torch.Tensor:
        self._rewards = gained
        return gained
