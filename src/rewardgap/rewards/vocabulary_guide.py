"""Rewards of next tokens from networks over the whole vocabulary: one forward of one token rewards every candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import siblings
from rewardgap.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone


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

    def __init__(self, streams: Sequence[Stream], coefficients: torch.Tensor, room: int) -> None:
        self._streams, self._coefficients = list(streams), coefficients.double()
        self._sessions = [
            TrieSession(stream.backbone, len(stream.prompts), max(map(len, stream.prompts)) + room)
            for stream in streams
        ]
        self._log_probs: list[torch.Tensor] = []
        self._values = self._coefficients.new_zeros(len(coefficients))
        self._rewards = self._values[:, None]
        self._pending: list[int] | None = None
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
            stream.backbone.log_probs(session.prefill(stream.prompts))
            for stream, session in zip(self._streams, self._sessions, strict=True)
        ]
        self._coefficients = self._coefficients.to(policy_states.device)
        self._values = self._values.to(policy_states.device)
        return self._values

    @torch.no_grad()
    def candidates(self, tokens: torch.Tensor, policy_states: torch.Tensor | None) -> torch.Tensor:
        """Return (B, K) rewards of each prefix extended by each candidate."""
        self._read_pending()
        rewards = self._values[:, None].expand(tokens.shape).clone()
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

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        self._values, self._coefficients = self._values[rows], self._coefficients[rows]
        self._log_probs = [log_probs[rows] for log_probs in self._log_probs]
        if self._pending is not None:
            self._pending = [self._pending[row] for row in rows]
        self._lengths = [[lengths[row] for row in rows] for lengths in self._lengths]
        for session in self._sessions:
            session.select(rows)

    def _read_pending(self) -> None:
        """Read the tokens kept last: not before, since rows that ended with theirs have left meanwhile."""
        if self._pending is None:
            return
        for number, session in enumerate(self._sessions):
            self._lengths[number] = [length + 1 for length in self._lengths[number]]
            if max(self._lengths[number]) > session.backbone.context:
                raise DataError(
                    f"the reward model {session.backbone.name} reads {session.backbone.context} tokens, and a prompt, "
                    "its soft prompt and the text written for it have more. Lower max_prompt_tokens or max_new_tokens."
                )
            blocks = [siblings([token], tip) for token, tip in zip(self._pending, session.tips, strict=True)]
            states = session.extend(blocks)[:, 0]
            session.keep([0] * session.rows, 1)
            self._log_probs[number] = session.backbone.log_probs(states)
        self._pending = None
