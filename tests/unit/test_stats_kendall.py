"""Tau-b against counting, scipy and arithmetic; the user bootstrap and the permutation test."""

from __future__ import annotations

import time
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy import stats

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.stats.kendall import (
    kendall_tau,
    kendall_tau_rows,
    leave_one_out_tau,
    permutation_p,
    tau_bootstrap,
)


def counted_tau(a, b):
    """Count pairs, the slow way."""
    concordant = discordant = only_a = only_b = 0
    for i, j in combinations(range(len(a)), 2):
        da, db = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
        concordant += da * db > 0
        discordant += da * db < 0
        only_a += da == 0 and db != 0
        only_b += db == 0 and da != 0
    untied = concordant + discordant
    return (concordant - discordant) / np.sqrt((untied + only_a) * (untied + only_b))


def test_hand_counted_fixtures():
    # p=[1,1,2,3], q=[1,2,2,3]: C=4 (02, 03, 13, 23), D=0, tied in p only: 01, in q only: 12. 4/√(5·5) = .8
    assert kendall_tau([1, 1, 2, 3], [1, 2, 2, 3]) == pytest.approx(0.8, abs=1e-15)
    # 1..4 against [1,3,2,4]: one of six pairs is discordant. (5 − 1)/6 = 2/3
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(2 / 3, abs=1e-15)


def test_reversal_negates_and_self_is_one():
    x = [0.3, 0.1, 0.9, 0.9, 0.5]
    assert kendall_tau(x, x) == 1.0
    assert kendall_tau(x, [-v for v in x]) == -1.0


@pytest.mark.parametrize(
    "bad", [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2]), ([1], [2]), ([], []), ([1, np.nan], [1, 2])]
)
def test_undefined_is_nan_and_never_zero(bad):
    assert np.isnan(kendall_tau(*bad))


def test_infinities_are_ordered_like_numbers():
    assert kendall_tau([-np.inf, 0, np.inf], [1, 2, 3]) == 1.0
    assert kendall_tau([np.inf, np.inf, 0], [1, 1, 0]) == 1.0


