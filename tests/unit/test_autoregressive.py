"""The autoregressive model of texts: rewards, users, decoding and files agree with plain forwards of its networks."""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from autoregressive import (
    PAIRS,
    SUPPORT,
    TEXTS,
    VARIANTS,
    build,
    fitted,
    plain_laws,
    plain_rewards,
    plain_token_rewards,
)
from peers.slow_decoding import slow_decode
from rewardgap.backbones.lora import adapter_parameters
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.traces import policy_traces
from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.records import PreferencePair
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.metrics.policy_accuracy import policy_scores
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import guided
from rewardgap.rewards import token_networks, training
from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.build import load_reward_model, reward_model
from rewardgap.rewards.state_files import load_states, save_states
from rewardgap.rewards.states import UserState
from standins import text_backbone, tiny_backbone

if TYPE_CHECKING:
    from pathlib import Path

EVERY = pytest.mark.parametrize("variant", VARIANTS)
PERSONAL = pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("dpo", "genarm_global")])
FITTED_TO_SUPPORT = pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if name not in ("dpo", "genarm_global") and not name.startswith("pad")]
)
PROMPTS = ["Name a colour 1.", "what is the name of the river in the garden?", "one word"]


@cache
def shared(variant: str) -> AutoregressiveModel:
    """Return a fitted model in float64 that no test changes."""
    return fitted(variant)


def users(model: AutoregressiveModel) -> list[UserState]:
    return [model.state_of("u1"), model.adapt(SUPPORT), model.adapt([])]


@EVERY
def test_rewards_are_sums_of_token_rewards_of_separate_forwards(variant: str) -> None:
    """Whole completions, every prefix and the margin, for a training user, a new one and nobody."""
    model = shared(variant)
    for prompt, state in zip(PROMPTS, users(model), strict=True):
        for text in ("the light of winter", "red <|im_end|> blue", ""):
            steps = plain_rewards(model, state, prompt, text)
            along = model.prefix_rewards(prompt, text, state)
            assert along.shape == (len(model.base.encoder.encode_completion(text)) + 2,)
            np.testing.assert_allclose(along, [0.0, *np.cumsum(steps)], rtol=0, atol=1e-9)
            assert model.rewards([prompt], [text], state)[0] == pytest.approx(sum(steps), abs=1e-9)


@EVERY
def test_margins_rewards_and_batches_agree(variant: str) -> None:
    model = shared(variant)
    states = [model.state_of(pair.user_id) for pair in PAIRS]
    prompts = [pair.prompt for pair in PAIRS]
    chosen = model.rewards(prompts, [p.chosen for p in PAIRS], states)
    rejected = model.rewards(prompts, [p.rejected for p in PAIRS], states)
    margins = model.margins(PAIRS, states)
    np.testing.assert_allclose(margins, chosen - rejected, rtol=0, atol=1e-9)
    one_by_one = [model.rewards([p.prompt], [p.chosen], s)[0] for p, s in zip(PAIRS, states, strict=True)]
    np.testing.assert_allclose(chosen, one_by_one, rtol=0, atol=1e-9)
    if model.method != "pad":  # a training pair of PAD is judged by a text that leaves it out
        assert np.std(margins) == pytest.approx(1.0, abs=1e-9)  # the unit of rewards
        assert model.head.diagnostics["accuracy"] == np.mean((margins > 0) + 0.5 * (margins == 0))
    swapped = [
        PreferencePair(
            user_id=p.user_id, example_id=p.example_id, prompt=p.prompt, chosen=p.rejected, rejected=p.chosen
        )
        for p in PAIRS
    ]
    np.testing.assert_allclose(model.margins(swapped, states), -margins, rtol=0, atol=1e-9)
    assert model.rewards([], [], []).shape == (0,)
    assert model.margins([], []).shape == (0,)


