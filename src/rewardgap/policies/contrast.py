"""Contrast of two policies: what an adapted policy finds more probable than another one counts once more."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError
from rewardgap.decoding.contrast import Contrast
from rewardgap.decoding.plain import Greedy
from rewardgap.policies.base import AdaptedPolicy
from rewardgap.policies.cards import PolicyCard
from rewardgap.policies.contrast_run import ContrastRun
from rewardgap.policies.in_context import InContext
from rewardgap.policies.user_training import is_number
from rewardgap.policies.zero_shot import ZeroShot
from rewardgap.rewards.base import meaning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import TraceCache
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.policies.base import GenerationSettings
    from rewardgap.policies.run import Prepared


@dataclass(frozen=True)
class ContrastConfig:
    """Settings of the deployment."""

    guidance_weight: float = field(default=0.5, metadata=meaning("λ of the contrast; 0 leaves in-context learning"))
    plausibility: float = field(
        default=0.1,
        metadata=meaning("share of the most probable token's probability that a token must have to be chosen"),
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not is_number(self.guidance_weight) or not 0 <= self.guidance_weight < math.inf:
            raise ConfigError(
                f"contrast: guidance_weight is {self.guidance_weight!r}; expected a finite number of at least 0."
            )
        if not is_number(self.plausibility) or not 0 < self.plausibility <= 1:
            raise ConfigError(
                f"contrast: plausibility is {self.plausibility!r}; expected a number above 0 and at most 1."
            )


@dataclass(frozen=True)
class ContrastState:
    """A user's state under both policies."""

    plus: Any
    minus: Any


class Contrasted(AdaptedPolicy):
    """One policy, away from another.

        argmax of log π_+(v | x, y<t) + λ (log π_+(v | x, y<t) - log π_-(v | x, y<t))
        over v with π_+(v) ≥ plausibility · max π_+

    Both are the same network behind different prompts, and read along in the same forward passes. At λ = 0, or where
    both prompts are the same, the texts are those of π_+.

    Given completions are scored under a draw from the plausible tokens, since the best of them has no density:

        q(v) = e^{s(v)} / Σ_{w ∈ C} e^{s(w)},   s the contrast,   C = the plausible tokens there, and the scored one

    `rgd_topk` is Σ_t log q(y_t), `rgd_full` the same with every token of the vocabulary in C, `coverage` the share of
    plausible ones among the scored, `base` is log π_+(y | x), and `raw_delta` the contrast of the whole text.

    Args:
        plus: π_+.
        minus: π_-, on the same backbone and with the same settings.
        config: λ, and what is plausible.
        state: a user's state, for use with one user; `states=` of a call goes before it.

    Raises:
        ConfigError: if the two have different backbones or settings, or one reads through adapters of its own.

    Source: context-aware decoding, arXiv 2305.14739, under the plausibility constraint of contrastive decoding,
        arXiv 2210.15097.
    """

    name = "contrast"
    rows_a_prompt = 2

    def __init__(
        self,
        plus: AdaptedPolicy,
        minus: AdaptedPolicy,
        *,
        config: ContrastConfig | None = None,
        state: ContrastState | None = None,
    ) -> None:
        self.config = config or ContrastConfig()
        if plus.backbone.fingerprint != minus.backbone.fingerprint or plus.settings != minus.settings:
            raise ConfigError(
                f"contrast needs two policies of one backbone and the same settings, got {plus.name} on "
                f"{plus.backbone.name} and {minus.name} on {minus.backbone.name}."
            )
        for side in (plus, minus):
            if type(side).network is not AdaptedPolicy.network:
                raise ConfigError(f"contrast reads both policies in one network, and {side.name} has adapters in it.")
        rule = Contrast(self.config.guidance_weight, self.config.plausibility, relative=True)
        # No traces are kept: they hold one policy's view.
        super().__init__(plus.backbone, rule, plus.settings, state=state)
        self.plus, self.minus = plus, minus

    def adapt(self, support: Sequence[PreferencePair]) -> ContrastState:
        """Return the user's state under both policies."""
        return ContrastState(self.plus.adapt(support), self.minus.adapt(support))

    def show(self, prompt: Prompt, state: Any, limit: int) -> Prepared:
        """Return the prompt as a side reads it, given the side and the user's state there; π_+'s, given both."""
        side, own = (self.plus, state.plus) if isinstance(state, ContrastState) else state
        prepared: Prepared = side.show(prompt, own, limit)
        return prepared

    def open(
        self,
        prompts: Sequence[Prompt],
        states: Sequence[Any] | None = None,
        seeds: Sequence[int] | None = None,
        completions: Sequence[Sequence[str]] = (),
    ) -> ContrastRun:
        """Prefill a batch of prompts of different users, as π_+ reads them and as π_- does.

        Args:
            prompts: B prompts.
            states: B user states; the bound state for all unless given.
            seeds: not read: nothing is drawn.
            completions: those that `scores` will be asked for, so that room is left for them.

        Raises:
            ConfigError: if a state is missing or another deployment's, or the numbers of prompts and states differ.
            DataError: if a prompt and the new tokens do not fit the context.
        """
        users = [self.state] * len(prompts) if states is None else list(states)
        if len(users) != len(prompts):
            raise ConfigError(f"{len(users)} states for {len(prompts)} prompts; give one state a prompt.")
        for user in users:
            if not isinstance(user, ContrastState):
                raise ConfigError(
                    f"contrast needs a user's state under both policies, got {type(user).__name__}; "
                    "pass state=policy.adapt(support), or states=[...]."
                )
        both = [*((self.plus, user.plus) for user in users), *((self.minus, user.minus) for user in users)]
        return ContrastRun.of(
            super().open([*prompts, *prompts], both, seeds and [*seeds, *seeds], [*completions] * 2), users
        )


