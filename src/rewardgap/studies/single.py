"""Single stages on one's own data, with the objects that a study is made of: fit, adapt, score, generate."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rewardgap.backbones.load import load_backbone
from rewardgap.core.errors import ConfigError, ModelError
from rewardgap.core.seeds import child_seed
from rewardgap.decoding import catalog
from rewardgap.decoding.catalog import DECODERS
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.policies.guided import Guided
from rewardgap.policies.in_context import InContext
from rewardgap.policies.many import Asked, write_many
from rewardgap.policies.zero_shot import ZeroShot
from rewardgap.rewards.build import load_reward_model, read_facts
from rewardgap.rewards.catalog import REWARD_MODELS
from rewardgap.stats.bootstrap import clustered_mean
from rewardgap.studies.stages import number
from rewardgap.studies.workbench import shown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import PreferencePair
    from rewardgap.data.base import PreferenceDataset
    from rewardgap.data.prompts import AskedPrompt
    from rewardgap.decoding.base import Decoder
    from rewardgap.policies.base import AdaptedPolicy, GenerationSettings
    from rewardgap.policies.run import Generation, Prepared
    from rewardgap.rewards.model import RewardModel
    from rewardgap.rewards.states import UserState
    from rewardgap.stats.bootstrap import Estimate

StateSource: TypeAlias = Literal["adapted", "training", "cold_start"]
NOBODY = ""
"""Stands for the user of a prompt that names none."""


def open_backbone(name: str, dtype: str = "float32") -> Backbone:
    """Load a backbone; a folder is named by its last part, so that no path of a machine gets into an artefact."""
    backbone = load_backbone(name, dtype=dtype)
    backbone.name = shown_name(name)
    return backbone


def open_model(
    folder: Path, backbone: str | None = None, dtype: str = "float32", loaded: Backbone | None = None
) -> RewardModel:
    """Load a fitted reward model.

    Args:
        folder: as `RewardModel.save` wrote it.
        backbone: where its backbone is; by the recorded name unless given.
        dtype: the backbone's number type.
        loaded: a backbone that is there already, taken where it is the one the model was fitted on.

    Raises:
        ModelError: if the folder holds no reward model, or its backbone is not there.
    """
    facts = read_facts(folder)
    if backbone is not None:
        return load_reward_model(folder, open_backbone(backbone, dtype))
    if loaded is not None and facts["backbone_fingerprint"] == loaded.fingerprint:
        return load_reward_model(folder, loaded)
    try:
        found = open_backbone(facts["backbone"], dtype)
    except ModelError as error:
        raise ModelError(f"{error} '{folder}' was fitted on it; say where it is with --backbone.") from error
    return load_reward_model(folder, found)


def adapt_users(model: RewardModel, data: PreferenceDataset) -> dict[str, UserState]:
    """Return the state of every user of a dataset, each from all of the user's pairs."""
    users = data.users()
    return dict(zip(users, model.adapt_all([data.of_user(user) for user in users]), strict=True))


@dataclass(frozen=True)
class States:
    """Finds a user's state: adapted, else the training user's own, else the cold start."""

    model: RewardModel
    adapted: Mapping[str, UserState]
    cold: UserState

    @classmethod
    def of(cls, model: RewardModel, adapted: Mapping[str, UserState]) -> States:
        """Prepare the cold start."""
        return cls(model, adapted, model.adapt([]))

    def find(self, user_id: str) -> tuple[UserState, StateSource]:
        """Return a state and where it is from."""
        if user_id in self.adapted:
            return self.adapted[user_id], "adapted"
        if user_id in self.model.head.users:
            return self.model.state_of(user_id), "training"
        return self.cold, "cold_start"


@dataclass(frozen=True)
class Scored:
    """Given pairs under a reward model.

    Attributes:
        records: one a pair, in order: user_id, example_id, chosen and rejected reward, margin, state.
        accuracy: share of pairs ranked as the user ranked them, ties one half; users are the clusters.
        ties: pairs with equal rewards.
        sources: state source -> users.
    """

    records: list[dict[str, Any]]
    accuracy: Estimate
    ties: int
    sources: dict[str, int]


def score_pairs(model: RewardModel, pairs: Sequence[PreferencePair], states: Mapping[str, UserState]) -> Scored:
    """Score given pairs, each for its own user."""
    table = States.of(model, states)
    users = [pair.user_id for pair in pairs]
    found = {user: table.find(user) for user in dict.fromkeys(users)}
    own = [found[user][0] for user in users]
    prompts = [pair.prompt for pair in pairs]
    model.warm(pairs)
    chosen = model.rewards(prompts, [pair.chosen for pair in pairs], own)
    rejected = model.rewards(prompts, [pair.rejected for pair in pairs], own)
    margins = chosen - rejected
    records = [
        {
            "user_id": pair.user_id,
            "example_id": pair.example_id,
            "chosen_reward": number(plus),
            "rejected_reward": number(minus),
            "margin": number(margin),
            "state": found[pair.user_id][1],
        }
        for pair, plus, minus, margin in zip(pairs, chosen, rejected, margins, strict=True)
    ]
    sources: Counter[str] = Counter(source for _, source in found.values())
    ties = sum(record["margin"] == 0 for record in records)
    return Scored(records, clustered_mean(pair_accuracy(margins), users), ties, dict(sources))


