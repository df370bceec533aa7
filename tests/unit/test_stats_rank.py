"""Rank correlations, reliability and true scores against scipy, slow loops, closed forms and planted truths."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats as peer

from rewardgap import stats
from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.stats.matrix import complete
from rewardgap.stats.true_scores import _contrasts, _noise, _posterior_draws, _weights


def world(num_methods, num_users, reliability, seed, correlation=1.0):
    """Two stages whose method scores have the stated reliability in expectation."""
    rng = np.random.default_rng(seed)
    x, own = rng.standard_normal((2, num_methods))
    y = correlation * x + np.sqrt(1 - correlation**2) * own
    size = np.sqrt((1 - reliability) / reliability * num_users)
    noise = size * rng.standard_normal((2, num_methods, num_users)) + rng.standard_normal((2, 1, num_users))
    return x, y, x[:, None] + noise[0], y[:, None] + noise[1]


# --- tidy tables


def test_a_tidy_table_becomes_user_means():
    got = stats.user_matrix(["b", "b", "a", "b", "a"], ["v", "u", "u", "v", "v"], [1.0, 0.0, 0.5, 0.0, np.nan])
    assert (got.methods, got.users, got.n_missing) == (("b", "a"), ("u", "v"), 1)
    np.testing.assert_array_equal(got.values, [[0.0, 0.5], [0.5, np.nan]])


def test_orders_are_kept_and_must_hold_every_name():
    got = stats.user_matrix(["b"], ["u"], [1.0], method_order=["a", "b"], user_order=["w", "u"])
    np.testing.assert_array_equal(got.values, [[np.nan, np.nan], [np.nan, 1.0]])
    with pytest.raises(ConfigError, match="method_order lacks 'b'"):
        stats.user_matrix(["b"], ["u"], [1.0], method_order=["a"])
    with pytest.raises(ConfigError, match="user_order names one twice"):
        stats.user_matrix(["b"], ["u"], [1.0], user_order=["u", "u"])
    with pytest.raises(ShapeError, match="methods has 2 rows and users 1"):
        stats.user_matrix(["a", "b"], ["u"], [1.0])


def test_complete_is_blind_to_the_order_of_users():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 4, 9))
    x[2, 3] = np.nan
    order = rng.permutation(9)
    for one, other in zip(complete([x, y]).stages, complete([x[:, order], y[:, order]]).stages, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.shape == (4, 8)


# --- Spearman


def test_spearman_is_scipys_with_ties():
    rng = np.random.default_rng(1)
    for n in (3, 7, 20):
        a, b = rng.integers(0, 5, (2, n))
        np.testing.assert_allclose(stats.spearman(a, b), peer.spearmanr(a, b).statistic, atol=1e-14)
    assert np.isnan(stats.spearman([1, 1, 1], [1, 2, 3])) and np.isnan(stats.spearman([1], [2]))
    assert np.isnan(stats.spearman([1, np.nan], [1, 2]))


def test_exact_spearman_p_is_scipys_permutation_test():
    rng = np.random.default_rng(2)
    for a, b in ((rng.random(5), rng.random(5)), (rng.integers(0, 3, 6), rng.integers(0, 4, 6))):
        found = peer.permutation_test(
            (a,), lambda side, b=b: peer.spearmanr(side, b).statistic, permutation_type="pairings", n_resamples=np.inf
        )
        # scipy doubles the smaller tail; ours counts both, so it is compared with the count over scipy's own values.
        want = np.mean(np.abs(found.null_distribution) >= abs(found.statistic) - 1e-12)
        assert stats.spearman_permutation_p(a, b) == pytest.approx(want, abs=1e-15)


def test_exact_spearman_p_counts_every_relabelling():
    a, b = np.array([1.0, 1.0, 2.0, 5.0, 3.0]), np.array([0.0, 3.0, 3.0, 4.0, 1.0])
    values = [abs(peer.spearmanr(a, b[list(order)]).statistic) for order in permutations(range(5))]
    want = np.mean(np.array(values) >= abs(peer.spearmanr(a, b).statistic) - 1e-12)
    assert stats.spearman_permutation_p(a, b) == want


def test_drawn_spearman_p_is_near_the_exact_one():
    rng = np.random.default_rng(3)
    a = rng.random(8)
    b = a + rng.random(8)
    exact = stats.spearman_permutation_p(a, b)
    # One more pair, tied with nothing, at the far end of both: nine methods are drawn, not counted.
    drawn = stats.spearman_permutation_p([*a, 9.0], [*b, 9.0], draws=4000, seed=1)
    counted = np.mean(
        [
            abs(peer.spearmanr([*a, 9.0], np.array([*b, 9.0])[rng.permutation(9)]).statistic)
            >= stats.spearman([*a, 9.0], [*b, 9.0]) - 1e-12
            for _ in range(500)
        ]
    )
    assert drawn == pytest.approx(counted, abs=0.03)
    assert 0 < drawn < exact


# --- reliability


def test_reliability_is_the_loop_over_halves():
    """Four users have three ways to be halved; each is as likely, so many splits average to the loop."""
    x = np.random.default_rng(4).random((5, 4)) + np.arange(5)[:, None] * 0.2
    loop = np.mean(
        [np.corrcoef(x[:, [0, i]].mean(1), x[:, [j for j in (1, 2, 3) if j != i]].mean(1))[0, 1] for i in (1, 2, 3)]
    )
    found = stats.split_half_reliability(x, splits=4000)
    assert found.value == pytest.approx(2 * loop / (1 + loop), abs=0.01)
    assert (found.n_methods, found.n_users, found.n_splits) == (5, 4, 4000)


def test_reliability_finds_the_planted_one():
    """Of many worlds at .8 the mean is near it: share of variance between methods that is not noise."""
    found = [stats.split_half_reliability(world(32, 40, 0.8, seed)[2], splits=40).value for seed in range(60)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)


def test_what_all_users_share_has_reliability_one():
    """A user who is higher or lower on all methods alike is no noise between methods."""
    x = np.arange(4)[:, None] + np.random.default_rng(5).random((1, 10))
    assert stats.split_half_reliability(x).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.ones((4, 6)), "tie in one half"),
        (np.full((4, 6), 0.1), "tie in one half"),
        (np.random.default_rng(0).random((2, 6)), "fewer than three methods"),
        (np.random.default_rng(0).random((4, 1)), "fewer than two users"),
        (np.array([[1.0, -1], [2, -2], [3, -3], [4, -4]]), "contradict"),
    ],
)
def test_undefined_reliability_says_why(scores, reason):
    found = stats.split_half_reliability(scores)
    assert found.value is None and reason in (found.reason or "") and reason in found.reading


def test_identification_follows_both_thresholds():
    def rated(value):
        return stats.Reliability(value, 9, 50, 100, None if value is not None else "why")

    assert stats.not_identified(stats.MIN_METHODS, rated(stats.MIN_RELIABILITY), rated(0.99)) is None
    assert "5 methods" in str(stats.not_identified(stats.MIN_METHODS - 1, rated(0.99), rated(0.99)))
    assert "0.79" in str(stats.not_identified(9, rated(0.99), rated(0.79)))
    assert "why" in str(stats.not_identified(9, rated(0.99), rated(None)))


# --- true scores


def test_contrasts_are_orthonormal_and_sum_to_zero():
    c = _contrasts(7)
    np.testing.assert_allclose(c.T @ c, np.eye(6), atol=1e-14)
    np.testing.assert_allclose(c.sum(axis=0), 0, atol=1e-14)


def test_one_stage_is_the_closed_form_of_shrinkage():
    """Noise alike for all methods: the mean draw is s·z with s averaged over the posterior of the variance.

    With many users the noise covariance is v·I, F = M − 1 contrasts of mean square S, and the density of T = σ² + v is
    T^(−F/2−1) exp(−F S / 2T) above v; the factor is 1 − v·E[1/T].
    """
    rng = np.random.default_rng(6)
    num_methods, num_users = 8, 4000
    noise = rng.standard_normal((num_methods, num_users))
    noise -= noise.mean(axis=1, keepdims=True)
    # Whitened exactly, so that the estimated covariance is the identity.
    noise = np.linalg.inv(np.linalg.cholesky(np.cov(noise))) @ noise
    true = np.linspace(-1, 1, num_methods)
    v = 0.2
    x = true[:, None] + np.sqrt(v * num_users) * noise
    freedom, scatter = num_methods - 1, np.sum((true - true.mean()) ** 2) / (num_methods - 1)
    total = np.geomspace(v, 1000, 400_001)
    density = total ** (-freedom / 2 - 1) * np.exp(-freedom * scatter / 2 / total)
    want = 1 - v * np.trapezoid(density / total, total) / np.trapezoid(density, total)
    draws = stats.true_scores([x], 40_000, seed=0).draws[:, 0]
    mean = draws.mean(axis=0)
    assert (mean - mean.mean()) @ true / (true @ true) == pytest.approx(want, abs=0.01)
    np.testing.assert_allclose(mean - mean.mean(), want * true, atol=0.03)
    # Law of total variance over T: v·E[1 − v/T] for each of F contrasts, and z² times the variance of v/T.
    spread = v**2 * np.trapezoid(density / total**2, total) / np.trapezoid(density, total) - (1 - want) ** 2
    centered = draws - draws.mean(axis=1, keepdims=True)
    scattered = np.sum(centered.var(axis=0))
    assert scattered == pytest.approx(freedom * v * want + (true @ true) * spread, rel=0.02)


def test_noise_is_the_covariance_of_user_means_drawn_to_its_average():
    """Ledoit and Wolf's weight in loops: Σ var of an entry over Σ squared distance of entries from the target."""
    rng = np.random.default_rng(18)
    residual = rng.standard_normal((2, 3, 18)) * rng.uniform(0.5, 2, (2, 3, 1))
    residual -= residual.mean(axis=2, keepdims=True)
    x = residual.reshape(6, 18)
    products = x @ x.T / 18
    target = np.zeros((6, 6))
    for a in range(2):
        for b in range(2):
            mean = np.mean([products[3 * a + f, 3 * b + f] for f in range(3)])
            for f in range(3):
                target[3 * a + f, 3 * b + f] = mean
    error = sum(np.mean((x[i] * x[j] - products[i, j]) ** 2) / 18 for i in range(6) for j in range(6))
    weight = error / np.sum((products - target) ** 2)
    assert 0.1 < weight < 0.9
    noise, levels = _noise(residual)
    np.testing.assert_allclose(noise, ((1 - weight) * products + weight * target) / 17, atol=1e-9)
    np.testing.assert_allclose(levels, [target[0, 0] / 17, target[3, 3] / 17], atol=1e-9)


