"""What no scale, order or margin may change in ranks, corrections, regret and crossovers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as peer

from rewardgap import stats
from rewardgap.stats.crossover import isotonic_rows

small = st.integers(0, 4).map(float)
probability = st.floats(0, 1)


def matrix(min_rows: int, max_rows: int, columns: int) -> st.SearchStrategy[np.ndarray]:
    row = st.lists(st.integers(-3, 3).map(float), min_size=columns, max_size=columns)
    return st.lists(row, min_size=min_rows, max_size=max_rows).map(np.array)


@settings(deadline=None)
@given(st.lists(st.tuples(small, small), min_size=2, max_size=12))
def test_spearman_is_scipys_and_blind_to_monotone_transforms(pairs):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    found = stats.spearman(a, b)
    if np.ptp(a) and np.ptp(b):
        np.testing.assert_allclose(found, peer.spearmanr(a, b).statistic, atol=1e-12)
    else:
        assert np.isnan(found)
    for other in (stats.spearman(np.exp(a), b**3), stats.spearman(b, a), -stats.spearman(-a, b)):
        np.testing.assert_allclose(other, found, atol=1e-12)


@settings(deadline=None)
@given(st.lists(probability, max_size=12), st.randoms())
def test_holm_rejects_as_its_steps_do(values, random):
    """Step down: go through sorted p while p ≤ level/(left); corrected p ≤ level says the same."""
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for left, index in zip(range(len(values), 0, -1), np.argsort(values, kind="stable"), strict=True):
            if values[index] * left > level:
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(stats.holm(values) <= level).tolist()) == rejected
    order = list(range(len(values)))
    random.shuffle(order)
    np.testing.assert_array_equal(stats.holm([values[i] for i in order]), stats.holm(values)[order])
    assert (stats.holm(values) >= np.array(values)).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=10))
def test_sign_flip_p_is_symmetric_and_at_least_two_flips(values):
    p = stats.sign_flip_p(values)
    assert p == stats.sign_flip_p([-v for v in values]) == stats.sign_flip_p(values[::-1])
    assert min(1.0, 2 / 2 ** len(values)) <= p <= 1.0


@settings(deadline=None, max_examples=40)
@given(matrix(2, 5, 6), matrix(5, 5, 6))
def test_regret_is_never_negative_and_none_where_the_stage_is_the_behaviour(behaviour, stage):
    names = [f"m{i}" for i in range(len(behaviour))]
    found = stats.selection_regret(stage[: len(behaviour)], behaviour, names, 40)
    assert found.regret >= 0 and found.low >= 0 and found.low <= found.high and found.expected >= 0
    assert abs(sum(share for _, share in found.p_best) - 1) < 1e-9
    right = stats.selection_regret(behaviour, behaviour, names, 40)
    assert right.regret == 0.0 and right.chosen == right.best and right.out_of_bag == 0.0


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-2, 2), min_size=3, max_size=12).filter(lambda v: np.std(v) > 1e-3),
    st.floats(0.05, 3),
    st.floats(0.01, 0.4),
)
def test_equivalence_is_an_interval_inside_the_margin(values, margin, level):
    users = [f"u{i}" for i in range(len(values))]
    found = stats.equivalence(values, [0.0] * len(values), users, margin, level=level)
    lower = peer.ttest_1samp(values, -margin, alternative="greater").pvalue
    upper = peer.ttest_1samp(values, margin, alternative="less").pvalue
    np.testing.assert_allclose(found.p_value, max(lower, upper), atol=1e-9)
    if abs(found.p_value - level) > 1e-9:
        assert found.equivalent == (-margin < found.low and found.high < margin)


@settings(deadline=None)
@given(matrix(1, 6, 5))
def test_isotonic_rows_rise_and_keep_their_mean(rows):
    fit = isotonic_rows(rows)
    assert (np.diff(fit, axis=1) >= -1e-12).all()
    np.testing.assert_allclose(fit.mean(axis=1), rows.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(isotonic_rows(fit), fit, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.2, 50), st.floats(0.1, 10), st.booleans())
def test_a_planted_crossover_is_recovered_in_any_units(at, unit, monotone):
    x = np.array([1.0, 2.0, 4.0, 8.0])
    gaps = np.tile(np.log(x / at)[:, None], 3)
    found = stats.crossover(unit * x, gaps, np.zeros((4, 3)), 5, monotone=monotone)
    if at < 1:
        assert found.where == "below"
    elif 1.001 < at < 7.999:
        np.testing.assert_allclose([found.at, found.low, found.high], unit * at, rtol=1e-9)
    elif at > 8:
        assert found.where == "above"


@settings(deadline=None)
@given(st.floats(-0.95, 0.95), st.integers(3, 8), st.sampled_from(["dersimonian_laird", "reml"]))
def test_meta_analysis_of_equal_taus_returns_it(tau, count, method):
    found = stats.meta_analysis([tau] * count, list(range(6, 6 + count)), method=method)
    np.testing.assert_allclose(found.tau, tau, atol=1e-12)
    assert found.between < 1e-6 and found.low < tau < found.high


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_monotone_transforms_of_users_scores_keep_measured_tau_where_users_are_one(seed):
    """With equal users the means are the scores, and tau knows their order only."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, (2, 7)).astype(float)
    if np.ptp(x) and np.ptp(y):
        one = stats.rank_correlation(np.tile(x[:, None], 3), np.tile(y[:, None], 3), 20, splits=5)
        other = stats.rank_correlation(np.tile(np.exp(x)[:, None], 3), np.tile(y[:, None] ** 3, 3), 20, splits=5)
        assert (one.tau, one.spearman, one.p_value) == (other.tau, other.spearman, other.p_value)
        np.testing.assert_allclose(one.tau, peer.kendalltau(x, y).statistic, atol=1e-12)
