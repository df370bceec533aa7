"""Reward models that read prompt and completion apart: two states side by side, each made without the other text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from rewardgap.backbones.chat import same_tokens
from rewardgap.backbones.features import ALONE, Item, PromptLimit, encode_texts, prompt_tree
from rewardgap.backbones.memory import SessionPlan
from rewardgap.backbones.session import tree_states
from rewardgap.backbones.traces import NodeStates
from rewardgap.backbones.trie import chain
from rewardgap.core.errors import ConfigError
from rewardgap.rewards.guide import BackboneGuide
from rewardgap.rewards.model import RewardModel
from rewardgap.rewards.prefixes import PairPrefixes, states_along
from rewardgap.rewards.text_guide import READ_PER_TOKEN, TextGuide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.session import TrieSession
    from rewardgap.backbones.traces import Trace, TraceCache
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.rewards.base import Head
    from rewardgap.rewards.guide import Guide, NodeRewards
    from rewardgap.rewards.joint import Tokens
    from rewardgap.rewards.states import UserState


@dataclass
class ApartModel(RewardModel):
    """A reward model of a head whose features are [h(y alone); h(x)], (2 D).

    h(y alone) is the state at the completion's last content token with no prompt before it (the template around an
    empty one), h(x) the state at the prompt's end. A completion is encoded once, whatever it answers. Rewards along a
    completion need a session of their own: the policy reads it behind its prompt.
    """

    def features_of(
        self, items: Sequence[Item], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return (N, 2 D) features of texts."""
        encoder = self.backbone.encoder
        alone = [Item(ALONE, encoder.joined(item.completion, item.prompt)) for item in items]
        asked = [Item(item.prompt, "") for item in items]
        both = self.features.encode(self.backbone, alone + asked, self.limit, progress)
        return np.concatenate([both[: len(items)], both[len(items) :]], axis=1)

    def training_states(self, backbone: Backbone, pairs: Sequence[PreferencePair]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, 2 D) states of chosen and rejected, with gradient; each prompt is read once."""
        return apart_states(backbone, pairs, self.limit)

    def training_tokens(self, backbone: Backbone, pairs: Sequence[PreferencePair]) -> Tokens:
        """Refuse: a row of features holds one state of the completion.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.method} reads completions apart from prompts and trains on their last token alone.")

    def prefix_rewards(self, prompt: Prompt, completion: str, state: UserState) -> NDArray[np.float64]:
        """Return (T + 1,) rewards of every prefix of a completion's T tokens; index 0 is the empty completion."""
        ids = self.backbone.encoder.alone_ids
        tail = self.backbone.encoder.encode_completion(completion, after=prompt)
        with torch.no_grad():
            alone = tree_states(self.backbone, [chain((*ids, *tail), -1, 0)])[0, len(ids) - 1 :].cpu()
        asked = self._asked([prompt]).to(alone)
        return self._read(torch.cat([alone, asked.expand(len(alone), -1)], -1), [state] * (len(tail) + 1))

    def pair_prefixes(self, pair: PreferencePair, state: UserState, cache: TraceCache | None = None) -> PairPrefixes:
        """Return the rewards of every prefix of both sides of a pair, each read alone."""
        tails = [
            self.backbone.encoder.encode_completion(text, after=pair.prompt) for text in (pair.chosen, pair.rejected)
        ]
        alone = states_along(self.backbone, self.backbone.encoder.alone_ids, tails, self._shared(cache))
        asked = self._asked([pair.prompt])
        beside = [torch.cat([along, asked.to(along).expand(len(along), -1)], -1) for along in alone]
        return self._along(tails, beside, state)

    def guide(
        self,
        policy: Backbone,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        states: Sequence[UserState],
        room: int,
    ) -> Guide:
        """Return rewards of candidate tokens for a batch of users, from a session that reads completions alone."""
        bare = [self.backbone.encoder.alone_ids] * len(prompts)
        asked = self._asked(prompts).to(self.backbone.device)
        if self.reading(policy).by_text:
            return TextGuide(policy.encoder, self.backbone, prompts, bare, self.head, states, self.scale, room, asked)
        guide = ApartGuide(self.backbone, bare, self.head, states, self.scale, room, asked)
        guide.span = self.head.reward_span / self.scale
        return guide

    def sessions(
        self, policy: Backbone, prompts: Sequence[Prompt], prompt_ids: Sequence[Sequence[int]], room: int
    ) -> list[SessionPlan]:
        """Return the session in which completions are read alone; the arguments are those of `guide`."""
        factor = 1 if same_tokens(policy, self.backbone) else READ_PER_TOKEN
        return [SessionPlan(self.backbone, len(self.backbone.encoder.alone_ids), factor * room)]

    def node_rewards(
        self,
        session: TrieSession,
        tip_states: torch.Tensor,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        traces: Sequence[Sequence[Trace]],
        states: Sequence[UserState],
        cache: TraceCache | None = None,
    ) -> list[list[NodeRewards]]:
        """Return the rewards at every token of given completions, and at every candidate beside it.

        Args:
            session: the policy's; left as it was.
            tip_states: not read.
            prompts: B prompts, without demonstrations.
            prompt_ids: not read.
            traces: the policy's traces of each row's completions.
            states: B user states.
            cache: where node states are kept.
        """
        reading, bare = self.reading(session.backbone), [self.backbone.encoder.alone_ids] * len(prompts)
        keys = reading.keys(prompts, bare, traces)
        found = [[cache.load_states(key) if cache is not None else None for key in row] for row in keys]
        if any(nodes is None for row in found for nodes in row):
            fresh = reading.states(prompts, bare, traces)
            found = [list(row) for row in fresh]
            for row_keys, row in zip(keys, fresh, strict=True):
                for key, value in zip(row_keys, row, strict=True):
                    if cache is not None:
                        cache.save_states(key, value)
        asked = self._asked(prompts)
        return [
            [
                self._read_nodes(reading, trace, _beside(nodes, asked[row]), state)
                for trace, nodes in zip(row_traces, row_found, strict=True)
                if nodes is not None
            ]
            for row, (row_traces, row_found, state) in enumerate(zip(traces, found, states, strict=True))
        ]

    def _asked(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        items = [Item(prompt, "") for prompt in prompts]
        return torch.from_numpy(self.features.encode(self.backbone, items, self.limit))


class ApartGuide(BackboneGuide):
    """Reads completions alone in a session of its own, beside the states of their prompts.

    Args:
        asked: (B, D) states at the prompts' ends; the other arguments are those of `BackboneGuide`.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        head: Head,
        states: Sequence[UserState],
        scale: float,
        room: int,
        asked: torch.Tensor,
    ) -> None:
        super().__init__(backbone, prompts, head, states, scale, room)
        self._asked = asked

    def view(self, states: torch.Tensor) -> torch.Tensor:
        """Return (B, ..., 2 D) features of (B, ..., D) states of completions read alone."""
        asked = self._asked.to(states).reshape(len(states), *[1] * (states.ndim - 2), -1)
        return torch.cat([states, asked.expand_as(states)], -1)

    def select(self, rows: list[int]) -> None:
        """Keep these rows."""
        super().select(rows)
        self._asked = self._asked[rows]

    def join(self, other: BackboneGuide) -> None:
        """Take over the other's rows."""
        assert isinstance(other, ApartGuide)
        super().join(other)
        self._asked = torch.cat([self._asked, other._asked])


def apart_states(
    backbone: Backbone, pairs: Sequence[PreferencePair], limit: PromptLimit
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, 2 D) states of chosen and rejected read alone, beside that of the prompt, with gradient."""
    blocks, ends = [], []
    for pair in pairs:
        ids, _ = encode_texts(backbone, pair.prompt, (), limit)
        tails = [backbone.encoder.encode_completion(text, after=pair.prompt) for text in (pair.chosen, pair.rejected)]
        block, nodes = prompt_tree(backbone.encoder.alone_ids, tails)
        blocks += [block, chain(ids, -1, 0)]
        ends.append((*nodes, len(ids) - 1))
    states = tree_states(backbone, blocks)
    places = torch.tensor(ends, device=states.device)
    rows = torch.arange(len(pairs), device=states.device)
    asked = states[2 * rows + 1, places[:, 2]]
    chosen, rejected = (states[2 * rows, places[:, side]] for side in (0, 1))
    return torch.cat([chosen, asked], -1), torch.cat([rejected, asked], -1)


def _beside(nodes: NodeStates, asked: torch.Tensor) -> NodeStates:
    def widened(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([states, asked.to(states).expand_as(states)], -1)

    return NodeStates(widened(nodes.prefixes), widened(nodes.candidates))