def test_noise_of_many_users_is_their_covariance():
    rng = np.random.default_rng(21)
    root = rng.standard_normal((4, 4))
    x = root @ rng.standard_normal((4, 200_000))
    x -= x.mean(axis=1, keepdims=True)
    noise, _ = _noise(x.reshape(2, 2, -1))
    np.testing.assert_allclose(noise * 200_000, np.cov(x), atol=0.02)


def test_two_stages_are_weighed_by_the_normal_likelihood():
    """The log weight of a grid point is the density of the data under Σ⊗I + V, up to a constant."""
    rng = np.random.default_rng(19)
    root = rng.standard_normal((6, 6))
    noise, seen = root @ root.T, rng.standard_normal((2, 3))
    prior = np.array([[[1.0, r], [r, 2.0]] for r in (-1.0, 0.0, 0.7, np.sqrt(2))])
    want = [
        peer.multivariate_normal(np.zeros(6), np.kron(block, np.eye(3)) + noise).logpdf(seen.ravel()) for block in prior
    ]
    got = np.log(_weights(prior, noise, seen, np.zeros(4)))
    np.testing.assert_allclose(got - got[0], np.array(want) - want[0], atol=1e-8)


def test_posterior_draws_have_the_posterior_mean_and_covariance():
    """For one prior: mean K(K + V)⁻¹z and covariance K − K(K + V)⁻¹K, K = Σ⊗I; noise related between the stages."""
    rng = np.random.default_rng(20)
    root = rng.standard_normal((4, 4))
    noise, seen = root @ root.T + 0.1 * np.eye(4), rng.standard_normal((2, 2))
    block = np.array([[1.0, 0.6], [0.6, 2.0]])
    draws = _posterior_draws(block[None], noise, seen, np.zeros(200_000, dtype=np.intp), rng).reshape(-1, 4)
    full = np.kron(block, np.eye(2))
    gain = full @ np.linalg.inv(full + noise)
    np.testing.assert_allclose(draws.mean(axis=0), gain @ seen.ravel(), atol=0.015)
    np.testing.assert_allclose(np.cov(draws.T), full - gain @ full, atol=0.02)


