"""Where the gap arises: the way of each reward model from ranking to writing, step by step, from records alone.

A step's number is a mean over users with its interval. Where two numbers are compared, the difference is taken on each
example first, and the interval is that of the difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.core.decomposition import Decomposition
from rewardgap.metrics.prefix_accuracy import QUARTERS, tokens_read
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.stats.bootstrap import clustered_mean
from rewardgap.studies.scores import POLICY_ACCURACY, PREFERRED, WIN_CROSS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from rewardgap.core.decomposition import DecompositionUnit, Step
    from rewardgap.studies.aggregate import Tables
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.scores import Written
    from rewardgap.studies.spec import RewardModelSpec

HALF = 2
"""Quarters of a text after which a prefix is judged."""
CHANCE = 0.5


def decompose(tables: Tables) -> list[Decomposition]:
    """Return the numbers of every reward model of a study, step by step; what was not measured is left out."""
    out: list[Decomposition] = []
    for index, (spec, cell) in enumerate(tables.plan.rewards):
        if tables.done(cell):
            way = _Way(tables, index, spec, cell)
            out += [*way.ranking(), *way.prefixes(), *way.guidance(), *way.search(), *way.hacking(), *way.personal()]
    return out


class _Way:
    """The way of one reward model. Arrays are (N,), by query example; NaN is missing."""

    def __init__(self, tables: Tables, index: int, spec: RewardModelSpec, cell: Cell) -> None:
        self.tables, self.index, self.spec, self.cell = tables, index, spec, cell
        self.scores = tables.scores
        self._position = {example: place for place, example in enumerate(self.scores.examples)}
        self._users = [self.scores.users[owner] for owner in self.scores.owners.tolist()]
        self.hits = self._hits(tables.part(cell, "unseen"), lambda record: record["margin"])
        self.guided = [one for one in self.scores.written if one.reward is not None and one.reward.id == cell.id]
        cells = [one for owner, one in tables.plan.prefixes if owner.id == cell.id and tables.done(one)]
        self.cuts = tables.records(cells[0]) if cells else []
        self.half = self._hits(self.cuts, lambda record: record["margin_50"])
        self.zero = self.scores.baseline
        self.metric = next((name for name in self.scores.metrics() if name in PREFERRED), None)

    def ranking(self) -> list[Decomposition]:
        """Return how well whole texts are ranked."""
        errors = 1 - self.hits
        return [self._mean("ranking", "rm_accuracy", self.hits), self._mean("ranking", "ranking_error", errors)]

    def prefixes(self) -> list[Decomposition]:
        """Return how well cut texts are ranked, and when the order comes right."""
        if not self.cuts:
            return []
        whole = self._hits(self.cuts, lambda record: record["margin_100"])
        out = [self._mean("prefix", "to_half", self.half - whole)]
        for quarters in QUARTERS:
            share = quarters / 4
            cut = self._hits(self.cuts, _cut_margin(quarters))
            out.append(self._mean("prefix", "prefix_accuracy", cut, share=share))
            if quarters < QUARTERS[-1]:
                out.append(self._mean("prefix", "prefix_error", whole - cut, share=share))
            if quarters == HALF:
                out.append(self._mean("prefix", "prefix_kept", _kept(cut, whole), share=share))
        first = self._column(self.cuts, lambda record: record["first_right"])
        return [*out, self._mean("prefix", "first_right", first)]

    def guidance(self) -> list[Decomposition]:
        """Return what the policy, as a scorer, makes of the reward at each weight."""
        out = []
        for one in self.guided:
            policy = self.scores.stage(POLICY_ACCURACY, one)
            if policy is None:
                continue
            names, unguided = _names(one), self._unguided(one)
            ratios = self._column(self.tables.records(one.cell), lambda record: record["guidance_ratio"])
            out += [
                self._mean("guidance", "unguided_accuracy", unguided, **names),
                self._mean("guidance", "policy_accuracy", policy, **names),
                self._mean("guidance", "guidance_gain", policy - unguided, **names),
                self._mean("guidance", "guidance_error", self.hits - policy, **names),
                *([self._mean("guidance", "from_half", policy - self.half, **names)] if self.cuts else []),
                self._mean("guidance", "guidance_ratio", ratios, unit="ratio", **names),
            ]
        return out

    def search(self) -> list[Decomposition]:
        """Return what best-of-N finds against token guidance, by the reward that both seek.

        Each best-of-N is compared with the token-guided deployment that reached the highest own reward.
        """
        judged = [(one, own) for one in self.guided if (own := self._judged(one)) is not None]
        texts = [(one, own) for one, own in judged if one.deployment.name == "best_of_n"]
        token = [(one, own) for one, own in judged if self._by_token(one)]
        if not texts or not token:
            return []
        best, reached = max(token, key=lambda pair: float(np.nanmean(self.scores.by_user(pair[1]))))
        out = []
        for one, own in texts:
            names = {**_names(one), "against": best.label}
            out.append(self._mean("search", "search_reward", own - reached, unit="reward", **names))
            mine, other = self._behaviour(one), self._behaviour(best)
            if mine is not None and other is not None:
                out.append(self._mean("search", "search_behaviour", mine - other, metric=self.metric, **names))
        for one in (*(one for one, _ in texts), best):
            spent = self._column(self.tables.records(one.cell), _budget)
            out.append(self._mean("search", "tokens", spent, unit="tokens", **_names(one)))
        return out

    def hacking(self) -> list[Decomposition]:
        """Return who sees a gain over zero-shot: the reward model that guided, others, and what users wrote."""
        if self.zero is None:
            return []
        out = []
        before = self._judged(self.zero)
        for one in self.guided:
            names = _names(one)
            won, seen = self.scores.stage("win_self", one), self.scores.stage(WIN_CROSS, one)
            own = self._judged(one)
            if won is not None:
                out.append(self._mean("hacking", "win_own", won, **names))
            if won is not None and seen is not None:
                out.append(self._mean("hacking", "win_other", seen, **names))
                out.append(self._mean("hacking", "hacking", won - seen, **names))
                out.append(self._mean("hacking", "win_kept", _kept(seen, won), **names))
            if own is not None and before is not None:
                out.append(self._mean("hacking", "own_reward", own - before, unit="reward", **names))
            mine, base = self._behaviour(one), self._behaviour(self.zero)
            if mine is not None and base is not None:
                out.append(self._mean("hacking", "behaviour_gain", mine - base, metric=self.metric, **names))
        return out

    def personal(self) -> list[Decomposition]:
        """Return what a user's own state is worth over another user's."""
        other = self.tables.part(self.cell, "other_state")
        if not other:
            return []
        gain = self.hits - self._hits(other, lambda record: record["margin"])
        return [self._mean("personal", "personal_gain", gain)]

    def _mean(
        self,
        step: Step,
        quantity: str,
        values: NDArray[np.float64],
        *,
        unit: DecompositionUnit = "points",
        **names: Any,
    ) -> Decomposition:
        study = self.tables.study
        found = clustered_mean(values, self._users, study.resamples, study.seed)
        return Decomposition(
            **self.tables.point,
            method=self.spec.name,
            step=step,
            quantity=quantity,
            unit=unit,
            value=found.value,
            ci_low=found.low,
            ci_high=found.high,
            n_users=found.n_users,
            n_examples=found.n_examples,
            n_missing=found.n_missing,
            **names,
        )

    def _unguided(self, one: Written) -> NDArray[np.float64]:
        """Return the hits of the policy alone: normalised over the same candidates where zero-shot was, else `base`."""
        if self.zero is not None and one.deployment.top_k == self.tables.bench.settings.score_top_k:
            found = self.scores.stage(POLICY_ACCURACY, self.zero)
            if found is not None:
                return found
        return self._hits(self.tables.records(one.cell), _base_margin)

    def _by_token(self, one: Written) -> bool:
        return one.deployment.top_k is not None and "proposed" not in self.tables.records(one.cell)[0]

    def _judged(self, one: Written) -> NDArray[np.float64] | None:
        """Return the own reward of what a deployment wrote."""
        judgement = self.tables.plan.judgements.get((one.cell.id, self.index))
        if judgement is None or not self.tables.done(judgement):
            return None
        return self._column(self.tables.records(judgement), lambda record: record["value"])

    def _behaviour(self, one: Written) -> NDArray[np.float64] | None:
        return None if self.metric is None else self.scores.stage(self.metric, one)

    def _column(
        self, records: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]
    ) -> NDArray[np.float64]:
        out = np.full(len(self.scores.examples), np.nan)
        for record in records:
            found = value(record)
            if found is not None:
                out[self._position[record["example_id"]]] = found
        return out

    def _hits(
        self, records: Sequence[Mapping[str, Any]], margin: Callable[[Mapping[str, Any]], float | None]
    ) -> NDArray[np.float64]:
        return pair_accuracy(self._column(records, margin))


def _names(one: Written) -> dict[str, Any]:
    return {"deployment": one.label, "guidance_weight": one.deployment.guidance_weight}


def _budget(record: Mapping[str, Any]) -> float:
    """Return the tokens through networks for a completion.

    Texts that other deployments drew before cost nothing once more: N texts count at least N times the one picked.
    """
    return max(float(record["network_tokens"]), float(record.get("proposed") or 0) * float(record["new_tokens"]))


def _cut_margin(quarters: int) -> Callable[[Mapping[str, Any]], float | None]:
    """Return the margin of a pair that is cut, by record.

    It is missing where both sides are still one text, which nobody could rank, and where a short side is whole already.
    """
    name = 25 * quarters

    def margin(record: Mapping[str, Any]) -> float | None:
        lengths = (record["tokens_chosen"], record["tokens_rejected"])
        whole = quarters < QUARTERS[-1] and any(tokens_read(length, quarters) == length for length in lengths)
        return None if whole or record[f"same_{name}"] else record[f"margin_{name}"]

    return margin


def _base_margin(record: Mapping[str, Any]) -> float | None:
    chosen, rejected = record.get("chosen_base"), record.get("rejected_base")
    return None if chosen is None or rejected is None else float(chosen - rejected)


def _kept(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (part - 1/2) - (whole - 1/2) / 2: below zero where less than half of an advantage over a coin arrives."""
    return (part - CHANCE) - (whole - CHANCE) / 2
