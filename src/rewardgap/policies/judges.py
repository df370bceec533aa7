"""The face of every judge: it ranks pairs for a user as a reward model does, without a reward that was fitted.

A judge asks a language model which of two completions the user prefers, always in both orders. What belongs to a user
is text: the pairs the user revealed, and a persona where the judge writes one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import numpy as np

from rewardgap.core.errors import ConfigError, DataError, NotScorableError
from rewardgap.core.store import content_hash, write_json
from rewardgap.policies.asking import LABELS, Comparison, PairAsker, comparison_of
from rewardgap.policies.judge_states import JudgeState
from rewardgap.rewards.fitted import row_of
from rewardgap.rewards.fitting import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.policies.asking import Judgement
    from rewardgap.policies.base import AdaptedPolicy
    from rewardgap.policies.chat_models import ChatModel

FORMAT = 1
OPPONENTS_PER_BATCH = 8


class Judge(ABC):
    """Ranks completions for a user by asking a language model.

        margin(y, y') = ½ [ℓ(A = y, B = y') - ℓ(A = y', B = y)],   ℓ = logit(first label) - logit(second label)

    Both orders are asked, so margins are antisymmetric by construction and the pull of the first place drops out. They
    are in nats and need not come from a reward: margin(y, y') is not r(y) - r(y').

    Args:
        model: who is asked: a `LocalChat`, or a `ChatEndpoint`.
        num_demonstrations: pairs of the user in the prompt, at most; None for all that fit.
        retriever: which of them, most useful first: "recent", "bm25" or "uniform".
        labels: names of the two places; on a local backbone each must be one token.
        max_prompt_size: the longest prompt: tokens on a backbone, characters over an endpoint.
        opponent_tokens: length of the opponents that the model itself writes.
        prompt_template: the instruction around each prompt's own text, left out where prompts are compared.
        opponent: writes the completion that `rewards` compares with: the study's zero-shot policy; the judge's own
            model unless given.

    Attributes:
        seed: of everything drawn; set by `fit`.
        opponents: prompt -> completion that `rewards` compares with; known ones may be put in.

    Raises:
        ConfigError: if a value is out of range.
        UnknownNameError: if there is no such retriever.
    """

    name: ClassVar[str]

    def __init__(
        self,
        model: ChatModel,
        *,
        num_demonstrations: int | None,
        retriever: str = "recent",
        labels: tuple[str, str] = LABELS,
        max_prompt_size: int | None = None,
        opponent_tokens: int = 32,
        prompt_template: str | None = None,
        opponent: AdaptedPolicy | None = None,
    ) -> None:
        check_count(self.name, opponent_tokens=opponent_tokens)
        self.model = model
        self.num_demonstrations, self.retriever = num_demonstrations, retriever
        self.labels = labels
        self.max_prompt_size, self.opponent_tokens = max_prompt_size, opponent_tokens
        self.prompt_template, self.opponent = prompt_template, opponent
        self.seed = 0
        self.opponents: dict[Prompt, str] = {}
        self._training: dict[str, tuple[PreferencePair, ...]] = {}
        self.labels = self.asker().labels

    # What a judge writes.

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the plain values that build this judge again."""

    @abstractmethod
    def adapt(self, support: Sequence[PreferencePair]) -> JudgeState:
        """Return the state of a user who revealed these pairs, oldest first; changes nothing, empty is allowed."""

    # What all judges share.

    @property
    def method(self) -> str:
        """Return the name in the catalogue."""
        return self.name

    @property
    def scale(self) -> float:
        """Return 1: margins are in nats; their deviation on training pairs would cost a forward pass for each."""
        return 1.0

    @property
    def users(self) -> tuple[str, ...]:
        """Return the training users, sorted."""
        return tuple(sorted(self._training))

    @property
    def diagnostics(self) -> dict[str, float]:
        """Return what `fit` was given: there is no loss and no parameter."""
        return {"users": len(self._training), "pairs": sum(map(len, self._training.values()))}

    def asker(self) -> PairAsker:
        """Return what puts questions to the model, with this judge's settings."""
        return PairAsker(
            self.model,
            num_demonstrations=self.num_demonstrations,
            retriever=self.retriever,
            labels=self.labels,
            max_prompt_size=self.max_prompt_size,
            prompt_template=self.prompt_template,
            seed=self.seed,
        )

    def fit(
        self,
        pairs: Sequence[PreferencePair],
        *,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Keep the pairs of the training users, so that `state_of` knows them; there is nothing to fit.

        Args:
            pairs: of the training users, oldest first.
            seed: of what is drawn later.
            progress: called with (done, total).

        Raises:
            DataError: if there is no pair.
        """
        if not pairs:
            raise DataError("fit needs at least 1 pair, got 0.")
        training: dict[str, list[PreferencePair]] = {}
        for pair in pairs:
            training.setdefault(pair.user_id, []).append(pair)
        self._training = {user: tuple(rows) for user, rows in training.items()}
        self.seed = seed
        if progress is not None:
            progress(1, 1)
        return self

    def adapt_all(self, supports: Sequence[Sequence[PreferencePair]]) -> list[JudgeState]:
        """Return the states of several users."""
        return [self.adapt(support) for support in supports]

    def state_of(self, user_id: str) -> JudgeState:
        """Return a training user's own state, from all the pairs given to `fit`.

        Raises:
            DataError: if the user was not among them; nobody is given another user's state.
        """
        row_of(user_id, self.users, self.name)
        return self.adapt(self._training[user_id])

    def judgements(self, pairs: Sequence[PreferencePair], states: Sequence[JudgeState]) -> list[Judgement]:
        """Return what the model said to each pair in both orders, one state a pair; a pair never shows itself."""
        return self.compare([comparison_of(pair) for pair in pairs], states)

    def margins(self, pairs: Sequence[PreferencePair], states: Sequence[JudgeState]) -> NDArray[np.float64]:
        """Return (N,) margins of chosen over rejected, one state a pair, nats."""
        return np.array([judgement.margin for judgement in self.judgements(pairs, states)])

    def rewards(
        self, prompts: Sequence[Prompt], completions: Sequence[str], states: JudgeState | Sequence[JudgeState]
    ) -> NDArray[np.float64]:
        """Return (B,) margins of completions over one fixed opponent a prompt, nats.

            r(x, y) = margin(y, y₀(x)),   y₀ the greedy zero-shot completion

        Args:
            prompts: B prompts.
            completions: B completions; the opponent itself has reward 0.
            states: one user's state for all, or B states.
        """
        rows = [states] * len(prompts) if isinstance(states, JudgeState) else list(states)
        against = self._opponents(prompts)
        comparisons = [Comparison(*row) for row in zip(prompts, completions, against, strict=True)]
        return np.array([judgement.margin for judgement in self.compare(comparisons, rows)])

    def guide(self, *_arguments: Any, **_more: Any) -> NoReturn:
        """Refuse: a prefix has no margin.

        Raises:
            NotScorableError: always.
        """
        raise NotScorableError(self._whole_texts())

    def node_rewards(self, *_arguments: Any, **_more: Any) -> NoReturn:
        """Refuse: a prefix has no margin.

        Raises:
            NotScorableError: always.
        """
        raise NotScorableError(self._whole_texts())

    def warm(self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None) -> None:
        """Do nothing ahead of time: a pair is read behind its user's examples, or not at all."""
        if progress is not None:
            progress(2 * len(pairs), 2 * len(pairs))

    def save(self, folder: str | Path) -> None:
        """Write the settings to `model.json`; the training users' pairs are data and are not written."""
        write_json(
            Path(folder) / "model.json",
            {
                "format": FORMAT,
                "family": "judge",
                "method": self.name,
                "config": self.config(),
                "seed": self.seed,
                "prompt_template": self.prompt_template,
                "model": self.model.name,
                "model_fingerprint": self.model.fingerprint,
                "opponent": self.opponent_facts(),
            },
        )

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the margins and rewards of a state."""
        return content_hash(
            [
                self.name,
                self.config(),
                self.seed,
                self.prompt_template,
                self.model.fingerprint,
                self.opponent_facts(),
            ]
        )

    def compare(self, comparisons: Sequence[Comparison], states: Sequence[JudgeState]) -> list[Judgement]:
        """Return what the model said to each comparison in both orders, for the user whose state stands beside it.

        Raises:
            ConfigError: if there is not one state of this judge for each comparison.
            DataError: if a comparison does not fit even without demonstrations.
        """
        if len(states) != len(comparisons):
            raise ConfigError(f"{len(states)} states for {len(comparisons)} comparisons; give one state each.")
        groups: dict[int, list[int]] = {}
        for row, state in enumerate(states):
            if not isinstance(state, JudgeState) or state.method != self.name:
                found = f"of '{state.method}'" if isinstance(state, JudgeState) else f"a {type(state).__name__}"
                raise ConfigError(f"{self.name} needs a state of its own, got {found}; call adapt on the support.")
            groups.setdefault(id(state), []).append(row)
        asker = self.asker()
        found_at: dict[int, Judgement] = {}
        for rows in groups.values():
            state = states[rows[0]]
            persona = state.persona.text if state.persona is not None else ""
            judged = asker.ask([comparisons[row] for row in rows], state.pairs, persona)
            found_at.update(zip(rows, judged, strict=True))
        return [found_at[row] for row in range(len(comparisons))]

    def _opponents(self, prompts: Sequence[Prompt]) -> list[str]:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.opponents]
        for begin in range(0, len(missing), OPPONENTS_PER_BATCH):
            batch = missing[begin : begin + OPPONENTS_PER_BATCH]
            if self.opponent is not None:
                written = self.opponent.generate(batch)
            else:
                written = self.model.write(batch, max_tokens=self.opponent_tokens)
            self.opponents.update(zip(batch, written, strict=True))
        return [self.opponents[prompt] for prompt in prompts]

    def opponent_facts(self) -> dict[str, Any] | None:
        """Return what decides the opponents; None where the judge's own model writes them."""
        if self.opponent is None:
            return None
        policy = self.opponent
        return {"policy": policy.name, "backbone": policy.backbone.fingerprint, "settings": asdict(policy.settings)}

    def _whole_texts(self) -> str:
        return (
            f"{self.name} ranks whole texts and has no reward of a prefix, so it can neither guide tokens nor score "
            "them. Use best-of-N, or a reward model."
        )
