"""Rewards of what might come next, as candidates of one step or as a tree: what a decoder asks of a reward model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from rewardgap.backbones.chat import check_readable
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import ROOT, siblings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import Trace
    from rewardgap.backbones.trie import Trie
    from rewardgap.rewards.base import Head
    from rewardgap.rewards.states import UserState


class Guide(Protocol):
    """Rewards of candidate next tokens for a batch of users, one step at a time or several ahead.

    `reads_policy` says whether rewards are read on the policy's own hidden states; such a guide gets them, any other
    keeps a session of its own. `rewards_ends` says whether an end token has a reward of its own; where it has not, it
    takes that of the prefix it closes. `reads_candidates` says whether its network reads every candidate, or one token
    a step. `num_weights` is how many numbers a pass over its network reads.
    """

    reads_policy: bool
    rewards_ends: bool
    reads_candidates: bool

    @property
    def num_weights(self) -> int:
        """Return the size of the guide's own network; 0 where it has none."""
        ...

    def steps_ahead(self, width: int) -> int:
        """Return for how many steps of `width` candidates `tree` has room now, at least 1."""
        ...

    def start(self, policy_states: torch.Tensor) -> torch.Tensor:
        """Return the reward of each bare prompt, (B,), given the policy's states (B, D) at the prompts' ends."""
        ...

    def candidates(self, tokens: torch.Tensor, policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, K) rewards of each prefix extended by each candidate; `policy_states` is (B, K, D) or None."""
        ...

    def keep(self, choices: list[int], tokens: list[int]) -> None:
        """Move each row to its chosen candidate."""
        ...

    def tree(self, tries: Sequence[Trie], policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, Q) rewards of the prefixes that end at the nodes of a trie below each tip, in one pass.

        `policy_states` is (B, Q, D) or None; Q is the size of the largest trie, and what lies beyond a smaller one is
        meaningless. End tokens are treated as any other: give the reward of the prefix they close in its place where
        `rewards_ends` is False. The nodes stay until `commit`.
        """
        ...

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Of the tries scored last, keep a path of nodes a row from the tip on, or none, and forget the others."""
        ...

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        ...

    @property
    def forwards(self) -> int:
        """Return the forward passes of the guide's own network so far."""
        ...

    @property
    def tokens(self) -> int:
        """Return the tokens sent through the guide's own network so far."""
        ...


@runtime_checkable
class JoiningGuide(Protocol):
    """A guide whose batch new rows may enter."""

    def joins(self, other: Guide) -> bool:
        """Return whether the rows of another guide could be taken over."""
        ...

    def join(self, other: Any) -> None:
        """Take over the rows of another, started guide that `joins` behind the own ones; it is spent afterwards."""
        ...


@runtime_checkable
class BoundedGuide(Protocol):
    """A guide that knows how much two rewards of a row can differ at most.

    Attributes:
        span: that difference, in units of the reward scale; inf where there is no bound.
    """

    span: float


class WholeVocabulary(Protocol):
    """A policy and the reward of every next token, along one completion of T scored tokens."""

    def log_normalisers(self, guidance_weight: float, temperature: float = 1.0) -> NDArray[np.float64]:
        """Return (T,) log Σ_v exp((log π(v) + λ r(v)) / τ), where r(v) is what token v adds to its prefix's reward."""
        ...


@dataclass(frozen=True)
class NodeRewards:
    """Rewards along one completion of T scored tokens, in units of the reward scale.

    Attributes:
        prefixes: (T + 1,) reward of each prefix; the first is the bare prompt, the last closes with the end token.
        candidates: (T, K) reward of each prefix extended by each of the policy's candidates.
        whole: the same of every token, from which normalisers are formed; None where a reading rewards one token.
    """

    prefixes: NDArray[np.float64]
    candidates: NDArray[np.float64]
    whole: WholeVocabulary | None = None


def close_ends(
    trace: Trace, prefixes: NDArray[np.float64], candidates: NDArray[np.float64], end_ids: Sequence[int]
) -> NodeRewards:
    """Give every end token the reward of the prefix it closes.

    Args:
        trace: the completion.
        prefixes: (T,) rewards of the prefixes before each scored token.
        candidates: (T, K) rewards of the candidates; those of end tokens are ignored.
        end_ids: tokens that end a text.
    """
    ends = np.isin(trace.candidates, np.asarray(list(end_ids)))
    return NodeRewards(np.append(prefixes, prefixes[-1]), np.where(ends, prefixes[:, None], candidates))


