"""Failure signatures: known ways in which good-looking numbers mislead, found in the results and said in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.report.board import Board, Line, boards
from rewardgap.report.numbers import Cell, Verdict, compare, counted, interval, number
from rewardgap.report.words import POLICY_ACCURACY, RM_ACCURACY, ROUGE_1, WIN_CROSS, WIN_SELF, axis

if TYPE_CHECKING:
    from rewardgap.core.results import StudyResults, TauResult

MIN_REWARD_MODELS = 6
OWN_JUDGE_HIGH = 0.95
RANKING_GAP = 0.10
_GLOBAL_PREFIX = "global"


def failure_signatures(results: StudyResults) -> list[str]:
    """Return one sentence for each failure signature, then what the study cannot conclude.

    Differences between two numbers have no interval of their own here; whether two numbers differ is read from the
    overlap of their intervals, and each sentence says so where it matters.
    """
    found: list[str] = []
    limits: list[str] = []
    all_boards = boards(results)
    for board in all_boards:
        taus = [tau for tau in results.taus if tau.dataset == board.dataset]
        where = f"On {board.dataset}: " if len(all_boards) > 1 else ""
        found += [where + text for text in (*_ranks_but_does_not_write(board), *_pleases_itself(board))]
        found += [where + text for text in (*_reversed(taus), *_global_ahead(board))]
        limits += [where + text for text in _limits(board, taus)]
    return found + limits


def _ranks_but_does_not_write(board: Board) -> list[str]:
    """High RM accuracy with low policy accuracy, one sentence a reward model."""
    sentences = []
    for model in board.reward_models:
        accuracy = model.find(RM_ACCURACY)
        if accuracy is None or accuracy.value is None or (accuracy.low or accuracy.value) <= 0.5:
            continue
        scored = [
            (line, cell) for line in board.guided_by(model)
            if (cell := board.cell(line, POLICY_ACCURACY)).value is not None
        ]  # fmt: skip
        low = [
            (line, cell) for line, cell in scored
            if accuracy.value - (cell.value or 0.0) >= RANKING_GAP and compare(accuracy, cell) in ("above", "unknown")
        ]  # fmt: skip
        if not low:
            continue
        line, cell = min(low, key=lambda pair: pair[1].value or 0.0)
        count = f"in {len(low)} of {counted(len(scored), 'deployment')}"
        sentences.append(
            f"{model.label} ranks well but does not steer: its RM accuracy on unseen users is {accuracy.full}, while "
            f"the policy it guides has a policy accuracy of {cell.full} ({line.label}; {count} the gap is at least "
            f"{RANKING_GAP * 100:.0f} points{_apart(compare(accuracy, cell))}). RM accuracy does not predict this "
            "deployment."
        )
    return sentences


def _pleases_itself(board: Board) -> list[str]:
    """Own-judge win rate above 95 % with behaviour no better than zero-shot."""
    zero = None if board.baseline is None else board.cell(board.baseline, ROUGE_1)
    if zero is None or zero.value is None:
        return []
    sentences = []
    for line in board.lines:
        own, text = board.cell(line, WIN_SELF), board.cell(line, ROUGE_1)
        verdict = compare(text, zero)
        if own.value is None or own.value <= OWN_JUDGE_HIGH or text.value is None or verdict == "above":
            continue
        other = board.cell(line, WIN_CROSS)
        independent = f" Another reward model, {other.judge}, gives {other.full}." if other.value is not None else ""
        sentences.append(
            f"{line.label} pleases its own judge only: its win rate over zero-shot is {own.full} under the reward "
            f"model that guides it (circular), but its ROUGE-1 is {text.full} where zero-shot has {zero.full} "
            f"({_near(verdict)}).{independent}"
        )
    return sentences


def _reversed(taus: list[TauResult]) -> list[str]:
    """Tau between RM accuracy and ROUGE below zero."""
    sentences = []
    for tau in taus:
        names = {axis(tau.x), axis(tau.y)}
        if tau.tau is None or tau.tau >= 0 or "RM accuracy" not in names or not names & {"ROUGE-1", "ROUGE-L"}:
            continue
        crosses = tau.ci_low is not None and tau.ci_high is not None and tau.ci_low <= 0 <= tau.ci_high
        sentences.append(
            f"Better rankers tend to write worse: Kendall's τ between {axis(tau.x)} and {axis(tau.y)} over "
            f"{counted(tau.n_models, 'reward model')} is {number(tau.tau, 'tau')} "
            f"{interval(tau.ci_low, tau.ci_high, 'tau')}".rstrip()
            + (" (the interval contains zero, so no relation at all is also possible)." if crosses else ".")
        )
    return sentences


def _global_ahead(board: Board) -> list[str]:
    """A model without users ahead of the personal ones, in ranking or in writing."""
    sentences = []
    ranking = [(model, cell) for model in board.reward_models if (cell := model.find(RM_ACCURACY)) is not None]
    writing = [(line, board.cell(line, ROUGE_1)) for line in board.lines if line.is_guided]
    for title, pairs in (("RM accuracy on unseen users", ranking), ("ROUGE-1 of the guided text", writing)):
        known = [pair for pair in pairs if pair[1].value is not None]
        whole = [pair for pair in known if _is_global(pair[0])]
        personal = [pair for pair in known if not _is_global(pair[0])]
        if not whole or not personal:
            continue
        (one, first), (other, second) = _highest(whole), _highest(personal)
        if (first.value or 0.0) <= (second.value or 0.0):
            continue
        sentences.append(
            f"A model that knows no user is ahead of the personal ones in {title}: {one.label} has {first.full}, the "
            f"best personal one, {other.label}, {second.full} ({_near(compare(first, second))}). Personalisation has "
            "not been shown to pay here."
        )
    return sentences


def _limits(board: Board, taus: list[TauResult]) -> list[str]:
    """What the study cannot conclude, and why."""
    reasons = []
    models = len(board.reward_models)
    without = [tau for tau in taus if tau.tau is None]
    if 0 < models < MIN_REWARD_MODELS and all(tau.tau is None for tau in taus):
        reasons.append(
            f"whether RM accuracy predicts policy accuracy or text is not identified with "
            f"{counted(models, 'reward model')} (a rank correlation takes at least {MIN_REWARD_MODELS})"
        )
    else:
        for tau in without:
            reasons.append(f"no τ between {axis(tau.x)} and {axis(tau.y)}: {tau.reason or 'not identified'}")
    if len(board.seeds) == 1:
        reasons.append("one seed says nothing about how results vary when training is repeated")
    alike = _alike(board)
    if alike:
        reasons.append(alike)
    return [f"What cannot be concluded: {'; '.join(reasons)}."] if reasons else []


def _alike(board: Board) -> str:
    ranked = board.ranked()
    if len(ranked) < 2:
        return ""
    top = ranked[0][1]
    count = sum(compare(cell, top) == "overlap" for _, cell in ranked[1:])
    if not count:
        return ""
    return (
        f"{count} of {counted(len(ranked), 'deployment')} overlap with the best one's interval on "
        f"{counted(top.n_users, 'user')}, and overlap is no proof of equality"
    )


def _is_global(line: Line) -> bool:
    return str(line.identity.method).startswith(_GLOBAL_PREFIX)


def _highest(pairs: list[tuple[Line, Cell]]) -> tuple[Line, Cell]:
    return max(pairs, key=lambda pair: pair[1].value or 0.0)


def _near(verdict: Verdict) -> str:
    return {
        "overlap": "the intervals overlap; the interval of the difference is not known",
        "above": "the intervals do not overlap",
        "below": "the intervals do not overlap: it is worse",
        "unknown": "without intervals, so chance cannot be ruled out",
    }[verdict]


def _apart(verdict: Verdict) -> str:
    return " and the intervals do not overlap" if verdict == "above" else ""
