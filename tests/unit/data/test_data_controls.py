"""The controls with a known truth: feature worlds and the bigram text users."""

from __future__ import annotations

import numpy as np
import pytest

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.data.catalog import load_dataset
from rewardgap.data.synthetic import World, make_world
from rewardgap.data.synthetic_text import WORDS, load_synthetic_text, truth
from rewardgap.numerics.bigram import expected_utility, log_prob


@pytest.mark.parametrize(("kind", "ceiling"), [("A", 1.0), ("B", 1.0), ("C", 0.885)])
def test_worlds_have_the_stated_shape_and_ceiling(kind, ceiling):
    world = load_dataset("synthetic", world=kind, seed=1)
    assert isinstance(world, World)
    assert world.train.chosen.shape == world.train.rejected.shape == (60 * 40, 32)
    assert (len(world.test_seen), len(world.support), len(world.test_unseen)) == (60 * 200, 20 * 20, 20 * 200)
    assert len(world.seen_users) == 60
    assert len(world.unseen_users) == 20
    assert set(world.user_vectors) == {*world.seen_users, *world.unseen_users}
    np.testing.assert_allclose(world.basis.T @ world.basis, np.eye(3), atol=1e-12)
    assert world.oracle_accuracy(world.test_unseen) == pytest.approx(ceiling, abs=0.02)
    one = world.support.of_user("new03")
    assert set(one.user.tolist()) == {"new03"}
    assert len(one) == 20


def test_worlds_differ_as_stated():
    simplex, signed = make_world("A", num_seen=20), make_world("B", num_seen=20)
    weights = np.stack([simplex.basis.T @ vector for vector in simplex.user_vectors.values()])
    assert weights.min() >= -1e-12
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-12)
    weights = np.stack([signed.basis.T @ vector for vector in signed.user_vectors.values()])
    assert weights.min() < 0
    np.testing.assert_allclose(np.linalg.norm(weights, axis=1), 1.0, atol=1e-12)


def test_worlds_are_decided_by_the_seed():
    small = {"num_seen": 3, "num_unseen": 2, "test_pairs": 5}
    np.testing.assert_array_equal(make_world("C", 5, **small).train.chosen, make_world("C", 5, **small).train.chosen)
    assert not np.array_equal(make_world("C", 5, **small).train.chosen, make_world("C", 6, **small).train.chosen)
    with pytest.raises(ConfigError, match="rank is 9, expected at most dimension = 4"):
        make_world("A", dimension=4, rank=9)
    with pytest.raises(ConfigError, match="world is 'D', expected one of A, B, C"):
        load_dataset("synthetic", world="D")
    with pytest.raises(ConfigError, match="num_seen is 0"):
        make_world("A", num_seen=0)


def test_text_users_choose_by_utility_and_write_from_their_own_law():
    data = load_dataset("synthetic_text", users=6, rows_per_user=10)
    known = truth(users=6)
    assert data.users() == known.user_ids == tuple(f"s0{number}" for number in range(6))
    for pair in data.pairs:
        assert known.utility(pair.user_id, pair.chosen) > known.utility(pair.user_id, pair.rejected)
        assert len(pair.prompt.split()) == 2
        for text in (pair.chosen, pair.rejected, pair.reference):
            assert 1 <= len(text.split()) <= 6
            assert text == known.table.text(known.table.ids(text))
    for user in data.users():
        assert len({pair.prompt for pair in data.of_user(user)}) == 10


def test_utility_is_the_sum_of_word_values():
    known = truth(users=3)
    values = known.token_utilities("s01")
    assert values.shape == (len(WORDS) + 1,)
    assert values[-1] == 0
    assert known.utility("s01", f"{WORDS[2]} {WORDS[5]} {WORDS[2]}") == pytest.approx(2 * values[2] + values[5])
    assert known.utility("s01", "something else") == 0
    np.testing.assert_allclose(known.tastes.mean(axis=1), 0, atol=1e-12)
    with pytest.raises(DataError, match="no user 's99'"):
        known.token_utilities("s99")


def test_references_have_the_utility_that_theory_says():
    """The mean over many references lies at the mean of the tilted law, far above the base policy's."""
    data = load_synthetic_text(users=20, rows_per_user=40, seed=3)
    known = truth(3, 20)
    differences, gains = [], []
    for user in data.users():
        values = known.token_utilities(user)
        tilted = expected_utility(known.user_law(user), values)
        base = expected_utility(known.base_law, values)
        for pair in data.of_user(user):
            last = known.table.ids(pair.prompt)[-1]
            differences.append(known.utility(user, pair.reference) - tilted[last])
            gains.append(tilted[last] - base[last])
    error = np.std(differences) / np.sqrt(len(differences))
    assert abs(np.mean(differences)) < 4 * error
    assert np.mean(gains) > 1.0


def test_a_smaller_beta_is_more_eager():
    known = truth(users=4)
    values = known.token_utilities("s00")
    means = [expected_utility(known.user_law("s00", beta), values).mean() for beta in (4.0, 1.0, 0.25)]
    assert means == sorted(means)


