"""End tokens under guidance: a language model rewards them like any token, a head gives them their prefix's reward."""

from __future__ import annotations

import pytest
import torch

from autoregressive import PAIRS, plain_token_rewards
from autoregressive import fitted as fitted_model
from peers.slow_decoding import slow_decode
from rewardgap.backbones.session import TrieSession
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import guided
from standins import text_backbone

PROMPTS = ["Name a colour.", "Why?", "one word"]


@pytest.mark.parametrize("variant", ["p_dpo", "genarm", "farma", "pad"])
def test_an_end_token_is_rewarded_as_a_token(variant: str) -> None:
    """Against a slow loop in which every token that closes a text is rewarded by the models' own probabilities."""
    model, policy = fitted_model(variant), text_backbone("llama")
    states = [model.state_of(user) for user in ("u0", "u1", "u2")]
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in PROMPTS]
    closers = set(range(0, 90))
    guide = model.guide(policy, PROMPTS, ids, states, 20)
    session = TrieSession(policy, 3, 400)
    fast = decode(session, session.prefill(ids), ArgsGreedy(4.0, 5), StopRule(tuple(closers), 6, 1), guide=guide)
    ended = 0
    for row, prompt in enumerate(PROMPTS):

        def reward(tokens: list[int], row: int = row, prompt: str = prompt) -> float:
            laws = plain_token_rewards(model, states[row], prompt, tokens)
            return float(sum(laws[t, token] for t, token in enumerate(tokens)))

        slow = slow_decode(
            policy.model, ids[row], k=5, strength=4.0, reward=reward, end=set(), stop=closers, shortest=1, longest=6
        )
        written = slow.tokens[:-1] if slow.ended else slow.tokens
        assert list(fast[row].ids) == written
        assert fast[row].ended == slow.ended
        assert fast[row].reward == pytest.approx(slow.reward, abs=1e-9)
        ended += slow.ended
    assert ended, "no text was closed, so nothing was tested"


@pytest.mark.parametrize("variant", ["p_dpo", "genarm", "farma", "pad"])
def test_what_guidance_adds_to_a_written_text_is_its_reward(variant: str) -> None:
    """The running reward of a decoded text that ended is the reward of that text, end token included."""
    model, policy = fitted_model(variant), text_backbone("llama")
    state = model.state_of(PAIRS[0].user_id)
    steered = guided(policy, model, state, guidance_weight=2.0, top_k=6, settings=GenerationSettings(max_new_tokens=12))
    run = steered.open(PROMPTS[:1])
    (generation,) = run.generate()
    ids = [*generation.ids, policy.encoder.end_id] if generation.ended else list(generation.ids)
    laws = plain_token_rewards(model, state, PROMPTS[0], ids[:-1])
    expected = float(sum(laws[t, token] for t, token in enumerate(ids)))
    session = TrieSession(policy, 1, 400)
    prompt = [list(policy.encoder.encode_prompt(PROMPTS[0]))]
    with torch.no_grad():
        guide = model.guide(policy, PROMPTS[:1], prompt, [state], 20)
        (again,) = decode(session, session.prefill(prompt), steered.decoder, steered.stop_rule(), guide=guide)
    assert list(again.ids) == list(generation.ids)
    assert again.reward == pytest.approx(expected, abs=1e-8)
