"""The networks behind an autoregressive reward: log-ratios of pairs for training, of any token for everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.rewards.conditioning import Condition
from rewardgap.rewards.token_rewards import forward_batches, look_up, read_trees
from rewardgap.rewards.vocabulary_guide import Along

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import PreferencePair
    from rewardgap.rewards.token_head import TokenHead
    from rewardgap.rewards.token_rewards import Branches, ReadTrees

    _Key: TypeAlias = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]


@dataclass
class Reference:
    """Log π_ref of completions, each computed once and kept in memory: no training changes them.

    Every row is read by itself, so that its bits never depend on the company in which it was first asked for.

    Attributes:
        base: the frozen backbone, without adapter and without soft prompts.
    """

    base: Backbone
    _kept: dict[_Key, list[NDArray[np.float64]]] = field(default_factory=dict, repr=False)

    def warm(self, rows: Sequence[Branches], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute what is not there yet.

        Args:
            rows: prompts with completions.
            progress: called with (completions done, completions to compute).
        """
        missing = {_key(row): row for row in rows if _key(row) not in self._kept}
        total, done = sum(len(row.completions) for row in missing.values()), 0
        for key, row in missing.items():
            self._kept[key] = self._read(row)
            done += len(row.completions)
            if progress is not None:
                progress(done, total)

    def tables(self, rows: Sequence[Branches]) -> list[list[NDArray[np.float64]]]:
        """Return (T, C) log π_ref of the ids to look up; those beside the completions are not kept."""
        self.warm([row for row in rows if row.tables is None])
        return [self._kept[_key(row)] if row.tables is None else self._read(row) for row in rows]

    @torch.no_grad()
    def read(self, row: Branches) -> tuple[list[NDArray[np.float64]], ReadTrees]:
        """Return (T, C) log π_ref of the ids to look up along each completion, and what was read for it."""
        row = row.for_reference()
        trees = read_trees(self.base, [row])
        return [table.double().cpu().numpy() for table in look_up(self.base, [row], trees)[0]], trees

    def _read(self, row: Branches) -> list[NDArray[np.float64]]:
        return self.read(row)[0]


def _key(row: Branches) -> _Key:
    own = row.for_reference()
    return own.prompt, own.completions


class RatiosAlong(NamedTuple):
    """Log-ratios along one completion.

    Attributes:
        table: (T, C) of the ids to look up, nats.
        terms: the weight of each network, the reference's -1 the last, with its states: all that the log-ratio of any
            token is made of.
    """

    table: NDArray[np.float64]
    terms: tuple[tuple[float, Along], ...]


