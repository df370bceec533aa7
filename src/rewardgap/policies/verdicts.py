"""Verdicts: which of two texts a user would prefer, asked in both orders, and what the two answers come to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.metrics.win_rate import FIRST, SECOND, TIE, verdicts

if TYPE_CHECKING:
    from rewardgap.policies.asking import Judgement

_TURNED = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}


class Verdict(NamedTuple):
    """What a judge says of two texts.

    Attributes:
        value: 1 where the one is preferred, 0 where the other is, ½ for a tie; None where an answer cannot be read.
        answer: "A", "B" or "tie" with the one in the first place; None where it cannot be read.
        swapped: the same with the one in the second place.
        said: the first answer as it was written; None for a judge whose first token alone is read.
        said_swapped: the second one.
        shown: demonstrations in the prompts.
        dropped: demonstrations that were to be shown and did not fit.
    """

    value: float | None
    answer: str | None
    swapped: str | None
    said: str | None = None
    said_swapped: str | None = None
    shown: int = 0
    dropped: int = 0


def of_answers(answer: str | None, swapped: str | None) -> float | None:
    """Return what two answers come to, None where one cannot be read; see `metrics.win_rate.verdicts`."""
    value = float(verdicts([answer], [swapped])[0])
    return None if math.isnan(value) else value


def disagree(answer: str, swapped: str) -> bool:
    """Say whether the second answer is another one than the first, the places being changed.

    Example:
        >>> disagree("A", "B"), disagree("A", "A"), disagree("tie", "tie")
        (False, True, False)
    """
    return _TURNED[answer] != swapped


def of_margin(judgement: Judgement) -> Verdict:
    """Return the verdict of a judge that gives margins: by the sign of their mean, as it ranks pairs."""
    value = float(pair_accuracy([judgement.margin])[0])
    answers = (_by_sign(judgement.forward), _by_sign(judgement.backward))
    return Verdict(value, *answers, shown=judgement.shown, dropped=judgement.dropped)


def _by_sign(difference: float) -> str:
    return FIRST if difference > 0 else SECOND if difference < 0 else TIE
