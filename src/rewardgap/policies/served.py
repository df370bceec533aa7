"""Deployments of a policy that a serving engine holds: what they read and write is what they would locally."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewardgap.backbones.serving import COOLEST, Asked, ServedBackbone, WriteRule, Written
from rewardgap.core.errors import ConfigError, ModelError, NotScorableError
from rewardgap.core.seeds import child_seed
from rewardgap.decoding.outcome import Decoded, StopRule, Watch
from rewardgap.decoding.plain import Greedy, Sample
from rewardgap.policies.run import Generation, PolicyRun, Prepared, Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.traces import Trace
    from rewardgap.core.records import Prompt
    from rewardgap.policies.base import AdaptedPolicy


class ServedRun(PolicyRun):
    """One batch of prompts under one deployment of a served policy. There is no session: each call asks the engine.

    Args:
        policy: the deployment.
        backbone: its policy.
        prompts: B prompts.
        states: B user states.
        prepared: the prompts as the policy reads them.
        seeds: B seeds for draws.

    Raises:
        ConfigError: if the deployment needs weights, or its decoder more than drawing from the policy.
    """

    def __init__(
        self,
        policy: AdaptedPolicy,
        backbone: ServedBackbone,
        prompts: Sequence[Prompt],
        states: Sequence[Any],
        prepared: list[Prepared],
        seeds: Sequence[int],
    ) -> None:
        if not policy.servable:
            raise ConfigError(f"'{policy.name}' cannot be deployed on a served policy. {_needs_weights(backbone)}")
        self.policy, self.backbone = policy, backbone
        self.prompts, self.states, self.prepared, self.seeds = prompts, states, prepared, seeds
        self.rule = _write_rule(policy, backbone)
        self._requests = 0
        self._tokens = 0

    def scores(self, completions: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Score given completions of each prompt.

        Raises:
            NotScorableError: if the engine gives no log-probabilities of given texts.
        """
        if self.backbone.engine.cannot_score:
            raise NotScorableError(self.backbone.engine.cannot_score)
        return super().scores(completions)

    def _traces(self, ids: Sequence[Sequence[Sequence[int]]], top_k: int) -> list[list[Trace]]:
        # Not kept in the cache of traces: weights may change behind a name.
        self._requests += sum(map(len, ids))
        self._tokens += sum(
            len(p.ids) + len(text) + 1 for p, row in zip(self.prepared, ids, strict=True) for text in row
        )
        return self.backbone.traces([prepared.ids for prepared in self.prepared], ids, top_k)

    def generate(self, watch: Watch | None = None) -> list[Generation]:
        """Write a completion for each prompt; `watch` is told of the tokens once a row is there as a whole."""
        asked = [Asked(p.prompt, p.ids, seed) for p, seed in zip(self.prepared, self.seeds, strict=True)]
        written = self.backbone.engine.write(asked, self.rule)
        self._requests += len(asked)
        self._tokens += sum(len(job.ids) + len(row.ids) for job, row in zip(asked, written, strict=True))
        stop = self.policy.stop_rule()
        return [
            self.policy.finish(_decoded(row, number, stop, self.backbone, watch)) for number, row in enumerate(written)
        ]

    @property
    def forwards(self) -> int:
        """Return the requests so far."""
        return self._requests

    @property
    def tokens(self) -> int:
        """Return the tokens read and written so far."""
        return self._tokens


def candidate_pool(
    policy: AdaptedPolicy, prompts: Sequence[Prompt], states: Sequence[Any] | None = None, *, n: int
) -> list[list[Generation]]:
    """Draw n completions of each prompt: the candidates of best-of-N, one pool for all reward models.

    Candidate j of a prompt depends on the prompt and j, not on the batch, so a pool of 4 is the beginning of one of 8.

    Args:
        policy: a deployment that draws, for example `zero_shot(policy, decoder=Sample(1.0))`.
        prompts: B prompts.
        states: B user states; the bound state for all unless given.
        n: candidates a prompt.

    Returns:
        For each prompt its n candidates, in order.

    Raises:
        ConfigError: if n is below 1, or the decoder does not draw.
    """
    if n < 1:
        raise ConfigError(f"n is {n}; a pool needs at least 1 candidate.")
    if not policy.decoder.draws:
        raise ConfigError(f"the decoder {policy.decoder.name} gives {n} times the same text; use sample.")
    states = [policy.state] * len(prompts) if states is None else states
    rows = [(prompt, state, j) for prompt, state in zip(prompts, states, strict=True) for j in range(n)]
    if not rows:
        return []
    seeds = [child_seed(policy.settings.seed, "pool", repr(prompt), j) for prompt, _, j in rows]
    run = policy.open([prompt for prompt, _, _ in rows], [state for _, state, _ in rows], seeds)
    drawn = run.generate()
    return [drawn[begin : begin + n] for begin in range(0, len(drawn), n)]


def _write_rule(policy: AdaptedPolicy, backbone: ServedBackbone) -> WriteRule:
    decoder, stop = policy.decoder, policy.stop_rule()
    lengths = (stop.max_new_tokens, stop.min_new_tokens, tuple(stop.closers))
    if isinstance(decoder, Greedy):
        return WriteRule(*lengths)
    if not isinstance(decoder, Sample):
        raise ConfigError(f"decoder '{decoder.name}' cannot decode a served policy. {_needs_weights(backbone)}")
    if decoder.temperature < COOLEST:
        raise ConfigError(
            f"temperature {decoder.temperature} is below {COOLEST}, which a serving engine takes for {COOLEST}; "
            "use greedy."
        )
    return WriteRule(*lengths, decoder.temperature, decoder.top_k)


def _needs_weights(backbone: ServedBackbone) -> str:
    return (
        f"It needs the weights of '{backbone.name}', which are in a serving engine: deploy zero_shot, icl or icl_rag "
        "with greedy or sample, or give a local policy."
    )


def _decoded(row: Written, number: int, stop: StopRule, backbone: ServedBackbone, watch: Watch | None) -> Decoded:
    """Return a written row as the local loop would hand it back.

    Raises:
        ModelError: if it was closed by a token that closes nothing here.
    """
    tokenizer = backbone.encoder.tokenizer
    if row.closed and (not row.ids or row.ids[-1] not in {*stop.closers, *tokenizer.all_special_ids}):
        last = f"token {row.ids[-1]} ({tokenizer.decode([row.ids[-1]])!r})" if row.ids else "no token"
        raise ModelError(
            f"the engine of '{backbone.name}' closed a completion with {last}, which closes none under the tokenizer "
            "here. Give the tokenizer that the engine uses."
        )
    out = Decoded()
    ends = (*stop.end_ids, *(row.ids[-1:] if row.closed and row.ids[-1] not in stop.stop_ids else ()))
    known = StopRule(ends, stop.max_new_tokens, stop.min_new_tokens, stop.stop_ids)
    for token in row.ids:
        out.take(token, known)
        if watch is not None:
            watch(number, out)
    return out
