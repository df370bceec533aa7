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
from rewardgap.decoding.base import JUDGES, STATE_VALUES, TOKEN_REWARDS, DecoderCard
from rewardgap.decoding.chains import Undergrowth, Wanted, grow, read_chains
from rewardgap.decoding.choosing import distinct, is_near_tie, needs_guide, reward_chains, write_down
from rewardgap.decoding.outcome import Decoded
from rewardgap.decoding.pools import PoolCache
from rewardgap.decoding.sampling import Sampler, Streams, check_counts, check_numbers, check_sampling, first_best
from rewardgap.decoding.tournaments import TOURNAMENTS, play, tournament_of
from rewardgap.numerics.guidance import draw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.chains import Chain
    from rewardgap.decoding.outcome import StopRule, Watch
    from rewardgap.decoding.tournaments import Match, Tournament
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
        tournament: how a judge finds the best, "round_robin" or "knockout"; the first up to 8 texts, else the second,
            unless given. A judge compares, so it takes no λ, no `soft` and no w.

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
    tournament: Tournament | None = None
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
        if self.tournament is not None and self.tournament not in TOURNAMENTS:
            raise ConfigError(f"{self.name}: tournament is {self.tournament!r}; known: {', '.join(TOURNAMENTS)}.")

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
        if self.pool_seed is None:
            below, chains = self._grown(session, tip_states, stop, seeds, guide)
            drafted = _lengths(chains)
        else:
            chains, drafted = self._pools(session, tip_states, stop, self.pool_seed)
            below = Undergrowth(session, tip_states, self.room(stop.max_new_tokens))
            if guide.reads_policy:
                read_chains(below, chains, stop, read_ends=guide.rewards_ends)
        return self.take_best(guide, tip_states, chains, drafted, stop, seeds, below=below, watch=watch)

    def texts(
        self, session: TrieSession, tip_states: torch.Tensor, stop: StopRule, seeds: Sequence[int]
    ) -> tuple[list[list[Chain]], list[int]]:
        """Return the N texts of each row that `search` chooses from, and how many tokens were drawn for them now."""
        if self.pool_seed is not None:
            return self._pools(session, tip_states, stop, self.pool_seed)
        below, chains = self._grown(session, tip_states, stop, seeds, None)
        below.clear()
        return chains, _lengths(chains)

    def take_best(
        self,
        guide: Guide,
        tip_states: torch.Tensor,
        chains: Sequence[Sequence[Chain]],
        drafted: Sequence[int],
        stop: StopRule,
        seeds: Sequence[int],
        *,
        below: Undergrowth | None = None,
        watch: Watch | None = None,
    ) -> list[Decoded]:
        """Reward the texts of each row and write down the one that wins.

        Args:
            guide: the reward model.
            tip_states: (B, D) the policy's states at the prompts' ends.
            chains: N texts of each row.
            drafted: tokens drawn for each row.
            stop: when a text ends.
            seeds: one a row; decides the draw where `soft`.
            below: the nodes of the texts in the policy's session; needed by a guide that reads the policy's states.
            watch: called after each token that is written down.

        Raises:
            ConfigError: if a tournament is named.
            ModelError: if a reward is NaN or infinite; the message names the row.
        """
        self.check_rewarded()
        values = guide.start(tip_states).double().tolist()
        rows = list(range(len(chains)))
        rewards = reward_chains(guide, below, chains, values, stop, rows)
        gained = torch.tensor([rewards.of_row(row) for row in rows], dtype=torch.float64)
        scores = self.guidance_weight * gained
        if self.log_prob_weight:
            fluency = torch.tensor([[chain.log_prob for chain in row] for row in chains], dtype=torch.float64)
            scores = scores + self.log_prob_weight * fluency
        uniforms = torch.tensor([_pick_number(seed) for seed in seeds], dtype=torch.float64)
        out = []
        for row, choice in enumerate(self.choose(scores, uniforms).tolist()):
            done = Decoded(reward=float(gained[row, choice]), guide_passes=1, drafted=drafted[row])
            done.near_ties = int(is_near_tie(scores[row].tolist(), chains[row], choice))
            out.append(self.write(done, chains[row], choice, stop, row, watch))
        return out

    def take_preferred(
        self,
        texts: Sequence[Sequence[str]],
        margins: Callable[[Sequence[Match]], Sequence[float]],
        chains: Sequence[Sequence[Chain]],
        drafted: Sequence[int],
        stop: StopRule,
        watch: Watch | None = None,
    ) -> list[Decoded]:
        """Let the texts of each row meet in the tournament, and write down the winner.

        Args:
            texts: what they spell.
            margins: how far one text is preferred to another, for the matches of all rows.
            chains: N texts of each row, as tokens.
            drafted: tokens drawn for each row.
            stop: when a text ends.
            watch: called after each token that is written down.

        Raises:
            ConfigError: if an option is set that only rewards have a use for.
        """
        self.check_judged()
        out = []
        standings = play(self.tournament or tournament_of(self.n), texts, margins)
        for row, standing in enumerate(standings):
            done = Decoded(drafted=drafted[row], near_ties=standing.near_ties)
            done.questions, done.ties = standing.questions, standing.ties
            out.append(self.write(done, chains[row], standing.choice, stop, row, watch))
        return out

    def write(
        self, done: Decoded, chains: Sequence[Chain], choice: int, stop: StopRule, row: int, watch: Watch | None
    ) -> Decoded:
        """Write the chosen text down, with how many there were."""
        done.proposed, done.distinct, done.accepted = self.n, distinct(chains), 1
        write_down(done, chains[choice].tokens, stop, row, watch)
        return done

    def check_rewarded(self) -> None:
        """Refuse options that a reward model has no use for.

        Raises:
            ConfigError: if a tournament is named.
        """
        if self.tournament is not None:
            raise ConfigError(
                f"{self.name}: tournament '{self.tournament}' is how a judge picks, and a reward model takes the "
                "highest reward; leave tournament out, or let a judge pick."
            )

    def check_judged(self) -> None:
        """Refuse options that a judge has no use for: it compares, and gives no text a reward.

        Raises:
            ConfigError: naming the option.
        """
        idle = {"guidance_weight": 1.0, "soft": False, "log_prob_weight": 0.0}
        for option, value in idle.items():
            if getattr(self, option) != value:
                raise ConfigError(
                    f"{self.name}: {option} weighs rewards, and a judge has none; leave it out, or let a reward model "
                    "pick."
                )

    def _grown(
        self,
        session: TrieSession,
        tip_states: torch.Tensor,
        stop: StopRule,
        seeds: Sequence[int],
        guide: Guide | None,
    ) -> tuple[Undergrowth, list[list[Chain]]]:
        """Return N texts of each row, drawn with the row's own seed, and their nodes."""
        below = Undergrowth(session, tip_states, self.room(stop.max_new_tokens))
        wanted = [Wanted(row, 0, range(self.n), stop.max_new_tokens) for row in range(session.rows)]
        return below, grow(below, wanted, stop, Sampler(Streams(seeds), self.temperature, self.top_p), guide)

    def _pools(
        self, session: TrieSession, tip_states: torch.Tensor, stop: StopRule, pool_seed: int
    ) -> tuple[list[list[Chain]], list[int]]:
        """Return the pool of each row, and how many tokens were drawn for it now; the session is left as it was."""
        cache, fingerprint = PoolCache(), session.backbone.fingerprint
        prompts = [session.forest.path(row, tip) for row, tip in enumerate(session.tips)]
        keys = [cache.key(fingerprint, ids, stop, self.temperature, self.top_p, pool_seed) for ids in prompts]

        def draw(missing: list[range]) -> list[list[Chain]]:
            own = [pool_stream(pool_seed, ids) for ids in prompts]
            below = Undergrowth(session, tip_states, self.room(stop.max_new_tokens))
            wanted = [Wanted(row, 0, streams, stop.max_new_tokens) for row, streams in enumerate(missing)]
            fresh = grow(below, wanted, stop, Sampler(Streams(own), self.temperature, self.top_p), None)
            below.clear()
            return fresh

        return cache.filled(keys, self.n, draw)


