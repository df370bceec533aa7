"""The one place where a metric is named."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

from rewardgap.core.catalog import Catalog
from rewardgap.metrics.base import MetricCard
from rewardgap.metrics.bertscore import BertScore
from rewardgap.metrics.guidance_ratio import guidance_ratio
from rewardgap.metrics.overlap import Distinct, EmptyRate, LengthRatio
from rewardgap.metrics.policy_accuracy import VARIANTS
from rewardgap.metrics.rm_accuracy import pair_accuracy, ties
from rewardgap.metrics.rouge import Rouge
from rewardgap.metrics.win_rate import verdicts, wins

if TYPE_CHECKING:
    from collections.abc import Callable

    from rewardgap.core.results import Stage
    from rewardgap.metrics.base import Takes


def _arithmetic(
    name: str,
    summary: str,
    stage: Stage,
    higher_is_better: bool | None,
    takes: Takes,
    function: Callable[..., object],
    detail: str = "",
    highest: float = 1.0,
) -> MetricCard:
    """Return the card of a metric that is a function of numbers alone."""
    return MetricCard(
        name=name,
        summary=summary,
        stage=stage,
        higher_is_better=higher_is_better,
        range=(0.0, highest),
        signature=f"{name}|{detail}" if detail else name,
        build=lambda: function,
        takes=takes,
        needs_reference=False,
    )


def _rouge(name: str, summary: str) -> MetricCard:
    return MetricCard(
        name=name,
        summary=summary,
        stage="behaviour",
        higher_is_better=True,
        range=(0.0, 1.0),
        signature=f"{name}|stem=no|tok=rouge-score|impl=rouge-score-rs-<version>",
        build=partial(Rouge, name),
    )


METRICS: Catalog[MetricCard] = Catalog(
    "metric",
    (
        _arithmetic(
            "rm_accuracy",
            "share of query pairs in which the chosen completion has the larger reward",
            "rm_accuracy",
            True,
            "margins",
            pair_accuracy,
            "ties=half",
        ),
        _arithmetic(
            "tie_rate",
            "share of query pairs with exactly equal rewards, each of which counts as half right",
            "rm_accuracy",
            False,
            "margins",
            ties,
        ),
        *(
            _arithmetic(
                variant.name,
                f"policy accuracy by {variant.summary}",
                "policy_accuracy",
                True,
                "margins",
                pair_accuracy,
                "ties=half",
            )
            for variant in VARIANTS
        ),
        _arithmetic(
            "guidance_ratio",
            "spread of λ times the reward over the spread of log π among the candidates of a step",
            "policy_accuracy",
            None,
            "candidates",
            guidance_ratio,
            "of=means",
            highest=inf,
        ),
        _rouge("rouge1", "ROUGE-1 F1 against the user's own text: shared words"),
        _rouge("rougeL", "ROUGE-L F1 against the user's own text: the longest common word sequence"),
        MetricCard(
            name="bertscore_f1",
            summary="BERTScore F1 against the user's own text: greedy matching of token vectors",
            stage="behaviour",
            higher_is_better=True,
            range=(-inf, inf),
            signature="bertscore_f1|enc=<encoder>@<weights>|layer=<layer>|idf=no|rescale=no|special=match",
            build=BertScore,
        ),
        MetricCard(
            name="length_ratio",
            summary="length over that of the user's own text, in characters",
            stage="behaviour",
            higher_is_better=None,
            range=(0.0, inf),
            signature=LengthRatio.signature,
            build=LengthRatio,
        ),
        MetricCard(
            name="empty_rate",
            summary="share of texts with nothing but white space",
            stage="behaviour",
            higher_is_better=False,
            range=(0.0, 1.0),
            signature=EmptyRate.signature,
            build=EmptyRate,
            needs_reference=False,
        ),
        MetricCard(
            name="distinct2",
            summary="share of distinct word pairs within a text; low where decoding loops",
            stage="behaviour",
            higher_is_better=None,
            range=(0.0, 1.0),
            signature="distinct2|words=whitespace|case=lower",
            build=Distinct,
            needs_reference=False,
        ),
        _arithmetic(
            "win_self",
            "wins over the baseline under the reward model that steered: circular, a reward gap and not a quality",
            "win_rate",
            None,
            "scores",
            wins,
            "ties=half|judge=guide",
        ),
        _arithmetic(
            "win_cross",
            "wins over the baseline under a reward model that did not steer",
            "win_rate",
            True,
            "scores",
            wins,
            "ties=half|judge=other",
        ),
        *(
            _arithmetic(
                f"{name}{suffix}",
                f"share of comparisons with {opponent} that a judge decides for the deployment: {meaning}",
                "win_rate",
                better,
                "answers",
                verdicts,
                f"ties=half|orders=both|judge={judge}",
            )
            for suffix, opponent in (("", "zero-shot"), ("_over_reference", "the user's own text"))
            for name, meaning, better, judge in (
                ("win_related", "on the network of the policy or of the guide, so not independent", None, "related"),
                ("win_independent", "on a network of its own", True, "independent"),
            )
        ),
    ),
)
