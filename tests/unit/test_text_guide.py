"""Steering by text: every reward is that of the whole text, decoded and encoded anew, whatever is kept in between."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoregressive import fitted as autoregressive_model
from peers.slow_decoding import last_state, slow_decode
from rewardgap.backbones.chat import ChatEncoder, check_vocabulary, same_tokens
from rewardgap.backbones.features import FeatureCache
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.lora import LoraSettings
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.traces import TraceCache, policy_traces
from rewardgap.backbones.trie import Trie, build_trie
from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.records import Message, PreferencePair
from rewardgap.decoding.args import ArgsGreedy, ArgsStochastic
from rewardgap.decoding.loop import LOOK_AHEAD, LookAhead, StopRule, decode
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import guided
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.guide import BackboneGuide
from rewardgap.rewards.text_guide import TextGuide
from rewardgap.rewards.text_reader import TextReader, text_node_states
from standins import ARCHITECTURES, DotHead, as_backbone, text_backbone, tiny_model, tiny_tokenizer, without_packing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCALE = 3.0
PROMPTS = ["Name a colour.", (Message("user", "what is the name of the river?"),), "Ü"]
WEIGHTS = [torch.randn(24, generator=torch.Generator().manual_seed(row), dtype=torch.float64) for row in range(3)]
POLICY = text_backbone("llama").encoder
SPELLED = [*POLICY.encode_text("the river in the garden, the light 1 2"), *POLICY.encode_text("é漢🙂")]
TOKENS = st.sampled_from([*SPELLED, *range(330, 339)]) | st.integers(0, 338)
"""Ordinary ones and single bytes; control tokens are 330 to 333, and 334 to 338 pad the embedding."""


@cache
def reader_backbone(architecture: str = "qwen3", template: str | None = "qwen", dtype: Any = torch.float64) -> Backbone:
    """Return a reward model's backbone whose tokenizer merges across blanks; shared."""
    tokenizer = tiny_tokenizer(template, across=True)
    model = tiny_model(architecture, vocabulary=len(tokenizer) + 3, seed=7, dtype=dtype)
    return as_backbone(model, tokenizer, name="reader")


def guide_of(backbone: Backbone, rows: list[int], room: int = 200, policy: ChatEncoder = POLICY) -> TextGuide:
    prompts = [PROMPTS[row] for row in rows]
    ids = [backbone.encoder.encode_prompt(prompt) for prompt in prompts]
    states: Any = [WEIGHTS[row] for row in rows]
    return TextGuide(policy, backbone, prompts, ids, DotHead(), states, SCALE, room)  # type: ignore[arg-type]


def plain_state(backbone: Backbone, row: int, tokens: list[int], policy: ChatEncoder = POLICY) -> torch.Tensor:
    """Return the last state of the prompt and of all the policy's tokens as text, cut where no character is open."""
    spelled = [token for token in tokens if token not in policy.end_ids]
    while (text := policy.tokenizer.decode(spelled, skip_special_tokens=True)).endswith("\ufffd"):
        spelled = spelled[:-1]
    prompt, encoder = PROMPTS[row], backbone.encoder
    whole = [*encoder.encode_prompt(prompt), *encoder.encode_completion(text, after=prompt)]
    return last_state(backbone.model, whole)


def plain_reward(backbone: Backbone, row: int) -> Callable[[list[int]], float]:
    return lambda tokens: float(plain_state(backbone, row, tokens) @ WEIGHTS[row]) / SCALE


ANY_TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\ufffd"), max_size=12
) | st.sampled_from(
    ["the name of the river", "漢字 é🙂🙂", "\n\nthe  light", "<|im_end|> <|im_start|>user", "a\u0301 ﬁ \u00a0x"]
)


@given(ANY_TEXT)
def test_only_whole_characters_are_read(text: str) -> None:
    """Against Python's own decoder: of the bytes written so far, all that are part of a whole character."""
    reward = reader_backbone().encoder
    reader, read, spelled = TextReader(POLICY, reward, "Why?"), (), 0
    tokens = POLICY.encode_text(text)
    for end, token in enumerate(tokens, start=1):
        spelled += len(POLICY.tokenizer.convert_ids_to_tokens(token))  # a letter a byte
        read = reader.read(tokens[:end], read)
        assert reward.tokenizer.decode(read) == text.encode()[:spelled].decode(errors="ignore")
        assert not set(read) & {reward.tokenizer.convert_tokens_to_ids("<|im_end|>"), reward.end_id}
    assert read == reward.encode_completion(text)


