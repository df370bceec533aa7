"""Points of the simplex: softmax, projection, and the likeliest weights against scipy and by their own conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from rewardgap.core.errors import ShapeError
from rewardgap.numerics.simplex import likeliest_weights, project_to_simplex, softmax_weights


def objective(weights, margins, prior, ridge):
    return np.logaddexp(0, -(margins @ weights)).mean() + ridge * ((weights - prior) ** 2).sum()


def test_softmax_weights_ignore_a_constant_and_one_logit_has_weight_one():
    logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(softmax_weights(logits), softmax_weights(logits + 7))
    assert softmax_weights(torch.tensor([[123.0]])).item() == 1.0


def test_projection_is_the_nearest_point():
    points = torch.tensor([[0.2, 0.3, 0.5], [1.0, 1.0, 1.0], [5.0, 0.0, 0.0], [-1.0, -1.0, -4.0]], dtype=torch.float64)
    expected = torch.tensor([[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(project_to_simplex(points), expected.double())


def test_projection_against_scipy():
    rng = np.random.default_rng(0)
    for point in rng.normal(scale=2, size=(10, 4)):
        found = minimize(
            lambda w, point=point: ((w - point) ** 2).sum(),
            np.full(4, 0.25),
            method="SLSQP",
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(project_to_simplex(torch.from_numpy(point)).numpy(), found.x, atol=1e-6)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("rank", [2, 3, 8])
@pytest.mark.parametrize("count", [1, 8, 40])
def test_likeliest_weights_against_scipy_and_their_conditions(scale, rank, count):
    rng = np.random.default_rng([rank, count])
    margins, prior, ridge = scale * rng.normal(size=(count, rank)), rng.dirichlet(np.ones(rank)), 1e-2
    weights = likeliest_weights(margins, prior, ridge)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-12)

    # At the optimum no direction inside the simplex goes down: g·(e_j - w) >= 0 for every vertex j.
    wrong = 0.5 * (1 - np.tanh(margins @ weights / 2))
    gradient = -wrong @ margins / count + 2 * ridge * (weights - prior)
    assert (gradient - gradient @ weights).min() > -1e-9 * max(1.0, scale)

    found = minimize(
        objective,
        prior,
        args=(margins, prior, ridge),
        method="SLSQP",
        bounds=[(0, 1)] * rank,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert objective(weights, margins, prior, ridge) <= objective(found.x, margins, prior, ridge) + 1e-12 * max(
        100.0, scale
    )


def test_two_vertices_are_a_line_search():
    rng = np.random.default_rng(3)
    margins, prior = rng.normal(size=(6, 2)), np.array([0.4, 0.6])
    grid = np.linspace(0, 1, 100_001)
    values = np.logaddexp(0, -(margins @ np.stack([grid, 1 - grid]))).mean(0) + 0.01 * 2 * (grid - 0.4) ** 2
    assert likeliest_weights(margins, prior, 0.01)[0] == pytest.approx(grid[values.argmin()], abs=1e-5)


def test_nothing_revealed_gives_the_prior_itself():
    prior = np.array([0.1, 0.7, 0.2])
    assert likeliest_weights(np.zeros((0, 3)), prior, 0.01).tolist() == prior.tolist()
    np.testing.assert_allclose(likeliest_weights(np.zeros((4, 3)), prior, 0.01), prior, atol=1e-10)


def test_widths_must_agree():
    with pytest.raises(ShapeError, match="prior has shape"):
        likeliest_weights(np.zeros((2, 3)), np.array([0.5, 0.5]), 0.01)