def _read(head: Head, states: torch.Tensor, users: Sequence[UserState]) -> torch.Tensor:
    """Return a head's rewards where the states are; a head fitted on cached features may live elsewhere."""
    return head.batch_rewards(states, users).to(states.device)


class PolicyStateGuide:
    """Reads rewards on the policy's own hidden states: one forward gives k rewards and k next logits.

    Args:
        head: a fitted head.
        states: one user state a row.
        scale: rewards are divided by it.
    """

    reads_policy = True
    rewards_ends = False
    reads_candidates = True
    num_weights = 0
    forwards = 0
    tokens = 0

    def __init__(self, head: Head, states: Sequence[UserState], scale: float) -> None:
        self._head, self._states, self._scale = head, list(states), scale

    def start(self, policy_states: torch.Tensor) -> torch.Tensor:
        """Return (B,) rewards of the bare prompts."""
        return _read(self._head, policy_states, self._states) / self._scale

    def candidates(self, tokens: torch.Tensor, policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, K) rewards read at the candidates' states (B, K, D)."""
        assert policy_states is not None
        return _read(self._head, policy_states, self._states) / self._scale

    def keep(self, choices: list[int], tokens: list[int]) -> None:
        """Do nothing: the policy's session holds everything."""

    def steps_ahead(self, width: int) -> int:
        """Return 1: the policy's session decides what there is room for."""
        return 1

    def tree(self, tries: Sequence[Trie], policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, Q) rewards read at the nodes' states (B, Q, D)."""
        assert policy_states is not None
        return _read(self._head, policy_states, self._states) / self._scale

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Do nothing: the policy's session holds everything."""

    def select(self, rows: list[int]) -> None:
        """Keep these users."""
        self._states = [self._states[row] for row in rows]

    def joins(self, other: Guide) -> bool:
        """Return whether the other guide reads the policy's states too."""
        return type(other) is type(self)

    def join(self, other: PolicyStateGuide) -> None:
        """Take over the other's users."""
        self._states += other._states


