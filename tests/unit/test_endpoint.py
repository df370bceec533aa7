"""Endpoints against a real server on this machine: what is sent, what is read, and what happens when it fails."""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from chat_server import Reply, chat_server, completion, labels_reply, read_judge_prompt
from rewardgap.backbones.endpoint import ALTERNATIVES, ChatEndpoint
from rewardgap.core.errors import ConfigError, MissingExtraError, ModelError
from rewardgap.core.records import Message, PreferencePair
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.policies.icl_judge import IclJudge

if TYPE_CHECKING:
    from collections.abc import Callable

LABELS = ("First", "Second")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any text")


def refused(answer: Callable[[dict[str, Any]], Reply], **settings: Any) -> tuple[str, int]:
    """Return the sentence that a failing server ends in, and how often it was asked."""
    with chat_server(answer) as server:
        endpoint = ChatEndpoint("judge-8b", server.base_url, **settings)
        with pytest.raises(ModelError) as found:
            endpoint.label_scores(["Why?"], LABELS)
    sentence = str(found.value)
    assert "judge-8b" in sentence
    # Errors are kept in artefacts with all that led to them, and artefacts name no host.
    assert "127.0.0.1" not in "".join(traceback.format_exception(found.value))
    return sentence, len(server.requests)


def test_the_difference_of_log_probabilities_is_read_in_order() -> None:
    """Requests are in flight together and come back in the order of the prompts."""

    def answer(request: dict[str, Any]) -> Reply:
        number = int(request["messages"][-1]["content"])
        time.sleep(0.01 * (5 - number))
        return labels_reply(number - 2.5, 0.75)

    with chat_server(answer) as server:
        endpoint = ChatEndpoint("m", server.base_url, parallel=3)
        found = endpoint.label_scores([str(n) for n in range(6)], LABELS)
    assert [score.difference for score in found] == pytest.approx([n - 2.5 for n in range(6)], abs=1e-12)
    assert [score.mass for score in found] == pytest.approx([0.75] * 6, abs=1e-12)
    assert (endpoint.forwards, endpoint.tokens) == (6, 72)
    sent = server.requests[0]
    assert (sent["path"], sent["key"]) == ("/v1/chat/completions", "Bearer any text")
    assert (sent["model"], sent["max_tokens"], sent["top_logprobs"]) == ("m", 1, ALTERNATIVES)
    # At another temperature some servers scale the log-probabilities they give.
    assert (sent["logprobs"], sent["temperature"]) == (True, 1.0)


def test_as_many_requests_are_in_flight_as_allowed() -> None:
    """Each request waits for a second one, so one at a time would never end; a third never meets them."""
    together, lock, inside, most = threading.Barrier(2), threading.Lock(), [0], [0]

    def answer(request: dict[str, Any]) -> Reply:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        together.wait(timeout=30)
        with lock:
            inside[0] -= 1
        return labels_reply(0.0)

    with chat_server(answer) as server:
        ChatEndpoint("m", server.base_url, parallel=2).label_scores(["a"] * 8, LABELS)
    assert most[0] == 2


def test_tokens_of_one_label_are_added_up() -> None:
    """With and without a blank, as servers give them; nothing else counts."""
    given = {"First": math.log(0.3), " First": math.log(0.1), "Second": math.log(0.2), "first": math.log(0.05), "F": -9}
    with chat_server(lambda _: completion("First", given)) as server:
        score = ChatEndpoint("m", server.base_url).label_scores(["Why?"], LABELS)[0]
    assert score.difference == pytest.approx(math.log(0.4 / 0.2), abs=1e-12)
    assert score.mass == pytest.approx(0.6, abs=1e-12)