@dataclass
class TokenNetworks:
    """The J trained networks, and the reference that is taken off.

    Attributes:
        adapted: the networks, over the base's own weights.
        reference: None where rewards are absolute.
    """

    adapted: tuple[Backbone, ...]
    reference: Reference | None

    def training(self, mode: bool) -> None:
        """Turn dropout on or off."""
        for network in self.adapted:
            network.model.train(mode)

    def look_up(self, network: Backbone, batch: Sequence[Branches], trees: ReadTrees) -> list[list[torch.Tensor]]:
        """Return what a network says of the ids to look up: their log-probabilities."""
        return look_up(network, batch, trees)

    def pair_ratios(self, pairs: Sequence[Branches], prompts: torch.Tensor) -> torch.Tensor:
        """Return each network's log-ratio of pairs, with gradient.

            Σ_t log π_j(y+_t) - Σ_t log π_j(y-_t)  [ - the same of π_ref ]

        Args:
            pairs: B pairs, chosen before rejected.
            prompts: (B, T_u, D) soft prompts.

        Returns:
            (B, J) nats.
        """
        out = []
        for network in self.adapted:
            found = self.look_up(network, pairs, read_trees(network, pairs, prompts))
            out.append(torch.stack([chosen.sum() - rejected.sum() for chosen, rejected in found]))
        ratios = torch.stack(out, -1)
        if self.reference is None:
            return ratios
        taken = [chosen.sum() - rejected.sum() for chosen, rejected in self.reference.tables(pairs)]
        return ratios - torch.tensor(taken, dtype=torch.float64).to(ratios)[:, None]

    @torch.no_grad()
    def log_ratios(
        self, batch: Sequence[Branches], prompts: torch.Tensor, weights: torch.Tensor
    ) -> list[list[NDArray[np.float64]]]:
        """Return the log-ratios of the ids to look up, without gradient.

            ρ(v) = Σ_j w_j log π_j(v | x, e, y<t)  [ - log π_ref(v | x, y<t) ]

        Args:
            batch: B prompts with their completions.
            prompts: (B, T_u, D) soft prompts.
            weights: (B, J) of the networks.

        Returns:
            For each row, for each completion, (T, C) nats.
        """
        out: list[list[NDArray[np.float64]]] = [[] for _ in batch]
        for items in forward_batches([row.size + prompts.shape[1] for row in batch]):
            rows, shares = [batch[item] for item in items], weights[items].double().cpu()
            read = [read_trees(network, rows, prompts[items]) for network in self.adapted]
            found = [self.look_up(network, rows, trees) for network, trees in zip(self.adapted, read, strict=True)]
            taken = None if self.reference is None else self.reference.tables(rows)
            for place, item in enumerate(items):
                for number in range(len(rows[place].completions)):
                    ratios = _shared([values[place][number] for values in found], shares[place])
                    out[item].append(ratios if taken is None else ratios - taken[place][number])
        return out

    @torch.no_grad()
    def ratios_along(
        self, batch: Sequence[Branches], prompts: torch.Tensor, weights: torch.Tensor
    ) -> list[list[RatiosAlong]]:
        """Return the log-ratios of the ids to look up, and what those of any other token are made of.

        The arguments are those of `log_ratios`.
        """
        out: list[list[RatiosAlong]] = [[] for _ in batch]
        for items in forward_batches([row.size + prompts.shape[1] for row in batch]):
            rows, shares = [batch[item] for item in items], weights[items].double().cpu()
            read = [read_trees(network, rows, prompts[items]) for network in self.adapted]
            found = [self.look_up(network, rows, trees) for network, trees in zip(self.adapted, read, strict=True)]
            for place, item in enumerate(items):
                own = None if self.reference is None else self.reference.read(rows[place])
                for number in range(len(rows[place].completions)):
                    table = _shared([values[place][number] for values in found], shares[place])
                    terms = [
                        (share, Along(network, trees.along(place, number)))
                        for share, network, trees in zip(shares[place].tolist(), self.adapted, read, strict=True)
                    ]
                    if self.reference is not None and own is not None:
                        table = table - own[0][number]
                        terms.append((-1.0, Along(self.reference.base, own[1].along(0, number))))
                    out[item].append(RatiosAlong(table, tuple(terms)))
        return out


def _shared(values: Sequence[torch.Tensor], shares: torch.Tensor) -> NDArray[np.float64]:
    """Return Σ_j w_j of (T, C) log-probabilities a network."""
    each = torch.stack([value.double().cpu() for value in values], -1)
    found: NDArray[np.float64] = (each @ shares).numpy()
    return found


