"""Best-of-N: whole texts drawn from the policy, and the one whose reward is highest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from rewardgap.core.errors import ConfigError
from rewardgap.core.seeds import child_seed
from rewardgap.core.store import content_hash
from rewardgap.decoding.base import STATE_VALUES, TOKEN_REWARDS, DecoderCard
from rewardgap.decoding.chains import Chain, Undergrowth, Wanted, grow, read_chains
from rewardgap.decoding.choosing import distinct, is_near_tie, needs_guide, reward_chains, write_down
from rewardgap.decoding.outcome import Decoded
from rewardgap.decoding.pools import PoolCache
from rewardgap.decoding.sampling import Sampler, Streams, check_counts, check_numbers, check_sampling, first_best
from rewardgap.numerics.guidance import draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.outcome import StopRule, Watch
    from rewardgap.rewards.guide import Guide


@dataclass(frozen=True)
class BestOfN:
    """Draws N texts and takes the one with the highest score, of equal ones the first.

        score(y) = λ r(x, y) + w log π(y | x)

    With `soft`, a text is drawn from softmax(score) over the N. The texts of a larger N begin with those of a smaller.

    Args:
        n: N, texts drawn.
        guidance_weight: λ; without `soft` and w it only says whether high or low rewards win.
        temperature: of the policy's samples.
        top_p: nucleus of the policy's samples.
        soft: draw among the texts in the place of taking the best.
        log_prob_weight: w.
        pool_seed: where given, the texts depend on the prompt and this seed alone, not on the user or the reward
            model, and are kept on disk: several reward models choose from the same texts, which are drawn once.

    Raises:
        ConfigError: if a value is out of range.
    """

    n: int = 16
    guidance_weight: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    soft: bool = False
    log_prob_weight: float = 0.0
    pool_seed: int | None = None
    name: str = "best_of_n"
    top_k: ClassVar[int | None] = None
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_counts(self.name, 1, n=self.n)
        check_numbers(self.name, guidance_weight=self.guidance_weight, log_prob_weight=self.log_prob_weight)
        check_sampling(self.name, self.temperature, self.top_p)
        if not isinstance(self.soft, bool):
            raise ConfigError(f"{self.name}: soft must be true or false, got {self.soft!r}.")
        if self.pool_seed is not None:
            check_counts(self.name, 0, pool_seed=self.pool_seed)

    @property
    def kl_bound(self) -> float:
        """Return log N - (N - 1) / N: the most that the chosen texts differ from the policy's samples, in nats."""
        return math.log(self.n) - (self.n - 1) / self.n

    def room(self, max_new_tokens: int) -> int:
        """Return the slots that the texts of a row need."""
        return self.n * max_new_tokens

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Return the index of the chosen text in each row of (B, N) scores."""
        if self.soft:
            assert uniforms is not None
            return draw(scores, uniforms)
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
        values = guide.start(tip_states).double().tolist()
        rows = list(range(session.rows))
        if self.pool_seed is None:
            below = Undergrowth(session, tip_states, self.room(stop.max_new_tokens))
            wanted = [Wanted(row, 0, range(self.n), stop.max_new_tokens) for row in rows]
            chains = grow(below, wanted, stop, Sampler(Streams(seeds), self.temperature, self.top_p), guide)
            drafted = [sum(len(chain.tokens) for chain in row) for row in chains]
        else:
            chains, drafted = self._pools(session, tip_states, stop, self.pool_seed)
            below = Undergrowth(session, tip_states, self.room(stop.max_new_tokens))
            if guide.reads_policy:
                read_chains(below, chains, stop, read_ends=guide.rewards_ends)
        rewards = reward_chains(guide, below, chains, values, stop, rows)
        gained = torch.tensor([rewards.of_row(row) for row in rows], dtype=torch.float64)
        fluency = torch.tensor([[chain.log_prob for chain in row] for row in chains], dtype=torch.float64)
        scores = self.guidance_weight * gained + self.log_prob_weight * fluency
        uniforms = torch.tensor([_pick_number(seed) for seed in seeds], dtype=torch.float64)
        out = []
        for row, choice in enumerate(self.choose(scores, uniforms).tolist()):
            done = Decoded(reward=float(gained[row, choice]), guide_passes=1, drafted=drafted[row])
            done.proposed, done.distinct, done.accepted = self.n, distinct(chains[row]), 1
            done.near_ties = int(is_near_tie(scores[row].tolist(), chains[row], choice))
            write_down(done, chains[row][choice].tokens, stop, row, watch)
            out.append(done)
        return out

    def _pools(
        self, session: TrieSession, tip_states: torch.Tensor, stop: StopRule, pool_seed: int
    ) -> tuple[list[list[Chain]], list[int]]:
        """Return the pool of each row, and how many tokens were drawn for it now; the session is left as it was."""
        cache, fingerprint = PoolCache(), session.backbone.fingerprint
        prompts = [session.forest.path(row, tip) for row, tip in enumerate(session.tips)]
        keys = [cache.key(fingerprint, ids, stop, self.temperature, self.top_p, pool_seed) for ids in prompts]
        pools = {key: cache.load(key) for key in keys}
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        missing = [range(len(pools[key]), self.n) if first[key] == row else () for row, key in enumerate(keys)]
        drafted = [0] * session.rows
        if any(missing):
            own = [child_seed(pool_seed, "pool", content_hash(ids)) for ids in prompts]
            below = Undergrowth(session, tip_states, self.room(stop.max_new_tokens))
            wanted = [Wanted(row, 0, streams, stop.max_new_tokens) for row, streams in enumerate(missing)]
            fresh = grow(below, wanted, stop, Sampler(Streams(own), self.temperature, self.top_p), None)
            below.clear()
            for row, (key, chains) in enumerate(zip(keys, fresh, strict=True)):
                if chains:
                    drafted[row] = sum(len(chain.tokens) for chain in chains)
                    pools[key] = [*pools[key], *chains]
                    cache.save(key, pools[key])
        copies = [[Chain(c.tokens, [], c.log_prob, c.closed, True) for c in pools[key][: self.n]] for key in keys]
        return copies, drafted


def _pick_number(seed: int) -> float:
    return float(np.random.Generator(np.random.PCG64(child_seed(seed, "pick"))).random())


CARD = DecoderCard(
    name="best_of_n",
    summary="N whole texts drawn from the policy, the one with the highest reward kept.",
    guided=True,
    build=BestOfN,
    options={
        "n": "texts drawn, N",
        "guidance_weight": "λ; without soft and log_prob_weight only its sign counts",
        "temperature": "of the policy's samples, above 0",
        "top_p": "nucleus of the policy's samples",
        "soft": "draw a text from softmax(λ r + w log π) over the N",
        "log_prob_weight": "w, weight of log π(y | x)",
        "pool_seed": "draw the texts by prompt and this seed alone, and keep them for other reward models and users",
    },
    paper="Stiennon et al. 2020, arXiv 2009.01325; bound on the divergence: Beirami et al. 2024, arXiv 2401.01879",
    equation="argmax over y_1..y_N ~ π of λ r(x, y) + w log π(y | x); KL to π at most log N - (N - 1) / N nats, "
    "1.84 for N = 16",
    families=(STATE_VALUES, TOKEN_REWARDS),
    scores=False,
    deviations=(
        "Equal rewards go to the first text; equal texts are kept, since leaving them out would change the divergence.",
    ),
)
