"""Every reading of policy accuracy: the hand-computed fixture, sums to one, limits and invariances."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.metrics.policy_accuracy import (
    FLOOR,
    HEADLINE,
    VARIANT_NAMES,
    VARIANTS,
    coverage,
    policy_scores,
    variant_margins,
)
from rewardgap.metrics.rm_accuracy import pair_accuracy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/metrics/policy_accuracy.json").read_text())
LOG_PI = np.log(GOLDEN["log_probs_of"])
GOLD = np.array(GOLDEN["completion"])


def fixture_scores(rewards="value_rewards", weight=1.0, **changes):
    arguments = {
        "candidate_log_probs": np.tile(LOG_PI, (3, 1)),
        "candidate_rewards": GOLDEN[rewards],
        "candidate_mask": GOLDEN["top_2_with_gold"],
        "gold_column": GOLD,
        "in_top_k": GOLDEN["in_top_2"],
        "full_log_probs": np.tile(LOG_PI, (3, 1)),
        "full_rewards": GOLDEN[rewards],
        "gold_ids": GOLD,
    }
    return policy_scores(LOG_PI[GOLD], GOLDEN["prefix_rewards"], weight, **(arguments | changes))


@pytest.mark.parametrize("rewards", ["value_rewards", "delta_rewards"])
@pytest.mark.parametrize("name", sorted(GOLDEN["expected"]))
def test_fixture(rewards, name):
    assert fixture_scores(rewards)[name] == pytest.approx(GOLDEN["expected"][name], abs=GOLDEN["tolerance"])


def test_fixture_written_out():
    e = np.e
    base = np.log(0.5 * 0.3 * 0.2)
    scores = fixture_scores()
    assert scores["base"] == pytest.approx(base, abs=1e-14)
    assert scores["raw_value"] == pytest.approx(base + 1 + 0 + 0, abs=1e-14)
    assert scores["raw_delta"] == pytest.approx(base + (0 - 0), abs=1e-14)
    full = 0.5 * e + 0.3 / e + 0.2
    assert scores["rgd_full"] == pytest.approx(np.log(0.5 * e / full * (0.3 / e) / full * 0.2 / full), abs=1e-14)
    two = 0.5 * e + 0.3 / e
    assert scores["rgd_topk"] == pytest.approx(np.log(0.5 * e / two * (0.3 / e) / two * 0.2 / full), abs=1e-14)


def test_raw_sums_by_hand():
    # ℓ = (−1, −2), R = (10, 3, 7), λ = 2: value −3 + 2·(3 + 7) = 17, delta −3 + 2·(7 − 10) = −9
    scores = policy_scores([-1.0, -2.0], [10.0, 3.0, 7.0], 2.0)
    assert (scores["raw_value"], scores["raw_delta"], scores["mean_value"]) == (17.0, -9.0, 8.5)


def test_names_and_order():
    scores = fixture_scores()
    assert tuple(scores) == VARIANT_NAMES
    assert VARIANT_NAMES[0] == HEADLINE and all(variant.summary for variant in VARIANTS)


def test_means_are_totals_over_tokens():
    scores = fixture_scores()
    pairs = {"mean_value": "raw_value", "mean_delta": "raw_delta", "mean_rgd_topk": "rgd_topk"}
    pairs |= {"mean_rgd_full": "rgd_full", "mean_base": "base"}
    for mean, total in pairs.items():
        assert scores[mean] == scores[total] / 3


@pytest.mark.parametrize("form", ["value", "delta"])
def test_all_sequences_sum_to_one(form):
    """rgd_full is a distribution: finished sequences of up to 6 tokens, and the unfinished ones of 6."""
    total = 0.0
    for length in range(1, 7):
        endings = (2,) if length < 6 else (0, 1, 2)
        for head in product((0, 1), repeat=length - 1):
            for last in endings:
                tokens = [*head, last]
                counts = np.concatenate([[0], np.cumsum([(1, -1, 0)[token] for token in tokens])])
                step = np.tile([1.0, -1.0, 0.0], (length, 1))
                rewards = step + counts[:-1, None] if form == "value" else step
                policy = np.tile(LOG_PI, (length, 1))
                scores = policy_scores(
                    LOG_PI[tokens], counts, 1.3, full_log_probs=policy, full_rewards=rewards, gold_ids=tokens
                )
                total += np.exp(scores["rgd_full"])
    assert total == pytest.approx(1.0, abs=1e-12)


def random_item(rng, length=5, width=7, vocabulary=None):
    """A completion over a vocabulary with values of all prefixes, everything a variant could need."""
    log_pi = rng.normal(size=(length, width))
    log_pi -= np.log(np.exp(log_pi).sum(1, keepdims=True))
    gold = rng.integers(0, width, length)
    values = rng.normal(size=(length, width))
    prefix = np.concatenate([rng.normal(size=1), values[np.arange(length), gold]])
    return log_pi, gold, values, prefix


def full_scores(item, weight, offset=0.0, **changes):
    log_pi, gold, values, prefix = item
    arrays = {"full_log_probs": log_pi, "full_rewards": values + offset, "gold_ids": gold}
    arrays |= {"candidate_log_probs": log_pi, "candidate_rewards": values + offset, "gold_column": gold}
    return policy_scores(log_pi[np.arange(len(gold)), gold], prefix, weight, **(arrays | changes))


def test_no_guidance_is_the_base_policy():
    item = random_item(np.random.default_rng(0))
    scores = full_scores(item, 0.0)
    for name in ("raw_value", "raw_delta", "rgd_full", "rgd_topk"):
        assert scores[name] == pytest.approx(scores["base"], abs=1e-12)


def test_no_guidance_needs_no_rewards_and_survives_bad_ones():
    item = random_item(np.random.default_rng(1))
    plain = full_scores(item, 0.0, candidate_rewards=None, full_rewards=None)
    assert plain == full_scores(item, 0.0)
    assert full_scores((*item[:2], np.full((5, 7), np.inf), item[3]), 0.0)["rgd_full"] == plain["rgd_full"]
    with pytest.raises(ShapeError, match="candidate_rewards is missing at guidance weight"):
        full_scores(item, 0.5, candidate_rewards=None)


def test_large_guidance_with_raw_delta_is_rm_accuracy():
    """Beyond λ > max|log π(y+) − log π(y−)| / min|m| the two rank every pair alike."""
    rng = np.random.default_rng(2)
    items = [(random_item(rng, rng.integers(1, 9)), random_item(rng, rng.integers(1, 9))) for _ in range(60)]
    margins = [variant_margins(full_scores(a, 1.0), full_scores(b, 1.0)) for a, b in items]
    gains = np.array([(a[3][-1] - a[3][0]) - (b[3][-1] - b[3][0]) for a, b in items])
    weight = 1.01 * max(abs(m["base"]) for m in margins) / np.abs(gains).min()
    got = [variant_margins(full_scores(a, weight), full_scores(b, weight))["raw_delta"] for a, b in items]
    np.testing.assert_array_equal(pair_accuracy(got), pair_accuracy(gains))


def test_reward_only_is_the_last_value():
    item = random_item(np.random.default_rng(3))
    assert full_scores(item, 2.0)["reward_only"] == item[3][-1]


def test_constant_reward_leaves_the_base_policy_within_the_candidates():
    log_pi, gold, values, prefix = random_item(np.random.default_rng(4))
    constant = (log_pi, gold, np.full_like(values, 3.7), prefix)
    mask = np.random.default_rng(5).random(values.shape) < 0.5
    mask[np.arange(5), gold] = True
    scores = full_scores(constant, 2.0, candidate_mask=mask)
    within = np.where(mask, np.exp(log_pi), 0)
    expected = np.log(within[np.arange(5), gold] / within.sum(1)).sum()
    assert scores["rgd_topk"] == pytest.approx(expected, abs=1e-12)
    assert scores["rgd_full"] == pytest.approx(scores["base"], abs=1e-12)


def test_prefix_only_constants_do_not_move_rgd_but_move_raw_value():
    item = random_item(np.random.default_rng(6))
    offset = np.random.default_rng(7).normal(size=(5, 1)) * 10
    before, after = full_scores(item, 1.5), full_scores(item, 1.5, offset)
    for name in ("rgd_full", "rgd_topk"):
        assert after[name] == pytest.approx(before[name], abs=1e-11)
    shifted = full_scores((*item[:3], item[3] + 1.0), 1.5)
    assert shifted["raw_delta"] == pytest.approx(before["raw_delta"], abs=1e-12)
    assert shifted["raw_value"] == pytest.approx(before["raw_value"] + 1.5 * 5 * 1.0, abs=1e-12)


def test_log_probability_rewards_give_the_product_of_policies():
    """With r = log π_r the guided policy is π · π_r^λ, normalised."""
    log_pi, gold, _, prefix = random_item(np.random.default_rng(8))
    other = random_item(np.random.default_rng(9))[0]
    scores = full_scores((log_pi, gold, other, prefix), 0.4)
    mixed = np.exp(log_pi) * np.exp(other) ** 0.4
    expected = np.log(mixed[np.arange(5), gold] / mixed.sum(1)).sum()
    assert scores["rgd_full"] == pytest.approx(expected, abs=1e-12)


def test_temperature_divides_the_whole_exponent():
    log_pi, gold, values, _ = item = random_item(np.random.default_rng(10))
    exponent = np.exp((log_pi + 0.8 * values) / 0.5)
    expected = np.log(exponent[np.arange(5), gold] / exponent.sum(1)).sum()
    assert full_scores(item, 0.8, temperature=0.5)["rgd_full"] == pytest.approx(expected, abs=1e-12)


def test_cover_rules():
    e = np.e
    two = 0.5 * e + 0.3 / e
    inside = np.log(0.5 * e / two * (0.3 / e) / two)
    assert fixture_scores(cover="add")["rgd_topk"] == pytest.approx(inside + np.log(0.2 / (two + 0.2)))
    assert fixture_scores(cover="floor")["rgd_topk"] == pytest.approx(inside + np.log(FLOOR))
    assert np.isnan(fixture_scores(cover="exclude")["rgd_topk"])
    assert np.isnan(fixture_scores(cover="exclude")["mean_rgd_topk"])
    assert fixture_scores(cover="exclude")["rgd_full"] == fixture_scores()["rgd_full"]
    for cover in ("add", "floor", "exclude"):
        covered = fixture_scores(cover=cover, in_top_k=[True] * 3)
        assert covered["rgd_topk"] == fixture_scores(cover="add")["rgd_topk"]


def test_coverage():
    assert coverage(GOLDEN["in_top_2"]) == 2 / 3
    assert np.isnan(coverage([]))


def test_an_empty_completion_scores_zero_and_its_prompt_value():
    none = np.zeros((0, 3))
    scores = policy_scores(
        [],
        [0.25],
        2.0,
        candidate_log_probs=none,
        candidate_rewards=none,
        gold_column=[],
        full_log_probs=none,
        full_rewards=none,
        gold_ids=[],
    )
    assert scores["reward_only"] == 0.25
    assert all(value == 0 for name, value in scores.items() if name != "reward_only")


def test_variants_without_their_arrays_are_absent():
    scores = policy_scores([-1.0], [0.0, 1.0], 1.0)
    assert "rgd_topk" not in scores and "rgd_full" not in scores and scores["raw_delta"] == 0.0


def test_impossible_completions_are_missing_and_not_a_tie():
    impossible = policy_scores([-np.inf], [0.0, 1.0], 1.0)
    assert impossible["base"] == -np.inf
    margins = variant_margins(impossible, impossible)
    assert np.isnan(margins["base"]) and margins["reward_only"] == 0.0
    assert variant_margins(policy_scores([-1.0], [0.0, 1.0], 1.0), impossible)["base"] == np.inf


def test_a_missing_reward_stays_missing():
    scores = policy_scores([-1.0, -1.0], [0.0, np.nan, np.nan], 1.0)
    assert np.isnan(scores["raw_value"]) and np.isnan(scores["reward_only"]) and scores["base"] == -2.0


def test_large_scores_do_not_overflow():
    item = random_item(np.random.default_rng(11))
    assert np.isfinite(full_scores(item, 1e6)["rgd_full"])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"cover": "drop"}, ConfigError, "add, floor, exclude"),
        ({"temperature": 0.0}, ConfigError, "temperature is 0.0"),
        ({"candidate_rewards": np.zeros((3, 2))}, ShapeError, r"\(3, 2\)"),
        ({"candidate_mask": np.ones((2, 3))}, ShapeError, "candidate_mask"),
        ({"gold_column": None}, ShapeError, "without the column"),
        ({"gold_column": [0, 1, 3]}, ShapeError, "not among the candidate columns"),
        ({"candidate_mask": np.tile([True, True, False], (3, 1))}, ShapeError, "masked"),
        ({"in_top_k": [True]}, ShapeError, "in_top_k"),
        ({"full_log_probs": np.zeros((2, 3))}, ShapeError, "full_log_probs"),
    ],
)
def test_bad_arguments(changes, error, words):
    with pytest.raises(error, match=words):
        fixture_scores(**changes)


def test_bad_lengths_and_weights():
    with pytest.raises(ShapeError, match=r"prefix_rewards has shape \(1,\), expected \(T \+ 1,\) = \(2,\)"):
        policy_scores([-1.0], [0.0], 1.0)
    with pytest.raises(ShapeError, match="log_probs"):
        policy_scores([[-1.0]], [0.0, 1.0], 1.0)
    with pytest.raises(ConfigError, match="guidance_weight is inf"):
        policy_scores([-1.0], [0.0, 1.0], float("inf"))
