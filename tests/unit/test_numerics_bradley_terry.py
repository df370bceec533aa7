"""The pair loss, its slope, ties and what is undefined."""

from __future__ import annotations

import math

import pytest
import torch

from rewardgap.core.errors import DataError, ShapeError
from rewardgap.numerics.bradley_terry import accuracy, centring_loss, pair_loss, ranking_scores, win_probability

F64 = torch.float64


def test_loss_at_zero_margin_is_log_two_with_slope_minus_half():
    margin = torch.zeros((), dtype=F64, requires_grad=True)
    loss = pair_loss(margin)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert margin.grad.item() == pytest.approx(-0.5, abs=1e-15)


def test_loss_is_the_negative_log_of_the_probability():
    margins = torch.linspace(-20, 20, 81, dtype=F64)
    torch.testing.assert_close(pair_loss(margins), -win_probability(margins).log(), rtol=1e-9, atol=1e-12)


def test_loss_is_finite_where_log_of_sigmoid_is_not():
    assert pair_loss(torch.tensor([-1e4, 1e4], dtype=F64)).tolist() == [1e4, 0.0]


def test_probabilities_of_both_orders_add_up_to_one():
    margins = torch.linspace(-5, 5, 11, dtype=F64)
    torch.testing.assert_close(win_probability(margins) + win_probability(-margins), torch.ones(11, dtype=F64))


def test_a_tie_counts_one_half_and_swapping_turns_a_into_one_minus_a():
    margins = torch.tensor([2.0, -1.0, 0.0, 3.0])
    assert ranking_scores(margins).tolist() == [1.0, 0.0, 0.5, 1.0]
    assert accuracy(margins) == 0.625
    assert accuracy(-margins) == 1 - 0.625


def test_no_pairs_have_no_accuracy():
    with pytest.raises(DataError, match="no pairs"):
        accuracy(torch.zeros(0))


def test_a_nan_margin_is_refused_by_its_place():
    with pytest.raises(DataError, match="margin 1 is NaN"):
        accuracy(torch.tensor([0.0, math.nan]))


def test_centring_is_zero_for_opposite_rewards_and_four_r_squared_for_equal_ones():
    rewards = torch.tensor([1.5, -2.0])
    assert centring_loss(rewards, -rewards).tolist() == [0.0, 0.0]
    assert centring_loss(rewards, rewards).tolist() == [9.0, 16.0]
    with pytest.raises(ShapeError, match=r"\(1,\)"):
        centring_loss(rewards, rewards[:1])