def test_bytes_that_are_no_character_are_shown_as_a_reader_sees_them() -> None:
    reward = reader_backbone().encoder
    reader = TextReader(POLICY, reward, "Why?")
    (start, *rest), (letter,) = POLICY.encode_text("é"), POLICY.encode_text("x")
    assert reader.read([letter, start], (5,)) == (5,)
    assert reader.read([letter, start, letter], ()) == reward.encode_completion("x\ufffdx")
    assert reader.read([letter, start, *rest], ()) == reward.encode_completion("xé")
    assert reader.read([letter, POLICY.end_id, 334], ()) == reward.encode_completion("x")


@pytest.mark.parametrize("template", [None, "chatml"])
@pytest.mark.parametrize("own", [None, "qwen"])
def test_the_blank_that_joins_a_completion_is_not_read_as_its_own(template: str | None, own: str | None) -> None:
    """Without a template a policy's completion begins with a blank; the reward model joins by its own rule."""
    policy, reward = ChatEncoder(tiny_tokenizer(template)), reader_backbone("qwen3", own).encoder
    for prompt in ("Why?", "Why? "):
        for text in ("river", "the river", "", "\nriver"):
            tokens = policy.encode_completion(text, after=prompt)
            read = TextReader(policy, reward, prompt).read(tokens, ())
            assert read == reward.encode_completion(text, after=prompt)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=4)
@given(data=st.data())
def test_rewards_of_trees_and_steps_in_any_order_are_those_of_the_texts(architecture: str, data: st.DataObject) -> None:
    """Batches of users whose rows leave, in buffers that are sometimes too small, against forwards of whole texts."""
    backbone, rows = reader_backbone(architecture), [0, 1, 2]
    guide = guide_of(backbone, rows, data.draw(st.sampled_from([1, 6, 200]), label="room"))
    paths: list[list[int]] = [[], [], []]
    begun = guide.start(torch.zeros(3, 24, dtype=torch.float64))
    for row in rows:
        assert float(begun[row]) == pytest.approx(plain_reward(backbone, row)([]), abs=1e-9)
    for _ in range(data.draw(st.integers(1, 4), label="moves")):
        assert guide.steps_ahead(3) >= 1
        if data.draw(st.booleans(), label="tree"):
            texts = st.lists(st.lists(TOKENS, min_size=1, max_size=4), min_size=1, max_size=3)
            tries = [build_trie(data.draw(texts)) for _ in rows]
            found = guide.tree(tries, None)
            kept = []
            for place, (row, trie) in enumerate(zip(rows, tries, strict=True)):
                spelled: list[list[int]] = []
                for node, (token, parent) in enumerate(zip(trie.tokens, trie.parents, strict=True)):
                    spelled.append([*(spelled[parent] if parent >= 0 else paths[place]), token])
                    assert float(found[place, node]) == pytest.approx(
                        plain_reward(backbone, row)(spelled[-1]), abs=1e-9
                    )
                ways = [(), *(path[: end + 1] for path in trie.paths for end in range(len(path)))]
                way = data.draw(st.sampled_from(ways), label="way")
                kept.append(list(way))
                paths[place] = spelled[way[-1]] if way else paths[place]
            guide.commit(kept)
        else:
            tokens = torch.tensor([data.draw(st.lists(TOKENS, min_size=2, max_size=2)) for _ in rows])
            found = guide.candidates(tokens, None)
            for place, row in enumerate(rows):
                for at, token in enumerate(tokens[place].tolist()):
                    whole = plain_reward(backbone, row)([*paths[place], token])
                    assert float(found[place, at]) == pytest.approx(whole, abs=1e-9)
            picks = [data.draw(st.integers(0, 1)) for _ in rows]
            guide.keep(picks, [int(tokens[place, pick]) for place, pick in enumerate(picks)])
            paths = [[*path, int(tokens[place, picks[place]])] for place, path in enumerate(paths)]
        stay = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1), label="stay"))
        guide.select(stay)
        rows, paths = [rows[place] for place in stay], [paths[place] for place in stay]


def test_a_token_that_changes_how_those_before_it_are_read_has_the_reward_of_the_text() -> None:
    """Step by step along a text: at many of its steps the reward model's last ids are taken back."""
    backbone, row = reader_backbone(), 0
    guide, read, taken_back = guide_of(backbone, [row]), (), 0
    guide.start(torch.zeros(1, 24))
    tokens = POLICY.encode_text("the name of the river in the garden and the light of winter")
    reader = TextReader(POLICY, backbone.encoder, PROMPTS[row])
    for end, token in enumerate(tokens, start=1):
        rewards = guide.candidates(torch.tensor([[token, tokens[0]]]), None)
        assert float(rewards[0, 0]) == pytest.approx(plain_reward(backbone, row)(tokens[:end]), abs=1e-9)
        guide.keep([0], [token])
        before, read = read, reader.read(tokens[:end], read)
        taken_back += read[: len(before)] != before
    assert taken_back >= 5


