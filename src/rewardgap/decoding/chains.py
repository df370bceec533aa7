"""Continuations below the tips of a session: many chains a row, one forward a step for all of them.

The prompt's keys and values are shared by a row's chains, and so are those of equal beginnings: two chains that have
drawn the same tokens so far are one node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from rewardgap.backbones.trie import ROOT, Block
from rewardgap.decoding.outcome import check_fluency

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.outcome import StopRule
    from rewardgap.decoding.sampling import Place
    from rewardgap.rewards.guide import Guide


@dataclass
class Chain:
    """One continuation of a row.

    Attributes:
        tokens: an end token included.
        nodes: numbers of its nodes among those read below the row's tip, one a token that was read.
        log_prob: Σ log π of its tokens, nats, before temperature and nucleus.
        closed: whether its last token ends the text.
        full: whether the text may not go on: closed, or as long as it may be.
        entropies: of the distributions its tokens were drawn from, nats, where they were measured.
    """

    tokens: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    closed: bool = False
    full: bool = False
    entropies: list[float] = field(default_factory=list)


class Picks(Protocol):
    """Chooses next tokens."""

    def pick(self, log_probs: torch.Tensor, places: Sequence[Place], steps: Sequence[int]) -> torch.Tensor:
        """Return (N,) tokens for (N, V) log-probabilities; places are (row, stream), steps the tokens before."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What a row wants drawn.

    Attributes:
        row: number of the row in what is decoded, for its random numbers and for messages.
        done: tokens of its text so far.
        streams: random numbers of each chain.
        longest: tokens of a chain at most; the text's own limit holds as well.
        given: first tokens of each chain, where they are not drawn.
        pause: entropy in nats at which a chain pauses; infinite never. None where it is not measured.
        shortest: tokens before a chain may pause.
    """

    row: int
    done: int
    streams: Sequence[int]
    longest: int
    given: Sequence[Sequence[int]] = ()
    pause: float | None = None
    shortest: int = 0


class Undergrowth:
    """The nodes read below the tips of a session, and their states, until one path of each row is kept.

    Args:
        session: its tips are where the chains begin.
        tip_states: (B, D) states there.
        room: slots at most.
    """

    def __init__(self, session: TrieSession, tip_states: torch.Tensor, room: int) -> None:
        session.reserve(room)
        self.session, self._tip_states = session, tip_states
        self._begin = session.forest.length
        self._states = tip_states.new_zeros((session.rows, room, tip_states.shape[-1]))
        self._known: list[dict[tuple[int, int], int]] = [{} for _ in range(session.rows)]
        self.tokens: list[list[int]] = [[] for _ in range(session.rows)]
        self.parents: list[list[int]] = [[] for _ in range(session.rows)]
        self._slots: list[list[int]] = [[] for _ in range(session.rows)]

    def add(self, place: int, parent: int, token: int) -> int:
        """Return the node of a token behind another node (ROOT: the tip); `read` reads those that are new."""
        known = self._known[place]
        node = known.setdefault((parent, token), len(self.tokens[place]))
        if node == len(self.tokens[place]):
            self.tokens[place].append(token)
            self.parents[place].append(parent)
        return node

    def read(self) -> None:
        """Send the nodes added last through the network, all rows in one pass."""
        start = self.session.forest.length
        blocks = []
        for place, tip in enumerate(self.session.tips):
            slots, begin = self._slots[place], len(self._slots[place])
            slots += range(start, start + len(self.tokens[place]) - begin)
            parents = (tip if parent == ROOT else slots[parent] for parent in self.parents[place][begin:])
            blocks.append(Block(tuple(self.tokens[place][begin:]), tuple(parents)))
        if any(block.tokens for block in blocks):
            states = self.session.extend(blocks)
            offset = start - self._begin
            self._states[:, offset : offset + states.shape[1]] = states

    def states_at(self, nodes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return (N, D) states of (row, node); those of the tips for ROOT."""
        device = self._states.device
        rows = torch.tensor([place for place, _ in nodes], dtype=torch.long, device=device)
        slots = [self._slots[place][node] - self._begin if node != ROOT else 0 for place, node in nodes]
        found = self._states[rows, torch.tensor(slots, dtype=torch.long, device=device)]
        at_tip = torch.tensor([node == ROOT for _, node in nodes], dtype=torch.bool, device=device)
        return torch.where(at_tip[:, None], self._tip_states[rows], found)

    def all_states(self) -> torch.Tensor:
        """Return (B, Q, D) states of each row's nodes in order; what lies beyond a smaller row is meaningless."""
        width = max(map(len, self._slots))
        columns = [[*(slot - self._begin for slot in row), *[0] * (width - len(row))] for row in self._slots]
        index = torch.tensor(columns, dtype=torch.long, device=self._states.device)
        return self._states[torch.arange(len(columns), device=index.device)[:, None], index]

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """Move each tip along a path of nodes, and forget the others."""
        kept = [[self._slots[place][node] for node in path] for place, path in enumerate(paths)]
        self.session.commit(kept, self._begin)

    def clear(self) -> None:
        """Forget every node."""
        self.session.truncate(self._begin)


