"""Exactly k candidates whatever ties there are; the scoring rule; draws with the right odds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.decoding.args import ArgsGreedy, ArgsStochastic
from rewardgap.decoding.catalog import DECODERS
from rewardgap.decoding.plain import Greedy, Sample
from rewardgap.numerics.guidance import draw, guided_scores
from rewardgap.numerics.topk import top_candidates

VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, -3.5, -math.inf])


@given(
    st.integers(1, 12).flatmap(lambda v: st.lists(st.lists(VALUES, min_size=v, max_size=v), min_size=1, max_size=3)),
    st.integers(1, 15),
)
def test_top_candidates_is_a_stable_sort(rows: list[list[float]], k: int) -> None:
    values, indices = top_candidates(torch.tensor(rows, dtype=torch.float64), k)
    for row, got_values, got in zip(rows, values.tolist(), indices.tolist(), strict=True):
        expected = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        assert got == expected
        assert got_values == [row[i] for i in expected]


def test_top_candidates_of_a_wide_tie_takes_the_lowest_ids() -> None:
    _, indices = top_candidates(torch.zeros(2, 50_000), 7)
    assert indices.tolist() == [list(range(7))] * 2


def test_top_candidates_needs_one() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        top_candidates(torch.zeros(1, 3), 0)


def test_scores_add_log_probability_and_weighted_reward() -> None:
    """log .5 + 2 * .25 and log .5 + 2 * (-1)."""
    scores = guided_scores(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, -1.0]]), 2.0)
    torch.testing.assert_close(scores, torch.tensor([[math.log(0.5) + 0.5, math.log(0.5) - 2.0]]).double())


def test_without_weight_the_scores_are_the_log_probabilities() -> None:
    log_probs = torch.randn(3, 4)
    assert torch.equal(guided_scores(log_probs, torch.full((3, 4), torch.inf), 0.0), log_probs.double())


def test_one_reward_a_candidate() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 19\), expected \(B, K\) = \(4, 20\)"):
        guided_scores(torch.zeros(4, 20), torch.zeros(4, 19), 1.0)


@given(st.lists(VALUES, min_size=1, max_size=8), st.floats(0, 1, exclude_max=True), st.floats(0.1, 5))
def test_draw_inverts_the_distribution_function(scores: list[float], uniform: float, temperature: float) -> None:
    if all(score == -math.inf for score in scores):
        return
    picked = int(draw(torch.tensor([scores]).double(), torch.tensor([uniform]), temperature))
    weights = [math.exp(score / temperature) for score in scores]
    total, below = sum(weights), sum(weights[:picked])
    assert weights[picked] > 0
    assert below / total - 1e-12 <= uniform <= (below + weights[picked]) / total + 1e-12


def test_draw_never_takes_what_has_no_mass() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]] * 4).double()
    picked = draw(scores, torch.tensor([0.0, 0.5, 0.499999999, 1 - 2**-53], dtype=torch.float64))
    assert picked.tolist() == [1, 3, 1, 3]


@given(st.lists(VALUES.filter(math.isfinite), min_size=2, max_size=8), st.floats(-50, 50))
def test_an_offset_changes_no_choice(scores: list[float], offset: float) -> None:
    one = torch.tensor([scores]).double()
    uniform = torch.tensor([0.37])
    assert torch.equal(draw(one, uniform), draw(one + offset, uniform)) or _on_border(scores, 0.37)


def _on_border(scores: list[float], uniform: float) -> bool:
    mass = torch.softmax(torch.tensor(scores).double(), 0).cumsum(0)
    return bool((mass - uniform).abs().min() < 1e-9)


def test_greedy_ties_go_to_the_policys_better_candidate() -> None:
    assert ArgsGreedy().choose(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), None).tolist() == [1, 0]


def test_cards_build_their_decoders() -> None:
    for card in DECODERS:
        # CARDS alone has thresholds without a default: they are in units that only the data know.
        decoder = card.build(**({"calibrate": 8} if card.name == "cards" else {}))
        assert decoder.name == card.name
        assert set(card.options) <= set(vars(decoder))


@pytest.mark.parametrize(
    "build",
    [
        lambda: ArgsGreedy(top_k=0),
        lambda: ArgsStochastic(top_k=-1),
        lambda: ArgsStochastic(temperature=0.0),
        lambda: ArgsStochastic(temperature=math.nan),
        lambda: ArgsStochastic(temperature=math.inf),
        lambda: ArgsGreedy(guidance_weight=math.nan),
        lambda: ArgsStochastic(guidance_weight=math.inf),
        lambda: Sample(temperature=-1.0),
        lambda: Sample(temperature=math.inf),
        lambda: Sample(top_k=0),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: object) -> None:
    with pytest.raises(ConfigError):
        build()  # type: ignore[operator]


def test_plain_greedy_takes_the_first() -> None:
    assert Greedy().choose(torch.zeros(3, 1), None).tolist() == [0, 0, 0]