def test_rows_are_single_taus():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (300, 7)).astype(float), rng.integers(0, 4, (300, 7)).astype(float)
    a[0] = 1.0
    b[1, 2] = np.nan
    want = [stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert np.isnan(want[0]) and np.isnan(want[1])
    np.testing.assert_allclose(kendall_tau_rows(a, b), want, atol=1e-14)


def test_many_rows_equal_few(monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.random((50, 6)), rng.random((50, 6))
    whole = kendall_tau_rows(a, b)
    monkeypatch.setattr("rewardgap.stats.kendall._CHUNK_CELLS", 7 * 36)
    np.testing.assert_array_equal(kendall_tau_rows(a, b), whole)


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
        kendall_tau([1, 2], [1, 2, 3])
    with pytest.raises(ShapeError, match=r"\(B, n\)"):
        kendall_tau_rows([1, 2], [1, 2])
    with pytest.raises(ShapeError, match=r"\(M, U\)"):
        tau_bootstrap(np.zeros((3, 2)), np.zeros((3, 4)))


def test_exact_p_counts_every_relabelling():
    x, y = np.array([0.1, 0.4, 0.4, 0.9, 0.2]), np.array([1.0, 2.0, 3.0, 3.0, 0.0])
    taus = [counted_tau(x, y[list(order)]) for order in permutations(range(5))]
    observed = abs(counted_tau(x, y))
    assert permutation_p(x, y) == np.mean(np.abs(taus) >= observed - 1e-12)


def test_exact_p_of_a_perfect_order():
    # Of n! orders two give |τ| = 1: the order itself and its reversal. 2/6! = 1/360
    assert permutation_p(range(6), range(6)) == pytest.approx(1 / 360)


def test_exact_p_is_that_of_scipy_without_ties():
    rng = np.random.default_rng(2)
    for n in (4, 6, 8):
        x, y = rng.random(n), rng.random(n)
        assert permutation_p(x, y) == pytest.approx(stats.kendalltau(x, y, method="exact").pvalue)


def test_monte_carlo_p_is_near_the_exact_one_and_never_zero():
    rng = np.random.default_rng(3)
    x = rng.random(12)
    y = x + rng.random(12)
    want = stats.kendalltau(x, y, method="exact").pvalue
    assert permutation_p(x, y, seed=4) == pytest.approx(want, abs=4 * np.sqrt(want / 9999) + 1e-3)
    assert permutation_p(x, x, seed=4) == pytest.approx(1 / 10000, abs=1e-9)
    assert permutation_p(x, y, seed=4) == permutation_p(x, y, seed=4)


def test_p_of_a_constant_side_is_nan():
    assert np.isnan(permutation_p([1, 1, 1], [1, 2, 3]))


def brute_bootstrap(x, y, resamples, seed):
    """Draw users one at a time and count pairs: same distribution, other draws."""
    rng = np.random.default_rng(seed)
    taus = []
    for _ in range(resamples):
        users = rng.integers(0, x.shape[1], x.shape[1])
        means = np.round(x[:, users].mean(1), 9), np.round(y[:, users].mean(1), 9)
        if np.ptp(means[0]) and np.ptp(means[1]):
            taus.append(counted_tau(*means))
    return np.quantile(taus, [0.025, 0.975]), resamples - len(taus)


def test_interval_agrees_with_a_slow_loop():
    rng = np.random.default_rng(5)
    x = rng.integers(0, 7, (6, 20)) / 6
    y = np.clip(x + rng.normal(0, 0.4, x.shape), 0, 1)
    fast = tau_bootstrap(x, y, 4000, seed=1)
    (low, high), _ = brute_bootstrap(x, y, 2000, seed=2)
    assert fast.tau == pytest.approx(stats.kendalltau(x.mean(1), y.mean(1)).statistic)
    assert (fast.low, fast.high) == (pytest.approx(low, abs=0.08), pytest.approx(high, abs=0.08))
    assert fast.n == 6 and fast.n_users == 20 and fast.reason is None


def test_undefined_resamples_are_counted_and_left_out():
    # Two methods that differ for one user of four only: that user is missed with probability (3/4)^4 = .316
    x = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    result = tau_bootstrap(x, x, 5000, seed=0)
    assert result.undefined_resamples == pytest.approx(5000 * 0.75**4, rel=0.1)
    assert (result.tau, result.low, result.high) == (1.0, 1.0, 1.0)


def test_same_draw_for_both_metrics():
    """A metric against itself is 1 in every resample; with separate draws it would not be."""
    x = np.random.default_rng(6).random((5, 12))
    result = tau_bootstrap(x, x, 500)
    assert (result.low, result.high) == (1.0, 1.0)
    opposite = tau_bootstrap(x, -x, 500)
    assert (opposite.tau, opposite.low, opposite.high) == (-1.0, -1.0, -1.0)


def test_equal_means_by_another_sum_are_ties():
    """One user's tenths in another order have another last digit in their mean; the methods still tie."""
    rng = np.random.default_rng(10)
    y = np.array([[0.0] * 23, [1.0] * 23, [2.0] * 23])
    for _ in range(20):
        tenths = rng.integers(0, 10, 23) / 10
        x = np.array([tenths, rng.permutation(tenths), np.ones(23)])
        result = tau_bootstrap(x, y, 20)
        assert result.ties_x == 1 and result.ties_y == 0
        assert result.tau == pytest.approx(2 / np.sqrt(2 * 3))


def test_missing_users_and_methods_are_dropped_and_counted():
    rng = np.random.default_rng(7)
    x, y = rng.random((5, 9)), rng.random((5, 9))
    x[3] = np.nan
    x[0, 2] = y[4, 5] = np.nan
    result = tau_bootstrap(x, y, 300)
    keep_methods, keep_users = [0, 1, 2, 4], [0, 1, 3, 4, 6, 7, 8]
    clean = tau_bootstrap(x[np.ix_(keep_methods, keep_users)], y[np.ix_(keep_methods, keep_users)], 300)
    assert (result.n, result.n_users, result.n_dropped_users, result.n_dropped_methods) == (4, 7, 2, 1)
    assert (result.tau, result.low, result.high, result.p_value) == (clean.tau, clean.low, clean.high, clean.p_value)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.full((4, 3), np.nan), "fewer than two methods"),
        (np.array([[np.nan, 1.0], [1.0, np.nan]]), "no user has a value"),
        (np.ones((4, 3)), "all methods tie"),
        (np.ones((1, 3)), "fewer than two methods"),
    ],
)
def test_what_is_not_identified_is_none_with_a_reason(x, reason):
    result = tau_bootstrap(x, x)
    assert (result.tau, result.low, result.high, result.p_value) == (None, None, None, None)
    assert reason in (result.reason or "")


def test_one_user_has_a_tau_and_no_interval():
    result = tau_bootstrap([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])
    assert (result.tau, result.low, result.high) == (1.0, None, None)
    assert "one user" in (result.reason or "")


def test_bad_arguments():
    with pytest.raises(ConfigError, match="infinite"):
        tau_bootstrap([[np.inf], [1.0]], [[1.0], [2.0]])
    with pytest.raises(ConfigError, match="resamples is 0"):
        tau_bootstrap(np.ones((2, 2)), np.ones((2, 2)), resamples=0)


def test_interval_covers_the_truth_of_users():
    """Six methods with fixed true means; the interval holds the tau of the true means in most worlds."""
    rng = np.random.default_rng(8)
    true_x, true_y = np.linspace(0.3, 0.8, 6), np.array([0.3, 0.5, 0.4, 0.6, 0.8, 0.7])
    truth = kendall_tau(true_x, true_y)
    hits = 0
    for world in range(150):
        noise = rng.normal(0, 0.35, (2, 6, 40))
        result = tau_bootstrap(true_x[:, None] + noise[0], true_y[:, None] + noise[1], 200, seed=world)
        hits += result.low <= truth <= result.high
    assert hits >= 130


def test_leave_one_out_range():
    x, y = [1, 2, 3, 4], [1, 3, 2, 4]
    # Without the second or third method the order is perfect; without an end, one of three pairs is discordant: 1/3
    assert leave_one_out_tau(x, y) == (pytest.approx(1 / 3), 1.0)
    assert all(np.isnan(leave_one_out_tau([1, 2], [1, 2])))


def test_ten_thousand_resamples_take_under_a_second():
    rng = np.random.default_rng(9)
    x, y = rng.random((9, 300)), rng.random((9, 300))
    best = min(_seconds(lambda: tau_bootstrap(x, y, 10_000)) for _ in range(3))
    assert best < 1.0


def _seconds(action):
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