@EVERY
def test_the_guide_and_given_completions_have_the_same_numbers_at_every_step(variant: str) -> None:
    """Three users, three completions; rows leave when theirs is over. Every candidate counts, end tokens too."""
    model = shared(variant)
    policy = text_backbone("llama")
    encoder = policy.encoder
    states, texts = users(model), ["red and blue", "", "the stone"]
    ids = [list(encoder.encode_prompt(prompt)) for prompt in PROMPTS]
    session = TrieSession(policy, 3, 400)
    tips = session.prefill(ids)
    contents = [[list(encoder.encode_completion(text))] for text in texts]
    traces = policy_traces(session, tips, contents, encoder.end_id, policy.vocabulary)
    nodes = model.node_rewards(session, tips, PROMPTS, ids, traces, states)
    guide = model.guide(policy, PROMPTS, ids, states, 40)
    assert guide.start(tips).tolist() == [0.0] * 3
    alive = list(range(3))
    for step in itertools.count():
        rewards = guide.candidates(torch.from_numpy(np.stack([traces[row][0].candidates[step] for row in alive])), None)
        for place, row in enumerate(alive):
            trace, given = traces[row][0], nodes[row][0]
            law = plain_token_rewards(model, states[row], PROMPTS[row], trace.tokens[:step].tolist())[-1]
            order = torch.from_numpy(trace.candidates[step])
            np.testing.assert_allclose(given.candidates[step], given.prefixes[step] + law[order].numpy(), atol=1e-9)
            np.testing.assert_allclose(rewards[place].numpy(), given.candidates[step], rtol=0, atol=1e-9)
            end = trace.candidates[step].tolist().index(encoder.end_id)
            assert given.candidates[step, end] != given.prefixes[step]
            gold = trace.candidates[step].tolist().index(trace.tokens[step])
            assert given.prefixes[step + 1] == pytest.approx(given.candidates[step, gold], abs=1e-12)
        golds = [int(traces[row][0].tokens[step]) for row in alive]
        choices = [traces[row][0].candidates[step].tolist().index(gold) for row, gold in zip(alive, golds, strict=True)]
        guide.keep(choices, golds)
        kept = [place for place, gold in enumerate(golds) if gold != encoder.end_id]
        if not kept:
            break
        if len(kept) < len(alive):
            guide.select(kept)
            alive = [alive[place] for place in kept]
    for row, text in enumerate(texts):
        assert nodes[row][0].prefixes[-1] == pytest.approx(model.rewards([PROMPTS[row]], [text], states[row])[0])


def test_a_guide_reads_one_token_a_step_and_none_for_rows_that_are_gone() -> None:
    model, policy = shared("p_dpo"), text_backbone("llama")
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in PROMPTS]
    guide = model.guide(policy, PROMPTS, ids, users(model), 20)
    tips = TrieSession(policy, 3, 200).prefill(ids)
    guide.start(tips)
    prefilled = 2 * sum(map(len, ids)) + 3 * 3  # the network behind its soft prompts, and the reference
    assert (guide.forwards, guide.tokens) == (2, prefilled)
    guide.candidates(torch.tensor([[1, 2]] * 3), None)
    assert (guide.forwards, guide.tokens) == (2, prefilled)
    guide.keep([0, 1, 0], [1, 2, 1])
    guide.select([1])
    guide.candidates(torch.tensor([[3, 4]]), None)
    assert (guide.forwards, guide.tokens) == (4, prefilled + 2)


@pytest.mark.parametrize("variant", ["p_dpo", "genarm", "genarm_mixture", "farma", "pad"])
def test_guided_tokens_are_those_of_the_slow_loop(variant: str) -> None:
    """A batch of different users with rows that stop at different times, against one forward a candidate."""
    model, policy = shared(variant), text_backbone("llama")
    states = users(model)
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in PROMPTS]
    stops = tuple(range(0, 60))
    session = TrieSession(policy, 3, 400)
    tips = session.prefill(ids)
    guide = model.guide(policy, PROMPTS, ids, states, 20)
    fast = decode(session, tips, ArgsGreedy(4.0, 5), StopRule((), 5, 0, stops), guide=guide)
    for row, prompt in enumerate(PROMPTS):

        def reward(tokens: list[int], row: int = row, prompt: str = prompt) -> float:
            laws = plain_token_rewards(model, states[row], prompt, tokens)
            return float(sum(laws[t, token] for t, token in enumerate(tokens)))

        slow = slow_decode(
            policy.model, ids[row], k=5, strength=4.0, reward=reward, end=set(), stop=set(stops), shortest=0, longest=5
        )
        assert fast[row].ids == slow.tokens
        assert fast[row].ended == slow.ended
        assert fast[row].reward == pytest.approx(slow.reward, abs=1e-9)


