"""PReF and MPU at the size of a study, and the whole experiment on asking well."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewardgap.numerics.logistic import choice_variance
from rewardgap.rewards.active import DOptimal, ask
from rewardgap.rewards.heads import MPU, GlobalBT, PReF
from worlds import Pairs, World, macro_accuracy, planted_world

pytestmark = pytest.mark.slow


def fitted(head, world):
    return head.fit(world.train.chosen, world.train.rejected, world.user)


class Rule:
    """The user model of an interview, with another rule for what to ask."""

    def __init__(self, interview, gains):
        self.interview, self.prompts, self.gains = interview, interview.prompts, gains

    def state(self, answers):
        return self.interview.state(answers)


def test_asking_well_over_sixty_users():
    head = PReF(rank=6)
    head.build(6, ["nobody"], dtype=torch.float64)
    head.basis, head.weights = torch.eye(6, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
    head.precision = 0.1 * torch.eye(6, dtype=torch.float64)
    spread = np.array([2, 1.5, 1, 0.6, 0.4, 0.3])
    found = {"d_optimal": [], "squared": [], "random": []}
    for run in range(60):
        rng = np.random.default_rng(run)
        truth = rng.normal(size=6)
        truth *= 3 / np.linalg.norm(truth)
        rows, test, luck = rng.normal(size=(400, 6)) * spread, rng.normal(size=(2000, 6)) * spread, rng.random(400)
        well = DOptimal(head, rows, np.zeros_like(rows), [str(row) for row in range(400)])

        def squared(answers, well=well, rows=rows):
            belief = well.belief(answers)
            leverage = np.einsum("md,de,me->m", rows, np.linalg.inv(belief.precision), rows)
            return choice_variance(rows @ belief.mean) ** 2 * leverage

        rules = {
            "d_optimal": well,
            "squared": Rule(well, squared),
            "random": Rule(well, lambda answers, rng=np.random.default_rng(run + 1000): rng.random(400)),
        }
        first = int(rng.integers(400))
        for name, rule in rules.items():
            # The first question is drawn, and the same for all.
            answers, reached = {first: float(luck[first] < 1 / (1 + np.exp(-rows[first] @ truth)))}, []
            for more in (4, 5, 10):
                answers = ask(
                    rule,
                    lambda row, rows=rows, luck=luck, truth=truth: float(
                        luck[row] < 1 / (1 + np.exp(-rows[row] @ truth))
                    ),
                    more,
                    answers,
                )
                weights = rule.state(answers).values["weights"].numpy()
                reached.append(weights @ truth / (3 * np.linalg.norm(weights)))
            reached.append(((test @ weights) * (test @ truth) > 0).mean())
            found[name].append(reached)
    means = {name: np.mean(values, axis=0) for name, values in found.items()}
    # Cosine after 5, 10 and 20 questions, accuracy after 20; each within about two standard errors of 60 users.
    np.testing.assert_allclose(means["d_optimal"], [0.57, 0.74, 0.87, 0.91], atol=0.07)
    np.testing.assert_allclose(means["random"], [0.53, 0.62, 0.71, 0.85], atol=0.07)
    gain = np.array(found["d_optimal"]) - np.array(found["random"])
    error = gain.std(axis=0, ddof=1) / np.sqrt(60)
    assert (gain.mean(axis=0) - 2 * error)[1:].min() > 0.03
    assert means["d_optimal"][2] > means["squared"][2] - 0.02


def test_many_users_in_many_features():
    # Choices of 12,000 pairs from 300 users in 576 features; three directions hold all tastes.
    worlds = [
        planted_world("simplex", seed, num_seen=300, num_unseen=30, train=40, width=576, slope=4.0, test=100)
        for seed in (0, 1)
    ]
    rows = []
    for world in worlds:
        heads = [fitted(head, world) for head in (GlobalBT(), MPU(), MPU(init="global"), PReF(rank=3))]
        assert all(head.history.converged for head in heads)
        rows.append([[macro_accuracy(head, world, users) for users in (world.seen, world.unseen)] for head in heads])
    shared, own, centred, factored = np.mean(rows, axis=0)
    assert (factored > shared + 0.08).all()
    assert (shared > own + 0.1).all()
    assert (centred > shared - 0.005).all()


def test_more_features_than_pairs_is_not_worse_than_the_global_head():
    worlds = [
        planted_world("simplex", seed, num_seen=40, num_unseen=20, train=20, width=576, slope=2.0) for seed in range(6)
    ]
    accuracy = {
        name: np.mean([[macro_accuracy(fitted(build(), w), w, u) for u in (w.seen, w.unseen)] for w in worlds], axis=0)
        for name, build in (("global", GlobalBT), ("pref", PReF))
    }
    assert (accuracy["pref"] > accuracy["global"] - 0.01).all()


def test_the_prior_of_new_users_counts_how_little_training_users_revealed():
    # Of users with 8 pairs each the estimates lie too close together; as a prior they would hold a new user back.
    worlds = [
        planted_world("simplex", seed, num_seen=200, train=8, support=20, num_unseen=40, slope=4.0) for seed in range(4)
    ]
    stated, estimates = [], []
    for world in worlds:
        head = fitted(PReF(rank=3), world)
        few = World(
            world.train,
            world.user,
            world.seen,
            world.unseen,
            {user: Pairs(pairs.chosen[:10], pairs.rejected[:10]) for user, pairs in world.support.items()},
            world.test,
        )
        stated.append(macro_accuracy(head, few, few.unseen))
        apart = head.weights - head.weights.mean(dim=0)
        precision = torch.linalg.inv(apart.T @ apart / len(apart) + 1e-6 * torch.eye(3, dtype=torch.float64))
        head.precision = (precision + precision.T) / 2
        estimates.append(macro_accuracy(head, few, few.unseen))
    assert np.mean(stated) > np.mean(estimates) + 0.003