def pool_stream(pool_seed: int, prompt_ids: Sequence[int]) -> int:
    """Return the seed that a prompt's pool is drawn with."""
    return child_seed(pool_seed, "pool", content_hash(prompt_ids))


def _lengths(chains: Sequence[Sequence[Chain]]) -> list[int]:
    return [sum(len(chain.tokens) for chain in row) for row in chains]


def _pick_number(seed: int) -> float:
    return float(np.random.Generator(np.random.PCG64(child_seed(seed, "pick"))).random())


CARD = DecoderCard(
    name="best_of_n",
    summary="N whole texts drawn from the policy, the one with the highest reward, or that a judge prefers, kept.",
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
        "tournament": "how a judge picks: round_robin or knockout; the first up to 8 texts, unless given",
    },
    paper="Stiennon et al. 2020, arXiv 2009.01325; bound on the divergence: Beirami et al. 2024, arXiv 2401.01879",
    equation="argmax over y_1..y_N ~ π of λ r(x, y) + w log π(y | x); KL to π at most log N - (N - 1) / N nats, "
    "1.84 for N = 16",
    families=(STATE_VALUES, TOKEN_REWARDS, JUDGES),
    scores=False,
    deviations=(
        "Equal rewards go to the first text; equal texts are kept, since leaving them out would change the divergence.",
        "A judge picks by a tournament of questions in both orders: round robin by Copeland's rule, or knockout; a tie "
        "leaves the first text ahead.",
    ),
)
