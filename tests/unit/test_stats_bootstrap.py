"""User-clustered means and intervals: arithmetic, missing values, a slow twin, coverage."""

from __future__ import annotations

import time

import numpy as np
import pytest

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.stats.bootstrap import NO_VALUES, ONE_USER, Estimate, clustered_mean, paired_difference
from rewardgap.stats.clustered import cluster_partition, clustered_standard_error

NAN = float("nan")


def test_macro_and_micro_by_hand():
    values, users = [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]
    assert clustered_mean(values, users).value == (1 + 0) / 2
    assert clustered_mean(values, users, micro=True).value == 3 / 4


def test_missing_is_dropped_and_counted_never_zero():
    got = clustered_mean([1.0, NAN, 0.5, NAN], ["a", "a", "b", "c"])
    assert got.value == (1.0 + 0.5) / 2
    assert (got.n_users, got.n_examples, got.n_missing) == (2, 2, 2)


@pytest.mark.parametrize(("values", "missing"), [([], 0), ([NAN, NAN], 2)])
def test_nothing_is_none_and_not_zero(values, missing):
    assert clustered_mean(values, ["a", "b"][: len(values)]) == Estimate(None, None, None, 0, 0, missing, NO_VALUES)


def test_one_user_has_no_interval_and_says_so():
    got = clustered_mean([1.0, 0.0], ["a", "a"])
    assert (got.value, got.low, got.high, got.reason) == (0.5, None, None, ONE_USER)


def test_constant_values_have_a_point_interval():
    got = clustered_mean([0.7] * 6, list("aabbcc"))
    assert (got.value, got.low, got.high) == (pytest.approx(0.7), pytest.approx(0.7), pytest.approx(0.7))


def test_seed_decides():
    rng = np.random.default_rng(0)
    values, users = rng.random(60), [f"u{i}" for i in rng.integers(0, 9, 60)]
    assert clustered_mean(values, users, seed=3) == clustered_mean(values, users, seed=3)
    assert clustered_mean(values, users, seed=3).low != clustered_mean(values, users, seed=4).low


def slow_draws(values, users, resamples, seed, micro, within):
    """The definition as two nested loops."""
    rng = np.random.default_rng(seed)
    groups = [values[users == user] for user in np.unique(users)]
    draws = []
    for _ in range(resamples):
        blocks = [groups[i] for i in rng.integers(0, len(groups), len(groups))]
        if within:
            blocks = [block[rng.integers(0, len(block), len(block))] for block in blocks]
        draws.append(np.concatenate(blocks).mean() if micro else np.mean([block.mean() for block in blocks]))
    return np.array(draws)


@pytest.mark.parametrize("micro", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_interval_is_that_of_the_slow_loop(micro, within):
    rng = np.random.default_rng(1)
    users = np.repeat([f"u{i}" for i in range(12)], [1, 1, 2, 2, 2, 3, 3, 5, 8, 8, 9, 13])
    values = rng.normal(size=len(users)) + np.repeat(rng.normal(size=12), [1, 1, 2, 2, 2, 3, 3, 5, 8, 8, 9, 13])
    fast = clustered_mean(values, users, 20_000, seed=2, micro=micro, within=within)
    slow = slow_draws(values, users, 4000, 3, micro, within)
    low, high = np.quantile(slow, [0.025, 0.975])
    assert (fast.low, fast.high) == (pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.06))


def test_resampled_means_have_the_moments_of_the_two_stages():
    """Var = s²(user means)/U + Σ_u s²_u/n_u / U², with population variances; both terms written out."""
    from rewardgap.stats.bootstrap import _canonical, _resampled_means
    from rewardgap.stats.clustered import scored_rows

    rng = np.random.default_rng(4)
    sizes = [2, 2, 4, 4, 7]
    values = rng.normal(size=sum(sizes))
    users = np.repeat(list("abcde"), sizes)
    flat, counts = _canonical(scored_rows(values, users))
    draws = _resampled_means(flat, counts, 60_000, 0, micro=False, within=True)
    groups = np.split(values, np.cumsum(sizes)[:-1])
    means = np.array([group.mean() for group in groups])
    variance = means.var() / 5 + np.sum([group.var() / len(group) for group in groups]) / 25
    assert draws.mean() == pytest.approx(means.mean(), abs=4 * np.sqrt(variance / 60_000))
    assert draws.var() == pytest.approx(variance, rel=0.03)


def test_chunks_do_not_change_the_spread(monkeypatch):
    rng = np.random.default_rng(5)
    values, users = rng.random(200), np.repeat([f"u{i}" for i in range(20)], 10)
    whole = clustered_mean(values, users, 5000)
    monkeypatch.setattr("rewardgap.stats.bootstrap._CHUNK_DRAWS", 1000)
    monkeypatch.setattr("rewardgap.stats.bootstrap._KEPT_DRAWS", 0)
    parts = clustered_mean(values, users, 5000)
    assert (parts.low, parts.high) == (pytest.approx(whole.low, abs=0.01), pytest.approx(whole.high, abs=0.01))


def test_paired_difference_by_hand():
    got = paired_difference([1.0, 0.5, NAN, 1.0], [0.0, 0.5, 1.0, NAN], ["a", "b", "b", "c"])
    assert got.value == ((1.0 - 0.0) + (0.5 - 0.5)) / 2
    assert (got.n_users, got.n_examples, got.n_missing) == (2, 2, 2)


