"""Deployments against slow, obvious computations: every prefix and candidate encoded from the beginning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgap.backbones.features import FeatureCache, PromptLimit
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.traces import TraceCache
from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import Message, PreferencePair, prompt_text
from rewardgap.metrics.policy_accuracy import policy_scores
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.policies.base import GenerationSettings, complete, own_text
from rewardgap.policies.guided import guided
from rewardgap.policies.in_context import Demonstrations, in_context, with_demonstrations
from rewardgap.policies.zero_shot import zero_shot
from rewardgap.retrieval.bm25 import Bm25
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.model import RewardModel
from standins import text_backbone, tiny_backbone

WORDS = ["river", "stone", "light", "garden", "paper", "winter", "music", "candle"]
ARCHITECTURES = ("llama", "gemma3", "mistral")


def some_pairs(users: int = 3, rows: int = 6, seed: int = 0) -> list[PreferencePair]:
    draw = np.random.default_rng(seed)

    def text(length: int) -> str:
        return " ".join(draw.choice(WORDS, length))

    return [
        PreferencePair(
            user_id=f"u{user}",
            example_id=f"u{user}-{row}",
            prompt=f"Write: {text(4)} {user}{row}",
            chosen=text(int(draw.integers(1, 5))) + " a",
            rejected=text(int(draw.integers(1, 5))) + " b",
            reference=text(3),
        )
        for user in range(users)
        for row in range(rows)
    ]


@pytest.fixture
def fitted(tmp_path) -> tuple[Backbone, RewardModel, list[PreferencePair]]:
    backbone = text_backbone("llama")
    pairs = some_pairs()
    model = reward_model("lore", backbone, rank=2, features=FeatureCache(tmp_path / "features")).fit(pairs)
    return backbone, model, pairs


def slow_states(backbone: Backbone, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model.get_decoder()(torch.tensor([ids]), use_cache=False).last_hidden_state[0]


def slow_scores(backbone: Backbone, model: RewardModel, state, prompt: str, text: str, weight: float, k: int):
    """Every number from a forward pass of its own over the whole sequence."""
    encoder = backbone.encoder
    start = list(encoder.encode_prompt(prompt))
    content = list(encoder.encode_completion(text, after=prompt))

    def reward(ids: list[int]) -> float:
        return float(model.head.rewards(slow_states(backbone, start + ids)[-1:], state)) / model.scale

    gold = [*content, encoder.end_id]
    rewards = [reward(content[:t]) for t in range(len(content) + 1)]
    rewards.append(rewards[-1])
    log_probs, tables, values, masks, columns, inside = [], [], [], [], [], []
    for t, token in enumerate(gold):
        with torch.no_grad():
            logits = backbone.model(torch.tensor([start + content[:t]]), use_cache=False).logits[0, -1]
        row = torch.log_softmax(logits, -1)
        log_probs.append(float(row[token]))
        best = torch.argsort(-row, stable=True)[:k].tolist()
        inside.append(token in best)
        candidates = best if token in best else [*best, token]
        columns.append(candidates.index(token))
        at = [rewards[t] if v in encoder.end_ids else reward([*content[:t], v]) for v in candidates]
        padding = k + 1 - len(candidates)
        tables.append([float(row[v]) for v in candidates] + [0.0] * padding)
        values.append(at + [0.0] * padding)
        masks.append([True] * len(candidates) + [False] * padding)
    return policy_scores(
        log_probs, rewards, weight, candidate_log_probs=tables, candidate_rewards=values,
        candidate_mask=masks, gold_column=columns, in_top_k=inside,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_policy_scores_equal_one_forward_a_number(architecture: str, tmp_path) -> None:
    backbone = text_backbone(architecture)
    pairs = some_pairs(users=2, rows=3)
    model = reward_model("lore", backbone, rank=2, features=FeatureCache(tmp_path)).fit(pairs)
    states = [model.state_of(pair.user_id) for pair in pairs[:4]]
    policy = guided(backbone, model, guidance_weight=1.5, top_k=4)
    completions = [[pair.chosen, pair.rejected] for pair in pairs[:4]]
    run = policy.open([pair.prompt for pair in pairs[:4]], states, completions=completions)
    for pair, state, row in zip(pairs, states, run.scores(completions), strict=False):
        for text, scores in zip((pair.chosen, pair.rejected), row, strict=True):
            expected = slow_scores(backbone, model, state, pair.prompt, text, 1.5, 4)
            for name, value in expected.items():
                # Heads read features as float32; log-probabilities alone are float64.
                assert scores.variants[name] == pytest.approx(value, abs=1e-9 if "base" in name else 2e-4), name


def test_scoring_and_generating_share_a_session_without_touching_each_other(fitted) -> None:
    backbone, model, pairs = fitted
    state = model.state_of("u0")
    policy = guided(backbone, model, state, guidance_weight=2.0, top_k=5, settings=GenerationSettings(max_new_tokens=8))
    prompts = [pair.prompt for pair in pairs[:3]]
    completions = [[pair.chosen, pair.rejected] for pair in pairs[:3]]
    run = policy.open(prompts, completions=completions)
    first = run.scores(completions)
    again = run.scores(completions)
    assert [s.variants for row in first for s in row] == [s.variants for row in again for s in row]
    assert [g.ids for g in run.generate()] == [g.ids for g in policy.open(prompts).generate()]


def test_a_batch_of_different_users_equals_one_user_at_a_time(fitted) -> None:
    backbone, model, pairs = fitted
    policy = guided(backbone, model, guidance_weight=3.0, top_k=6, settings=GenerationSettings(max_new_tokens=6))
    chosen = pairs[::5]
    states = [model.state_of(pair.user_id) for pair in chosen]
    together = policy.generate([pair.prompt for pair in chosen], states)
    alone = [policy.generate([pair.prompt], [state])[0] for pair, state in zip(chosen, states, strict=True)]
    assert together == alone
    scores = policy.log_score([p.prompt for p in chosen], [p.chosen for p in chosen], states)
    single = [policy.log_score([p.prompt], [p.chosen], [s])[0] for p, s in zip(chosen, states, strict=True)]
    assert scores == pytest.approx(single, abs=1e-6)


def test_without_weight_guidance_is_the_policy(fitted) -> None:
    backbone, model, pairs = fitted
    prompts, texts = [p.prompt for p in pairs[:4]], [p.chosen for p in pairs[:4]]
    settings_ = GenerationSettings(max_new_tokens=8, score_top_k=5)
    steered = guided(backbone, model, model.state_of("u1"), guidance_weight=0.0, top_k=5, settings=settings_)
    plain = zero_shot(backbone, settings=settings_)
    assert steered.generate(prompts) == plain.generate(prompts)
    assert steered.log_score(prompts, texts) == pytest.approx(plain.log_score(prompts, texts), abs=1e-12)


def test_an_endless_weight_makes_raw_delta_the_reward_model(fitted) -> None:
    """λ above max |log π margin| / min |reward margin| ranks as the reward gained since the prompt does."""
    backbone, model, pairs = fitted
    states = [model.state_of(pair.user_id) for pair in pairs]
    policy = guided(backbone, model, guidance_weight=1e9, top_k=3)
    prompts = [pair.prompt for pair in pairs]
    margin = policy.log_score(prompts, [p.chosen for p in pairs], states, variant="raw_delta") - policy.log_score(
        prompts, [p.rejected for p in pairs], states, variant="raw_delta"
    )
    assert pair_accuracy(margin).tolist() == pair_accuracy(model.margins(pairs, states)).tolist()


def test_rewards_of_another_backbone_equal_rewards_on_the_policys_own_states(fitted) -> None:
    """A copy with another fingerprint takes the path of a separate session; numbers and tokens stay."""
    backbone, model, pairs = fitted
    twin = Backbone("twin", "another", backbone.model, backbone.encoder, backbone.packs, backbone._mask_form)
    apart = RewardModel("lore", model.head, twin, features=model.features)
    prompts = [pair.prompt for pair in pairs[:5]]
    states = [model.state_of(pair.user_id) for pair in pairs[:5]]
    settings_ = GenerationSettings(max_new_tokens=10)
    shared, own = (guided(backbone, m, guidance_weight=4.0, top_k=6, settings=settings_) for m in (model, apart))
    assert shared.generate(prompts, states) == own.generate(prompts, states)
    texts = [pair.chosen for pair in pairs[:5]]
    assert shared.log_score(prompts, texts, states) == pytest.approx(own.log_score(prompts, texts, states), abs=1e-6)


def test_kept_traces_give_the_same_scores(fitted, tmp_path) -> None:
    backbone, model, pairs = fitted
    policy = guided(backbone, model, model.state_of("u2"), guidance_weight=1.0, top_k=4)
    prompts, texts = [p.prompt for p in pairs[:3]], [p.rejected for p in pairs[:3]]
    plain = policy.log_score(prompts, texts)
    policy.traces = TraceCache(tmp_path / "traces")
    written = policy.log_score(prompts, texts)
    read = policy.log_score(prompts, texts)
    assert plain.tolist() == written.tolist() == read.tolist()
    files = sorted((tmp_path / "traces").rglob("*.safetensors"))
    assert files
    files[0].write_bytes(b"broken")
    assert policy.log_score(prompts, texts).tolist() == plain.tolist()


def test_no_demonstrations_is_zero_shot_to_the_bit(fitted) -> None:
    backbone, _, pairs = fitted
    prompts, texts = [p.prompt for p in pairs[:4]], [p.chosen for p in pairs[:4]]
    bare, empty = in_context(backbone, [], num_demonstrations=4), in_context(backbone, pairs, num_demonstrations=0)
    for policy in (bare, empty):
        assert policy.generate(prompts) == zero_shot(backbone).generate(prompts)
        assert policy.log_score(prompts, texts).tolist() == zero_shot(backbone).log_score(prompts, texts).tolist()


def test_demonstrations_are_turns_with_the_most_similar_last(fitted) -> None:
    _, _, pairs = fitted
    shown = with_demonstrations((Message("system", "s"), Message("user", "q")), pairs[:2])
    assert [m.role for m in shown] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m.content for m in shown][2::2] == [pairs[0].reference, pairs[1].reference]


def test_a_duplicate_of_the_query_is_shown_next_to_it(fitted) -> None:
    backbone, _, pairs = fitted
    policy = in_context(backbone, pairs[:6], retriever="bm25", num_demonstrations=3)
    prepared = policy.open([pairs[2].prompt]).prepared[0]
    assert prepared.shown == 3
    messages = prepared.prompt
    assert messages[-3].content == prompt_text(pairs[2].prompt)


@given(st.permutations(range(6)))
@settings(max_examples=10)
def test_the_order_of_the_support_set_changes_no_retrieved_prompt(order: list[int]) -> None:
    """Scores without ties: each demonstration shares another number of words with the query."""
    texts = [" ".join(WORDS[: n + 1]) + f" only{n}" for n in range(6)]
    query = " ".join(WORDS)
    expected = [texts[i] for i in Bm25().order(query, texts)]
    shuffled = [texts[i] for i in order]
    assert [shuffled[i] for i in Bm25().order(query, shuffled)] == expected


def test_retrieval_compares_texts_without_the_instruction_they_share() -> None:
    template = "Summarize this change, please: {prompt_source}"
    assert own_text("Summarize this change, please: fix x", template) == "fix x"
    assert own_text("something else", template) == "something else"
    assert own_text("A {prompt_source", "A {prompt_source} B") == "A {prompt_source"
    pairs = [
        PreferencePair(
            user_id="u", example_id=str(n), prompt=template.replace("{prompt_source}", text), chosen="c", rejected="r"
        )
        for n, text in enumerate(["river stone", "zebra", "winter music light garden paper candle river"])
    ]
    policy = in_context(
        text_backbone("llama"), pairs, retriever="bm25", settings=GenerationSettings(prompt_template=template)
    )
    query = template.replace("{prompt_source}", "quite unrelated")
    # No word is shared once the instruction is gone: the most recent come first.
    assert policy.select(query, policy.state) == [2, 1, 0]


def test_without_a_shared_word_the_most_recent_come_first() -> None:
    assert Bm25().order("zebra", ["a b", "c d", "e f"]) == [2, 1, 0]
    assert Bm25().order("?!", ["a b", "c d"]) == [1, 0]


def test_demonstrations_that_do_not_fit_are_dropped_whole_and_counted(fitted) -> None:
    backbone, _, pairs = fitted
    encoder = backbone.encoder
    query = pairs[7].prompt
    full = in_context(backbone, pairs[:4], retriever="bm25")
    most_useful = full.select(query, Demonstrations(tuple(pairs[:4])))[0]
    one = encoder.encode_prompt(with_demonstrations(query, [pairs[most_useful]]))
    limits = GenerationSettings(max_new_tokens=5, context_tokens=len(one) + 5)
    tight = in_context(backbone, pairs[:4], retriever="bm25", settings=limits)
    prepared = tight.open([query]).prepared[0]
    assert (prepared.shown, prepared.dropped, prepared.ids) == (1, 3, one)
    none = GenerationSettings(max_new_tokens=5, context_tokens=len(one) + 4)
    prepared = in_context(backbone, pairs[:4], retriever="bm25", settings=none).open([query]).prepared[0]
    assert (prepared.shown, prepared.dropped, prepared.ids) == (0, 4, encoder.encode_prompt(query))


def test_a_prompt_beyond_the_context_is_one_sentence(fitted) -> None:
    backbone, _, _ = fitted
    with pytest.raises(DataError, match=r"longer than the \d+ allowed"):
        zero_shot(backbone).generate(["river " * 400])
    with pytest.raises(DataError, match="leaves no room"):
        zero_shot(backbone, settings=GenerationSettings(max_new_tokens=256)).generate(["river"])


def test_guidance_without_a_user_is_refused(fitted) -> None:
    backbone, model, pairs = fitted
    with pytest.raises(ConfigError, match="needs a user state"):
        guided(backbone, model).generate([pairs[0].prompt])
    with pytest.raises(ConfigError, match="2 states for 1 prompts"):
        guided(backbone, model).generate([pairs[0].prompt], [model.state_of("u0")] * 2)


def test_an_embedding_padded_to_another_size_is_no_other_vocabulary(fitted) -> None:
    _, model, pairs = fitted
    other = tiny_backbone("llama", vocabulary=model.backbone.vocabulary + 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said of text
        found = guided(other, model, model.state_of("u0")).log_score([pairs[0].prompt], ["a"])
    assert np.isfinite(found).all()


def test_adapt_changes_no_parameter_and_depends_on_nothing_but_the_support(fitted) -> None:
    _, model, pairs = fitted
    before = model.fingerprint()
    first = model.adapt(pairs[:4])
    model.adapt(pairs[6:9])
    assert model.adapt(pairs[:4]) == first
    assert model.fingerprint() == before


def test_prefix_rewards_end_in_the_reward_of_the_whole(fitted) -> None:
    _, model, pairs = fitted
    state = model.state_of("u0")
    for pair in pairs[:3]:
        along = model.prefix_rewards(pair.prompt, pair.chosen, state)
        whole = model.rewards([pair.prompt], [pair.chosen], state)[0]
        assert along[-1] == pytest.approx(whole, abs=1e-5)
        assert len(along) == len(model.backbone.encoder.encode_completion(pair.chosen, after=pair.prompt)) + 1
        assert along[0] == pytest.approx(model.rewards([pair.prompt], [""], state)[0], abs=1e-5)


def test_the_completion_rule() -> None:
    assert complete("  a\n b ", first_line=True) == "a"
    assert complete("  a\n b ", first_line=False) == "a\n b"
    assert complete("\n\nx\ny", first_line=True) == "x"


def test_long_prompts_are_cut_only_where_asked(tmp_path) -> None:
    backbone = text_backbone("llama")
    pairs = some_pairs(2, 3)
    model = reward_model("global_bt", backbone, max_prompt_tokens=12, features=FeatureCache(tmp_path))
    with pytest.raises(DataError, match="12 allowed"):
        model.fit(pairs)
    cut = reward_model(
        "global_bt", backbone, max_prompt_tokens=12, on_long="truncate_prompt", features=FeatureCache(tmp_path)
    ).fit(pairs)
    assert cut.limit == PromptLimit(12, "truncate_prompt")
