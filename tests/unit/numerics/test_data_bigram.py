"""The bigram control against brute force: every sequence is listed, every claim is a sum over them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.numerics.bigram import (
    BigramTable,
    bigram_table,
    expected_utility,
    log_prob,
    sample,
    soft_values,
    tilt,
)

WORDS = ("red", "green", "blue")
MAX_LENGTH = 4
UTILITIES = np.array([1.3, -0.7, 0.4, 0.0])


def sequences(min_length: int) -> list[tuple[int, ...]]:
    return [ids for length in range(min_length, MAX_LENGTH + 1) for ids in product(range(len(WORDS)), repeat=length)]


@pytest.fixture
def table() -> BigramTable:
    return bigram_table(WORDS, seed=3)


def test_one_probability_by_hand():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375], [1 / 3, 1 / 3, 1 / 3]])
    table = BigramTable(("a", "b"), np.log(probabilities))
    # After "a": "b" among words only (0.25 / 0.75), then "a" (0.125), then the end (0.25).
    assert np.exp(table.log_prob(0, [1, 0], max_length=3)) == pytest.approx(0.25 / 0.75 * 0.125 * 0.25, abs=1e-15)
    # At full length no end token is drawn.
    assert np.exp(table.log_prob(0, [1, 0], max_length=2)) == pytest.approx(0.25 / 0.75 * 0.125, abs=1e-15)
    assert np.exp(table.log_prob(0, [], max_length=2, min_length=0)) == pytest.approx(0.25, abs=1e-15)
    assert table.log_prob(0, [], max_length=2) == -np.inf
    assert table.log_prob(0, [0, 0, 0], max_length=2) == -np.inf


@pytest.mark.parametrize("min_length", [0, 1, 2, 4])
def test_probabilities_of_all_sequences_sum_to_one(table, min_length):
    for prompt_last in range(len(WORDS)):
        total = sum(np.exp(table.log_prob(prompt_last, ids, MAX_LENGTH, min_length)) for ids in sequences(0))
        assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("min_length", [0, 1, 2])
@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 7.0])
def test_tilted_law_is_the_closed_form_optimum(table, beta, min_length):
    law = table.law(MAX_LENGTH, min_length)
    tilted = tilt(law, UTILITIES, beta)
    values = soft_values(law, UTILITIES, beta)
    for prompt_last in range(len(WORDS)):
        ids = sequences(min_length)
        weights = np.array([log_prob(law, prompt_last, y) + UTILITIES[list(y)].sum() / beta for y in ids])
        log_z = np.logaddexp.reduce(weights)
        assert values[0, prompt_last] / beta == pytest.approx(log_z, abs=1e-12)
        found = np.array([log_prob(tilted, prompt_last, y) for y in ids])
        np.testing.assert_allclose(np.exp(found), np.exp(weights - log_z), rtol=0, atol=1e-12)
        assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-12)
        utility = np.array([UTILITIES[list(y)].sum() for y in ids])
        assert expected_utility(tilted, UTILITIES)[prompt_last] == pytest.approx(np.exp(found) @ utility, abs=1e-12)


def test_soft_value_of_every_prefix(table):
    """V(t, w) is beta log of the mean of exp(rest / beta) over all ways to go on."""
    beta, law = 0.8, table.law(MAX_LENGTH)
    values = soft_values(law, UTILITIES, beta)
    for step in range(1, MAX_LENGTH):
        rest = table.law(MAX_LENGTH)[step:]
        for word in range(len(WORDS)):
            ways = [ids for ids in sequences(0) if len(ids) <= MAX_LENGTH - step]
            mean = sum(np.exp(log_prob(rest, word, y) + UTILITIES[list(y)].sum() / beta) for y in ways)
            assert values[step, word] == pytest.approx(beta * np.log(mean), abs=1e-12)
    assert not values[MAX_LENGTH].any()


def test_no_utility_is_no_tilt_and_a_small_beta_finds_the_best(table):
    law = table.law(MAX_LENGTH)
    np.testing.assert_allclose(np.exp(tilt(law, np.zeros(4), 1.0)), np.exp(law), atol=1e-12)
    best = sample(tilt(law, UTILITIES, 0.01), 2, np.random.default_rng(0))
    assert best == [0, 0, 0, 0]


def test_samples_have_the_stated_frequencies(table):
    law = tilt(table.law(2), UTILITIES, 1.0)
    rng = np.random.default_rng(0)
    draws = [tuple(sample(law, 1, rng)) for _ in range(4000)]
    for ids in [ids for ids in sequences(1) if len(ids) <= 2]:
        probability = np.exp(log_prob(law, 1, ids))
        error = np.sqrt(probability * (1 - probability) / len(draws))
        assert abs(draws.count(ids) / len(draws) - probability) < 4.5 * error


def test_words_and_refusals(table):
    assert table.ids("blue red") == [2, 0]
    assert table.text([2, 0]) == "blue red"
    assert table.sample(0, np.random.default_rng(1), 3) == table.sample(0, np.random.default_rng(1), 3)
    with pytest.raises(ConfigError, match="'pink' is not among the 3 words"):
        table.ids("red pink")
    with pytest.raises(ShapeError, match=r"expected \(V, V\) = \(4, 4\)"):
        BigramTable(WORDS, np.zeros((3, 3)))
    with pytest.raises(ShapeError, match="row 0 of log_probs sums to 4"):
        BigramTable(WORDS, np.zeros((4, 4)))
    with pytest.raises(ShapeError, match=r"expected \(V,\) = \(4,\)"):
        soft_values(table.law(2), np.zeros(3), 1.0)
    with pytest.raises(ConfigError, match="beta is 0"):
        soft_values(table.law(2), UTILITIES, 0)
    with pytest.raises(ConfigError, match=r"lengths are 3\.\.2"):
        table.law(2, 3)
    with pytest.raises(ConfigError, match="at least 2 different words"):
        bigram_table(("a", "a"), 0)
    with pytest.raises(ConfigError, match="end_probability 1"):
        bigram_table(WORDS, 0, end_probability=1)
