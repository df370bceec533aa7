"""The columns of a report and what they mean, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewardgap.core.results import Stage
    from rewardgap.report.numbers import Unit


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the leaderboard.

    `ranked` says that a higher number is better *and* that it means something to be first: not so for the circular
    win rate, for the base policy or for time.
    """

    name: str
    group: str
    title: str
    short: str
    stage: Stage
    metric: str
    unit: Unit = "points"
    ranked: bool = True


RM_ACCURACY = Column("rm", "Ranking", "RM accuracy", "RM acc.", "rm_accuracy", "accuracy")
POLICY_ACCURACY = Column("policy", "Ranking", "Policy accuracy", "Policy acc.", "policy_accuracy", "rgd_topk")
BASE = Column("base", "Ranking", "base", "base", "policy_accuracy", "base", ranked=False)
ROUGE_1 = Column("rouge1", "Writing", "ROUGE-1", "ROUGE-1", "behaviour", "rouge1")
ROUGE_L = Column("rougeL", "Writing", "ROUGE-L", "ROUGE-L", "behaviour", "rougeL")
BERTSCORE = Column("bertscore", "Writing", "BERTScore-F1", "BERTScore", "behaviour", "bertscore_f1")
WIN_SELF = Column(
    "self", "Win rate over zero-shot, and cost", "Own judge (circular)", "self, circular", "win_rate", "win_self",
    ranked=False,
)  # fmt: skip
WIN_CROSS = Column("cross", WIN_SELF.group, "Another judge", "cross", "win_rate", "win_cross")
SECONDS = Column(
    "seconds", WIN_SELF.group, "Seconds per completion", "s / compl.", "cost", "seconds_per_completion", "seconds",
    ranked=False,
)  # fmt: skip

COLUMNS: tuple[Column, ...] = (
    RM_ACCURACY,
    POLICY_ACCURACY,
    BASE,
    ROUGE_1,
    ROUGE_L,
    BERTSCORE,
    WIN_SELF,
    WIN_CROSS,
    SECONDS,
)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(column.group for column in COLUMNS))

