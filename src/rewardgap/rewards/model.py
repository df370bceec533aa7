"""The reward model people use: texts in, rewards out. A backbone makes features, a head reads them for a user."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
import torch

from rewardgap.backbones.chat import same_tokens
from rewardgap.backbones.features import FeatureCache, Item, PromptLimit, encode_texts
from rewardgap.backbones.lora import LoraSettings, adapter_tensors, attach_lora, stamp
from rewardgap.backbones.memory import SessionPlan
from rewardgap.backbones.traces import node_states
from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.store import content_hash, write_bytes, write_json
from rewardgap.rewards.fitting import check_count, check_positive
from rewardgap.rewards.guide import BackboneGuide, NodeRewards, PolicyStateGuide, close_ends
from rewardgap.rewards.prefixes import PairPrefixes, states_along
from rewardgap.rewards.reading import reading_of
from rewardgap.rewards.text_guide import READ_PER_TOKEN, TextGuide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.session import TrieSession
    from rewardgap.backbones.traces import NodeStates, Trace, TraceCache
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.rewards.base import Head
    from rewardgap.rewards.guide import Guide
    from rewardgap.rewards.joint import Tokens
    from rewardgap.rewards.reading import Reading
    from rewardgap.rewards.states import UserState

FitMode: TypeAlias = Literal["frozen", "lora"]
FORMAT = 1


@dataclass
class RewardModel:
    """A personalised reward model over texts.

    Rewards are in units of the margin's standard deviation on training users, so a guidance weight means the same for
    every method.

    Args:
        method: name in the catalogue.
        head: the method's head.
        base: the frozen backbone.
        fit_mode: "frozen" reads features of the base; "lora" trains an adapter on it together with the head.
        limit: how long a prompt may be.
        features: the cache.
        lora: the adapter's shape, for fit_mode "lora".
    """

    method: str
    head: Head
    base: Backbone
    fit_mode: FitMode = "frozen"
    limit: PromptLimit = field(default_factory=PromptLimit)
    features: FeatureCache = field(default_factory=FeatureCache)
    lora: LoraSettings = field(default_factory=LoraSettings)
    adapted: Backbone | None = None
    _told: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse unknown fit modes."""
        if self.fit_mode not in ("frozen", "lora"):
            raise ConfigError(f"unknown fit_mode '{self.fit_mode}'. Known: frozen, lora.")

    @property
    def name(self) -> str:
        """Return the method's name, with the fit mode where it is not the frozen one."""
        return self.method if self.fit_mode == "frozen" else f"{self.method}+lora"

    @property
    def backbone(self) -> Backbone:
        """Return the network that features are read from."""
        return self.base if self.adapted is None else self.adapted

    @property
    def users(self) -> tuple[str, ...]:
        """Return the training users, sorted."""
        return self.head.users

    @property
    def diagnostics(self) -> dict[str, float]:
        """Return loss, accuracy, mean margin and reward scale on the training pairs, and what the method adds."""
        return self.head.diagnostics

    @property
    def scale(self) -> float:
        """Return the unit of rewards: the standard deviation of r(chosen) - r(rejected) on the training pairs."""
        return self.head.reward_scale

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
        """Fit shared parameters and the states of the training users.

        Args:
            pairs: of the training users.
            seed: decides initialisation and, with an adapter, the order of pairs.
            epochs: passes over the pairs, with an adapter; the method's own unless given.
            batch_size: pairs a step, with an adapter; the method's own unless given.
            learning_rate: of the adapter; the method's own unless given.
            checkpoint: a file in which an unfinished fit is kept, to go on from; fit_mode "lora" only.
            progress: called with (done, total).

        Raises:
            DataError: if there is no pair.
            ConfigError: if a number is not positive, or given where there is no adapter.
        """
        if not pairs:
            raise DataError("fit needs at least 1 pair, got 0.")
        check_fit_settings(self.method, self.fit_mode, epochs, batch_size, learning_rate)
        check_pairs(self.method, pairs)
        users = [pair.user_id for pair in pairs]
        if self.fit_mode == "frozen":
            chosen, rejected = self.pair_features(pairs, progress)
            self.head.fit(chosen, rejected, users, seed=seed)
            return self
        from rewardgap.rewards.joint import fit_joint
        from rewardgap.rewards.training import Schedule

        settings = self.head.defaults.filled(epochs, batch_size, learning_rate)
        self.adapted = None
        adapted = attach_lora(self.base, self.lora, seed)
        chosen, rejected = self.pair_features(pairs)
        fit_joint(
            self.head,
            adapted,
            pairs,
            initial=(chosen, rejected),
            states_of=self.training_states,
            tokens_of=self.training_tokens,
            identity=vars_of(self.limit),
            schedule=Schedule(settings.epochs, settings.batch_size, seed),
            learning_rate=settings.learning_rate,
            checkpoint=checkpoint,
            progress=progress,
        )
        stamp(adapted, self.base, self.lora)
        self.adapted = adapted
        return self

    def adapt(self, support: Sequence[PreferencePair]) -> UserState:
        """Return the state of a user who revealed these pairs; empty support is the cold start. Changes nothing."""
        return self.head.adapt(*self.support_features(support))

    def adapt_all(self, supports: Sequence[Sequence[PreferencePair]]) -> list[UserState]:
        """Return the states of several users, with their texts encoded in one go."""
        self.support_features([pair for support in supports for pair in support])
        return [self.adapt(support) for support in supports]

    def support_features(self, pairs: Sequence[PreferencePair]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (N, D) features of support pairs, read where the head learnt to read users from."""
        own = replace(self, adapted=None) if self.head.adapts_on_base else self
        return own.pair_features(pairs)

    def state_of(self, user_id: str) -> UserState:
        """Return a training user's own state."""
        return self.head.state_of(user_id)

    def rewards(
        self, prompts: Sequence[Prompt], completions: Sequence[str], states: UserState | Sequence[UserState]
    ) -> NDArray[np.float64]:
        """Return (B,) rewards of whole completions, in units of the reward scale.

        Args:
            prompts: B prompts.
            completions: B completions.
            states: one user's state for all, or B states.
        """
        items = [Item(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        return self._read(torch.from_numpy(self.features_of(items)), states)

    def margins(self, pairs: Sequence[PreferencePair], states: Sequence[UserState]) -> NDArray[np.float64]:
        """Return (N,) rewards of chosen minus rejected, one state a pair, in units of the reward scale."""
        chosen, rejected = self.pair_features(pairs)
        return self._read(torch.from_numpy(chosen), states) - self._read(torch.from_numpy(rejected), states)

    def prefix_rewards(self, prompt: Prompt, completion: str, state: UserState) -> NDArray[np.float64]:
        """Return (T + 1,) rewards of every prefix of a completion's T tokens; index 0 is the bare prompt."""
        from rewardgap.backbones.session import tree_states
        from rewardgap.backbones.trie import chain

        ids = self.encode_prompts([prompt])[0]
        tail = self.backbone.encoder.encode_completion(completion, after=prompt)
        with torch.no_grad():
            states = tree_states(self.backbone, [chain((*ids, *tail), -1, 0)])[0, len(ids) - 1 :]
        return self._read(states.cpu(), [state] * (len(tail) + 1))

    def pair_prefixes(self, pair: PreferencePair, state: UserState, cache: TraceCache | None = None) -> PairPrefixes:
        """Return the rewards of every prefix of both sides of a pair.

        Args:
            pair: read in one pass, by itself: the company of other pairs decides no bit.
            state: the user's.
            cache: where states are kept, for the other heads on the same frozen backbone.

        Raises:
            DataError: if the texts do not fit the context.
        """
        ids, tails = encode_texts(self.backbone, pair.prompt, (pair.chosen, pair.rejected), self.limit)
        return self._along(tails, states_along(self.backbone, ids, tails, self._shared(cache)), state)

    def _shared(self, cache: TraceCache | None) -> TraceCache | None:
        """Return where states are kept: an adapter's are no use to another head."""
        return cache if self.adapted is None else None

    def _along(
        self, tails: Sequence[tuple[int, ...]], states: Sequence[torch.Tensor], state: UserState
    ) -> PairPrefixes:
        chosen, rejected = (self._read(along, [state] * len(along)) for along in states)
        return PairPrefixes(tails[0], tails[1], chosen, rejected)

    def guide(
        self,
        policy: Backbone,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        states: Sequence[UserState],
        room: int,
    ) -> Guide:
        """Return rewards of candidate tokens for a batch of users.

        Rewards are read on the policy's own hidden states where backbone and prompts are the same for both; else the
        reward model runs a session of its own, over the policy's tokens, or, with a tokenizer of its own, over the text
        that they spell.

        Args:
            policy: the policy to be steered.
            prompts: B prompts, without demonstrations.
            prompt_ids: what the policy reads for each of them.
            states: B user states.
            room: new tokens and candidates at most.
        """
        own = self.encode_prompts(prompts)
        if self.reading(policy).by_text:
            return TextGuide(policy.encoder, self.backbone, prompts, own, self.head, states, self.scale, room)
        if self._reads(policy, own, prompt_ids):
            return PolicyStateGuide(self.head, states, self.scale)
        return BackboneGuide(self.backbone, own, self.head, states, self.scale, room)

    def sessions(
        self, policy: Backbone, prompts: Sequence[Prompt], prompt_ids: Sequence[Sequence[int]], room: int
    ) -> list[SessionPlan]:
        """Return the sessions that `guide` opens beside the policy's; the arguments are the same."""
        own, by_text = self.encode_prompts(prompts), not same_tokens(policy, self.backbone)
        if not by_text and self._reads(policy, own, prompt_ids):
            return []
        return [SessionPlan(self.backbone, max(map(len, own)), READ_PER_TOKEN * room if by_text else room)]

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

        Args:
            session: the policy's, prefilled with B prompts; left as it was.
            tip_states: (B, D) the policy's states at the prompts' ends.
            prompts: B prompts, without demonstrations.
            prompt_ids: what the policy reads for each of them.
            traces: the policy's traces of each row's completions.
            states: B user states.
            cache: where node states are kept.
        """
        reading, own = self.reading(session.backbone), self.encode_prompts(prompts)
        keys = reading.keys(prompts, own, traces)
        found = [[cache.load_states(key) if cache is not None else None for key in row] for row in keys]
        if any(states is None for row in found for states in row):
            if not reading.by_text and self._reads(session.backbone, own, prompt_ids):
                nodes = node_states(session, tip_states, traces, reading.end_ids)
            else:
                nodes = reading.states(prompts, own, traces)
            found = [list(row) for row in nodes]
            if cache is not None:
                for row_keys, row in zip(keys, nodes, strict=True):
                    for key, value in zip(row_keys, row, strict=True):
                        cache.save_states(key, value)
        return [
            [
                self._read_nodes(reading, trace, nodes, state)
                for trace, nodes in zip(row, row_found, strict=True)
                if nodes
            ]
            for row, row_found, state in zip(traces, found, states, strict=True)
        ]

    def reading(self, policy: Backbone, network: Backbone | None = None) -> Reading:
        """Return how the reward model, or its network as the rows see it, reads a policy's tokens."""
        return reading_of(policy, self.backbone if network is None else network, self._told)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """Return the ids of prompts as the reward model's backbone reads them."""
        longest = self.limit.max_tokens or self.backbone.context
        encoder = self.backbone.encoder
        return [encoder.encode_prompt(p, max_tokens=longest, on_long=self.limit.on_long) for p in prompts]

    def _reads(self, policy: Backbone, own: Sequence[Sequence[int]], prompt_ids: Sequence[Sequence[int]]) -> bool:
        same = policy.fingerprint == self.backbone.fingerprint
        return same and all(tuple(a) == tuple(b) for a, b in zip(own, prompt_ids, strict=True))

    def _read_nodes(self, reading: Reading, trace: Trace, nodes: NodeStates, state: UserState) -> NodeRewards:
        with torch.no_grad():
            prefixes = self.head.rewards(nodes.prefixes, state).double().cpu().numpy() / self.scale
            candidates = self.head.rewards(nodes.candidates, state).double().cpu().numpy() / self.scale
        return close_ends(trace, prefixes, candidates, reading.end_ids)

    def with_head(self, head: Head) -> RewardModel:
        """Return the same model with another head, for refits on the same features."""
        return replace(self, head=head)

    def pair_features(
        self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (N, D) features of the chosen and of the rejected completions."""
        chosen = [Item(pair.prompt, pair.chosen) for pair in pairs]
        rejected = [Item(pair.prompt, pair.rejected) for pair in pairs]
        features = self.features_of(chosen + rejected, progress)
        return features[: len(pairs)], features[len(pairs) :]

    def features_of(
        self, items: Sequence[Item], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return (N, D) features of texts, as the head reads them."""
        return self.features.encode(self.backbone, items, self.limit, progress)

    def training_states(self, backbone: Backbone, pairs: Sequence[PreferencePair]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, D) states of chosen and rejected under a backbone that is being trained, with gradient."""
        from rewardgap.rewards.joint import pair_states

        return pair_states(backbone, pairs, self.limit)

    def training_tokens(self, backbone: Backbone, pairs: Sequence[PreferencePair]) -> Tokens:
        """Return the states of every token of chosen and rejected, and which of them count, as `token_states`."""
        from rewardgap.rewards.joint import token_states

        return token_states(backbone, pairs, self.limit)

    def warm(self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None) -> None:
        """Encode the texts of pairs ahead of time; what asks for them later finds them."""
        self.pair_features(pairs, progress)

    def save(self, folder: str | Path) -> None:
        """Write the model: `model.json` (settings), `head.safetensors`, and `adapter.safetensors` if there is one."""
        from safetensors.torch import save

        folder = Path(folder)
        write_bytes(folder / "head.safetensors", save(self.head.state_dict()))
        if self.adapted is not None:
            write_bytes(folder / "adapter.safetensors", save(adapter_tensors(self.adapted.model)))
        write_json(folder / "model.json", self.facts())

    def facts(self) -> dict[str, Any]:
        """Return what `model.json` says: everything but tensors."""
        return {
            "format": FORMAT,
            "method": self.method,
            "config": self.head.config(),
            "fit_mode": self.fit_mode,
            "lora": vars(self.lora) if self.fit_mode == "lora" else None,
            "backbone": self.base.name,
            "backbone_fingerprint": self.base.fingerprint,
            "max_prompt_tokens": self.limit.max_tokens,
            "on_long": self.limit.on_long,
            "reward_scale": self.scale,
        }

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the rewards."""
        sums = {name: content_hash(tensor.flatten().tolist()) for name, tensor in self.head.state_dict().items()}
        return content_hash([self.method, self.head.config(), sums, self.backbone.fingerprint, vars_of(self.limit)])

    def _read(self, features: torch.Tensor, states: UserState | Sequence[UserState]) -> NDArray[np.float64]:
        with torch.no_grad():
            if isinstance(states, (list, tuple)):
                if not len(features):
                    return np.zeros(0)
                raw = self.head.batch_rewards(features, states)
            else:
                raw = self.head.rewards(features, states)  # type: ignore[arg-type]
        return np.asarray(raw.double().cpu().numpy() / self.scale)


def check_pairs(method: str, pairs: Sequence[PreferencePair]) -> None:
    """Refuse pairs that say nothing, and tell of those that contradict one another.

    Raises:
        DataError: if both sides of a pair are the same text; the message names it.
    """
    seen: dict[tuple[Any, ...], str] = {}
    against: list[tuple[str, str, str]] = []
    for pair in pairs:
        if pair.chosen == pair.rejected:
            raise DataError(
                f"{method}: chosen and rejected of example '{pair.example_id}' of user '{pair.user_id}' are the same "
                "text, which is no preference; drop the pair."
            )
        seen.setdefault((pair.user_id, pair.prompt, pair.chosen, pair.rejected), pair.example_id)
        other = seen.get((pair.user_id, pair.prompt, pair.rejected, pair.chosen))
        if other is not None:
            against.append((pair.user_id, other, pair.example_id))
    if against:
        user, one, other = against[0]
        warnings.warn(
            f"{method}: {len(against)} training pairs contradict an earlier one of the same user, first examples "
            f"'{one}' and '{other}' of user '{user}'; both are kept, and pull in opposite directions.",
            stacklevel=3,
        )


def check_fit_settings(
    method: str, fit_mode: FitMode, epochs: int | None, batch_size: int | None, learning_rate: float | None
) -> None:
    """Refuse settings of training that are out of range, or that nothing would read.

    Raises:
        ConfigError: naming the setting.
    """
    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    useless = [name for name, value in given.items() if value is not None and fit_mode == "frozen"]
    if useless:
        raise ConfigError(f"{method} on frozen features takes no {useless[0]}; leave it out, or give fit_mode lora.")
    if learning_rate is not None:
        check_positive("fit", learning_rate=learning_rate)
    check_count("fit", **{k: v for k, v in (("epochs", epochs), ("batch_size", batch_size)) if v is not None})


def vars_of(limit: PromptLimit) -> list[Any]:
    """Return a limit as a JSON value."""
    return [limit.max_tokens, limit.on_long]
