"""Policy accuracy over the whole vocabulary: a distribution, and the number that plain forwards give."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoregressive import PAIRS, SUPPORT, build, fitted, plain_laws, plain_token_rewards
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.traces import Trace, TraceCache, policy_traces, prefix_states
from rewardgap.core.errors import NotScorableError, ShapeError
from rewardgap.decoding.args import ArgsStochastic
from rewardgap.decoding.base import Decoder
from rewardgap.metrics.policy_accuracy import policy_scores
from rewardgap.policies.guided import guided
from rewardgap.policies.run import score_completion
from rewardgap.policies.zero_shot import zero_shot
from rewardgap.rewards import vocabulary_guide
from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.guide import NodeRewards
from rewardgap.rewards.states import UserState
from rewardgap.rewards.vocabulary_guide import Along, LogProbRewards
from standins import text_backbone, tiny_backbone

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/metrics/policy_accuracy.json").read_text())
PROMPTS = ["Name a colour 1.", "what is the name of the river in the garden?", "one word"]
TEXTS = [["red and blue", "the light"], ["", "winter"], ["stone stone garden", "é"]]


class Tables:
    """A network whose hidden states are its log-probabilities, or scores that do not sum to one."""

    def __init__(self, width: int) -> None:
        self.vocabulary, self.rows = width, 0

    def log_probs(self, states: torch.Tensor) -> torch.Tensor:
        self.rows = max(self.rows, len(states))
        return states.clone()


def along(table: Any) -> Any:
    values = torch.as_tensor(np.asarray(table, dtype=np.float64))
    return Along(Tables(values.shape[1]), values)  # type: ignore[arg-type]


def trace_of(tokens: Any, law: Any) -> Trace:
    """Return a trace without candidates but the most probable token."""
    tokens, law = np.asarray(tokens), np.asarray(law, dtype=np.float64)
    best = law.argmax(1)[:, None]
    places = np.arange(len(tokens))
    return Trace(tokens, law[places, tokens], best, np.take_along_axis(law, best, 1))


def summed(tokens: Any, law: Any, gains: Any, weight: float, temperature: float = 1.0) -> float:
    """Return rgd_full of tokens under tables of log π and of what every token adds to the reward."""
    tokens, gains = np.asarray(tokens), np.asarray(gains, dtype=np.float64)
    prefixes = np.concatenate([[0.0], np.cumsum(gains[np.arange(len(tokens)), tokens])])
    trace = trace_of(tokens, law)
    candidates = prefixes[:-1, None] + np.take_along_axis(gains, trace.candidates, 1)
    whole = LogProbRewards(along(law), ((1.0, along(gains)),))
    return score_completion(trace, NodeRewards(prefixes, candidates, whole), weight, temperature).variants["rgd_full"]


# From tables.


def test_the_fixture() -> None:
    """π = (.5, .3, .2), r = #a - #b, λ = 1, "a b E": 3 ln of e^{log π + r} over its sum."""
    law = np.tile(np.log(GOLDEN["log_probs_of"]), (3, 1))
    found = summed(GOLDEN["completion"], law, GOLDEN["delta_rewards"], 1.0)
    assert found == pytest.approx(GOLDEN["expected"]["rgd_full"], abs=GOLDEN["tolerance"])
    full = 0.5 * np.e + 0.3 / np.e + 0.2
    assert found == pytest.approx(np.log(0.5 * np.e / full * (0.3 / np.e) / full * 0.2 / full), abs=1e-14)


