"""Rewards of next tokens from networks over the whole vocabulary: one forward of one token rewards every candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import ROOT, Block, siblings
from rewardgap.core.errors import DataError
from rewardgap.rewards.token_rewards import log_probs_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.trie import Trie
    from rewardgap.rewards.guide import Guide

NUMBERS_AT_ONCE = 1 << 22
"""Log-probabilities of a network, positions times vocabulary, that are there at once while normalisers are formed."""


class Along(NamedTuple):
    """A network, and its (T, D) hidden states before each of T scored tokens."""

    backbone: Backbone
    states: torch.Tensor

    def log_probs(self, part: slice) -> torch.Tensor:
        """Return log-probabilities of all next tokens at some of the positions, in nats and float64."""
        return self.backbone.log_probs(self.states[part]).double()


@dataclass(frozen=True)
class LogProbRewards:
    """Rewards of every next token along one completion, sums of log-probabilities.

        r(v | x, y<t) = Σ_j c_j log π_j(v | x, y<t)

    Hidden states are kept, (T, D) a network. Logits are formed when a normaliser is asked for, a few positions at a
    time, so that another guidance weight needs no other forward pass, and (T, V) is never there for a long text.

    Attributes:
        policy: what is steered.
        terms: what a network's nats count for, in reward units, and the network.
    """

    policy: Along
    terms: tuple[tuple[float, Along], ...]

    @torch.no_grad()
    def log_normalisers(self, guidance_weight: float, temperature: float = 1.0) -> NDArray[np.float64]:
        """Return (T,) log Σ_v exp((log π(v) + λ r(v)) / τ), v over the policy's token ids."""
        terms = [(guidance_weight * c, network) for c, network in self.terms if guidance_weight * c != 0]
        width = self.policy.backbone.vocabulary
        rows = max(1, NUMBERS_AT_ONCE // width)
        parts = []
        for begin in range(0, len(self.policy.states), rows):
            part = slice(begin, begin + rows)
            scores = self.policy.log_probs(part)
            for weight, network in terms:
                # Another network may have more rows of padding behind its tokens.
                scores += weight * network.log_probs(part)[:, :width].to(scores.device)
            parts.append((scores / temperature).logsumexp(-1).cpu())
        found: NDArray[np.float64] = torch.cat(parts).numpy()
        return found


class Stream(NamedTuple):
    """A network that reads along, and the ids of the B prompts it begins with."""

    backbone: Backbone
    prompts: Sequence[Sequence[int]]


class VocabularyGuide:
    """Token rewards as running sums.

        r(x, y≤t) = r(x, y<t) + Σ_j c_j log π_j(y_t | x, y<t),   r(x, ()) = 0

    Each network reads one token a step and gives its log-probabilities of all next tokens; candidates are looked up,
    never read. An end token has a reward of its own like any other.

    Args:
        streams: J networks with their prompts; their token ids must be the policy's.
        coefficients: (B, J) what a network's nats count for in a row, in reward units.
        room: new tokens at most.
    """

    reads_policy = False
    rewards_ends = True
    reads_candidates = False

    def __init__(self, streams: Sequence[Stream], coefficients: torch.Tensor, room: int) -> None:
        self._streams, self._coefficients = list(streams), coefficients.double()
        self._sessions = [
            TrieSession(stream.backbone, len(stream.prompts), max(map(len, stream.prompts)) + room)
            for stream in streams
        ]
        self._log_probs: list[torch.Tensor] = []
        self._values = self._coefficients.new_zeros(len(coefficients))
        self._rewards = self._values[:, None]
        self._pending: list[int | None] = [None] * len(coefficients)
        self._tries: Sequence[Trie] = ()
        self._begins: list[int] = []
        self._lengths = [[len(ids) for ids in stream.prompts] for stream in streams]

    @property
    def forwards(self) -> int:
        """Return the forward passes so far, of all networks."""
        return sum(session.forwards for session in self._sessions)

    @property
    def tokens(self) -> int:
        """Return the tokens read so far, by all networks."""
        return sum(session.tokens for session in self._sessions)

    @torch.no_grad()
    def start(self, policy_states: torch.Tensor) -> torch.Tensor:
        """Return zeros (B,): the bare prompts have no reward yet."""
        self._log_probs = [
            self._law(stream.backbone, session.prefill(stream.prompts))
            for stream, session in zip(self._streams, self._sessions, strict=True)
        ]
        self._coefficients = self._coefficients.to(policy_states.device)
        self._values = self._values.to(policy_states.device)
        return self._values

    @torch.no_grad()
    def candidates(self, tokens: torch.Tensor, policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, K) rewards of each prefix extended by each candidate."""
        self._read_pending()
        rewards = self._before()[:, None].expand(tokens.shape).clone()
        for number, log_probs in enumerate(self._log_probs):
            found = log_probs.gather(-1, tokens.to(log_probs.device)).double().to(rewards.device)
            rewards += self._coefficients[:, number, None] * found
        self._rewards = rewards
        return rewards

    def keep(self, choices: list[int], tokens: list[int]) -> None:
        """Move each row to its chosen candidate; the networks read it when they are next asked."""
        rows = torch.arange(len(choices), device=self._rewards.device)
        self._values = self._rewards[rows, torch.tensor(choices, device=self._rewards.device)]
        self._pending = list(tokens)

    @property
    def num_weights(self) -> int:
        """Return the size of the networks together."""
        return sum(stream.backbone.num_weights for stream in self._streams)

    def steps_ahead(self, width: int) -> int:
        """Return for how many steps there is room in the buffers and in what the networks were made to read.

        A draft may be longer than the text turns out: what would outgrow the context must not be drafted.
        """
        pending = int(any(token is not None for token in self._pending))
        left = [
            min(session.free - pending, session.backbone.context - max(lengths) - pending) + 1
            for session, lengths in zip(self._sessions, self._lengths, strict=True)
        ]
        return max(1, min(left))

    @torch.no_grad()
    def tree(self, tries: Sequence[Trie], policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, Q) rewards of the nodes: only those that others follow are read."""
        self._read_pending()
        self._tries, self._begins = tries, []
        inner = [sorted({parent for parent in trie.parents if parent != ROOT}) for trie in tries]
        width = max(len(trie.tokens) for trie in tries)
        gained = self._values.new_zeros((len(tries), width))
        for number, (session, log_probs) in enumerate(zip(self._sessions, self._log_probs, strict=True)):
            session.reserve(max(map(len, inner)))
            begin = session.forest.length
            self._begins.append(begin)
            self._check_context(number, max(map(_depth, tries), default=0))
            rows = zip(tries, inner, session.tips, strict=True)
            blocks = [_inner_block(trie, nodes, tip, begin) for trie, nodes, tip in rows]
            states = session.extend(blocks) if any(inner) else None
            for row, (trie, nodes) in enumerate(zip(tries, inner, strict=True)):
                place = {node: at for at, node in enumerate(nodes)}
                found = log_probs.new_zeros(len(trie.tokens))
                first = [v for v, parent in enumerate(trie.parents) if parent == ROOT]
                found[first] = log_probs[row, [trie.tokens[v] for v in first]]
                later = [v for v, parent in enumerate(trie.parents) if parent != ROOT]
                if later:
                    assert states is not None
                    at = torch.tensor([place[trie.parents[v]] for v in later], device=states.device)
                    which = torch.tensor([trie.tokens[v] for v in later], device=states.device)
                    found[later] = self._at(session.backbone, states[row, : len(nodes)], at, which)
                gained[row, : len(found)] += self._coefficients[row, number] * found.double().to(gained.device)
        return self._summed(gained)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the paths; their last tokens are read when the networks are next asked."""
        for session, begin in zip(self._sessions, self._begins, strict=True):
            kept = []
            for trie, path in zip(self._tries, paths, strict=True):
                nodes = sorted({parent for parent in trie.parents if parent != ROOT})
                kept.append([begin + nodes.index(node) for node in path[:-1]])
            session.commit(kept, begin)
        self._lengths = [
            [length + max(0, len(path) - 1) for length, path in zip(lengths, paths, strict=True)]
            for lengths in self._lengths
        ]
        rows = [row for row, path in enumerate(paths) if path]
        ends = [paths[row][-1] for row in rows]
        self._values = self._values.clone()
        self._values[rows] = self._rewards[rows, ends]
        for row, end in zip(rows, ends, strict=True):
            self._pending[row] = self._tries[row].tokens[end]

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        self._values, self._coefficients = self._values[rows], self._coefficients[rows]
        self._log_probs = [log_probs[rows] for log_probs in self._log_probs]
        self._pending = [self._pending[row] for row in rows]
        self._lengths = [[lengths[row] for row in rows] for lengths in self._lengths]
        for session in self._sessions:
            session.select(rows)

    def joins(self, other: Guide) -> bool:
        """Return whether the other guide reads along too; where paths are read anew, soft prompts would be mixed up."""
        return type(other) is type(self) and all(stream.backbone.packs for stream in self._streams)

    def join(self, other: VocabularyGuide) -> None:
        """Take over the other's rows."""
        for session, more in zip(self._sessions, other._sessions, strict=True):
            session.join(more)
        self._values = torch.cat([self._values, other._values])
        self._coefficients = torch.cat([self._coefficients, other._coefficients])
        self._log_probs = [torch.cat(both) for both in zip(self._log_probs, other._log_probs, strict=True)]
        self._pending += other._pending
        self._lengths = [own + more for own, more in zip(self._lengths, other._lengths, strict=True)]

    def _law(self, backbone: Backbone, states: torch.Tensor) -> torch.Tensor:
        """Return what a network says of every next token, (B, V), from its (B, D) states."""
        return backbone.log_probs(states)

    def _at(self, backbone: Backbone, states: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return what it says of single tokens (M,), from rows (M,) of (N, D) states."""
        return log_probs_at(backbone, states, rows, tokens)

    def _before(self) -> torch.Tensor:
        """Return what the rewards of each row's candidates count from, (B,)."""
        return self._values

    def _read_pending(self) -> None:
        """Read the tokens kept last: not before, since rows that ended with theirs have left meanwhile."""
        due = [token is not None for token in self._pending]
        if not any(due):
            return
        for number, session in enumerate(self._sessions):
            self._lengths[number] = [length + new for length, new in zip(self._lengths[number], due, strict=True)]
            self._check_context(number)
            session.reserve(1)
            begin = session.forest.length
            rows = zip(self._pending, session.tips, strict=True)
            states = session.extend([siblings([] if token is None else [token], tip) for token, tip in rows])[:, 0]
            session.commit([[begin] if new else [] for new in due], begin)
            fresh = self._law(session.backbone, states)
            read = torch.tensor(due, device=fresh.device)[:, None]
            self._log_probs[number] = torch.where(read, fresh, self._log_probs[number])
        self._pending = [None] * len(due)

    def _check_context(self, number: int, more: int = 0) -> None:
        backbone = self._sessions[number].backbone
        if max(self._lengths[number]) + more > backbone.context:
            raise DataError(
                f"the reward model {backbone.name} reads {backbone.context} tokens, and a prompt, "
                "its soft prompt and the text written for it have more. Lower max_prompt_tokens or max_new_tokens."
            )

    def _summed(self, gained: torch.Tensor) -> torch.Tensor:
        """Return the running sums of what each node gained over its parent."""
        rewards = gained.clone()
        for row, trie in enumerate(self._tries):
            for node, parent in enumerate(trie.parents):
                rewards[row, node] += self._values[row] if parent == ROOT else rewards[row, parent]
        self._rewards = rewards
        return rewards


def _inner_block(trie: Trie, nodes: Sequence[int], tip: int, begin: int) -> Block:
    """Return the nodes that others follow as a block below the tip."""
    slots = {node: begin + at for at, node in enumerate(nodes)}
    return Block(
        tuple(trie.tokens[node] for node in nodes),
        tuple(tip if trie.parents[node] == ROOT else slots[trie.parents[node]] for node in nodes),
    )


def _depth(trie: Trie) -> int:
    """Return how many tokens of the longest path are read: all but the last."""
    depths: list[int] = []
    for parent in trie.parents:
        depths.append(1 if parent == ROOT else depths[parent] + 1)
    return max(depths, default=1) - 1
