"""RM accuracy, wins and the guidance ratio: arithmetic written out."""

from __future__ import annotations

import numpy as np
import pytest

from rewardgap.core.errors import CircularEvaluationError, ShapeError
from rewardgap.metrics.guidance_ratio import guidance_ratio
from rewardgap.metrics.rm_accuracy import pair_accuracy, tie_rate, ties
from rewardgap.metrics.win_rate import is_circular, require_independent, win_name, wins

NAN, INF = float("nan"), float("inf")


def test_pair_accuracy():
    np.testing.assert_array_equal(pair_accuracy([2.0, -1e-30, 0.0, -0.0, NAN, INF, -INF]), [1, 0, 0.5, 0.5, NAN, 1, 0])
    assert pair_accuracy([]).shape == (0,)


def test_swapping_chosen_and_rejected_gives_the_complement():
    margins = np.array([1.0, 0.0, -2.0, 3.0])
    np.testing.assert_array_equal(pair_accuracy(-margins), 1 - pair_accuracy(margins))


def test_ties():
    np.testing.assert_array_equal(ties([0.0, 1.0, NAN]), [1, 0, NAN])
    assert tie_rate([0.0, 1.0, NAN, 0.0]) == 2 / 3
    assert np.isnan(tie_rate([NAN])) and np.isnan(tie_rate([]))


def test_wins():
    a, b = np.array([2.0, 1.0, 0.0, NAN, 1.0, -INF, INF]), np.array([1.0, 1.0, 1.0, 1.0, NAN, -INF, 0.0])
    np.testing.assert_array_equal(wins(a, b), [1, 0.5, 0, NAN, NAN, NAN, 1])
    np.testing.assert_array_equal(wins(b, a), 1 - wins(a, b))


def test_a_deployment_against_itself_wins_exactly_half():
    scores = np.random.default_rng(0).normal(size=50)
    assert wins(scores, scores).mean() == 0.5


def test_best_of_many_wins_under_its_own_judge():
    """Best of 64 under a judge that correlates .3 with the truth: near 1 under itself, far lower under the truth."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(400, 64))
    guide = 0.3 * truth + np.sqrt(1 - 0.3**2) * rng.normal(size=truth.shape)
    best = guide.argmax(1)
    rows = np.arange(400)
    own = wins(guide[rows, best], guide[:, 0]).mean()
    true = wins(truth[rows, best], truth[:, 0]).mean()
    assert own > 0.98 and 0.5 < true < 0.85


def test_circularity():
    assert is_circular("lore@3f2a", "lore@3f2a") and not is_circular("lore@3f2a", "lore@77aa")
    assert not is_circular(None, "lore@3f2a")
    assert win_name("a", "a") == "win_self" and win_name("a", "b") == win_name(None, "b") == "win_cross"
    require_independent("a", "b")
    require_independent("a", "a", allow_circular=True)
    with pytest.raises(CircularEvaluationError, match=r"the same model \(lore@3f2a\).*allow_circular=True"):
        require_independent("lore@3f2a", "lore@3f2a")


def test_wins_need_the_same_examples():
    with pytest.raises(ShapeError, match=r"\(3,\), expected that of a, \(2,\)"):
        wins([1, 2], [1, 2, 3])


def test_guidance_ratio_by_hand():
    # std of (0, 2) is 1, of (0, 6) is 3: mean 2. λ r: .5·(0, 4) and .5·(0, 8) have std 1 and 2: mean 1.5
    assert guidance_ratio([[0, -2], [0, -6]], [[0, 4], [8, 0]], 0.5) == 1.5 / 2
    # a mean of ratios would be (1/1 + 2/3)/2 = .833


def test_guidance_ratio_is_linear_in_the_weight_and_blind_to_offsets():
    rng = np.random.default_rng(2)
    log_pi, rewards = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    once = guidance_ratio(log_pi, rewards, 1.0)
    assert guidance_ratio(log_pi, rewards, 0.0) == 0.0
    assert guidance_ratio(log_pi, rewards, 3.0) == pytest.approx(3 * once)
    assert guidance_ratio(log_pi, rewards, -1.0) == pytest.approx(once)
    assert guidance_ratio(log_pi + rng.normal(size=(6, 1)), rewards + 7, 1.0) == pytest.approx(once)
    assert guidance_ratio(log_pi, log_pi, 1.0) == pytest.approx(1.0)


def test_guidance_ratio_without_a_spread_is_missing():
    assert np.isnan(guidance_ratio([[0.0]], [[1.0]], 1.0))
    assert np.isnan(guidance_ratio(np.zeros((0, 4)), np.zeros((0, 4)), 1.0))
    assert np.isnan(guidance_ratio([[0.5, 0.5]], [[1.0, 2.0]], 1.0))


def test_guidance_ratio_ignores_masked_candidates_and_lone_ones():
    log_pi = np.array([[0.0, -2.0, -np.inf], [0.0, 1.0, 1.0]])
    rewards = np.array([[0.0, 4.0, np.nan], [9.0, 9.0, 9.0]])
    mask = [[True, True, False], [True, False, False]]
    assert guidance_ratio(log_pi, rewards, 1.0, mask) == 2.0
    with pytest.raises(ShapeError, match="mask"):
        guidance_ratio(log_pi, rewards, 1.0, [[True, True]])
    with pytest.raises(ShapeError, match="rewards"):
        guidance_ratio(log_pi, rewards[:1], 1.0)
