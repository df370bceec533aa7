"""Transfer-Q: each candidate token judged by the text that the policy would write behind it (arXiv 2405.20495)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from rewardgap.decoding.base import STATE_VALUES, TOKEN_REWARDS, DecoderCard
from rewardgap.decoding.chains import Undergrowth, Wanted, grow
from rewardgap.decoding.choosing import keep_chains, leave, needs_guide, reward_chains
from rewardgap.decoding.outcome import Decoded, candidates_of, check_fluency, step_facts
from rewardgap.decoding.sampling import Greediest, check_counts, check_numbers, first_best
from rewardgap.numerics.guidance import guided_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.outcome import StopRule, Watch
    from rewardgap.rewards.guide import Guide


@dataclass(frozen=True)
class TransferQ:
    """Takes the candidate with the highest log π + λ Q, Q the reward of the text rolled out behind it.

    The policy itself rolls out, greedily, under the same rules as a text: a rollout ends where a text would. A step
    costs `top_k` · `rollout` tokens, so this is for short texts. With a rollout of 0 the tokens are those of
    args_greedy.

    Args:
        guidance_weight: λ, in units of the reward's margin deviation on training users.
        top_k: candidates a step.
        rollout: tokens behind a candidate at most.

    Raises:
        ConfigError: if a value is out of range.
    """

    guidance_weight: float = 1.0
    top_k: int = 5
    rollout: int = 20
    name: str = "transfer_q"
    draws: ClassVar[bool] = False
    temperature: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_counts(self.name, 1, top_k=self.top_k)
        check_counts(self.name, 0, rollout=self.rollout)
        check_numbers(self.name, guidance_weight=self.guidance_weight)

    def room(self, max_new_tokens: int) -> int:
        """Return the slots that a text and the rollouts of its last step need."""
        return max_new_tokens + self.top_k * min(1 + self.rollout, max_new_tokens)

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Return the first index of each row's maximum; candidates come best first, so ties go to the policy."""
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
        out = [Decoded() for _ in range(session.rows)]
        alive, states = list(range(session.rows)), tip_states
        values: list[float] = guide.start(tip_states).double().tolist()
        closers = torch.tensor(stop.closers, dtype=torch.long, device=states.device)
        for step in range(stop.max_new_tokens):
            log_probs = session.backbone.log_probs(states)
            if step < stop.min_new_tokens:
                log_probs[:, closers] = -torch.inf
            fluency, candidates = candidates_of(log_probs, self.top_k)
            check_fluency(fluency, alive)
            rows, width = candidates.tolist(), candidates.shape[-1]
            below = Undergrowth(session, states, width * min(1 + self.rollout, stop.max_new_tokens))
            firsts = [[[token] for token in row] for row in rows]
            wanted = [
                Wanted(row, step, range(width), 1 + self.rollout, given=given)
                for row, given in zip(alive, firsts, strict=True)
            ]
            chains = grow(below, wanted, stop, Greediest(), guide)
            rewards = reward_chains(guide, below, chains, values, stop, alive)
            qualities = torch.tensor([rewards.of_row(p) for p in range(len(alive))], dtype=torch.float64)
            qualities = qualities.to(fluency.device)
            scores = guided_scores(fluency, qualities, self.guidance_weight)
            choices = self.choose(scores, None).tolist()
            facts = step_facts(scores, fluency, qualities * self.guidance_weight) if width > 1 else None
            kept = []
            for place, (row, choice) in enumerate(zip(alive, choices, strict=True)):
                done, token = out[row], rows[place][choice]
                if facts is not None:
                    done.note(facts[place], rows[place][0], token)
                done.reward = rewards.at(place, choice, 1)
                done.guide_passes += 1
                done.drafted += sum(len(chain.tokens) for chain in chains[place])
                if done.take(token, stop):
                    kept.append(place)
                if watch is not None:
                    watch(row, done)
            if not kept:
                break
            picked = [
                (chains[place][choice], choice) if place in kept else None for place, choice in enumerate(choices)
            ]
            states = below.states_at([(place, chains[place][choices[place]].nodes[0]) for place in kept])
            values = [rewards.at(place, choices[place], 1) for place in kept]
            keep_chains(guide, below, rewards, picked, 1)
            leave(session, guide, kept, len(alive))
            alive = [alive[place] for place in kept]
        return out


CARD = DecoderCard(
    name="transfer_q",
    summary="Highest log π + λ Q among the top-k candidates, Q the reward of a greedy rollout behind each.",
    guided=True,
    build=TransferQ,
    options={
        "guidance_weight": "λ, weight of the reward against log-probability",
        "top_k": "candidates a step",
        "rollout": "tokens rolled out behind a candidate",
    },
    paper="Chakraborty et al. 2024, Transfer Q*, arXiv 2405.20495",
    equation="argmax over top-k of log π(v | x, y<t) + λ r(x, y<t v z), z the greedy continuation of y<t v",
    families=(STATE_VALUES, TOKEN_REWARDS),
    scores=False,
    deviations=(
        "The policy itself rolls out; the paper takes a baseline that is aligned already.",
        "Candidates and their log-probabilities are the policy's, not the rolling model's.",
    ),
)
