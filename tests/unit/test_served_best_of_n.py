"""Best-of-N over a served policy: the engine writes the pool, a reward model or judge here picks, as it would locally."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_judged import SHOWN, Taste, worth
from test_served import stand_in

from model_server import MODEL, TinyServer, model_server
from peers.slow_decoding import last_state
from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.serving import ServedBackbone
from rewardgap.backbones.serving_http import ServerEngine
from rewardgap.core.errors import ConfigError, NotScorableError
from rewardgap.core.records import Message, PreferencePair
from rewardgap.core.seeds import child_seed
from rewardgap.decoding import best_of_n, sampling
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.blockwise import Blockwise
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import Guided
from rewardgap.policies.icl_judge import IclJudge
from rewardgap.policies.judged import Judged
from rewardgap.rewards.build import reward_model
from standins import as_backbone, private_copy, save_hub_folder, text_backbone, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chat_server import ChatServer, Reply, Request
    from rewardgap.backbones.hf import Backbone
    from rewardgap.policies.base import AdaptedPolicy
    from rewardgap.rewards.model import RewardModel

PROMPTS = ("what is the river", (Message("system", "Be kind."), Message("user", "a\ncolour")), "winter", "a")
SEEDS = [5, 7, 11, 13]
SETTINGS = GenerationSettings(max_new_tokens=5, min_new_tokens=1)
PAIRS = [
    PreferencePair(
        user_id=f"u{i % 2}", example_id=str(i), prompt=f"write {word} for me",
        chosen=f"{word} stone and light", rejected=f"the garden of {word}",
    )
    for i, word in enumerate(("river", "paper", "winter", "red", "blue", "one"))
]  # fmt: skip


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key, a cache of the test's own, and seeds that go through a request as they are."""
    monkeypatch.setenv("OPENAI_API_KEY", "any text")
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    for module in (best_of_n, sampling):
        monkeypatch.setattr(module, "child_seed", lambda *parts: child_seed(*parts) % (1 << 31))


@contextmanager
def served(backbone: Backbone, **facts: Any) -> Iterator[tuple[ServedBackbone, ChatServer]]:
    with model_server(backbone, **facts) as server:
        yield ServedBackbone(ServerEngine(MODEL, server.base_url, max_retries=0), backbone.encoder), server


def model_of(reads: str, policy: Backbone) -> RewardModel:
    """Return a reward model on the policy's network, on another with its tokens, or with tokens of its own."""
    backbone = {
        "policy": policy,
        "other network": text_backbone("qwen3", seed=4),
        "other tokens": as_backbone(tiny_model("llama", vocabulary=400, seed=7), tiny_tokenizer(across=True), name="r"),
    }[reads]
    return reward_model("lore", backbone, rank=2).fit(PAIRS)


def written(policy: AdaptedPolicy, states: list[Any], seeds: list[int] | None = None) -> list[Any]:
    return policy.open(PROMPTS, states, SEEDS if seeds is None else seeds).generate()


