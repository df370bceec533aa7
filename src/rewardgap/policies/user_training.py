"""Training an adapter on what one user wrote: by likelihood, then by DPO against draws of the base."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from rewardgap.backbones.lora import LoraSettings
from rewardgap.backbones.session import TrieSession
from rewardgap.core.errors import ConfigError
from rewardgap.core.seeds import child_seed
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.decoding.plain import Sample
from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.rewards.base import meaning
from rewardgap.rewards.fitting import check_count, check_positive
from rewardgap.rewards.joint import WEIGHT_DECAY
from rewardgap.rewards.token_networks import accumulated
from rewardgap.rewards.token_rewards import Branches, forward_batches, token_log_probs
from rewardgap.rewards.training import Schedule, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.row_adapters import AdapterHost

PROMPTS_PER_BATCH = 8
"""Prompts whose draws are decoded together; a prompt's draws share its keys and values until they part."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a user's adapter is trained.

    Raises:
        ConfigError: if a value is out of range.
    """

    sft_steps: int = field(
        default=60, metadata=meaning("steps of supervised training, rounded to whole passes over the user's texts")
    )
    learning_rate: float = field(default=1e-4, metadata=meaning("of supervised training"))
    batch_size: int = field(default=4, metadata=meaning("texts a step, in both stages"))
    dpo_epochs: int = field(default=1, metadata=meaning("passes of DPO over the user's texts; 0 leaves it out"))
    dpo_rate: float = field(default=5e-6, metadata=meaning("learning rate of DPO"))
    beta: float = field(default=0.01, metadata=meaning("β of DPO"))
    num_samples: int = field(
        default=3, metadata=meaning("draws of the base for each text, of which the lowest reward is rejected")
    )
    alpha: float = field(
        default=0.1, metadata=meaning("α, weight of the base in the implicit reward log π_u - α log π_base")
    )
    lora_rank: int = field(default=8, metadata=meaning("rank of a user's adapter"))
    lora_alpha: int = field(default=8, metadata=meaning("the adapter's update is scaled by lora_alpha / lora_rank"))
    dropout: float = field(default=0.05, metadata=meaning("on the adapter's input while training"))

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        name = "cope"
        check_count(name, sft_steps=self.sft_steps, batch_size=self.batch_size, num_samples=self.num_samples)
        check_count(name, lora_rank=self.lora_rank, lora_alpha=self.lora_alpha)
        check_positive(name, learning_rate=self.learning_rate, dpo_rate=self.dpo_rate, beta=self.beta)
        if isinstance(self.dpo_epochs, bool) or not isinstance(self.dpo_epochs, int) or self.dpo_epochs < 0:
            raise ConfigError(f"{name}: dpo_epochs is {self.dpo_epochs!r}; expected an integer of at least 0.")
        if not is_number(self.alpha) or not 0 <= self.alpha < math.inf:
            raise ConfigError(f"{name}: alpha is {self.alpha!r}; expected a finite number of at least 0.")
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ConfigError(f"{name}: dropout is {self.dropout!r}; expected a number of at least 0 and below 1.")

    @property
    def lora(self) -> LoraSettings:
        """Return the adapters' shape."""
        return LoraSettings(self.lora_rank, self.lora_alpha, self.dropout)


