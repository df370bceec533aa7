"""What it costs to deploy what a stage ranks first, and how sure one can be which deployment is best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.core.seeds import child_seed
from rewardgap.stats.matrix import check_resampling, complete, user_counts
from rewardgap.stats.true_scores import true_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_CHUNK_CELLS = 1 << 20


@dataclass(frozen=True, slots=True)
class SelectionRegret:
    """Behaviour lost by deploying what a stage ranks first.

    Attributes:
        chosen: what the stage ranks first; the first in the order given where several tie.
        best: the deployment with the best measured behaviour.
        regret: measured behaviour of the best minus that of the chosen; ≥ 0, and too large on average, since the best
            measured one was also lucky.
        expected: mean true regret of the chosen, luck of users taken out.
        low: lower end of the interval of the true regret.
        high: its upper end.
        out_of_bag: mean over resamples of: choose by behaviour and by the stage on the drawn users, and measure what
            the first choice gains over the second on the users not drawn. Below zero where the stage chooses better
            than behaviour itself does. None with fewer than two users.
        p_chosen_best: probability that the chosen one is truly the best.
        p_best: (name, probability) of being truly the best, for every deployment.
        n_users: users with a value for every deployment.
        n_dropped_users: users left out.
        level: coverage of the interval.
        reason: why something is None.
    """

    chosen: str
    best: str
    regret: float
    expected: float | None
    low: float | None
    high: float | None
    out_of_bag: float | None
    p_chosen_best: float | None
    p_best: tuple[tuple[str, float], ...] | None
    n_users: int
    n_dropped_users: int
    level: float
    reason: str | None = None

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        if self.expected is None or self.low is None or self.high is None or self.p_chosen_best is None:
            return f"Deploying {self.chosen} loses {self.regret:.4g} as measured; how sure that is, is not known: " + (
                f"{self.reason}."
            )
        return (
            f"Deploying {self.chosen}, which the stage ranks first, loses {self.expected:.4g} against the best "
            f"({100 * self.level:g} % interval {self.low:.4g} to {self.high:.4g}; measured {self.regret:.4g}, against "
            f"{self.best}); it is the best with probability {self.p_chosen_best:.2f}."
        )


def selection_regret(
    stage: ArrayLike,
    behaviour: ArrayLike,
    names: Sequence[str],
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> SelectionRegret:
    """Return what deploying the stage's first choice loses in behaviour.

        regret = max_m behaviour_m − behaviour_chosen,   chosen = argmax_m stage_m

    The interval, `expected` and `p_best` are those of `true_scores` of the behaviour, with the chosen one held fixed:
    they answer what this choice costs. `out_of_bag` answers what such choices cost: it never measures a choice on the
    users that made it.

    Args:
        stage: (M, U) score of each user under each deployment at the stage that chooses; higher is chosen.
        behaviour: (M, U) the same deployments and users, higher is better.
        names: (M,) names.
        resamples: draws of true scores, and bootstrap resamples.
        seed: of the draws. The order of the users has no say.
        level: coverage.

    Raises:
        ShapeError: if shapes differ or names are not M.
        ConfigError: if a value is infinite, a deployment has no value at all, no user has all values, or `resamples` or
            `level` is out of range.

    Source: simple regret of best-arm identification (Bubeck, Munos and Stoltz 2009); out-of-bag choice after Efron and
        Tibshirani (1997).
    """
    check_resampling(resamples, level)
    found = complete([stage, behaviour], "stage and behaviour")
    choice, outcome = found.stages
    _named(found.n_dropped_methods, len(np.asarray(behaviour)), names, outcome.shape)
    num_users = outcome.shape[1]
    scores, values = choice.mean(axis=1), outcome.mean(axis=1)
    chosen, best = _first(scores, choice), _first(values, outcome)
    regret = float(values[best] - values[chosen]) if best != chosen else 0.0
    fixed = (names[chosen], names[best], regret)
    counted = (num_users, found.n_dropped_users, level)
    if num_users < 2 or len(names) < 2:
        reason = "one user: an interval over users is not identified" if num_users < 2 else "there is one deployment"
        return SelectionRegret(*fixed, None, None, None, None, None, None, *counted, reason)
    draws = true_scores([outcome], resamples, seed).draws[:, 0]
    lost = draws.max(axis=1) - draws[:, chosen]
    low, high = np.quantile(lost, [(1 - level) / 2, (1 + level) / 2])
    shares = _shares_best(draws)
    return SelectionRegret(
        *fixed,
        expected=float(lost.mean()),
        low=float(low),
        high=float(high),
        out_of_bag=_out_of_bag(choice, outcome, resamples, seed),
        p_chosen_best=float(shares[chosen]),
        p_best=tuple(zip(names, shares.tolist(), strict=True)),
        n_users=num_users,
        n_dropped_users=found.n_dropped_users,
        level=level,
    )


def probability_best(
    behaviour: ArrayLike, names: Sequence[str], draws: int = 10_000, seed: int = 0
) -> tuple[tuple[str, float], ...]:
    """Return the probability of each deployment that it is truly the best: (name, probability), in the order given.

    Args:
        behaviour: (M, U) mean of each user under each deployment, NaN for missing; higher is better.
        names: (M,) names.
        draws: draws of `true_scores`; a draw in which several tie is shared among them.
        seed: of the draws.

    Raises:
        ShapeError: if names are not M, or there are fewer than two deployments or users with all values.
        ConfigError: if a value is infinite or a deployment has no value at all.
    """
    found = complete([behaviour], "behaviour")
    (outcome,) = found.stages
    _named(found.n_dropped_methods, len(np.asarray(behaviour)), names, outcome.shape)
    shares = _shares_best(true_scores([outcome], draws, seed).draws[:, 0])
    return tuple(zip(names, shares.tolist(), strict=True))


def _named(n_dropped: int, num_methods: int, names: Sequence[str], shape: tuple[int, ...]) -> None:
    if num_methods != len(names):
        raise ShapeError(f"there are {num_methods} deployments and {len(names)} names; expected one name for each.")
    if n_dropped or not shape[0] or not shape[1]:
        what = (
            f"{n_dropped} deployments have no value at all" if n_dropped else "no user has a value for every deployment"
        )
        raise ConfigError(f"{what}; leave out what was not measured.")


def _first(means: NDArray[np.float64], scores: NDArray[np.float64]) -> int:
    """Return the first of the best, equal up to rounding."""
    return int(np.argmax(means >= means.max() - 1e-12 * float(np.abs(scores).max())))


def _shares_best(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    first = draws == draws.max(axis=1, keepdims=True)
    return np.asarray((first / first.sum(axis=1, keepdims=True)).mean(axis=0))


def _out_of_bag(choice: NDArray[np.float64], outcome: NDArray[np.float64], resamples: int, seed: int) -> float | None:
    rng = np.random.default_rng(child_seed(seed, "out_of_bag"))
    num_users = outcome.shape[1]
    gains: list[NDArray[np.float64]] = []
    step = max(1, _CHUNK_CELLS // num_users)
    for begin in range(0, resamples, step):
        counts = user_counts(num_users, min(step, resamples - begin), rng)
        left_out = counts == 0
        counts, left_out = counts[left_out.any(axis=1)], left_out[left_out.any(axis=1)]
        judged = left_out @ outcome.T / left_out.sum(axis=1, keepdims=True)
        picks = [np.argmax(counts @ side.T, axis=1) for side in (outcome, choice)]
        rows = np.arange(len(counts))
        gains.append(judged[rows, picks[0]] - judged[rows, picks[1]])
    every = np.concatenate(gains)
    return float(every.mean()) if len(every) else None