class TakesBack:
    """A policy's tokenizer in which token -1 takes back the character before it: a longer text may be a shorter one."""

    end_ids = POLICY.end_ids

    def decode(self, tokens: list[int]) -> str:
        text = ""
        for token in tokens:
            text = text[:-1] if token == -1 else text + POLICY.decode([token])
        return text

    def joined(self, text: str, after: object) -> str:
        return text


def test_a_text_that_ends_where_an_earlier_one_did_goes_on_from_there() -> None:
    backbone, row, policy = reader_backbone("gemma3"), 1, TakesBack()
    guide, encoder, written = guide_of(backbone, [row], 3, policy), backbone.encoder, []  # type: ignore[arg-type]
    start = float(guide.start(torch.zeros(1, 24))[0])
    assert start == pytest.approx(plain_reward(backbone, row)([]), abs=1e-9)
    for token in [*POLICY.encode_text("zqk"), -1, -1, -1, *POLICY.encode_text("qz"), -1, *POLICY.encode_text("kzq")]:
        written.append(token)
        (got,) = guide.candidates(torch.tensor([[token]]), None)[0].tolist()
        prompt = encoder.encode_prompt(PROMPTS[row])
        whole = [*prompt, *encoder.encode_completion(policy.decode(written), after=PROMPTS[row])]
        assert got == pytest.approx(float(last_state(backbone.model, whole) @ WEIGHTS[row]) / SCALE, abs=1e-9)
        guide.keep([0], [token])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=4)
@given(data=st.data())
def test_guided_tokens_are_those_of_the_slow_loop(architecture: str, data: st.DataObject) -> None:
    """Each row of a batch of users against a loop that decodes and encodes everything at every candidate."""
    policy, backbone = text_backbone(architecture), reader_backbone("mistral" if architecture == "llama" else "llama")
    rows = data.draw(st.permutations(range(3)), label="rows")[: data.draw(st.integers(1, 3), label="batch")]
    strength = data.draw(st.sampled_from([0.0, 0.5, 2.0, -3.0]), label="strength")
    k = data.draw(st.sampled_from([1, 2, 5]), label="k")
    end = {*policy.encoder.end_ids, *data.draw(st.sets(st.integers(0, 255), max_size=60), label="end")}
    shortest = data.draw(st.integers(0, 2), label="shortest")
    draws = data.draw(st.booleans(), label="draws")
    ahead = data.draw(st.sampled_from([None, LOOK_AHEAD, LookAhead(fixed=3)]), label="ahead")
    stop = StopRule(tuple(sorted(end)), 5, shortest)
    ids = [list(policy.encoder.encode_prompt(PROMPTS[row])) for row in rows]
    session = TrieSession(policy, len(rows), max(map(len, ids)) + 5 + k)
    seeds = [100 + row for row in rows] if draws else []
    fast = decode(
        session, session.prefill(ids), (ArgsStochastic if draws else ArgsGreedy)(strength, k), stop,
        guide=guide_of(backbone, list(rows), 5 + k), seeds=seeds, look_ahead=ahead,
    )  # fmt: skip
    for place, row in enumerate(rows):
        uniforms = np.random.Generator(np.random.PCG64(100 + row)).random(5).tolist() if draws else None
        slow = slow_decode(
            policy.model, ids[place], k=k, strength=strength, reward=plain_reward(backbone, row), end=end, stop=set(),
            shortest=shortest, longest=5, uniforms=uniforms,
        )  # fmt: skip
        assert fast[place].ids == slow.tokens
        assert fast[place].ended == slow.ended
        assert fast[place].reward == pytest.approx(slow.reward, abs=1e-9)
        assert fast[place].changed == slow.changed


