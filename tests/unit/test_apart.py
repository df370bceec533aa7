"""Completions read apart from their prompts: features, guidance and scores against plain forwards of each text alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from peers.slow_decoding import last_state, slow_decode
from rewardgap.backbones.features import FeatureCache, Item
from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.session import TrieSession
from rewardgap.core.errors import ConfigError
from rewardgap.core.records import PreferencePair
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.policies.guided import guided
from rewardgap.policies.run import score_completion
from rewardgap.rewards.apart import ApartModel, apart_states
from rewardgap.rewards.build import reward_model
from standins import ARCHITECTURES, text_backbone

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["red", "blue", "the light", "winter", "garden of stone", "river", ""]
PAIRS = [
    PreferencePair(
        user_id=f"u{n % 3}", example_id=str(n), prompt=f"Why {n % 4}?", chosen=WORDS[n % 3], rejected=WORDS[3 + n % 4]
    )
    for n in range(21)
]


def model(folder: Path, architecture: str = "llama", **options: Any) -> ApartModel:
    made = reward_model("pal_b", text_backbone(architecture), features=FeatureCache(folder), **options)
    assert isinstance(made, ApartModel)
    return made


def plain(made: ApartModel, prompt: str, tokens: list[int]) -> torch.Tensor:
    """Return [h(y alone); h(x)] from two forwards of the network itself."""
    encoder, network = made.backbone.encoder, made.backbone.model
    return torch.cat(
        [last_state(network, [*encoder.alone_ids, *tokens]), last_state(network, list(encoder.encode_prompt(prompt)))]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_two_states_each_made_without_the_other_text(architecture: str, tmp_path: Path) -> None:
    made = model(tmp_path, architecture)
    items = [Item(pair.prompt, text) for pair in PAIRS for text in (pair.chosen, pair.rejected)]
    found = made.features_of(items)
    assert found.shape == (len(items), 2 * made.base.width)
    for item, row in zip(items, found, strict=True):
        tokens = list(made.backbone.encoder.encode_completion(item.completion, after=item.prompt))
        np.testing.assert_allclose(row, plain(made, str(item.prompt), tokens).detach().numpy(), rtol=0, atol=1e-5)
    chosen, rejected = apart_states(made.base, PAIRS, made.limit)
    np.testing.assert_allclose(chosen.detach().numpy(), found[::2], rtol=0, atol=1e-5)
    np.testing.assert_allclose(rejected.detach().numpy(), found[1::2], rtol=0, atol=1e-5)


def test_guided_tokens_are_those_of_the_slow_loop(tmp_path: Path) -> None:
    """A batch of users whose rows stop at different times, against two forwards a candidate."""
    made, policy = model(tmp_path).fit(PAIRS), text_backbone("llama", seed=3)
    prompts = ["Why?", "Name a colour of the garden.", "river"]
    states = [made.state_of(f"u{n}") for n in range(3)]
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in prompts]
    stops = tuple(range(0, 60))
    session = TrieSession(policy, 3, 400)
    guide = made.guide(policy, prompts, ids, states, 20)
    fast = decode(session, session.prefill(ids), ArgsGreedy(6.0, 5), StopRule((), 6, 0, stops), guide=guide)
    steered = 0
    for row, prompt in enumerate(prompts):

        def reward(tokens: list[int], row: int = row, prompt: str = prompt) -> float:
            features = plain(made, prompt, tokens).float()
            return float(made.head.rewards(features, states[row])) / made.scale

        slow = slow_decode(
            policy.model, ids[row], k=5, strength=6.0, reward=reward, end=set(), stop=set(stops), shortest=0, longest=6
        )
        assert list(fast[row].ids) == slow.tokens
        assert fast[row].reward == pytest.approx(slow.reward, abs=1e-4)
        plainly = slow_decode(
            policy.model, ids[row], k=5, strength=0.0, reward=None, end=set(), stop=set(stops), shortest=0, longest=6
        )
        steered += plainly.tokens != slow.tokens
    assert steered, "guidance changed nothing, so nothing was tested"


def test_scores_of_given_completions_read_the_same_rewards(tmp_path: Path) -> None:
    """Node rewards are prefix rewards along a completion, and each candidate beside it is a forward of its own."""
    made, policy = model(tmp_path).fit(PAIRS), text_backbone("llama", seed=3)
    state, prompt, text = made.state_of("u1"), "Why?", "red stone"
    steered = guided(policy, made, state, guidance_weight=2.0, top_k=4)
    run = steered.open([prompt], completions=[[text]])
    ids = list(policy.encoder.encode_completion(text, after=prompt))
    (trace,) = run._traces([[ids]], 4)[0]
    (nodes,) = steered.node_rewards(run, [[trace]])[0]
    np.testing.assert_allclose(nodes.prefixes[:-1], made.prefix_rewards(prompt, text, state), atol=1e-5)
    ends = set(policy.encoder.end_ids)
    for t, candidates in enumerate(trace.candidates.tolist()):
        for place, token in enumerate(candidates):
            if token not in ends:
                features = plain(made, prompt, [*ids[:t], token]).float()
                expected = float(made.head.rewards(features, state)) / made.scale
                assert nodes.candidates[t, place] == pytest.approx(expected, abs=1e-4)
    scores = score_completion(trace, nodes, 2.0)
    assert np.isfinite(list(scores.variants.values())).all()


def test_a_tokenizer_without_a_template_reads_completions_behind_its_end_token(tmp_path: Path) -> None:
    backbone = load_backbone("synthetic-words")
    assert backbone.encoder.alone_ids == (backbone.encoder.end_id,)
    templated = text_backbone("llama").encoder
    assert templated.alone_ids == templated.encode_prompt("")


def test_every_token_is_not_read_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trains on their last token alone"):
        model(tmp_path).training_tokens(text_backbone("llama"), PAIRS)
