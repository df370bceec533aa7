"""How a reward model reads what a policy writes: its tokens as they are, or the text that they spell."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewardgap.backbones.chat import check_readable, same_tokens
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.traces import TraceCache, node_room, node_states
from rewardgap.rewards.text_reader import text_node_states, text_states_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import NodeStates, Trace
    from rewardgap.core.records import Prompt


@dataclass(frozen=True)
class Reading:
    """A policy's tokens before a reward model.

    Attributes:
        policy: who writes.
        reward: who reads.
        by_text: whether the two have different tokenizers, so that text is what they have in common.
    """

    policy: Backbone
    reward: Backbone
    by_text: bool

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the candidates that end a text and take the reward of the prefix they close."""
        return (self.policy if self.by_text else self.reward).encoder.end_ids

    def keys(
        self, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], traces: Sequence[Sequence[Trace]]
    ) -> list[list[str]]:
        """Return the name of each trace's node states in a cache; the arguments are those of `states`."""
        rows = zip(prompts, ids, traces, strict=True)
        if self.by_text:
            encoder = self.policy.encoder
            return [[text_states_key(encoder, self.reward, prompt, own, t) for t in row] for prompt, own, row in rows]
        return [[TraceCache.states_key(self.reward, own, t) for t in row] for _, own, row in rows]

    def states(
        self, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], traces: Sequence[Sequence[Trace]]
    ) -> list[list[NodeStates]]:
        """Return the states at the nodes of traces, from a session of the reward model's own.

        Args:
            prompts: B prompts.
            ids: what the reward model reads for each of them.
            traces: the policy's, of each row's completions.
        """
        if self.by_text:
            return text_node_states(self.policy.encoder, self.reward, prompts, ids, traces)
        for trace in (trace for row in traces for trace in row):
            check_readable(trace.candidates, self.reward)
        session = TrieSession(self.reward, len(ids), max(map(len, ids)) + node_room(traces))
        return node_states(session, session.prefill(ids), traces, self.end_ids)


def reading_of(policy: Backbone, reward: Backbone, told: set[str]) -> Reading:
    """Return how a reward model reads a policy, and warn once where it does so by text.

    Args:
        policy: who writes.
        reward: the reward model's backbone, as the rows see it.
        told: fingerprints of the policies of which a warning was given; one is added to it.
    """
    by_text = not same_tokens(policy, reward)
    if by_text and policy.fingerprint not in told:
        told.add(policy.fingerprint)
        warnings.warn(
            f"the policy {policy.name} ({policy.vocabulary} tokens) and the reward model's backbone {reward.name} "
            f"({reward.vocabulary}) have different tokenizers: rewards are those of the text, decoded and encoded "
            "again for every candidate. That is slower than a reward model with the policy's tokenizer.",
            stacklevel=4,
        )
    return Reading(policy, reward, by_text)
