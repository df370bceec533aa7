"""The one generation loop: a prefilled session in, token ids out. It knows nothing of users, prompts or methods.

A guided step packs the k candidates as siblings below the tip. Where the reward is read on the policy's own states, the
same forward that scores the candidates also holds the winner's next logits, so guidance costs no second pass. A guide
with a network of its own is asked about several steps at once where that pays: see `look_ahead`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rewardgap.backbones.trie import siblings
from rewardgap.decoding.base import Search
from rewardgap.decoding.look_ahead import LOOK_AHEAD, LookAhead, decode_ahead
from rewardgap.decoding.outcome import (
    NEAR_TIE,
    Decoded,
    StopRule,
    Uniforms,
    Watch,
    candidates_of,
    check_fluency,
    check_rewards,
    step_facts,
)
from rewardgap.numerics.guidance import guided_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.base import Decoder
    from rewardgap.rewards.guide import Guide

__all__ = ["LOOK_AHEAD", "NEAR_TIE", "Decoded", "LookAhead", "StopRule", "Watch", "decode"]


def decode(
    session: TrieSession,
    tip_states: torch.Tensor,
    decoder: Decoder,
    stop: StopRule,
    *,
    guide: Guide | None = None,
    seeds: Sequence[int] = (),
    look_ahead: LookAhead | None = LOOK_AHEAD,
    watch: Watch | None = None,
) -> list[Decoded]:
    """Generate until every row has ended.

    Args:
        session: prefilled; its tips are the prompts' ends. Rows that end leave it, so it is spent afterwards.
        tip_states: (B, D) the policy's hidden states at the tips.
        decoder: the rule that picks a candidate.
        stop: when a row ends.
        guide: rewards of candidates; None decodes the policy alone.
        seeds: one a row, needed by decoders that draw: a row's tokens do not depend on its batch.
        look_ahead: how many steps a guide with a network of its own is asked about at once; None for one. The tokens
            are the same.
        watch: called after each token of each row.

    Raises:
        ModelError: if a reward is NaN or infinite, or the policy's logits are; the message names the row.
    """
    if decoder.draws and len(seeds) != session.rows:
        raise ValueError(f"{len(seeds)} seeds for {session.rows} rows.")
    uniforms = Uniforms(seeds) if decoder.draws else None
    with torch.no_grad():
        if isinstance(decoder, Search):
            return decoder.search(session, tip_states, stop, guide, seeds, watch)
        # Without weights to read there is nothing that steps could share.
        if (
            guide is not None
            and look_ahead is not None
            and not guide.reads_policy
            and (guide.num_weights or look_ahead.fixed)
        ):
            return decode_ahead(session, tip_states, decoder, stop, guide, uniforms, look_ahead, watch)
        return _step_by_step(session, tip_states, decoder, stop, guide, uniforms, watch)


def _step_by_step(
    session: TrieSession,
    tip_states: torch.Tensor,
    decoder: Decoder,
    stop: StopRule,
    guide: Guide | None,
    uniforms: Uniforms | None,
    watch: Watch | None,
) -> list[Decoded]:
    out = [Decoded() for _ in range(session.rows)]
    alive = list(range(session.rows))
    values = guide.start(tip_states).double() if guide is not None else None
    states = tip_states
    ends = torch.tensor(stop.end_ids, device=states.device)
    closers = torch.tensor(stop.closers, device=states.device)
    for step in range(stop.max_new_tokens):
        log_probs = session.backbone.log_probs(states)
        if step < stop.min_new_tokens:
            log_probs[:, closers] = -torch.inf
        fluency, candidates = candidates_of(log_probs, decoder.top_k)
        check_fluency(fluency, alive)
        nodes = None
        if guide is None:
            scores = fluency.double()
        else:
            assert values is not None
            width = candidates.shape[-1]
            if guide.reads_policy:
                rows = candidates.tolist()
                nodes = session.extend([siblings(r, tip) for r, tip in zip(rows, session.tips, strict=True)])
            rewards = guide.candidates(candidates, nodes).double()
            if not guide.rewards_ends:
                rewards = torch.where(torch.isin(candidates, ends), values[:, None], rewards)
            check_rewards(rewards, alive)
            scores = guided_scores(fluency, rewards, decoder.guidance_weight)
        drawn = None if uniforms is None else uniforms.at(alive, [step] * len(alive), states.device)
        choice = decoder.choose(scores, drawn)
        chosen = candidates.gather(-1, choice[:, None]).flatten()
        picks, tokens = choice.tolist(), chosen.tolist()
        if guide is not None:
            values = rewards.gather(-1, choice[:, None]).flatten()
            for row, value in zip(alive, values.tolist(), strict=True):
                out[row].reward = value
                out[row].guide_passes += 1
            if width > 1:
                facts = step_facts(scores, fluency, rewards * decoder.guidance_weight)
                for row, fact, best, token in zip(alive, facts, candidates[:, 0].tolist(), tokens, strict=True):
                    out[row].note(fact, best, token)
        kept = [place for place, row in enumerate(alive) if out[row].take(tokens[place], stop)]
        if watch is not None:
            for row in alive:
                watch(row, out[row])
        if not kept:
            break
        index = torch.tensor(kept, device=states.device)
        if guide is not None:
            guide.keep(picks, tokens)
        if nodes is not None:
            session.keep(picks, width)
            states = nodes[torch.arange(len(alive), device=states.device), choice]
        if len(kept) < len(alive):
            session.select(kept)
            alive = [alive[place] for place in kept]
            chosen = chosen[index]
            values = values[index] if values is not None else None
            if nodes is not None:
                states = states[index]
            if guide is not None:
                guide.select(kept)
        if nodes is None:
            blocks = [siblings([token], tip) for token, tip in zip(chosen.tolist(), session.tips, strict=True)]
            states = session.extend(blocks)[:, 0]
            session.keep([0] * len(alive), 1)
    return out