@settings(max_examples=5)
@given(data=st.data())
def test_states_at_every_node_of_given_completions(data: st.DataObject) -> None:
    """Prefixes and candidates of several completions of each prompt, against forwards of whole texts."""
    policy, backbone = text_backbone("gemma3"), reader_backbone("mistral")
    texts = st.lists(ANY_TEXT.map(lambda text: text[:6]), min_size=1, max_size=2)
    completions = [[POLICY.encode_completion(text) for text in data.draw(texts)] for _ in PROMPTS[:2]]
    ids = [policy.encoder.encode_prompt(prompt) for prompt in PROMPTS[:2]]
    session = TrieSession(policy, 2, 400)
    traces = policy_traces(session, session.prefill(ids), completions, POLICY.end_id, 3)
    own = [backbone.encoder.encode_prompt(prompt) for prompt in PROMPTS[:2]]
    nodes = text_node_states(POLICY, backbone, PROMPTS[:2], own, traces)
    alone = [
        text_node_states(POLICY, without_packing(backbone), [PROMPTS[row]], [own[row]], [traces[row]]) for row in (0, 1)
    ]
    for row, row_traces in enumerate(traces):
        for number, (trace, found) in enumerate(zip(row_traces, nodes[row], strict=True)):
            torch.testing.assert_close(vars(alone[row][0][number]), vars(found), rtol=0, atol=1e-9)
            tokens = trace.tokens.tolist()
            for step, candidates in enumerate(trace.candidates.tolist()):
                expected = [plain_state(backbone, row, tokens[:step])]
                expected += [plain_state(backbone, row, [*tokens[:step], token]) for token in candidates]
                got = torch.cat([found.prefixes[step : step + 1], found.candidates[step]])
                torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=1e-9)


def test_many_candidates_are_read_in_several_passes() -> None:
    """More nodes than one pass takes, with branches of several nodes: 12 positions of 60 candidates."""
    policy, backbone = text_backbone("llama"), reader_backbone()
    session = TrieSession(policy, 1, 1200)
    content = POLICY.encode_completion("the é of rivers")
    traces = policy_traces(session, session.prefill([policy.encoder.encode_prompt(PROMPTS[0])]), [[content]], 332, 60)
    own = [backbone.encoder.encode_prompt(PROMPTS[0])]
    ((found,),) = text_node_states(POLICY, backbone, PROMPTS[:1], own, traces)
    (trace,) = traces[0]
    assert trace.candidates.size > 2 * 320
    generator = np.random.default_rng(0)
    for step, place in zip(generator.integers(0, len(trace.tokens), 60), range(60), strict=True):
        tokens = [*trace.tokens[:step].tolist(), int(trace.candidates[step, place])]
        torch.testing.assert_close(found.candidates[step, place], plain_state(backbone, 0, tokens), rtol=0, atol=1e-9)


def test_what_texts_have_in_common_is_read_once() -> None:
    """60 steps of 10 candidates: a few ids a candidate, not the text; look-ahead needs fewer passes still."""
    backbone, policy = reader_backbone(), text_backbone("llama")
    ids = [list(policy.encoder.encode_prompt(PROMPTS[0]))]
    sent = {}
    for ahead in (None, LookAhead(fixed=4)):
        session, guide = TrieSession(policy, 1, 200), guide_of(backbone, [0], 150)
        (done,) = decode(
            session, session.prefill(ids), ArgsGreedy(0.1, 10), StopRule((), 60), guide=guide, look_ahead=ahead
        )
        sent[ahead] = (guide.tokens, guide.forwards, done.ids)
    step, several = sent.values()
    assert step[2] == several[2]
    assert step[0] <= len(backbone.encoder.encode_prompt(PROMPTS[0])) + 3 * 600
    assert (step[1], several[1] < 45) == (61, True)


WORDS = ["red", "blue", "the light", "winter", "garden of stone", "river"]
PAIRS = [
    PreferencePair(
        user_id=f"u{n % 3}", example_id=str(n), prompt=f"Why {n % 4}?", chosen=WORDS[n % 3], rejected=WORDS[3 + n % 3]
    )
    for n in range(15)
]


