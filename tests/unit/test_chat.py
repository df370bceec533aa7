"""Prompts to ids: the tokenizer's own encoding for benign text, and never a control token out of anybody's text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rewardgap.backbones.chat import ChatEncoder, check_vocabulary
from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.records import Message, Prompt, prompt_messages
from standins import CHATML, TEMPLATES, as_backbone, text_backbone, tiny_backbone, tiny_tokenizer

BLANK_RUNS = [AddedToken("\n\n", normalized=False), AddedToken("    ", normalized=False)]
ENCODERS = {name: ChatEncoder(tiny_tokenizer(name, extra=BLANK_RUNS)) for name in TEMPLATES}
BARE = ChatEncoder(tiny_tokenizer(None))
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin|>"]

PLAIN = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]) | st.sampled_from(" \n\t'.{}0é中😀\ufffd\ue000"),
    max_size=40,
)
HOSTILE = st.lists(
    PLAIN | st.sampled_from([*CONTROL, "<|im_", "start|>", "assistant\n", "{{", "{% raw %}"]), max_size=6
).map("".join)


def conversation(contents: list[str], system: str | None = None) -> tuple[Message, ...]:
    turns = tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(contents))
    return turns if system is None else (Message("system", system), *turns)


def peer_ids(encoder: ChatEncoder, prompt: Prompt) -> list[int]:
    turns = [{"role": m.role, "content": m.content} for m in prompt_messages(prompt)]
    return list(encoder.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


def control_ids(encoder: ChatEncoder) -> set[int]:
    return {encoder.tokenizer.convert_tokens_to_ids(text) for text in CONTROL}


def literal(encoder: ChatEncoder, ids: tuple[int, ...]) -> str:
    return str(encoder.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", TEMPLATES)
@given(contents=st.lists(PLAIN, min_size=1, max_size=4), system=st.none() | PLAIN)
def test_benign_text_is_encoded_as_transformers_does(name: str, contents: list[str], system: str | None) -> None:
    encoder = ENCODERS[name]
    prompt = conversation(contents[: len(contents) - 1 + len(contents) % 2], None if name == "gemma" else system)
    assert list(encoder.encode_prompt(prompt)) == peer_ids(encoder, prompt)


@pytest.mark.parametrize("name", TEMPLATES)
@given(contents=st.lists(HOSTILE, min_size=1, max_size=3), system=HOSTILE)
def test_text_never_becomes_a_control_token(name: str, contents: list[str], system: str) -> None:
    """The control ids of a prompt are those of the same turns with harmless contents, and the text survives in full."""
    encoder = ENCODERS[name]
    contents = contents[: len(contents) - 1 + len(contents) % 2]
    prompt = conversation(contents, None if name == "gemma" else system)
    harmless = tuple(Message(m.role, "x") for m in prompt)
    known = control_ids(encoder)
    ids = encoder.encode_prompt(prompt)
    assert [i for i in ids if i in known] == [i for i in encoder.encode_prompt(harmless) if i in known]
    assert literal(encoder, ids) == encoder.render(prompt)


@given(text=HOSTILE)
def test_completions_are_plain_text(text: str) -> None:
    for encoder in (*ENCODERS.values(), BARE):
        ids = encoder.encode_completion(text)
        assert control_ids(encoder).isdisjoint(ids)
        assert encoder.decode(ids) == text


@given(prompt=HOSTILE, texts=st.tuples(HOSTILE, HOSTILE))
def test_prompt_and_completion_are_encoded_apart(prompt: str, texts: tuple[str, str]) -> None:
    """A completion's ids depend on the prompt only through the one blank of template-less models."""
    encoder = ENCODERS["chatml"]
    for text in texts:
        assert encoder.encode_completion(text, after=prompt) == encoder.encode_completion(text)
        blank = bool(prompt and text) and not prompt[-1].isspace() and not text[0].isspace()
        assert BARE.encode_completion(text, after=prompt) == BARE.encode_completion(" " * blank + text)
        assert BARE.encode_completion(text, after=(Message("user", prompt),)) == BARE.encode_completion(
            text, after=prompt
        )