@pytest.mark.parametrize("variant", ["p_dpo", "genarm_mixture", "farma"])
def test_an_end_token_is_chosen_for_its_own_reward(variant: str) -> None:
    """Every token under 120 ends the text: greedy paths over the whole vocabulary, and the reward they end with."""
    model, policy = shared(variant), text_backbone("llama")
    states, ends, weight = users(model), tuple(range(120)), 2 * model.nats_weight
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in PROMPTS]
    session = TrieSession(policy, 3, 800)
    tips = session.prefill(ids)
    guide = model.guide(policy, PROMPTS, ids, states, 20)
    found = decode(session, tips, ArgsGreedy(weight, policy.vocabulary), StopRule(ends, 6), guide=guide)
    assert any(row.ended for row in found)
    for row, prompt in enumerate(PROMPTS):
        path: list[int] = []
        while len(path) < 6 and (not path or path[-1] >= 120):
            law = plain_laws(policy.model, torch.zeros(0, 24), tuple(ids[row]), path)[-1]
            path.append(int((law + weight * plain_token_rewards(model, states[row], prompt, path)[-1]).argmax()))
        assert found[row].ids == [token for token in path if token >= 120]
        assert found[row].ended == (path[-1] < 120)
        laws = plain_token_rewards(model, states[row], prompt, path[:-1])
        assert found[row].reward == pytest.approx(float(sum(laws[t, v] for t, v in enumerate(path))), abs=1e-9)


@pytest.mark.parametrize("variant", ["p_dpo", "genarm", "genarm_mixture", "farma", "pad"])
def test_policy_scores_are_those_of_one_forward_a_number(variant: str) -> None:
    model, policy = shared(variant), text_backbone("llama")
    state, prompt, text, k, weight = users(model)[1], PROMPTS[0], "red stone", 4, 1.5
    steered = guided(policy, model, state, guidance_weight=weight, top_k=k)
    found = steered.open([prompt], completions=[[text]]).scores([[text]])[0][0]
    encoder = policy.encoder
    gold = [*encoder.encode_completion(text), encoder.end_id]
    steps = plain_rewards(model, state, prompt, text)
    before = np.concatenate([[0.0], np.cumsum(steps)])
    start = list(encoder.encode_prompt(prompt))
    tables, values, columns, log_probs = [], [], [], []
    laws = plain_laws(policy.model, torch.zeros(0, 24), tuple(start), gold[:-1])
    given = plain_token_rewards(model, state, prompt, gold[:-1])
    for token, law, own, value in zip(gold, laws, given, before, strict=False):
        best = torch.argsort(-law, stable=True)[:k].tolist()
        candidates = best if token in best else [*best[:k], token]
        padded = candidates + [candidates[0]] * (k + 1 - len(candidates))
        columns.append(candidates.index(token))
        log_probs.append(float(law[token]))
        tables.append([float(law[v]) for v in padded])
        values.append([value + float(own[v]) for v in padded])
    mask = [[True] * k + [column == k] for column in columns]
    expected = policy_scores(
        log_probs, before, weight, candidate_log_probs=tables, candidate_rewards=values, candidate_mask=mask,
        gold_column=columns,
    )  # fmt: skip
    for name, value in expected.items():
        assert found.variants[name] == pytest.approx(value, abs=1e-9), name


