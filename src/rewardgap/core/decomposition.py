"""Where a reward model's way from ranking to writing loses what it knows: one number a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rewardgap.core.findings import PointResult

Step: TypeAlias = Literal["ranking", "prefix", "guidance", "search", "hacking", "personal"]
STEPS: tuple[Step, ...] = ("ranking", "prefix", "guidance", "search", "hacking", "personal")
DecompositionUnit: TypeAlias = Literal["points", "ratio", "reward", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decomposition(PointResult):
    """One number on a reward model's way from ranking to writing, a mean over users with its interval.

    Attributes:
        method: the reward model, as guides and judges are named.
        step: where on the way.
        quantity: which number, by a name of `QUANTITIES`.
        deployment: what was decoded with it; None for what needs no decoder.
        guidance_weight: of the deployment; None where it has none.
        share: of the tokens of both texts of a pair, where prefixes are ranked.
        against: the other deployment, where two are compared.
        metric: of behaviour, where texts are compared with those of users.
        unit: "points" are fractions, "reward" is the reward model's own unit, "tokens" go through networks.
        value: None where nothing could be measured.
        ci_low: lower end of the interval over users; None where it is not identified.
        ci_high: its upper end.
        n_users: users behind the value.
        n_examples: examples behind it.
        n_missing: examples without a value, which are never taken as zero.
    """

    method: str
    step: Step
    quantity: str
    deployment: str | None = None
    guidance_weight: float | None = None
    share: float | None = None
    against: str | None = None
    metric: str | None = None
    unit: DecompositionUnit = "points"
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n_users: int = 0
    n_examples: int = 0
    n_missing: int = 0


QUANTITIES: dict[str, str] = {
    "rm_accuracy": "how often the whole chosen text has the higher reward, unseen users",
    "ranking_error": "one minus that",
    "prefix_accuracy": "the same of texts cut after a share of their tokens; without pairs still one text or not cut",
    "prefix_error": "accuracy of whole texts minus that of cut ones, on the same pairs",
    "prefix_kept": "advantage of cut texts over one half, minus half of that of whole ones",
    "first_right": "share of the texts after which the order is right for good, where it is right in the end",
    "to_half": "accuracy of texts that are cut at one half minus that of whole ones; those still one text are ties",
    "unguided_accuracy": "policy accuracy without the reward",
    "policy_accuracy": "policy accuracy of the deployment",
    "guidance_gain": "policy accuracy minus that without the reward",
    "guidance_error": "RM accuracy minus policy accuracy",
    "from_half": "policy accuracy minus the accuracy of texts that are cut at one half; those still one text are ties",
    "guidance_ratio": "spread of the guidance over the spread of the fluency, among candidates",
    "search_reward": "the reward model's own reward of what best-of-N wrote, minus that of what token guidance wrote",
    "search_behaviour": "the same difference of behaviour",
    "tokens": "tokens through networks for a completion; of N texts at least N times those of the one picked",
    "win_own": "win rate over zero-shot under the reward model that guided",
    "win_other": "mean win rate over zero-shot under the other reward models",
    "hacking": "the first minus the second",
    "win_kept": "advantage over one half under the other reward models, minus half of that under the own",
    "own_reward": "the own reward of what was written minus that of zero-shot",
    "behaviour_gain": "behaviour minus that of zero-shot",
    "personal_gain": "accuracy with a user's own state minus that with another user's",
}
"""Name of a number to what it is."""
