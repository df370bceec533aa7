"""Candidates that no bounded reward could make win are not read, and nothing that is written changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoregressive import PAIRS
from rewardgap.backbones.session import TrieSession
from rewardgap.core.seeds import child_seed
from rewardgap.decoding.args import ArgsGreedy, ArgsStochastic
from rewardgap.decoding.loop import Decoded, LookAhead, StopRule, decode
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import guided
from rewardgap.rewards.apart import ApartModel
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.guide import BackboneGuide, PrefixGuide
from rewardgap.rewards.heads import PALB
from standins import DotHead, text_backbone, tiny_backbone

PROMPTS = [[1, 2, 3], [(7 * i + 2) % 29 for i in range(23)], [28]]
STOP = StopRule((0, 3, 11), 12, 1, (5,))


def seeded(low: float, high: float):
    """Return a reward of prefixes within a range, both ends of which are taken often."""

    def value(row: int, tokens: tuple[int, ...]) -> float:
        draw = np.random.default_rng(child_seed(0, row, tokens))
        return float(draw.choice([low, high, draw.uniform(low, high)]))

    return value


def write(guide: Any, decoder: Any, look_ahead: LookAhead | None, seeds: Any = ()) -> list[Decoded]:
    session = TrieSession(tiny_backbone("llama"), len(PROMPTS), 200)
    return decode(
        session, session.prefill(PROMPTS), decoder, STOP, guide=guide, seeds=seeds, look_ahead=look_ahead
    )  # fmt: skip


def bounded(low: float, high: float) -> PrefixGuide:
    guide = PrefixGuide(seeded(low, high), len(PROMPTS))
    guide.span = high - low  # type: ignore[attr-defined]
    return guide


@settings(max_examples=25)
@given(
    st.floats(-3, 3),
    st.floats(0, 3),
    st.sampled_from([-1.0, 0.0, 0.2, 1.0, 4.0]),
    st.integers(1, 12),
    st.integers(1, 4),
)
def test_nothing_changes_but_what_is_read(low: float, span: float, weight: float, k: int, steps: int) -> None:
    """Step by step without the bound, and several steps ahead with it: rewards that take both ends of their range."""
    decoder, ahead = ArgsGreedy(weight, k), LookAhead(fixed=steps)
    plain = write(PrefixGuide(seeded(low, low + span), len(PROMPTS)), decoder, None)
    cut = write(bounded(low, low + span), decoder, ahead)
    for one, other in zip(plain, cut, strict=True):
        assert (one.ids, one.ended, one.steps, one.reward) == (other.ids, other.ended, other.steps, other.reward)
        assert (one.alternatives, one.near_ties) == (other.alternatives, other.near_ties)
        assert one.pruned is None and other.pruned is not None
        assert 0 <= other.pruned <= (k - 1) * other.steps
        assert len(other.reward_spread) == len(one.reward_spread)
        if not other.pruned:
            assert other.reward_spread == pytest.approx(one.reward_spread, abs=1e-12)


def test_the_candidates_left_out_are_those_out_of_reach() -> None:
    """At λ = 0 all but the best and its near ties; the wider the range, the fewer."""
    shares = []
    for weight in (0.0, 0.3, 1.0, 50.0):
        rows = write(bounded(0.0, 1.0), ArgsGreedy(weight, 10), LookAhead(fixed=3))
        shares.append(sum(row.pruned or 0 for row in rows) / sum(9 * row.steps for row in rows))
    assert shares[0] == 1.0
    assert shares[0] > shares[1] > shares[2] > shares[3] == 0.0


def test_draws_and_rewards_without_a_bound_are_left_alone() -> None:
    seeds = [4, 5, 6]
    drawn = write(bounded(0.0, 1.0), ArgsStochastic(0.1, 6), LookAhead(fixed=3), seeds)
    plain = write(PrefixGuide(seeded(0.0, 1.0), len(PROMPTS)), ArgsStochastic(0.1, 6), None, seeds)
    assert [row.ids for row in drawn] == [row.ids for row in plain]
    assert all(row.pruned is None for row in drawn)
    weights = [torch.randn(24, generator=torch.Generator().manual_seed(row), dtype=torch.float64) for row in range(3)]
    guide = BackboneGuide(tiny_backbone("mistral"), PROMPTS, DotHead(), weights, 1.0, 200)  # type: ignore[arg-type]
    assert guide.span == math.inf
    assert all(row.pruned is None for row in write(guide, ArgsGreedy(0.1, 6), LookAhead(fixed=3)))


class Squashed(DotHead):
    """A head whose rewards lie within ±1."""

    def batch_rewards(self, features: torch.Tensor, states: Any) -> torch.Tensor:
        return torch.tanh(super().batch_rewards(features, states))


def test_the_reward_model_reads_no_candidate_that_was_left_out() -> None:
    weights = [torch.randn(24, generator=torch.Generator().manual_seed(row), dtype=torch.float64) for row in range(3)]
    tokens = {}
    for span in (math.inf, 2.0):
        guide = BackboneGuide(tiny_backbone("mistral"), PROMPTS, Squashed(), weights, 1.0, 300)  # type: ignore[arg-type]
        guide.span = span
        rows = write(guide, ArgsGreedy(0.3, 8), LookAhead(fixed=1))
        tokens[span] = guide.tokens
        if span == 2.0:
            lost = sum(row.pruned for row in rows if row.pruned is not None)
    assert lost > 0
    assert tokens[math.inf] - tokens[2.0] == lost


def test_a_cosine_takes_its_whole_span() -> None:
    """PAL-B's bound is exact: the images of two texts may point to the ideal and away from it."""
    rng = np.random.default_rng(0)
    chosen, rejected, prompt = (rng.normal(size=(40, 6)) for _ in range(3))
    head = PALB(map_width=6, hidden_width=4, max_steps=20).fit(chosen, rejected, ["u"] * 40, prompt=prompt)
    assert head.reward_span == pytest.approx(2 * float(head.scale))
    with torch.no_grad():
        plain = (torch.eye(6), torch.zeros(6, 4), torch.zeros(6))
        head.skip_weight, head.out_weight, head.bias = (tensor.to(head.mean) for tensor in plain)
        asked = torch.from_numpy(np.tile(prompt[:1], (2, 1)))
        both = torch.cat([torch.zeros(2, 6), asked], 1).to(head.mean)
        state = head.state_of("u")
        ideal = head._ideal(head._halves(both)[1], state.values["weights"].to(head.mean)[None].expand(2, -1))
        sides = ideal * torch.tensor([[1.0], [-1.0]]) * head.std[:6] + head.mean[:6]
        rewards = head.rewards(torch.cat([sides, asked.to(sides)], 1), state)
    assert float(rewards[0] - rewards[1]) == pytest.approx(head.reward_span, rel=1e-5)


def test_pal_b_writes_the_same_texts_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = text_backbone("llama")
    model = reward_model("pal_b", backbone, max_steps=30).fit(PAIRS)
    assert isinstance(model, ApartModel)
    policy = guided(backbone, model, guidance_weight=0.05, top_k=8, settings=GenerationSettings(max_new_tokens=8))
    prompts = ["Why?", "Name a colour of the garden."]
    states = [model.state_of("u0"), model.state_of("u1")]
    cut = policy.open(prompts, states).generate()
    monkeypatch.setattr(PALB, "reward_span", math.inf)
    whole = policy.open(prompts, states).generate()
    assert [row.ids for row in cut] == [row.ids for row in whole]
    assert all(row.pruned is None for row in whole)
    assert sum(row.pruned or 0 for row in cut) > 0
