"""Win rates: what the reward models of a study and its judges say of the texts, how they judge, and how they agree."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.metrics.win_rate import FIRST, SECOND, win_name, wins
from rewardgap.policies.catalog import JUDGES
from rewardgap.policies.verdicts import disagree
from rewardgap.stats.agreement import cohen_kappa
from rewardgap.studies.independence import metric_of, network
from rewardgap.studies.scores import is_baseline
from rewardgap.studies.workbench import shown_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from rewardgap.core.results import ResultRow
    from rewardgap.stats.agreement import Agreement
    from rewardgap.studies.aggregate import Tables
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.deployments import Deployment
    from rewardgap.studies.spec import JudgeSpec

COSTS = ("requests", "cached", "prompt_tokens", "completion_tokens")
"""What a judge's cells count: requests sent, answers found in the cache instead, and the tokens of all answers."""
Compared = dict[tuple[str, str, str], tuple[str, float]]
"""(written cell, opponent, example) -> user and verdict; NaN where there is none. Equal texts, which nobody judged, are
left out: on them all judges would agree."""


def win_rows(tables: Tables, deployment: Deployment, cell: Cell, template: ResultRow) -> list[ResultRow]:
    """Return the win rates of a deployment, one a judge and opponent, with how the judge came to them.

    Args:
        tables: records of the study.
        deployment: who wrote.
        cell: its cell.
        template: a row with the columns that name the deployment.
    """
    return [*_reward_rows(tables, deployment, cell, template), *_judge_rows(tables, deployment, cell, template)]


def _reward_rows(tables: Tables, deployment: Deployment, cell: Cell, template: ResultRow) -> list[ResultRow]:
    """Return wins over zero-shot under each reward model; a guide that judges itself is named so."""
    rows = []
    guide = deployment.reward_model.name if deployment.reward_model else None
    for index, (spec, _) in enumerate(tables.plan.rewards):
        found = _reward_wins(tables, cell, index)
        if found is not None:
            users, values = found
            row = replace(template, metric=win_name(guide, spec.name), judge=spec.name)
            rows.append(tables.estimated(row, values.tolist(), users))
    return rows


def _reward_wins(tables: Tables, cell: Cell, index: int) -> tuple[list[str], NDArray[np.float64]] | None:
    """Return the user and the win of each record of a deployment under a reward model; None for zero-shot itself."""
    plain = _baseline(tables)
    if plain is None or plain.id == cell.id:
        return None
    own, base = tables.plan.judgements[cell.id, index], tables.plan.judgements[plain.id, index]
    if not (tables.done(own) and tables.done(base)):
        return None
    against = {record["example_id"]: record["value"] for record in tables.records(base)}
    records = tables.records(own)
    values = wins(
        _numbers(record["value"] for record in records),
        _numbers(against[record["example_id"]] for record in records),
    )
    return [record["user_id"] for record in records], values


def _judge_rows(tables: Tables, deployment: Deployment, cell: Cell, template: ResultRow) -> list[ResultRow]:
    """Return the verdicts of the judges that only judge, how often they could not be read or kept, and their cost."""
    rows = []
    for index, (spec, _) in enumerate(tables.plan.judges):
        for opponent in dict.fromkeys(spec.against):
            found = tables.plan.verdicts.get((cell.id, index, opponent))
            if found is None or not tables.done(found):
                continue
            records = tables.records(found)
            users = [record["user_id"] for record in records]
            row = replace(template, judge=spec.name, metric=metric_of(tables.bench, spec, deployment, opponent))
            rows.append(tables.estimated(row, [record["value"] for record in records], users))
            asked = [record for record in records if record["prompt"] is not None]
            owners = [record["user_id"] for record in asked]
            suffix = "" if opponent == "zero_shot" else f"_over_{opponent}"
            rules = (("orders_disagree", disagreement), ("first_place", first_place), ("unread", unread))
            for name, rule in rules if asked else ():
                part = replace(row, metric=name + suffix)
                rows.append(tables.estimated(part, [rule(record) for record in asked], owners))
            for name in COSTS:
                cost = replace(row, stage="cost", metric=f"judge_{name}{suffix}", value=_total(records, name))
                rows.append(replace(cost, n_users=len(set(users)), n_examples=len(records)))
    return rows


def disagreement(record: Mapping[str, Any]) -> float | None:
    """Return 1 where an answer does not survive the change of places, 0 where it does, None where one is missing."""
    answer, swapped = record["answer"], record["answer_swapped"]
    return None if answer is None or swapped is None else float(disagree(answer, swapped))


def first_place(record: Mapping[str, Any]) -> float | None:
    """Return the share of answers that name the first place among those that name one; ½ has no pull of a place."""
    named = [answer for answer in (record["answer"], record["answer_swapped"]) if answer in (FIRST, SECOND)]
    return sum(answer == FIRST for answer in named) / len(named) if named else None


def unread(record: Mapping[str, Any]) -> float:
    """Return 1 where an answer could not be read, so that there is no verdict."""
    return float(record["value"] is None)


