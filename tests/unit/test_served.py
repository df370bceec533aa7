"""Served policies against local ones: the same prompts, tokens and scores, through a real server on this machine."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from chat_server import ChatServer, Reply, Request
from model_server import CONTEXT, MODEL, TinyServer, bad, model_server, models_reply
from rewardgap.backbones.chat import ChatEncoder
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.serving import NOTHING, ServedBackbone, parse_served
from rewardgap.backbones.serving_http import ServerEngine
from rewardgap.core.errors import ConfigError, DataError, MissingExtraError, ModelError, NotScorableError
from rewardgap.core.records import Message, PreferencePair
from rewardgap.core.seeds import child_seed
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.plain import Greedy, Sample
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import guided
from rewardgap.policies.in_context import in_context
from rewardgap.policies.persona import persona
from rewardgap.policies.served import candidate_pool
from rewardgap.policies.zero_shot import ZeroShot, zero_shot
from rewardgap.rewards.build import reward_model
from rewardgap.studies.folders import study_yaml
from rewardgap.studies.plan import check_names
from rewardgap.studies.spec import StudySpec
from rewardgap.studies.workbench import shown_name
from standins import ARCHITECTURES, private_copy, save_hub_folder, text_backbone, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROMPTS = (
    "what is the river",
    (Message("system", "Be kind."), Message("user", "Name a colour, please.\n\n  Two words.")),
    "winter <|im_end|>\n<|im_start|>assistant\nlight",
    "a",
)
PAIRS = tuple(
    PreferencePair(
        user_id="u",
        example_id=str(i),
        prompt=f"write {word} for me",
        chosen=f"{word} stone",
        rejected="the garden",
        reference=f"{word} and light",
    )
    for i, word in enumerate(("river", "paper", "winter"))
)
TEXTS = (["red", "a garden <|im_end|>"], ["", "of the stone and the light"], ["one\ntwo"], [])
SETTINGS = GenerationSettings(max_new_tokens=9, min_new_tokens=1, score_top_k=5)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any text")


def served(server: ChatServer, encoder: ChatEncoder, **options: Any) -> ServedBackbone:
    return ServedBackbone(ServerEngine(MODEL, server.base_url, **{"max_retries": 0, **options}), encoder)


def closing(backbone: Backbone, token: int, prompt: str) -> Backbone:
    """Return a copy that finds `token` a little more probable than what it would write third for a prompt."""
    copied = private_copy(backbone)
    third = zero_shot(backbone, settings=SETTINGS).open([prompt]).generate()[0].ids[2]
    with torch.no_grad():
        head = copied.model.get_output_embeddings().weight
        head[token] = 1.02 * head[third]
    return copied


# Served equals local


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zero_shot_is_the_local_one_token_for_token(architecture: str) -> None:
    backbone = text_backbone(architecture)
    with model_server(backbone) as server:
        there = served(server, backbone.encoder)
        for settings in (SETTINGS, dataclasses.replace(SETTINGS, first_line=True, min_new_tokens=3)):
            run = zero_shot(there, settings=settings).open(PROMPTS)
            local = zero_shot(backbone, settings=settings).open(PROMPTS)
            assert run.generate() == local.generate()
            assert run.prepared == local.prepared
            assert (run.forwards, run.tokens > 0) == (len(PROMPTS), True)
    sent = [request["prompt"] for request in server.requests]
    assert sorted(sent) == sorted(list(prepared.ids) for prepared in (*run.prepared, *run.prepared))


@pytest.mark.parametrize("closer", ["end", "line"])
def test_end_and_stop_tokens_close_a_row_as_they_do_locally(closer: str) -> None:
    asked = [f"{word} {number}" for word in ("river", "stone", "a") for number in range(2)]
    encoder = text_backbone("llama").encoder
    token = encoder.end_id if closer == "end" else encoder.line_break_ids[0]
    backbone = closing(text_backbone("llama"), token, asked[0])
    for shortest in (0, 4):
        settings = GenerationSettings(max_new_tokens=7, min_new_tokens=shortest, first_line=closer == "line")
        here = zero_shot(backbone, settings=settings).open(asked).generate()
        # The server's own end token is another one of ours: it then ends at the one we ask it to stop at.
        for eos in (encoder.end_id, encoder.tokenizer.eos_token_id):
            with model_server(backbone, eos=eos) as server:
                assert zero_shot(served(server, encoder), settings=settings).open(asked).generate() == here
        ended = [row.ids for row in here if row.ended]
        assert encoder.end_id not in {i for row in here for i in row.ids}
        assert all(len(ids) >= shortest for ids in ended)
        if shortest == 0:
            assert len(ended) > 0
            assert (closer == "line") == any(ids[-1] == token for ids in ended)


@pytest.mark.parametrize("retriever", ["recent", "bm25"])
def test_in_context_is_the_local_one_token_for_token(retriever: str) -> None:
    backbone = text_backbone("qwen3")
    options: dict[str, Any] = {"retriever": retriever, "num_demonstrations": 2, "settings": SETTINGS}
    local = in_context(backbone, PAIRS, **options)
    with model_server(backbone) as server:
        there = in_context(served(server, backbone.encoder), PAIRS, **options)
        run, expected = there.open(PROMPTS), local.open(PROMPTS)
        assert run.generate() == expected.generate()
        assert run.prepared == expected.prepared
        assert {prepared.shown for prepared in run.prepared} == {2}
        texts = ["the river", "light", "stone", "a"]
        assert there.log_score(PROMPTS, texts) == pytest.approx(local.log_score(PROMPTS, texts), abs=1e-9)


@pytest.mark.parametrize("top_k", [None, 6])
def test_draws_are_those_of_the_seed_whatever_the_batch(top_k: int | None) -> None:
    backbone, decoder, seeds = text_backbone("llama"), Sample(0.8, top_k), [5, 7, 11, 13]
    expected = ZeroShot(backbone, decoder, SETTINGS).open(PROMPTS, seeds=seeds).generate()
    with model_server(backbone) as server:
        policy = ZeroShot(served(server, backbone.encoder, parallel=3), decoder, SETTINGS)
        together = policy.open(PROMPTS, seeds=seeds).generate()
        alone = [policy.open([p], seeds=[s]).generate()[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert together == alone == expected
    assert {request["seed"] for request in server.requests} == set(seeds)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_scores_of_given_texts_are_the_local_ones(architecture: str) -> None:
    backbone = text_backbone(architecture)
    expected = zero_shot(backbone, settings=SETTINGS).open(PROMPTS, completions=TEXTS).scores(TEXTS)
    with model_server(backbone) as server:
        run = zero_shot(served(server, backbone.encoder), settings=SETTINGS).open(PROMPTS, completions=TEXTS)
        found = run.scores(TEXTS)
    assert [len(row) for row in found] == [2, 2, 1, 0]
    for row, expected_row in zip(found, expected, strict=True):
        for scores, wanted in zip(row, expected_row, strict=True):
            assert set(scores.variants) == set(wanted.variants) >= {"base", "mean_base", "rgd_topk"}
            assert scores.variants == pytest.approx(wanted.variants, abs=1e-9)
            assert scores.coverage == wanted.coverage
    assert run.forwards == 5


def test_a_pool_comes_in_order_and_a_smaller_one_is_its_beginning() -> None:
    backbone = text_backbone("llama")

    def slower_first(tiny: TinyServer, request: Request) -> Reply:
        time.sleep(0.03 if len(request["prompt"]) > 40 else 0.0)
        return tiny(request)

    with model_server(backbone, wrap=slower_first) as server:
        settings = dataclasses.replace(SETTINGS, max_new_tokens=4)
        policy = ZeroShot(served(server, backbone.encoder, parallel=4), Sample(1.0), settings)
        six = candidate_pool(policy, PROMPTS, n=6)
        three = candidate_pool(policy, PROMPTS[::-1], n=3)
        assert [row[:3] for row in six] == three[::-1]
        assert candidate_pool(policy, [], n=2) == []
    assert [len(row) for row in six] == [6] * 4
    assert all(len({candidate.ids for candidate in row}) > 3 for row in six)
    assert len({request["seed"] for request in server.requests}) == 24
    for prompt, row in zip(PROMPTS, six, strict=True):
        seeds = [child_seed(0, "pool", repr(prompt), j) % (1 << 31) for j in range(6)]
        assert row == ZeroShot(backbone, Sample(1.0), settings).open([prompt] * 6, seeds=seeds).generate()


def test_a_pool_needs_draws() -> None:
    backbone = text_backbone("llama")
    with model_server(backbone) as server:
        policy = zero_shot(served(server, backbone.encoder))
        with pytest.raises(ConfigError, match="the same text; use sample"):
            candidate_pool(policy, PROMPTS, n=2)
        with pytest.raises(ConfigError, match="n is 0"):
            candidate_pool(ZeroShot(policy.backbone, Sample(1.0)), PROMPTS, n=0)
        with pytest.raises(ConfigError, match=r"temperature 0\.005 is below 0\.01"):
            ZeroShot(policy.backbone, Sample(0.005)).open(PROMPTS)


def test_watching_a_row_shows_its_tokens() -> None:
    backbone, seen = text_backbone("llama"), []
    with model_server(backbone) as server:
        run = zero_shot(served(server, backbone.encoder), settings=SETTINGS).open(PROMPTS[:2])
        written = run.generate(watch=lambda row, state: seen.append((row, len(state.ids))))
    assert seen == [(row, n + 1) for row in range(2) for n in range(len(written[row].ids))]


def test_a_name_opens_the_server_and_its_tokenizer(tmp_path: Path) -> None:
    backbone = text_backbone("llama")
    backbone.encoder.tokenizer.save_pretrained(tmp_path / "words")
    with model_server(backbone) as server:
        policy = load_backbone(f"served:{server.base_url}#model={MODEL},tokenizer={tmp_path / 'words'},parallel=2")
        assert zero_shot(policy, settings=SETTINGS).generate(PROMPTS) == zero_shot(
            backbone, settings=SETTINGS
        ).generate(PROMPTS)
        assert (policy.name, policy.context) == (MODEL, CONTEXT)
        assert policy.encoder.template_hash == backbone.encoder.template_hash
        shorter = load_backbone(f"served:{server.base_url}#model={MODEL},tokenizer={tmp_path / 'words'},context=20")
        with pytest.raises(DataError, match="longer than"):
            zero_shot(shorter, settings=SETTINGS).open(PROMPTS[:2])
        with pytest.raises(ModelError, match="say where with tokenizer="):
            load_backbone(f"served:{server.base_url}#model={MODEL}")
        with pytest.raises(ModelError, match="no model 'other'; it serves: tiny-served"):
            load_backbone(f"served:{server.base_url}#model=other,tokenizer={tmp_path / 'words'}")


# Chat route


def test_the_chat_route_writes_the_same_and_scores_nothing() -> None:
    backbone = text_backbone("llama")
    with model_server(backbone) as server:
        policy = zero_shot(served(server, backbone.encoder, api="chat"), settings=SETTINGS)
        assert policy.open(PROMPTS).generate() == zero_shot(backbone, settings=SETTINGS).open(PROMPTS).generate()
        assert not policy.scorable
        with pytest.raises(NotScorableError, match="chat API, which reads no given text"):
            policy.open(PROMPTS).scores(TEXTS)
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}


def test_a_template_that_reads_other_ids_is_refused() -> None:
    backbone, other = text_backbone("llama"), ChatEncoder(tiny_tokenizer("qwen"))
    with model_server(backbone) as server:
        policy = zero_shot(served(server, other, api="chat"), settings=SETTINGS)
        with pytest.raises(ModelError, match=r"read \d+ tokens where the prompt has \d+, the first other one at \d+"):
            policy.open(PROMPTS[:1]).generate()


# What a server may do


def test_a_server_that_recovers_is_asked_again() -> None:
    backbone, lock, failures = text_backbone("llama"), threading.Lock(), iter([429, 503])

    def shaky(tiny: TinyServer, request: Request) -> Reply:
        with lock:
            status = next(failures, 200)
        return tiny(request) if status == 200 else bad("busy", status)

    with model_server(backbone, wrap=shaky) as server:
        policy = zero_shot(served(server, backbone.encoder, max_retries=2, parallel=1), settings=SETTINGS)
        assert policy.generate(PROMPTS) == zero_shot(backbone, settings=SETTINGS).generate(PROMPTS)
    assert len(server.requests) == len(PROMPTS) + 2


def changed(**facts: Any) -> Callable[[TinyServer, Request], Reply]:
    """Return answers with these facts in the place of the choice's own; None leaves a fact out."""

    def answer(tiny: TinyServer, request: Request) -> Reply:
        reply = tiny(request)
        choice = reply.body["choices"][0]
        for name, value in facts.items():
            choice[name] = value(choice[name]) if callable(value) else value
        return reply

    return answer


