"""Failure signatures: known ways in which good-looking numbers mislead, found in the results and said in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.report.board import Board, Line, at, boards
from rewardgap.report.findings import at_point, difference, own_choices, standing, tau_text, verdict
from rewardgap.report.numbers import Cell, Verdict, compare, counted, interval, number
from rewardgap.report.sheets import NOT_IDENTIFIED
from rewardgap.report.words import POLICY_ACCURACY, RM_ACCURACY, ROUGE_1, WIN_CROSS, WIN_SELF, axis
from rewardgap.stats import MIN_METHODS

if TYPE_CHECKING:
    from rewardgap.core.results import StudyResults, TauResult

OWN_JUDGE_HIGH = 0.95
RANKING_GAP = 0.10
WRITING = ("ROUGE-1", "ROUGE-L", "BERTScore-F1")
_GLOBAL_PREFIX = "global"


def failure_signatures(results: StudyResults) -> list[str]:
    """Return one sentence for each failure signature, then what the study cannot conclude.

    Deployments are compared on the same users. Where no such comparison was made, as between two stages, it is read
    from the overlap of two intervals, and each sentence says so where it matters.
    """
    found: list[str] = []
    limits: list[str] = []
    all_boards = boards(results)
    seeds: dict[str, set[int]] = {}
    for board in all_boards:
        seeds.setdefault(board.dataset, set()).update(board.seeds)
    for board in all_boards:
        own = at(results, board)
        where = f"On {board.name}: " if len(all_boards) > 1 else ""
        found += [where + text for text in (*_ranks_but_does_not_write(board), *_pleases_itself(own, board))]
        found += [where + text for text in (*_reversed(own.taus), *_global_ahead(board))]
        limits += [where + text for text in _limits(own, board, own.taus, len(seeds[board.dataset]) > 1)]
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


def _pleases_itself(results: StudyResults, board: Board) -> list[str]:
    """Own-judge win rate above 95 % with behaviour no better than zero-shot, compared on the same users."""
    choices = own_choices(results, board.dataset)
    metric = choices[0].metric if choices else None
    over = {
        one.a: one
        for one in results.comparisons
        if (one.dataset, one.b_is, one.metric) == (board.dataset, "baseline", metric)
    }
    sentences = []
    for line in board.lines:
        own, gained = board.cell(line, WIN_SELF), over.get(line.label)
        if own.value is None or own.value <= OWN_JUDGE_HIGH or gained is None or standing(gained) == "better":
            continue
        other = board.cell(line, WIN_CROSS)
        independent = f" Another reward model, {other.judge}, gives {other.full}." if other.value is not None else ""
        sentences.append(
            f"{line.label} pleases its own judge only: its win rate over {gained.b} is {own.full} under the reward "
            f"model that guides it (circular), but its {axis(gained.metric)} is no better on the same users: "
            f"{difference(gained)} points, {verdict(gained)}.{independent}"
        )
    return sentences


def _reversed(taus: list[TauResult]) -> list[str]:
    """Corrected tau between RM accuracy and behaviour below zero, its whole interval."""
    sentences = []
    for tau in taus:
        names = (axis(tau.x), axis(tau.y))
        if names[0] != "RM accuracy" or names[1] not in WRITING or tau.corrected is None:
            continue
        if tau.high is not None and tau.high < 0:
            where = f" under {tau.decoder}" if tau.decoder else ""
            sentences.append(
                f"Better rankers write worse{where}: Kendall's τ between {names[0]} and {names[1]} over "
                f"{counted(tau.n_models, 'reward model')} is {number(tau.corrected, 'tau')} "
                f"{interval(tau.low, tau.high, 'tau')} with the noise of users taken out."
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


def _limits(results: StudyResults, board: Board, taus: list[TauResult], repeated: bool) -> list[str]:
    """What the study cannot conclude, and why; `repeated` says that the dataset has points of other seeds."""
    reasons = []
    models = len(board.reward_models)
    if 0 < models < MIN_METHODS and all(tau.corrected is None for tau in taus):
        reasons.append(
            f"whether RM accuracy predicts policy accuracy or text is not identified with "
            f"{counted(models, 'reward model')} (a rank correlation takes at least {MIN_METHODS})"
        )
    else:
        main = {one.metric for one in own_choices(results, board.dataset)} or {tau.y for tau in taus}
        reasons += _not_identified([tau for tau in taus if tau.y in {*main, "policy_accuracy"}])
    if len(board.seeds) == 1 and not repeated:
        reasons.append("one seed says nothing about how results vary when training is repeated")
    reasons += _not_told_apart(results, board)
    return [f"What cannot be concluded: {'; '.join(reasons)}."] if reasons else []


def _not_identified(taus: list[TauResult]) -> list[str]:
    """Return each reason why a tau is not identified, with the pairs of stages it holds for."""
    pairs: dict[str, list[str]] = {}
    for tau in taus:
        if tau.corrected is None:
            reason = tau_text(tau).removeprefix(f"{NOT_IDENTIFIED}: ").partition(" is below ")[0]
            kind = "split-half reliability below 0.8" if reason.startswith("split-half reliability") else reason
            pairs.setdefault(kind, []).append(f"{axis(tau.x)} and {axis(tau.y)}")
    return [
        f"τ is not identified between {', '.join(dict.fromkeys(names))} ({reason})" for reason, names in pairs.items()
    ]


def _not_told_apart(results: StudyResults, board: Board) -> list[str]:
    choices = own_choices(results, board.dataset)
    if len(choices) != 1:
        return []
    compared, _ = at_point(results, choices[0])
    behind = [one for one in compared if one.b_is == "best"]
    count = sum(standing(one) == "undecided" for one in behind)
    if not count:
        return []
    return [
        f"{count} of {counted(len(behind), 'other deployment')} cannot be told from the best one on "
        f"{counted(max(one.n_users for one in behind), 'user')}, which is no proof that they are as good"
    ]


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