@pytest.mark.parametrize("name", TEMPLATES)
@given(
    contents=st.lists(HOSTILE.filter(lambda text: "\n\n" not in text and "    " not in text), min_size=1, max_size=1)
)
def test_hostile_text_is_encoded_as_transformers_does_when_it_guards_it(name: str, contents: list[str]) -> None:
    """The peer reads a guarded piece without any added token, so runs of blanks are left out here."""
    encoder = ENCODERS[name]
    turns = [{"role": "user", "content": contents[0]}]
    peer = encoder.tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
    )
    ids = encoder.encode_prompt(contents[0])
    assert literal(encoder, ids) == literal(encoder, tuple(peer))
    known = control_ids(encoder)
    assert [i for i in ids if i in known] == [i for i in peer if i in known]


def test_span_borders_are_encoded_in_one_piece() -> None:
    """Blanks at a content's border meet the template's own: '\\n' + '\\nx' is one token here, as for transformers."""
    encoder = ENCODERS["chatml"]
    double = encoder.tokenizer.convert_tokens_to_ids("\n\n")
    assert double in encoder.encode_prompt("\nx")
    assert double not in encoder.encode_prompt("x")


def test_default_system_turn_is_kept_and_not_doubled() -> None:
    encoder = ENCODERS["qwen"]
    assert "You are helpful." in literal(encoder, encoder.encode_prompt("<|im_start|>system"))
    own = encoder.encode_prompt(conversation(["hi"], "Be brief."))
    assert literal(encoder, own).count("system") == 1


def test_a_template_that_refuses_a_role_gives_a_sentence() -> None:
    with pytest.raises(DataError, match="refuses the conversation: System role not supported"):
        ENCODERS["gemma"].encode_prompt(conversation(["hi"], "Be brief."))
    with pytest.raises(DataError, match="Roles must alternate"):
        ENCODERS["gemma"].encode_prompt((Message("user", "a"), Message("user", "b")))


def test_a_prompt_needs_a_turn_and_a_token() -> None:
    for encoder in (ENCODERS["chatml"], BARE):
        with pytest.raises(DataError, match="no turn"):
            encoder.encode_prompt(())
    with pytest.raises(DataError, match="no token"):
        BARE.encode_prompt("")
    assert ENCODERS["chatml"].encode_prompt("") == tuple(peer_ids(ENCODERS["chatml"], ""))


def test_without_a_template_the_prompt_is_its_text() -> None:
    assert list(BARE.encode_prompt("Name a colour.")) == BARE.encode_text("Name a colour.")
    assert BARE.render(conversation(["a", "b", "c"], "s")) == "s\n\na\n\nb\n\nc"
    assert BARE.decode(BARE.encode_prompt(conversation(["a", "b"]))) == "a\n\nb"
    assert BARE.end_ids == (BARE.tokenizer.eos_token_id,)


@pytest.mark.parametrize("template", [None, "gemma", "chatml"])
def test_there_is_one_bos_where_the_model_wants_one(template: str | None) -> None:
    encoder = ChatEncoder(tiny_tokenizer(template, bos=True))
    begin = encoder.tokenizer.bos_token_id
    ids = encoder.encode_prompt("<|begin|> hi")
    assert ids.count(begin) == (0 if template == "chatml" else 1)
    assert ids[0] == begin or template == "chatml"
    assert begin not in encoder.encode_completion("<|begin|> hi", after="x")
    if template is None:
        assert list(encoder.encode_prompt("hi")) == encoder.tokenizer("hi")["input_ids"]


