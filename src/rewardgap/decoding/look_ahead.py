"""Look-ahead guidance: several guided steps for one reading of the reward model's weights, with the same tokens.

The unguided policy is the draft of the guided one. It writes a few tokens by itself; the reward model then reads all
of them, with the other candidates of every step beside them, as one tree; up to and including the first step at which
guidance takes another token, the steps are those of the loop that asks at every step. Draws are no exception: a step's
random number is the row's, so the draft under it is known, and so is the guided choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rewardgap.backbones.trie import ROOT, Trie, siblings
from rewardgap.core.errors import ConfigError
from rewardgap.decoding.outcome import (
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

NODE_COST = {"cpu": 0.03, "cuda": 0.004}
"""Assumed, not measured here: they decide how far is looked ahead, never what is written."""
RUNNERS_UP = 2
"""Candidates that the policy reads beside its draft where it decodes one row: three cost it about as much as one."""


@dataclass(frozen=True)
class LookAhead:
    """How far to look.

    A pass over n tokens of a network of W weights is taken to cost W (1 + node_cost · n): reading the weights, and the
    arithmetic. With a share p of drafts that guidance lets stand, m steps ahead give (1 - p^m) / (1 - p) tokens for m
    passes of the policy and one of the guide; m is the one that costs least a token. p is estimated as decoding goes.
    The costs are given, not timed, so that the same command takes the same steps.

    Args:
        most: steps at most.
        node_cost: of one token in a pass, against reading the weights once; by device unless given.
        fixed: always look this far, whatever it costs.

    Raises:
        ConfigError: if a value is out of range.
    """

    most: int = 8
    node_cost: float | None = None
    fixed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, value in (("most", self.most), ("fixed", self.fixed)):
            if value is not None and value < 1:
                raise ConfigError(f"look-ahead {name} must be at least 1, got {value}.")
        if self.node_cost is not None and not self.node_cost >= 0:
            raise ConfigError(f"look-ahead node_cost must be at least 0, got {self.node_cost}.")

    def steps(self, stands: float, rows: int, width: int, weights: tuple[float, float], device: str) -> int:
        """Return the number of steps that cost least a token.

        Args:
            stands: p, the share of drafts that stand.
            rows: B.
            width: nodes that the guide reads a step and row.
            weights: of policy and guide.
            device: decides the cost of a node where none is given.
        """
        if self.fixed is not None:
            return self.fixed
        cost = NODE_COST.get(device, NODE_COST["cuda"]) if self.node_cost is None else self.node_cost
        policy, guide = weights

        def a_token(steps: int) -> float:
            tokens = sum(stands**i for i in range(steps))
            return (steps * policy * (1 + cost * rows) + guide * (1 + cost * rows * steps * width)) / tokens

        return min(range(1, self.most + 1), key=lambda steps: (a_token(steps), steps))


LOOK_AHEAD = LookAhead()
_PRIOR_STOOD, _PRIOR_SEEN = 4.0, 5.0


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
    session: TrieSession,
    tip_states: torch.Tensor,
    decoder: Decoder,
    stop: StopRule,
    guide: Guide,
    uniforms: Uniforms | None,
    look_ahead: LookAhead,
    watch: Watch | None = None,
) -> list[Decoded]:
    """Generate until every row has ended; the arguments are those of `decode`, the tokens those of its loop.

    Raises:
        ModelError: if a reward on a row's way is NaN or infinite, or the policy's logits are.
    """
    out = [Decoded() for _ in range(session.rows)]
    alive = list(range(session.rows))
    values, states = guide.start(tip_states).double(), tip_states
    stood, seen = _PRIOR_STOOD, _PRIOR_SEEN
    weights = (session.backbone.num_weights, guide.num_weights)
    while True:
        left = [stop.max_new_tokens - out[row].steps for row in alive]
        width = min(decoder.top_k or session.backbone.vocabulary, session.backbone.vocabulary)
        nodes = width if guide.reads_candidates else 1
        steps = look_ahead.steps(stood / seen, len(alive), nodes, weights, states.device.type)
        draft = _write(session, states, decoder, stop, [out[row].steps for row in alive], alive, uniforms,
                       [max(1, min(steps, guide.steps_ahead(width), session.free, room)) for room in left])  # fmt: skip
        tries, places = _trees(draft)
        rewards = _rewards(guide, tries, places, draft, values, stop)
        scores = guided_scores(draft.fluency.flatten(0, 1), rewards.flatten(0, 1), decoder.guidance_weight)
        drawn = None
        if uniforms is not None:
            drawn = torch.stack([_numbers(uniforms, alive, out, t, states) for t in range(draft.picks.shape[1])], 1)
        choice = decoder.choose(scores, None if drawn is None else drawn.flatten()).reshape(draft.picks.shape)
        taken = _taken(draft, choice)
        paths = [[*range(n - 1), places[row][n - 1][int(choice[row, n - 1])]] for row, n in enumerate(taken)]
        kept = _record(draft, choice, taken, scores, rewards, decoder, stop, alive, out, watch)
        for row, n in enumerate(taken):
            stood += n - 1 + int(choice[row, n - 1] == draft.picks[row, n - 1])
            seen += n
        if not kept:
            return out
        picked = choice.tolist()
        nodes_read = [draft.node(row, n - 1, picked[row][n - 1]) for row, n in enumerate(taken)]
        session.commit([draft.path(row, n, nodes_read[row]) for row, n in enumerate(taken)], draft.begin)
        guide.commit(paths)
        last = torch.tensor([n - 1 for n in taken], device=choice.device)
        at = torch.arange(len(taken), device=choice.device)
        values = rewards[at, last, choice[at, last]]
        tokens = draft.candidates[at, last, choice[at, last]]
        known = [
            None if nodes_read[row] is None else draft.states[taken[row] - 1][row, nodes_read[row]] for row in kept
        ]
        if len(kept) < len(alive):
            session.select(kept)
            guide.select(kept)
            index = torch.tensor(kept, device=values.device)
            values, tokens = values[index], tokens[index]
            alive = [alive[place] for place in kept]
        states = _read(session, tokens.tolist(), known)


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


def _write(
    session: TrieSession,
    states: torch.Tensor,
    decoder: Decoder,
    stop: StopRule,
    done: Sequence[int],
    alive: Sequence[int],
    uniforms: Uniforms | None,
    lengths: Sequence[int],
) -> _Draft:
    """Let the policy write by itself, each row until its length or a token that ends it."""
    width = 1
    if len(alive) == 1 and decoder.top_k is not None and session.free > max(lengths) * (1 + RUNNERS_UP):
        width = min(1 + RUNNERS_UP, decoder.top_k, session.backbone.vocabulary)
    session.reserve(max(lengths) * width)
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
        drawn = None
        if uniforms is not None:
            drawn = uniforms.at(alive, [number + step for number in done], states.device)
        pick = decoder.choose(best.double(), drawn)
        fluency.append(best)
        candidates.append(ids)
        picks.append(pick)
        tokens = ids.gather(-1, pick[:, None]).flatten().tolist()
        for row in going:
            if tokens[row] in ends:
                limits[row] = step + 1
        further = [step + 1 < limit for limit in limits]
        if not any(further):
            break
        chosen = pick.tolist()
        order = [[at, *[other for other in range(width) if other != at][: width - 1]] for at in chosen]
        read.append(order)
        rows = zip(ids.tolist(), order, parents, further, strict=True)
        blocks = [siblings([row[at] for at in places] if goes else [], parent) for row, places, parent, goes in rows]
        nodes.append(session.extend(blocks))
        states = nodes[-1][:, 0]
        parents = [begin + step * width if goes else parent for parent, goes in zip(parents, further, strict=True)]
    return _Draft(
        torch.stack(fluency, 1), torch.stack(candidates, 1), torch.stack(picks, 1), limits, begin, width, read, nodes
    )


def _trees(draft: _Draft) -> tuple[list[Trie], list[list[list[int]]]]:
    """Return the trie of each row (the draft first, then the other candidates), and the node of each candidate."""
    tries, places = [], []
    for row, (ids, picks) in enumerate(zip(draft.candidates.tolist(), draft.picks.tolist(), strict=True)):
        length = draft.lengths[row]
        tokens = [ids[step][picks[step]] for step in range(length)]
        parents = [ROOT, *range(length - 1)]
        nodes: list[list[int]] = []
        for step in range(length):
            begin = len(tokens)
            others = [token for at, token in enumerate(ids[step]) if at != picks[step]]
            tokens += others
            parents += [parents[step]] * len(others)
            nodes.append([*range(begin, begin + picks[step]), step, *range(begin + picks[step], begin + len(others))])
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


def _numbers(
    uniforms: Uniforms, alive: Sequence[int], out: Sequence[Decoded], step: int, states: torch.Tensor
) -> torch.Tensor:
    return uniforms.at(alive, [out[row].steps + step for row in alive], states.device)


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
        facts = step_facts(scores[steps], draft.fluency.flatten(0, 1)[steps], flat * decoder.guidance_weight)
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