def batch_loss(
    head: TokenHead,
    networks: TokenNetworks,
    pairs: Sequence[Branches],
    user_index: torch.Tensor,
    losses_of: Callable[[Sequence[Branches], Condition], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the mean loss of a batch of training pairs with its pull, in nats a pair.

    Args:
        head: holds users and objective.
        networks: what is trained.
        pairs: B pairs.
        user_index: (B,) their users.
        losses_of: the (N,) losses of pairs under a condition; the Bradley-Terry loss unless given.
    """
    count = len(pairs)

    def preferences(rows: Sequence[Branches], condition: Condition) -> torch.Tensor:
        return pair_loss(head.margins(networks.pair_ratios(rows, condition.prompts), condition))

    each = losses_of or preferences

    def part(items: list[int]) -> torch.Tensor:
        own, users = [pairs[item] for item in items], user_index[items]
        condition = head.conditioning.of_training(users)
        if head.mixes_generic:
            nobody = head.conditioning.generic(len(own))
            both = Condition(*(torch.cat(parts) for parts in zip(condition, nobody, strict=True)))
            losses = each([*own, *own], both)
            losses = head.alpha * losses[: len(own)] + (1 - head.alpha) * losses[len(own) :]
        else:
            losses = each(own, condition)
        return (losses.sum() + len(own) * head.conditioning.penalty(users)) / count

    copies = 2 if head.mixes_generic else 1
    parts = forward_batches([copies * (pair.size + head.conditioning.num_user_tokens) for pair in pairs])
    if len(parts) == 1:
        return part(parts[0])
    trained = [p for network in networks.adapted for p in network.model.parameters() if p.requires_grad]
    own_tensors = [p for group in head.parameters() for p in group["params"]]
    return accumulated([partial(part, items) for items in parts], [*trained, *own_tensors])


def accumulated(parts: Iterable[Callable[[], torch.Tensor]], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of losses whose graphs are never there together.

    Each part is differentiated by itself, and the sum carries those gradients:  Σ value + Σ_p ∇_p · (p - p̄),  p̄ the
    value of p, constant.

    Args:
        parts: functions that return one loss each.
        parameters: what the sum is differentiable in.
    """
    total, slopes = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    for part in parts:
        loss = part()
        found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        slopes = [slope if new is None else slope + new for slope, new in zip(slopes, found, strict=True)]
        total += float(loss.detach())
    linear = [((p - p.detach()) * slope).sum() for p, slope in zip(parameters, slopes, strict=True)]
    return torch.stack([term.to(linear[0]) for term in linear]).sum() + total


@dataclass(frozen=True)
class SupportPairs:
    """A new user's support pairs under fitted networks.

    Attributes:
        head: holds the objective.
        networks: in evaluation mode; nothing of them is changed, no gradient is left on them.
        pairs: chosen before rejected.
        records: the pairs as texts, in the order they were given in.
    """

    head: TokenHead
    networks: TokenNetworks
    pairs: Sequence[Branches]
    records: Sequence[PreferencePair] = ()

    def __len__(self) -> int:
        """Return n."""
        return len(self.pairs)

    @torch.no_grad()
    def margins(self) -> torch.Tensor:
        """Return the (n, J) margins under each network without a soft prompt, in logits."""
        found = []
        for items in self._batches(0):
            width = self.networks.adapted[0].width
            prompts = torch.zeros(len(items), 0, width, device=self.networks.adapted[0].device)
            found.append(self.networks.pair_ratios([self.pairs[item] for item in items], prompts))
        return self.head.beta * _in_order(torch.cat(found), self._batches(0))

    def slope(self, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (n,) margins under a soft prompt (T_u, D), and the gradient of their mean pair loss in it."""
        leaf = prompt.detach().requires_grad_()
        found, slope = [], torch.zeros_like(leaf)
        for items in self._batches(len(leaf)):
            with torch.enable_grad():
                rows = [self.pairs[item] for item in items]
                ratios = self.networks.pair_ratios(rows, leaf.expand(len(rows), *leaf.shape))
                margins = self.head.beta * ratios[:, 0]
                (part,) = torch.autograd.grad(pair_loss(margins).sum() / len(self.pairs), leaf)
            slope += part
            found.append(margins.detach())
        return _in_order(torch.cat(found), self._batches(len(leaf))), slope

    def _batches(self, num_user_tokens: int) -> list[list[int]]:
        return forward_batches([pair.size + num_user_tokens for pair in self.pairs])


def _in_order(values: torch.Tensor, batches: Sequence[Sequence[int]]) -> torch.Tensor:
    """Undo `forward_batches` for values a row an item."""
    return values[torch.tensor([item for batch in batches for item in batch], device=values.device).argsort()]
