"""Deployments of a policy that a serving engine holds: what they read and write is what they would locally."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from rewardgap.backbones.serving import COOLEST, Asked, ServedBackbone, WriteRule, Written
from rewardgap.core.errors import ConfigError, ModelError, NotScorableError
from rewardgap.core.seeds import child_seed
from rewardgap.decoding.best_of_n import BestOfN, pool_stream
from rewardgap.decoding.chains import Chain
from rewardgap.decoding.choosing import needs_guide, write_down
from rewardgap.decoding.outcome import Decoded, StopRule, Watch
from rewardgap.decoding.plain import Greedy, Sample
from rewardgap.decoding.pools import PoolCache
from rewardgap.decoding.sampling import stream_seed
from rewardgap.policies.judged import Judged
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
            raise ConfigError(
                f"'{policy.name}' with decoder '{policy.decoder.name}' cannot be deployed on a served policy. "
                f"{_needs_weights(backbone)}"
            )
        self.policy, self.backbone = policy, backbone
        self.prompts, self.states, self.prepared, self.seeds = prompts, states, prepared, seeds
        self.rule = _write_rule(policy, backbone)
        self.guide_cost = (0, 0)
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
        decoder, stop = self.policy.decoder, self.policy.stop_rule()
        if isinstance(decoder, BestOfN):
            return [self.policy.finish(row) for row in self._best(decoder, stop, watch)]
        written = self._write([Asked(p.prompt, p.ids, seed) for p, seed in zip(self.prepared, self.seeds, strict=True)])
        out = []
        for number, row in enumerate(written):
            done = Decoded()
            write_down(done, _tokens(row, stop, self.backbone), stop, number, watch)
            out.append(self.policy.finish(done))
        return out

    def _best(self, decoder: BestOfN, stop: StopRule, watch: Watch | None) -> list[Decoded]:
        chains, drafted = self._texts(decoder, stop)
        if isinstance(self.policy, Judged):
            return self.policy.pick(self, chains, drafted, watch)
        guide = needs_guide(decoder.name, self.policy.guide(self))
        no_states = torch.empty((len(chains), 0))
        with torch.no_grad():
            decoded = decoder.take_best(guide, no_states, chains, drafted, stop, self.seeds, watch=watch)
        self.guide_cost = (guide.forwards, guide.tokens)
        return decoded

    def _texts(self, decoder: BestOfN, stop: StopRule) -> tuple[list[list[Chain]], list[int]]:
        """Return the N texts of each row, and how many tokens were drawn for them now."""
        prompts, pool_seed = [prepared.ids for prepared in self.prepared], decoder.pool_seed
        own = self.seeds if pool_seed is None else [pool_stream(pool_seed, list(ids)) for ids in prompts]

        def draw(numbers: list[range]) -> list[list[Chain]]:
            rows = zip(self.prepared, own, numbers, strict=True)
            asked = [Asked(p.prompt, p.ids, stream_seed(seed, j)) for p, seed, streams in rows for j in streams]
            written = iter(self._write(asked))
            return [[_chain(_tokens(next(written), stop, self.backbone), stop) for _ in row] for row in numbers]

        if pool_seed is None:
            chains = draw([range(decoder.n)] * len(prompts))
            return chains, [sum(len(chain.tokens) for chain in row) for row in chains]
        cache, fingerprint = PoolCache(), self.backbone.fingerprint
        keys = [cache.key(fingerprint, ids, stop, decoder.temperature, decoder.top_p, pool_seed) for ids in prompts]
        return cache.filled(keys, decoder.n, draw)

    def _write(self, asked: Sequence[Asked]) -> list[Written]:
        written = self.backbone.engine.write(asked, self.rule)
        self._requests += len(asked)
        self._tokens += sum(len(job.ids) + len(row.ids) for job, row in zip(asked, written, strict=True))
        return written

    @property
    def forwards(self) -> int:
        """Return the requests so far, and the forward passes of who picks among texts."""
        return self._requests + self.guide_cost[0]

    @property
    def tokens(self) -> int:
        """Return the tokens read and written so far, and those sent through the network of who picks among texts."""
        return self._tokens + self.guide_cost[1]


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
    if not isinstance(decoder, (Sample, BestOfN)):
        raise ConfigError(f"decoder '{decoder.name}' cannot decode a served policy. {_needs_weights(backbone)}")
    if decoder.temperature < COOLEST:
        raise ConfigError(
            f"temperature {decoder.temperature} is below {COOLEST}, which a serving engine takes for {COOLEST}; "
            "use greedy."
        )
    if isinstance(decoder, Sample):
        return WriteRule(*lengths, decoder.temperature, decoder.top_k)
    if decoder.log_prob_weight:
        raise ConfigError(
            f"best_of_n: log_prob_weight is {decoder.log_prob_weight}, and '{backbone.name}' is in a serving engine, "
            "whose texts come without their log-probabilities; leave it out."
        )
    return WriteRule(*lengths, decoder.temperature, top_p=decoder.top_p)


def _needs_weights(backbone: ServedBackbone) -> str:
    return (
        f"It needs the weights of '{backbone.name}', which are in a serving engine: deploy zero_shot, icl or icl_rag "
        "with greedy or sample, best_of_n with a local reward model or judge, or give a local policy."
    )


def _tokens(row: Written, stop: StopRule, backbone: ServedBackbone) -> list[int]:
    """Return a written row as the local loop would choose it: an end token of the engine's own counts as ours.

    Raises:
        ModelError: if it was closed by a token that closes nothing here.
    """
    tokenizer, ids = backbone.encoder.tokenizer, list(row.ids)
    if row.closed and (not ids or ids[-1] not in {*stop.closers, *tokenizer.all_special_ids}):
        last = f"token {ids[-1]} ({tokenizer.decode([ids[-1]])!r})" if ids else "no token"
        raise ModelError(
            f"the engine of '{backbone.name}' closed a completion with {last}, which closes none under the tokenizer "
            "here. Give the tokenizer that the engine uses."
        )
    return [*ids[:-1], backbone.encoder.end_id] if row.closed and ids[-1] not in stop.closers else ids


def _chain(tokens: list[int], stop: StopRule) -> Chain:
    """Return a text as a pool holds it; how probable it is, an engine does not say."""
    return Chain(tokens, [], math.nan, tokens[-1] in stop.closers, True)