@settings(max_examples=40)
@given(
    contents=st.lists(HOSTILE.filter(str.strip), min_size=1, max_size=3), system=PLAIN.filter(str.strip), data=st.data()
)
def test_truncation_takes_from_the_left_of_the_oldest_turn(
    contents: list[str], system: str, data: st.DataObject
) -> None:
    encoder = ENCODERS["chatml"]
    prompt = conversation(contents, system)
    whole = encoder.encode_prompt(prompt)
    empty = encoder.encode_prompt(tuple(Message(m.role, m.content if m.role == "system" else "") for m in prompt))
    limit = data.draw(st.integers(len(empty), len(whole)))
    ids = encoder.encode_prompt(prompt, max_tokens=limit, on_long="truncate_prompt")
    assert len(ids) <= limit
    known = control_ids(encoder)
    assert [i for i in ids if i in known] == [i for i in whole if i in known]
    turns = re.fullmatch(
        r"<\|im_start\|>system\n(.*)<\|im_end\|>\n" + r"<\|im_start\|>(?:user|assistant)\n(.*)<\|im_end\|>\n" * len(contents)
        + r"<\|im_start\|>assistant\n", literal(encoder, ids), re.DOTALL,
    )  # fmt: skip
    assert turns is not None
    assert turns.group(1) == system
    left = list(turns.groups())[1:]
    cut = [old != new for old, new in zip(contents, left, strict=True)]
    for old, new in zip(contents, left, strict=True):
        assert old.endswith(new)
    if True in cut:  # everything before the newest turn that was touched is empty, everything after it whole
        last = len(cut) - 1 - cut[::-1].index(True)
        assert left[:last] == [""] * last


def test_truncation_keeps_what_fits() -> None:
    """Ten ids too long: the ten leftmost ids of the text go, and no more."""
    encoder = ENCODERS["chatml"]
    text = "0123456789abcdefghij"
    whole = encoder.encode_prompt(text)
    ids = encoder.encode_prompt(text, max_tokens=len(whole) - 10, on_long="truncate_prompt")
    assert ids == encoder.encode_prompt("abcdefghij")


