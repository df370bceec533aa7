"""Selection regret and who is best, against closed forms and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as peer

from rewardgap import stats
from rewardgap.core.errors import ConfigError, ShapeError


def test_a_right_choice_has_no_regret():
    rng = np.random.default_rng(0)
    behaviour = np.array([3.0, 2.0, 1.0])[:, None] + 0.01 * rng.standard_normal((3, 20))
    stage = np.array([0.9, 0.7, 0.8])[:, None] + 0.01 * rng.standard_normal((3, 20))
    found = stats.selection_regret(stage, behaviour, ["a", "b", "c"], 500)
    assert (found.chosen, found.best, found.regret, found.expected, found.low, found.high) == (
        "a",
        "a",
        0.0,
        0.0,
        0.0,
        0.0,
    )
    assert found.p_chosen_best == 1.0 and found.out_of_bag == 0.0


def test_a_wrong_choice_costs_the_difference():
    rng = np.random.default_rng(1)
    behaviour = np.array([3.0, 2.0, 1.0])[:, None] + 0.1 * rng.standard_normal((3, 40))
    stage = np.array([0.1, 0.5, 0.9])[:, None] + 0.01 * rng.standard_normal((3, 40))
    found = stats.selection_regret(stage, behaviour, ["a", "b", "c"], 4000)
    means = behaviour.mean(axis=1)
    assert (found.chosen, found.best) == ("c", "a")
    assert found.regret == pytest.approx(means[0] - means[2])
    assert found.low < found.regret < found.high and found.expected == pytest.approx(2.0, abs=0.05)
    assert found.out_of_bag == pytest.approx(2.0, abs=0.05)
    assert found.p_best == (("a", 1.0), ("b", 0.0), ("c", 0.0))
    assert "Deploying c" in found.reading and "against a" in found.reading


def test_measured_regret_exaggerates_and_the_expected_one_less_so():
    """All deployments are alike: true regret is 0, the best measured one is lucky."""
    rng = np.random.default_rng(2)
    measured, expected, held, shares = [], [], [], []
    for world in range(40):
        found = stats.selection_regret(
            rng.standard_normal((9, 40)), rng.standard_normal((9, 40)), list("abcdefghi"), 400, world
        )
        measured.append(found.regret)
        expected.append(found.expected)
        held.append(found.low == pytest.approx(0, abs=0.02))
        shares.append(max(share for _, share in found.p_best))
    assert np.mean(expected) < 0.8 * np.mean(measured)
    assert np.mean(held) > 0.9
    assert np.mean(shares) < 0.5


def test_probability_best_of_two_is_a_normal_tail_where_the_prior_is_flat():
    """Two far apart against their noise: F = 1 contrast z, posterior nearly N(z, v), P = Φ(z/√v)."""
    rng = np.random.default_rng(3)
    num_users = 400
    noise = rng.standard_normal(num_users)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    for gap in (2.5, 3.0):
        scores = np.stack([gap / np.sqrt(num_users) + noise, np.zeros(num_users)])
        (_, first), (_, second) = stats.probability_best(scores, ["a", "b"], 40_000)
        assert first + second == pytest.approx(1.0)
        # Shrinkage only takes certainty away, and little of it.
        assert peer.norm.cdf(gap) - 0.06 < first <= peer.norm.cdf(gap) + 0.003


def test_shares_of_the_best_agree_with_a_loop_over_draws():
    rng = np.random.default_rng(4)
    scores = rng.standard_normal((4, 15))
    draws = stats.true_scores([scores[:, np.lexsort(scores)]], 300, 7).draws[:, 0]
    counts = np.zeros(4)
    for draw in draws:
        counts[int(np.argmax(draw))] += 1
    np.testing.assert_allclose([p for _, p in stats.probability_best(scores, list("abcd"), 300, 7)], counts / 300)


def test_out_of_bag_is_the_loop():
    rng = np.random.default_rng(5)
    stage, behaviour = rng.standard_normal((2, 3, 12))
    loop = []
    for _ in range(4000):
        drawn = rng.integers(0, 12, 12)
        left = np.setdiff1d(np.arange(12), drawn)
        by_behaviour, by_stage = behaviour[:, drawn].mean(1).argmax(), stage[:, drawn].mean(1).argmax()
        loop.append((behaviour[by_behaviour, left] - behaviour[by_stage, left]).mean())
    found = stats.selection_regret(stage, behaviour, list("abc"), 8000)
    assert found.out_of_bag == pytest.approx(np.mean(loop), abs=5 * np.std(loop) / np.sqrt(4000))


def test_choice_by_the_behaviour_itself_has_no_measured_regret():
    behaviour = np.random.default_rng(6).standard_normal((5, 20))
    found = stats.selection_regret(behaviour, behaviour, list("abcde"), 300)
    assert found.regret == 0.0 and found.out_of_bag == 0.0 and found.expected > 0


def test_ties_go_to_the_first_and_cost_nothing():
    behaviour = np.array([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.0, 0.0, 0.0]])
    found = stats.selection_regret(behaviour[[1, 0, 2]], behaviour, list("abc"), 100)
    assert (found.chosen, found.best, found.regret) == ("a", "a", 0.0)


def test_what_cannot_be_said():
    one = stats.selection_regret([[1.0], [2.0]], [[2.0], [1.0]], ["a", "b"])
    assert (one.regret, one.low, one.p_best) == (1.0, None, None) and "one user" in one.reading
    alone = stats.selection_regret([[1.0, 2.0]], [[2.0, 1.0]], ["a"])
    assert alone.regret == 0.0 and "one deployment" in alone.reading
    with pytest.raises(ConfigError, match="1 deployments have no value"):
        stats.selection_regret(np.ones((2, 3)), [[1, 2, 3], [np.nan] * 3], ["a", "b"])
    with pytest.raises(ConfigError, match="no user"):
        stats.selection_regret(np.ones((2, 2)), [[1, np.nan], [np.nan, 1]], ["a", "b"])
    with pytest.raises(ShapeError, match="2 deployments and 1 names"):
        stats.probability_best(np.ones((2, 3)), ["a"])
