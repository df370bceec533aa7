"""One batch of prompts under one deployment: what was shown, what it wrote, how it scores given completions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.backbones.traces import policy_traces
from rewardgap.core.errors import NotScorableError
from rewardgap.decoding.loop import decode
from rewardgap.metrics.policy_accuracy import coverage, policy_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from rewardgap.backbones.session import TrieSession
    from rewardgap.backbones.traces import Trace
    from rewardgap.core.records import Prompt
    from rewardgap.decoding.outcome import Watch
    from rewardgap.policies.base import AdaptedPolicy
    from rewardgap.rewards.guide import NodeRewards


@dataclass(frozen=True)
class Prepared:
    """A prompt as the policy reads it, with how many demonstrations it shows and how many did not fit."""

    prompt: Prompt
    ids: tuple[int, ...]
    shown: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Generation:
    """What a deployment wrote for one prompt.

    Attributes:
        text: the completion after the completion rule (stripped; first line only where the data say so).
        ids: token ids as generated.
        ended: whether an end token closed it.
        guidance_ratio: spread of λ r over spread of log π among candidates; None without guidance.
        changed: share of steps at which guidance took another token than the policy's best; None without guidance.
        near_ties: steps whose two best scores lay within 2e-4.
        guide_passes: times that candidates were rewarded, for each token written; below 1 where several steps shared
            one; None without guidance.
        pruned: candidates that no reward could have made win, so that none was read; None where rewards have no bound.
        proposed, distinct, accepted: pieces longer than a token that were judged, those that differed from the others
            of their choice, and those taken; None where single tokens are chosen.
        questions, ties: pairs of texts that a judge compared, and how many of them it could not tell apart; None where
            a reward decided.
    """

    text: str
    ids: tuple[int, ...]
    ended: bool
    guidance_ratio: float | None = None
    changed: float | None = None
    near_ties: int = 0
    guide_passes: float | None = None
    pruned: int | None = None
    proposed: int | None = None
    distinct: int | None = None
    accepted: int | None = None
    questions: int | None = None
    ties: int | None = None


@dataclass(frozen=True)
class Scores:
    """How a deployment scores one given completion: every variant of policy accuracy, and the top-k coverage."""

    variants: dict[str, float]
    coverage: float


@dataclass
class PolicyRun:
    """One batch of prompts under one deployment: prefilled once, then scored and continued in the same session.

    Score before generating: rows that end leave the session.
    """

    policy: AdaptedPolicy
    prompts: Sequence[Prompt]
    states: Sequence[Any]
    prepared: list[Prepared]
    seeds: Sequence[int]
    session: TrieSession
    tips: torch.Tensor
    guide_cost: tuple[int, int] = field(default=(0, 0))

    def scores(self, completions: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Score given completions of each prompt.

        Raises:
            NotScorableError: if the decoder gives texts no probability that could be computed.
        """
        policy = self.policy
        if policy.not_scorable:
            raise NotScorableError(policy.not_scorable)
        encoder = policy.backbone.encoder
        ids = [
            [encoder.encode_completion(text, after=prompt) for text in row]
            for prompt, row in zip(self.prompts, completions, strict=True)
        ]
        top_k = min(policy.score_top_k, policy.backbone.vocabulary)
        traces = self._traces(ids, top_k)
        rewards = policy.node_rewards(self, traces)
        weight = policy.decoder.guidance_weight if rewards is not None else 0.0
        temperature = policy.decoder.temperature if rewards is not None else 1.0
        return [
            [
                score_completion(trace, rewards[row][number] if rewards is not None else None, weight, temperature)
                for number, trace in enumerate(row_traces)
            ]
            for row, row_traces in enumerate(traces)
        ]

    def _traces(self, ids: Sequence[Sequence[Sequence[int]]], top_k: int) -> list[list[Trace]]:
        cache, backbone = self.policy.traces, self.policy.backbone
        if cache is None:
            return policy_traces(self.session, self.tips, ids, backbone.encoder.end_id, top_k)
        keys = [
            [cache.key(backbone, prepared.ids, text, top_k) for text in row]
            for prepared, row in zip(self.prepared, ids, strict=True)
        ]
        found = [[cache.load_trace(key) for key in row] for row in keys]
        if any(trace is None for row in found for trace in row):
            fresh = policy_traces(self.session, self.tips, ids, backbone.encoder.end_id, top_k)
            for row_keys, row in zip(keys, fresh, strict=True):
                for key, trace in zip(row_keys, row, strict=True):
                    cache.save_trace(key, trace)
            return fresh
        return [[trace for trace in row if trace is not None] for row in found]

    def generate(self, watch: Watch | None = None) -> list[Generation]:
        """Write a completion for each prompt; `watch` is called after each token of each row."""
        policy = self.policy
        guide = policy.guide(self)
        decoded = decode(
            self.session, self.tips, policy.decoder, policy.stop_rule(), guide=guide, seeds=self.seeds, watch=watch
        )
        if guide is not None:
            self.guide_cost = (guide.forwards, guide.tokens)
        return [policy.finish(row) for row in decoded]

    @property
    def forwards(self) -> int:
        """Return the forward passes so far, of policy and guide."""
        return self.session.forwards + self.guide_cost[0]

    @property
    def tokens(self) -> int:
        """Return the tokens sent through networks so far, of policy and guide."""
        return self.session.tokens + self.guide_cost[1]


def score_completion(
    trace: Trace, rewards: NodeRewards | None, guidance_weight: float, temperature: float = 1.0
) -> Scores:
    """Return every variant of one completion's score, from its trace and the rewards along it.

    `rgd_full` is among them where there is no reward, or one of every token of the vocabulary.
    """
    length, width = trace.candidates.shape
    hits = trace.candidates == trace.tokens[:, None]
    inside = hits.any(1)
    column = np.where(inside, hits.argmax(1), width)
    log_probs = np.concatenate([trace.candidate_log_probs, trace.log_probs[:, None]], 1)
    mask = np.concatenate([np.ones((length, width), bool), ~inside[:, None]], 1)
    gained = None
    prefixes = np.zeros(length + 1)
    # The policy alone is normalised as it is.
    normalisers: NDArray[np.float64] | None = np.zeros(length)
    if rewards is not None:
        prefixes = rewards.prefixes
        gained = np.concatenate([rewards.candidates, prefixes[1:, None]], 1)
        normalisers = None if rewards.whole is None else rewards.whole.log_normalisers(guidance_weight, temperature)
    variants = policy_scores(
        trace.log_probs,
        prefixes,
        guidance_weight,
        candidate_log_probs=log_probs,
        candidate_rewards=gained,
        candidate_mask=mask,
        gold_column=column,
        in_top_k=inside,
        log_normalisers=normalisers,
        temperature=temperature,
    )
    if rewards is None:
        del variants["reward_only"]
    return Scores(variants, coverage(inside))