def grow(
    below: Undergrowth, wanted: Sequence[Wanted], stop: StopRule, rule: Picks, guide: Guide | None
) -> list[list[Chain]]:
    """Draw the wanted chains of each row, a token of all of them at a time.

    Tokens that would go unread cost nothing: the last one of a text is read only where the guide reads the policy's
    states, and an end token only where it has a reward of its own there.

    Args:
        below: where the nodes go; a chain that may go on has been read to its end.
        wanted: for each row of the session.
        stop: when a text ends.
        rule: chooses the tokens that are not given.
        guide: decides which last tokens are read; None for none.

    Raises:
        ModelError: if the policy's logits are not finite, or leave no token.
    """
    backbone = below.session.backbone
    chains = [[Chain() for _ in want.streams] for want in wanted]
    limits = [min(want.longest, stop.max_new_tokens - want.done) for want in wanted]
    going = [(place, i) for place, row in enumerate(chains) for i in range(len(row)) if limits[place] > 0]
    reads_last = guide is not None and guide.reads_policy
    while going:
        at = [(place, chains[place][i].nodes[-1] if chains[place][i].nodes else ROOT) for place, i in going]
        heads = {head: number for number, head in enumerate(dict.fromkeys(at))}
        lengths = {head: len(chains[place][i].tokens) for (place, i), head in zip(going, at, strict=True)}
        log_probs = backbone.log_probs(below.states_at(list(heads)))
        going, at = _unpaused(going, at, heads, log_probs, wanted, chains)
        if not going:
            break
        early = [n for head, n in heads.items() if wanted[head[0]].done + lengths[head] < stop.min_new_tokens]
        if early:
            log_probs[torch.tensor(early)[:, None], torch.tensor(stop.closers, dtype=torch.long)] = -torch.inf
        check_fluency(log_probs, [wanted[place].row for place, _ in heads])
        fluency = log_probs[[heads[head] for head in at]]
        places = [(wanted[place].row, wanted[place].streams[i]) for place, i in going]
        steps = [wanted[place].done + len(chains[place][i].tokens) for place, i in going]
        tokens = rule.pick(fluency, places, steps)
        for number, (place, i) in enumerate(going):
            given = wanted[place].given[i] if wanted[place].given else ()
            length = len(chains[place][i].tokens)
            if length < len(given):
                tokens[number] = given[length]
        gained = fluency.gather(-1, tokens[:, None]).flatten().double().tolist()
        for (place, i), (_, node), token, gain in zip(going, at, tokens.tolist(), gained, strict=True):
            chain = chains[place][i]
            chain.tokens.append(token)
            chain.log_prob += gain
            is_end = token in stop.end_ids
            chain.closed = is_end or token in stop.stop_ids
            chain.full = chain.closed or wanted[place].done + len(chain.tokens) == stop.max_new_tokens
            if not chain.full or (reads_last and (not is_end or (guide is not None and guide.rewards_ends))):
                chain.nodes.append(below.add(place, node, token))
        below.read()
        going = [
            (place, i)
            for place, i in going
            if not chains[place][i].full and len(chains[place][i].tokens) < limits[place]
        ]
    return chains


def _unpaused(
    going: list[tuple[int, int]],
    at: list[tuple[int, int]],
    heads: dict[tuple[int, int], int],
    log_probs: torch.Tensor,
    wanted: Sequence[Wanted],
    chains: list[list[Chain]],
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the chains whose next token the policy is sure enough of, and where they are."""
    if all(want.pause is None for want in wanted):
        return going, at
    entropies = torch.special.entr(log_probs.double().exp()).sum(-1).tolist()
    out = []
    for (place, i), head in zip(going, at, strict=True):
        want, chain = wanted[place], chains[place][i]
        entropy = entropies[heads[head]]
        if want.pause is None or len(chain.tokens) < max(1, want.shortest) or entropy < want.pause:
            chain.entropies.append(entropy)
            out.append(((place, i), head))
    return [pair for pair, _ in out], [head for _, head in out]


def read_chains(below: Undergrowth, chains: Sequence[Sequence[Chain]], stop: StopRule, *, read_ends: bool) -> None:
    """Read chains that are there already in one pass, for their states."""
    for place, row in enumerate(chains):
        for chain in row:
            node, chain.nodes = ROOT, []
            for token in chain.tokens:
                if token not in stop.end_ids or read_ends:
                    node = below.add(place, node, token)
                    chain.nodes.append(node)
    below.read()
