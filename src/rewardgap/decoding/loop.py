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
from rewardgap.decoding.horizon import LOOK_AHEAD, LookAhead
from rewardgap.decoding.look_ahead import decode_ahead
from rewardgap.decoding.outcome import (
    NEAR_TIE,
    Decoded,
    StopRule,
    Watch,
    candidates_of,
    check_fluency,
    check_rewards,
    step_facts,
)
from rewardgap.decoding.rows import Feed, Rows
from rewardgap.numerics.guidance import guided_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.base import Decoder
    from rewardgap.rewards.guide import Guide

__all__ = ["LOOK_AHEAD", "NEAR_TIE", "Decoded", "Feed", "LookAhead", "StopRule", "Watch", "decode"]


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
    feed: Feed | None = None,
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
        feed: where further rows come from, which take the places of those that ended; not for searches.

    Returns:
        What each row holds: the session's, then those of the feed as they came.

    Raises:
        ModelError: if a reward is NaN or infinite, or the policy's logits are; the message names the row.
    """
    if decoder.draws and len(seeds) != session.rows:
        raise ValueError(f"{len(seeds)} seeds for {session.rows} rows.")
    with torch.no_grad():
        if isinstance(decoder, Search):
            if feed is not None:
                raise ValueError(f"{decoder.name} searches: no rows enter its batch.")
            return decoder.search(session, tip_states, stop, guide, seeds, watch)
        rows = Rows(session, tip_states, guide, seeds if decoder.draws else None, feed)
        # Without weights to read there is nothing that steps could share.
        if (
            guide is not None
            and look_ahead is not None
            and not guide.reads_policy
            and (guide.num_weights or look_ahead.fixed)
        ):
            return decode_ahead(rows, guide, decoder, stop, look_ahead, watch)
        return _step_by_step(rows, guide, decoder, stop, watch)


def _step_by_step(
    rows: Rows, guide: Guide | None, decoder: Decoder, stop: StopRule, watch: Watch | None
) -> list[Decoded]:
    session, out, device = rows.session, rows.out, rows.states.device
    ends, closers = torch.tensor(stop.end_ids, device=device), torch.tensor(stop.closers, device=device)
    while rows.alive:
        alive = rows.alive
        log_probs = session.backbone.log_probs(rows.states)
        early = [place for place, row in enumerate(alive) if out[row].steps < stop.min_new_tokens]
        if early:
            log_probs[torch.tensor(early, device=device)[:, None], closers] = -torch.inf
        fluency, candidates = candidates_of(log_probs, decoder.top_k)
        check_fluency(fluency, alive)
        nodes, width = None, candidates.shape[-1]
        if guide is None:
            scores = fluency.double()
        else:
            if guide.reads_policy:
                session.reserve(width)
                ids = candidates.tolist()
                nodes = session.extend([siblings(row, tip) for row, tip in zip(ids, session.tips, strict=True)])
            rewards = guide.candidates(candidates, nodes).double()
            if not guide.rewards_ends:
                assert rows.values is not None
                rewards = torch.where(torch.isin(candidates, ends), rows.values[:, None], rewards)
            check_rewards(rewards, alive)
            scores = guided_scores(fluency, rewards, decoder.guidance_weight)
        choice = decoder.choose(scores, rows.drawn())
        chosen = candidates.gather(-1, choice[:, None]).flatten()
        picks, tokens = choice.tolist(), chosen.tolist()
        if guide is not None:
            rows.values = rewards.gather(-1, choice[:, None]).flatten()
            for row, value in zip(alive, rows.values.tolist(), strict=True):
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
        if guide is not None:
            guide.keep(picks, tokens)
        if nodes is not None:
            session.keep(picks, width)
            rows.states = nodes[torch.arange(len(alive), device=device), choice]
        index = rows.select(kept)
        if rows.values is not None:
            rows.values = rows.values[index]
        if nodes is None:
            session.reserve(1)
            blocks = [siblings([token], tip) for token, tip in zip(chosen[index].tolist(), session.tips, strict=True)]
            rows.states = session.extend(blocks)[:, 0]
            session.keep([0] * len(kept), 1)
        else:
            rows.states = rows.states[index]
        rows.refill()
    return out
