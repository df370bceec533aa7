"""A study of several points at a glance: what to deploy at each, and what ranking accuracy would have chosen there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.report.board import POINT_FORMS, at
from rewardgap.report.findings import (
    at_point,
    by_stage,
    crossover_sentence,
    difference,
    meta_sentence,
    own_choices,
    price,
    tau_text,
    verdict,
)
from rewardgap.report.numbers import DASH, finite
from rewardgap.report.sheets import Sheet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.results import StudyResults, TauResult
    from rewardgap.report.board import Board

HEADS = (
    "Point",
    "Best deployment",
    "By RM accuracy",
    "Lead over zero-shot",
    "Choosing by RM accuracy loses",
    "τ-b, RM accuracy with behaviour",
    "How sure the lead is",
    "What τ says",
)


def several_points(found: Sequence[Board]) -> bool:
    """Say whether any dataset has more than one point."""
    return any(board.is_one_of_several for board in found)


def overview(results: StudyResults, found: Sequence[Board]) -> Sheet | None:
    """Return a row for each point, None for a study whose datasets have one point each."""
    if not several_points(found):
        return None
    return Sheet("The points of this study", HEADS, tuple(_row(results, board) for board in found), 3, 3)


def across_sentences(results: StudyResults, found: Sequence[Board]) -> list[str]:
    """Return in words what several points say together: crossovers that belong to no point, and pooled taus."""
    of_points = [one for board in found for one in board.findings(results.crossovers)]
    across = [one for one in results.crossovers if one not in of_points]
    forms = ("{}", *POINT_FORMS)
    points = [(board.dataset, *board.point) for board in found]
    differ = {i for i in range(len(forms)) if len({point[i] for point in points} - {None}) > 1}
    sentences = []
    for one in across:
        named = [(form, value) for i, (form, value) in enumerate(zip(forms, one.point(), strict=True)) if i in differ]
        where = [form.format(value) for form, value in named if value is not None]
        sentences.append((f"{', '.join(where)}: " if where else "") + crossover_sentence(one))
    return sentences + [meta_sentence(one) for one in results.meta]


def reading(one: TauResult) -> str:
    """Return what a rank correlation says in words."""
    if finite(one.corrected) is None:
        return tau_text(one)
    if one.low is None or one.high is None:
        return "no interval, so nobody can say how surely"
    if one.low > 0:
        return "better rankers write better"
    return "better rankers write worse" if one.high < 0 else "the interval holds both signs"


def _row(results: StudyResults, board: Board) -> tuple[str, ...]:
    own = at(results, board)
    choices = own_choices(own, board.dataset)
    if not choices:
        ranked = board.ranked()
        return (board.name, ranked[0][0].label if ranked else DASH, DASH, DASH, DASH, DASH, "not compared", DASH)
    choice = choices[0]
    compared, regrets = at_point(own, choice)
    lead = next((one for one in compared if one.b_is == "baseline" and one.a == choice.best), None)
    by_accuracy = by_stage(regrets, "rm_accuracy")
    taus = [one for one in own.taus if one.x == "rm_accuracy" and one.y == choice.metric]
    tau = max(taus, key=lambda one: (one.corrected is not None, one.n_models), default=None)
    identified = tau is not None and finite(tau.corrected) is not None
    return (
        board.name,
        choice.best,
        DASH if by_accuracy is None else by_accuracy.chosen,
        DASH if lead is None else difference(lead),
        DASH if by_accuracy is None else price(by_accuracy),
        tau_text(tau) if tau is not None and identified else DASH,
        "it is zero-shot itself" if lead is None and compared else DASH if lead is None else verdict(lead),
        DASH if tau is None else _with_decoder(tau),
    )


def _with_decoder(tau: TauResult) -> str:
    return f"{reading(tau)} ({tau.decoder})" if tau.decoder else reading(tau)
