"""Everything that can be deployed for a user is an adapted policy: it generates, and it scores given completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rewardgap.backbones.memory import SessionPlan, check_memory
from rewardgap.backbones.serving import ServedBackbone
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.traces import LOGIT_ROWS, NODES_PER_ROW
from rewardgap.core.errors import ConfigError, DataError, NotScorableError
from rewardgap.core.records import SOURCE_SLOT, prompt_text
from rewardgap.core.seeds import child_seed
from rewardgap.decoding.base import Search
from rewardgap.decoding.outcome import StopRule
from rewardgap.metrics.policy_accuracy import FULL_VARIANTS, HEADLINE, VARIANT_NAMES
from rewardgap.policies.run import Generation, PolicyRun, Prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import Trace, TraceCache
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.decoding.base import Decoder
    from rewardgap.decoding.outcome import Decoded
    from rewardgap.rewards.guide import Guide, NodeRewards


@dataclass(frozen=True)
class GenerationSettings:
    """What all deployments of a study share.

    Args:
        max_new_tokens: tokens at most.
        min_new_tokens: end tokens may not come before.
        max_prompt_tokens: the longest a prompt may be, demonstrations left out; None for what the context allows.
        context_tokens: the longest a prompt with demonstrations may be; None for what the context allows.
        on_long: "error", or "truncate_prompt".
        first_line: completions are one line: generation stops at a line break, and the text is cut there.
        prompt_template: the instruction around each prompt's own text, with {prompt_source} in it; left out where
            prompts are compared, since all of them share it. None where prompts have none.
        score_top_k: candidates over which policy accuracy normalises where the deployment has no k of its own.
        seed: decides draws.
    """

    max_new_tokens: int = 32
    min_new_tokens: int = 0
    max_prompt_tokens: int | None = None
    context_tokens: int | None = None
    on_long: Literal["error", "truncate_prompt"] = "error"
    first_line: bool = False
    prompt_template: str | None = None
    score_top_k: int = 10
    seed: int = 0


class AdaptedPolicy(ABC):
    """A policy as one user meets it.

    Args:
        backbone: the frozen policy.
        decoder: how tokens are chosen.
        settings: shared by all deployments of a study.
        state: the user's state, for use with one user; `states=` of a call goes before it.
        traces: where scored completions are kept.
    """

    name: str = ""
    servable: bool = False
    """Whether it needs no more of the policy than what it writes and how probable it finds a text."""
    rows_a_prompt: int = 1
    """Rows that a prompt takes in a batch."""

    def __init__(
        self,
        backbone: Backbone,
        decoder: Decoder,
        settings: GenerationSettings | None = None,
        state: Any = None,
        traces: TraceCache | None = None,
    ) -> None:
        self.backbone, self.decoder = backbone, decoder
        self.settings = settings or GenerationSettings()
        self.state = state
        self.traces = traces

    @abstractmethod
    def adapt(self, support: Sequence[PreferencePair]) -> Any:
        """Return the state of a user who revealed these pairs."""

    def show(self, prompt: Prompt, state: Any, limit: int) -> Prepared:
        """Return the prompt as the policy reads it, in at most `limit` tokens."""
        ids = self.backbone.encoder.encode_prompt(prompt, max_tokens=limit, on_long=self.settings.on_long)
        return Prepared(prompt, ids)

    def network(self, states: Sequence[Any]) -> Backbone:
        """Return the network that reads a row a state: the policy itself, unless users have adapters of their own."""
        return self.backbone

    def guide(self, run: PolicyRun) -> Guide | None:
        """Return the rewards that steer a run, or None."""
        return None

    def node_rewards(self, run: PolicyRun, traces: Sequence[Sequence[Trace]]) -> list[list[NodeRewards]] | None:
        """Return the rewards along given completions, or None where there is no reward."""
        return None

    @property
    def scorable(self) -> bool:
        """Return whether given completions can be scored."""
        return not self.not_scorable

    @property
    def not_scorable(self) -> str:
        """Return why given completions cannot be scored, one sentence; empty where they can."""
        if isinstance(self.backbone, ServedBackbone) and self.backbone.engine.cannot_score:
            return self.backbone.engine.cannot_score
        if not isinstance(self.decoder, Search):
            return ""
        return (
            f"the decoder {self.decoder.name} gives a text no probability that could be computed, so it has no "
            "policy accuracy; score with args_greedy or args_stochastic."
        )

    @property
    def score_top_k(self) -> int:
        """Return the candidates over which policy accuracy normalises."""
        return self.settings.score_top_k

    @property
    def prompt_limit(self) -> int:
        """Return the longest a prompt may be, in tokens.

        Raises:
            DataError: if the new tokens leave no room for one.
        """
        settings, context = self.settings, self.backbone.context
        limit = min(settings.max_prompt_tokens or context, context - settings.max_new_tokens)
        if limit < 1:
            raise DataError(
                f"max_new_tokens {settings.max_new_tokens} leaves no room for a prompt: {self.backbone.name} reads "
                f"{context} tokens."
            )
        return limit

    def open(
        self,
        prompts: Sequence[Prompt],
        states: Sequence[Any] | None = None,
        seeds: Sequence[int] | None = None,
        completions: Sequence[Sequence[str]] = (),
    ) -> PolicyRun:
        """Prefill a batch of prompts of different users.

        Args:
            prompts: B prompts.
            states: B user states; the bound state for all unless given.
            seeds: B seeds for draws; made from settings.seed and the prompt unless given.
            completions: those that `scores` will be asked for, so that room is left for them.

        Raises:
            ConfigError: if the numbers of prompts and states differ, or the deployment needs weights that are not here.
            DataError: if a prompt and the new tokens do not fit the context.
            OutOfMemoryError: if the batch needs more memory than is free; the message names a batch size that fits.
        """
        states = [self.state] * len(prompts) if states is None else list(states)
        prepared = self._prepared(prompts, states)
        seeds = seeds or _seeds(self.settings.seed, prompts)
        if isinstance(self.backbone, ServedBackbone):
            from rewardgap.policies.served import ServedRun

            return ServedRun(self, self.backbone, prompts, states, prepared, seeds)
        plans = self.sessions(prompts, prepared, completions)
        check_memory(plans, len(prompts) // self.rows_a_prompt, self.rows_a_prompt)
        session = TrieSession(self.network(states), len(prompts), plans[0].prompt + plans[0].room)
        tips = session.prefill([p.ids for p in prepared])
        return PolicyRun(self, prompts, states, prepared, seeds, session, tips)

    def sessions(
        self, prompts: Sequence[Prompt], prepared: Sequence[Prepared], completions: Sequence[Sequence[str]] = ()
    ) -> list[SessionPlan]:
        """Return the sessions that a batch of these prompts opens, the policy's own first."""
        longest, room = max(len(p.ids) for p in prepared), self._room(completions, prompts)
        if any(completions):
            return [SessionPlan(self.backbone, longest, room, NODES_PER_ROW, LOGIT_ROWS)]
        return [SessionPlan(self.backbone, longest, room, self.decoder.top_k or 1)]

    def check_batches(
        self,
        prompts: Sequence[Prompt],
        states: Sequence[Any],
        batch_size: int,
        completions: Sequence[Sequence[str]] = (),
    ) -> None:
        """Refuse batches of these prompts that would not fit into memory, whichever of them come together.

        Args:
            prompts: all that will be asked.
            states: their user states.
            batch_size: prompts at a time at most.
            completions: those that `scores` will be asked for.

        Raises:
            OutOfMemoryError: naming a batch size that fits.
            DataError: if a prompt and the new tokens do not fit the context.
        """
        if prompts and not isinstance(self.backbone, ServedBackbone):
            plans = self.sessions(prompts, self._prepared(prompts, states), completions)
            check_memory(plans, min(batch_size, len(prompts)), self.rows_a_prompt)

    def _prepared(self, prompts: Sequence[Prompt], states: Sequence[Any]) -> list[Prepared]:
        if len(states) != len(prompts):
            raise ConfigError(f"{len(states)} states for {len(prompts)} prompts; give one state a prompt.")
        limit = self.prompt_limit
        return [self.show(prompt, state, limit) for prompt, state in zip(prompts, states, strict=True)]

    def generate(
        self,
        prompts: Sequence[Prompt],
        states: Sequence[Any] | None = None,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> list[str]:
        """Write a completion for each prompt.

        Args:
            prompts: B prompts.
            states: B user states; the bound state for all unless given.
            max_new_tokens: overrides the settings.
            min_new_tokens: overrides the settings.
            batch_size: prompts at a time: as a row ends, another prompt takes its place. All at once unless given.

        Raises:
            ConfigError: if batch_size is below 1.
            OutOfMemoryError: if a batch needs more memory than is free; the message names a batch size that fits.
        """
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1.")
        if not prompts:
            return []
        changed = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
        before = self.settings
        self.settings = replace(before, **{k: v for k, v in changed.items() if v is not None})  # type: ignore[arg-type]
        try:
            if batch_size is None:
                return [generation.text for generation in self.open(prompts, states).generate()]
            from rewardgap.policies.many import Asked, write_many

            texts = [""] * len(prompts)
            given = [self.state] * len(prompts) if states is None else states

            def keep(number: int, prepared: Prepared, written: Generation) -> None:
                texts[number] = written.text

            write_many(self, Asked(prompts, given, _seeds(self.settings.seed, prompts)), batch_size, keep)
            return texts
        finally:
            self.settings = before

    def log_score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        states: Sequence[Any] | None = None,
        *,
        variant: str = HEADLINE,
    ) -> NDArray[np.float64]:
        """Return (B,) log-scores of given completions, in nats.

        Args:
            prompts: B prompts.
            completions: B completions.
            states: B user states; the bound state for all unless given.
            variant: a variant of policy accuracy; the headline is the log-probability under stochastic guided decoding.

        Raises:
            NotScorableError: if the deployment has no tractable density, or not this variant.
            ConfigError: if there is no such variant.
        """
        if variant not in VARIANT_NAMES:
            raise ConfigError(f"unknown variant '{variant}'. Known: {', '.join(VARIANT_NAMES)}.")
        if not prompts:
            return np.zeros(0)
        rows = [[text] for text in completions]
        run = self.open(prompts, states, completions=rows)
        scores = [row[0].variants for row in run.scores(rows)]
        if variant not in scores[0]:
            raise NotScorableError(_missing_variant(self.name, variant, list(scores[0])))
        return np.array([variants[variant] for variants in scores])

    def stop_rule(self) -> StopRule:
        """Return when generation ends."""
        settings, encoder = self.settings, self.backbone.encoder
        return StopRule(
            encoder.end_ids,
            settings.max_new_tokens,
            settings.min_new_tokens,
            encoder.line_break_ids if settings.first_line else (),
        )

    def finish(self, decoded: Decoded) -> Generation:
        """Apply the completion rule to generated tokens."""
        text = complete(self.backbone.encoder.decode(decoded.ids), self.settings.first_line)
        steps, searched = len(decoded.reward_spread), decoded.proposed > 0
        fluency = sum(decoded.fluency_spread)
        return Generation(
            text,
            tuple(decoded.ids),
            decoded.ended,
            sum(decoded.reward_spread) / fluency if steps and fluency > 0 else None,
            decoded.changed / steps if steps else None,
            decoded.near_ties,
            decoded.guide_passes / decoded.steps if steps or searched else None,
            pruned=decoded.pruned,
            proposed=decoded.proposed if searched else None,
            distinct=decoded.distinct if searched else None,
            accepted=decoded.accepted if searched else None,
            questions=decoded.questions,
            ties=decoded.ties,
        )

    def _room(self, completions: Sequence[Sequence[str]], prompts: Sequence[Prompt]) -> int:
        encoder = self.backbone.encoder
        decoding = self.settings.max_new_tokens + (self.decoder.top_k or 1) + 1
        if isinstance(self.decoder, Search):
            decoding = self.decoder.room(self.settings.max_new_tokens)
        chains = [
            sum(len(encoder.encode_completion(text, after=prompt)) + 1 for text in row)
            for prompt, row in zip(prompts, completions, strict=False)
        ]
        return max(decoding, max(chains, default=0) + NODES_PER_ROW)


def _missing_variant(name: str, variant: str, known: Sequence[str]) -> str:
    reason = ""
    if variant in FULL_VARIANTS:
        reason = " Its reward is read one prefix at a time, and this needs that of every token of the vocabulary."
    return f"{name} has no {variant}.{reason} It has {', '.join(known)}."


def _seeds(seed: int, prompts: Sequence[Prompt]) -> list[int]:
    """Return a seed a prompt that does not depend on its place; the same prompt again gets another draw."""
    seen: Counter[Prompt] = Counter()
    out = []
    for prompt in prompts:
        out.append(child_seed(seed, "decode", repr(prompt), seen[prompt]))
        seen[prompt] += 1
    return out


def complete(text: str, first_line: bool) -> str:
    """Apply the completion rule: strip; where completions are one line, keep the first."""
    text = text.strip()
    return text.split("\n", 1)[0].strip() if first_line else text


def own_text(prompt: Prompt, template: str | None) -> str:
    """Return the last user turn without the instruction that a template puts around it."""
    text = prompt_text(prompt)
    if template is None:
        return text
    before, _, after = template.partition(SOURCE_SLOT)
    framed = text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)
    return text[len(before) : len(text) - len(after)] if framed else text