@PERSONAL
def test_a_batch_of_users_equals_one_at_a_time(variant: str) -> None:
    model = shared(variant)
    policy = guided(
        text_backbone("llama"), model, guidance_weight=3.0, top_k=6, settings=GenerationSettings(max_new_tokens=6)
    )
    states = users(model)
    together = policy.generate(PROMPTS, states)
    assert together == [policy.generate([p], [s])[0] for p, s in zip(PROMPTS, states, strict=True)]
    own = model.rewards(["Why?"] * 3, ["red"] * 3, states)
    assert len(set(own.round(9).tolist())) == 3  # users differ


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(
    ("variant", "architecture"), [("p_dpo", "gemma3"), ("genarm_mixture", "mistral"), ("farma", "gemma3")]
)
def test_other_architectures_and_backbones_that_do_not_pack(variant: str, architecture: str, packs: bool) -> None:
    model = build(variant, base=text_backbone(architecture, packs=packs))
    model.fit(PAIRS[:5], seed=1, epochs=1, batch_size=5, learning_rate=2e-2)
    assert model.backbone.packs == packs
    steps = plain_rewards(model, model.state_of("u1"), "Why?", "the stone")
    assert model.rewards(["Why?"], ["the stone"], model.state_of("u1"))[0] == pytest.approx(sum(steps), abs=1e-9)


