"""How far to look ahead: the estimates are what they say, and no fixed length is cheaper by the stated cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from rewardgap.core.errors import ConfigError
from rewardgap.decoding.horizon import Horizon, LookAhead

TOP_K = 10


def horizon(look_ahead: LookAhead = LookAhead(), *, nodes: int = TOP_K, guide: float = 0.8, draws: bool = False):
    return Horizon(look_ahead, policy=1.0, guide=guide, nodes=nodes, draws=draws, device="cpu")


def test_a_draft_stands_as_often_as_it_is_said_to() -> None:
    """Against draws of independent normal rewards."""
    generator = np.random.default_rng(0)
    fluency = np.sort(-generator.exponential(2.0, (40, TOP_K)))[:, ::-1]
    rewards = 0.7 * generator.standard_normal((20_000, 1, TOP_K))
    share = ((fluency + rewards).argmax(-1) == 0).mean(0)
    ahead = horizon()
    ahead.learn(1, 1, [0.6, 0.8], None)
    said = ahead._probabilities(torch.tensor(fluency.copy()))
    np.testing.assert_allclose(said, share, atol=0.015)
    assert norm.cdf((fluency[:, 0] - fluency[:, 1]) / (0.7 * 2**0.5)) == pytest.approx(
        [horizon_of_two(row[:2]) for row in fluency], abs=1e-3
    )


def horizon_of_two(fluency: np.ndarray) -> float:
    ahead = horizon()
    ahead.learn(1, 1, [0.7], None)
    (found,) = ahead._probabilities(torch.tensor(fluency.copy())[None])
    return found


def test_what_decoders_draw_stands_as_often_as_it_did() -> None:
    ahead = horizon(draws=True)
    for _ in range(200):
        ahead.learn(4, 3, [1.0], None)
    assert ahead._probabilities(torch.zeros(3, TOP_K)) == pytest.approx([0.75] * 3, abs=0.01)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(("nodes", "guide"), [(TOP_K, 0.8), (TOP_K, 3.0), (1, 1.0)])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_no_fixed_length_is_cheaper_by_the_stated_cost(rows: int, nodes: int, guide: float, spread: float) -> None:
    """Rounds over texts in which the policy is now sure and now not; what they cost by the stated cost, a token."""
    cost = {steps: spent_a_token(LookAhead(fixed=steps), rows, nodes, guide, spread) for steps in range(1, 9)}
    assert spent_a_token(LookAhead(), rows, nodes, guide, spread) < 1.02 * min(cost.values())


def spent_a_token(look_ahead: LookAhead, rows: int, nodes: int, guide: float, spread: float) -> float:
    generator = np.random.default_rng(1)
    ahead, width = horizon(look_ahead, nodes=nodes, guide=guide), 3 if rows == 1 else 1
    spent, written = 0.0, 0
    for _ in range(400):
        # Half of the tokens leave little choice.
        sure = generator.random((rows, 9, 1)) < 0.5
        fluency = np.sort(-generator.exponential(1.0, (rows, 9, TOP_K)) * np.where(sure, 8.0, 1.0))[..., ::-1].copy()
        rewards = spread * generator.standard_normal(fluency.shape)
        choice = (fluency + rewards).argmax(-1)
        lengths, going, steps = [1] * rows, list(range(rows)), 1
        ahead.begin(rows, width)
        while going and steps < ahead.limit:
            going = ahead.goes_on(torch.tensor(fluency[:, steps - 1]), going)
            for row in going:
                lengths[row] += 1
            steps += 1
        passes, unread = max(lengths) - 1, False
        for row, length in enumerate(lengths):
            fallen = next((step for step in range(length) if choice[row, step]), None)
            taken = length if fallen is None else fallen + 1
            known = taken < length and width > 1 and choice[row, taken - 1] < width
            unread = unread or not known
            written += taken
            ahead.learn(taken, taken - (fallen is not None), rewards[row, :taken].std(-1).tolist(),
                        known if taken < length and width > 1 else None)  # fmt: skip
        spent += (passes + unread) * 1.0 + 0.03 * width * sum(lengths) + guide * (1 + 0.03 * nodes * sum(lengths))
    return spent / written


def test_settings_are_checked() -> None:
    for wrong in ({"most": 0}, {"fixed": 0}, {"node_cost": -1.0}, {"node_cost": float("nan")}):
        with pytest.raises(ConfigError, match="look-ahead"):
            LookAhead(**wrong)
