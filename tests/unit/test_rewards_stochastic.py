"""Minibatch optimisers: what they find, when they stop, what they keep, and that a seed decides everything."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.rewards.stochastic import (
    batches,
    cosine_rate,
    minimise_held_out,
    minimise_stochastic,
    trailing_means,
)


def regression(seed=0, rows=64, width=4, noise=0.1):
    """Return rows, targets and the least-squares solution."""
    rng = np.random.default_rng(seed)
    inputs = torch.from_numpy(rng.normal(size=(rows, width)))
    targets = inputs @ torch.from_numpy(rng.normal(size=width)) + noise * torch.from_numpy(rng.normal(size=rows))
    return inputs, targets, torch.linalg.lstsq(inputs, targets).solution


def squares(weights, inputs, targets):
    return lambda rows, _when: (inputs[rows] @ weights - targets[rows]).square().mean()


def fixed(seed=0, steps=600, batch_size=16):
    inputs, targets, solution = regression()
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    trace = minimise_stochastic(
        squares(weights, inputs, targets),
        [{"params": [weights], "lr": 0.05, "unit": 9.0}],
        num_rows=64,
        steps=steps,
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(seed),
    )
    return weights.detach(), trace, solution


def test_a_falling_rate_ends_at_the_least_squares_solution():
    weights, trace, solution = fixed()
    torch.testing.assert_close(weights, solution, atol=5e-3, rtol=0)
    assert len(trace.losses) == 600
    assert trace.converged


@pytest.mark.parametrize(("slope", "stands"), [(1.0, False), (0.05, True), (-1.0, True)])
def test_a_fit_whose_last_steps_still_gain_has_not_converged(slope, stands):
    weights = torch.zeros(1, requires_grad=True)
    trace = minimise_stochastic(
        lambda rows, part: 0 * weights.sum() + 2 - slope * part,
        [{"params": [weights], "lr": 0.1}],
        num_rows=4,
        steps=100,
        batch_size=4,
        generator=torch.Generator(),
    )
    assert trace.converged is stands


def test_a_seed_decides_the_bits_and_the_global_generator_nothing():
    before = torch.get_rng_state()
    first, again, other = fixed(seed=1, steps=50), fixed(seed=1, steps=50), fixed(seed=2, steps=50)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


def test_every_pass_visits_each_row_once_in_an_order_of_its_own():
    rows = batches(10, 4, torch.Generator().manual_seed(0))
    passes = [[next(rows) for _ in range(3)] for _ in range(2)]
    assert [len(batch) for batch in passes[0]] == [4, 4, 2]
    orders = [torch.cat(parts).tolist() for parts in passes]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1]


def test_the_rate_warms_up_and_falls_to_a_hundredth():
    rates = [cosine_rate(step, 1000) for step in range(1000)]
    assert rates[:30] == pytest.approx([(step + 1) / 30 for step in range(30)])
    assert rates[515] == pytest.approx(0.01 + 0.99 / 2, abs=1e-3)
    assert rates[-1] == pytest.approx(0.01, abs=1e-4)
    assert all(later <= earlier for earlier, later in pairwise(rates[30:]))


def test_trailing_means_are_those_of_a_slow_loop():
    values = np.random.default_rng(0).normal(size=17).tolist()
    slow = [np.mean(values[max(0, place - 4) : place + 1]) for place in range(17)]
    np.testing.assert_allclose(trailing_means(values, 5), slow, atol=1e-12)


def test_a_loss_that_is_not_finite_is_named_by_its_step():
    weights = torch.zeros(1, requires_grad=True)
    with pytest.raises(DataError, match=r"training step 3 is nan; lower the learning rate"):
        minimise_stochastic(
            lambda rows, part: weights.sum() * (math.nan if part >= 0.2 else 1.0),
            [{"params": [weights], "lr": 0.1}],
            num_rows=4,
            steps=10,
            batch_size=4,
            generator=torch.Generator(),
        )


def held_out(held_out_loss, *, max_steps=400, patience=60, judge_from=0, weights=None):
    inputs, targets, _ = regression()
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True) if weights is None else weights
    trace = minimise_held_out(
        squares(weights, inputs, targets),
        held_out_loss,
        [{"params": [weights], "lr": 0.05}],
        num_rows=64,
        max_steps=max_steps,
        patience=patience,
        judge_from=judge_from,
        batch_size=16,
        generator=torch.Generator().manual_seed(0),
    )
    return weights.detach(), trace


def test_what_is_judged_is_what_is_kept():
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    seen, losses = [], [5.0, 3.0, 4.0, 3.0, 3.5, 9.0]

    def judge():
        seen.append(weights.detach().clone())
        return losses[len(seen) - 1]

    kept, trace = held_out(judge, weights=weights)
    # Judged at 20, 40, ...: the second look is the best, and 60 steps after it the fit ends.
    assert len(seen) == 5
    assert len(trace.losses) == 100
    assert trace.converged
    assert torch.equal(kept, seen[1])


def test_what_is_judged_is_a_running_average_of_the_parameters():
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    judged = []

    def judge():
        judged.append(weights.detach().clone())
        return 1.0

    held_out(judge, weights=weights, max_steps=40, patience=40)
    inputs, targets, _ = regression()
    by_hand = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    average, optimiser = by_hand.detach().clone(), torch.optim.AdamW([by_hand], lr=0.05, weight_decay=0.0)
    rows = batches(64, 16, torch.Generator().manual_seed(0))
    for step in range(40):
        optimiser.param_groups[0]["lr"] = 0.05 * min(1.0, (step + 1) / 30)
        chosen = next(rows)
        optimiser.zero_grad()
        (inputs[chosen] @ by_hand - targets[chosen]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_([by_hand], 1.0)
        optimiser.step()
        memory = min(0.99, (1 + step) / (10 + step))
        average = memory * average + (1 - memory) * by_hand.detach()
    torch.testing.assert_close(judged[1], average, atol=1e-12, rtol=0)


def test_the_limit_means_nothing_once_patience_ends_a_fit():
    inputs, targets, _ = regression(seed=3)

    def run(max_steps):
        weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        return held_out(
            lambda: float((inputs @ weights.detach() - targets).square().mean()), max_steps=max_steps, weights=weights
        )

    few, many = run(2000), run(10000)
    assert few[1].converged
    assert torch.equal(few[0], many[0])
    assert few[1] == many[1]
    assert not run(40)[1].converged


def test_nothing_is_kept_from_before_the_first_look():
    looks = []

    def judge():
        looks.append(len(looks))
        return float(len(looks))

    _, trace = held_out(judge, judge_from=50, patience=40)
    # Looks at 60, 80 and 100; the first is the best.
    assert len(looks) == 3
    assert len(trace.losses) == 100


def test_patience_too_short_for_one_look_is_refused():
    with pytest.raises(ConfigError, match="patience is 19; expected at least 20"):
        held_out(lambda: 0.0, patience=19)
