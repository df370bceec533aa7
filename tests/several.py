"""A study of seconds for tests of who runs it: a network that ships with the package, two reward models, no controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewardgap.studies.progress import Silent
from rewardgap.studies.run import Finished, run_study
from rewardgap.studies.spec import StudySpec, parse_study

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from rewardgap.studies.executors.base import Executor

STUDY: dict[str, Any] = {
    "name": "several",
    "data": {"name": "synthetic_text", "options": {"users": 5, "rows_per_user": 7}},
    "split": {"train_users": 3, "valid_per_train_user": 1, "adapt_users": 2, "support": 3, "query": 4},
    "policy": "synthetic-words",
    "generation": {"max_new_tokens": 4},
    "batch_size": 5,
    "reward_models": [{"method": "global_bt"}, {"method": "pal_b"}],
    "deployments": [{"policy": "zero_shot"}, {"decoder": "args_greedy", "top_k": 3}],
    "metrics": ["rouge1"],
    "controls": {"shuffled_labels": 0, "swap": False, "synthetic_text": False},
    "resamples": 50,
}


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def study(**changes: Any) -> StudySpec:
    return parse_study({**STUDY, **changes})


def records(finished: Finished) -> dict[str, Any]:
    """The records of every cell, but for what a run costs."""
    costs = ("seconds", "forwards", "network_tokens")
    return {
        cell.title: [
            {name: value for name, value in row.items() if name not in costs}
            for row in finished.bench.folder(cell).records()
        ]
        for cell in finished.plan.cells()
    }


def run(root: Path, monkeypatch: pytest.MonkeyPatch, executor: Executor | None = None, **changes: Any) -> Finished:
    monkeypatch.setenv("REWARDGAP_CACHE", str(root.with_name(f"cache of {root.name}")))
    return run_study(study(**changes), root, Said(), executor)