def nan_inside(rows: list[Any]) -> list[Any]:
    return [None if row is None else {t: {**entry, "logprob": None} for t, entry in row.items()} for row in rows]


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (changed(prompt_token_ids=lambda ids: ids[1:]), "the first other one at 0: it cut or changed the prompt"),
        (changed(prompt_token_ids=None), r"does not say which token ids it read .* use vLLM 0\.10\.2 or later"),
        (changed(token_ids=None), "ended a completion with 'length' and no token_ids"),
        (changed(finish_reason="abort"), r"ended a completion with 'abort' and \d token_ids"),
        (changed(finish_reason="stop", token_ids=[3, 4]), r"closed a completion with token 4 \(.*which closes none"),
        (changed(finish_reason="stop", token_ids=[]), "closed a completion with no token"),
        (lambda *_: Reply({"choices": []}), "without choices, so it does not speak the completions protocol"),
        (lambda *_: bad("out of memory", 500), r"answers 500 \(out of memory\)"),
    ],
)
def test_an_answer_that_cannot_be_trusted_is_one_sentence(wrap: Any, said: str) -> None:
    backbone = text_backbone("llama")
    with (
        model_server(backbone, wrap=wrap) as server,
        pytest.raises(ModelError, match=said) as found,
    ):
        zero_shot(served(server, backbone.encoder), settings=SETTINGS).generate(PROMPTS)
    assert "127.0.0.1" not in str(found.value)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (changed(prompt_logprobs=nan_inside), "None for a log-probability"),
        (
            changed(prompt_logprobs=lambda rows: [row and dict([*row.items()][:2]) for row in rows]),
            "log-probabilities for",
        ),
        (changed(prompt_logprobs=lambda rows: [row and {} for row in rows]), "gives 0 log-probabilities for"),
        (changed(prompt_logprobs=lambda rows: [row and {"a": 1} for row in rows]), "prompt_logprobs .* cannot be read"),
    ],
)
def test_log_probabilities_that_are_none_are_one_sentence(wrap: Any, said: str) -> None:
    backbone = text_backbone("llama")
    with model_server(backbone, wrap=wrap) as server, pytest.raises(ModelError, match=said):
        run = zero_shot(served(server, backbone.encoder), settings=SETTINGS).open(PROMPTS)
        run.backbone.engine.__dict__["cannot_score"] = ""
        run.scores(TEXTS)


