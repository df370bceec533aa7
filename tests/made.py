"""Studies whose records are made up: a real plan and real cells, with numbers that a test decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.core.seeds import child_seed
from rewardgap.metrics.policy_accuracy import HEADLINE
from rewardgap.studies.aggregate import Tables
from rewardgap.studies.plan import make_plan
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import Finished
from rewardgap.studies.running import dealt
from rewardgap.studies.spec import parse_study
from rewardgap.studies.workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rewardgap.studies.cells import Cell

METHODS = ("global_bt", "lore", "pref", "mpu", "pal_a", "pal_b", "vpl")


def study_of(users: int = 30, query: int = 4, support: int = 4, **changes: Any) -> dict[str, Any]:
    """Return settings of a study on synthetic texts: zero-shot, in context, and guidance by seven reward models."""
    return {
        "name": "made",
        "data": {
            "name": "synthetic_text",
            "options": {"users": users + 4, "rows_per_user": support + query + 2},
        },
        "split": {
            "train_users": 4,
            "valid_per_train_user": 2,
            "adapt_users": users,
            "support": support,
            "query": query,
        },
        "policy": "synthetic-words",
        "generation": {"max_new_tokens": 4},
        "reward_models": [{"method": name} for name in METHODS],
        "deployments": [
            {"policy": "zero_shot"},
            {"policy": "icl", "num_demonstrations": [1, 2]},
            {"decoder": "args_greedy"},
        ],
        "metrics": ["rouge1"],
        "controls": {"shuffled_labels": 0, "synthetic_text": False},
        "resamples": 500,
        **changes,
    }


def made(
    root: Path,
    study: dict[str, Any],
    behaviour: Callable[[str, int, int], float | None],
    *,
    accuracy: Callable[[str, int, int], float | None] = lambda label, user, example: 0.5,
    seen: Callable[[str], float] = lambda label: 0.5,
    policy: Callable[[str, int, int], float | None] = lambda label, user, example: 0.5,
    reward: Callable[[str, str, int, int], float | None] = lambda judge, label, user, example: 0.0,
) -> Tables:
    """Return the tables of a study whose cells hold what the functions say.

    Args:
        root: an empty folder.
        study: its settings.
        behaviour: label of a deployment, user and example to the value of every metric; None is missing.
        accuracy: label of a reward model, user and example to 1 (right), 0 or one half.
        seen: label of a reward model to its accuracy on seen users, a multiple of one half.
        policy: label of a deployment, user and example, as `accuracy`.
        reward: judge, deployment, user and example to the judge's reward.
    """
    bench = Workbench(parse_study(study), root, Silent())
    plan = make_plan(bench)
    bench.pairs = dealt(bench, plan)
    query = bench.pairs.query
    rows = [
        (user, number, item.example_id, index)
        for index, user in enumerate(sorted(query))
        for number, item in enumerate(query[user])
    ]

    def finish(cell: Cell, records: Sequence[dict[str, Any]]) -> None:
        folder = bench.folder(cell)
        folder.start()
        folder.append(records)
        folder.finish({"facts": {}})

    def of(value: Callable[[int, int], Any]) -> list[dict[str, Any]]:
        return [{"user_id": u, "example_id": e, **value(index, number)} for u, number, e, index in rows]

    def margin(hit: float | None) -> float | None:
        return None if hit is None else 2 * hit - 1

    for spec, cell in plan.rewards:
        name = spec.name
        own = of(lambda u, n, name=name: {"part": "unseen", "margin": margin(accuracy(name, u, n))})
        held = [
            {"part": "seen", "user_id": f"s{i}", "example_id": f"s{i}", "margin": margin(value)}
            for i, value in enumerate(_hits(seen(name)))
        ]
        finish(cell, own + held)
    tables = Tables(Finished(bench, plan, [], 0))
    for deployment, cell, _ in plan.written:
        label = name_of(deployment)
        finish(
            cell,
            of(
                lambda u, n, label=label: {
                    f"chosen_{HEADLINE}": policy(label, u, n),
                    f"rejected_{HEADLINE}": 0.5,
                    "completion": f"{label} {u} {n}",
                }
            ),
        )
        for metric in bench.study.metrics:
            scored = plan.behaviour.get((cell.id, metric))
            if scored is not None:
                finish(scored, of(lambda u, n, label=label: {"value": behaviour(label, u, n)}))
        for index, (spec, _) in enumerate(plan.rewards):
            judge = spec.name
            judged = of(lambda u, n, label=label, judge=judge: {"value": reward(judge, label, u, n)})
            finish(plan.judgements[cell.id, index], judged)
    return tables


def name_of(deployment: Any) -> str:
    """Return a short name: the policy with its shots, or the reward model that guides."""
    if deployment.reward_model is not None:
        return str(deployment.reward_model.name)
    return deployment.name if deployment.shots is None else f"{deployment.name} {deployment.shots}"


def _hits(accuracy: float) -> list[float]:
    """Return eight hits and misses with a mean, in sixteenths."""
    right = round(16 * accuracy)
    return [1.0] * (right // 2) + [0.5] * (right % 2) + [0.0] * (8 - right // 2 - right % 2)


def noise(*names: object) -> float:
    """Return a standard normal number that depends on the names alone."""
    return float(np.random.default_rng(child_seed(0, *map(str, names))).standard_normal())