def contrast(plus: AdaptedPolicy, minus: AdaptedPolicy, **options: Any) -> Contrasted:
    """Return one policy, away from another, each with the state bound to it.

    Args:
        plus: for example `in_context(policy, support)`.
        minus: for example `zero_shot(policy)`.
        options: fields of `ContrastConfig`.
    """
    state = ContrastState(plus.state, minus.state)
    return Contrasted(plus, minus, config=ContrastConfig(**options), state=state)


def _build(
    backbone: Backbone,
    settings: GenerationSettings,
    traces: TraceCache | None,
    num_demonstrations: int | None,
    retriever: str | None,
    **options: Any,
) -> Contrasted:
    plus = InContext(
        backbone, Greedy(), settings, num_demonstrations=num_demonstrations, retriever=retriever or "recent"
    )
    return Contrasted(plus, ZeroShot(backbone, Greedy(), settings), config=ContrastConfig(**options))


CARD = PolicyCard(
    name="contrast",
    summary="The policy with the user's examples in its prompt, decoded away from the policy without them.",
    equation="argmax over π_+(v) ≥ p · max π_+ of log π_+(v) + λ (log π_+(v) - log π_-(v)), "
    "π_+ = π(· | demonstrations, x, y<t), π_- = π(· | x, y<t)",
    paper="Shi et al. 2023, Trusting Your Evidence: context-aware decoding, arXiv 2305.14739",
    build=_build,
    retriever="recent",
    deviations=(
        "The context is the user's own examples as chat turns, in the place of a document.",
        "Only tokens that the policy with examples finds plausible can be chosen, as in contrastive decoding "
        "(arXiv 2210.15097); the paper constrains nothing when it takes the best token.",
        "A given completion is scored under a draw from the plausible tokens in proportion to the exponential of the "
        "contrast: taking the best has no density.",
    ),
    personal=True,
    options={
        "num_demonstrations": "shots, at most; the whole support set unless given",
        "retriever": "which of them, most useful first; the most recent unless given",
    },
    config=ContrastConfig,
)
