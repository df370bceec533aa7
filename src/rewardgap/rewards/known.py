"""Rewards that are known for texts: the oracle of a synthetic dataset, with the face of a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import DataError
from rewardgap.core.records import prompt_text
from rewardgap.rewards.guide import NodeRewards, PrefixGuide, close_ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.memory import SessionPlan
    from rewardgap.backbones.session import TrieSession
    from rewardgap.backbones.traces import Trace, TraceCache
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.rewards.base import TextUtility
    from rewardgap.rewards.guide import Guide


@dataclass(frozen=True)
class KnownUser:
    """A user whose utility is known by name."""

    user_id: str


@dataclass
class KnownReward:
    """A utility over texts as a reward model: nothing to fit, a user's state is the user's id.

    Args:
        utility: (user id, prompt, completion) -> utility; completions may be prefixes.
        name: in records.
        scale: rewards are divided by it.
    """

    utility: TextUtility
    name: str = "oracle"
    scale: float = 1.0

    def adapt(self, support: Sequence[PreferencePair]) -> KnownUser:
        """Return whose pairs these are.

        Raises:
            DataError: if there is no pair to tell.
        """
        if not support:
            raise DataError(f"{self.name} knows users by their id; give at least 1 support pair.")
        return KnownUser(support[0].user_id)

    def rewards(
        self, prompts: Sequence[Prompt], completions: Sequence[str], states: KnownUser | Sequence[KnownUser]
    ) -> NDArray[np.float64]:
        """Return (B,) utilities over the scale."""
        users = [states] * len(prompts) if isinstance(states, KnownUser) else list(states)
        rows = zip(users, prompts, completions, strict=True)
        return np.array([self._value(user, prompt, text) for user, prompt, text in rows])

    def margins(self, pairs: Sequence[PreferencePair], states: Sequence[KnownUser]) -> NDArray[np.float64]:
        """Return (N,) utilities of chosen minus rejected over the scale."""
        prompts = [pair.prompt for pair in pairs]
        chosen = self.rewards(prompts, [pair.chosen for pair in pairs], states)
        return chosen - self.rewards(prompts, [pair.rejected for pair in pairs], states)

    def guide(
        self,
        policy: Backbone,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        states: Sequence[KnownUser],
        room: int,
    ) -> Guide:
        """Return utilities of decoded prefixes."""

        def value(row: int, ids: tuple[int, ...]) -> float:
            return self._value(states[row], prompts[row], policy.encoder.decode(ids))

        return PrefixGuide(value, len(prompts))

    def sessions(
        self, policy: Backbone, prompts: Sequence[Prompt], prompt_ids: Sequence[Sequence[int]], room: int
    ) -> list[SessionPlan]:
        """Return none: a known utility reads no network."""
        return []

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
        """Return the utilities at every token of given completions, and at every candidate beside it."""
        encoder = session.backbone.encoder
        out = []
        for prompt, row, state in zip(prompts, traces, states, strict=True):
            rewards = []
            for trace in row:
                content = trace.tokens[:-1].tolist()
                before = [content[:length] for length in range(len(content) + 1)]
                prefixes = np.array([self._value(state, prompt, encoder.decode(ids)) for ids in before])
                candidates = np.array(
                    [
                        [self._value(state, prompt, encoder.decode([*ids, token])) for token in tokens]
                        for ids, tokens in zip(before, trace.candidates.tolist(), strict=True)
                    ]
                )
                rewards.append(close_ends(trace, prefixes, candidates, encoder.end_ids))
            out.append(rewards)
        return out

    def _value(self, user: KnownUser, prompt: Prompt, completion: str) -> float:
        return self.utility(user.user_id, prompt_text(prompt), completion) / self.scale