def test_noisy_labels_follow_bradley_terry():
    data = load_synthetic_text(users=30, rows_per_user=60, label="bradley_terry", seed=2)
    known = truth(2, 30)
    gaps = [known.utility(p.user_id, p.chosen) - known.utility(p.user_id, p.rejected) for p in data.pairs]
    expected = [1 / (1 + np.exp(-abs(gap))) for gap in gaps]
    assert np.mean(np.array(gaps) > 0) == pytest.approx(np.mean(expected), abs=0.03)


def test_more_users_leave_the_first_as_they_were():
    few, many = load_synthetic_text(users=3, rows_per_user=5), load_synthetic_text(users=8, rows_per_user=5)
    assert few.pairs == many.pairs[:15]
    assert few.pairs != load_synthetic_text(users=3, rows_per_user=5, seed=1).pairs


def test_signed_tastes_have_opposites_and_simplex_tastes_do_not():
    assert truth(users=40, mixture="signed").weights.min() < -0.5
    weights = truth(users=40).weights
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)


def test_options_out_of_range():
    for options, words in (
        ({"users": 0}, "users is 0"),
        ({"beta": 0}, "beta is 0"),
        ({"rows_per_user": 145}, r"rows_per_user is 145, expected 1..144"),
        ({"mixture": "x"}, "mixture is 'x'"),
        ({"label": "x"}, "label is 'x'"),
        ({"agreement": 1.5}, "agreement is 1.5, expected a number from 0 to 1"),
        ({"agreement": -0.1}, "agreement is -0.1"),
        ({"noise": 0.6}, "noise is 0.6, expected a number from 0 to 0.5"),
        ({"noise": float("nan")}, "noise is nan"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_dataset("synthetic_text", **options)


@pytest.mark.parametrize(
    ("options", "fingerprint"),
    [
        ({}, "7e5f486994b86a2b719ecb48e488641db430d017d8c380b0f015ffdcf391772e"),
        (
            {"seed": 5, "users": 4, "rows_per_user": 7, "label": "bradley_terry", "mixture": "signed", "beta": 0.5}
            | {"max_length": 3},
            "fc458661e9d8c29ec5abe3926b607f7f3ee03540d679eb4970d7e31b2378911b",
        ),
    ],
)
def test_rows_are_those_there_were_before_the_dials(options, fingerprint):
    """Hashes taken before agreement and noise existed."""
    assert load_synthetic_text(**options).fingerprint() == fingerprint
    assert load_synthetic_text(**options, agreement=0, noise=0, name="other").fingerprint() == fingerprint


def test_agreement_goes_from_independent_tastes_to_one():
    def likeness(agreement):
        known = truth(2, 40, mixture="signed", agreement=agreement)
        values = np.stack([known.token_utilities(user) for user in known.user_ids])
        found = np.corrcoef(values)[np.triu_indices(40, 1)].mean()
        return found, values

    steps = [likeness(agreement) for agreement in (0, 0.25, 0.5, 0.75, 1)]
    means = [mean for mean, _ in steps]
    assert abs(means[0]) < 0.2
    assert means == sorted(means)
    assert means[-1] == pytest.approx(1)
    first, last = steps[0][1], steps[-1][1]
    np.testing.assert_allclose(last, np.broadcast_to(last[0], last.shape), atol=1e-12)
    for share, (_, values) in zip((0.25, 0.5, 0.75), steps[1:4], strict=True):
        spread = (1 - share) * first[:, :-1].std(1) + share * last[:, :-1].std(1)
        np.testing.assert_allclose(values[:, :-1].std(1), spread, rtol=1e-9)


def test_noise_exchanges_sides_and_nothing_else():
    """The same texts at every noise; more of it exchanges the same pairs and others."""
    clean = load_synthetic_text(users=25, rows_per_user=40, seed=4).pairs
    before = np.zeros(len(clean), bool)
    for noise in (0.1, 0.3, 0.5):
        noisy = load_synthetic_text(users=25, rows_per_user=40, seed=4, noise=noise).pairs
        flipped = np.array([pair.chosen != other.chosen for pair, other in zip(clean, noisy, strict=True)])
        for pair, other, exchanged in zip(clean, noisy, flipped, strict=True):
            sides = (pair.rejected, pair.chosen) if exchanged else (pair.chosen, pair.rejected)
            assert (other.chosen, other.rejected) == sides
            assert (other.user_id, other.prompt, other.reference) == (pair.user_id, pair.prompt, pair.reference)
        assert flipped.mean() == pytest.approx(noise, abs=4 * np.sqrt(noise * (1 - noise) / len(clean)))
        assert (flipped | ~before).all()
        before = flipped


def test_the_base_law_is_the_table():
    known = truth(users=2)
    text = known.table.ids("river stone")
    assert log_prob(known.base_law, 0, text) == pytest.approx(known.table.log_prob(0, text, 6))