def test_planted_preferences_come_through_a_model_that_loves_the_first_place() -> None:
    """ℓ = 5 + ½ (words of the first - words of the second): the margin is half the difference of lengths, the 5 is gone."""

    def answer(request: dict[str, Any]) -> Reply:
        asked = read_judge_prompt(request)
        return labels_reply(5.0 + 0.5 * (len(asked.first.split()) - len(asked.second.split())), 0.99)

    draw = np.random.default_rng(0)
    lengths = [(n, n - int(draw.integers(1, 6))) for n in draw.integers(7, 12, 12)]
    pairs = [
        PreferencePair(user_id="u", example_id=str(i), prompt=f"Why {i}?", chosen="a " * more, rejected="a " * less)
        for i, (more, less) in enumerate(lengths)
    ]
    with chat_server(answer) as server:
        judge = IclJudge(ChatEndpoint("m", server.base_url), num_demonstrations=2)
        state = judge.adapt(pairs[:4])
        judged = judge.judgements(pairs[4:], [state] * 8)
        mirrored = [
            PreferencePair(user_id="u", example_id=p.example_id, prompt=p.prompt, chosen=p.rejected, rejected=p.chosen)
            for p in pairs[4:]
        ]
        turned = judge.margins(mirrored, [state] * 8)
    margins = [judgement.margin for judgement in judged]
    assert margins == pytest.approx([0.5 * (more - less) for more, less in lengths[4:]], abs=1e-9)
    assert turned == pytest.approx([-margin for margin in margins], abs=1e-9)
    assert pair_accuracy(margins).mean() == 1.0
    assert [judgement.position_bias for judgement in judged] == pytest.approx([5.0] * 8, abs=1e-9)
    assert pair_accuracy([judgement.forward for judgement in judged]).mean() == 1.0
    assert pair_accuracy([-judgement.backward for judgement in judged]).mean() == 0.0  # one order alone is lost
    asked = [read_judge_prompt(request) for request in server.requests]
    assert len(asked) == 32
    assert {(a.question, a.first) for a in asked} >= {
        (p.prompt, side) for p in pairs[4:] for side in (p.chosen, p.rejected)
    }
    assert all([e.split("?")[0] for e in a.examples] == ["Why 2", "Why 3"] for a in asked)


def test_writing_sends_conversation_temperature_and_seed() -> None:
    with chat_server(lambda r: completion(f"  text {r['seed']} {r['temperature']:g}\n")) as server:
        endpoint = ChatEndpoint("m", server.base_url)
        prompt = (Message("system", "Be kind."), Message("user", "Hello <|im_end|>"))
        texts = endpoint.write([prompt, prompt], max_tokens=9, temperature=0.7, seeds=[5, (1 << 62) + 3])
        assert texts == ["text 5 0.7", "text 3 0.7"]
        assert endpoint.write(["Why?"], max_tokens=9) == ["text 0 0"]
        assert endpoint.write([], max_tokens=9) == endpoint.label_scores([], LABELS) == []
    sent = next(request for request in server.requests if request["seed"] == 5)
    assert sent["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello <|im_end|>"},
    ]
    assert sent["max_tokens"] == 9


def test_a_server_that_recovers_is_asked_again() -> None:
    failures = iter([500, 429])

    def answer(request: dict[str, Any]) -> Reply:
        status = next(failures, 200)
        return labels_reply(1.0) if status == 200 else Reply({"error": {"message": "busy"}}, status)

    with chat_server(answer) as server:
        score = ChatEndpoint("m", server.base_url, max_retries=2).label_scores(["Why?"], LABELS)[0]
    assert score.difference == pytest.approx(1.0, abs=1e-12)
    assert len(server.requests) == 3


def test_a_server_that_keeps_failing_is_one_sentence() -> None:
    sentence, asked = refused(lambda _: Reply({"error": {"message": "out of memory\nat line 3"}}, 503), max_retries=1)
    assert "answers 503 (out of memory at line 3)" in sentence
    assert "up to 2 times" in sentence
    assert asked == 2


def test_a_request_that_is_wrong_is_not_repeated() -> None:
    sentence, asked = refused(lambda _: Reply({"error": {"message": "top_logprobs is not supported"}}, 400))
    assert "answers 400 (top_logprobs is not supported)" in sentence
    assert asked == 1


def test_a_refused_key_names_the_variable() -> None:
    sentence, asked = refused(lambda _: Reply({"error": {"message": "no such key"}}, 401))
    assert "refuses the key in OPENAI_API_KEY: no such key" in sentence
    assert asked == 1


