"""One adapter a user: the reward model in which a user shares the frozen backbone with others, and nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from rewardgap.backbones.chat import same_tokens
from rewardgap.backbones.features import NODES_PER_FORWARD, encode_texts, prompt_tree
from rewardgap.backbones.lora import adapter_tensors, attach_lora
from rewardgap.backbones.memory import SessionPlan
from rewardgap.backbones.row_adapters import AdapterHost
from rewardgap.backbones.session import tree_states
from rewardgap.backbones.trie import chain
from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.records import pair_to_json
from rewardgap.core.seeds import child_seed
from rewardgap.core.store import content_hash, write_bytes
from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.rewards.global_bt import GlobalBT
from rewardgap.rewards.guide import BackboneGuide
from rewardgap.rewards.joint import WEIGHT_DECAY, fit_joint, pair_states
from rewardgap.rewards.model import RewardModel, check_fit_settings, check_pairs, vars_of
from rewardgap.rewards.prefixes import PairPrefixes, states_along
from rewardgap.rewards.state_files import StateTable, save_states
from rewardgap.rewards.states import UserState
from rewardgap.rewards.text_guide import READ_PER_TOKEN, TextGuide
from rewardgap.rewards.training import FitDefaults, Schedule, train

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.session import TrieSession
    from rewardgap.backbones.traces import Trace, TraceCache
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.rewards.guide import Guide, NodeRewards
    from rewardgap.rewards.model import FitMode
    from rewardgap.rewards.mpu import MPU

USERS_FILE, START_FILE = "users.safetensors", "start.safetensors"


@dataclass
class PersonalAdapterModel(RewardModel):
    """MPU with a LoRA adapter and a direction a user, trained on that user's pairs alone.

        r_u(x, y) = (v + o_u)ᵀ h_{θ + A_u}(x, y)

    Features are standardised by the moments of the frozen backbone's. Where users start from the global model, its
    adapter and direction are trained first on all pairs; with `init="head_only"` the adapter then stays the global one
    and only o_u is the user's own. Rows of different users run in one batch, each through its own adapter.

    Args:
        method: name in the catalogue.
        head: the users' directions.
        base: the frozen backbone.
        fit_mode: "lora", the only one.
        limit: how long a prompt may be.
        features: the cache, for the frozen backbone.
        lora: the adapters' shape.
    """

    head: MPU
    fit_mode: FitMode = "lora"
    host: AdapterHost = field(init=False, repr=False)
    start: torch.Tensor | None = field(default=None, init=False, repr=False)
    seed: int = field(default=0, init=False)
    settings: FitDefaults = field(init=False)
    own: Mapping[str, UserState] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the network that takes an adapter a row."""
        if self.fit_mode != "lora":
            raise ConfigError(f"{self.method} with an adapter a user has no fit_mode '{self.fit_mode}'; give lora.")
        self.host = AdapterHost(self.base, self.lora)
        self.settings = self.head.defaults

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
        """Fit the start that users share, if any, and every training user.

        Args:
            pairs: of the training users.
            seed: decides initialisation, the order of pairs and dropout; each user's from the seed and the user's id.
            epochs: passes over all pairs for the global start; a user's own passes follow from the head's `user_steps`.
            batch_size: pairs a step.
            learning_rate: of the adapters.
            checkpoint: a file in which an unfinished fit is kept, to go on from; finished users lie beside it.
            progress: called with (users done, users in all).

        Raises:
            DataError: if there is no pair, or one does not fit the context.
            ConfigError: if a number is not positive.
        """
        if not pairs:
            raise DataError("fit needs at least 1 pair, got 0.")
        check_fit_settings(self.method, self.fit_mode, epochs, batch_size, learning_rate)
        check_pairs(self.method, pairs)
        self.settings, self.seed = self.head.defaults.filled(epochs, batch_size, learning_rate), seed
        head, users = self.head, sorted({pair.user_id for pair in pairs})
        initial = RewardModel.pair_features(self, pairs)
        place = {user: row for row, user in enumerate(users)}
        index = torch.tensor([place[pair.user_id] for pair in pairs])
        head.build(initial[0].shape[1], users, seed=0)
        head.observe(torch.from_numpy(initial[0]), torch.from_numpy(initial[1]), index)
        self.start = None
        if head.init != "base":
            self._fit_start(pairs, initial, checkpoint)
        own: dict[str, UserState] = {}
        losses: list[float] = []
        for number, user in enumerate(users):
            kept = None if checkpoint is None else checkpoint.with_name(f"user-{number}.safetensors")
            rows = [pair for pair in pairs if pair.user_id == user]
            state, loss = self._fit_user(user, rows, kept)
            own[user] = state
            losses.append(loss)
            with torch.no_grad():
                head.offsets[number] = state.values["offset"].to(head.offsets)
            if progress is not None:
                progress(number + 1, len(users))
        self.own = own
        head.finish()
        chosen, rejected = self.pair_states_of(pairs, [own[pair.user_id] for pair in pairs])
        head.calibrate(chosen, rejected, index, losses, True)
        for number in range(len(users) if checkpoint is not None else 0):
            assert checkpoint is not None
            checkpoint.with_name(f"user-{number}.safetensors").unlink(missing_ok=True)
        return self

    def _fit_start(self, pairs: Sequence[PreferencePair], initial: tuple[Any, Any], checkpoint: Path | None) -> None:
        """Train the global reward jointly with an adapter, and take both as everybody's start."""
        everybody = GlobalBT(prior_margin=self.head.prior_margin, l2=self.head.l2, loss_agg=self.head.loss_agg)
        adapted = attach_lora(self.base, self.lora, self.seed)
        fit_joint(
            everybody,
            adapted,
            pairs,
            initial=initial,
            states_of=self.training_states,
            identity=vars_of(self.limit),
            schedule=Schedule(self.settings.epochs, self.settings.batch_size, self.seed),
            learning_rate=self.settings.learning_rate,
            checkpoint=checkpoint,
        )
        self.start = self.host.vector(adapter_tensors(adapted.model))
        self.head.basis = everybody.basis.detach().to(self.head.basis)

    def _fit_user(
        self, user_id: str, pairs: Sequence[PreferencePair], checkpoint: Path | None = None
    ) -> tuple[UserState, float]:
        """Return a user's state and the last loss, in nats a pair."""
        head, seed = self.head, child_seed(self.seed, "user", user_id) % (1 << 31)
        if head.init == "head_only":
            chosen, rejected = self.pair_states_of(pairs, [self._unowned(len(pairs))] * len(pairs))
            state = head.adapt(chosen, rejected)
            margins = head.rewards(chosen, state) - head.rewards(rejected, state)
            return state, float(pair_loss(margins).mean())
        begin = self.host.fresh(seed) if self.start is None else self.start
        adapter = begin.clone()[None].to(self.base.device).requires_grad_()
        offset = torch.zeros(head.width, device=self.base.device, requires_grad=True)
        loss = math.nan
        if pairs:
            std, centre = head.std.to(offset), head.basis[:, 0].detach().to(offset)
            size = min(self.settings.batch_size, len(pairs))
            schedule = Schedule(max(1, round(head.user_steps / math.ceil(len(pairs) / size))), size, seed)

            def loss_of(rows: list[int]) -> torch.Tensor:
                chosen, rejected = pair_states(self.host.rows(adapter), [pairs[row] for row in rows], self.limit)
                margins = ((chosen - rejected).to(offset) / std) @ (centre + offset)
                pull = float(head.precision) / (2 * len(pairs)) * offset.square().sum()
                return pair_loss(margins).mean() + pull

            groups = [
                {"params": [adapter], "lr": self.settings.learning_rate, "weight_decay": WEIGHT_DECAY},
                {"params": [offset], "lr": 1e-3, "weight_decay": 0.0},
            ]
            identity = [self._identity(), self.seed, user_id, [pair_to_json(pair) for pair in pairs], self._begin()]
            self.host.model.train()
            try:
                losses = train(loss_of, groups, len(pairs), schedule, checkpoint=checkpoint, identity=identity)
            finally:
                self.host.model.eval()
            loss = losses[-1]
        values = {"offset": offset.detach().to(head.dtype), "adapter": adapter.detach()[0].float()}
        return UserState(self.method, values, len(pairs)), loss

    def adapt(self, support: Sequence[PreferencePair]) -> UserState:
        """Return the state of a user who revealed these pairs, an adapter trained on them alone; changes nothing.

        Without pairs it is the start: the global reward, or a reward of zero for everything. The model's seed and the
        user id of the pairs decide the draws.
        """
        return self._fit_user(min((pair.user_id for pair in support), default=""), support)[0]

    def adapt_all(self, supports: Sequence[Sequence[PreferencePair]]) -> list[UserState]:
        """Return the states of several users, one after the other."""
        return [self.adapt(support) for support in supports]

    def state_of(self, user_id: str) -> UserState:
        """Return a training user's own state.

        Raises:
            DataError: if the user was not among them.
        """
        if user_id not in self.own:
            return self.head.state_of(user_id)
        return self.own[user_id]

    def rewards(
        self, prompts: Sequence[Prompt], completions: Sequence[str], states: UserState | Sequence[UserState]
    ) -> NDArray[np.float64]:
        """Return (B,) rewards of whole completions, in units of the reward scale."""
        users = [states] * len(prompts) if isinstance(states, UserState) else list(states)
        texts = [(prompt, (text,)) for prompt, text in zip(prompts, completions, strict=True)]
        return self._read(self._states_of(texts, users)[:, 0], users) if texts else np.zeros(0)

    def margins(self, pairs: Sequence[PreferencePair], states: Sequence[UserState]) -> NDArray[np.float64]:
        """Return (N,) rewards of chosen minus rejected, one state a pair, in units of the reward scale."""
        if not pairs:
            return np.zeros(0)
        chosen, rejected = self.pair_states_of(pairs, states)
        return self._read(chosen, states) - self._read(rejected, states)

    def prefix_rewards(self, prompt: Prompt, completion: str, state: UserState) -> NDArray[np.float64]:
        """Return (T + 1,) rewards of every prefix of a completion's T tokens; index 0 is the bare prompt."""
        ids = self.encode_prompts([prompt])[0]
        tail = self.base.encoder.encode_completion(completion, after=prompt)
        with torch.no_grad():
            states = tree_states(self._rows([state]), [chain((*ids, *tail), -1, 0)])[0, len(ids) - 1 :]
        return self._read(states.cpu(), [state] * (len(tail) + 1))

    def pair_prefixes(self, pair: PreferencePair, state: UserState, cache: TraceCache | None = None) -> PairPrefixes:
        """Return the rewards of every prefix of both sides of a pair, under the user's adapter; nothing is kept."""
        ids, tails = encode_texts(self.base, pair.prompt, (pair.chosen, pair.rejected), self.limit)
        return self._along(tails, states_along(self._rows([state]), ids, tails), state)

    def pair_states_of(
        self, pairs: Sequence[PreferencePair], states: Sequence[UserState]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, D) features of the chosen and of the rejected completions, each under its user's adapter."""
        if not pairs:
            return torch.zeros(0, self.base.width), torch.zeros(0, self.base.width)
        found = self._states_of([(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs], states)
        return found[:, 0], found[:, 1]

    def guide(
        self,
        policy: Backbone,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        states: Sequence[UserState],
        room: int,
    ) -> Guide:
        """Return rewards of candidate tokens for a batch of users, each row through its user's adapter."""
        own, network = self.encode_prompts(prompts), self._rows(states)
        if self.reading(policy, network).by_text:
            return TextGuide(policy.encoder, network, prompts, own, self.head, states, self.scale, room)
        return BackboneGuide(network, own, self.head, states, self.scale, room)

    def sessions(
        self, policy: Backbone, prompts: Sequence[Prompt], prompt_ids: Sequence[Sequence[int]], room: int
    ) -> list[SessionPlan]:
        """Return the session in which each row runs through its user's adapter; the arguments are those of `guide`."""
        factor = 1 if same_tokens(policy, self.base) else READ_PER_TOKEN
        return [SessionPlan(self.base, max(map(len, self.encode_prompts(prompts))), factor * room)]

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
            session: the policy's; left as it was.
            tip_states: not read.
            prompts: B prompts, without demonstrations.
            prompt_ids: not read.
            traces: the policy's traces of each row's completions.
            states: B user states.
            cache: not used: it keeps what users share, and here every state is a user's own.
        """
        reading = self.reading(session.backbone, self._rows(states))
        nodes = reading.states(prompts, self.encode_prompts(prompts), traces)
        return [
            [self._read_nodes(reading, trace, found, state) for trace, found in zip(row, row_nodes, strict=True)]
            for row, row_nodes, state in zip(traces, nodes, states, strict=True)
        ]

    def warm(self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None) -> None:
        """Do nothing: what a user's texts look like is known with the user's adapter only."""

    def pair_features(
        self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Refuse: features depend on the user. `pair_states_of` gives those of users.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.name} has no features that users share; call margins or rewards.")

    def save(self, folder: str | Path) -> None:
        """Write the model as every reward model, with the training users' states in a table of their own."""
        from safetensors.torch import save

        folder = Path(folder)
        super().save(folder)
        if self.start is not None:
            write_bytes(folder / START_FILE, save({"adapter": self.start.cpu()}))
        save_states(folder / USERS_FILE, self, self.own)

    def facts(self) -> dict[str, Any]:
        """Return what `model.json` says, with what adapting needs: the seed and the settings of training."""
        return {**super().facts(), "seed": self.seed, "training": self.settings._asdict()}

    def restore(self, folder: Path, facts: Mapping[str, Any], head: Mapping[str, torch.Tensor]) -> Self:
        """Take over what `save` wrote; users are read from their table as they are asked for.

        Raises:
            ModelError: if a file is missing or damaged, or adapters are of another size.
        """
        from rewardgap.rewards.build import read_tensors

        self.head.load_state_dict(head)
        self.seed, self.settings = int(facts["seed"]), FitDefaults(**facts["training"])
        self.start = read_tensors(folder / START_FILE)["adapter"] if self.head.init != "base" else None
        if self.start is not None and self.start.shape != (self.host.size,):
            raise ModelError(f"'{folder / START_FILE}' holds {len(self.start)} numbers, expected {self.host.size}.")
        self.own = StateTable(folder / USERS_FILE)
        return self

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the rewards."""
        sums = {name: content_hash(tensor.flatten().tolist()) for name, tensor in self.head.state_dict().items()}
        return content_hash([self._identity(), self.seed, list(self.settings), sums, self._begin()])

    def _identity(self) -> list[Any]:
        limit = [self.limit.max_tokens, self.limit.on_long]
        return [self.method, self.head.config(), self.base.fingerprint, asdict(self.lora), limit]

    def _begin(self) -> str:
        return "" if self.start is None else self.host.fingerprint(self.start)

    def _unowned(self, num_support: int) -> UserState:
        return UserState(self.method, {"offset": torch.zeros(self.head.width, dtype=self.head.dtype)}, num_support)

    def _rows(self, states: Sequence[UserState]) -> Backbone:
        """Return the network with each row's adapter: the user's own, or the start's."""
        vectors = []
        for state in states:
            if "adapter" not in state.values and self.start is None:
                raise ConfigError(
                    f"a user state of {self.method} without an adapter was given; adapt with fit_mode lora."
                )
            vectors.append(state.values.get("adapter", self.start))
        return self.host.rows(torch.stack(vectors).to(self.base.device))  # type: ignore[arg-type]

    @torch.no_grad()
    def _states_of(self, texts: Sequence[tuple[Prompt, Sequence[str]]], states: Sequence[UserState]) -> torch.Tensor:
        """Return (N, C, D) states at the ends of C completions of each prompt, each row through its own adapter."""
        if len(texts) != len(states):
            raise ConfigError(f"{len(states)} user states for {len(texts)} texts; give one state a text.")
        trees = [prompt_tree(*encode_texts(self.base, prompt, list(sides), self.limit)) for prompt, sides in texts]
        order = sorted(range(len(trees)), key=lambda row: -len(trees[row][0].tokens))
        out: list[torch.Tensor] = [torch.empty(0)] * len(trees)
        while order:
            size = max(1, NODES_PER_FORWARD // len(trees[order[0]][0].tokens))
            rows, order = order[:size], order[size:]
            found = tree_states(self._rows([states[row] for row in rows]), [trees[row][0] for row in rows])
            for place, row in enumerate(rows):
                out[row] = found[place, trees[row][1]].float().cpu()
        return torch.stack(out)
