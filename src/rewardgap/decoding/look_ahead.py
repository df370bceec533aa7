"""Look-ahead guidance: several guided steps for one reading of the reward model's weights, with the same tokens.

The unguided policy is the draft of the guided one. It writes a few tokens by itself; the reward model then reads all
of them, with the other candidates of every step beside them, as one tree; up to and including the first step at which
guidance takes another token, the steps are those of the loop that asks at every step. Draws are no exception: a step's
random number is the row's, so the draft under it is known, and so is the guided choice.

Where two rewards cannot differ by more than R, and the best score wins, a candidate whose log π lies more than |λ| R
below the best one's cannot win: it is left out of the tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rewardgap.backbones.trie import ROOT, Trie, siblings
from rewardgap.decoding.horizon import Horizon
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
from rewardgap.numerics.guidance import guided_scores
from rewardgap.rewards.guide import BoundedGuide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.base import Decoder
    from rewardgap.decoding.horizon import LookAhead
    from rewardgap.decoding.rows import Rows
    from rewardgap.rewards.guide import Guide

RUNNERS_UP = 2
"""Candidates that the policy reads beside its draft where it decodes one row: three cost it about as much as one."""


@dataclass
class _Draft:
    """What the policy wrote by itself: T steps of A rows.

    Attributes:
        fluency: (A, T, K) log π of the candidates.
        candidates: (A, T, K) ids.
        picks: (A, T) the draft's choice among them.
        lengths: steps by row; what lies beyond is meaningless.
        begin: slot of the first drafted token in the policy's session.
        width: tokens that were read a step, the draft's first.
        read: by step and row, the indices of the candidates that were read; the last step's are not.
        states: by step, (A, width, D) the policy's states there.
    """

    fluency: torch.Tensor
    candidates: torch.Tensor
    picks: torch.Tensor
    lengths: list[int]
    begin: int
    width: int
    read: list[list[list[int]]]
    states: list[torch.Tensor]

    def node(self, row: int, step: int, choice: int) -> int | None:
        """Return which of a step's read tokens a candidate is; None if it was not read."""
        if step >= self.lengths[row] - 1 or choice not in self.read[step][row]:
            return None
        return self.read[step][row].index(choice)

    def path(self, row: int, steps: int, node: int | None) -> list[int]:
        """Return the slots of the draft before the last of `steps`, and that of the last where it was read."""
        slots = [self.begin + step * self.width for step in range(steps - 1)]
        return slots if node is None else [*slots, self.begin + (steps - 1) * self.width + node]


def decode_ahead(
    rows: Rows, guide: Guide, decoder: Decoder, stop: StopRule, look_ahead: LookAhead, watch: Watch | None = None
) -> list[Decoded]:
    """Generate until every row has ended: the tokens of `decode`, whose arguments these are, with fewer readings.

    Raises:
        ModelError: if a reward on a row's way is NaN or infinite, or the policy's logits are.
    """
    session, out = rows.session, rows.out
    width = min(decoder.top_k or session.backbone.vocabulary, session.backbone.vocabulary)
    horizon = Horizon(
        look_ahead,
        policy=session.backbone.num_weights,
        guide=guide.num_weights,
        nodes=width if guide.reads_candidates else 1,
        draws=decoder.draws,
        device=rows.states.device.type,
    )
    reach = _reach(decoder, guide)
    while True:
        alive = rows.alive
        assert rows.values is not None
        left = [stop.max_new_tokens - out[row].steps for row in alive]
        room = min(horizon.limit, guide.steps_ahead(width), session.free)
        draft = _write(rows, decoder, stop, [max(1, min(room, more)) for more in left], horizon)
        near = draft.fluency >= draft.fluency.max(-1, keepdim=True).values - reach
        tries, places = _trees(draft, near)
        rewards = _rewards(guide, tries, places, draft, rows.values, stop)
        fluency = draft.fluency.masked_fill(~near, -torch.inf)
        scores = guided_scores(fluency.flatten(0, 1), rewards.flatten(0, 1), decoder.guidance_weight)
        numbers = [number for t in range(draft.picks.shape[1]) if (number := rows.drawn(t)) is not None]
        drawn = torch.stack(numbers, 1).flatten() if numbers else None
        choice = decoder.choose(scores, drawn).reshape(draft.picks.shape)
        taken = _taken(draft, choice)
        paths = [[*range(n - 1), places[row][n - 1][int(choice[row, n - 1])]] for row, n in enumerate(taken)]
        if reach < math.inf:
            for row, lost in zip(alive, _pruned(draft, near, taken), strict=True):
                out[row].pruned = (out[row].pruned or 0) + lost
        before = [len(out[row].reward_spread) for row in alive]
        kept = _record(draft, choice, taken, scores, rewards, near, decoder, stop, alive, out, watch)
        picked = choice.tolist()
        nodes_read = [draft.node(row, n - 1, picked[row][n - 1]) for row, n in enumerate(taken)]
        for row, n in enumerate(taken):
            covered = nodes_read[row] is not None if draft.width > 1 and n < draft.lengths[row] else None
            stood = n - int(choice[row, n - 1] != draft.picks[row, n - 1])
            horizon.learn(n, stood, out[alive[row]].reward_spread[before[row] :], covered)
        if not kept:
            return out
        session.commit([draft.path(row, n, nodes_read[row]) for row, n in enumerate(taken)], draft.begin)
        guide.commit(paths)
        last = torch.tensor([n - 1 for n in taken], device=choice.device)
        at = torch.arange(len(taken), device=choice.device)
        values = rewards[at, last, choice[at, last]]
        tokens = draft.candidates[at, last, choice[at, last]]
        known = [
            None if nodes_read[row] is None else draft.states[taken[row] - 1][row, nodes_read[row]] for row in kept
        ]
        index = rows.select(kept)
        rows.values = values[index]
        rows.states = _read(session, tokens[index].tolist(), known)
        rows.refill()