def test_truncation_does_not_cut_through_a_character() -> None:
    text = "😀" * 10
    whole = BARE.encode_prompt(text)
    for limit in range(1, len(whole)):
        if limit < 4:
            with pytest.raises(DataError):
                BARE.encode_prompt(text, max_tokens=limit, on_long="truncate_prompt")
        else:
            kept = BARE.encode_prompt(text, max_tokens=limit, on_long="truncate_prompt")
            assert BARE.decode(kept) == "😀" * (limit // 4)


def test_too_long_names_both_sizes_and_the_prompt() -> None:
    encoder = ENCODERS["chatml"]
    size = len(encoder.encode_prompt("Name a colour."))
    with pytest.raises(DataError, match=rf"{size} tokens is longer than the 5 allowed: 'Name a colour\.'"):
        encoder.encode_prompt("Name a colour.", max_tokens=5)
    base = len(encoder.encode_prompt(""))
    with pytest.raises(DataError, match=rf"'Name a colour\.' cannot be cut to 5 tokens.* {base}\."):
        encoder.encode_prompt("Name a colour.", max_tokens=5, on_long="truncate_prompt")
    assert encoder.encode_prompt("Name a colour.", max_tokens=size) == encoder.encode_prompt("Name a colour.")


def test_end_tokens() -> None:
    """The template's turn end closes a completion; the tokenizer's eos and the generation config's ids stop it too."""
    encoder = ENCODERS["chatml"]
    names = encoder.tokenizer.convert_tokens_to_ids
    assert encoder.end_id == names("<|im_end|>")
    assert encoder.end_ids == tuple(sorted([names("<|im_end|>"), names("<|endoftext|>")]))
    more = ChatEncoder(tiny_tokenizer("chatml"), [7, names("<|im_end|>")])
    assert set(more.end_ids) == {7, *encoder.end_ids}
    assert BARE.end_id == names("<|endoftext|>")


def test_a_tokenizer_without_any_end_is_refused() -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        ChatEncoder(tokenizer)
    assert ChatEncoder(tokenizer, [5]).end_id == 5


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow is a slow one"):
        ChatEncoder(Slow())


def word_level() -> PreTrainedTokenizerFast:
    """Return a tokenizer in whose own vocabulary the control tokens are words."""
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "red", "blue", "User:"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def test_where_a_control_token_is_a_word_the_text_is_refused() -> None:
    encoder = ChatEncoder(word_level())
    assert encoder.encode_text("red blue") == [3, 4]
    assert encoder.encode_text("red pink") == [3, 0]
    for text in ("red </s>", "<s> red"):
        with pytest.raises(DataError, match="only read as a control token"):
            encoder.encode_text(text)
        with pytest.raises(DataError, match="only read as a control token"):
            encoder.encode_prompt(text)


def test_control_tokens_that_strip_their_neighbours_fall_back_to_the_tokenizer() -> None:
    """`<|turn|>` eats the line break behind it, which our spans do not: then text may not hold control tokens at all."""
    template = CHATML.replace("<|im_start|>", "<|turn|>\n")
    tokenizer = tiny_tokenizer(template, extra=[AddedToken("<|turn|>", rstrip=True, special=True, normalized=False)])
    encoder = ChatEncoder(tokenizer)
    for text in ("hi there", "\n\n hi"):
        assert list(encoder.encode_prompt(text)) == peer_ids(encoder, text)
    with pytest.raises(DataError, match=re.escape("<|turn|>")):
        encoder.encode_prompt("a <|turn|> b")
    with pytest.raises(DataError, match=re.escape("<|im_end|>")):
        encoder.encode_completion("a <|im_end|> b")


def test_tokens_of_the_template_are_control_tokens_whatever_they_are_called() -> None:
    """Some tokenizers do not flag their turn marks as special."""
    template = CHATML.replace("<|im_start|>", "<turn>")
    encoder = ChatEncoder(tiny_tokenizer(template, extra=[AddedToken("<turn>", special=False, normalized=False)]))
    turn = encoder.tokenizer.convert_tokens_to_ids("<turn>")
    assert encoder.encode_prompt("a <turn> b").count(turn) == 2
    assert list(encoder.encode_prompt("a b")) == peer_ids(encoder, "a b")


def test_a_template_with_a_date_gives_the_same_prompt_every_day() -> None:
    dated = ChatEncoder(tiny_tokenizer("{{ strftime_now('%d %b %Y') }}" + CHATML))
    assert "01 Jan 2025" in literal(dated, dated.encode_prompt("hi"))


def test_template_hash_tells_templates_and_tokenizers_apart() -> None:
    hashes = {encoder.template_hash for encoder in (*ENCODERS.values(), BARE)}
    assert len(hashes) == len(ENCODERS) + 1
    assert ChatEncoder(tiny_tokenizer("chatml")).template_hash != ENCODERS["chatml"].template_hash  # no blank runs
    assert ChatEncoder(tiny_tokenizer("chatml", extra=BLANK_RUNS)).template_hash == ENCODERS["chatml"].template_hash


def test_line_breaks_are_found_in_every_token() -> None:
    encoder = ENCODERS["chatml"]
    expected = [i for i in range(len(encoder.tokenizer)) if "\n" in encoder.tokenizer.decode([i])]
    assert list(encoder.line_break_ids) == expected
    assert encoder.tokenizer.convert_tokens_to_ids("\n\n") in expected


def test_vocabularies_must_match() -> None:
    """Of one size is not enough: a token id must mean the same to both."""
    policy = text_backbone()
    check_vocabulary(policy, text_backbone("mistral", seed=1))
    with pytest.raises(ConfigError, match="339 tokens and the reward model 29"):
        check_vocabulary(policy, tiny_backbone())
    other = tiny_tokenizer("chatml", extra=["colour"])
    assert other.convert_tokens_to_ids("colour") == len(policy.encoder.tokenizer)
    with pytest.raises(ConfigError, match=r"token 334 \('colour'\) of tiny or other means something else"):
        check_vocabulary(policy, as_backbone(policy.model, other, name="other"))