def test_pairing_removes_what_both_sides_share():
    """A common user effect leaves the difference alone and would widen two separate intervals."""
    rng = np.random.default_rng(6)
    users = np.repeat([f"u{i}" for i in range(30)], 4)
    shared = np.repeat(rng.normal(0, 5, 30), 4)
    a, b = shared + 0.2, shared
    got = paired_difference(a, b, users)
    assert got.low == pytest.approx(0.2) and got.high == pytest.approx(0.2)
    alone = clustered_mean(a, users)
    assert alone.high - alone.low > 1


def test_swapping_the_sides_negates():
    rng = np.random.default_rng(7)
    a, b, users = rng.random(40), rng.random(40), np.repeat(list("abcdefgh"), 5)
    assert paired_difference(a, b, users).value == -paired_difference(b, a, users).value


@pytest.mark.parametrize("between", [0.0, 0.2])
def test_coverage_of_the_interval(between):
    """24 users, 6 examples: the two-stage interval never covers less than it says, and is not absurdly wide."""
    rng = np.random.default_rng(8)
    worlds, hits, users = 250, 0, np.repeat([f"u{i}" for i in range(24)], 6)
    for world in range(worlds):
        rates = np.clip(0.6 + between * rng.uniform(-1.7, 1.7, 24), 0, 1)
        values = rng.random((24, 6)) < rates[:, None]
        got = clustered_mean(values.ravel().astype(float), users, 300, seed=world)
        hits += got.low <= 0.6 <= got.high
    assert hits / worlds >= 0.94


def test_ignoring_users_would_be_too_narrow():
    """Ten copies of each user's one answer are not ten answers."""
    rng = np.random.default_rng(9)
    values = np.repeat(rng.random(30), 10)
    clustered = clustered_mean(values, np.repeat([f"u{i}" for i in range(30)], 10), within=False)
    naive = clustered_mean(values, [str(i) for i in range(300)], within=False)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(np.sqrt(10), rel=0.15)


def test_five_thousand_values_take_under_a_second():
    rng = np.random.default_rng(10)
    values, users = rng.random(5000), [f"u{i}" for i in rng.integers(0, 500, 5000)]
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        clustered_mean(values, users)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1.0


def test_bad_arguments():
    with pytest.raises(ShapeError, match=r"\(3,\), expected \(N,\) = \(2,\)"):
        clustered_mean([1, 2, 3], ["a", "b"])
    with pytest.raises(ShapeError, match="values_b"):
        paired_difference([1, 2], [1], ["a", "b"])
    with pytest.raises(ConfigError, match="user 'b' is inf"):
        clustered_mean([1, np.inf], ["a", "b"])
    with pytest.raises(ConfigError, match=r"values_b\[0\] is -inf"):
        paired_difference([1.0], [-np.inf], ["a"])
    with pytest.raises(ConfigError, match="level is 95"):
        clustered_mean([1], ["a"], level=95)
    with pytest.raises(ConfigError, match="resamples is 0"):
        clustered_mean([1], ["a"], resamples=0)


def test_partition():
    part = cluster_partition(["b", "a", "b", "c"])
    assert part.labels == ("a", "b", "c") and len(part) == 3
    assert part.sizes.tolist() == [1, 2, 1] and part.starts.tolist() == [0, 1, 3]
    assert part.order.tolist() == [1, 0, 2, 3] and part.codes.tolist() == [1, 0, 1, 2]
    assert len(cluster_partition([])) == 0
    assert cluster_partition(["u", "u\0"]).sizes.tolist() == [1, 1]


@pytest.mark.parametrize("micro", [False, True])
def test_clustered_error_with_clusters_of_one_is_the_plain_one(micro):
    values = np.random.default_rng(11).normal(size=37)
    plain = values.std(ddof=1) / np.sqrt(37)
    assert clustered_standard_error(values, [str(i) for i in range(37)], micro=micro) == pytest.approx(plain, rel=1e-12)


def test_clustered_error_of_copies_is_that_of_the_originals():
    values = np.random.default_rng(12).normal(size=20)
    users = [str(i) for i in range(20)]
    once = clustered_standard_error(values, users)
    for micro in (False, True):
        assert clustered_standard_error(np.repeat(values, 5), np.repeat(users, 5), micro=micro) == pytest.approx(once)


def test_clustered_error_needs_two_users_and_drops_the_missing():
    assert np.isnan(clustered_standard_error([1.0, 2.0], ["a", "a"]))
    assert np.isnan(clustered_standard_error([], []))
    assert clustered_standard_error([1.0, NAN, 2.0], ["a", "a", "b"]) == clustered_standard_error(
        [1.0, 2.0], ["a", "b"]
    )


def test_bootstrap_of_whole_users_has_the_clustered_error():
    rng = np.random.default_rng(13)
    users = np.repeat([f"u{i}" for i in range(60)], 5)
    values = np.repeat(rng.normal(size=60), 5) + rng.normal(size=300)
    got = clustered_mean(values, users, 4000, within=False)
    error = clustered_standard_error(values, users)
    assert (got.high - got.low) / 2 == pytest.approx(1.96 * error, rel=0.08)