def test_what_json_has_no_number_for_is_minus_infinity() -> None:
    backbone = text_backbone("llama")

    def impossible(rows: list[Any]) -> list[Any]:
        return [
            row and {t: {**e, "logprob": NOTHING if n == 0 else e["logprob"]} for n, (t, e) in enumerate(row.items())}
            for row in rows
        ]

    settings = dataclasses.replace(SETTINGS, score_top_k=1)
    with model_server(backbone, wrap=changed(prompt_logprobs=impossible)) as server:
        run = zero_shot(served(server, backbone.encoder), settings=settings).open(PROMPTS[:1])
        assert run.scores([["stone"]])[0][0].variants["base"] == -np.inf


@pytest.mark.parametrize("refusal", ["left out", "refused"])
def test_a_server_that_reads_no_given_text_has_no_policy_accuracy(refusal: str) -> None:
    backbone = text_backbone("llama")

    def unwilling(tiny: TinyServer, request: Request) -> Reply:
        if refusal == "refused" and "prompt_logprobs" in request:
            return bad("prompt_logprobs is not supported")
        return changed(prompt_logprobs=None)(tiny, request)

    with model_server(backbone, wrap=unwilling) as server:
        policy = zero_shot(served(server, backbone.encoder), settings=SETTINGS)
        assert not policy.scorable
        with pytest.raises(NotScorableError, match="gives no prompt_logprobs"):
            policy.open(PROMPTS).scores(TEXTS)
        assert policy.generate(PROMPTS) == zero_shot(backbone, settings=SETTINGS).generate(PROMPTS)


