"""CARDS: segments drawn from the policy until one is good enough for a rising threshold (arXiv 2406.16306)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rewardgap.core.errors import ConfigError
from rewardgap.core.seeds import child_seed
from rewardgap.decoding.base import STATE_VALUES, TOKEN_REWARDS, DecoderCard
from rewardgap.decoding.chains import Undergrowth, Wanted, grow
from rewardgap.decoding.choosing import keep_chains, leave, needs_guide, reward_chains, write_down
from rewardgap.decoding.outcome import Decoded
from rewardgap.decoding.sampling import Sampler, Streams, check_counts, check_numbers, check_sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.chains import Chain
    from rewardgap.decoding.outcome import StopRule, Watch
    from rewardgap.rewards.guide import Guide

TARGET_QUANTILE, ENTROPY_QUANTILE = 0.8, 0.7


@dataclass
class _Row:
    """A row between segments.

    Attributes:
        bare, target: r(x) and r*.
        pause: h.
        stream: random numbers of the next proposal; those of an accepted one serve the next segment too.
        judged: proposals judged so far, each with a random number of its own.
        tries: proposals rejected for the segment.
        best: tokens of the best of them, and its reward.
    """

    bare: float
    target: float
    pause: float
    stream: int = 0
    judged: int = 0
    tries: int = 0
    best: tuple[list[int], float] | None = None
    seen: set[tuple[int, ...]] = field(default_factory=set)


@dataclass(frozen=True)
class Cards:
    """Draws a segment, and keeps it with a probability that rises with its reward; else draws another.

        accept with probability min(1, exp((r(x, y≤t) - τ_t) / slack))
        τ_t = r_0 + (r* - r_0) t / T,   r_0 = (1 - α) r(x) + α r*

    A segment ends before the first token that the policy is unsure of, its next-token entropy at least `entropy`, or
    where the text ends. t counts the tokens of text and segment, T is the longest a text may be. After `tries`
    rejections the best of them is kept, the first of equal ones.

    Args:
        target: r*, the reward to reach, in units of the reward's margin deviation on training users; -inf accepts
            everything.
        entropy: h in nats; inf makes segments as long as they may be.
        calibrate: samples of each prompt, from which `target` (their rewards' 80th percentile) and `entropy` (the 70th
            percentile of the entropies along them) are read where they are not given.
        slack: above 0, in units of the reward scale; inf accepts everything.
        alpha: α in [0, 1].
        shortest: tokens of a segment at least, but for the end of the text.
        longest: tokens of a segment at most.
        tries: rejections of a segment at most.
        together: proposals drawn in one pass; the text is the same.
        temperature: of the policy's samples.
        top_p: nucleus of the policy's samples.

    Raises:
        ConfigError: if a value is out of range, or `target` or `entropy` can be neither read nor calibrated.
    """

    target: float | None = None
    entropy: float | None = None
    calibrate: int = 0
    slack: float = 0.7
    alpha: float = 0.5
    shortest: int = 4
    longest: int = 64
    tries: int = 20
    together: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    name: str = "cards"
    top_k: ClassVar[int | None] = None
    guidance_weight: ClassVar[float] = 1.0
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse values out of range, and thresholds that are not known."""
        check_counts(
            self.name, 1, shortest=self.shortest, longest=self.longest, tries=self.tries, together=self.together
        )
        check_counts(self.name, 0, calibrate=self.calibrate)
        check_sampling(self.name, self.temperature, self.top_p)
        check_numbers(self.name, alpha=self.alpha)
        missing = [name for name in ("target", "entropy") if getattr(self, name) is None]
        if missing and not self.calibrate:
            raise ConfigError(
                f"{self.name} needs {' and '.join(missing)}, which nothing gives: set target in units of the reward "
                "scale and entropy in nats, or calibrate=8 to read what is missing from 8 samples of each prompt."
            )
        if self.target is not None and self.target != -math.inf:
            check_numbers(self.name, target=self.target)
        for name, value in (("entropy", self.entropy), ("slack", self.slack)):
            if value is not None and value != math.inf:
                check_numbers(self.name, **{name: value})
        if self.slack <= 0:
            raise ConfigError(f"{self.name}: slack must be above 0, got {self.slack}.")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"{self.name}: alpha must be between 0 and 1, got {self.alpha}.")
        if self.shortest > self.longest:
            raise ConfigError(f"{self.name}: shortest is {self.shortest}, more than longest, {self.longest}.")

    def room(self, max_new_tokens: int) -> int:
        """Return the slots that a text and the proposals of its last segment need."""
        proposals = max_new_tokens + min(self.together, self.tries) * min(self.longest, max_new_tokens)
        return max(proposals, self.calibrate * max_new_tokens)

    def accepts(self, reward: float, length: int, row_target: float, bare: float, longest: int) -> float:
        """Return the probability that a prefix is kept.

        Args:
            reward: r(x, y≤t).
            length: t.
            row_target: r*.
            bare: r(x).
            longest: T.
        """
        if row_target == -math.inf:
            return 1.0
        first = (1 - self.alpha) * bare + self.alpha * row_target
        threshold = first + (row_target - first) * length / longest
        return math.exp(min(0.0, (reward - threshold) / self.slack))

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
        coins = [np.random.Generator(np.random.PCG64(child_seed(seed, "accept"))) for seed in seeds]
        out = [Decoded() for _ in range(session.rows)]
        alive, states = list(range(session.rows)), tip_states
        values: list[float] = guide.start(tip_states).double().tolist()
        rows = self._calibrated(session, tip_states, stop, guide, seeds, values, out)
        while alive:
            below = Undergrowth(
                session, states, min(self.together, self.tries) * min(self.longest, stop.max_new_tokens)
            )
            chains = grow(below, [self._wanted(row, rows[row], out[row]) for row in alive], stop, sampler, guide)
            rewards = reward_chains(guide, below, chains, values, stop, alive)
            choices = []
            for place, row in enumerate(alive):
                done, gained = out[row], rewards.of_row(place)
                done.guide_passes += 1
                done.drafted += sum(len(chain.tokens) for chain in chains[place])
                choices.append(self._judge(rows[row], done, chains[place], gained, coins[row], stop))
            kept = []
            for place, (row, choice) in enumerate(zip(alive, choices, strict=True)):
                if choice is None:
                    kept.append(place)
                    continue
                out[row].reward = rewards.at(place, choice)
                if write_down(out[row], chains[place][choice].tokens, stop, row, watch):
                    kept.append(place)
            if not kept:
                break
            picked: list[tuple[Chain, int] | None] = [None] * len(alive)
            ends = []
            for place in kept:
                choice = choices[place]
                if choice is not None:
                    picked[place] = (chains[place][choice], choice)
                    values[place] = rewards.at(place, choice)
                    ends.append((place, chains[place][choice].nodes[-1]))
            moved = states.clone()
            moved[[place for place, _ in ends]] = below.states_at(ends)
            keep_chains(guide, below, rewards, picked)
            leave(session, guide, kept, len(alive))
            states = moved[kept]
            values = [values[place] for place in kept]
            alive = [alive[place] for place in kept]
        return out

    def _wanted(self, number: int, row: _Row, done: Decoded) -> Wanted:
        """Return the next proposals of a row; once all were rejected, the best of them again."""
        if row.tries == self.tries:
            assert row.best is not None
            tokens = row.best[0]
            return Wanted(number, done.steps, [row.stream], len(tokens), given=[tokens])
        count = min(self.together, self.tries - row.tries)
        streams = range(row.stream, row.stream + count)
        return Wanted(number, done.steps, streams, self.longest, pause=row.pause, shortest=self.shortest)

    def _judge(
        self,
        row: _Row,
        done: Decoded,
        chains: Sequence[Chain],
        rewards: Sequence[float],
        coin: np.random.Generator,
        stop: StopRule,
    ) -> int | None:
        """Return which proposal is kept, None where all are rejected."""
        if row.tries == self.tries:
            row.tries, row.best = 0, None
            row.seen.clear()
            return 0
        for number, (chain, reward) in enumerate(zip(chains, rewards, strict=True)):
            chance = self.accepts(reward, done.steps + len(chain.tokens), row.target, row.bare, stop.max_new_tokens)
            done.proposed += 1
            done.distinct += tuple(chain.tokens) not in row.seen
            row.seen.add(tuple(chain.tokens))
            if float(coin.random()) < chance:
                # What this stream has left was not looked at, so it may serve the next segment.
                done.accepted += 1
                row.tries, row.best = 0, None
                row.seen.clear()
                return number
            row.stream += 1
            row.tries += 1
            if row.best is None or reward > row.best[1]:
                row.best = (chain.tokens, reward)
        return None

    def _calibrated(
        self,
        session: TrieSession,
        tip_states: torch.Tensor,
        stop: StopRule,
        guide: Guide,
        seeds: Sequence[int],
        values: Sequence[float],
        out: Sequence[Decoded],
    ) -> list[_Row]:
        """Return the rows with their thresholds, those that are not given read from samples of the prompt."""
        rows = list(range(session.rows))
        if self.target is not None and self.entropy is not None:
            return [_Row(values[row], self.target, self.entropy) for row in rows]
        below = Undergrowth(session, tip_states, self.calibrate * stop.max_new_tokens)
        own = Streams([child_seed(seed, "calibrate") for seed in seeds])
        wanted = [Wanted(row, 0, range(self.calibrate), stop.max_new_tokens, pause=math.inf) for row in rows]
        chains = grow(below, wanted, stop, Sampler(own, self.temperature, self.top_p), guide)
        found = reward_chains(guide, below, chains, values, stop, rows)
        keep_chains(guide, below, found, [None] * len(rows))
        made = []
        for row in rows:
            target, pause = self.target, self.entropy
            if target is None:
                target = float(np.quantile(found.of_row(row), TARGET_QUANTILE))
            if pause is None:
                pause = float(np.quantile([e for chain in chains[row] for e in chain.entropies], ENTROPY_QUANTILE))
            out[row].guide_passes += 1
            out[row].drafted += sum(len(chain.tokens) for chain in chains[row])
            made.append(_Row(values[row], target, pause))
        return made


