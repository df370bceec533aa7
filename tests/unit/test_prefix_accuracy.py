"""Margins of cut pairs: against the definition written out in fractions, share by share."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core.errors import ShapeError
from rewardgap.metrics.prefix_accuracy import first_right, prefix_margins, same_prefixes, tokens_read

VALUES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=9)


def at(values: list[float], share: Fraction) -> float:
    return values[math.ceil(share * (len(values) - 1))]


@given(VALUES, VALUES)
def test_margins_after_each_quarter_follow_the_definition(chosen: list[float], rejected: list[float]) -> None:
    shares = [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1)]
    assert prefix_margins(chosen, rejected).tolist() == [at(chosen, s) - at(rejected, s) for s in shares]
    np.testing.assert_array_equal(prefix_margins(rejected, chosen), -prefix_margins(chosen, rejected))
    assert prefix_margins(chosen, rejected)[-1] == chosen[-1] - rejected[-1]


@given(VALUES, VALUES)
def test_the_order_is_right_for_good_from_where_no_later_share_is_wrong(
    chosen: list[float], rejected: list[float]
) -> None:
    """On a grid that holds every share at which either text gets another token, and others between them."""
    grid = [Fraction(i, 2 * 840) for i in range(1, 2 * 840 + 1)]  # 840 is a multiple of 1 to 8
    ahead = [at(chosen, s) - at(rejected, s) > 0 for s in grid]
    found = first_right(chosen, rejected)
    if not ahead[-1]:
        assert math.isnan(found)
        return
    last_wrong = max((s for s, good in zip(grid, ahead, strict=True) if not good), default=Fraction(0))
    # Between two changes all shares are alike, and the upper one stands for them: the first change after the last wrong.
    changes = {Fraction(i, n) for n in (len(chosen) - 1, len(rejected) - 1) if n for i in range(1, n + 1)} | {
        Fraction(1)
    }
    assert found == float(min(s for s in changes if s > last_wrong))


@given(VALUES, VALUES, st.integers(-5, 5))  # whole numbers, so that no rounding makes or breaks a tie
def test_a_constant_that_both_sides_get_changes_nothing(chosen: list[float], rejected: list[float], shift: int) -> None:
    moved = [value + shift for value in chosen], [value + shift for value in rejected]
    np.testing.assert_array_equal(prefix_margins(*moved), prefix_margins(chosen, rejected))
    np.testing.assert_array_equal(first_right(*moved), first_right(chosen, rejected))


def test_a_pair_by_hand() -> None:
    """Chosen of four tokens against rejected of two: cuts after 1|1, 2|1, 3|2, 4|2 tokens."""
    chosen, rejected = [0.0, -1.0, 2.0, 0.0, 4.0], [0.0, 1.0, 1.0]
    assert prefix_margins(chosen, rejected).tolist() == [-2.0, 1.0, -1.0, 3.0]
    assert first_right(chosen, rejected) == 1.0
    assert first_right([0, 1, 1, 1, 1], [0, 0, 0]) == 0.25
    assert math.isnan(first_right([0.0, 1.0], [0.0, 1.0]))
    assert [tokens_read(1, quarters) for quarters in (1, 2, 3, 4)] == [1, 1, 1, 1]


def test_an_empty_completion_has_the_value_of_its_prompt() -> None:
    assert prefix_margins([0.5], [0.5, 2.0, 0.0]).tolist() == [-1.5, -1.5, 0.5, 0.5]
    assert first_right([0.5], [0.5, 2.0, 0.0]) == 1.0


def test_both_sides_are_one_text_until_they_part() -> None:
    assert same_prefixes([7, 7, 7, 1], [7, 7, 7, 2]) == [True, True, True, False]
    # At its own length each side is cut elsewhere: after one token and after two.
    assert same_prefixes([7, 7, 7, 1], [7, 7, 7, 7, 7, 1]) == [False] * 4


def test_values_of_nothing_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"rejected has shape \(0,\), expected \(T \+ 1,\)"):
        prefix_margins([0.0], [])
    with pytest.raises(ShapeError, match=r"chosen has shape \(1, 2\)"):
        first_right([[0.0, 1.0]], [0.0])
