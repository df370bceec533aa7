"""The likeliest weights of a user, how sure they are, what to ask: against scikit-learn, scipy and slow formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from rewardgap.core.errors import DataError, ShapeError
from rewardgap.numerics import logistic
from rewardgap.numerics.logistic import Gaussian, choice_variance, log_det_gains, map_weights, posterior

SEED = st.integers(0, 2**20)


def objective(weights, rows, answers, prior):
    """Return the negative log-posterior, term by term."""
    total = (weights - prior.mean) @ prior.dense_precision() @ (weights - prior.mean) / 2
    for row, answer in zip(rows, answers, strict=True):
        total += answer * np.logaddexp(0, -(row @ weights)) + (1 - answer) * np.logaddexp(0, row @ weights)
    return total


def slope(weights, rows, answers, prior):
    chosen = 0.5 * (1 + np.tanh(rows @ weights / 2))
    return (chosen - answers) @ rows + prior.dense_precision() @ (weights - prior.mean)


def some_prior(rng, width):
    factor = rng.normal(size=(width, width))
    return Gaussian(rng.normal(size=width), factor @ factor.T + 0.1 * np.eye(width))


@pytest.mark.parametrize(("count", "width"), [(12, 5), (60, 5), (8, 40)])
@pytest.mark.parametrize("ridge", [0.03, 1.0, 20.0])
def test_with_mean_zero_it_is_logistic_regression(count, width, ridge):
    rng = np.random.default_rng([count, width])
    rows = rng.normal(size=(count, width))
    flip = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    flip[:2] = 1, -1
    peer = LogisticRegression(fit_intercept=False, C=1 / ridge, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    peer.fit(rows * flip[:, None], flip > 0)
    ours = map_weights(rows, Gaussian(np.zeros(width), ridge))
    np.testing.assert_allclose(ours, peer.coef_[0], atol=1e-7)
    # A pair told from the other side is the same pair.
    turned = map_weights(rows * flip[:, None], Gaussian(np.zeros(width), ridge), (flip > 0).astype(float))
    np.testing.assert_allclose(turned, ours, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(("count", "width"), [(1, 1), (4, 30), (40, 6), (40, 40)])
def test_the_optimum_is_stationary_at_any_scale(scale, count, width):
    rng = np.random.default_rng([count, width])
    rows, prior = scale * rng.normal(size=(count, width)), some_prior(rng, width)
    answers = rng.choice([0.0, 0.5, 1.0], size=count)
    weights = map_weights(rows, prior, answers)
    size = np.abs(rows).sum(axis=0).max() + np.abs(prior.dense_precision() @ weights).max()
    assert np.abs(slope(weights, rows, answers, prior)).max() < 1e-9 * max(1.0, size)


def test_it_is_what_a_general_optimiser_finds():
    rng = np.random.default_rng(5)
    rows, prior = rng.normal(size=(25, 4)), some_prior(rng, 4)
    answers = rng.random(25)
    found = minimize(objective, prior.mean, args=(rows, answers, prior), options={"gtol": 1e-9})
    np.testing.assert_allclose(map_weights(rows, prior, answers), found.x, atol=1e-6)


def test_one_weight_is_a_line_search():
    grid = np.linspace(-4, 4, 800_001)
    rows, prior = np.array([[1.0], [2.0], [-0.5]]), Gaussian(np.array([0.3]), 0.7)
    values = sum(np.logaddexp(0, -row[0] * grid) for row in rows) + 0.35 * (grid - 0.3) ** 2
    assert map_weights(rows, prior)[0] == pytest.approx(grid[values.argmin()], abs=2e-5)


@given(SEED, st.integers(0, 12), st.integers(1, 8))
def test_order_rotation_and_side_mean_nothing(seed, count, width):
    rng = np.random.default_rng(seed)
    rows, prior, answers = rng.normal(size=(count, width)), some_prior(rng, width), rng.random(count)
    weights = map_weights(rows, prior, answers)
    order = rng.permutation(count)
    np.testing.assert_allclose(map_weights(rows[order], prior, answers[order]), weights, atol=1e-9)
    sides = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    told = np.where(sides > 0, answers, 1 - answers)
    np.testing.assert_allclose(map_weights(rows * sides[:, None], prior, told), weights, atol=1e-9)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    turned = Gaussian(turn @ prior.mean, turn @ prior.dense_precision() @ turn.T)
    np.testing.assert_allclose(map_weights(rows @ turn.T, turned, answers), turn @ weights, atol=1e-7)


@given(SEED, st.integers(1, 9), st.integers(1, 9))
def test_a_number_for_the_precision_is_that_multiple_of_the_identity(seed, count, width):
    rng = np.random.default_rng(seed)
    rows, mean, size = rng.normal(size=(count, width)), rng.normal(size=width), float(rng.uniform(0.1, 9))
    one, other = Gaussian(mean, size), Gaussian(mean, size * np.eye(width))
    np.testing.assert_allclose(map_weights(rows, one), map_weights(rows, other), atol=1e-10)
    np.testing.assert_allclose(one.dense_precision(), other.dense_precision())


def test_fewer_rows_than_weights_moves_only_in_their_span():
    rng = np.random.default_rng(0)
    rows, mean = rng.normal(size=(3, 10)), rng.normal(size=10)
    moved = map_weights(rows, Gaussian(mean, 0.2)) - mean
    inside = rows.T @ np.linalg.lstsq(rows.T, moved, rcond=None)[0]
    np.testing.assert_allclose(moved, inside, atol=1e-12)
    assert np.abs(moved).max() > 0.1


def test_nothing_revealed_and_nothing_told_give_the_prior_mean():
    prior = Gaussian(np.array([0.3, -1.0]), 2.0)
    assert map_weights(np.zeros((0, 2)), prior).tolist() == [0.3, -1.0]
    assert map_weights(np.zeros((4, 2)), prior).tolist() == [0.3, -1.0]
    belief = posterior(np.zeros((0, 2)), prior)
    assert belief.mean.tolist() == [0.3, -1.0]
    np.testing.assert_array_equal(belief.precision, 2 * np.eye(2))


def test_neither_is_better_pulls_the_margin_to_zero():
    row = np.array([[1.0, 2.0]])
    prior = Gaussian(np.array([2.0, 0.0]), 1e-3)
    assert abs(row[0] @ map_weights(row, prior, np.array([0.5]))) < 0.01
    assert row[0] @ map_weights(row, prior, np.array([1.0])) > 2
    assert row[0] @ map_weights(row, prior, np.array([0.0])) < 0


def test_posterior_precision_is_the_second_derivative():
    rng = np.random.default_rng(2)
    rows, prior, answers = rng.normal(size=(9, 3)), some_prior(rng, 3), rng.random(9)
    belief = posterior(rows, prior, answers)
    steps = 1e-5 * np.eye(3)
    numeric = np.stack(
        [
            (slope(belief.mean + step, rows, answers, prior) - slope(belief.mean - step, rows, answers, prior)) / 2e-5
            for step in steps
        ]
    )
    np.testing.assert_allclose(belief.precision, numeric, atol=1e-7)


def test_choice_variance_keeps_its_digits_far_out():
    assert choice_variance(np.array([0.0]))[0] == 0.25
    np.testing.assert_allclose(choice_variance(np.array([40.0, -40.0, 700.0])), np.exp([-40.0, -40.0, -700.0]))


@given(SEED, st.integers(1, 6))
def test_gains_are_differences_of_log_determinants(seed, width):
    rng = np.random.default_rng(seed)
    rows, belief = 2 * rng.normal(size=(20, width)), some_prior(rng, width)
    before = np.linalg.slogdet(belief.precision)[1]
    brute = []
    for row in rows:
        variance = 1 / ((1 + np.exp(row @ belief.mean)) * (1 + np.exp(-(row @ belief.mean))))
        brute.append(np.linalg.slogdet(belief.precision + variance * np.outer(row, row))[1] - before)
    gains = log_det_gains(rows, belief)
    np.testing.assert_allclose(gains, brute, atol=1e-8)
    assert gains.argmax() == np.argmax(brute)


def test_with_mean_zero_the_longest_whitened_row_tells_most():
    rows = np.array([[1.0, 0.0], [0.0, 1.5], [0.8, 0.8]])
    gains = log_det_gains(rows, Gaussian(np.zeros(2), np.diag([1.0, 4.0])))
    np.testing.assert_allclose(gains, np.log1p(0.25 * np.array([1.0, 1.5**2 / 4, 0.64 + 0.64 / 4])))
    assert gains.argmax() == 0


def test_what_is_wrong_is_one_sentence(monkeypatch):
    prior = Gaussian(np.zeros(2), 1.0)
    with pytest.raises(ShapeError, match=r"rows have shape \(3, 4\), expected \(n, R\) with R = 2"):
        map_weights(np.zeros((3, 4)), prior)
    with pytest.raises(DataError, match="row 1 of the differences is not finite"):
        map_weights(np.array([[0.0, 1.0], [np.inf, 0.0]]), prior)
    with pytest.raises(ShapeError, match=r"answers have shape \(1,\), expected \(3,\)"):
        map_weights(np.zeros((3, 2)), prior, np.ones(1))
    with pytest.raises(DataError, match=r"answer 1 is 1\.5"):
        map_weights(np.zeros((2, 2)), prior, np.array([1.0, 1.5]))
    with pytest.raises(DataError, match="answer 0 is nan"):
        map_weights(np.zeros((1, 2)), prior, np.array([np.nan]))
    with pytest.raises(DataError, match=r"reach 1\.0e\+200 in units of the prior"):
        map_weights(np.full((1, 2), 1e200), prior)
    with pytest.raises(ShapeError, match=r"precision has shape \(3, 3\) and mean \(2,\)"):
        Gaussian(np.zeros(2), np.eye(3))
    for bad in (0.0, -1.0, -np.eye(2), np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 0.5], [0.0, 1.0]])):
        with pytest.raises(DataError, match="not symmetric and positive definite"):
            Gaussian(np.zeros(2), bad)
    with pytest.raises(DataError, match="is not finite; look at"):
        Gaussian(np.array([np.nan, 0.0]), 1.0)
    monkeypatch.setattr(logistic, "_MAX_STEPS", 1)
    with pytest.raises(DataError, match="cannot be found in float64"):
        map_weights(np.array([[1.0, 0.0]]), prior)


def test_rounding_is_no_asymmetry():
    almost = np.diag([1.0, 2.0])
    almost[0, 1] = 1e-17
    assert Gaussian(np.zeros(2), almost).mean.tolist() == [0.0, 0.0]
    rows = np.random.default_rng(0).normal(size=(50, 30)) * 10.0 ** np.linspace(-6, 3, 30)
    assert posterior(rows, Gaussian(np.zeros(30), 1.0)).dense_precision().shape == (30, 30)


def test_a_belief_keeps_its_numbers():
    mean, precision = np.zeros(2), np.eye(2)
    belief = Gaussian(mean, precision)
    mean[0] = precision[0, 0] = 9.0
    assert belief.mean[0] == 0
    assert belief.dense_precision()[0, 0] == 1