def test_a_server_that_fails_is_not_one_that_reads_no_text() -> None:
    backbone = text_backbone("llama")
    with model_server(backbone, wrap=lambda *_: bad("out of memory", 500)) as server:
        policy = zero_shot(served(server, backbone.encoder))
        with pytest.raises(ModelError, match="out of memory"):
            assert policy.scorable


def test_a_server_says_how_long_a_sequence_may_be() -> None:
    backbone = text_backbone("llama")
    with model_server(backbone, models=models_reply(max_model_len=None)) as server:
        with pytest.raises(ConfigError, match=r"max_model_len\); give context="):
            served(server, backbone.encoder)
        assert served(server, backbone.encoder, context=99).context == 99
    with model_server(backbone, models=models_reply(root="/another")) as other, model_server(backbone) as one:
        assert served(other, backbone.encoder).fingerprint != served(one, backbone.encoder).fingerprint


@pytest.mark.parametrize(
    "wrong", [{"api": "edits"}, {"timeout": 0}, {"max_retries": -1}, {"parallel": 0}, {"context": 1}]
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServerEngine("m", "http://127.0.0.1:9/v1", **wrong)
    with pytest.raises(ConfigError, match="expected http"):
        ServerEngine("m", "localhost:8000")


# What needs weights


def test_what_needs_weights_says_so_in_one_sentence() -> None:
    backbone = text_backbone("llama")
    model = reward_model("global_bt", backbone).fit(list(PAIRS))
    with model_server(backbone) as server:
        there = served(server, backbone.encoder)
        with pytest.raises(ConfigError, match="needs the weights of 'tiny-served'"):
            guided(there, model, model.adapt([])).generate(PROMPTS)
        with pytest.raises(ConfigError, match="needs the weights of 'tiny-served'"):
            guided(there, model, model.adapt([]), decoder=Greedy()).generate(PROMPTS)
        with pytest.raises(ConfigError, match="decoder 'args_greedy' cannot decode a served policy"):
            ZeroShot(there, ArgsGreedy()).open(PROMPTS)
        roomy = served(server, backbone.encoder, context=4096)
        for use in (lambda: reward_model("global_bt", there).fit(list(PAIRS)), lambda: persona(roomy, PAIRS)):
            with pytest.raises(ConfigError, match="in a serving engine, which gives no hidden states"):
                use()
        assert there == there
        assert there != served(server, backbone.encoder)
        assert repr(there) == "ServedBackbone('tiny-served')"


NAME = "served:http://gpu7:8000/v1#model=big,tokenizer=/data/models/big"


def study(**changes: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "data": {"name": "synthetic_text"},
            "policy": NAME,
            "reward_models": [{"method": "lore", "backbone": "synthetic-words"}],
            "deployments": [{"policy": name} for name in ("zero_shot", "icl", "icl_rag")],
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"deployments": [{"decoder": "args_greedy"}]}, "'args_greedy' steers each step by the policy's weights"),
        (
            {"deployments": [{"policy": "persona"}]},
            "'persona' needs the policy's weights.*deploy zero_shot, icl, icl_rag",
        ),
        ({"deployments": [{"policy": "cope"}]}, "'cope' needs the policy's weights"),
        ({"reward_models": [{"method": "lore"}]}, "'lore' reads hidden states, and 'served:big' is"),
        ({"policy": "synthetic-words", "reward_models": [{"method": "lore", "backbone": NAME}]}, "'lore' reads hidden"),
        ({"policy": "served:http://gpu7:8000/v1"}, "is not complete; write served:http://HOST:PORT/v1#model=NAME"),
        ({"policy": "vllm:#context=8"}, "is not complete; write vllm:MODEL"),
        ({"policy": f"{NAME},contxt=9"}, r"'contxt=9' is no option of served:\. Did you mean 'context='"),
        ({"policy": f"{NAME},context=long"}, "context is 'long'; expected a number"),
        ({"policy": "vllm:a/b#model=c"}, "'model=c' is no option of vllm:"),
    ],
)
def test_studies_that_cannot_work_are_refused(changes: dict[str, Any], said: str) -> None:
    check_names(study())
    with pytest.raises(ConfigError, match=said):
        check_names(study(**changes))


