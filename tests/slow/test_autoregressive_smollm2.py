"""Autoregressive rewards on SmolLM2: the numbers of plain forwards, and guidance that is the fitted policy itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autoregressive import plain_laws, plain_rewards
from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.lora import LoraSettings
from rewardgap.backbones.session import TrieSession
from rewardgap.core.records import PreferencePair
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.loop import NEAR_TIE, StopRule, decode
from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.build import reward_model

pytestmark = [pytest.mark.slow, pytest.mark.real_model]
SIDES = [
    ("A short note.", "A note, as short as one may wish, and then a little longer."),
    ("Blue.", "It is blue, I say."),
]


@pytest.fixture(scope="module")
def model() -> AutoregressiveModel:
    """Return P-DPO of two users who like short texts, after three steps."""
    prompts = ["Write a note.", "Which colour?"]
    pairs = [
        PreferencePair(user_id=f"u{user}", example_id=f"{user}{row}", prompt=prompt, chosen=short, rejected=long)
        for user in range(2)
        for row, (prompt, (short, long)) in enumerate(zip(prompts, SIDES, strict=True))
    ]
    fitted = reward_model(
        "p_dpo", load_backbone("smollm2-135m"), num_user_tokens=4, adapt_steps=3, lora=LoraSettings(dropout=0.0)
    )
    assert isinstance(fitted, AutoregressiveModel)
    return fitted.fit(pairs, epochs=3, batch_size=4, learning_rate=1e-3)


def test_training_lowers_the_loss(model: AutoregressiveModel) -> None:
    losses = model.head.history.loss
    assert losses[-1] < 0.5 * losses[0]
    assert model.diagnostics["accuracy"] == 1.0


def test_rewards_are_those_of_plain_forwards(model: AutoregressiveModel) -> None:
    for state in (model.state_of("u0"), model.adapt([])):
        for prompt, text in (("Which colour?", SIDES[1][1]), ("Write a note.", "")):
            steps = np.array(plain_rewards(model, state, prompt, text)) * model.nats_weight
            found = np.diff(model.prefix_rewards(prompt, text, state)) * model.nats_weight
            np.testing.assert_allclose(found, steps, rtol=0, atol=2e-4)  # nats a token, float32


def test_guidance_in_nats_is_greedy_decoding_of_the_fitted_policy(model: AutoregressiveModel) -> None:
    policy, states = model.base, [model.state_of("u0"), model.state_of("u1")]
    prompts = ["Which colour?", "Write a note."]
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in prompts]
    session = TrieSession(policy, 2, 200)
    tips = session.prefill(ids)
    guide = model.guide(policy, prompts, ids, states, 20)
    decoder = ArgsGreedy(model.nats_weight, 200)
    found = decode(session, tips, decoder, StopRule((), 6), guide=guide)
    vectors = model.head.condition(states).prompts
    for row in range(2):
        path: list[int] = []
        for token in found[row].ids:
            law = plain_laws(model.backbone.model, vectors[row], tuple(ids[row]), path)[-1]
            best = torch.topk(law, 2)
            assert token == int(best.indices[0]) or float(best.values[0] - law[token]) < NEAR_TIE
            path.append(token)
        assert len(path) == 6
