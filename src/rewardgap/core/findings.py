"""What statistics find in a study: rank correlations, comparisons, regrets, effects of users, and what points share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """A finding at one point of a study: one dataset, pairing rule, policy, support size and seed.

    Older results name the dataset alone.
    """

    dataset: str
    pairing: str | None = None
    policy: str | None = None
    support_size: int | None = None
    seed: int | None = None

    def point(self) -> tuple[Any, ...]:
        """Return what names the point."""
        return self.dataset, self.pairing, self.policy, self.support_size, self.seed


@dataclass(frozen=True, slots=True, kw_only=True)
class TauResult(PointResult):
    """Rank correlation of two stages over the reward models of one decoder, as `stats.rank_correlation` finds it.

    Attributes:
        x: the first stage: rm_accuracy, policy_accuracy, win_self or win_cross.
        y: the second: policy_accuracy or a metric of behaviour.
        decoder: what all of them are decoded with: one decoder, one weight, one number of candidates.
        n_models: reward models compared.
        n_users: users with a value for every one of them at both stages.
        n_ties_x: pairs of reward models that tie at the first stage.
        n_ties_y: at the second.
        tau: tau-b as measured: nearer to zero than that of the true scores.
        naive_low: lower end of the percentile interval over users, which does not cover; never to be shown alone.
        naive_high: its upper end.
        p_value: two-sided permutation p of tau.
        corrected: tau of the true scores; None where not identified, as the five that follow.
        low: lower end of its interval: these reward models, had there been endless users.
        high: its upper end.
        population: tau among reward models like these.
        population_low: lower end of its interval.
        population_high: its upper end.
        spearman: Spearman's rank correlation as measured.
        spearman_p: its two-sided permutation p.
        disattenuated: Spearman's divided by the root of both reliabilities; noise can put it beyond 1.
        leave_one_out_low: lowest tau with one reward model left out.
        leave_one_out_high: highest.
        reliability_x: split-half reliability of the first stage.
        reliability_y: of the second.
        undefined_resamples: resamples of users in which a side was constant.
        reason: why something is None; begins with 'not identified' where the corrected values are withheld.
    """

    x: str
    y: str
    decoder: str | None = None
    n_models: int
    n_users: int = 0
    n_ties_x: int = 0
    n_ties_y: int = 0
    tau: float | None = None
    naive_low: float | None = None
    naive_high: float | None = None
    p_value: float | None = None
    corrected: float | None = None
    low: float | None = None
    high: float | None = None
    population: float | None = None
    population_low: float | None = None
    population_high: float | None = None
    spearman: float | None = None
    spearman_p: float | None = None
    disattenuated: float | None = None
    leave_one_out_low: float | None = None
    leave_one_out_high: float | None = None
    reliability_x: float | None = None
    reliability_y: float | None = None
    undefined_resamples: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult(PointResult):
    """One deployment against another on the same users, by one metric.

    Attributes:
        metric: a metric of behaviour, or win_cross where the data have no texts of users.
        a: the one deployment.
        b: the other.
        b_is: why it is compared with this one: it is the 'baseline' of win rates, or has the 'best' measured mean.
        difference: mean over users of a − b; None without a common user.
        ci_low: lower end of the interval over users; None with one user.
        ci_high: its upper end.
        p_value: two-sided sign-flip p.
        p_holm: corrected by Holm for all comparisons with b by this metric.
        n_users: users with a value under both.
        margin: the largest difference that does not matter, stated in the study.
        equivalent: whether two one-sided tests place the difference inside the margin; None where they cannot be made.
        equivalence_p: the larger p of the two.
        equivalence_low: lower end of the 90 % interval of the difference that belongs to them.
        equivalence_high: its upper end.
        detectable: the smallest difference that so many users show with a probability of 80 %.
        reason: why something is None.
    """

    metric: str
    a: str
    b: str
    b_is: Literal["baseline", "best"]
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    p_holm: float | None = None
    n_users: int = 0
    margin: float | None = None
    equivalent: bool | None = None
    equivalence_p: float | None = None
    equivalence_low: float | None = None
    equivalence_high: float | None = None
    detectable: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegretResult(PointResult):
    """What deploying the first choice of a stage loses, as `stats.selection_regret` finds it.

    Attributes:
        metric: by which deployments are good, as in `ComparisonResult`.
        stage: what chooses: rm_accuracy, rm_accuracy_seen, policy_accuracy, win_self, win_cross, or the metric itself.
        among: the deployments that the choice is held against: guided ones, or all.
        chosen: what the stage ranks first; of settings it cannot tell apart the one with the best measured mean, so
            that the loss is the least it can be.
        best: the deployment with the best measured mean.
        regret: measured loss.
        expected: mean true loss, the luck of users taken out.
        ci_low: lower end of the interval of the true loss.
        ci_high: its upper end.
        out_of_bag: mean loss on users who had no part in the choice, against choosing by the metric itself.
        p_chosen_best: probability that the chosen one is truly the best.
        p_best: deployment to probability that it is truly the best.
        n_users: users with a value under every deployment.
        n_dropped_users: users left out.
        reason: why something is None.
    """

    metric: str
    stage: str
    among: Literal["guided", "all"]
    chosen: str
    best: str
    regret: float
    expected: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    out_of_bag: float | None = None
    p_chosen_best: float | None = None
    p_best: dict[str, float] = field(default_factory=dict)
    n_users: int = 0
    n_dropped_users: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeterogeneityResult(PointResult):
    """For how many users a deployment is better than the baseline, as `stats.user_effects` finds it.

    Attributes:
        metric: by which.
        deployment: the one.
        baseline: the other.
        mean: mean effect over users.
        between: standard deviation of true effects between users; 0 where users differ no more than noise makes them.
        noise: standard deviation of one example about its user's effect.
        share: share of users whose true effect is above zero.
        ci_low: lower end of its interval over users.
        ci_high: its upper end.
        share_measured: share of users whose measured effect is above zero, ties one half.
        n_users: users with an example under both.
        n_examples: examples under both.
        reason: why something is None.
    """

    metric: str
    deployment: str
    baseline: str
    mean: float | None = None
    between: float | None = None
    noise: float | None = None
    share: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    share_measured: float | None = None
    n_users: int = 0
    n_examples: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportResult(PointResult):
    """Users who win and lose by a deployment against the baseline; `support_size` is what these users revealed."""

    metric: str
    deployment: str
    baseline: str
    wins: int
    ties: int
    losses: int
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossoverResult(PointResult):
    """Where one deployment overtakes another along an axis, as `stats.crossover` finds it.

    The axis is None among the columns that name the point, and so is all that differs with it.

    Attributes:
        metric: by which.
        axis: parameters of the policy, demonstrations shown (shots), or support pairs.
        first: the one that overtakes: in context.
        second: the other: guided.
        places: where it was measured, rising.
        differences: first minus second at each, means over users.
        where: 'inside' the range, 'below' it (ahead from the start) or 'above' it (never ahead).
        at: the place, None outside the range.
        ci_low: lower end of its interval, None where that end lies outside.
        ci_high: its upper end, likewise.
        low_where: where the lower end lies.
        high_where: where the upper end lies.
        n_users: users with a value at every place.
        reason: why it was not computed.
    """

    metric: str
    axis: Literal["parameters", "shots", "support"]
    first: str
    second: str
    places: list[float] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    where: Literal["below", "inside", "above"] | None = None
    at: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    low_where: Literal["below", "inside", "above"] | None = None
    high_where: Literal["below", "inside", "above"] | None = None
    n_users: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaResult(PointResult):
    """One corrected tau out of those of several points, as `stats.meta_analysis` finds it.

    `dataset` names all of them; a column that differs between them is None.

    Attributes:
        x: the first stage.
        y: the second.
        decoder: as in `TauResult`.
        n_taus: points whose corrected tau is identified and lies strictly between −1 and 1.
        n_left_out: the other points.
        tau: mean; None without a point.
        ci_low: lower end of its interval; None with fewer than three points, as the five that follow.
        ci_high: its upper end.
        predicted_low: lower end of where tau of another such point would lie.
        predicted_high: its upper end.
        between: standard deviation between true values, on Fisher's z.
        i_squared: share of the spread of the taus beyond their own errors.
        q: Cochran's Q.
        reason: why something is None.
    """

    x: str
    y: str
    decoder: str | None = None
    n_taus: int
    n_left_out: int = 0
    tau: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None
    between: float | None = None
    i_squared: float | None = None
    q: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Across:
    """What several points of one study say together."""

    crossovers: list[CrossoverResult] = field(default_factory=list)
    meta: list[MetaResult] = field(default_factory=list)
