"""Reward models that nobody fitted, since the users of `synthetic_text` are known: what guidance by the truth can do.

Both rank whole texts by the user's true utility u(y), so they agree on every pair. They differ on prefixes:

    oracle_sequence    r(y≤t) = u(y≤t)                      what the text is worth so far
    oracle_value       r(y≤t) = u(y≤t) + V_β(t, y_t)        and what is to come, exactly

with the soft value of the control world, V_β(t, w) = β log E_π[exp(u(rest) / β)]. A closed text is worth u(y) in both.
Under `oracle_value` with λ = 1/β over the whole vocabulary every step of guided sampling is a step of the user's law
π(y) exp(u(y)/β) / Z; what `oracle_sequence` loses against it is lost by factorisation: by putting the reward of a text
in the place of the value of a token.

Source: the soft value of entropy-regularised control; Mudgal et al. 2024 (controlled decoding, arXiv 2310.17022) and
    Chakraborty et al. 2024 (Transfer Q*, arXiv 2405.20495) estimate what is exact here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from rewardgap.core.catalog import Catalog
from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.records import prompt_text
from rewardgap.core.store import content_hash, read_json, write_json
from rewardgap.numerics.bigram import soft_values
from rewardgap.rewards.fitted import row_of
from rewardgap.rewards.guide import NodeRewards, PrefixGuide
from rewardgap.rewards.known import KnownReward, KnownUser
from rewardgap.rewards.prefixes import PairPrefixes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.session import TrieSession
    from rewardgap.backbones.traces import Trace, TraceCache
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.data.synthetic_text import SyntheticTextTruth
    from rewardgap.numerics.bigram import FloatArray
    from rewardgap.rewards.guide import Guide

FORMAT = 1


class Oracle(KnownReward):
    """The users' true utility as a reward model of a study: there is nothing to fit, and a state is a user's id.

    Args:
        known: the truth behind the dataset.

    Attributes:
        users: the training users, sorted; set by `fit`.
    """

    method = "oracle_sequence"

    def __init__(self, known: SyntheticTextTruth) -> None:
        super().__init__(lambda user, prompt, text: known.utility(user, text), self.method)
        self.known = known
        self.users: tuple[str, ...] = ()
        self.diagnostics: dict[str, float] = {}

    def fit(
        self,
        pairs: Sequence[PreferencePair],
        *,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Take note of the training users; their utilities are known.

        Raises:
            DataError: if there is no pair, or one of a user that the truth does not have.
        """
        if not pairs:
            raise DataError("fit needs at least 1 pair, got 0.")
        users = tuple(sorted({pair.user_id for pair in pairs}))
        for user in users:
            self.known.token_utilities(user)
        self.users = users
        self.diagnostics = {"users": len(self.users), "pairs": len(pairs)}
        if progress is not None:
            progress(1, 1)
        return self

    def adapt_all(self, supports: Sequence[Sequence[PreferencePair]]) -> list[KnownUser]:
        """Return the states of several users."""
        return [self.adapt(support) for support in supports]

    def state_of(self, user_id: str) -> KnownUser:
        """Return a training user's own state.

        Raises:
            DataError: if the user was not among them.
        """
        row_of(user_id, self.users, self.name)
        return KnownUser(user_id)

    def warm(self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None) -> None:
        """Do nothing ahead of time: no network is read."""
        if progress is not None:
            progress(2 * len(pairs), 2 * len(pairs))

    def pair_prefixes(self, pair: PreferencePair, state: KnownUser, cache: TraceCache | None = None) -> PairPrefixes:
        """Return the rewards of every prefix of both sides of a pair; nothing is kept in the cache."""
        ids, values = zip(*(self.along(state, pair.prompt, text) for text in (pair.chosen, pair.rejected)), strict=True)
        return PairPrefixes(ids[0], ids[1], values[0], values[1])

    def along(self, user: KnownUser, prompt: Prompt, text: str) -> tuple[tuple[int, ...], FloatArray]:
        """Return the T tokens of a text, and the (T + 1,) rewards of its prefixes."""
        words = self.known.table.ids(text)
        gained = self.known.token_utilities(user.user_id)[words]
        return tuple(words), np.append(0.0, np.cumsum(gained)) / self.scale

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the rewards."""
        known = self.known
        return content_hash(
            [self.method, known.tastes.tolist(), known.weights.tolist(), known.beta, known.max_length, self.scale]
        )

    def save(self, folder: str | Path) -> None:
        """Write whose truth it is to `model.json`; the truth itself follows from the dataset's options."""
        facts = {"format": FORMAT, "family": "oracle", "method": self.method, "truth": self.fingerprint()}
        write_json(Path(folder) / "model.json", facts)

    def save_states(self, path: Path, states: Mapping[str, KnownUser]) -> None:
        """Write the states of users as JSON, with the oracle they belong to."""
        users = {user: state.user_id for user, state in states.items()}
        write_json(path, {"format": FORMAT, "oracle": self.fingerprint(), "users": users})

    def load_states(self, path: Path) -> dict[str, KnownUser]:
        """Read what `save_states` wrote.

        Raises:
            ModelError: if there is no such file, or it belongs to another truth.
        """
        facts = read_json(path) if path.is_file() else {}
        if facts.get("oracle") != self.fingerprint():
            raise ModelError(f"'{path}' holds no states of this {self.method}; run the study again.")
        return {user: KnownUser(owner) for user, owner in facts["users"].items()}