CARD = DecoderCard(
    name="cards",
    summary="Segments up to a token the policy is unsure of, drawn until one passes a rising reward threshold.",
    guided=True,
    build=Cards,
    options={
        "target": "r*, the reward to reach, in units of the reward scale",
        "entropy": "next-token entropy that ends a segment, nats",
        "calibrate": "samples of each prompt from which target and entropy are read where they are not given",
        "slack": "how far below the threshold is still accepted at times, in units of the reward scale",
        "alpha": "share of the target in the first threshold",
        "shortest": "tokens of a segment at least",
        "longest": "tokens of a segment at most",
        "tries": "rejections of a segment before the best one is kept",
        "together": "proposals drawn in one pass; the text is the same",
        "temperature": "of the policy's samples, above 0",
        "top_p": "nucleus of the policy's samples",
    },
    paper="Li, Wang, Grama, Zhang 2024, Cascade reward sampling, arXiv 2406.16306",
    equation="accept a segment with probability min(1, exp((r(x, y≤t) - τ_t) / slack)), τ_t rising from "
    "(1 - α) r(x) + α r* to r*",
    families=(STATE_VALUES, TOKEN_REWARDS),
    scores=False,
    deviations=(
        "A text ends at every end token of the model; the published code runs to the length limit.",
        "Of rejected segments the best of all tries is kept; the published code forgets it at the last one.",
        "Segments are drawn from the whole vocabulary or a nucleus, not from the 40 most probable tokens.",
        "Calibration reads target and entropy from samples of the prompt itself.",
    ),
)