def test_without_noise_draws_are_the_scores():
    x, y, _, _ = world(6, 2, 0.5, 7, correlation=0.3)
    got = stats.true_scores([np.tile(x[:, None], 5), np.tile(y[:, None], 5)], 50)
    for stage, true in enumerate((x, y)):
        shifted = got.draws[:, stage] - got.draws[:, stage].mean(axis=1, keepdims=True)
        np.testing.assert_allclose(shifted, np.tile(true - true.mean(), (50, 1)), atol=1e-3)


def test_noise_that_all_methods_share_is_no_noise():
    x = np.arange(5.0)[:, None] + 100 * np.random.default_rng(8).standard_normal((1, 30))
    draws = stats.true_scores([x], 100).draws[:, 0]
    np.testing.assert_allclose(np.diff(draws, axis=1), 1.0, atol=1e-3)


def test_scale_and_shift_of_a_stage_do_not_change_its_order():
    _, _, x, y = world(7, 40, 0.8, 9, correlation=0.6)
    one, other = stats.true_scores([x, y], 500).draws, stats.true_scores([1e6 * x - 3, 1e-3 * y + 8], 500).draws
    np.testing.assert_allclose(
        other - other.mean(axis=2, keepdims=True),
        (one - one.mean(axis=2, keepdims=True)) * np.array([1e6, 1e-3])[:, None],
        rtol=1e-5,
        atol=1e-9,
    )