@given(st.integers(0, 9999), st.sampled_from([-1.5, 0.0, 0.7, 4.0]), st.sampled_from([0.3, 1.0, 2.5]))
def test_normalisers_are_the_full_arrays_and_constants_of_a_prefix_do_not_matter(
    seed: int, weight: float, temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    length, width = int(rng.integers(1, 9)), int(rng.integers(2, 7))
    law = rng.normal(size=(length, width)) * 3
    law -= np.log(np.exp(law).sum(1, keepdims=True))
    gains, offsets = rng.normal(size=(length, width)) * 2, rng.normal(size=(length, 1)) * 50
    tokens = rng.integers(0, width, length)
    expected = policy_scores(
        law[np.arange(length), tokens], np.zeros(length + 1), weight, full_log_probs=law, full_rewards=gains,
        gold_ids=tokens, temperature=temperature,
    )["rgd_full"]  # fmt: skip
    assert summed(tokens, law, gains, weight, temperature) == pytest.approx(expected, abs=1e-9)
    assert summed(tokens, law, gains + offsets, weight, temperature) == pytest.approx(expected, abs=1e-9)


def test_a_long_text_is_reduced_a_few_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    law = np.log(rng.dirichlet(np.ones(11), 40))
    policy, reward = along(law), along(rng.normal(size=(40, 11)))
    whole = LogProbRewards(policy, ((0.5, reward),))
    expected = whole.log_normalisers(2.0, 0.7)
    assert policy.backbone.rows == reward.backbone.rows == 40
    for most, rows in ((40, 3), (11, 1), (5, 1)):
        monkeypatch.setattr(vocabulary_guide, "NUMBERS_AT_ONCE", most)
        policy.backbone.rows = reward.backbone.rows = 0
        np.testing.assert_allclose(whole.log_normalisers(2.0, 0.7), expected, rtol=0, atol=1e-13)
        assert policy.backbone.rows == reward.backbone.rows == rows


def test_both_ways_to_give_the_vocabulary_are_too_many() -> None:
    with pytest.raises(ShapeError, match="give one of them"):
        policy_scores([-1.0], [0.0, 1.0], 1.0, full_log_probs=[[-1.0]], log_normalisers=[0.0])
    with pytest.raises(ShapeError, match=r"log_normalisers has shape \(2,\), expected \(T,\) = \(1,\)"):
        policy_scores([-1.0], [0.0, 1.0], 1.0, log_normalisers=[0.0, 0.0])


# From networks.


@pytest.mark.parametrize(("packs", "temperature"), [(True, 1.0), (True, 0.6), (False, 1.7)])
def test_all_sequences_sum_to_one(packs: bool, temperature: float) -> None:
    """Over 4 tokens, of which one ends: the finished texts of up to 2 tokens, and the unfinished ones of 3."""
    policy, *networks = (tiny_backbone("llama", vocabulary=4, seed=seed, packs=packs) for seed in (3, 4, 5))
    prompt, end = [1, 2, 2, 3], 0
    texts = [list(text) for n in range(4) for text in itertools.product((1, 2, 3), repeat=n)]

    def opened(network: Backbone) -> tuple[TrieSession, torch.Tensor]:
        session = TrieSession(network, 1, 200)
        return session, session.prefill([prompt])

    session, tips = opened(policy)
    traces = policy_traces(session, tips, [texts], end, 2)
    ((own,), *others) = (prefix_states(*opened(network), traces) for network in (policy, *networks))
    total = 0.0
    for number, (text, trace) in enumerate(zip(texts, traces[0], strict=True)):
        cut = slice(0, len(text) + (len(text) < 3))
        part = Trace(*(value[cut] for value in vars(trace).values()))
        weighted = zip((1.3, -0.8), networks, others, strict=True)
        terms = tuple((c, Along(network, states[0][number][cut])) for c, network, states in weighted)
        at = (np.arange(len(part.tokens)), part.tokens)
        gains = sum(c * network.log_probs(slice(None)).numpy()[at] for c, network in terms)
        whole = LogProbRewards(Along(policy, own[number][cut]), terms)
        rewards = NodeRewards(np.concatenate([[0.0], np.cumsum(gains)]), np.zeros(part.candidates.shape), whole)
        total += np.exp(score_completion(part, rewards, 1.4, temperature).variants["rgd_full"])
    assert total == pytest.approx(1.0, abs=1e-12)


@cache
def shared(variant: str) -> AutoregressiveModel:
    return fitted(variant)


def users(model: AutoregressiveModel) -> list[UserState]:
    return [model.state_of("u1"), model.adapt(SUPPORT), model.adapt([])]


def slow_full(
    model: AutoregressiveModel, state: UserState, prompt: str, text: str, weight: float, temperature: float
) -> float:
    """Return the sum over tokens of log softmax((log π + λ r) / τ), one unpacked forward a network."""
    encoder = model.base.encoder
    start = tuple(encoder.encode_prompt(prompt))
    gold = [*encoder.encode_completion(text, after=prompt), encoder.end_id]
    law = plain_laws(text_backbone("llama").model, torch.zeros(0, 24), start, gold[:-1])
    rewards = plain_token_rewards(model, state, prompt, gold[:-1])
    scores = torch.log_softmax((law + weight * rewards) / temperature, -1)
    return float(sum(scores[t, token] for t, token in enumerate(gold)))


@pytest.mark.parametrize(("variant", "weight", "temperature"), [
    ("p_dpo", 1.5, 1.0), ("p_dpo_individual", 4.0, 0.5), ("genarm", 1.5, 1.0), ("genarm", -0.7, 2.0),
    ("genarm_relative", 3.0, 1.0), ("genarm_mixture", 1.5, 0.7), ("farma", 1.5, 0.7),
])  # fmt: skip
def test_scores_are_those_of_plain_forwards(variant: str, weight: float, temperature: float, tmp_path: Path) -> None:
    """A batch of three users; and the same again where traces are kept, so that the policy need not be asked."""
    model = shared(variant)
    decoder: Decoder = ArgsStochastic(weight, 4, temperature)
    policy = guided(text_backbone("llama"), model, decoder=decoder)
    states = users(model)
    policy.traces = TraceCache(tmp_path)
    for _ in range(2):
        batch = policy.open(PROMPTS, states, completions=TEXTS)
        length = batch.session.forest.length
        found = batch.scores(TEXTS)
        assert batch.session.forest.length == length
        for prompt, state, texts, row in zip(PROMPTS, states, TEXTS, found, strict=True):
            for text, scores in zip(texts, row, strict=True):
                expected = slow_full(model, state, prompt, text, weight, temperature)
                assert scores.variants["rgd_full"] == pytest.approx(expected, abs=1e-9)
                tokens = len(model.base.encoder.encode_completion(text, after=prompt)) + 1
                assert scores.variants["mean_rgd_full"] == pytest.approx(expected / tokens, abs=1e-9)
    kept = [path.name for path in tmp_path.rglob("*.safetensors")]
    assert len(kept) == 6 and sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 20_000


@pytest.mark.parametrize("variant", ["p_dpo", "genarm_mixture"])
def test_without_weight_it_is_the_policy(variant: str) -> None:
    model = shared(variant)
    policy = guided(text_backbone("llama"), model, guidance_weight=0.0)
    texts = [row[0] for row in TEXTS]
    base = policy.log_score(PROMPTS, texts, users(model), variant="base")
    np.testing.assert_allclose(
        policy.log_score(PROMPTS, texts, users(model), variant="rgd_full"), base, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("variant", ["p_dpo", "genarm_relative"])
def test_in_nats_a_relative_reward_scores_as_the_fitted_network(variant: str) -> None:
    """log π_ref + (log π_θ - log π_ref): the guided policy over the whole vocabulary is π_θ itself."""
    model = shared(variant)
    policy = guided(model.base, model, guidance_weight=model.nats_weight)
    states, texts = users(model), [row[0] for row in TEXTS]
    found = policy.log_score(PROMPTS, texts, states, variant="rgd_full")
    for prompt, state, text, value in zip(PROMPTS, states, texts, found, strict=True):
        encoder = model.base.encoder
        gold = [*encoder.encode_completion(text, after=prompt), encoder.end_id]
        vectors = model.head.condition([state]).prompts[0].detach()
        law = plain_laws(model.backbone.model, vectors, tuple(encoder.encode_prompt(prompt)), gold[:-1])
        assert value == pytest.approx(float(sum(law[t, token] for t, token in enumerate(gold))), abs=1e-9)


def test_an_untrained_absolute_reward_scores_as_the_policy_at_half_the_temperature() -> None:
    model = build("genarm_global")
    model.head.build(["u0"], model.base, seed=0)
    model.networks = model._fresh_networks(0)
    policy = guided(model.base, model, model.adapt([]), guidance_weight=model.nats_weight)
    encoder = model.base.encoder
    gold = [*encoder.encode_completion("the stone", after="Why?"), encoder.end_id]
    law = plain_laws(model.base.model, torch.zeros(0, 24), tuple(encoder.encode_prompt("Why?")), gold[:-1])
    expected = float(sum(torch.log_softmax(2 * law, -1)[t, token] for t, token in enumerate(gold)))
    assert policy.log_score(["Why?"], ["the stone"], variant="rgd_full")[0] == pytest.approx(expected, abs=1e-9)


def test_a_wider_table_of_the_reward_model_is_padding_to_the_policy() -> None:
    """What the reward network holds beyond the policy's ids takes no part in the sum."""
    law, gains = np.log([[0.6, 0.4]]), np.array([[1.0, -1.0, 40.0]])
    whole = LogProbRewards(along(law), ((1.0, along(gains)),))
    assert whole.log_normalisers(1.0)[0] == pytest.approx(np.log(0.6 * np.e + 0.4 / np.e), abs=1e-14)


def test_the_policy_alone_is_normalised_as_it_is() -> None:
    policy = zero_shot(text_backbone("llama"))
    texts = [row[0] for row in TEXTS]
    full, base = (policy.log_score(PROMPTS, texts, variant=name) for name in ("rgd_full", "base"))
    assert full.tolist() == base.tolist()


def test_what_is_not_there_is_said() -> None:
    backbone = text_backbone("llama")
    model = reward_model("global_bt", backbone).fit(PAIRS)
    policy = guided(backbone, model, model.state_of("u0"))
    with pytest.raises(NotScorableError, match=r"global_bt has no rgd_full\. Its reward is read one prefix at a time"):
        policy.log_score(["Why?"], ["red"], variant="rgd_full")
    with pytest.raises(NotScorableError, match=r"zero_shot has no reward_only\. It has rgd_topk, mean_rgd_topk"):
        zero_shot(backbone).log_score(["Why?"], ["red"], variant="reward_only")
