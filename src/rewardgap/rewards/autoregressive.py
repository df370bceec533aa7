"""Reward models that are language models: a reward is a sum of token log-probabilities, so every token has one.

The sister of the model of heads, with the same face. Networks with adapters read the texts, a user steers them by a
soft prompt or by weights, and one forward rewards the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from rewardgap.backbones.chat import check_vocabulary
from rewardgap.backbones.lora import adapter_parameters, adapter_tensors, attach_lora, load_adapter, stamp
from rewardgap.backbones.memory import SessionPlan
from rewardgap.backbones.soft_prompts import put_first, soft_ids, with_soft_prompts
from rewardgap.backbones.traces import prefix_states
from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.records import pair_to_json, prompt_text
from rewardgap.core.seeds import child_seed
from rewardgap.core.store import content_hash, write_bytes, write_json
from rewardgap.rewards.guide import NodeRewards
from rewardgap.rewards.model import RewardModel, check_fit_settings, check_pairs
from rewardgap.rewards.prefixes import PairPrefixes
from rewardgap.rewards.states import UserState
from rewardgap.rewards.token_networks import Reference, SupportPairs, TokenNetworks, batch_loss
from rewardgap.rewards.token_rewards import Branches
from rewardgap.rewards.training import Schedule, train
from rewardgap.rewards.vocabulary_guide import Along, LogProbRewards, Stream, VocabularyGuide

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.session import TrieSession
    from rewardgap.backbones.traces import Trace, TraceCache
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.rewards.conditioning import Condition
    from rewardgap.rewards.guide import Guide
    from rewardgap.rewards.model import FitMode
    from rewardgap.rewards.token_head import TokenHead
    from rewardgap.rewards.token_networks import RatiosAlong

WEIGHT_DECAY = 0.01


@dataclass
class AutoregressiveModel(RewardModel):
    """A personalised autoregressive reward model over texts.

    A completion is scored with its end token, as a finished text. Rewards are in units of the margin's standard
    deviation on training users; `nats_weight` converts.

    Args:
        method: name in the catalogue.
        head: the method's users and objective.
        base: the frozen backbone, which is the reference too.
        fit_mode: "lora", the only one.
        limit: how long a prompt may be.
        lora: the adapters' shape.
    """

    head: TokenHead  # type: ignore[assignment]
    fit_mode: FitMode = "lora"
    networks: TokenNetworks | None = field(default=None, init=False, repr=False)
    reference: Reference = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse to be fitted on frozen features."""
        if self.fit_mode != "lora":
            raise ConfigError(f"{self.method} trains an adapter, it reads no features; leave fit_mode out.")
        self.reference = Reference(self.base)

    @property
    def name(self) -> str:
        """Return the method's name; there is one fit mode only."""
        return self.method

    @property
    def backbone(self) -> Backbone:
        """Return the first network that is read; the base before fit."""
        return self.base if self.networks is None else self.networks.adapted[0]

    @property
    def nats_weight(self) -> float:
        """Return the guidance weight at which rewards count in nats, s / β.

        At it, a relative model's guided decoding over the whole vocabulary of its own reference is π_θ itself; at α
        times it, an absolute one's is log π + α log π_r.
        """
        return self.scale / self.head.beta

    def fit(
        self,
        pairs: Sequence[PreferencePair],
        *,
        seed: int = 0,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        checkpoint: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Fit adapters, shared parameters and the training users.

        Args:
            pairs: of the training users.
            seed: decides initialisation, the order of pairs and dropout.
            epochs: passes over the pairs; the method's own unless given.
            batch_size: pairs a step; the method's own unless given. Forward passes are smaller where texts are long.
            learning_rate: of the adapters; the method's own unless given.
            checkpoint: a file in which an unfinished fit is kept, to go on from.
            progress: called with (steps done, steps in all).

        Raises:
            DataError: if there is no pair, or one does not fit the context.
            ConfigError: if a number is not positive.
        """
        if not pairs:
            raise DataError("fit needs at least 1 pair, got 0.")
        check_fit_settings(self.method, self.fit_mode, epochs, batch_size, learning_rate)
        check_pairs(self.method, pairs)
        settings = self.head.defaults.filled(epochs, batch_size, learning_rate)
        head, self.networks = self.head, None
        users = sorted({pair.user_id for pair in pairs})
        place = {user: number for number, user in enumerate(users)}
        index = torch.tensor([place[pair.user_id] for pair in pairs], device=self.base.device)
        head.build(users, self.base, seed=child_seed(seed, "head") % (1 << 31))
        rows, judged = self.training_rows(pairs, seed, settings.epochs)
        networks = self._fresh_networks(seed)
        adapters = [p for network in networks.adapted for p in adapter_parameters(network.model)]
        groups: list[dict[str, Any]] = [
            {"params": adapters, "lr": settings.learning_rate, "weight_decay": WEIGHT_DECAY}
        ]
        groups += [{**group, "weight_decay": 0.0} for group in head.parameters()]
        schedule = Schedule(settings.epochs, settings.batch_size, seed)
        loss_of, schedule = self._objective(networks, rows, index, schedule)
        networks.training(True)
        identity = [self._identity(), [pair_to_json(pair) for pair in pairs]]
        losses = train(
            loss_of,
            groups,
            len(pairs),
            schedule,
            checkpoint=checkpoint,
            identity=identity,
            progress=progress,
        )
        networks.training(False)
        for adapter in adapters:
            adapter.grad = None
        head.finish()
        for network in networks.adapted:
            stamp(network, self.base, self.lora)
        self.networks = networks
        sums = self._sums(judged, *head.conditioning.of_training(index))
        head.calibrate(torch.from_numpy(head.beta * (sums[:, 0] - sums[:, 1])), index, losses)
        return self

    def warm(self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute ahead what adapting to pairs and ranking them reads: log π_ref, where rewards are relative."""
        if self.head.relative:
            self.reference.warm([self._pair(pair) for pair in pairs], progress)

    def adapt(self, support: Sequence[PreferencePair]) -> UserState:
        """Return the state of a user who revealed these pairs; empty support is the cold start. Changes nothing.

        The order of the pairs does not matter, to the bit.
        """
        rows = sorted((self._pair(pair) for pair in support), key=lambda row: (row.prompt, row.completions))
        return self.head.adapt(SupportPairs(self.head, self._fitted(), rows, tuple(support)))

    def adapt_all(self, supports: Sequence[Sequence[PreferencePair]]) -> list[UserState]:
        """Return the states of several users, one after the other."""
        return [self.adapt(support) for support in supports]

    def rewards(
        self, prompts: Sequence[Prompt], completions: Sequence[str], states: UserState | Sequence[UserState]
    ) -> NDArray[np.float64]:
        """Return (B,) rewards of whole completions with their end tokens, in units of the reward scale.

        Args:
            prompts: B prompts.
            completions: B completions.
            states: one user's state for all, or B states.
        """
        texts = list(zip(prompts, completions, strict=True))
        users = [states] * len(texts) if isinstance(states, UserState) else list(states)
        self._check_states(len(texts), users)
        rows = [self._branches(prompt, [text], user) for (prompt, text), user in zip(texts, users, strict=True)]
        return self._scaled(rows, users)[:, 0] if rows else np.zeros(0)

    def margins(self, pairs: Sequence[PreferencePair], states: Sequence[UserState]) -> NDArray[np.float64]:
        """Return (N,) rewards of chosen minus rejected, one state a pair, in units of the reward scale."""
        if not pairs:
            return np.zeros(0)
        self._check_states(len(pairs), states)
        rows = [self._pair(pair, state) for pair, state in zip(pairs, states, strict=True)]
        rewards = self._scaled(rows, list(states))
        return rewards[:, 0] - rewards[:, 1]

    def prefix_rewards(self, prompt: Prompt, completion: str, state: UserState) -> NDArray[np.float64]:
        """Return (T + 1,) rewards of every prefix, T tokens with the end token; index 0 is the bare prompt, worth 0."""
        steps = self._token_rewards([self._branches(prompt, [completion], state)], [state])[0][0][:, 0]
        return np.concatenate([[0.0], np.cumsum(steps)])

    def pair_prefixes(self, pair: PreferencePair, state: UserState, cache: TraceCache | None = None) -> PairPrefixes:
        """Return the rewards of every prefix of both sides of a pair, end tokens among them, as running sums.

        Args:
            pair: read in one pass a network, by itself.
            state: the user's.
            cache: not used: a user's soft prompt is in every state.

        Raises:
            DataError: if the texts do not fit the context.
        """
        row = self._pair(pair, state)
        (tables,) = self._token_rewards([row], [state])
        chosen, rejected = (np.concatenate([[0.0], np.cumsum(table[:, 0])]) for table in tables)
        return PairPrefixes(row.completions[0], row.completions[1], chosen, rejected)

    def guide(
        self,
        policy: Backbone,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        states: Sequence[UserState],
        room: int,
    ) -> Guide:
        """Return rewards of candidate tokens for a batch of users, each with a soft prompt or weights of the own.

        Args:
            policy: the policy to be steered.
            prompts: B prompts, without demonstrations.
            prompt_ids: what the policy reads for each of them; the networks read their own.
            states: B user states.
            room: new tokens and candidates at most.

        Raises:
            ConfigError: if policy and reward model have different vocabularies.
            DataError: while decoding, if prompt, soft prompt and text outgrow the context.
        """
        check_vocabulary(policy, self.base)
        networks, condition = self._fitted(), self.head.condition(states)
        (own, plain), length = self.read_prompts(prompts, states), self.head.conditioning.num_user_tokens
        encoder = self.base.encoder
        streams = [
            Stream(
                with_soft_prompts(network, condition.prompts),
                [put_first(encoder, ids, soft_ids(network, row, length)) for row, ids in enumerate(own)],
            )
            for network in networks.adapted
        ]
        coefficients = condition.weights.double() / self.nats_weight
        if self.head.relative:
            streams.append(Stream(self.base, plain))
            coefficients = torch.cat([coefficients, -coefficients.sum(-1, keepdim=True)], -1)
        return self._guide(streams, coefficients, room)

    def sessions(
        self, policy: Backbone, prompts: Sequence[Prompt], prompt_ids: Sequence[Sequence[int]], room: int
    ) -> list[SessionPlan]:
        """Return a session for each network, soft prompts included; the arguments are those of `guide`."""
        own = max(map(len, self.encode_prompts(prompts)))
        soft = own + self.head.conditioning.num_user_tokens
        adapted = [SessionPlan(network, soft, room) for network in self._fitted().adapted]
        return [*adapted, *([SessionPlan(self.base, own, room)] if self.head.relative else [])]

    def node_rewards(
        self,
        session: TrieSession,
        tip_states: torch.Tensor,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        traces: Sequence[Sequence[Trace]],
        states: Sequence[UserState],
        cache: TraceCache | None = None,
    ) -> list[list[NodeRewards]]:
        """Return the rewards at every token of given completions, and at every candidate beside it.

        Candidates need no nodes: they are looked up in the log-probabilities at their prefix. End tokens have rewards
        of their own, as in the guide. The policy reads the completions too, kept traces or not: normalisers over the
        whole vocabulary need its states beside the networks'.

        Args:
            session: the policy's; left as it was.
            tip_states: (B, D) the policy's states at the prompts' ends.
            prompts: B prompts, without demonstrations.
            prompt_ids: not read.
            traces: the policy's traces of each row's completions.
            states: B user states.
            cache: not used: it keeps what all users share, and here a user's soft prompt is in every state.
        """
        check_vocabulary(session.backbone, self.base)
        rows = []
        self._check_states(len(traces), states)
        read = self.read_prompts(prompts, states)
        for prompt, ids, plain, row in zip(prompts, *read, traces, strict=True):
            longest = max((len(trace.tokens) - 1 for trace in row), default=0)
            self._check_room(prompt, max(len(ids), len(plain)), longest)
            completions = tuple(tuple(trace.tokens.tolist()) for trace in row)
            tables = tuple(np.concatenate([trace.tokens[:, None], trace.candidates], 1) for trace in row)
            rows.append(Branches(ids, completions, tables, plain))
        condition = self._condition(rows, states)
        found = self._fitted().ratios_along(rows, *condition)
        policy = prefix_states(session, tip_states, traces)
        return [
            [self._nodes(along, Along(session.backbone, own)) for along, own in zip(row, row_states, strict=True)]
            for row, row_states in zip(found, policy, strict=True)
        ]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """Return the ids of prompts, soft prompts left out but their room kept."""
        longest = self.limit.max_tokens or self.base.context - self.head.conditioning.num_user_tokens
        encoder = self.base.encoder
        return [encoder.encode_prompt(p, max_tokens=longest, on_long=self.limit.on_long) for p in prompts]

    def read_prompts(
        self, prompts: Sequence[Prompt], states: Sequence[UserState | None]
    ) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Return the ids of prompts as the networks read them for users, and as the reference does: here the same.

        Args:
            prompts: B prompts.
            states: B user states; None for what everybody's is made of.
        """
        ids = self.encode_prompts(prompts)
        return ids, ids

    def training_rows(
        self, pairs: Sequence[PreferencePair], seed: int, epochs: int
    ) -> tuple[list[Branches], list[Branches]]:
        """Return the training pairs as they are trained on, and as they are ranked when that is over."""
        rows = [self._pair(pair) for pair in pairs]
        return rows, rows

    def pair_features(
        self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Refuse: there are no features. `warm` computes ahead what can be.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.method} reads tokens, it has no features; call warm, rewards or margins.")

    def save(self, folder: str | Path) -> None:
        """Write the model: `model.json` (settings), `head.safetensors`, and `adapter.safetensors` of all networks."""
        from safetensors.torch import save

        folder, networks = Path(folder), self._fitted()
        write_bytes(folder / "head.safetensors", save(self.head.state_dict()))
        adapters = {
            f"{number}.{name}": tensor
            for number, network in enumerate(networks.adapted)
            for name, tensor in adapter_tensors(network.model).items()
        }
        write_bytes(folder / "adapter.safetensors", save(adapters))
        write_json(folder / "model.json", self.facts())

    def restore(self, head: Mapping[str, torch.Tensor], adapters: Mapping[str, torch.Tensor]) -> Self:
        """Take over the tensors that `save` wrote.

        Raises:
            ConfigError: if the head's tensors are another method's or of another size.
            ModelError: if the adapters were made for another backbone.
        """
        self.head.load_state_dict(head, self.base)
        networks = self._fresh_networks(0)
        strange = [name for name in adapters if name.split(".")[0] not in map(str, range(len(networks.adapted)))]
        if strange:
            raise ModelError(f"adapter tensor {strange[0]} belongs to none of {len(networks.adapted)} networks.")
        for number, network in enumerate(networks.adapted):
            own = {n.split(".", 1)[1]: t for n, t in adapters.items() if n.startswith(f"{number}.")}
            load_adapter(network.model, own)
            stamp(network, self.base, self.lora)
        self.networks = networks
        return self

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the rewards."""
        sums = {name: content_hash(tensor.flatten().tolist()) for name, tensor in self.head.state_dict().items()}
        return content_hash([self._identity(), sums, [network.fingerprint for network in self._fitted().adapted]])

    def _identity(self) -> list[Any]:
        settings = [asdict(self.lora), self.limit.max_tokens, self.limit.on_long]
        return [self.method, self.head.config(), self.base.fingerprint, *settings]

    def _fresh_networks(self, seed: int) -> TokenNetworks:
        seeds = [child_seed(seed, "adapter", n) % (1 << 31) for n in range(self.head.conditioning.num_networks)]
        adapted = tuple(attach_lora(self.base, self.lora, own) for own in seeds)
        return self._networks(adapted)

    def _networks(self, adapted: tuple[Backbone, ...]) -> TokenNetworks:
        return TokenNetworks(adapted, self.reference if self.head.relative else None)

    def _objective(
        self, networks: TokenNetworks, rows: Sequence[Branches], index: torch.Tensor, schedule: Schedule
    ) -> tuple[Callable[[list[int]], torch.Tensor], Schedule]:
        """Return the loss of a batch of training rows, and when which of them are read."""

        def loss_of(batch: list[int]) -> torch.Tensor:
            return batch_loss(self.head, networks, [rows[row] for row in batch], index[batch])

        return loss_of, schedule

    def _guide(self, streams: Sequence[Stream], coefficients: torch.Tensor, room: int) -> VocabularyGuide:
        return VocabularyGuide(streams, coefficients, room)

    def _fitted(self) -> TokenNetworks:
        if self.networks is None:
            raise ConfigError(f"{self.method} is not fitted; call fit, or load a fitted model.")
        return self.networks

    def _branches(self, prompt: Prompt, completions: Sequence[str], state: UserState | None = None) -> Branches:
        """Return the ids of a prompt, read for a user, and of completions of it, each with its end token."""
        encoder = self.base.encoder
        (ids,), (plain,) = self.read_prompts([prompt], [state])
        tails = [encoder.encode_completion(text, after=prompt) for text in completions]
        self._check_room(prompt, max(len(ids), len(plain)), max(map(len, tails)))
        return Branches(ids, tuple((*tail, encoder.end_id) for tail in tails), plain=plain)

    def _check_room(self, prompt: Prompt, length: int, longest: int) -> None:
        """Refuse a prompt and a completion, without its end token, that are too long together."""
        room = self.head.conditioning.num_user_tokens
        if length + room + longest > self.base.context:
            raise DataError(
                f"prompt of {length} tokens, soft prompt of {room} and completion of {longest} are longer than the "
                f"{self.base.context} that {self.base.name} reads: '{prompt_text(prompt)[:60]}'. Lower "
                "max_prompt_tokens, or shorten the completion."
            )

    def _pair(self, pair: PreferencePair, state: UserState | None = None) -> Branches:
        return self._branches(pair.prompt, [pair.chosen, pair.rejected], state)

    def _check_states(self, count: int, states: Sequence[UserState]) -> None:
        if len(states) != count:
            raise ConfigError(f"{len(states)} user states for {count} texts; give one state a text.")

    def _token_rewards(self, rows: Sequence[Branches], states: Sequence[UserState]) -> list[list[NDArray[np.float64]]]:
        """Return (T, C) rewards of the ids to look up along each row's completions, in units of the scale."""
        ratios = self._fitted().log_ratios(rows, *self._condition(rows, states))
        return [[table / self.nats_weight for table in tables] for tables in ratios]

    def _condition(self, rows: Sequence[Branches], states: Sequence[UserState]) -> Condition:
        self._check_states(len(rows), states)
        return self.head.condition(states)

    def _nodes(self, along: RatiosAlong, policy: Along) -> NodeRewards:
        """Turn (T, 1 + K) log-ratios, the scored token's first, into running sums of rewards."""
        table = along.table / self.nats_weight
        prefixes = np.concatenate([[0.0], np.cumsum(table[:, 0])])
        terms = tuple((weight / self.nats_weight, network) for weight, network in along.terms)
        return NodeRewards(prefixes, prefixes[:-1, None] + table[:, 1:], LogProbRewards(policy, terms))

    def _scaled(self, rows: Sequence[Branches], states: Sequence[UserState]) -> NDArray[np.float64]:
        tables = self._token_rewards(rows, states)
        return np.array([[float(table.sum()) for table in row] for row in tables])

    def _sums(self, rows: Sequence[Branches], prompts: torch.Tensor, weights: torch.Tensor) -> NDArray[np.float64]:
        tables = self._fitted().log_ratios(rows, prompts, weights)
        return np.array([[float(table.sum()) for table in row] for row in tables])