@pytest.mark.parametrize(
    ("reads", "options"),
    [
        ("policy", {}),
        ("policy", {"soft": True, "guidance_weight": -2.0}),
        ("other network", {"pool_seed": 3}),
        ("other network", {"temperature": 0.7, "top_p": 0.8}),
        ("other tokens", {"pool_seed": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*different tokenizers")
def test_a_reward_model_picks_as_it_would_locally(reads: str, options: dict[str, Any]) -> None:
    """Token for token, and the same reward: only the network that the texts come from lies elsewhere."""
    backbone = text_backbone("llama")
    model = model_of(reads, backbone)
    states = [model.state_of("u0"), model.state_of("u1"), model.adapt([]), model.adapt(PAIRS[:2])]
    local = written(Guided(backbone, BestOfN(4, **options), SETTINGS, reward=model), states)
    with served(backbone) as (there, server):
        policy = Guided(there, BestOfN(4, **options), SETTINGS, reward=model)
        run = policy.open(PROMPTS, states, SEEDS)
        found = run.generate()
        assert found == local
        assert len(server.requests) == 16
        assert {request["top_p"] for request in server.requests} == {options.get("top_p", 1.0)}
        assert run.guide_cost[0] > 0
        assert (run.forwards, run.tokens > run.guide_cost[1] > 0) == (16 + run.guide_cost[0], True)
        assert not policy.scorable
        with pytest.raises(NotScorableError, match="best_of_n gives a text no probability"):
            run.scores([["red"]] * 4)
    assert len({text.ids for text in found}) > 1
    assert all((text.proposed, text.accepted) == (4, 1) for text in found)


@pytest.mark.parametrize("tournament", ["round_robin", "knockout"])
@pytest.mark.parametrize("pool_seed", [None, 3])
def test_a_judge_picks_as_it_would_locally(tournament: Any, pool_seed: int | None) -> None:
    backbone = text_backbone("llama")
    decoder = BestOfN(5, tournament=tournament, pool_seed=pool_seed)
    judge = IclJudge(Taste(worth))  # type: ignore[arg-type]
    states = [judge.adapt(SHOWN[:number]) for number in range(4)]
    local = written(Judged(backbone, decoder, SETTINGS, judge=judge), states)
    with served(backbone) as (there, server):
        run = Judged(there, decoder, SETTINGS, judge=judge).open(PROMPTS, states, SEEDS)
        assert run.generate() == local
        assert len(server.requests) == 20
        questions = sum(text.questions or 0 for text in local)
        assert run.guide_cost[1] == 20 * questions > 0


def ending(backbone: Backbone) -> Backbone:
    """Return a copy that often ends a text at once."""
    copied = private_copy(backbone)
    ends = [last_state(copied.model, list(backbone.encoder.encode_prompt(prompt))) for prompt in PROMPTS]
    state = torch.stack(ends).mean(0)
    with torch.no_grad():
        copied.model.get_output_embeddings().weight[backbone.encoder.end_id] = 8.0 * state / state.square().sum()
    return copied


@pytest.mark.parametrize("own", [False, True])
def test_an_end_token_of_the_servers_own_ends_a_text_as_ours_does(own: bool) -> None:
    backbone = ending(text_backbone("llama"))
    model = model_of("other network", backbone)
    states = [model.adapt([])] * 4
    settings = dataclasses.replace(SETTINGS, min_new_tokens=0)
    local = written(Guided(backbone, BestOfN(4), settings, reward=model), states)
    assert {text.ended for text in local} == {True, False}

    def renamed(tiny: TinyServer, request: Request) -> Reply:
        reply = tiny(request)
        choice = reply.body["choices"][0]
        if own and choice["finish_reason"] == "stop":
            choice["token_ids"][-1] = backbone.encoder.tokenizer.eos_token_id
        return reply

    assert backbone.encoder.tokenizer.eos_token_id != backbone.encoder.end_id
    with served(backbone, wrap=renamed) as (there, _):
        assert written(Guided(there, BestOfN(4), settings, reward=model), states) == local


def test_a_pool_is_asked_for_once_and_grows() -> None:
    """Reward models, judges and users choose from the same texts; a larger N asks only for what is missing."""
    backbone = text_backbone("llama")
    one, other = model_of("other network", backbone), model_of("policy", backbone)
    judge = IclJudge(Taste(worth))  # type: ignore[arg-type]
    with served(backbone) as (there, server):

        def asked(policy: AdaptedPolicy, state: Any) -> int:
            before = len(server.requests)
            written(policy, [state] * 4, seeds=[before + row for row in range(4)])
            return len(server.requests) - before

        assert asked(Guided(there, BestOfN(3, pool_seed=1), SETTINGS, reward=one), one.state_of("u0")) == 12
        assert asked(Guided(there, BestOfN(3, pool_seed=1), SETTINGS, reward=one), one.state_of("u1")) == 0
        assert asked(Guided(there, BestOfN(2, pool_seed=1), SETTINGS, reward=other), other.state_of("u0")) == 0
        assert asked(Judged(there, BestOfN(3, pool_seed=1), SETTINGS, judge=judge), judge.adapt([])) == 0
        assert asked(Judged(there, BestOfN(5, pool_seed=1), SETTINGS, judge=judge), judge.adapt([])) == 8
        assert asked(Guided(there, BestOfN(3, pool_seed=2), SETTINGS, reward=one), one.state_of("u0")) == 12
        changed = dataclasses.replace(SETTINGS, max_new_tokens=4)
        assert asked(Guided(there, BestOfN(3, pool_seed=1), changed, reward=one), one.state_of("u0")) == 12
        # Without a pool of its own name a row draws by its seed, and keeps nothing.
        assert asked(Guided(there, BestOfN(3), SETTINGS, reward=one), one.state_of("u0")) == 12
        assert asked(Guided(there, BestOfN(3), SETTINGS, reward=one), one.state_of("u0")) == 12


def test_a_served_pool_is_not_a_local_one() -> None:
    backbone = text_backbone("llama")
    model = model_of("other network", backbone)
    states = [model.adapt([])] * 4
    written(Guided(backbone, BestOfN(3, pool_seed=1), SETTINGS, reward=model), states)
    with served(backbone) as (there, server):
        written(Guided(there, BestOfN(3, pool_seed=1), SETTINGS, reward=model), states)
        assert len(server.requests) == 12


def test_a_watcher_sees_the_winner_only() -> None:
    backbone, seen = text_backbone("llama"), []
    model = model_of("other network", backbone)
    with served(backbone) as (there, _):
        run = Guided(there, BestOfN(3), SETTINGS, reward=model).open(PROMPTS, [model.adapt([])] * 4, SEEDS)
        found = run.generate(watch=lambda row, done: seen.append((row, tuple(done.ids))))
    last = dict(seen)
    assert [last[row] for row in range(4)] == [text.ids for text in found]


def test_what_an_engine_cannot_give_is_one_sentence() -> None:
    backbone = text_backbone("llama")
    model = model_of("other network", backbone)
    with served(backbone) as (there, _):
        with pytest.raises(ConfigError, match=r"log_prob_weight is 0\.5, and 'tiny-served' is in a serving engine"):
            written(Guided(there, BestOfN(2, log_prob_weight=0.5), SETTINGS, reward=model), [model.adapt([])] * 4)
        with pytest.raises(ConfigError, match=r"temperature 0\.001 is below 0\.01"):
            written(Guided(there, BestOfN(2, temperature=0.001), SETTINGS, reward=model), [model.adapt([])] * 4)
        with pytest.raises(ConfigError, match="best_of_n with a local reward model or judge"):
            written(Guided(there, Blockwise(2, 2), SETTINGS, reward=model), [model.adapt([])] * 4)


def test_vllm_in_this_process_writes_the_pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backbone, calls = text_backbone("llama"), []
    tiny = TinyServer(backbone.model, backbone.encoder, backbone.encoder.end_id)
    monkeypatch.setitem(sys.modules, "vllm", stand_in(tiny, calls))
    folder = save_hub_folder(tmp_path / "tiny", backbone.model, backbone.encoder.tokenizer)
    model = model_of("other network", backbone)
    states = [model.adapt([])] * 4
    decoder = BestOfN(4, top_p=0.9)
    found = written(Guided(load_backbone(f"vllm:{folder}"), decoder, SETTINGS, reward=model), states)
    assert found == written(Guided(backbone, decoder, SETTINGS, reward=model), states)
    assert [settings["top_p"] for settings in calls[1:]] == [0.9] * 16
