"""Blockwise controlled decoding: blocks of tokens drawn from the policy, the best by value kept (arXiv 2310.17022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from rewardgap.decoding.base import STATE_VALUES, TOKEN_REWARDS, DecoderCard
from rewardgap.decoding.chains import Undergrowth, Wanted, grow
from rewardgap.decoding.choosing import (
    distinct,
    is_near_tie,
    keep_chains,
    leave,
    needs_guide,
    reward_chains,
    write_down,
)
from rewardgap.decoding.outcome import Decoded
from rewardgap.decoding.sampling import Sampler, Streams, check_counts, check_sampling, first_best

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.outcome import StopRule, Watch
    from rewardgap.rewards.guide import Guide


@dataclass(frozen=True)
class Blockwise:
    """Draws K blocks of M tokens, keeps the one whose prefix has the highest reward, and goes on from there.

    A block ends early where the text does; blocks that ended compete with those that did not by the reward of the whole
    prefix. Equal rewards go to the first. With M at least the length of a text this is best-of-K.

    Args:
        block: M, tokens of a block.
        num_blocks: K, blocks drawn at a time.
        temperature: of the policy's samples.
        top_p: nucleus of the policy's samples.

    Raises:
        ConfigError: if a value is out of range.
    """

    block: int = 16
    num_blocks: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    name: str = "blockwise"
    top_k: ClassVar[int | None] = None
    guidance_weight: ClassVar[float] = 1.0
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_counts(self.name, 1, block=self.block, num_blocks=self.num_blocks)
        check_sampling(self.name, self.temperature, self.top_p)

    def room(self, max_new_tokens: int) -> int:
        """Return the slots that a text and the blocks of its last step need."""
        return max_new_tokens + self.num_blocks * min(self.block, max_new_tokens)

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Return the index of the best block in each row of (B, K) rewards."""
        return first_best(scores)

    def search(
        self,
        session: TrieSession,
        tip_states: torch.Tensor,
        stop: StopRule,
        guide: Guide | None,
        seeds: Sequence[int],
        watch: Watch | None = None,
    ) -> list[Decoded]:
        """Write a text for each row; the arguments are those of `decode`."""
        guide = needs_guide(self.name, guide)
        sampler = Sampler(Streams(seeds), self.temperature, self.top_p)
        out = [Decoded() for _ in range(session.rows)]
        alive, states = list(range(session.rows)), tip_states
        values: list[float] = guide.start(tip_states).double().tolist()
        while alive:
            below = Undergrowth(session, states, self.num_blocks * min(self.block, stop.max_new_tokens))
            wanted = [Wanted(row, out[row].steps, range(self.num_blocks), self.block) for row in alive]
            chains = grow(below, wanted, stop, sampler, guide)
            rewards = reward_chains(guide, below, chains, values, stop, alive)
            scores = torch.tensor([rewards.of_row(place) for place in range(len(alive))], dtype=torch.float64)
            choices = self.choose(scores, None).tolist()
            kept = []
            for place, (row, choice) in enumerate(zip(alive, choices, strict=True)):
                done, blocks = out[row], chains[place]
                done.reward = float(scores[place, choice])
                done.guide_passes += 1
                done.drafted += sum(len(chain.tokens) for chain in blocks)
                done.proposed += self.num_blocks
                done.distinct += distinct(blocks)
                done.accepted += 1
                done.near_ties += int(is_near_tie(scores[place].tolist(), blocks, choice))
                if write_down(done, blocks[choice].tokens, stop, row, watch):
                    kept.append(place)
            if not kept:
                break
            picked = [
                (chains[place][choice], choice) if place in kept else None for place, choice in enumerate(choices)
            ]
            ends = [(place, chains[place][choices[place]].nodes[-1]) for place in kept]
            states = below.states_at(ends)
            keep_chains(guide, below, rewards, picked)
            leave(session, guide, kept, len(alive))
            values = [float(scores[place, choices[place]]) for place in kept]
            alive = [alive[place] for place in kept]
        return out


CARD = DecoderCard(
    name="blockwise",
    summary="Blocks of M tokens drawn from the policy, the one with the highest reward kept at each step.",
    guided=True,
    build=Blockwise,
    options={
        "block": "tokens of a block, M",
        "num_blocks": "blocks drawn at a time, K",
        "temperature": "of the policy's samples, above 0",
        "top_p": "nucleus of the policy's samples",
    },
    paper="Mudgal et al. 2023, Controlled decoding, arXiv 2310.17022",
    equation="argmax over K blocks z ~ π(. | x, y<t) of M tokens of r(x, y<t z)",
    families=(STATE_VALUES, TOKEN_REWARDS),
    scores=False,
    deviations=(
        "The value of a prefix is its reward under a model of preferences; the paper trains a value model on the "
        "rewards that the policy's own continuations end with.",
    ),
)