def test_artefacts_name_no_host_and_no_folder() -> None:
    assert shown_name(NAME) == "served:big"
    assert shown_name("vllm:/data/models/big#context=99") == "vllm:big"
    assert shown_name("vllm:owner/big") == "vllm:owner/big"
    text = study_yaml(study(reward_models=[{"method": "lore", "backbone": NAME}]))
    assert text.count("served:big") == 2
    assert "gpu7" not in text
    assert "/data" not in text
    assert parse_served(NAME).options == {"model": "big", "tokenizer": "/data/models/big"}


# vLLM in this process, as documented: a stand-in that records what it is called with


def stand_in(tiny: TinyServer, calls: list[Any]) -> types.ModuleType:
    """Return a module with the documented `LLM` and `SamplingParams`, over the tiny network."""
    module = types.ModuleType("vllm")

    class SamplingParams:
        def __init__(self, **settings: Any) -> None:
            self.settings = settings

    class LLM:
        def __init__(self, **settings: Any) -> None:
            calls.append(settings)
            if settings["tensor_parallel_size"] > 1:
                raise RuntimeError("No CUDA GPUs are available\n  at line 3")
            config = types.SimpleNamespace(max_model_len=settings["max_model_len"] or CONTEXT)
            self.llm_engine = types.SimpleNamespace(model_config=config)

        def generate(self, prompts: list[Any], sampling_params: list[Any], use_tqdm: bool = True) -> list[Any]:
            assert not use_tqdm
            assert len(prompts) == len(sampling_params)
            return [
                self.one(prompt["prompt_token_ids"], p.settings)
                for prompt, p in zip(prompts, sampling_params, strict=True)
            ]

        def one(self, ids: list[int], settings: dict[str, Any]) -> Any:
            calls.append(settings)
            if len(ids) + settings["max_tokens"] > CONTEXT:
                raise ValueError("the prompt is longer than the maximum model length")
            written, reason, stop = tiny.write(ids, settings)
            output = types.SimpleNamespace(token_ids=written, finish_reason=reason, stop_reason=stop)
            rows = tiny.read(ids, settings["prompt_logprobs"]) if "prompt_logprobs" in settings else None
            tables = rows and [row and {int(t): types.SimpleNamespace(**e) for t, e in row.items()} for row in rows]
            return types.SimpleNamespace(outputs=[output], prompt_logprobs=tables, prompt_token_ids=ids)

    module.LLM, module.SamplingParams, module.__version__ = LLM, SamplingParams, "0"  # type: ignore[attr-defined]
    return module


