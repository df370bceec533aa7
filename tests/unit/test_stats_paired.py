"""Paired comparisons, Holm, detectable differences and equivalence against scipy, enumeration and arithmetic."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats as peer

from rewardgap import stats
from rewardgap.core.errors import ConfigError, ShapeError, UnknownNameError


def test_sign_flips_are_scipys_permutation_test():
    rng = np.random.default_rng(0)
    for values in (rng.normal(0.4, 1, 9), rng.integers(-2, 4, 8).astype(float)):
        want = peer.permutation_test(
            (values, np.zeros_like(values)),
            lambda a, b: abs(np.mean(a - b)),
            permutation_type="samples",
            n_resamples=np.inf,
            alternative="greater",
        ).pvalue
        assert stats.sign_flip_p(values) == pytest.approx(want, abs=1e-15)


def test_sign_flips_are_counted():
    values = np.array([0.1, 0.2, -0.3, 0.7])
    flipped = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((-1, 1), repeat=4)]
    assert stats.sign_flip_p(values) == np.mean(np.array(flipped) >= abs(values.sum()) - 1e-12)
    # All of one sign: only the observed flips and their mirror are as extreme, 2 of 2^5
    assert stats.sign_flip_p([1, 2, 3, 4, 5]) == 2 / 32
    assert stats.sign_flip_p([0.0, 0.0]) == 1.0


def test_drawn_sign_flips_are_near_the_count():
    values = np.random.default_rng(1).normal(0.35, 1, 13)
    signs = 1 - 2 * (np.arange(2**13)[:, None] >> np.arange(13) & 1)
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    assert stats.sign_flip_p(values, draws=20_000) == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))
    assert stats.sign_flip_p(np.ones(40), draws=99) == 0.01


def test_holm_is_the_definition():
    """Published arithmetic: sorted p times m, m−1, …, never falling. .01·4, .02·3=.06, .03·2=.06, .005·… reordered."""
    p = [0.01, 0.04, 0.03, 0.005]
    # sorted: .005·4=.02, .01·3=.03, .03·2=.06, .04·1=.04 → .06
    np.testing.assert_allclose(stats.holm(p), [0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert len(stats.holm([])) == 0
    with pytest.raises(ConfigError, match=r"p_values\[1\] is 1.5"):
        stats.holm([0.5, 1.5])
    with pytest.raises(ConfigError, match="nan"):
        stats.holm([np.nan])


def test_comparisons_are_paired_and_corrected_together():
    rng = np.random.default_rng(2)
    common = 10 * rng.standard_normal(30)
    scores = np.stack([common + shift + 0.3 * rng.standard_normal(30) for shift in (0.0, 0.0, 1.0)])
    made = stats.compare_deployments(scores, ["a", "b", "c"], resamples=2000)
    assert [(m.a, m.b) for m in made] == [("a", "b"), ("a", "c"), ("b", "c")]
    np.testing.assert_allclose(
        [m.difference for m in made], [np.mean(scores[i] - scores[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    )
    np.testing.assert_array_equal([m.p_holm for m in made], stats.holm([m.p_value for m in made]))
    # What users have in common is a hundred times what separates the methods, and cancels.
    assert made[1].high < 0 and made[1].p_holm < 0.01 and "is below" in made[1].reading
    assert made[0].low < 0 < made[0].high and "cannot be told from" in made[0].reading
    assert made[1].p_value == pytest.approx(stats.sign_flip_p(scores[0] - scores[2], draws=2000))


def test_the_interval_is_that_of_a_slow_loop_at_moved_percentiles():
    values = np.random.default_rng(3).exponential(1, 15)
    (found,) = stats.compare_deployments([values, np.zeros(15)], ["a", "b"], resamples=200_000)
    loop = values[np.random.default_rng(9).integers(0, 15, (200_000, 15))].mean(axis=1)
    tail = peer.norm.cdf(np.sqrt(15 / 14) * peer.t.ppf(0.025, 14))
    low, high = np.quantile(loop, [tail, 1 - tail])
    assert (found.low, found.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.012))
    plain = np.quantile(loop, [0.025, 0.975])
    assert plain[0] - found.low > 0.01 and found.high - plain[1] > 0.02


def test_one_is_compared_with_all_and_others_are_not():
    scores = np.random.default_rng(4).random((4, 20))
    made = stats.compare_deployments(scores, list("abcd"), against="c", resamples=200)
    assert [(m.a, m.b) for m in made] == [("a", "c"), ("b", "c"), ("d", "c")]
    with pytest.raises(UnknownNameError, match="unknown deployment 'e'"):
        stats.compare_deployments(scores, list("abcd"), against="e")


def test_each_pair_keeps_its_common_users():
    scores = np.random.default_rng(5).random((3, 14))
    scores[0, :4] = np.nan
    scores[1, 4:] = np.nan
    made = stats.compare_deployments(scores, list("abc"), resamples=200)
    assert [m.n_users for m in made] == [0, 10, 4]
    assert made[0].difference is None and "no user" in made[0].reading
    alone = stats.compare_deployments(scores[[0, 2]], list("ac"), resamples=200)[0]
    assert (made[1].low, made[1].high, made[1].p_value) == (alone.low, alone.high, alone.p_value)
    np.testing.assert_array_equal([m.p_holm for m in made[1:]], stats.holm([m.p_value for m in made[1:]]))


def test_one_user_gives_a_difference_and_no_interval():
    (found,) = stats.compare_deployments([[2.0], [1.0]], ["a", "b"])
    assert (found.difference, found.low, found.p_value, found.p_holm) == (1.0, None, None, None)
    assert "one user" in found.reading


def test_bad_comparisons():
    with pytest.raises(ShapeError, match="M = 3"):
        stats.compare_deployments(np.ones((2, 4)), list("abc"))
    with pytest.raises(ConfigError, match="one name"):
        stats.compare_deployments(np.ones((2, 4)), ["a", "a"])


# --- power


def test_the_factor_is_that_of_the_diagnostics_and_has_the_power():
    """A paired t test finds a difference of that size with about 80 %: the exact noncentral t."""
    for num_users in (10, 30, 200):
        factor = stats.detectable_factor(num_users)
        assert factor == pytest.approx(peer.t.ppf(0.975, num_users - 1) + peer.t.ppf(0.8, num_users - 1))
        beyond = peer.t.ppf(0.975, num_users - 1)
        assert peer.nct.sf(beyond, num_users - 1, factor) == pytest.approx(0.8, abs=0.02)


def test_detectable_difference_uses_the_spread_of_user_means():
    users = ["a", "a", "b", "c", "c", "c"]
    a, b = np.array([1.0, 3.0, 4.0, 0.0, 3.0, 0.0]), np.zeros(6)
    # user means 2, 4, 1: s = √(7/3), SE = s/√3
    found = stats.minimal_detectable_difference(a, b, users)
    assert found.standard_error == pytest.approx(np.sqrt(7 / 3) / np.sqrt(3))
    assert found.standard_error == pytest.approx(stats.clustered_standard_error(a - b, users))
    assert found.difference == pytest.approx(stats.detectable_factor(3) * found.standard_error)


def test_power_is_what_a_simulation_finds():
    rng = np.random.default_rng(6)
    num_users = 25
    shift = stats.detectable_factor(num_users) / np.sqrt(num_users)
    draws = rng.standard_normal((8000, num_users)) + shift
    assert np.mean(peer.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.025)


# --- equivalence


def test_equivalence_is_two_one_sided_t_tests():
    rng = np.random.default_rng(7)
    a, b = rng.normal(0.3, 1, 40), rng.normal(0.3, 1, 40)
    users = [f"u{i}" for i in range(40)]
    found = stats.equivalence(a, b, users, 0.5)
    lower = peer.ttest_rel(a, b - 0.5, alternative="greater").pvalue
    upper = peer.ttest_rel(a, b + 0.5, alternative="less").pvalue
    assert (found.p_lower, found.p_upper) == (pytest.approx(lower), pytest.approx(upper))
    assert found.p_value == max(found.p_lower, found.p_upper)
    interval = peer.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.equivalent == (interval.low > -0.5 and interval.high < 0.5)


def test_equivalence_reads_as_it_found():
    users = [f"u{i}" for i in range(12)]
    noise = np.random.default_rng(8).normal(0, 0.1, 12)
    noise -= noise.mean()
    zero = np.zeros(12)
    assert stats.equivalence(noise, zero, users, 0.5).reading.startswith("The two are as good")
    assert stats.equivalence(noise + 2, zero, users, 0.5).reading.startswith("The two differ by more")
    undecided = stats.equivalence(noise + 0.5, zero, users, 0.5)
    assert not undecided.equivalent and undecided.reading.startswith("It is not shown")


def test_equivalence_refuses_what_it_cannot_test():
    for margin in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="margin"):
            stats.equivalence([1, 2], [1, 1], ["a", "b"], margin)
    with pytest.raises(ConfigError, match="no spread"):
        stats.equivalence([1, 1], [1, 1], ["a", "b"], 0.1)
    with pytest.raises(ConfigError, match="no spread"):
        stats.minimal_detectable_difference([0.1, 0.3, 0.7], [0.0, 0.2, 0.6], ["a", "b", "c"])
    with pytest.raises(ConfigError, match="1 user"):
        stats.equivalence([1, 1], [1, 2], ["a", "a"], 0.1)
    with pytest.raises(ShapeError, match="the same examples"):
        stats.minimal_detectable_difference([1], [1, 2], ["a"])
    with pytest.raises(ConfigError, match="power"):
        stats.detectable_factor(10, power=0.3)
