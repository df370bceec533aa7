"""Crossover, meta-analysis and effects of users: planted truths, scipy and slow twins."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as peer

from rewardgap import stats
from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.stats.crossover import isotonic_rows

SCALES = [0.5, 1.5, 3.0, 7.0]


def curves(gaps, num_users=40, noise=0.1, seed=0):
    """First and second curve of users whose mean difference is exactly `gaps`."""
    rng = np.random.default_rng(seed)
    extra = noise * rng.standard_normal((len(gaps), num_users))
    second = rng.standard_normal((len(gaps), num_users))
    return second + np.array(gaps)[:, None] + extra - extra.mean(axis=1, keepdims=True), second


def test_a_known_crossover_is_found():
    # D = log x − log 2 is linear in log x, so interpolation finds 2 exactly.
    first, second = curves(np.log(SCALES) - np.log(2.0))
    found = stats.crossover(SCALES, first, second, 2000)
    assert found.where == "inside" and found.at == pytest.approx(2.0)
    assert found.low < 2.0 < found.high and found.high - found.low < 0.4
    assert (found.share_below, found.share_above) == (0.0, 0.0)
    np.testing.assert_allclose(found.differences, np.log(SCALES) - np.log(2.0))
    assert "overtakes the second at 2" in found.reading


@pytest.mark.parametrize(
    ("gaps", "where", "words"),
    [([-4, -3, -2, -1], "above", "not ahead up to"), ([1, 2, 3, 4], "below", "ahead from the smallest")],
)
def test_outside_the_range_is_said(gaps, where, words):
    found = stats.crossover(SCALES, *curves(gaps), 500)
    assert (found.where, found.at, found.low, found.high) == (where, None, None, None)
    assert (found.low_where, found.high_where) == (where, where)
    assert words in found.reading and found.reading.startswith("Outside the range")


def test_an_interval_may_end_outside():
    """Just ahead at the last place: some resamples are not, so the upper end lies above the range."""
    found = stats.crossover(SCALES, *curves([-3, -2, -1, 0.02], noise=0.2), 2000)
    assert found.where == "inside" and found.high is None and found.high_where == "above"
    # The mean of the last difference over resamples is .02 with SE .2/√40 = .032: below zero with Φ(−.63) = .26
    assert found.share_above == pytest.approx(peer.norm.cdf(-0.02 / (0.2 / np.sqrt(40))), abs=0.06)
    assert "above the range" in found.reading


def test_monotone_takes_a_dip_for_noise_and_the_other_way_waits_for_its_end():
    gaps = [-1.0, 1.0, -0.5, 2.0]
    first, second = curves(gaps, noise=0.0)
    # Monotone: .25 and .25 in the middle; −1 to .25 crosses at a share 1/1.25 of the way from 0.5 to 1.5.
    smooth = stats.crossover(SCALES, first, second, 10)
    assert smooth.at == pytest.approx(0.5 * 3.0 ** (1 / 1.25))
    raw = stats.crossover(SCALES, first, second, 10, monotone=False)
    assert raw.at == pytest.approx(3.0 * (7.0 / 3.0) ** (0.5 / 2.5))


def test_isotonic_rows_are_scipys():
    rows = np.random.default_rng(1).standard_normal((50, 7))
    for row, fit in zip(rows, isotonic_rows(rows), strict=True):
        np.testing.assert_allclose(fit, optimize.isotonic_regression(row).x, atol=1e-12)


def test_crossover_interval_covers_what_was_planted():
    rng = np.random.default_rng(2)
    truth, held = 2.0, 0
    for seed in range(120):
        gaps = np.log(SCALES)[:, None] - np.log(truth) + rng.standard_normal((4, 30)) + rng.standard_normal((1, 30))
        found = stats.crossover(SCALES, gaps, np.zeros((4, 30)), 300, seed)
        low = -np.inf if found.low_where == "below" else found.low if found.low is not None else np.inf
        high = np.inf if found.high_where == "above" else found.high if found.high is not None else -np.inf
        held += low <= truth <= high
    assert held >= 104


def test_crossover_refuses():
    ok = np.ones((2, 3))
    for x in ([0, 2], [2, 1], [1, 1], [1]):
        with pytest.raises(ConfigError, match="x is"):
            stats.crossover(x, ok[: len(x)], ok[: len(x)])
    with pytest.raises(ShapeError, match="K = 3"):
        stats.crossover([1, 2, 3], ok, ok)
    with pytest.raises(ConfigError, match="no user"):
        stats.crossover([1, 2], [[np.nan, 1], [1, np.nan]], ok[:, :2])
    single = stats.crossover([1, 2], [[0.0], [2.0]], [[1.0], [1.0]])
    assert single.at == pytest.approx(np.sqrt(2)) and single.low is None and "one user" in single.reading


# --- meta-analysis


def test_equal_taus_return_themselves():
    found = stats.meta_analysis([0.4] * 5, [9] * 5)
    assert found.tau == pytest.approx(0.4) and found.between == 0.0 and found.i_squared == 0.0
    assert found.q == pytest.approx(0.0)
    # Not narrower than t·SE with fixed weights: SE = √(.437/5/5)
    reach = peer.t.ppf(0.975, 4) * np.sqrt(0.437 / 5 / 5)
    assert (found.low, found.high) == (
        pytest.approx(np.tanh(np.arctanh(0.4) - reach)),
        pytest.approx(np.tanh(np.arctanh(0.4) + reach)),
    )


def test_dersimonian_laird_by_hand():
    """z = .1, .5, .9 with variances .01, .02, .01: w = 100, 50, 100; mean .5; Q = 32; c = 250 − 22500/250 = 160."""
    z, variances = np.array([0.1, 0.5, 0.9]), np.array([0.01, 0.02, 0.01])
    taus = np.tanh(z)
    found = stats.meta_analysis(taus, standard_errors=np.sqrt(variances) * (1 - taus**2))
    assert found.q == pytest.approx(32)
    assert found.between == pytest.approx(np.sqrt((32 - 2) / 160))
    assert found.i_squared == pytest.approx(1 - 2 / 32)
    assert found.tau == pytest.approx(np.tanh(0.5))
    weights = 1 / (variances + 30 / 160)
    factor = (weights * (z - 0.5) ** 2).sum() / 2
    reach = peer.t.ppf(0.975, 2) * np.sqrt(max(1, factor) / weights.sum())
    assert found.high == pytest.approx(np.tanh(0.5 + reach))
    further = peer.t.ppf(0.975, 1) * np.sqrt(max(1, factor) / weights.sum() + 30 / 160)
    assert found.predicted_low == pytest.approx(np.tanh(0.5 - further))


@pytest.mark.parametrize("seed", range(5))
def test_reml_maximises_the_restricted_likelihood(seed):
    rng = np.random.default_rng(seed)
    z, variances = rng.normal(0.3, 0.4, 7), rng.uniform(0.02, 0.1, 7)

    def loss(between):
        w = 1 / (variances + between)
        mean = w @ z / w.sum()
        return 0.5 * (np.log(1 / w).sum() + np.log(w.sum()) + w @ (z - mean) ** 2)

    best = optimize.minimize_scalar(loss, bounds=(0, 5), method="bounded", options={"xatol": 1e-10}).x
    taus = np.tanh(z)
    found = stats.meta_analysis(taus, standard_errors=np.sqrt(variances) * (1 - taus**2), method="reml")
    assert found.between**2 == pytest.approx(best, abs=1e-6)


def test_fewer_than_three_taus_have_no_interval():
    for taus in ([0.3], [0.3, 0.5]):
        found = stats.meta_analysis(taus, [9] * len(taus))
        assert found.low is None and found.predicted_low is None and found.between is None
        assert found.tau == pytest.approx(np.tanh(np.mean(np.arctanh(taus)))) and "needs 3" in found.reading


def test_meta_analysis_refuses():
    with pytest.raises(ConfigError, match=r"taus\[1\] is 1.0"):
        stats.meta_analysis([0.1, 1.0], [9, 9])
    with pytest.raises(ConfigError, match=r"taus\[0\] is nan"):
        stats.meta_analysis([np.nan, 0.1], [9, 9])
    for kinds in ({}, {"num_methods": [9], "standard_errors": [0.1]}):
        with pytest.raises(ConfigError, match="either"):
            stats.meta_analysis([0.1], **kinds)
    with pytest.raises(ConfigError, match="5 methods or more"):
        stats.meta_analysis([0.1], [4])
    with pytest.raises(ConfigError, match="not above zero"):
        stats.meta_analysis([0.1], standard_errors=[0.0])
    with pytest.raises(ShapeError, match="2 taus"):
        stats.meta_analysis([0.1, 0.2], [9])


# --- effects of users


def test_user_effects_by_hand():
    """Three users, 2, 2 and 4 examples; means 1, 3, −1.

    Squares within: 2·1², 2·1², 4·1² → σ² = 8 / (1+1+3) = 1.6. var(means) = 4; mean(1/n) = (.5+.5+.25)/3 = 5/12.
    ω² = 4 − 1.6·5/12 = 10/3. The first user keeps ω²/(ω² + .8) of its distance to the mean, 1.
    """
    values = [0.0, 2.0, 2.0, 4.0, -2.0, 0.0, -2.0, 0.0]
    found = stats.user_effects(values, list("aabbcccc"), 50)
    assert found.mean == pytest.approx(1.0) and found.noise == pytest.approx(np.sqrt(1.6))
    assert found.between == pytest.approx(np.sqrt(10 / 3))
    assert found.share_positive == pytest.approx(peer.norm.cdf(1 / np.sqrt(10 / 3)))
    assert found.share_measured == pytest.approx(2 / 3)
    keep = (10 / 3) / (10 / 3 + 0.8)
    assert found.users[1].shrunken == pytest.approx(1 + keep * 2)
    assert found.users[1].p_positive == pytest.approx(peer.norm.cdf((1 + keep * 2) / np.sqrt(keep * 0.8)))
    assert [u.n_examples for u in found.users] == [2, 2, 4]


def planted(seed, num_users=80, per_user=6, mean=0.3, between=0.5, noise=2.0):
    rng = np.random.default_rng(seed)
    effects = rng.normal(mean, between, num_users)
    users = np.repeat([f"u{i:03}" for i in range(num_users)], per_user)
    return effects, np.repeat(effects, per_user) + noise * rng.standard_normal(len(users)), users


def test_the_planted_share_is_covered_and_the_measured_share_is_not():
    truth = peer.norm.cdf(0.3 / 0.5)
    found = [stats.user_effects(*planted(seed)[1:], 200, seed) for seed in range(60)]
    assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.85
    assert np.mean([f.share_measured for f in found]) < truth - 0.03


def test_shrunken_effects_are_nearer_to_the_truth():
    effects, values, users = planted(1)
    found = stats.user_effects(values, users, 50)
    for_user = np.array([[u.measured, u.shrunken] for u in found.users])
    errors = np.mean((for_user - effects[:, None]) ** 2, axis=0)
    assert errors[1] < 0.6 * errors[0]


def test_users_alike_have_no_spread():
    values = np.tile([-1.0, 1.5], 20)
    found = stats.user_effects(values, np.repeat([f"u{i}" for i in range(20)], 2), 50)
    assert found.between == 0.0 and found.share_positive == 1.0 and "do not differ more than noise" in found.reading
    assert {round(u.shrunken, 12) for u in found.users} == {0.25}


def test_order_and_names_of_users_change_nothing():
    _, values, users = planted(2, num_users=10)
    order = np.random.default_rng(0).permutation(len(values))
    one, other = (stats.user_effects(v, u, 100) for v, u in ((values, users), (values[order], users[order])))
    assert (one.low, one.high) == (pytest.approx(other.low), pytest.approx(other.high))
    renamed = stats.user_effects(values, [f"z{user[::-1]}" for user in users], 100)
    assert (renamed.low, renamed.high) == (pytest.approx(one.low), pytest.approx(one.high))


def test_effects_need_repeats():
    with pytest.raises(ConfigError, match="no user with two examples"):
        stats.user_effects([1.0, 2.0], ["a", "b"])
    with pytest.raises(ConfigError, match="fewer than two users"):
        stats.user_effects([1.0, 2.0], ["a", "a"])


def test_wins_by_support():
    values = [1.0, 0.0, -1.0, 1.0, 2.0, np.nan]
    rows = stats.wins_by_support(values, ["a", "b", "c", "c", "a", "b"], [4, 4, 4, 4, 8, 16], 100)
    assert [(r.support_size, r.wins, r.ties, r.losses) for r in rows] == [(4, 1, 2, 0), (8, 1, 0, 0)]
    assert rows[0].difference.value == pytest.approx(1 / 3) and rows[0].difference.n_users == 3
    assert rows[1].difference.low is None and "one user" in str(rows[1].difference.reason)
    assert rows[0].reading == "With 4 support pairs it is better for 1 users, worse for 0, the same for 2."
    with pytest.raises(ShapeError, match="support_sizes"):
        stats.wins_by_support([1.0], ["a"], [1, 2])
