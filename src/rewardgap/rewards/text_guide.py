"""Steering at the level of text: a reward model of another tokenizer than the policy's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import ROOT, Block, Trie, build_trie
from rewardgap.rewards.text_reader import TextReader, check_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.chat import ChatEncoder
    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import Prompt
    from rewardgap.rewards.base import Head
    from rewardgap.rewards.guide import Guide
    from rewardgap.rewards.states import UserState

READ_PER_TOKEN = 2
"""Ids of the reward model that buffers are planned for, for each token of the policy; they grow where it takes more."""


@dataclass
class _Row:
    """What a row has written, and what the reward model has read of it.

    Attributes:
        prompt: its prompt's ids.
        reader: reads the policy's tokens.
        written: the policy's tokens so far.
        read: the reward model's ids of the last text that did not end inside a character.
        values: the reward of the bare prompt, then that after each id read.
    """

    prompt: tuple[int, ...]
    reader: TextReader
    written: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Pass:
    """A row's part of a pass.

    Attributes:
        trie: the policy's tokens below the row's tip.
        own: the reward model's ids: the path read so far first, then what is new; path 1 + n is that of node n.
        held: how many ids were read so far.
        slots: of the prompt's last id, then of each id read so far; more where a text ended at an earlier one's middle.
    """

    trie: Trie
    own: Trie
    held: int
    slots: list[int]

    def block(self, begin: int) -> Block:
        """Return what is new as a block whose first node is slot `begin`; it may hang anywhere on the path."""
        parents = self.own.parents[self.held :]
        slots = (self.slots[1 + p] if p < self.held else begin + p - self.held for p in parents)
        return Block(self.own.tokens[self.held :], tuple(slots))

    def ends(self, width: int) -> list[int]:
        """Return the column of each node's reward in a table of `width` rewards that are known, then the new ones."""
        last = [path[-1] if path else -1 for path in self.own.paths[1:]]
        return [1 + node if node < self.held else width + node - self.held for node in last]