class OracleValue(Oracle):
    """The same utility, with the exact value of what is to come on every prefix.

    The control world has texts of 1 to `max_length` words. What it does not have, an empty text or a longer one, is
    worth -inf: the user's law gives it no mass.
    """

    method = "oracle_value"

    def __init__(self, known: SyntheticTextTruth) -> None:
        super().__init__(known)
        self._tables: dict[str, tuple[FloatArray, FloatArray]] = {}

    def worth(self, user: KnownUser, prompt: Prompt, words: Sequence[int], ended: bool) -> float:
        """Return the value of a prefix over the scale.

        Args:
            user: whose.
            prompt: its last word is what the first word of the text follows.
            words: indices of the words so far.
            ended: whether the end token stands behind them.
        """
        if len(words) > self.known.max_length or (ended and not words):
            return -math.inf
        utilities, values = self._of(user.user_id)
        so_far = float(utilities[list(words)].sum())
        if not ended:
            last = words[-1] if words else self.known.table.ids(prompt_text(prompt))[-1]
            so_far += float(values[len(words), last])
        return so_far / self.scale

    def along(self, user: KnownUser, prompt: Prompt, text: str) -> tuple[tuple[int, ...], FloatArray]:
        """Return the T tokens of a text, the end token the last, and the (T + 1,) values of its prefixes."""
        words = self.known.table.ids(text)
        values = [self.worth(user, prompt, words[:length], False) for length in range(len(words) + 1)]
        return (*words, self.known.table.end), np.array([*values, self.worth(user, prompt, words, True)])

    def guide(
        self,
        policy: Backbone,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        states: Sequence[KnownUser],
        room: int,
    ) -> Guide:
        """Return the values of decoded prefixes, closed ones apart from open ones."""

        def value(row: int, ids: tuple[int, ...]) -> float:
            words, ended = self._read(policy, ids)
            # No text ends before its first word, by the stop rule; that end token needs a number all the same.
            return self.worth(states[row], prompts[row], words, ended) if words or not ended else 0.0

        return ClosingGuide(value, len(prompts))

    def node_rewards(
        self,
        session: TrieSession,
        tip_states: torch.Tensor,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        traces: Sequence[Sequence[Trace]],
        states: Sequence[KnownUser],
        cache: TraceCache | None = None,
    ) -> list[list[NodeRewards]]:
        """Return the values at every token of given completions, and at every candidate beside it."""
        policy = session.backbone

        def value(user: KnownUser, prompt: Prompt, ids: Sequence[int]) -> float:
            return self.worth(user, prompt, *self._read(policy, ids))

        return [
            [_rewards_along(trace, partial(value, user, prompt)) for trace in row]
            for prompt, row, user in zip(prompts, traces, states, strict=True)
        ]

    def _read(self, policy: Backbone, ids: Sequence[int]) -> tuple[list[int], bool]:
        ended = bool(ids) and ids[-1] in policy.encoder.end_ids
        return self.known.table.ids(policy.encoder.decode(ids[:-1] if ended else ids)), ended

    def _of(self, user_id: str) -> tuple[FloatArray, FloatArray]:
        if user_id not in self._tables:
            utilities = self.known.token_utilities(user_id)
            self._tables[user_id] = utilities, soft_values(self.known.base_law, utilities, self.known.beta)
        return self._tables[user_id]


class ClosingGuide(PrefixGuide):
    """Rewards of prefixes from a function that tells a closed text from an open one."""

    rewards_ends = True


def _rewards_along(trace: Trace, value: Callable[[Sequence[int]], float]) -> NodeRewards:
    tokens = trace.tokens.tolist()
    prefixes = np.array([value(tokens[:length]) for length in range(len(tokens) + 1)])
    candidates = [[value([*tokens[:at], token]) for token in row] for at, row in enumerate(trace.candidates.tolist())]
    return NodeRewards(prefixes, np.array(candidates))


@dataclass(frozen=True)
class NoSettings:
    """Nothing is to be set: the dataset's options decide everything."""


@dataclass(frozen=True)
class OracleCard:
    """An oracle as the catalogue lists it; `build(known)` makes it from the truth behind `synthetic_text`."""

    name: str
    summary: str
    equation: str
    build: type[Oracle]
    paper: str = ""
    peer: str = "none"
    deviations: tuple[str, ...] = ()
    config: type = NoSettings
    personal: bool = True
    family: Literal["oracle"] = "oracle"


ORACLES: Catalog[OracleCard] = Catalog(
    "oracle",
    (
        OracleCard(
            name="oracle_sequence",
            summary="Control on synthetic_text: a user's true utility of the text so far.",
            equation="r(y≤t) = u(y≤t)",
            build=Oracle,
        ),
        OracleCard(
            name="oracle_value",
            summary="Control on synthetic_text: the true utility so far and the exact soft value of what is to come.",
            equation="r(y≤t) = u(y≤t) + β log E_π[exp(u(y>t) / β) | x, y≤t]",
            build=OracleValue,
            paper="Mudgal et al. 2024, arXiv 2310.17022; Chakraborty et al. 2024, arXiv 2405.20495",
        ),
    ),
)


def build_oracle(name: str, known: SyntheticTextTruth, **options: Any) -> Oracle:
    """Build an oracle from its name.

    Args:
        name: an entry of `ORACLES`.
        known: the truth behind the dataset.
        options: none is known.

    Raises:
        UnknownNameError: if there is no such oracle.
        ConfigError: if an option is given.
    """
    card = ORACLES[name]
    if options:
        raise ConfigError(f"{name} has no option '{next(iter(options))}'; the dataset's options decide everything.")
    return card.build(known)