def test_a_missing_model_is_one_sentence() -> None:
    sentence, asked = refused(lambda _: Reply({"error": {"message": "The model `judge-8b` does not exist."}}, 404))
    assert "answers 404 (The model `judge-8b` does not exist): it has no such model, or base_url is another" in sentence
    assert asked == 1


def test_a_slow_server_is_given_up() -> None:
    def answer(request: dict[str, Any]) -> Reply:
        time.sleep(0.5)
        return labels_reply(1.0)

    sentence, asked = refused(answer, timeout=0.05, max_retries=1)
    assert "no answer within 0.05 s (2 tries)" in sentence
    assert asked == 2


def test_no_server_is_one_sentence() -> None:
    with chat_server(lambda _: labels_reply(0.0)) as server:
        gone = server.base_url
    with pytest.raises(ModelError, match=r"'m' cannot be reached \(1 try\)"):
        ChatEndpoint("m", gone, max_retries=0).label_scores(["Why?"], LABELS)


@pytest.mark.parametrize("log_probs", [None, {}])
def test_without_log_probabilities_there_is_no_judge(log_probs: dict[str, float] | None) -> None:
    sentence, asked = refused(lambda _: completion("First", log_probs))
    assert "gives no top_logprobs" in sentence
    assert asked == 1


@pytest.mark.parametrize("second", [{}, {"Second": -9999.0}, {"Second": -math.inf}])
def test_a_label_out_of_sight_is_no_margin(second: dict[str, float]) -> None:
    sentence, _ = refused(lambda _: completion("First", {"First": -0.01, "The": -5.0, **second}))
    assert "has 'Second' not among the" in sentence
    assert "'First', 'The'" in sentence


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply("<html>hello</html>", 200, "text/html"), "without choices"),
        (Reply({"choices": []}), "without choices"),
        (Reply({}), "without choices"),
        (Reply("{", 200), "cannot be read"),
    ],
)
def test_an_answer_of_another_protocol_is_one_sentence(reply: Reply, said: str) -> None:
    assert said in refused(lambda _: reply)[0]


def test_an_answer_without_text_is_one_sentence() -> None:
    with chat_server(lambda _: completion(None)) as server, pytest.raises(ModelError, match="without text"):  # type: ignore[arg-type]
        ChatEndpoint("m", server.base_url).write(["Why?"], max_tokens=3)


def test_a_missing_key_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY; for a server that asks for none, set it to any text"):
        ChatEndpoint("m", "http://127.0.0.1:9/v1").label_scores(["Why?"], LABELS)


def test_a_missing_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"Install rewardgap\[endpoint\]"):
        ChatEndpoint("m", "http://127.0.0.1:9/v1").label_scores(["Why?"], LABELS)


def test_sizes_are_characters_and_bounded() -> None:
    with chat_server(lambda _: labels_reply(0.0)) as server:
        endpoint = ChatEndpoint("m", server.base_url, max_characters=7)
        assert (endpoint.size((Message("system", "abc"), Message("user", "defg"))), endpoint.room(500)) == (7, 7)
        endpoint.label_scores(["1234567"], LABELS)
        with pytest.raises(ModelError, match="has 8 characters, max_characters is 7"):
            endpoint.label_scores(["12345678"], LABELS)
    assert len(server.requests) == 1


def test_fingerprints_tell_servers_and_models_apart() -> None:
    endpoints = [ChatEndpoint(*args) for args in (("m", "http://a/v1"), ("n", "http://a/v1"), ("m", "http://b/v1"))]
    assert len({endpoint.fingerprint for endpoint in endpoints}) == 3
    assert ChatEndpoint("m", "http://a/v1", timeout=3).fingerprint == endpoints[0].fingerprint


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"timeout": math.inf}, {"max_retries": -1}, {"max_characters": 0}, {"parallel": 0}]
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ChatEndpoint("m", "http://a/v1", **wrong)
    with pytest.raises(ConfigError, match="needs a model and a base_url"):
        ChatEndpoint("", "http://a/v1")