@dataclass(frozen=True, order=True)
class OwnText:
    """A text that a user wrote.

    Attributes:
        prompt: ids of the prompt.
        completion: (T,) ids of the text, its end token the last.
        example_id: its name, for seeds.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    example_id: str


@dataclass(frozen=True)
class UserTrainer:
    """Trains adapters, one user at a time: each from the seed, the user's id and the user's own texts alone.

        1.  min  -mean_t log π_u(y_t | x, y<t)                           over the tokens of the user's texts
        2.  min  mean softplus(-β [(log π_u(y)  - log π_u(y'))  - (log π_1(y)  - log π_1(y'))])
            y' = the draw of π_base with the lowest r(y') = log π_u(y' | x) - α log π_base(y' | x)

    π_1 is the policy after stage 1, which picks y' too. Sums run over a text's own tokens with its end token; the
    prompt's are in no loss. A draw counts as drawn: one that no end token closed has none.

    Args:
        host: the network that takes an adapter a row.
        settings: numbers.
        stop: when draws end.
        seed: of everything that is drawn.

    Source: CoPe, arXiv 2506.12109: a user's adapter, and its refinement against draws chosen by the implicit reward;
        DPO, arXiv 2305.18290, equation 7. Peer: cleverscent/CoPe.
    """

    host: AdapterHost
    settings: TrainingSettings
    stop: StopRule
    seed: int

    def train(self, user_id: str, texts: Sequence[OwnText]) -> torch.Tensor:
        """Return a user's adapter (P,); the order of the texts does not matter, to the bit.

        Without texts it is a fresh one, under which the policy is the base.

        Raises:
            DataError: if a loss is not finite.
        """
        begin = self.host.fresh(self._seed(user_id, "start"))
        if not texts:
            return begin
        texts = sorted(texts)
        adapter = begin[None].to(self.host.base.device).requires_grad_()
        self.supervise(adapter, texts, self._seed(user_id, "supervised"))
        if self.settings.dpo_epochs:
            self.prefer(adapter, self.rejections(user_id, adapter.detach(), texts), self._seed(user_id, "dpo"))
        return adapter.detach()[0].cpu()

    def supervise(self, adapter: torch.Tensor, texts: Sequence[OwnText], seed: int) -> None:
        """Train an adapter (1, P) in place on the likelihood of texts."""
        rows = [Branches(text.prompt, (text.completion,)) for text in texts]
        epochs = max(1, round(self.settings.sft_steps / math.ceil(len(rows) / self.settings.batch_size)))

        def loss_of(batch: list[int]) -> torch.Tensor:
            count = sum(len(rows[row].completions[0]) for row in batch)
            return self._in_parts(
                adapter, rows, batch, lambda network, part: supervised_loss(network, [rows[row] for row in part], count)
            )

        self._train(loss_of, adapter, len(rows), epochs, self.settings.learning_rate, seed)

    def prefer(self, adapter: torch.Tensor, pairs: Sequence[Branches], seed: int) -> None:
        """Train an adapter (1, P) in place by DPO on pairs, chosen before rejected; its start is the reference."""
        with torch.no_grad():
            reference = torch.cat([log_ratios(self.host.rows(adapter), [pair]) for pair in pairs])

        def loss_of(batch: list[int]) -> torch.Tensor:
            def part(network: Backbone, rows: list[int]) -> torch.Tensor:
                ratios = log_ratios(network, [pairs[row] for row in rows])
                return dpo_losses(ratios, reference[rows], self.settings.beta).sum() / len(batch)

            return self._in_parts(adapter, pairs, batch, part)

        self._train(loss_of, adapter, len(pairs), self.settings.dpo_epochs, self.settings.dpo_rate, seed)

    def rejections(self, user_id: str, adapter: torch.Tensor, texts: Sequence[OwnText]) -> list[Branches]:
        """Return each text with the draw of the base that is least the user's, under an adapter (1, P)."""
        drawn = self.draw(user_id, texts)
        rows = [Branches(text.prompt, draws) for text, draws in zip(texts, drawn, strict=True)]
        rewards = self.implicit_rewards(adapter, rows)
        lowest = [min(range(len(values)), key=values.__getitem__) for values in rewards]
        return [
            Branches(text.prompt, (text.completion, draws[worst]))
            for text, draws, worst in zip(texts, drawn, lowest, strict=True)
        ]

    def draw(self, user_id: str, texts: Sequence[OwnText]) -> list[tuple[tuple[int, ...], ...]]:
        """Return draws of the base for the prompt of each text: ids as drawn, with the end token where one came."""
        base, count = self.host.base, self.settings.num_samples
        out: list[tuple[tuple[int, ...], ...]] = []
        for begin in range(0, len(texts), PROMPTS_PER_BATCH):
            batch = texts[begin : begin + PROMPTS_PER_BATCH]
            room = max(len(text.prompt) for text in batch) + self.stop.max_new_tokens + 2
            session = TrieSession(base, len(batch), room)
            tips = session.prefill([text.prompt for text in batch])
            copies = [row for row in range(len(batch)) for _ in range(count)]
            session.select(copies)
            seeds = [self._seed(user_id, "draw", text.example_id, n) for text in batch for n in range(count)]
            decoded = decode(session, tips[copies], Sample(), self.stop, seeds=seeds)
            ids = [self._closed(row.ids, row.ended) for row in decoded]
            out += [tuple(ids[place : place + count]) for place in range(0, len(ids), count)]
        return out

    @torch.no_grad()
    def implicit_rewards(self, adapter: torch.Tensor, rows: Sequence[Branches]) -> list[list[float]]:
        """Return log π_u - α log π_base of whole completions, in nats, under an adapter (1, P)."""
        out: list[list[float]] = [[] for _ in rows]
        for items in forward_batches([row.size for row in rows]):
            batch = [rows[item] for item in items]
            own, base = (token_log_probs(net, batch) for net in (self.host.rows(adapter), self.host.base))
            for place, item in enumerate(items):
                sides = zip(own[place], base[place], strict=True)
                out[item] = [float(u.double().sum() - self.settings.alpha * b.double().sum()) for u, b in sides]
        return out

    def _closed(self, ids: Sequence[int], ended: bool) -> tuple[int, ...]:
        by_stop_token = bool(ids) and ids[-1] in self.stop.stop_ids
        return (*ids, self.host.base.encoder.end_id) if ended and not by_stop_token else tuple(ids)

    def _seed(self, *names: str | int) -> int:
        return child_seed(self.seed, "cope", *names) % (1 << 31)

    def _in_parts(
        self,
        adapter: torch.Tensor,
        rows: Sequence[Branches],
        batch: list[int],
        loss: Callable[[Backbone, list[int]], torch.Tensor],
    ) -> torch.Tensor:
        """Return the sum of the losses of forward passes of a size that memory allows."""

        def part(items: list[int]) -> torch.Tensor:
            return loss(self.host.rows(adapter), [batch[item] for item in items])

        parts = forward_batches([rows[row].size for row in batch])
        return part(parts[0]) if len(parts) == 1 else accumulated([partial(part, p) for p in parts], [adapter])

    def _train(
        self,
        loss_of: Callable[[list[int]], torch.Tensor],
        adapter: torch.Tensor,
        count: int,
        epochs: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        group = {"params": [adapter], "lr": learning_rate, "weight_decay": WEIGHT_DECAY}
        schedule = Schedule(epochs, min(self.settings.batch_size, count), seed)
        self.host.model.train()
        try:
            train(loss_of, [group], count, schedule)
        finally:
            self.host.model.eval()


def is_number(value: object) -> bool:
    """Return whether a setting is a number at all; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def supervised_loss(network: Backbone, rows: Sequence[Branches], num_tokens: int) -> torch.Tensor:
    """Return the negative log-likelihood of completions a token, in nats.

        -Σ_{rows} Σ_t log π(y_t | x, y<t) / num_tokens

    Args:
        network: π.
        rows: prompts with completions; the prompts' tokens do not count.
        num_tokens: scored tokens of the whole batch, of which these rows may be a part.
    """
    found = token_log_probs(network, rows)
    return -torch.stack([values.sum() for row in found for values in row]).sum() / num_tokens


def log_ratios(network: Backbone, pairs: Sequence[Branches]) -> torch.Tensor:
    """Return (N,) log π(chosen | x) - log π(rejected | x), in nats."""
    return torch.stack([chosen.sum() - rejected.sum() for chosen, rejected in token_log_probs(network, pairs)])


def dpo_losses(ratios: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """Return DPO's loss of each pair.

        softplus(-β [(log π(y+) - log π(y-)) - (log π_ref(y+) - log π_ref(y-))])

    Args:
        ratios: (N,) log-ratios under the policy that is trained.
        reference: (N,) log-ratios under the reference.
        beta: β > 0.

    Returns:
        (N,) nats; log 2 where the two agree.

    Source: arXiv 2305.18290, equation 7.
    """
    return pair_loss(beta * (ratios - reference))
