"""Talk in the terminal: what streams is what `generate` writes, and what is marked is what guidance changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call, lines, ok, refused, write_rows
from hypothesis import given
from hypothesis import strategies as st
from test_cli_single import pair

from rewardgap.backbones.chat import ChatEncoder
from rewardgap.cli import chat
from rewardgap.cli.conversation import Conversation
from rewardgap.cli.stream import END, Palette, Piece, TokenStream
from rewardgap.core.records import Message
from rewardgap.decoding.loop import Decoded, StopRule
from rewardgap.decoding.outcome import StepFacts
from rewardgap.policies.base import GenerationSettings
from rewardgap.rewards.state_files import load_states
from rewardgap.studies import single
from standins import save_hub_folder, tiny_model, tiny_tokenizer

ONE = ("--threads", 1)
STEERED = ("--guidance-weight", 1, "--top-k", 6, "--max-new-tokens", 12)
FACTS = StepFacts(False, 1.0, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a byte-level policy, a reward model on it, the states of users 10 and 11, and one prompt of each."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = tiny_tokenizer()
    network = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    save_hub_folder(folder / "tiny", network, tokenizer, eos_token_id=end)
    prefs = write_rows(folder / "prefs.jsonl", [pair(user, row) for user in range(6) for row in range(6)])
    support = write_rows(folder / "support.jsonl", [pair(user, row) for user in (10, 11) for row in range(4)])
    write_rows(folder / "prompts.jsonl", [{"user_id": "u10", "prompt": "garden river"}])
    tiny = folder / "tiny"
    ok("fit", "--data", prefs, "--backbone", tiny, "--set", "rank=2", "-o", folder / "rm", *ONE)
    states = folder / "states.safetensors"
    ok("adapt", folder / "rm", "--data", support, "-o", states, "--backbone", tiny, *ONE)
    return folder


def of(folder: Path) -> tuple[object, ...]:
    states = folder / "states.safetensors"
    return (
        folder / "tiny",
        "--model",
        folder / "rm",
        "--states",
        states,
        "--backbone",
        folder / "tiny",
        *STEERED,
        *ONE,
    )


def asked(folder: Path, prompt: str, *more: object, user: str = "u10") -> dict[str, Any]:
    first, *rest = of(folder)
    (record,) = lines(ok("chat", first, prompt, *rest, "--user", user, "--json", *more).stdout)
    return dict(record)


def test_streamed_text_is_that_of_generate(folder: Path) -> None:
    prompts = ("--prompts", folder / "prompts.jsonl")
    for decoder in ("args_greedy", "args_stochastic"):
        mine = asked(folder, "garden river", "--decoder", decoder)
        assert "".join(piece["text"] for piece in mine["pieces"]).strip() == mine["completion"]
        if decoder == "args_greedy":  # draws belong to an example, and a talk has none
            (theirs,) = lines(ok("generate", *of(folder), *prompts).stdout)
            assert mine["completion"] == theirs["completion"]
            assert mine["new_tokens"] == theirs["new_tokens"] + theirs["ended"]
    (plain,) = lines(ok("generate", folder / "tiny", *prompts, "--max-new-tokens", 12, *ONE).stdout)
    assert asked(folder, "garden river", "--plain")["plain"]["completion"] == plain["completion"]


def test_what_is_marked_is_what_guidance_changed(folder: Path) -> None:
    base = single.open_backbone(str(folder / "tiny"))
    model = single.open_model(folder / "rm", str(folder / "tiny"))
    states = single.States.of(model, load_states(folder / "states.safetensors", model))
    rule = single.build_decoder("args_greedy", guidance_weight=1.0, top_k=6)
    deployed = single.deploy_guided(base, rule, GenerationSettings(12, 1), states, ["u10"])
    seen: list[Decoded] = []
    deployed.policy.open(["garden river"], [deployed.states["u10"]]).generate(lambda _, done: seen.append(done))
    done = seen[-1]
    assert 0 < done.changed < done.steps, "some tokens are changed and some are not"
    found = asked(folder, "garden river")
    assert [step for piece in found["pieces"] for step in piece["steps"]] == list(range(done.steps))
    marked = {int(step): text for piece in found["pieces"] for step, text in piece["instead"].items()}
    assert marked == {step: base.encoder.decode([token]) or END for step, token in done.alternatives.items()}
    assert found["changed"] == pytest.approx(done.changed / done.steps)
    reward = model.rewards(["garden river"], [found["completion"]], deployed.states["u10"])[0]
    assert found["reward"] == pytest.approx(reward, rel=1e-5)
    # The words in the terminal are the pieces, with brackets around those that are marked.
    first, *rest = of(folder)
    shown = ok("chat", first, "garden river", *rest, "--user", "u10", "--show-alternatives").stdout
    palette = Palette(False, True)
    pieces = [
        Piece(p["text"], tuple(p["steps"]), {int(k): v for k, v in p["instead"].items()}) for p in found["pieces"]
    ]
    assert shown == "".join(map(palette.show, pieces)) + "\n"
    assert shown.count("→") >= len([piece for piece in pieces if piece.instead])


def test_a_weight_of_zero_marks_nothing_and_is_the_plain_text(folder: Path) -> None:
    found = asked(folder, "garden river", "--guidance-weight", 0, "--plain")
    assert found["changed"] == 0
    assert found["completion"] == found["plain"]["completion"]
    assert found["reward"] == pytest.approx(found["plain"]["reward"], rel=1e-6)


def test_without_a_model_the_policy_alone_answers(folder: Path) -> None:
    arguments = (folder / "tiny", "--max-new-tokens", 6, *ONE)
    said = ok("chat", *arguments, stdin="stone\n")
    assert said.stdout.strip() == ok("chat", folder / "tiny", "stone", "--max-new-tokens", 6, *ONE).stdout.strip()
    assert re.search(r"6 tokens, [0-9.]+ a second\n", said.stderr)
    assert "changed" not in said.stderr


# Streaming.


@given(st.data())
def test_pieces_are_whole_characters_and_give_the_text(data: st.DataObject) -> None:
    """Any tokens, those whose bytes end inside a character too, told one by one or several at once."""
    encoder = ENCODER
    texts = st.text(st.sampled_from("aé漢😀\n \u200b"), max_size=8)
    ids = list(encoder.encode_text(data.draw(texts)))
    ids += data.draw(st.lists(st.integers(0, 329), max_size=4))
    best = data.draw(st.lists(st.one_of(st.none(), st.integers(0, 329)), min_size=len(ids), max_size=len(ids)))
    done, stream, pieces = Decoded(), TokenStream(encoder), []
    for token, other in zip(ids, best, strict=True):
        done.note(FACTS, token if other is None else other, token)
        done.take(token, StopRule((), 99))
        if data.draw(st.booleans()) or done.steps == len(ids):
            new = stream.watch(done)
            assert all(not piece.text.endswith("\ufffd") for piece in new)
            pieces += new
    pieces += stream.rest()
    assert "".join(piece.text for piece in pieces) == encoder.decode(ids)
    assert [step for piece in pieces for step in piece.steps] == list(range(len(ids)))
    assert {step for piece in pieces for step in piece.instead} == set(done.alternatives)


ENCODER = ChatEncoder(tiny_tokenizer())


def test_bytes_inside_a_character_are_held_back() -> None:
    ids = list(ENCODER.encode_text("😀"))
    assert len(ids) == 4
    done, stream = Decoded(), TokenStream(ENCODER)
    told = []
    for token in ids:
        done.take(token, StopRule((), 9))
        told.append(stream.watch(done))
    assert told[:3] == [[], [], []]
    assert told[3] == [Piece("😀", (0, 1, 2, 3))]
    assert stream.rest() == []


def test_an_end_that_guidance_chose_or_put_off_is_shown() -> None:
    stop, end = StopRule((ENCODER.end_id,), 9), ENCODER.end_id
    (word,) = ENCODER.encode_text("a")
    done, stream = Decoded(), TokenStream(ENCODER)
    done.note(FACTS, end, word)
    done.take(word, stop)
    assert stream.watch(done) == [Piece("a", (0,), {0: END})]
    done.note(FACTS, word, end)
    done.take(end, stop)
    (last,) = stream.watch(done)
    assert last == Piece("", (1,), {1: "a"})
    assert Palette(False, True).show(last) == f"[a→{END}]"


def test_marks_with_and_without_colours() -> None:
    piece = Piece(" light", (3,), {3: " paper"})
    assert Palette(False).show(piece) == " [light]"
    assert Palette(False, True).show(piece) == " [paper→light]"
    assert Palette(True).show(piece) == " \x1b[36m\x1b[1mlight\x1b[0m"
    assert Palette(True, True).show(piece) == " \x1b[2m\x1b[9mpaper\x1b[0m \x1b[36m\x1b[1mlight\x1b[0m"
    assert Palette(False, True).show(Piece("\n", (0,), {0: " "})) == "[␣→⏎]\n"
    assert Palette(True).show(Piece("plain [b]", (0,))) == "plain [b]"


def test_no_colours_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert Palette.of_terminal().coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Palette.of_terminal().coloured
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert not Palette.of_terminal().coloured


@given(st.text())
def test_no_text_steers_the_terminal(text: str) -> None:
    hostile = "\x1b[2J\x9b31m\x07\u202e\r" + text
    for palette in (Palette(False, True), Palette(False)):
        for piece in (Piece(hostile, (0,)), Piece(hostile, (0,), {0: hostile})):
            shown = palette.show(piece)
            assert all(c.isprintable() or c in "\n\u200c\u200d" for c in shown), repr(shown)


# A conversation.


@pytest.fixture
def talk(folder: Path) -> tuple[Conversation, list[str]]:
    base = single.open_backbone(str(folder / "tiny"))
    model = single.open_model(folder / "rm", str(folder / "tiny"))
    states = single.States.of(model, load_states(folder / "states.safetensors", model))
    said: list[str] = []
    options = {"guidance_weight": 1.0, "top_k": 6}
    settings = GenerationSettings(8, 1)
    return (
        Conversation(base, settings, "args_greedy", options, states, "u10", False, Palette(False), said.append),
        said,
    )


def test_history_is_kept_as_messages(talk: tuple[Conversation, list[str]]) -> None:
    one, _ = talk
    assert one.answer("garden")
    assert one.answer("river")
    first, second = one.history[1].content, one.history[3].content
    policy, state = one._deployed()
    assert policy.generate([(Message("user", "garden"),)], [state]) == [first]
    assert policy.generate([one.history[:3]], [state]) == [second]
    assert [turn.role for turn in one.history] == ["user", "assistant"] * 2
    assert policy.generate(["river"], [state]) != [second], "the second answer reads the first turn"
    one.command("/new")
    assert one.history == ()


def test_commands_change_user_and_weight(
    talk: tuple[Conversation, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = talk
    own = one._deployed()[1]
    one.command("/user u11")
    assert one._deployed()[1] is not own
    one.command("/weight -2.5")
    assert one._deployed()[0].decoder.guidance_weight == -2.5
    chat._listen(one, ["/weight much", "/weight nan", "/nothing", "/user u10\x1b", "/user u0"], False)
    said = capsys.readouterr().err.splitlines()
    assert ["'much' is no number" in said[0], "finite" in said[1], "no command" in said[2]] == [True] * 3
    assert said[3] == "user 'u10\ufffd' has no state: cold start. Did you mean 'u10'?"
    assert "\x1b" not in "".join(said)
    assert len(said) == 4, "a training user has a state of its own"
    assert one._deployed()[0].decoder.guidance_weight == -2.5
    alone = replace(one, states=None, decoder="greedy", options={}, user=None)
    chat._listen(alone, ["/weight 2", "/user u10"], False)
    assert capsys.readouterr().err.count("goes with a reward model") == 2


def test_a_conversation_that_is_too_long_is_said_to_be(
    talk: tuple[Conversation, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    one, said = talk
    chat._listen(one, ["word " * 400, "garden"], False)
    assert "tokens" in capsys.readouterr().err.splitlines()[0]
    assert len(one.history) == 2, "what was not answered was not said"
    assert said


class Stopped(TokenStream):
    """Interrupts at the fourth token, as Ctrl-C would."""

    def watch(self, decoded: Decoded) -> list[Piece]:
        new = super().watch(decoded)
        if decoded.steps == 4:
            raise KeyboardInterrupt
        return new


def test_ctrl_c_ends_a_completion_and_a_second_one_the_program(
    folder: Path, talk: tuple[Conversation, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = talk
    monkeypatch.setattr("rewardgap.cli.stream.TokenStream", Stopped)
    assert not one.answer("garden")
    assert len(one.history) == 2
    policy, state = one._deployed()
    whole = policy.open([(Message("user", "garden"),)], [state]).generate()[0]
    assert one.history[1].content == policy.backbone.encoder.decode(whole.ids[:4]).strip()
    # Given one prompt, there is nothing to go on with.
    first, *rest = of(folder)
    stopped = call("chat", first, "garden", *rest, "--user", "u10")
    assert stopped.exit_code == 130
    assert "4 tokens" in stopped.stderr
    assert stopped.stderr.rstrip().endswith("stopped")

    def typed() -> Iterator[str]:
        yield "garden"
        yield "river"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_typed", typed)
    monkeypatch.setattr(chat, "_is_terminal", lambda: True)
    ended = call("chat", *of(folder), "--user", "u10")
    assert ended.exit_code == 130
    assert ended.stderr.count("stopped") == 2


def test_the_terminal_is_asked_until_an_empty_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_lines = iter(["garden", "/new", "garden", " "])
    monkeypatch.setattr("builtins.input", lambda _: next(given_lines))
    monkeypatch.setattr(chat, "_is_terminal", lambda: True)
    first, second = lines(ok("chat", *of(folder), "--user", "u10", "--json").stdout)
    for record in (first, second):
        del record["seconds"]
    assert first == second
    assert next(given_lines, None) is None

    def closed(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    assert ok("chat", *of(folder), "--user", "u10").stdout == "\n"


def test_what_is_said_is_kept_nowhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    asked(folder, "garden river", "--plain")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_cannot_be_talked_to(folder: Path) -> None:
    tiny = folder / "tiny"
    assert "--user goes with a reward model" in refused(2, "chat", tiny, "a", "--user", "u10", *ONE)
    assert "--plain goes with a reward model" in refused(2, "chat", tiny, "a", "--plain", *ONE)
    assert "unknown decoder" in refused(2, "chat", tiny, "a", "--decoder", "gredy", *ONE)
    assert "needs a reward model" in refused(2, "chat", tiny, "a", "--decoder", "args_greedy", *ONE)
    assert "no option 'guidance_weight'" in refused(2, "chat", tiny, "a", "--guidance-weight", 1, *ONE)
    assert "is empty" in refused(2, "chat", tiny, " ", *ONE)
    both = ("--model", folder / "rm", "--backbone", tiny, "--decoder", "greedy")
    assert "takes no reward model" in refused(2, "chat", tiny, "a", *both, *ONE)
    first, *rest = of(folder)
    said = ok("chat", first, "a", *rest, "--user", "u1o")
    assert "'u1o' has no state: cold start. Did you mean" in said.stderr
    assert json.loads(ok("chat", first, "a", *rest, "--user", "u1o", "--json").stdout)["user_id"] == "u1o"