@EVERY
def test_adapting_changes_nothing_draws_nothing_and_forgets_orders(variant: str) -> None:
    model = shared(variant)
    before, weights = model.fingerprint(), [p.clone() for p in model.backbone.model.parameters()]
    state = torch.random.get_rng_state()
    one, two = model.adapt_all([SUPPORT, PAIRS[8:10]])
    assert model.adapt_all([PAIRS[8:10], SUPPORT]) == [two, one]
    assert model.adapt(SUPPORT[::-1]) == one
    assert (one.num_support, two.num_support) == (3, 2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.fingerprint() == before
    assert all(torch.equal(a, b) for a, b in zip(weights, model.backbone.model.parameters(), strict=True))
    assert all(p.grad is None for p in model.backbone.model.parameters())


@FITTED_TO_SUPPORT
def test_adapting_prefers_what_the_support_prefers(variant: str) -> None:
    """Support and its mirror image lead to users who differ in the right direction."""
    model = shared(variant)
    mirror = [
        PreferencePair(
            user_id=p.user_id, example_id=p.example_id, prompt=p.prompt, chosen=p.rejected, rejected=p.chosen
        )
        for p in SUPPORT
    ]
    own, other = (model.margins(SUPPORT, [state] * 3).mean() for state in (model.adapt(SUPPORT), model.adapt(mirror)))
    assert own > other


@EVERY
def test_a_fit_moves_adapters_and_users_and_nothing_else(variant: str) -> None:
    model = build(variant)
    base = {name: tensor.clone() for name, tensor in model.base.model.state_dict().items()}
    state, told = torch.random.get_rng_state(), []
    model.fit(PAIRS, seed=1, epochs=2, batch_size=5, learning_rate=2e-2, progress=lambda *a: told.append(a))
    assert torch.equal(state, torch.random.get_rng_state())
    steps = 2 * -(-len(PAIRS) // 5)
    assert told == [(n + 1, steps) for n in range(steps)]
    # FaRMA's history keeps every other step: those of the pair loss.
    assert len(model.head.history.loss) == (-(-steps // 2) if model.method == "farma" else steps)
    assert model.head.users == ("u0", "u1", "u2")
    assert model.state_of("u1").num_support == sum(pair.user_id == "u1" for pair in PAIRS)
    assert all(torch.equal(base[name], tensor) for name, tensor in model.base.model.state_dict().items())
    for network in model.networks.adapted:
        assert not network.model.training
        assert all(bool(p.detach().any()) and p.grad is None for p in adapter_parameters(network.model))
    for tensor in model.head.conditioning.tensors().values():
        assert not tensor.requires_grad
    assert model.fingerprint() == shared(variant).fingerprint()
    other = build(variant).fit(PAIRS, seed=2, epochs=2, batch_size=5, learning_rate=2e-2)
    assert other.fingerprint() != model.fingerprint()


@pytest.mark.parametrize("variant", ["p_dpo", "genarm_relative", "genarm_mixture", "farma"])
def test_small_forwards_train_as_one_large_one_does(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, small = build(variant), build(variant)
    for one in (model, small):
        one.lora = type(one.lora)(4, 8, 0.0)  # without dropout, which meets other shapes
    whole = model.fit(PAIRS, seed=1, epochs=1, batch_size=6, learning_rate=1e-3)
    real = token_networks.forward_batches
    monkeypatch.setattr(token_networks, "forward_batches", lambda sizes: real(sizes, 90))
    parts = small.fit(PAIRS, seed=1, epochs=1, batch_size=6, learning_rate=1e-3)
    np.testing.assert_allclose(parts.head.history.loss, whole.head.history.loss, rtol=0, atol=1e-9)
    states = [whole.state_of("u0")] * len(PAIRS)
    np.testing.assert_allclose(parts.margins(PAIRS, states), whole.margins(PAIRS, states), rtol=0, atol=1e-6)
    one, other = (m.adapt(SUPPORT) for m in (whole, parts))
    for name, value in one.values.items():
        torch.testing.assert_close(value, other.values[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["p_dpo", "genarm_mixture", "farma", "pad"])
def test_a_killed_fit_goes_on_to_the_same_bits(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    options = {"seed": 1, "epochs": 2, "batch_size": 5, "learning_rate": 2e-2, "checkpoint": tmp_path / "fit"}

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        build(variant).fit(PAIRS, progress=kill, **options)
    reached: list[int] = []
    resumed = build(variant).fit(PAIRS, progress=lambda done, _: reached.append(done), **options)
    assert reached[0] == 3
    assert resumed.fingerprint() == shared(variant).fingerprint()


@EVERY
def test_saved_models_and_users_come_back(variant: str, tmp_path: Path) -> None:
    model = shared(variant)
    model.save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "model.json", "head.safetensors", "adapter.safetensors",
    }  # fmt: skip
    again = load_reward_model(tmp_path / "model", model.base)
    assert again.fingerprint() == model.fingerprint()
    assert again.head.diagnostics == model.head.diagnostics
    assert (again.name, again.scale, again.head.users) == (model.name, model.scale, model.head.users)
    states = {"new": model.adapt(SUPPORT), "cold": model.adapt([])}
    save_states(tmp_path / "states", model, states)
    found = load_states(tmp_path / "states", again)
    assert found == states
    assert again.adapt(SUPPORT) == states["new"]
    for state in found.values():
        own = model.rewards(["Why?"] * 3, TEXTS[:3], state)
        np.testing.assert_array_equal(again.rewards(["Why?"] * 3, TEXTS[:3], state), own)


def test_warming_computes_the_reference_ahead_and_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, absolute = shared("p_dpo"), shared("genarm")
    model.__post_init__()
    told: list[tuple[int, int]] = []
    model.warm(PAIRS[:2], lambda *a: told.append(a))
    assert told == [(2, 4), (4, 4)]
    absolute.warm(PAIRS[:2], lambda *a: told.append(a))
    assert len(told) == 2
    before = model.margins(PAIRS[:2], [model.state_of("u0")] * 2)
    model.__post_init__()
    np.testing.assert_array_equal(model.margins(PAIRS[:2], [model.state_of("u0")] * 2), before)


def test_mistakes_are_named() -> None:
    model = shared("p_dpo")
    with pytest.raises(DataError, match=r"user 'u11' is none of the 3 training users\. Did you mean 'u1'"):
        model.state_of("u11")
    with pytest.raises(ConfigError, match="'lore' was given to 'p_dpo'"):
        model.rewards(["a"], ["b"], UserState("lore", {}, 0))
    wrong = UserState("p_dpo", {"offset": torch.zeros(2, 24)}, 0)
    with pytest.raises(ConfigError, match=r"holds \{'offset': \(2, 24\)\}, expected \{'logits': \(5,\)\}"):
        model.rewards(["a"], ["b"], wrong)
    with pytest.raises(ConfigError, match="2 user states for 1 texts"):
        model.rewards(["a"], ["b"], [model.adapt([])] * 2)
    with pytest.raises(ConfigError, match="p_dpo trains an adapter, it reads no features; leave fit_mode out"):
        reward_model("p_dpo", text_backbone("llama"), fit_mode="frozen")
    with pytest.raises(ConfigError, match=r"no option 'adapt_step'\. Did you mean 'adapt_steps'"):
        reward_model("p_dpo", text_backbone("llama"), adapt_step=3)
    with pytest.raises(ConfigError, match="has no features; call warm"):
        model.pair_features(PAIRS)
    fresh = build("genarm")
    for use in (lambda: fresh.adapt([]), lambda: fresh.rewards(["a"], ["b"], model.adapt([])), fresh.fingerprint):
        with pytest.raises(ConfigError, match="genarm is not fitted; call fit"):
            use()
    with pytest.raises(ConfigError, match="before fit"):
        _ = fresh.head.diagnostics
    with pytest.raises(DataError, match="at least 1 pair"):
        fresh.fit([])
    with pytest.raises(ConfigError, match="batch_size is 0"):
        fresh.fit(PAIRS, batch_size=0)
    with pytest.raises(ConfigError, match="learning_rate is 0"):
        fresh.fit(PAIRS, learning_rate=0.0)


def test_a_text_that_does_not_fit_behind_its_soft_prompt_is_named() -> None:
    """Context 256: a prompt of 16 tokens and 237 of completion fit with 3 vectors, one token more does not."""
    model = shared("p_dpo")
    prompt = len(model.base.encoder.encode_prompt("Why?"))
    fits = "0" * (256 - 3 - prompt)
    assert len(model.prefix_rewards("Why?", fits, model.adapt([]))) == 256 - 3 - prompt + 2
    with pytest.raises(DataError, match=r"soft prompt of 3 and completion of 238 are longer than the 256 .*'Why\?'"):
        model.prefix_rewards("Why?", fits + "0", model.adapt([]))
    with pytest.raises(DataError, match="longer than the 253 allowed"):
        model.rewards(["0" * 300], ["a"], model.adapt([]))
    policy = guided(text_backbone("llama"), model, model.adapt([]), top_k=2)
    with pytest.raises(DataError, match=r"soft prompt of 3 and completion of 238 are longer"):
        policy.log_score(["Why?"], [fits + "0"])
    filler = "0" * (256 - 3 - prompt - 6)  # leaves six places; the last token written is never read
    policy.settings = GenerationSettings(max_new_tokens=7, min_new_tokens=7)
    policy.generate(["Why?" + filler])
    policy.settings = GenerationSettings(max_new_tokens=8, min_new_tokens=8)
    with pytest.raises(DataError, match="the reward model tiny reads 256 tokens"):
        policy.generate(["Why?" + filler])


def test_another_vocabulary_is_refused_with_both_sizes() -> None:
    model = shared("genarm")
    other = tiny_backbone("llama", vocabulary=model.base.vocabulary + 4)
    with pytest.raises(ConfigError, match=rf"{other.vocabulary} tokens and the reward model {other.vocabulary - 4}"):
        guided(other, model, model.state_of("u0")).log_score(["a"], ["b"])
    with pytest.raises(ConfigError, match=rf"{other.vocabulary} tokens"):
        guided(other, model, model.state_of("u0")).generate(["a"])


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    shared("p_dpo").save(tmp_path / "one")
    shared("genarm_mixture").save(tmp_path / "two")
    head = (tmp_path / "one" / "head.safetensors").read_bytes()
    (tmp_path / "one" / "head.safetensors").write_bytes((tmp_path / "two" / "head.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="tensors are"):
        load_reward_model(tmp_path / "one", text_backbone("llama"))
    (tmp_path / "one" / "head.safetensors").write_bytes(head)
    (tmp_path / "one" / "adapter.safetensors").write_bytes((tmp_path / "two" / "adapter.safetensors").read_bytes())
    with pytest.raises(ModelError, match="none of 1 networks"):
        load_reward_model(tmp_path / "one", text_backbone("llama"))
    (tmp_path / "one" / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"adapter\.safetensors"):
        load_reward_model(tmp_path / "one", text_backbone("llama"))
