"""The smallest differences that the users at hand could show between two reward models, and between two taus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.seeds import child_seed
from rewardgap.diagnostics.figures import Figure, Part, unmeasured
from rewardgap.stats import clustered_standard_error, detectable_factor
from rewardgap.stats.kendall import kendall_tau_rows

if TYPE_CHECKING:
    from rewardgap.diagnostics.personal import PersonalHits

PART = "power"
LEVEL, POWER = 0.05, 0.8
NUM_MODELS = 8
"""Reward models that a study is assumed to compare; fewer than `stats.MIN_METHODS` give no tau at all."""
SPREAD = 0.10
"""Distance between the best and the worst of them in accuracy, assumed."""
DRAWS = 2000
NO_SPREAD = 1e-12
"""Standard errors below it are rounding: users agree in the mean difference, or the models in every row."""
SUMMARIES = {
    "accuracy_paired": "smallest difference in accuracy between two reward models judged on the same rows",
    "accuracy_unpaired": "smallest difference in accuracy between two reward models judged on different users",
    "tau_difference": (
        f"smallest difference between two taus of the same {NUM_MODELS} reward models, accuracies "
        f"{100 * SPREAD:.0f} points apart from best to worst"
    ),
    "tau_from_zero": f"smallest tau of {NUM_MODELS} reward models that is told from none, however many users there are",
}


def power(found: PersonalHits | None, seed: int, reason: str = "") -> Part:
    """Return minimal detectable differences at 80 % power and 5 % level, two-sided.

        MDD = (t₀.₉₇₅ + t₀.₈) · SE,   t with U - 1 degrees of freedom

    SE is user-clustered: paired, of the difference between the personal and the global model of this check; unpaired,
    √2 times the larger of their own. Tau's error is what users alone cause: accuracies of two stages are drawn around
    true ones with the paired error, the truths in random order, and tau's distance from the true tau is squared.

    Args:
        found: hits of two models on the query rows.
        seed: of the simulation.
        reason: why there are none, where there are none.
    """
    num_users = len(set(found.users)) if found else 0
    paired = clustered_standard_error(found.own - found.everybody, found.users) if found else float("nan")
    if found is None or num_users < 2 or paired < NO_SPREAD:
        why = reason if found is None else "one adapt user: the spread between users is not identified"
        why = "the two models differ alike with every user, so their difference has no spread" if num_users > 1 else why
        blank = [unmeasured(PART, name, text, why) for name, text in SUMMARIES.items() if name != "tau_from_zero"]
        return Part(PART, (*blank, _from_zero()))
    factor = detectable_factor(num_users, LEVEL, POWER)
    single = max(clustered_standard_error(values, found.users) for values in (found.own, found.everybody))
    error = tau_error(paired / np.sqrt(2), NUM_MODELS, SPREAD, seed)
    values = {
        "accuracy_paired": factor * paired,
        "accuracy_unpaired": factor * np.sqrt(2) * single,
        "tau_difference": factor * np.sqrt(2) * error,
    }
    figures = [
        Figure(
            part=PART,
            name=name,
            summary=SUMMARIES[name],
            value=float(value),
            unit="tau" if name.startswith("tau") else "points",
            n_users=num_users,
            n_examples=len(found.users),
        )
        for name, value in values.items()
    ]
    note = (
        f"At {POWER:.0%} power and {LEVEL:.0%} level, for {num_users} adapt users and {len(found.users)} query rows. "
        "The paired error is that of the personal against the global model above; models more alike differ less."
    )
    return Part(PART, (*figures, _from_zero()), (note,))


def tau_error(noise: float, num_models: int, spread: float, seed: int) -> float:
    """Return the root mean squared distance of a measured tau from the true one, by simulation.

    Args:
        noise: standard error of each model's accuracy, fractions; what all models share is left out of it.
        num_models: M models, evenly spread in truth.
        spread: from the worst to the best, fractions.
        seed: of the draw.
    """
    rng = np.random.default_rng(child_seed(seed, "check", "tau"))
    truth = np.linspace(0, spread, num_models)
    first = np.tile(truth, (DRAWS, 1))
    second = rng.permuted(first, axis=1)
    true = kendall_tau_rows(first, second)
    seen = kendall_tau_rows(
        first + noise * rng.standard_normal(first.shape), second + noise * rng.standard_normal(second.shape)
    )
    return float(np.sqrt(np.mean((seen - true) ** 2)))


def smallest_significant_tau(num_models: int, seed: int) -> float:
    """Return the smallest tau whose two-sided permutation p is at most 5 %; infinite where none is.

    Args:
        num_models: M.
        seed: of the permutations where M > 8; all M! are counted up to 8.
    """
    from itertools import permutations

    ranks = np.arange(num_models, dtype=np.float64)
    if num_models <= NUM_MODELS:
        orders = np.array(list(permutations(ranks)))
    else:
        rng = np.random.default_rng(child_seed(seed, "check", "permutations"))
        orders = rng.permuted(np.tile(ranks, (9999, 1)), axis=1)
    taus = np.abs(kendall_tau_rows(np.tile(ranks, (len(orders), 1)), orders))
    levels = np.unique(np.round(taus, 12))
    return float(next((level for level in levels if np.mean(taus >= level - 1e-9) <= LEVEL), np.inf))


def _from_zero() -> Figure:
    value = smallest_significant_tau(NUM_MODELS, 0)
    return Figure(part=PART, name="tau_from_zero", summary=SUMMARIES["tau_from_zero"], value=value, unit="tau")