class TextGuide:
    """Rewards of what the policy's tokens spell, from a backbone that reads text in tokens of its own.

    The reward of a prefix is that of its text: the whole of it is decoded and encoded again, so that a token that
    changes how those before it are read has the reward of the text it makes. A prefix that ends inside a character has
    the reward of the last one that did not. What the texts of a pass have in common with the text read so far, and with
    one another, is read once: they are branches of a tree whose keys and values stay in place.

    Args:
        policy: the policy's tokenizer.
        backbone: the reward model's.
        prompts: (B,) prompts.
        prompt_ids: (B,) what the reward model reads for each of them.
        head: a fitted head.
        states: one user state a row.
        scale: rewards are divided by it.
        room: the policy's new tokens and candidates at most, for the buffers.
        beside: (B, D') what the head reads beside each row's states, (B, ..., D + D'); nothing unless given.
    """

    reads_policy = False
    rewards_ends = False
    reads_candidates = True

    def __init__(
        self,
        policy: ChatEncoder,
        backbone: Backbone,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        head: Head,
        states: Sequence[UserState],
        scale: float,
        room: int,
        beside: torch.Tensor | None = None,
    ) -> None:
        self._head, self._states, self._scale, self._beside = head, list(states), scale, beside
        self._rows = [
            _Row(tuple(ids), TextReader(policy, backbone.encoder, prompt))
            for prompt, ids in zip(prompts, prompt_ids, strict=True)
        ]
        self._session = TrieSession(backbone, len(prompts), max(map(len, prompt_ids)) + READ_PER_TOKEN * room)
        self._passes: list[_Pass] = []
        self._fresh = torch.empty(0)
        self._begin = 0

    @property
    def forwards(self) -> int:
        """Return the forward passes so far."""
        return self._session.forwards

    @property
    def tokens(self) -> int:
        """Return the reward model's tokens encoded so far."""
        return self._session.tokens

    @property
    def num_weights(self) -> int:
        """Return the size of the backbone."""
        return self._session.backbone.num_weights

    def start(self, policy_states: torch.Tensor) -> torch.Tensor:
        """Return (B,) rewards of the bare prompts."""
        rewards = self._read(self._session.prefill([row.prompt for row in self._rows]))
        for row, value in zip(self._rows, rewards.tolist(), strict=True):
            row.values = [value]
        return rewards

    def candidates(self, tokens: torch.Tensor, policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, K) rewards of each prefix extended by each candidate."""
        return self.tree([Trie(tuple(row), (ROOT,) * len(row), ()) for row in tokens.tolist()], policy_states)

    def keep(self, choices: list[int], tokens: list[int]) -> None:
        """Move each row to its chosen candidate, and forget what the reward model read of the others."""
        self.commit([[choice] for choice in choices])

    def steps_ahead(self, width: int) -> int:
        """Return how often `width` candidates are planned to fit in the buffers, and their texts in the context.

        A draft may be longer than the text turns out: what would outgrow the context must not be drafted.
        """
        unread = min(self._session.backbone.context - len(row.prompt) - len(row.read) for row in self._rows)
        return max(1, min(self._session.free // (READ_PER_TOKEN * width), unread // READ_PER_TOKEN))

    def tree(self, tries: Sequence[Trie], policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, Q) rewards of the texts that end at the nodes of a trie of the policy's tokens below each tip.

        Raises:
            DataError: if a text does not fit the reward model's context, or has no reading in its tokens.
        """
        readings = [_readings(row, trie) for row, trie in zip(self._rows, tries, strict=True)]
        for row, texts in zip(self._rows, readings, strict=True):
            check_context(self._session.backbone, len(row.prompt), max(map(len, texts), default=0))
        own = [build_trie([row.read, *texts]) for row, texts in zip(self._rows, readings, strict=True)]
        self._reserve(max(len(trie.tokens) - len(row.read) for trie, row in zip(own, self._rows, strict=True)))
        self._begin = self._session.forest.length
        self._passes = []
        for place, (row, trie, read) in enumerate(zip(self._rows, tries, own, strict=True)):
            slots = self._session.forest.slots(place, self._session.tips[place])[len(row.prompt) - 1 :]
            self._passes.append(_Pass(trie, read, len(row.read), slots))
        states = self._session.extend([part.block(self._begin) for part in self._passes])
        known = max(len(row.values) for row in self._rows)
        table = torch.tensor(
            [[*row.values, *[0.0] * (known - len(row.values))] for row in self._rows],
            dtype=torch.float64,
            device=self._session.backbone.device,
        )
        self._fresh = self._read(states) if states.shape[1] else table[:, :0]
        columns = torch.zeros((len(tries), max(len(trie.tokens) for trie in tries)), dtype=torch.long)
        for place, part in enumerate(self._passes):
            columns[place, : len(part.trie.tokens)] = torch.tensor(part.ends(known), dtype=torch.long)
        return torch.cat([table, self._fresh], 1).gather(1, columns.to(table.device))

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Of the tries scored last, keep a path a row and what the reward model read of it; forget the others."""
        fresh = self._fresh.tolist()
        kept: list[list[int]] = []
        for place, (row, part, path) in enumerate(zip(self._rows, self._passes, paths, strict=True)):
            read = part.own.paths[1 + path[-1]] if path else part.own.paths[0]
            new = [node - part.held for node in read if node >= part.held]
            shared = len(read) - len(new)
            kept.append([self._begin + node for node in new])
            row.written += tuple(part.trie.tokens[node] for node in path)
            row.read = tuple(part.own.tokens[node] for node in read)
            row.values = [*row.values[: 1 + shared], *(fresh[place][node] for node in new)]
        self._session.commit(kept, self._begin)

    def select(self, rows: list[int]) -> None:
        """Keep these rows."""
        self._session.select(rows)
        self._states = [self._states[row] for row in rows]
        self._rows = [self._rows[row] for row in rows]
        self._beside = None if self._beside is None else self._beside[rows]

    def joins(self, other: Guide) -> bool:
        """Return whether the other guide reads text too."""
        return type(other) is type(self)

    def join(self, other: TextGuide) -> None:
        """Take over the other's rows."""
        self._session.join(other._session)
        self._states += other._states
        self._rows += other._rows
        if self._beside is not None and other._beside is not None:
            self._beside = torch.cat([self._beside, other._beside])

    @torch.no_grad()
    def _read(self, states: torch.Tensor) -> torch.Tensor:
        """Return (B, ...) rewards of (B, ..., D) states of the session."""
        seen = states
        if self._beside is not None:
            beside = self._beside.to(states).reshape(len(states), *[1] * (states.ndim - 2), -1)
            seen = torch.cat([states, beside.expand(*states.shape[:-1], -1)], -1)
        return self._head.batch_rewards(seen, self._states).to(states.device).double() / self._scale

    def _reserve(self, more: int) -> None:
        """Make room for more ids; where a text took more than planned, in larger buffers that are filled again."""
        session = self._session
        if more <= session.free:
            session.reserve(more)
            return
        texts = [(*row.prompt, *row.read) for row in self._rows]
        self._session = TrieSession(session.backbone, session.rows, 2 * (max(map(len, texts)) + more))
        self._session.forwards, self._session.tokens = session.forwards, session.tokens
        self._session.prefill(texts)


def _readings(row: _Row, trie: Trie) -> list[tuple[int, ...]]:
    """Return the reward model's ids of the text at each node."""
    written: list[tuple[int, ...]] = []
    readings: list[tuple[int, ...]] = []
    for token, parent in zip(trie.tokens, trie.parents, strict=True):
        before, read = (row.written, row.read) if parent == ROOT else (written[parent], readings[parent])
        written.append((*before, token))
        readings.append(row.reader.read(written[-1], read))
    return readings
