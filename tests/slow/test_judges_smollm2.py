"""Judges on real weights, in float32: what must hold whatever a small model thinks, and what it thinks, printed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.load import load_backbone
from rewardgap.core.records import PreferencePair
from rewardgap.decoding.plain import Greedy
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.policies.asking import judge_prompt
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.catalog import JUDGES, build_judge
from rewardgap.policies.chat_models import LocalChat
from rewardgap.policies.persona import PersonaPolicy
from rewardgap.policies.persona_writing import PersonaSettings
from rewardgap.policies.zero_shot import ZeroShot

pytestmark = [pytest.mark.slow, pytest.mark.real_model]

TOPICS = ["tea", "rain", "bicycles", "bread", "the moon", "winter", "trains", "bees"]
SHORT, LONG = (
    "{0} is fine.",
    "There is a great deal to be said about {0}, and I could go on about it for hours and hours.",
)
CALM, LOUD = "A quiet word on {0}: I like it well enough.", "WOW!!! {0} IS AMAZING!!! I LOVE IT SO MUCH!!!"
USERS = {"short": (SHORT, LONG), "long": (LONG, SHORT), "calm": (CALM, LOUD), "loud": (LOUD, CALM)}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("smollm2-135m")


def pairs_of(user: str) -> list[PreferencePair]:
    chosen, rejected = USERS[user]
    return [
        PreferencePair(
            user_id=user, example_id=f"{user}-{topic}", prompt=f"Say something about {topic}.",
            chosen=chosen.format(topic), rejected=rejected.format(topic),
        )
        for topic in TOPICS
    ]  # fmt: skip


def swapped(pair: PreferencePair) -> PreferencePair:
    return PreferencePair(
        user_id=pair.user_id, example_id=pair.example_id, prompt=pair.prompt, chosen=pair.rejected, rejected=pair.chosen
    )


@pytest.mark.parametrize("name", JUDGES.names())
def test_judges_are_antisymmetric_and_finite(name: str, backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    """Users come in opposite pairs: a judge that knows nobody is right about one where it is wrong about the other."""
    options = {"persona_tokens": 32, "num_personas": 2} if name == "persona_judge" else {}
    judge = build_judge(name, LocalChat(backbone), **options)
    lines, cold = [], {}
    for user in USERS:
        pairs = pairs_of(user)
        query = pairs[5:]
        state = judge.adapt(pairs[:5])
        judged = judge.judgements([*query, *map(swapped, query)], [state] * 6)
        margins = np.array([judgement.margin for judgement in judged])
        assert np.isfinite(margins).all()
        assert all(judgement.forward != judgement.backward for judgement in judged)
        assert all(0 < judgement.mass <= 1 for judgement in judged)
        np.testing.assert_allclose(margins[:3], -margins[3:], rtol=0, atol=1e-4)
        cold[user] = judge.margins(query, [judge.adapt([])] * 3)
        bias = np.mean([judgement.position_bias for judgement in judged])
        mass = np.mean([judgement.mass for judgement in judged])
        told = "" if state.persona is None else f", persona {state.persona.winner}: {state.persona.text[:60]!r}"
        right, cold_right = (100 * pair_accuracy(m).mean() for m in (margins[:3], cold[user]))
        lines.append(
            f"{name} {user:6} {right:5.1f} points, without support {cold_right:5.1f}; margin {margins[:3].mean():+.3f}, "
            f"pull of the first place {bias:+.2f} nats, mass {mass:.2f}{told}"
        )
    np.testing.assert_allclose(cold["short"], -cold["long"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(cold["calm"], -cold["loud"], rtol=0, atol=1e-4)
    with capsys.disabled():
        print("\n" + "\n".join(lines))  # noqa: T201


def test_the_opponent_itself_has_reward_zero(backbone: Backbone) -> None:
    policy = ZeroShot(backbone, Greedy(), GenerationSettings(max_new_tokens=12))
    judge = build_judge("icl_judge", LocalChat(backbone), opponent=policy)
    prompts = [pair.prompt for pair in pairs_of("short")[5:]]
    assert judge.rewards(prompts, policy.generate(prompts), judge.adapt(pairs_of("short")[:2])).tolist() == [0.0] * 3


def test_packed_margins_are_those_of_one_plain_forward_an_order(backbone: Backbone) -> None:
    judge = build_judge("icl_judge", LocalChat(backbone))
    pairs = pairs_of("short")
    found = judge.margins(pairs[3:5], [judge.adapt(pairs[:3])] * 2)
    tokenizer = backbone.encoder.tokenizer
    labels = tokenizer.convert_tokens_to_ids(["First", "Second"])
    for pair, margin in zip(pairs[3:5], found, strict=True):
        scores = []
        for a, b in ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen)):
            turns = [{"role": "user", "content": judge_prompt(pair.prompt, a, b, "", pairs[:3])}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            with torch.no_grad():
                logits = backbone.model(torch.tensor([ids])).logits[0, -1]
            scores.append(float(logits[labels[0]] - logits[labels[1]]))
        assert margin == pytest.approx(0.5 * (scores[0] - scores[1]), abs=1e-4)


def test_a_persona_is_written_verified_and_deployed(backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = GenerationSettings(max_new_tokens=16, seed=1)
    settings = PersonaSettings(num_personas=2, persona_tokens=24)
    deployed = PersonaPolicy(backbone, Greedy(), lengths, persona=settings)
    pairs = pairs_of("short")
    state = deployed.adapt(pairs[:7])
    assert (len(state.persona.tried), state.persona.num_written, state.persona.num_held_out) == (3, 4, 3)
    best = max((tried.accuracy or 0.0, tried.margin or 0.0) for tried in state.persona.tried)
    winner = state.persona.tried[state.persona.winner]
    assert (winner.accuracy, winner.margin) == best
    text = deployed.generate([pairs[7].prompt], [state])[0]
    plain = ZeroShot(backbone, Greedy(), lengths)
    assert deployed.generate([pairs[7].prompt], [deployed.adapt([])]) == plain.generate([pairs[7].prompt])
    with capsys.disabled():
        print(f"\npersona {state.persona.winner} of {[t.accuracy for t in state.persona.tried]}: {text!r}")  # noqa: T201