class BackboneGuide:
    """Reads rewards on a backbone of its own (another model, or one with an adapter), in a session of its own.

    Args:
        backbone: the reward model's backbone; its token ids must be the policy's.
        prompts: (B,) prompt ids as this backbone's template gives them.
        head: a fitted head.
        states: one user state a row.
        scale: rewards are divided by it.
        room: new tokens and candidates at most, for the buffers.
    """

    reads_policy = False
    rewards_ends = False
    reads_candidates = True
    span = math.inf

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        head: Head,
        states: Sequence[UserState],
        scale: float,
        room: int,
    ) -> None:
        self._head, self._states, self._scale, self._prompts = head, list(states), scale, prompts
        self._session = TrieSession(backbone, len(prompts), max(map(len, prompts)) + room)
        self._width = 0
        self._begin = 0

    @property
    def forwards(self) -> int:
        """Return the forward passes so far."""
        return self._session.forwards

    @property
    def tokens(self) -> int:
        """Return the tokens encoded so far."""
        return self._session.tokens

    def start(self, policy_states: torch.Tensor) -> torch.Tensor:
        """Return (B,) rewards of the bare prompts."""
        return _read(self._head, self.view(self._session.prefill(self._prompts)), self._states) / self._scale

    def candidates(self, tokens: torch.Tensor, policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, K) rewards of the candidates packed as siblings."""
        check_readable(tokens, self._session.backbone)
        self._width = tokens.shape[-1]
        self._session.reserve(self._width)
        rows = zip(tokens.tolist(), self._session.tips, strict=True)
        states = self._session.extend([siblings(row, tip) for row, tip in rows])
        return _read(self._head, self.view(states), self._states) / self._scale

    def view(self, states: torch.Tensor) -> torch.Tensor:
        """Return what the head reads of (B, ..., D) states of the session."""
        return states

    def keep(self, choices: list[int], tokens: list[int]) -> None:
        """Keep the winners' keys and values in place."""
        self._session.keep(choices, self._width)

    @property
    def num_weights(self) -> int:
        """Return the size of the backbone."""
        return self._session.backbone.num_weights

    def steps_ahead(self, width: int) -> int:
        """Return how often `width` nodes fit behind the longest row."""
        return max(1, self._session.free // width)

    def tree(self, tries: Sequence[Trie], policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, Q) rewards of the nodes packed below the tips."""
        check_readable(np.concatenate([trie.tokens for trie in tries]), self._session.backbone)
        self._session.reserve(max(len(trie.tokens) for trie in tries))
        self._begin = self._session.forest.length
        rows = zip(tries, self._session.tips, strict=True)
        states = self._session.extend([trie.block(parent=tip, start=self._begin) for trie, tip in rows])
        return _read(self._head, self.view(states), self._states) / self._scale

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the paths' keys and values."""
        self._session.commit([[self._begin + node for node in path] for path in paths], self._begin)

    def select(self, rows: list[int]) -> None:
        """Keep these rows."""
        self._session.select(rows)
        self._states = [self._states[row] for row in rows]

    def joins(self, other: Guide) -> bool:
        """Return whether the other guide reads a backbone too."""
        return type(other) is type(self)

    def join(self, other: BackboneGuide) -> None:
        """Take over the other's rows."""
        self._session.join(other._session)
        self._states += other._states


class PrefixGuide:
    """Rewards of token-id prefixes from a plain function: for rewards that are known, as on synthetic data.

    Args:
        value: (row, completion ids) -> reward of that prefix for the row's user.
        rows: number of rows.
    """

    reads_policy = False
    rewards_ends = False
    reads_candidates = True
    num_weights = 0
    forwards = 0
    tokens = 0

    def __init__(self, value: Callable[[int, tuple[int, ...]], float], rows: int) -> None:
        self._rows = [partial(value, row) for row in range(rows)]
        self._paths: list[tuple[int, ...]] = [()] * rows
        self._nodes: list[list[tuple[int, ...]]] = []

    def start(self, policy_states: torch.Tensor) -> torch.Tensor:
        """Return (B,) rewards of empty completions."""
        return torch.tensor([value(()) for value in self._rows], dtype=torch.float64)

    def candidates(self, tokens: torch.Tensor, policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, K) rewards, one call of the function a candidate."""
        places = zip(self._rows, self._paths, tokens.tolist(), strict=True)
        values = [[value((*path, token)) for token in row_tokens] for value, path, row_tokens in places]
        return torch.tensor(values, dtype=torch.float64)

    def keep(self, choices: list[int], tokens: list[int]) -> None:
        """Extend each path."""
        self._paths = [(*path, token) for path, token in zip(self._paths, tokens, strict=True)]

    def steps_ahead(self, width: int) -> int:
        """Return a number that is no limit: there are no buffers."""
        return 1 << 30

    def tree(self, tries: Sequence[Trie], policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, Q) rewards, one call of the function a node."""
        width = max(len(trie.tokens) for trie in tries)
        out = torch.zeros((len(tries), width), dtype=torch.float64)
        self._nodes = []
        for place, (value, path, trie) in enumerate(zip(self._rows, self._paths, tries, strict=True)):
            ends: list[tuple[int, ...]] = []
            for node, (token, parent) in enumerate(zip(trie.tokens, trie.parents, strict=True)):
                ends.append((*(path if parent == ROOT else ends[parent]), token))
                out[place, node] = value(ends[-1])
            self._nodes.append(ends)
        return out

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Extend each path."""
        self._paths = [
            ends[kept[-1]] if kept else path for ends, kept, path in zip(self._nodes, paths, self._paths, strict=True)
        ]

    def select(self, rows: list[int]) -> None:
        """Keep these rows."""
        self._rows = [self._rows[row] for row in rows]
        self._paths = [self._paths[row] for row in rows]

    def joins(self, other: Guide) -> bool:
        """Return whether the other guide is a function too."""
        return type(other) is type(self)

    def join(self, other: PrefixGuide) -> None:
        """Take over the other's rows and paths."""
        self._rows += other._rows
        self._paths += other._paths
