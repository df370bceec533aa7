"""Training pairs, standardisation, weights and the two optimisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewardgap.core.errors import DataError, ShapeError
from rewardgap.rewards.fitting import (
    as_features,
    column_moments,
    fit_direction,
    minimise_adam,
    minimise_lbfgs,
    pair_weights,
    thinned,
    training_pairs,
)


def test_half_precision_and_integers_become_float32_and_float64_stays():
    assert as_features(torch.zeros(2, 3, dtype=torch.bfloat16), "x").dtype == torch.float32
    assert as_features(np.zeros((2, 3), dtype=np.int64), "x").dtype == torch.float32
    assert as_features(np.zeros((2, 3)), "x").dtype == torch.float64


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_named_by_row_and_column(bad):
    values = np.zeros((4, 3))
    values[2, 1] = bad
    with pytest.raises(DataError, match=r"rejected is (nan|inf) at row 2, column 1"):
        training_pairs(np.zeros((4, 3)), values, list("abcd"))


def test_training_pairs_name_what_is_wrong():
    with pytest.raises(DataError, match="at least 1 training pair"):
        training_pairs(np.zeros((0, 3)), np.zeros((0, 3)), [])
    with pytest.raises(ShapeError, match=r"\(2, 3\) and rejected \(2, 4\)"):
        training_pairs(np.zeros((2, 3)), np.zeros((2, 4)), ["a", "b"])
    with pytest.raises(ShapeError, match="1 entries for 2 pairs"):
        training_pairs(np.zeros((2, 3)), np.zeros((2, 3)), ["a"])
    with pytest.raises(DataError, match=r"row 1 is 7 \(int\)"):
        training_pairs(np.zeros((2, 3)), np.zeros((2, 3)), ["a", 7])


def test_users_are_sorted_whatever_the_order_of_rows():
    pairs = training_pairs(np.zeros((3, 1)), np.zeros((3, 1)), np.array(["b", "a", "b"]))
    assert pairs.users == ("a", "b")
    assert pairs.user_index.tolist() == [1, 0, 1]


def test_moments_are_of_both_sides_and_constant_columns_have_std_one():
    chosen = torch.tensor([[1.0, 0.1], [3.0, 0.1]])
    rejected = torch.tensor([[5.0, 0.1], [7.0, 0.1]])
    mean, std = column_moments(chosen, rejected)
    assert mean[0] == 4.0
    assert std[0] == pytest.approx(5**0.5)
    assert std[1] == 1.0


def test_weights_of_pairs_add_up_to_one_and_count_pairs_or_users_alike():
    index = torch.tensor([0, 0, 0, 1])
    assert pair_weights(index, "pair").tolist() == [0.25] * 4
    assert pair_weights(index, "user").tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


@pytest.mark.parametrize("units", [[1.0, 1.0], [1.0, 9.0]])
def test_lbfgs_finds_the_minimum_in_any_units(units):
    x, y = torch.zeros(3, dtype=torch.float64, requires_grad=True), torch.ones(1, dtype=torch.float64).requires_grad_()
    target = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    trace = minimise_lbfgs(lambda: (x - target).square().sum() + (y - x[0]).square().sum(), [x, y], units, 200, 1e-9)
    assert trace.converged
    torch.testing.assert_close(x.detach(), target, atol=1e-7, rtol=0)
    assert y.item() == pytest.approx(1.0, abs=1e-7)


def test_adam_stops_by_itself_and_says_when_it_did_not():
    def run(steps):
        x = torch.full((2,), 3.0, requires_grad=True)
        return x, minimise_adam(lambda: x.square().sum(), [x], 0.05, steps, 1e-7)

    x, trace = run(5000)
    assert trace.converged
    assert len(trace.losses) < 5000
    assert x.abs().max() < 1e-3
    assert not run(50)[1].converged


def test_history_is_thinned_and_keeps_the_last():
    assert thinned([3.0]) == (3.0,)
    kept = thinned([float(i) for i in range(1234)])
    assert len(kept) <= 51
    assert kept[-1] == 1233.0


def test_the_global_direction_is_stationary():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(50, 4)) + 0.3)
    weights = torch.full((50,), 1 / 50, dtype=torch.float64)
    direction = fit_direction(rows, weights, 0.01)
    gradient = -(weights * torch.sigmoid(-(rows @ direction))) @ rows + 0.02 * direction
    assert gradient.abs().max() < 1e-6