def test_true_scores_refuse_what_they_cannot_use():
    ok = np.random.default_rng(0).random((3, 4))
    with pytest.raises(ConfigError, match="one or two stages"):
        stats.true_scores([ok, ok, ok])
    with pytest.raises(ShapeError, match="at least 2 methods"):
        stats.true_scores([ok[:1]])
    with pytest.raises(ConfigError, match="NaN"):
        stats.true_scores([np.where(ok > 0.5, np.nan, ok)])


# --- the whole


def test_rank_correlation_agrees_with_its_parts():
    _, _, x, y = world(9, 50, 0.95, 10, correlation=0.5)
    found = stats.rank_correlation(x, y, 500, seed=3)
    means = x.mean(axis=1), y.mean(axis=1)
    naive = stats.tau_bootstrap(x, y, 500, seed=3)
    assert found.tau == pytest.approx(peer.kendalltau(*means).statistic)
    assert found.spearman == pytest.approx(peer.spearmanr(*means).statistic)
    assert (found.naive_low, found.naive_high, found.p_value) == (naive.low, naive.high, naive.p_value)
    assert found.leave_one_out == stats.leave_one_out_tau(*means)
    rx, ry = found.reliability_x.value, found.reliability_y.value
    assert found.spearman_disattenuated == pytest.approx(found.spearman / np.sqrt(rx * ry))
    assert found.identified and found.low <= found.corrected <= found.high
    assert found.population_low <= found.population <= found.population_high
    assert "Tau of these 9 methods" in found.reading and "\n" not in found.reading