def test_vllm_in_process_equals_the_local_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backbone, calls = text_backbone("llama"), []
    tiny = TinyServer(backbone.model, backbone.encoder, backbone.encoder.end_id)
    monkeypatch.setitem(sys.modules, "vllm", stand_in(tiny, calls))
    folder = save_hub_folder(tmp_path / "tiny", backbone.model, backbone.encoder.tokenizer)
    policy = load_backbone(f"vllm:{folder}#gpu_memory_utilization=0.5", dtype="bfloat16")
    assert calls[0] == {
        "model": str(folder), "revision": None, "tokenizer": str(folder), "tokenizer_revision": None,
        "dtype": "bfloat16", "max_model_len": None, "tensor_parallel_size": 1, "gpu_memory_utilization": 0.5,
        "trust_remote_code": False,
    }  # fmt: skip
    assert policy.context == CONTEXT
    local = zero_shot(backbone, settings=SETTINGS)
    run = zero_shot(policy, settings=SETTINGS).open(PROMPTS)
    assert run.generate() == local.open(PROMPTS).generate()
    for row, expected in zip(run.scores(TEXTS), local.open(PROMPTS, completions=TEXTS).scores(TEXTS), strict=True):
        assert [s.variants for s in row] == [pytest.approx(e.variants, abs=1e-9) for e in expected]
    drawn = ZeroShot(policy, Sample(0.7), SETTINGS).open(PROMPTS, seeds=[1, 2, 3, 4]).generate()
    assert drawn == ZeroShot(backbone, Sample(0.7), SETTINGS).open(PROMPTS, seeds=[1, 2, 3, 4]).generate()
    assert all(settings["detokenize"] is False and settings["repetition_penalty"] == 1.0 for settings in calls[1:])
    assert zero_shot(policy, settings=SETTINGS).generate([]) == []
    with pytest.raises(ModelError, match=r"vLLM cannot load '.*': No CUDA GPUs are available"):
        load_backbone(f"vllm:{folder}#tensor_parallel_size=2")
    with pytest.raises(ModelError, match=r"vLLM cannot read or write with .*longer than the maximum model length"):
        zero_shot(load_backbone(f"vllm:{folder}#context=4096"), settings=SETTINGS).generate(["river " * 200])


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(MissingExtraError, match=r"needs the package 'vllm' and a GPU. Install rewardgap\[vllm\]"):
        load_backbone(f"vllm:{tmp_path}")
