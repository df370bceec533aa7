"""Reward-guided decoding: a frozen policy steered by a user's reward at each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rewardgap.core.errors import ConfigError
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.base import Search
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.horizon import LOOK_AHEAD
from rewardgap.policies.base import AdaptedPolicy, GenerationSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.memory import SessionPlan
    from rewardgap.backbones.session import TrieSession
    from rewardgap.backbones.traces import Trace, TraceCache
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.decoding.base import Decoder
    from rewardgap.policies.run import PolicyRun, Prepared
    from rewardgap.rewards.guide import Guide, NodeRewards


class GuidingReward(Protocol):
    """What steering needs of a reward model: a `RewardModel`, or a known truth."""

    @property
    def name(self) -> str:
        """Return the name in records."""
        ...

    def adapt(self, support: Sequence[PreferencePair]) -> Any:
        """Return a user's state."""
        ...

    def guide(
        self,
        policy: Backbone,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        states: Any,
        room: int,
    ) -> Guide:
        """Return rewards of candidate tokens for a batch of users."""
        ...

    def sessions(
        self, policy: Backbone, prompts: Sequence[Prompt], prompt_ids: Sequence[Sequence[int]], room: int
    ) -> list[SessionPlan]:
        """Return the sessions that `guide` opens; the arguments are the same."""
        ...

    def node_rewards(
        self,
        session: TrieSession,
        tip_states: torch.Tensor,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        traces: Sequence[Sequence[Trace]],
        states: Any,
        cache: TraceCache | None = None,
    ) -> list[list[NodeRewards]]:
        """Return the rewards along given completions."""
        ...


class Guided(AdaptedPolicy):
    """The policy under reward-guided decoding.

    Args:
        reward: the reward model that steers.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: Decoder,
        settings: GenerationSettings | None = None,
        *,
        reward: GuidingReward,
        **rest: Any,
    ) -> None:
        super().__init__(backbone, decoder, settings, **rest)
        if isinstance(decoder, BestOfN):
            # Whole texts are rewarded once they are there, wherever they were written.
            self.servable = True
            decoder.check_rewarded()
        self.reward = reward
        self.name = reward.name

    def adapt(self, support: Sequence[PreferencePair]) -> Any:
        """Return the reward model's state of the user."""
        return self.reward.adapt(support)

    @property
    def score_top_k(self) -> int:
        """Return the decoder's own k."""
        return self.decoder.top_k or self.settings.score_top_k

    def guide(self, run: PolicyRun) -> Guide:
        """Return the user's rewards of candidate tokens."""
        ids = [prepared.ids for prepared in run.prepared]
        return self.reward.guide(self.backbone, run.prompts, ids, _states(run), self._guide_room())

    def sessions(
        self, prompts: Sequence[Prompt], prepared: Sequence[Prepared], completions: Sequence[Sequence[str]] = ()
    ) -> list[SessionPlan]:
        """Return the policy's session and those of its guide."""
        own = super().sessions(prompts, prepared, completions)
        room = max(self._guide_room(), own[0].room) if any(completions) else self._guide_room()
        return [*own, *self.reward.sessions(self.backbone, prompts, [p.ids for p in prepared], room)]

    def _guide_room(self) -> int:
        tokens = self.settings.max_new_tokens
        if isinstance(self.decoder, Search):
            return self.decoder.room(tokens)
        return tokens + LOOK_AHEAD.most * (self.decoder.top_k or 1) + 1

    def node_rewards(self, run: PolicyRun, traces: Sequence[Sequence[Trace]]) -> list[list[NodeRewards]]:
        """Return the user's rewards along given completions."""
        ids = [prepared.ids for prepared in run.prepared]
        return self.reward.node_rewards(run.session, run.tips, run.prompts, ids, traces, _states(run), self.traces)


def _states(run: PolicyRun) -> Sequence[Any]:
    if any(state is None for state in run.states):
        raise ConfigError("reward-guided decoding needs a user state; pass state=rm.adapt(support), or states=[...].")
    return run.states


def guided(
    policy: Backbone,
    reward: GuidingReward,
    state: Any = None,
    *,
    guidance_weight: float = 1.0,
    top_k: int = 10,
    decoder: Decoder | None = None,
    settings: GenerationSettings | None = None,
) -> Guided:
    """Return the policy steered by a reward model.

    Args:
        policy: the frozen policy.
        reward: a fitted reward model.
        state: one user's state; leave it out and pass `states=` to each call for a batch of users.
        guidance_weight: λ, in units of the reward's margin deviation on training users.
        top_k: candidates a step.
        decoder: another scheme than greedy ARGS; it brings its own weight and k.
        settings: lengths and rules.
    """
    return Guided(policy, decoder or ArgsGreedy(guidance_weight, top_k), settings, reward=reward, state=state)
