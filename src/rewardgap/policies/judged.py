"""Best-of-N by a judge: whole texts drawn from the policy, and the one that the user's judge prefers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rewardgap.backbones.serving import ServedBackbone
from rewardgap.core.errors import ConfigError
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.choosing import write_down
from rewardgap.decoding.outcome import Decoded
from rewardgap.policies.asking import Comparison
from rewardgap.policies.base import AdaptedPolicy, GenerationSettings
from rewardgap.policies.run import PolicyRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.decoding.base import Decoder
    from rewardgap.decoding.chains import Chain
    from rewardgap.decoding.outcome import Watch
    from rewardgap.decoding.tournaments import Match, Tournament
    from rewardgap.policies.judge_states import JudgeState
    from rewardgap.policies.judges import Judge
    from rewardgap.policies.run import Generation


class Judged(AdaptedPolicy):
    """The policy under best-of-N, where a judge picks: the texts are those that a reward model would choose from.

    Each question is asked in both orders, as for pairs, and the texts are asked about as they would be handed back.

    Args:
        judge: who picks.

    Raises:
        ConfigError: if the decoder is not best_of_n, or has options that only rewards have a use for.
    """

    servable = True

    def __init__(
        self,
        backbone: Backbone,
        decoder: Decoder,
        settings: GenerationSettings | None = None,
        *,
        judge: Judge,
        **rest: Any,
    ) -> None:
        super().__init__(backbone, decoder, settings, **rest)
        if not isinstance(decoder, BestOfN):
            raise ConfigError(
                f"decoder '{decoder.name}' needs rewards, and {judge.name} compares whole texts; use best_of_n."
            )
        decoder.check_judged()
        self.judge, self.name, self.best_of_n = judge, judge.name, decoder

    def adapt(self, support: Sequence[PreferencePair]) -> JudgeState:
        """Return the judge's state of the user."""
        return self.judge.adapt(support)

    @property
    def not_scorable(self) -> str:
        """Return why given completions cannot be scored."""
        return (
            f"{self.best_of_n.name} gives a text no probability that could be computed, and {self.name} rewards no "
            "token, so there is no policy accuracy; the judge's own ranking of the pairs is its RM accuracy."
        )

    def open(
        self,
        prompts: Sequence[Prompt],
        states: Sequence[Any] | None = None,
        seeds: Sequence[int] | None = None,
        completions: Sequence[Sequence[str]] = (),
    ) -> PolicyRun:
        """Prefill a batch of prompts of different users; the arguments and errors are those of `AdaptedPolicy`."""
        run = super().open(prompts, states, seeds, completions)
        return run if isinstance(self.backbone, ServedBackbone) else JudgedRun(**vars(run))

    def pick(
        self,
        run: PolicyRun,
        chains: Sequence[Sequence[Chain]],
        drafted: Sequence[int],
        watch: Watch | None = None,
    ) -> list[Decoded]:
        """Return the text of each row that the judge prefers for the row's user; the run bears the judge's cost.

        Args:
            run: holds prompts and states.
            chains: N texts of each row.
            drafted: tokens drawn for each row.
            watch: called after each token that is written down.

        Raises:
            ConfigError: if a row has no state of this judge.
            DataError: if a question does not fit the judge's context.
        """
        stop, model = self.stop_rule(), self.judge.model
        forwards, tokens = model.forwards, model.tokens

        def margins(matches: Sequence[Match]) -> list[float]:
            asked = [Comparison(run.prompts[match.row], match.one, match.other) for match in matches]
            judged = self.judge.compare(asked, [run.states[match.row] for match in matches])
            return [judgement.margin for judgement in judged]

        texts = [[self._text(chain) for chain in row] for row in chains]
        decoded = self.best_of_n.take_preferred(texts, margins, chains, drafted, stop, watch)
        run.guide_cost = (model.forwards - forwards, model.tokens - tokens)
        return decoded

    def _text(self, chain: Chain) -> str:
        done = Decoded()
        write_down(done, chain.tokens, self.stop_rule(), 0)
        return self.finish(done).text


class JudgedRun(PolicyRun):
    """One batch of prompts under best-of-N with a judge, in a session of the local policy."""

    def generate(self, watch: Watch | None = None) -> list[Generation]:
        """Write a completion for each prompt; `watch` is told of its tokens once the judge has picked it."""
        policy = self.policy
        assert isinstance(policy, Judged)
        with torch.no_grad():
            chains, drafted = policy.best_of_n.texts(self.session, self.tips, policy.stop_rule(), self.seeds)
        return [policy.finish(row) for row in policy.pick(self, chains, drafted, watch)]


def judged(
    policy: Backbone,
    judge: Judge,
    state: JudgeState | None = None,
    *,
    n: int = 4,
    tournament: Tournament | None = None,
    pool_seed: int | None = None,
    settings: GenerationSettings | None = None,
) -> Judged:
    """Return the policy under best-of-N, where a judge picks.

    Args:
        policy: the frozen policy.
        judge: who picks.
        state: one user's state; leave it out and pass `states=` to each call for a batch of users.
        n: texts drawn for each prompt.
        tournament: "round_robin", which asks about n (n - 1) / 2 pairs, or "knockout", which asks about n - 1, each in
            both orders; the first up to 8 texts, else the second, unless given.
        pool_seed: where given, the texts are those of `BestOfN` with this seed, kept on disk for reward models and
            other judges to choose from.
        settings: lengths and rules.

    Raises:
        ConfigError: if an option is out of range.
    """
    decoder = BestOfN(n, pool_seed=pool_seed, tournament=tournament)
    return Judged(policy, decoder, settings, judge=judge, state=state)
