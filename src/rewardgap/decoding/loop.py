"""The one generation loop: a prefilled session in, token ids out. It knows nothing of users, prompts or methods.

A guided step packs the k candidates as siblings below the tip. Where the reward is read on the policy's own states, the
same forward that scores the candidates also holds the winner's next logits, so guidance costs no second pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from rewardgap.backbones.trie import siblings
from rewardgap.core.errors import ModelError
from rewardgap.numerics.guidance import guided_scores
from rewardgap.numerics.topk import top_candidates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.base import Decoder
    from rewardgap.rewards.guide import Guide

NEAR_TIE = 2e-4


@dataclass(frozen=True)
class StopRule:
    """When a row ends.

    Attributes:
        end_ids: control tokens that end a completion and are not part of it.
        stop_ids: ordinary tokens after which a row ends, for example those with a line break.
        max_new_tokens: tokens at most, the ending one included.
        min_new_tokens: end and stop tokens may not be chosen before this many tokens.
    """

    end_ids: tuple[int, ...]
    max_new_tokens: int
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()


@dataclass
class Decoded:
    """One finished row.

    Attributes:
        ids: tokens chosen, a stop token included, an end token not.
        ended: whether an end or stop token closed it (else the length limit did).
        changed: steps at which guidance took another token than the policy's best.
        near_ties: steps whose two best scores lay within 2e-4: another batch may choose the other.
        reward_spread: per step, standard deviation over the candidates of λ r.
        fluency_spread: per step, standard deviation over the candidates of log π.
        reward: the guide's reward of the finished prefix; None without a guide.
    """

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    changed: int = 0
    near_ties: int = 0
    reward_spread: list[float] = field(default_factory=list)
    fluency_spread: list[float] = field(default_factory=list)
    reward: float | None = None


def decode(
    session: TrieSession,
    tip_states: torch.Tensor,
    decoder: Decoder,
    stop: StopRule,
    *,
    guide: Guide | None = None,
    seeds: Sequence[int] = (),
) -> list[Decoded]:
    """Generate until every row has ended.

    Args:
        session: prefilled; its tips are the prompts' ends. Rows that end leave it, so it is spent afterwards.
        tip_states: (B, D) the policy's hidden states at the tips.
        decoder: the rule that picks a candidate.
        stop: when a row ends.
        guide: rewards of candidates; None decodes the policy alone.
        seeds: one a row, needed by decoders that draw: a row's tokens do not depend on its batch.

    Raises:
        ModelError: if a reward is NaN or infinite, or the policy's logits are; the message names the row.
    """
    if decoder.draws and len(seeds) != session.rows:
        raise ValueError(f"{len(seeds)} seeds for {session.rows} rows.")
    generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
    out = [Decoded() for _ in range(session.rows)]
    alive = list(range(session.rows))
    values = guide.start(tip_states).double() if guide is not None else None
    states = tip_states
    ends = torch.tensor(stop.end_ids, device=states.device)
    closers = torch.tensor(sorted({*stop.end_ids, *stop.stop_ids}), device=states.device)
    with torch.no_grad():
        for step in range(stop.max_new_tokens):
            log_probs = session.backbone.log_probs(states)
            if step < stop.min_new_tokens:
                log_probs[:, closers] = -torch.inf
            fluency, candidates = _candidates(log_probs, decoder.top_k)
            _check_fluency(fluency, alive)
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
                _check_rewards(rewards, alive)
                scores = guided_scores(fluency, rewards, decoder.guidance_weight)
            uniforms = (
                torch.tensor([generators[row].random() for row in alive], dtype=torch.float64, device=states.device)
                if decoder.draws
                else None
            )
            choice = decoder.choose(scores, uniforms)
            chosen = candidates.gather(-1, choice[:, None]).flatten()
            if guide is not None:
                values = rewards.gather(-1, choice[:, None]).flatten()
                _note(out, alive, choice, scores, fluency, rewards * decoder.guidance_weight)
            goes_on = _record(out, alive, chosen.tolist(), stop)
            if values is not None:
                for place, row in enumerate(alive):
                    out[row].reward = float(values[place])
            kept = [place for place, row in enumerate(alive) if goes_on[place]]
            if not kept or step + 1 == stop.max_new_tokens:
                break
            index = torch.tensor(kept, device=states.device)
            picks = choice.tolist()
            if guide is not None:
                guide.keep(picks, chosen.tolist())
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


def _candidates(log_probs: torch.Tensor, top_k: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the candidates of each row, best first; the whole vocabulary stays in the order of ids, unsorted."""
    if top_k is not None:
        return top_candidates(log_probs, top_k)
    ids = torch.arange(log_probs.shape[-1], device=log_probs.device)
    return log_probs, ids.expand(log_probs.shape)


def _record(out: list[Decoded], alive: list[int], chosen: list[int], stop: StopRule) -> list[bool]:
    goes_on = []
    for row, token in zip(alive, chosen, strict=True):
        done = out[row]
        ended = token in stop.end_ids
        if not ended:
            done.ids.append(token)
        done.ended = ended or token in stop.stop_ids
        goes_on.append(not done.ended)
    return goes_on


def _note(
    out: list[Decoded],
    alive: list[int],
    choice: torch.Tensor,
    scores: torch.Tensor,
    fluency: torch.Tensor,
    weighted: torch.Tensor,
) -> None:
    """Record how strongly guidance spoke at this step."""
    if scores.shape[-1] < 2:
        return
    best = torch.topk(scores, 2, dim=-1).values
    finite = torch.isfinite(fluency)
    for place, row in enumerate(alive):
        out[row].changed += int(choice[place] != 0)
        out[row].near_ties += int(best[place, 0] - best[place, 1] < NEAR_TIE)
        seen = finite[place]
        out[row].reward_spread.append(float(weighted[place, seen].std(correction=0)))
        out[row].fluency_spread.append(float(fluency[place, seen].double().std(correction=0)))


def _check_fluency(fluency: torch.Tensor, alive: list[int]) -> None:
    bad = ~torch.isfinite(fluency.max(-1).values)
    if bool(bad.any()):
        raise ModelError(
            f"the policy has no next token for row {alive[int(bad.to(torch.uint8).argmax())]}: its logits are not "
            "finite, or every token is an end token that min_new_tokens forbids. Check the weights and the dtype."
        )


def _check_rewards(rewards: torch.Tensor, alive: list[int]) -> None:
    bad = ~torch.isfinite(rewards).all(-1)
    if bool(bad.any()):
        place = int(bad.to(torch.uint8).argmax())
        raise ModelError(
            f"the reward of a candidate in row {alive[place]} is {rewards[place].tolist()}: not a finite number. "
            "Check the reward model's features and weights."
        )