@pytest.mark.parametrize("method", ["lore", "pal_b", "mpu"])
def test_a_fitted_model_steers_and_scores_by_text(method: str, tmp_path: Path) -> None:
    """Heads, completions read apart, one adapter a user: rewards are those of `rewards` for the text itself."""
    options: dict[str, Any] = {"fit_mode": "lora", "user_steps": 3} if method == "mpu" else {}
    made = reward_model(
        method, reader_backbone("llama", "qwen", torch.float32), features=FeatureCache(tmp_path / "features"),
        lora=LoraSettings(4, 8, 0.0), **options,
    ).fit(PAIRS, seed=1)  # fmt: skip
    policy = text_backbone("llama", dtype=torch.float32)
    states = [made.state_of(f"u{n}") for n in range(3)]
    prompts, texts = ["Why?", "Name a colour.", "river"], ["red é", "the light", "winter 漢 of"]
    steered = guided(
        policy, made, guidance_weight=3.0, top_k=4, settings=GenerationSettings(max_new_tokens=6, min_new_tokens=6)
    )
    steered.traces = TraceCache(tmp_path / "traces")
    run = steered.open(prompts, states, completions=[[text] for text in texts])
    ids = [[policy.encoder.encode_completion(text, after=prompt)] for text, prompt in zip(texts, prompts, strict=True)]
    traces = run._traces(ids, 4)
    with pytest.warns(UserWarning, match=r"339 tokens\).*reader \(\d+\) have different tokenizers"):
        nodes = steered.node_rewards(run, traces)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        again = steered.node_rewards(run, traces)
        guide = steered.guide(run)
    assert isinstance(guide, TextGuide)
    whole = made.rewards(prompts, texts, states)
    bare = made.rewards(prompts, ["", "", ""], states)
    np.testing.assert_allclose(guide.start(run.tips).numpy(), bare, atol=2e-4)
    for row, ((found,), (kept,)) in enumerate(zip(nodes, again, strict=True)):
        np.testing.assert_array_equal(found.candidates, kept.candidates)
        np.testing.assert_allclose(found.prefixes[[0, -2, -1]], [bare[row], whole[row], whole[row]], atol=2e-4)
    begun = guide.candidates(torch.from_numpy(np.stack([row[0].candidates[0] for row in traces])), None)
    ends = np.isin([row[0].candidates[0] for row in traces], policy.encoder.end_ids)
    expected = np.stack([row[0].candidates[0] for row in nodes])
    np.testing.assert_allclose(np.where(ends, expected, begun.numpy()), expected, atol=2e-4)
    for prompt, state, generation in zip(prompts, states, run.generate(), strict=True):
        (alone,) = steered.open([prompt], [state]).generate()
        assert alone.ids == generation.ids


def test_who_reads_tokens_and_who_reads_text(tmp_path: Path) -> None:
    policy = text_backbone("llama")
    model = autoregressive_model("genarm")
    ids = [policy.encoder.encode_prompt("Why?")]
    with pytest.raises(ConfigError, match="tokens and the reward model 339: token ids do not match"):
        model.guide(reader_backbone(), ["Why?"], ids, [model.adapt([])], 8)
    made = reward_model("global_bt", policy, features=FeatureCache(tmp_path)).fit(PAIRS)
    states = [made.adapt([])]
    # One size, other tokens.
    renamed = as_backbone(tiny_model("llama", vocabulary=339), tiny_tokenizer(extra=["colour"]), name="renamed")
    assert renamed.vocabulary == policy.vocabulary
    with pytest.warns(UserWarning, match="renamed .339 tokens.* tiny .339."):
        assert isinstance(made.guide(renamed, ["Why?"], ids, states, 8), TextGuide)


@pytest.mark.parametrize("more", [-4, 40])
def test_one_tokenizer_in_embeddings_of_different_sizes_is_one(more: int, tmp_path: Path) -> None:
    """Padding makes no other tokenizer; an id that only pads cannot be read, and is refused by name."""
    reward, tokenizer = text_backbone("llama"), tiny_tokenizer()
    policy = as_backbone(tiny_model("mistral", vocabulary=reward.vocabulary + more), tokenizer, name="padded")
    assert same_tokens(policy, reward) and same_tokens(reward, policy)
    made = reward_model("global_bt", reward, features=FeatureCache(tmp_path)).fit(PAIRS)
    ids = [policy.encoder.encode_prompt("Why?")]
    guide = made.guide(policy, ["Why?"], ids, [made.adapt([])], 8)
    assert isinstance(guide, BackboneGuide)
    guide.start(torch.zeros(1, 24))
    assert torch.isfinite(guide.candidates(torch.tensor([[1, 330]]), None)).all()
    if more < 0:
        check_vocabulary(policy, reward)
        return
    with pytest.raises(ConfigError, match="379 tokens and the reward model 339"):
        check_vocabulary(policy, reward)
    for ask in (
        lambda: guide.candidates(torch.tensor([[1, 350]]), None),
        lambda: guide.tree([Trie((350,), (-1,), ())], None),
    ):
        with pytest.raises(ModelError, match="proposes id 350"):
            ask()


def test_a_text_beyond_the_reward_models_context_is_refused() -> None:
    """256 ids: the policy's tokens are long words of the reward model's alphabet."""
    backbone = reader_backbone()
    guide = guide_of(backbone, [2], 4)
    guide.start(torch.zeros(1, 24))
    (long,) = POLICY.encode_text("x")
    with pytest.raises(DataError, match="longer than the 256 that the reward model reader reads"):
        guide.tree([build_trie([[long] * 250])], None)