DETAILS: tuple[Column, ...] = (
    Column("mean_rgd_topk", "Policy accuracy", "per token", "", "policy_accuracy", "mean_rgd_topk"),
    Column("raw_value", "Policy accuracy", "raw value", "", "policy_accuracy", "raw_value"),
    Column("raw_delta", "Policy accuracy", "raw delta", "", "policy_accuracy", "raw_delta"),
    Column("mean_value", "Policy accuracy", "mean value", "", "policy_accuracy", "mean_value"),
    Column("mean_delta", "Policy accuracy", "mean delta", "", "policy_accuracy", "mean_delta"),
    Column("reward_only", "Policy accuracy", "reward only", "", "policy_accuracy", "reward_only"),
    Column("mean_base", "Policy accuracy", "base, per token", "", "policy_accuracy", "mean_base"),
    Column("coverage_chosen", "Coverage", "covered, chosen", "", "policy_accuracy", "coverage_chosen", ranked=False),
    Column(
        "coverage_rejected", "Coverage", "covered, rejected", "", "policy_accuracy", "coverage_rejected", ranked=False
    ),
    Column("length_ratio", "Text", "length ratio", "", "behaviour", "length_ratio", "ratio", ranked=False),
    Column("empty_rate", "Text", "empty", "", "behaviour", "empty_rate", ranked=False),
    Column("guidance_ratio", "Text", "guidance ratio", "", "behaviour", "guidance_ratio", "ratio", ranked=False),
    Column("tokens", "Cost a completion", "tokens", "", "cost", "tokens_per_completion", "count", ranked=False),
    Column("forwards", "Cost a completion", "forwards", "", "cost", "forwards_per_completion", "count", ranked=False),
)

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("Deployment", "A way to serve a user: a method with all its settings. λ is the weight of the reward against the "
     "policy's own log-probability, k the number of candidate tokens at a step; the number after an in-context method "
     "counts the demonstrations in the prompt."),
    ("Point of a study", "One dataset, pairing rule, policy, support size and seed. Every point has a leaderboard of "
     "its own; what several say together stands apart from them."),
    ("RM accuracy", "How often the reward model gives the higher reward to the text the user preferred. Seen users "
     "took part in fitting, on other pairs; unseen users were met afterwards, through their support examples only. "
     "Ties count one half."),
    ("Policy accuracy", "How often the deployed policy, used as a scorer, finds the preferred text more likely than "
     "the rejected one (rgd_topk: the probability that guided decoding over the k candidates would write it, the "
     "text's own token always among them)."),
    ("base", "Policy accuracy of the policy alone, at guidance weight zero. What a deployment adds is its policy "
     "accuracy beyond this."),
    ("raw, mean, value, delta", "Other ways to add up log-probability and reward over a text: as a sum or per token; "
     "with the reward of each prefix or with its increments. Those that are raw depend on conventions that decoding "
     "does not see."),
    ("reward only", "The same pairs ranked by the reward alone: RM accuracy, measured on the way."),
    ("Coverage", "Share of a text's tokens that lie among the k candidates of the policy."),
    ("ROUGE-1, ROUGE-L", "Overlap of the completion with what the user wrote: shared words, and the longest common "
     "subsequence (F1, without stemming), in points."),
    ("BERTScore-F1", "Overlap by token embeddings instead of exact words (F1), in points. Its values sit in a narrow, "
     "high band: compare them with each other only."),
    ("Length ratio, empty", "Length of the completions over that of the references, and the share of empty "
     "completions."),
    ("Guidance ratio", "How much the reward moves the scores of candidate tokens, against how much the policy's "
     "log-probabilities do."),
    ("Win rate, own judge (circular)", "Share of prompts where the reward model that guided prefers its own text to "
     "the zero-shot text. Guidance maximises exactly this, so a high number says that guidance works as built, not "
     "that the text is better."),
    ("Win rate, another judge", "The same, judged by another reward model of the study: not the one that steered, but "
     "fitted on the same users' data. Where several judged, tables show the "
     "lowest. One half means no preference."),
    ("Win rate, judges that only judge", "The same, by judges that took no part in the study otherwise; also against "
     "what the users wrote themselves. Independent: on another network than the policy and the guide. Related: on one "
     "of theirs, so it may like its own kind of text. Circular: it picked the text itself."),
    ("Own reward over zero-shot", "What the guide itself gives to the text it guided, minus what it gives to "
     "zero-shot's. Each reward model has a unit of its own; standardised, one is the standard deviation of this gain "
     "between users."),
    ("Interval", "95 % interval from a bootstrap over users, in brackets. Intervals of two deployments can overlap "
     "although the two differ; whether they do is read from their difference on the same users."),
    ("Better, worse, as good", "From differences on the same users: better or worse where the sign-flip test rejects "
     "chance at 5 % after Holm's correction for all comparisons with the same deployment; as good where two one-sided "
     "tests place the difference within the margin that the study states; else not told apart, with the smallest "
     "difference that these users would show with a probability of 80 %, were it the only comparison."),
    ("Best with probability", "Probability that a deployment would be the best, had there been endless users."),
    ("Loses", "Behaviour lost by deploying what a stage ranks first, against the best: luck of users taken out, with a "
     "95 % interval. On users left out: the same for a choice measured on users who had no part in it; below zero, the "
     "stage chose better than measuring behaviour itself."),
    ("Kendall's τ-b", "Agreement of two rankings of the reward models: 1 the same, 0 unrelated, −1 reversed. "
     "Corrected: that of the true scores, had there been endless users; the measured one is nearer to zero. The naive "
     "interval resamples users and does not cover the truth. Not identified: with fewer than 6 reward models, or a "
     "split-half reliability below 0.8, these users cannot tell."),
    ("Reliability", "How well scores of the reward models over one half of the users tell of those over the other "
     "half, scaled up to all users: 1 is perfect."),
    ("Support, shots", "Support size is the number of examples a user reveals; shots are those that an in-context "
     "prompt shows."),
    ("Points", "Hundredths. A fraction of 0.412 is 41.2 points."),
)  # fmt: skip

_STAGE_WORDS = {
    "rm_accuracy": "RM accuracy",
    "policy_accuracy": "policy accuracy",
    "behaviour": "behaviour",
    "win_rate": "win rate",
    "rgd_topk": "policy accuracy",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
    "bertscore_f1": "BERTScore-F1",
    "win_self": "win rate (own judge, circular)",
    "win_cross": "win rate (another judge)",
    "win_related": "win rate (a judge on the same network)",
    "win_independent": "win rate (an independent judge)",
}


def axis(name: str) -> str:
    """Return the words for a stage or a metric: 'behaviour.rouge1' and 'rouge1' are both 'ROUGE-1'.

    What follows a dot in the middle of the line, as the decoder did in older results, is no part of it.
    """
    stage = name.partition(" · ")[0]
    for part in reversed(stage.replace(":", ".").replace("/", ".").split(".")):
        if part in _STAGE_WORDS:
            return _STAGE_WORDS[part]
    return name


def failure_line(failure: dict[str, str]) -> str:
    """Return a failed cell on one line; its log is on the page."""
    return " · ".join(str(value) for name, value in failure.items() if name != "log")