def test_spearman_interval_is_that_of_a_slow_loop():
    _, _, x, y = world(7, 30, 0.8, 11, correlation=0.5)
    found = stats.rank_correlation(x, y, 3000)
    rng = np.random.default_rng(1)
    loop = []
    for _ in range(800):
        users = rng.integers(0, 30, 30)
        loop.append(peer.spearmanr(x[:, users].mean(1), y[:, users].mean(1)).statistic)
    low, high = np.quantile(loop, [0.025, 0.975])
    assert (found.spearman_low, found.spearman_high) == (pytest.approx(low, abs=0.08), pytest.approx(high, abs=0.08))


def test_equal_truths_are_recovered_that_the_naive_interval_misses():
    """Two stages with the same true order, noisy: measured tau is far below 1, and its resamples further."""
    _, _, x, y = world(16, 60, 0.85, 12)
    found = stats.rank_correlation(x, y, 1000)
    assert found.naive_high < 1.0 == found.high
    assert found.corrected > found.tau


def test_a_stage_against_itself_is_one():
    _, _, x, _ = world(8, 40, 0.9, 13)
    found = stats.rank_correlation(x, x, 300)
    assert (found.tau, found.low, found.corrected, found.high, found.population_low) == (1.0, 1.0, 1.0, 1.0, 1.0)
    assert stats.rank_correlation(x, -x, 300).high == -1.0


def test_reversing_one_stage_mirrors_the_interval():
    _, _, x, y = world(9, 60, 0.95, 14, correlation=0.7)
    one, other = stats.rank_correlation(x, y, 4000), stats.rank_correlation(x, -y, 4000)
    assert (other.low, other.high) == (pytest.approx(-one.high, abs=0.06), pytest.approx(-one.low, abs=0.06))


def test_the_order_of_users_has_no_say():
    _, _, x, y = world(7, 30, 0.95, 15, correlation=0.5)
    order = np.random.default_rng(0).permutation(30)
    assert stats.rank_correlation(x, y, 200) == stats.rank_correlation(x[:, order], y[:, order], 200)


@pytest.mark.parametrize(("num_methods", "reliability", "why"), [(5, 0.95, "5 methods"), (9, 0.3, "below 0.8")])
def test_what_is_not_identified_is_withheld(num_methods, reliability, why):
    _, _, x, y = world(num_methods, 40, reliability, 16, correlation=0.5)
    found = stats.rank_correlation(x, y, 200)
    assert not found.identified and found.tau is not None and found.naive_low is not None
    assert (found.low, found.high, found.population, found.population_low) == (None, None, None, None)
    assert str(found.reason).startswith("not identified") and why in str(found.reason)
    assert "not identified" in found.reading


def test_ties_and_missing_values():
    _, _, x, y = world(6, 20, 0.95, 17)
    x[0, 3] = y[4, 5] = np.nan
    found = stats.rank_correlation(x, y, 100)
    keep = [u for u in range(20) if u not in (3, 5)]
    assert (found.n_users, found.n_dropped_users) == (18, 2)
    assert found.tau == stats.rank_correlation(x[:, keep], y[:, keep], 100).tau
    tied = stats.rank_correlation(np.ones((6, 9)), np.random.default_rng(0).random((6, 9)), 50)
    assert tied.tau is None and "all methods tie" in tied.reading


def test_arguments_are_checked():
    x = np.ones((3, 4))
    with pytest.raises(ShapeError, match=r"\(3, 4\) and \(3, 5\)"):
        stats.rank_correlation(x, np.ones((3, 5)))
    with pytest.raises(ConfigError, match="resamples is 0"):
        stats.rank_correlation(x, x, 0)
    with pytest.raises(ConfigError, match="splits is 0"):
        stats.split_half_reliability(x, 0)
