"""Scores of a finished study as arrays: a row a deployment, a column a query example or an adapt user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.core.results import distinct_labels
from rewardgap.metrics.catalog import METRICS
from rewardgap.metrics.policy_accuracy import HEADLINE
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.metrics.win_rate import wins
from rewardgap.policies.catalog import POLICIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rewardgap.core.results import ResultRow
    from rewardgap.studies.aggregate import Tables
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.deployments import Deployment

PREFERRED = ("rouge1", "rougeL", "bertscore_f1")
"""By which metric deployments are good, the first that was measured; the others of the study follow."""
WIN_CROSS, POLICY_ACCURACY = "win_cross", "policy_accuracy"


@dataclass(frozen=True)
class Written:
    """A deployment that is finished: its settings, its cell, that of its reward model, and its name in results."""

    deployment: Deployment
    cell: Cell
    reward: Cell | None
    label: str

    @property
    def is_baseline(self) -> bool:
        """Say whether win rates are over this deployment."""
        return is_baseline(self.deployment)


def is_baseline(deployment: Deployment) -> bool:
    """Say whether win rates are over a deployment of this kind."""
    return deployment.kind == "policy" and POLICIES[deployment.name].baseline


class Scores:
    """Scores of a point of a study, each cell read once.

    Args:
        tables: its records.
        row: the columns that name a deployment.

    Attributes:
        users: (U,) adapt users, sorted.
        examples: (N,) query examples, by user.
        owners: (N,) index of each example's user.
        written: finished deployments, in the order of the study.
    """

    def __init__(self, tables: Tables, row: Callable[[Deployment], ResultRow]) -> None:
        self._tables = tables
        query = tables.bench.study_pairs().query
        self.users = sorted(query)
        self.examples = [item.example_id for user in self.users for item in query[user]]
        self.owners = np.repeat(np.arange(len(self.users)), [len(query[user]) for user in self.users])
        self._position = {example: index for index, example in enumerate(self.examples)}
        done = [entry for entry in tables.plan.written if tables.done(entry[1])]
        labels = distinct_labels([row(deployment) for deployment, _, _ in done])
        self.written = [Written(*entry, label) for entry, label in zip(done, labels, strict=True)]
        self._kept: dict[tuple[str, ...], NDArray[np.float64] | None] = {}
        self._stages = {
            "rm_accuracy": self._rm_accuracy,
            POLICY_ACCURACY: self._policy_accuracy,
            "win_self": self._win_self,
            WIN_CROSS: self._win_cross,
        }

    @property
    def baseline(self) -> Written | None:
        """Return the deployment that win rates are over."""
        return next((one for one in self.written if one.is_baseline), None)

    def by_user(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (U,) means over examples with a value, NaN for users without one.

        Args:
            values: (N,) numbers, NaN for missing.
        """
        known = ~np.isnan(values)
        counts = np.bincount(self.owners[known], minlength=len(self.users))
        sums = np.bincount(self.owners[known], weights=values[known], minlength=len(self.users))
        means = np.divide(sums, counts, out=np.full(len(self.users), np.nan), where=counts > 0)
        return np.asarray(means, dtype=np.float64)

    def metrics(self) -> list[str]:
        """Return the behaviour metrics that say which text is better and were measured, the main one first."""
        listed = [name for name in dict.fromkeys(self._tables.study.metrics) if METRICS[name].higher_is_better]
        listed.sort(key=lambda name: PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))
        return [name for name in listed if any(self.stage(name, one) is not None for one in self.written)]

    def outcomes(self) -> list[str]:
        """Return by what deployments are compared: behaviour; without it win rate, without that policy accuracy."""
        for names in (self.metrics(), [WIN_CROSS], [POLICY_ACCURACY]):
            known = [name for name in names if sum(self.stage(name, one) is not None for one in self.written) > 1]
            if known:
                return known
        return []

    def stage(self, name: str, one: Written) -> NDArray[np.float64] | None:
        """Return (N,) scores of a deployment at a stage, NaN for missing; None where it has none at all.

        Args:
            name: rm_accuracy, policy_accuracy, win_self, win_cross, or a metric of behaviour.
            one: the deployment.
        """
        key = (name, one.cell.id)
        if key not in self._kept:
            made = self._stages[name](one) if name in self._stages else self._behaviour(name, one)
            self._kept[key] = None if made is None or np.isnan(made).all() else made
        return self._kept[key]

    def seen_accuracy(self, one: Written) -> float | None:
        """Return the accuracy of a deployment's reward model on held-out pairs of seen users, mean over users."""
        if one.reward is None or not self._tables.done(one.reward):
            return None
        records = self._tables.part(one.reward, "seen")
        hits = pair_accuracy(_numbers(records, "margin"))
        users, codes = np.unique([record["user_id"] for record in records], return_inverse=True)
        known = ~np.isnan(hits)
        counts = np.bincount(codes[known], minlength=len(users))
        sums = np.bincount(codes[known], weights=hits[known], minlength=len(users))
        return float(np.mean(sums[counts > 0] / counts[counts > 0])) if known.any() else None

    def _rm_accuracy(self, one: Written) -> NDArray[np.float64] | None:
        if one.reward is None or not self._tables.done(one.reward):
            return None
        records = self._tables.part(one.reward, "unseen")
        return self._placed(records, pair_accuracy(_numbers(records, "margin")))

    def _policy_accuracy(self, one: Written) -> NDArray[np.float64] | None:
        records = self._tables.records(one.cell)
        chosen, rejected = (_numbers(records, f"{side}_{HEADLINE}") for side in ("chosen", "rejected"))
        return self._placed(records, pair_accuracy(chosen - rejected))

    def _behaviour(self, metric: str, one: Written) -> NDArray[np.float64] | None:
        return self._values(self._tables.plan.behaviour.get((one.cell.id, metric)))

    def _win_self(self, one: Written) -> NDArray[np.float64] | None:
        found = self._wins(one, own=True)
        return found[0] if found else None

    def _win_cross(self, one: Written) -> NDArray[np.float64] | None:
        """Return the mean over the judges that did not guide; a judge without a verdict leaves the example out."""
        if one.is_baseline:
            return np.full(len(self.examples), 0.5)
        found = self._wins(one, own=False)
        return np.mean(found, axis=0) if found else None

    def _wins(self, one: Written, *, own: bool) -> list[NDArray[np.float64]]:
        guide = None if one.deployment.reward_model is None else one.deployment.reward_model.name
        found = []
        for index, (spec, _) in enumerate(self._tables.plan.rewards):
            if (spec.name == guide) == own and self.baseline is not None:
                judged = [self._judged(cell, index) for cell in (one.cell, self.baseline.cell)]
                if judged[0] is not None and judged[1] is not None:
                    found.append(wins(judged[0], judged[1]))
        return found

    def _judged(self, cell: Cell, index: int) -> NDArray[np.float64] | None:
        key = ("judged", cell.id, str(index))
        if key not in self._kept:
            self._kept[key] = self._values(self._tables.plan.judgements.get((cell.id, index)))
        return self._kept[key]

    def _values(self, cell: Cell | None) -> NDArray[np.float64] | None:
        if cell is None or not self._tables.done(cell):
            return None
        records = self._tables.records(cell)
        return self._placed(records, _numbers(records, "value"))

    def _placed(self, records: Sequence[dict[str, Any]], values: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.full(len(self.examples), np.nan)
        out[[self._position[record["example_id"]] for record in records]] = values
        return out


def _numbers(records: Sequence[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """Return a column, NaN for missing."""
    values = [record.get(name) for record in records]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
