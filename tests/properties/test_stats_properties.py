"""What no renaming, reordering or scale may change."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rewardgap.stats.bootstrap import clustered_mean, paired_difference
from rewardgap.stats.kendall import kendall_tau, permutation_p, tau_bootstrap

score = st.one_of(st.just(float("nan")), st.sampled_from([0.0, 0.5, 1.0]), st.floats(-5, 5, width=32))
rows = st.lists(st.tuples(score, st.sampled_from("abcdef")), max_size=30)
small = st.integers(0, 4).map(float)


@settings(deadline=None)
@given(st.lists(st.tuples(small, small), min_size=2, max_size=12))
def test_tau_is_scipys(pairs):
    a, b = zip(*pairs, strict=True)
    np.testing.assert_allclose(kendall_tau(a, b), stats.kendalltau(a, b).statistic, atol=1e-13)


@settings(deadline=None)
@given(st.lists(st.tuples(small, small), min_size=2, max_size=12), st.randoms())
def test_tau_is_symmetric_odd_and_blind_to_order_and_scale(pairs, random):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    tau = kendall_tau(a, b)
    order = list(range(len(a)))
    random.shuffle(order)
    for other in (
        kendall_tau(b, a),
        kendall_tau(a[order], b[order]),
        kendall_tau(3 * a + 1, np.exp(b)),
        -kendall_tau(a, -b),
    ):
        np.testing.assert_array_equal(other, tau)
    assert np.isnan(tau) or -1 <= tau <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(small, small), min_size=2, max_size=6))
def test_p_is_a_probability_and_at_least_one_relabelling(pairs):
    a, b = zip(*pairs, strict=True)
    p = permutation_p(a, b)
    assert np.isnan(p) == np.isnan(kendall_tau(a, b))
    if not np.isnan(p):
        assert 0 < p <= 1


@settings(max_examples=50, deadline=None)
@given(rows, st.permutations("uvwxyz"), st.randoms(), st.booleans(), st.booleans())
def test_renaming_and_reordering_change_nothing(data, names, random, micro, within):
    rename = dict(zip("abcdef", names, strict=True))
    shuffled = list(data)
    random.shuffle(shuffled)
    before = clustered_mean([v for v, _ in data], [u for _, u in data], 50, micro=micro, within=within)
    after = clustered_mean([v for v, _ in shuffled], [rename[u] for _, u in shuffled], 50, micro=micro, within=within)
    assert before == after


@settings(max_examples=50, deadline=None)
@given(rows, st.booleans())
def test_mean_is_within_the_values_and_the_interval(data, micro):
    values = np.array([v for v, _ in data])
    users = [u for _, u in data]
    got = clustered_mean(values, users, 200, micro=micro)
    kept = values[~np.isnan(values)]
    assert got.n_missing == len(values) - len(kept) and got.n_examples == len(kept)
    assert got.n_users == len({u for v, u in data if v == v})
    assert (got.value is None) == (len(kept) == 0)
    if got.value is not None:
        assert kept.min() - 1e-9 <= got.value <= kept.max() + 1e-9
    if got.low is not None:
        assert kept.min() - 1e-9 <= got.low <= got.high <= kept.max() + 1e-9


@settings(max_examples=50, deadline=None)
@given(rows, st.integers(0, 5))
def test_a_missing_example_is_as_if_it_were_not_there(data, extra):
    values, users = [v for v, _ in data], [u for _, u in data]
    before = clustered_mean(values, users, 50)
    after = clustered_mean([*values, *[float("nan")] * extra], [*users, *["a"] * extra], 50)
    assert (after.value, after.low, after.high, after.n_users) == (
        before.value,
        before.low,
        before.high,
        before.n_users,
    )
    assert after.n_missing == before.n_missing + extra


@settings(max_examples=30, deadline=None)
@given(rows)
def test_a_method_against_itself_differs_by_zero(data):
    values, users = [v for v, _ in data], [u for _, u in data]
    got = paired_difference(values, values, users, 50)
    assert got.value in (None, 0.0) and got.low in (None, 0.0) and got.high in (None, 0.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(1, 6), st.integers(0, 10**6), st.booleans())
def test_tau_interval_is_blind_to_the_order_of_users(methods, users, seed, holes):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 4, (2, methods, users)) / 3
    if holes:
        x[rng.random(x.shape) < 0.1] = np.nan
    order = rng.permutation(users)
    before, after = tau_bootstrap(x, y, 60), tau_bootstrap(x[:, order], y[:, order], 60)
    assert before == after
    assert before.tau is None or -1 <= before.tau <= 1
    assert (before.tau is None or before.low is None) == (before.reason is not None)
