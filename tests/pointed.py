"""Results of one point told again at others: a study that varies, without a run."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from rewardgap.core.results import StudyResults

if TYPE_CHECKING:
    from collections.abc import Sequence

FINDINGS = ("taus", "comparisons", "regrets", "heterogeneity", "support", "crossovers", "decompositions")
POLICIES = ("made-0.5B", "made-1.5B", "made-3B")


def pointed(
    results: StudyResults,
    policies: Sequence[str] = POLICIES,
    sizes: Sequence[int] = (4, 8),
    seeds: Sequence[int] = (0,),
    dataset: str | None = None,
) -> StudyResults:
    """Return a dataset's results at every combination of policy, support size and seed.

    Behaviour at the n-th policy is n points higher, and 0.1 points at the n-th support size, so that each number says
    where it is from.

    Args:
        results: of a study with one point.
        policies: names of policies.
        sizes: support sizes.
        seeds: seeds.
        dataset: which to vary; by default that of the first row. Other datasets stay as they are.
    """
    varied = dataset or results.rows[0].dataset
    rows = {row.key(): row for row in results.rows if row.dataset != varied}
    found = {name: [one for one in getattr(results, name) if one.dataset != varied] for name in FINDINGS}
    for (place, policy), (step, size), seed in itertools.product(enumerate(policies), enumerate(sizes), seeds):
        for row in results.rows:
            if row.dataset != varied:
                continue
            shift = 0.01 * place + 0.001 * step if row.stage == "behaviour" and row.value is not None else 0.0
            ends = {
                name: None if (end := getattr(row, name)) is None else end + shift
                for name in ("value", "ci_low", "ci_high")
            }
            own = None if row.stage == "rm_accuracy" else policy
            moved = replace(row, policy=own, support_size=size, seed=seed, **ends)
            rows[moved.key()] = moved
        for name, kept in found.items():
            named = {"policy": policy, "support_size": size, "seed": seed}
            kept += [replace(one, **named) for one in getattr(results, name) if one.dataset == varied]
    return replace(results, rows=list(rows.values()), **found)