def _reach(decoder: Decoder, guide: Guide) -> float:
    """Return how far below the best log π a candidate may lie to win or to come within a near tie; inf for any."""
    if decoder.draws or not isinstance(guide, BoundedGuide):
        return math.inf
    return abs(decoder.guidance_weight) * guide.span + NEAR_TIE if guide.span < math.inf else math.inf


def _pruned(draft: _Draft, near: torch.Tensor, taken: Sequence[int]) -> list[int]:
    """Return how many candidates of each row's steps that stand were left out."""
    lost = (~near & torch.isfinite(draft.fluency)).sum(-1).tolist()
    return [sum(counts[:n]) for counts, n in zip(lost, taken, strict=True)]


def _read(session: TrieSession, tokens: Sequence[int], known: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Return (A, D) states at the tokens taken last: those that are known, and those the policy reads now."""
    if any(state is None for state in known):
        session.reserve(1)
        begin = session.forest.length
        rows = zip(tokens, session.tips, known, strict=True)
        fresh = session.extend([siblings([token] if state is None else [], tip) for token, tip, state in rows])[:, 0]
        session.commit([[begin] if state is None else [] for state in known], begin)
        known = [fresh[row] if state is None else state for row, state in enumerate(known)]
    return torch.stack([state for state in known if state is not None])


def _write(rows: Rows, decoder: Decoder, stop: StopRule, lengths: Sequence[int], horizon: Horizon) -> _Draft:
    """Let the policy write by itself, each row until its length, a token that ends it, or the horizon."""
    session, states, alive = rows.session, rows.states, rows.alive
    done = [rows.out[row].steps for row in alive]
    width = 1
    if len(alive) == 1 and decoder.top_k is not None and session.free > max(lengths) * (1 + RUNNERS_UP):
        width = min(1 + RUNNERS_UP, decoder.top_k, session.backbone.vocabulary)
    session.reserve(max(lengths) * width)
    horizon.begin(len(alive), width)
    begin, parents, limits = session.forest.length, list(session.tips), list(lengths)
    closers, ends = torch.tensor(stop.closers, device=states.device), set(stop.closers)
    fluency, candidates, picks = [], [], []
    read: list[list[list[int]]] = []
    nodes: list[torch.Tensor] = []
    for step in range(max(limits)):
        going = [row for row, limit in enumerate(limits) if step < limit]
        log_probs = session.backbone.log_probs(states)
        early = [row for row in going if done[row] + step < stop.min_new_tokens]
        if early:
            log_probs[torch.tensor(early, device=states.device)[:, None], closers] = -torch.inf
        best, ids = candidates_of(log_probs, decoder.top_k)
        check_fluency(best[going], [alive[row] for row in going])
        pick = decoder.choose(best.double(), rows.drawn(step))
        fluency.append(best)
        candidates.append(ids)
        picks.append(pick)
        tokens = ids.gather(-1, pick[:, None]).flatten().tolist()
        for row in going:
            if tokens[row] in ends:
                limits[row] = step + 1
        onward = horizon.goes_on(best, [row for row, limit in enumerate(limits) if step + 1 < limit])
        limits = [limit if row in onward else min(limit, step + 1) for row, limit in enumerate(limits)]
        if not onward:
            break
        further = [row in onward for row in range(len(limits))]
        chosen = pick.tolist()
        order = [[at, *[other for other in range(width) if other != at][: width - 1]] for at in chosen]
        read.append(order)
        parts = zip(ids.tolist(), order, parents, further, strict=True)
        blocks = [siblings([row[at] for at in places] if goes else [], parent) for row, places, parent, goes in parts]
        nodes.append(session.extend(blocks))
        states = nodes[-1][:, 0]
        parents = [begin + step * width if goes else parent for parent, goes in zip(parents, further, strict=True)]
    return _Draft(
        torch.stack(fluency, 1), torch.stack(candidates, 1), torch.stack(picks, 1), limits, begin, width, read, nodes
    )


def _trees(draft: _Draft, near: torch.Tensor) -> tuple[list[Trie], list[list[list[int]]]]:
    """Return the trie of each row (the draft first, then the other candidates), and the node of each candidate.

    What is not near has no node; the first drafted one stands in its place.
    """
    tries, places = [], []
    parts = zip(draft.candidates.tolist(), draft.picks.tolist(), near.tolist(), strict=True)
    for row, (ids, picks, wanted) in enumerate(parts):
        length = draft.lengths[row]
        tokens = [ids[step][picks[step]] for step in range(length)]
        parents = [ROOT, *range(length - 1)]
        nodes: list[list[int]] = []
        for step in range(length):
            begin = len(tokens)
            others = [at for at, near_by in enumerate(wanted[step]) if near_by and at != picks[step]]
            tokens += [ids[step][at] for at in others]
            parents += [parents[step]] * len(others)
            place = {picks[step]: step, **{at: begin + number for number, at in enumerate(others)}}
            nodes.append([place.get(at, 0) for at in range(len(ids[step]))])
        tries.append(Trie(tuple(tokens), tuple(parents), ()))
        places.append(nodes)
    return tries, places


def _rewards(
    guide: Guide, tries: Sequence[Trie], places: list[list[list[int]]], draft: _Draft, values: torch.Tensor,
    stop: StopRule,
) -> torch.Tensor:  # fmt: skip
    """Return (A, T, K) rewards of the candidates."""
    nodes = guide.tree(tries, None).double()
    shape = draft.candidates.shape
    index = torch.zeros(shape, dtype=torch.long)
    for row, rows in enumerate(places):
        index[row, : len(rows)] = torch.tensor(rows)
    rewards = nodes.gather(1, index.to(nodes.device).flatten(1)).reshape(shape)
    if guide.rewards_ends:
        return rewards
    # A draft's node of step t is number t: the prefix that an end token of the step after it closes.
    before = torch.cat([values[:, None], nodes[:, : shape[1] - 1]], 1)
    if before.shape[1] < shape[1]:
        before = torch.nn.functional.pad(before, (0, shape[1] - before.shape[1]))
    ends = torch.isin(draft.candidates, torch.tensor(stop.end_ids, device=draft.candidates.device))
    return torch.where(ends, before[..., None], rewards)


def _taken(draft: _Draft, choice: torch.Tensor) -> list[int]:
    """Return how many steps of each row stand: up to and including the first that guidance decides otherwise."""
    same = (choice == draft.picks).tolist()
    return [
        next((step + 1 for step in range(length) if not same[row][step]), length)
        for row, length in enumerate(draft.lengths)
    ]


def _record(
    draft: _Draft,
    choice: torch.Tensor,
    taken: Sequence[int],
    scores: torch.Tensor,
    rewards: torch.Tensor,
    near: torch.Tensor,
    decoder: Decoder,
    stop: StopRule,
    alive: Sequence[int],
    out: Sequence[Decoded],
    watch: Watch | None,
) -> list[int]:
    """Write down the steps that stand, and return the places of the rows that go on."""
    span = draft.picks.shape[1]
    steps = [row * span + step for row, n in enumerate(taken) for step in range(n)]
    owners = [alive[row] for row, n in enumerate(taken) for _ in range(n)]
    flat = rewards.flatten(0, 1)[steps]
    check_rewards(flat, owners)
    facts = None
    if flat.shape[-1] > 1:
        fluency, rewarded = draft.fluency.flatten(0, 1)[steps], near.flatten(0, 1)[steps]
        facts = step_facts(scores[steps], fluency, flat * decoder.guidance_weight, rewarded)
    picked = choice.flatten()[steps]
    tokens = draft.candidates.flatten(0, 1)[steps].gather(-1, picked[:, None]).flatten().tolist()
    best = draft.candidates.flatten(0, 1)[steps, 0].tolist()
    gained = flat.gather(-1, picked[:, None]).flatten().tolist()
    kept, number = [], 0
    for row, n in enumerate(taken):
        done = out[alive[row]]
        done.guide_passes += 1
        done.drafted += draft.lengths[row]
        goes_on = True
        for _ in range(n):
            if facts is not None:
                done.note(facts[number], best[number], tokens[number])
            done.reward = gained[number]
            goes_on = done.take(tokens[number], stop)
            number += 1
            if watch is not None:
                watch(alive[row], done)
        if goes_on:
            kept.append(row)
    return kept
