"""Floor 1: what scores of users say about methods, from arrays and tidy tables alone; core, numpy and scipy only.

Example:
    from rewardgap import stats
    scores = stats.user_matrix(methods, users, values).values      # (M, U): means of users under methods
    stats.rank_correlation(rm_accuracy, rouge1).reading            # do two stages order methods alike?
    stats.selection_regret(rm_accuracy, rouge1, names).reading     # what does choosing by the first one cost?
"""

from rewardgap.stats.agreement import Agreement, cohen_kappa
from rewardgap.stats.bootstrap import Estimate, clustered_mean, paired_difference
from rewardgap.stats.clustered import clustered_standard_error
from rewardgap.stats.crossover import Crossover, crossover
from rewardgap.stats.heterogeneity import Heterogeneity, SupportRow, UserEffect, user_effects, wins_by_support
from rewardgap.stats.kendall import TauInterval, kendall_tau, leave_one_out_tau, permutation_p, tau_bootstrap
from rewardgap.stats.matrix import UserMatrix, user_matrix
from rewardgap.stats.meta import MetaAnalysis, meta_analysis
from rewardgap.stats.paired import PairedComparison, compare_deployments, holm, sign_flip_p
from rewardgap.stats.power import (
    DetectableDifference,
    Equivalence,
    detectable_factor,
    equivalence,
    minimal_detectable_difference,
)
from rewardgap.stats.rank import RankCorrelation, rank_correlation, spearman, spearman_permutation_p
from rewardgap.stats.regret import SelectionRegret, probability_best, selection_regret
from rewardgap.stats.reliability import (
    MIN_METHODS,
    MIN_RELIABILITY,
    Reliability,
    not_identified,
    split_half_reliability,
)
from rewardgap.stats.true_scores import TrueScores, true_scores

__all__ = [
    "MIN_METHODS",
    "MIN_RELIABILITY",
    "Agreement",
    "Crossover",
    "DetectableDifference",
    "Equivalence",
    "Estimate",
    "Heterogeneity",
    "MetaAnalysis",
    "PairedComparison",
    "RankCorrelation",
    "Reliability",
    "SelectionRegret",
    "SupportRow",
    "TauInterval",
    "TrueScores",
    "UserEffect",
    "UserMatrix",
    "clustered_mean",
    "clustered_standard_error",
    "cohen_kappa",
    "compare_deployments",
    "crossover",
    "detectable_factor",
    "equivalence",
    "holm",
    "kendall_tau",
    "leave_one_out_tau",
    "meta_analysis",
    "minimal_detectable_difference",
    "not_identified",
    "paired_difference",
    "permutation_p",
    "probability_best",
    "rank_correlation",
    "selection_regret",
    "sign_flip_p",
    "spearman",
    "spearman_permutation_p",
    "split_half_reliability",
    "tau_bootstrap",
    "true_scores",
    "user_effects",
    "user_matrix",
    "wins_by_support",
]