def is_personal(model: RewardModel) -> bool:
    """Return whether a model tells users apart, so that a state matters."""
    return REWARD_MODELS[model.method].personal


def build_decoder(name: str, **given: Any) -> Decoder:
    """Return a decoder from the options that were given; None is not given.

    Raises:
        UnknownNameError: if there is no such decoder.
        ConfigError: if it has no such option.
    """
    return catalog.build_decoder(name, **{option: value for option, value in given.items() if value is not None})


@dataclass(frozen=True)
class Deployed:
    """A deployment, and the state of each user it is asked for; `without` of them have no data of their own."""

    policy: AdaptedPolicy
    states: dict[str, Any]
    without: int


def deploy_guided(
    backbone: Backbone, decoder: Decoder, settings: GenerationSettings, states: States, users: Sequence[str]
) -> Deployed:
    """Return the policy under reward-guided decoding.

    Raises:
        ConfigError: if the decoder takes no reward model.
    """
    if not DECODERS[decoder.name].guided:
        raise ConfigError(f"decoder '{decoder.name}' takes no reward model; leave --model out, or use args_greedy.")
    found = {user: states.find(user) for user in users}
    without = sum(source == "cold_start" for _, source in found.values())
    policy = Guided(backbone, decoder, settings, reward=states.model)
    return Deployed(policy, {user: state for user, (state, _) in found.items()}, without)


def deploy_plain(
    backbone: Backbone,
    decoder: Decoder,
    settings: GenerationSettings,
    users: Sequence[str],
    demonstrations: PreferenceDataset | None = None,
    num_demonstrations: int | None = None,
    retriever: str | None = None,
) -> Deployed:
    """Return the policy as it is, or with each user's demonstrations in the prompt.

    Raises:
        ConfigError: if the decoder needs a reward model, or options of demonstrations come without them.
    """
    if DECODERS[decoder.name].guided:
        raise ConfigError(f"decoder '{decoder.name}' needs a reward model; give one with --model.")
    if demonstrations is None:
        if num_demonstrations is not None or retriever is not None:
            raise ConfigError("--num-demonstrations and --retriever need --demonstrations, the file to take them from.")
        return Deployed(ZeroShot(backbone, decoder, settings), dict.fromkeys(users), 0)
    policy = InContext(
        backbone, decoder, settings, num_demonstrations=num_demonstrations, retriever=retriever or "recent"
    )
    known = set(demonstrations.users())
    support = {user: demonstrations.of_user(user) if user in known else () for user in users}
    states = {user: policy.adapt(pairs) for user, pairs in support.items()}
    return Deployed(policy, states, sum(not pairs for pairs in support.values()))


def users_of(prompts: Sequence[AskedPrompt]) -> list[str]:
    """Return whose prompts these are, each user once."""
    return list(dict.fromkeys(asked.user_id or NOBODY for asked in prompts))


def write_completions(
    deployed: Deployed, prompts: Sequence[AskedPrompt], batch_size: int, show: Callable[[dict[str, Any]], None]
) -> None:
    """Write a completion for each prompt; a seed belongs to a user and an example.

    Args:
        deployed: the deployment.
        prompts: what it is asked.
        batch_size: prompts at a time.
        show: called with each record, in the order of the prompts and as soon as that allows; where the work is ended
            from outside, with the others that are there too.

    Raises:
        OutOfMemoryError: if a batch would not fit into memory; the message names a batch size that does.
    """
    policy, users = deployed.policy, [asked.user_id or NOBODY for asked in prompts]
    ready: dict[int, dict[str, Any]] = {}
    shown = 0

    def keep(number: int, prepared: Prepared, written: Generation) -> None:
        nonlocal shown
        ready[number] = {
            "user_id": prompts[number].user_id,
            "example_id": prompts[number].example_id,
            "completion": written.text,
            "ended": written.ended,
            "new_tokens": len(written.ids),
            "demonstrations": prepared.shown,
            "demonstrations_dropped": prepared.dropped,
        }
        while shown in ready:
            show(ready.pop(shown))
            shown += 1

    names = zip(users, prompts, strict=True)
    seeds = [child_seed(policy.settings.seed, "decode", user, asked.example_id) for user, asked in names]
    states = [deployed.states[user] for user in users]
    try:
        write_many(policy, Asked([asked.prompt for asked in prompts], states, seeds), batch_size, keep)
    finally:
        for number in sorted(ready):
            show(ready[number])