def judge_notes(tables: Tables) -> list[str]:
    """Return a few sentences on each judge: how it judged, what it cost, how independent it is, with whom it agrees."""
    notes = []
    compared = [_compared(tables, index) for index in range(len(tables.plan.judges))]
    for index, (spec, cell) in enumerate(tables.plan.judges):
        cells = [found for (_, own, _), found in tables.plan.verdicts.items() if own == index and tables.done(found)]
        if not cells:
            continue
        records = [record for found in cells for record in tables.records(found)]
        notes += [_manner(spec, records), _spent(tables, spec, cell, records), *_kinship(tables, spec)]
        agreed = []
        for number, (model, _) in enumerate(tables.plan.rewards):
            found = _agreement(tables, compared[index], _reward_compared(tables, number))
            if found.kappa is not None:
                agreed.append(f"{model.name} {_interval(found)}")
        if agreed:
            notes.append(f"Judge {spec.name} and the reward models' verdicts, Cohen's kappa: {', '.join(agreed)}.")
    for one, other in combinations(range(len(tables.plan.judges)), 2):
        if not compared[one] or not compared[other]:
            continue
        names = f"Judges {tables.plan.judges[one][0].name} and {tables.plan.judges[other][0].name}"
        found = _agreement(tables, compared[one], compared[other])
        if found.observed is None:
            notes.append(f"{names} have no comparison in common with a verdict of both.")
            continue
        kappa = f"not defined ({found.reason})" if found.kappa is None else _interval(found)
        notes.append(
            f"{names} agree on {round(found.observed * found.n_examples)} of {found.n_examples} comparisons, Cohen's "
            f"kappa {kappa}."
        )
    return notes


def _manner(spec: JudgeSpec, records: list[dict[str, Any]]) -> str:
    asked = [record for record in records if record["prompt"] is not None]
    lost = sum(record["value"] is None for record in asked)
    turned = [value for record in asked if (value := disagreement(record)) is not None]
    first = [value for record in asked for value in (record["answer"], record["answer_swapped"])
             if value in (FIRST, SECOND)]  # fmt: skip
    same = sum(record["same"] for record in records)
    place = "no answer named a place"
    if first:
        share = 100 * first.count(FIRST) / len(first)
        place = f"{share:.1f} % of the answers with a preference name the first place (50 % without a pull)"
    return (
        f"Judge {spec.name} was asked about {len(asked)} comparisons in both orders: {place}, {int(sum(turned))} "
        f"verdicts did not survive the change of places{_made(spec)}, {lost} could not be read and are missing; {same} "
        "more were of equal texts, ties without a question."
    )


def _made(spec: JudgeSpec) -> str:
    return ", which the mean margin decides" if spec.method in JUDGES.names() else " and are ties"


def _spent(tables: Tables, spec: JudgeSpec, cell: Cell, records: list[dict[str, Any]]) -> str:
    own = tables.bench.folder(cell).facts()["facts"]
    sums = {name: _total([own, *records], name) for name in COSTS}
    shown = {name: "an unknown number of" if value is None else f"{value:,.0f}" for name, value in sums.items()}
    return (
        f"Judge {spec.name} ({shown_name(spec.backbone or tables.study.policy)}) took {shown['requests']} requests and "
        f"{shown['cached']} answers from the cache; these have {shown['prompt_tokens']} prompt tokens and "
        f"{shown['completion_tokens']} completion tokens."
    )


def _kinship(tables: Tables, spec: JudgeSpec) -> Iterator[str]:
    """Yield what makes a judge less than independent."""
    own = network(tables.bench, spec.backbone)
    if own.is_same(network(tables.bench, None)):
        yield (
            f"Judge {spec.name} is the policy's own network: it may prefer what that network writes, so its win rates "
            "are marked related (win_related) and are no independent evidence."
        )
        return
    kin = [
        model.name
        for model, _ in tables.plan.rewards
        if model.backbone is not None and own.is_same(network(tables.bench, model.backbone))
    ]
    if kin:
        yield (
            f"Judge {spec.name} is the network that {', '.join(kin)} read: its win rates for what they guided are "
            "marked related (win_related) and are no independent evidence."
        )


def _compared(tables: Tables, index: int) -> Compared:
    return {
        (owner, opponent, record["example_id"]): (record["user_id"], _number(record["value"]))
        for (owner, own, opponent), cell in tables.plan.verdicts.items()
        if own == index and tables.done(cell)
        for record in tables.records(cell)
        if not record["same"]
    }


def _reward_compared(tables: Tables, index: int) -> Compared:
    out: Compared = {}
    for _, cell, _ in tables.plan.written:
        found = _reward_wins(tables, cell, index)
        if found is not None:
            examples = [record["example_id"] for record in tables.records(tables.plan.judgements[cell.id, index])]
            rows = zip(examples, *found, strict=True)
            out |= {(cell.id, "zero_shot", example): (user, float(value)) for example, user, value in rows}
    return out


def _agreement(tables: Tables, one: Compared, other: Compared) -> Agreement:
    shared = sorted(set(one) & set(other))
    left, right = ([found[key][1] for key in shared] for found in (one, other))
    users = [one[key][0] for key in shared]
    return cohen_kappa(left, right, users, tables.study.resamples, tables.study.seed)


def _interval(found: Agreement) -> str:
    span = "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.kappa:.2f}{span}"


def _baseline(tables: Tables) -> Cell | None:
    return next((cell for deployment, cell, _ in tables.plan.written if is_baseline(deployment)), None)


def _total(records: Iterable[Mapping[str, Any]], name: str) -> float | None:
    values = [record[name] for record in records]
    return None if None in values else float(sum(values))


def _numbers(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([_number(value) for value in values], dtype=np.float64)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
