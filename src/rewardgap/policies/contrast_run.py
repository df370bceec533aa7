"""One batch of prompts under a deployment that contrasts two policies: both read along in one session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rewardgap.decoding.contrast import Contrast, contrast_traces
from rewardgap.policies.run import PolicyRun, Scores, score_completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.traces import Trace
    from rewardgap.decoding.outcome import Watch
    from rewardgap.policies.run import Generation
    from rewardgap.rewards.guide import NodeRewards


@dataclass
class ContrastRun(PolicyRun):
    """A batch of prompts whose session holds 2B rows: each prompt under the adapted policy, then each under the base.

    `prompts`, `states`, `prepared` and `seeds` are those of the B prompts; `session` and `tips` have both halves.
    """

    @classmethod
    def of(cls, both: PolicyRun, states: Sequence[Any]) -> Self:
        """Return the run of B prompts, given that of the 2B rows and the B users' states."""
        count = len(states)
        half = (both.prompts[:count], states, both.prepared[:count], both.seeds[:count])
        return cls(both.policy, *half, both.session, both.tips)

    def scores(self, completions: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Score given completions of each prompt; what is normalised over stands at the deployment."""
        encoder, rule = self.policy.backbone.encoder, self.policy.decoder
        assert isinstance(rule, Contrast)
        ids = [
            [encoder.encode_completion(text, after=prompt) for text in row]
            for prompt, row in zip(self.prompts, completions, strict=True)
        ]
        traces = contrast_traces(self.session, self.tips, ids, encoder.end_id, rule)
        return [[_scores(trace, rewards, rule) for trace, rewards in row] for row in traces]

    def generate(self, watch: Watch | None = None) -> list[Generation]:
        """Write a completion for each prompt; `watch` is told of the base's rows too, which come second."""
        return super().generate(watch)[: len(self.prompts)]


def _scores(trace: Trace, rewards: NodeRewards, rule: Contrast) -> Scores:
    found = score_completion(trace, rewards, rule.guidance_weight, rule.temperature)
    # A contrast of a text is no reward of it: there is nothing that this variant could be checked against.
    del found.variants["reward_only"]
    return found
