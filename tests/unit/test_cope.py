"""CoPe: users' adapters are trained as by hand, and decoding is the plain rule, one full forward a number."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.slow_decoding import next_log_probs, slow_decode
from rewardgap.backbones.lora import LoraSettings, adapter_parameters, attach_lora, load_adapter
from rewardgap.backbones.row_adapters import AdapterHost
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.traces import TraceCache
from rewardgap.core.errors import ConfigError, DataError, ModelError, ShapeError
from rewardgap.core.records import PreferencePair
from rewardgap.core.seeds import child_seed
from rewardgap.decoding import contrast as contrast_module
from rewardgap.decoding.contrast import Contrast
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.decoding.plain import Greedy
from rewardgap.policies import user_training
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.catalog import POLICIES
from rewardgap.policies.cope import CoPe, CoPeConfig, cope
from rewardgap.policies.user_training import OwnText, UserTrainer, dpo_losses, log_ratios, supervised_loss
from rewardgap.policies.zero_shot import zero_shot
from rewardgap.rewards import token_rewards
from rewardgap.rewards.states import UserState
from rewardgap.rewards.token_rewards import Branches
from rewardgap.rewards.training import Schedule, relative_rate
from standins import ARCHITECTURES, text_backbone, tiny_backbone, tiny_tokenizer, without_packing

VOCABULARY = 29
WORDS = ["red", "blue", "the light", "winter", "garden of stone", "river"]
SHAPE = LoraSettings(rank=3, alpha=6, dropout=0.0)


def pairs_of(user: str = "u0", rows: int = 5, text: str | None = None) -> list[PreferencePair]:
    return [
        PreferencePair(
            user_id=user, example_id=f"{user}-{row}", prompt=f"Why {row}?", chosen=WORDS[row % 6], rejected="",
            reference=text,
        )
        for row in range(rows)
    ]  # fmt: skip


def small(**options: Any) -> CoPeConfig:
    return CoPeConfig(
        **{"sft_steps": 6, "learning_rate": 1e-2, "lora_rank": 3, "lora_alpha": 6, "dropout": 0.0, **options}
    )


def shaken(host: AdapterHost, rows: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(rows, host.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shaken_states(policy: CoPe, users: int) -> list[UserState]:
    return [UserState("cope", {"adapter": adapter}, 3) for adapter in shaken(policy.host, users)]


def merged(host: AdapterHost, adapter: torch.Tensor) -> Any:
    """Return a plain network whose weights hold the adapter:  W + (alpha / rank) B A."""
    model = copy.deepcopy(host.base.model)
    factors = host.tensors(adapter)
    with torch.no_grad():
        for place in host.places:
            down, up = (factors[f"{place.name}.lora_{part}.weight"] for part in "AB")
            layer = model.get_decoder().get_submodule(place.name)
            layer.weight += host.settings.alpha / host.settings.rank * up @ down
    return model


def slow_contrast(
    own: Any, base: Any, prompt: list[int], rule: Contrast, end: set[int], stop: set[int], shortest: int, longest: int
) -> tuple[list[int], bool]:
    """Extend one prompt by the rule, token by token, both networks from the beginning each time."""
    ids: list[int] = []
    for step in range(longest):
        user, amateur = next_log_probs(own, prompt + ids), next_log_probs(base, prompt + ids)
        allowed = [v for v in range(len(user)) if step >= shortest or v not in end | stop]
        best = max(user[v] for v in allowed)
        plausible = [v for v in allowed if user[v] >= best + math.log(rule.plausibility)]
        chosen = max(plausible, key=lambda v: (user[v] - rule.alpha * amateur[v], user[v], -v))
        if chosen in end:
            return ids, True
        ids.append(chosen)
        if chosen in stop:
            return ids, True
    return ids, False


def run(host: AdapterHost, adapters: torch.Tensor, prompts: list[list[int]], rule: Any, stop: StopRule) -> list[Any]:
    """Decode prompts under adapters and under none in one batch, and return the first half."""
    both = host.rows(torch.cat([adapters, torch.zeros_like(adapters)]))
    session = TrieSession(both, 2 * len(prompts), max(map(len, prompts)) + stop.max_new_tokens + 2)
    return decode(session, session.prefill([*prompts, *prompts]), rule, stop)[: len(prompts)]


# The rule.


def test_the_rule_on_three_tokens() -> None:
    """π_u = (.5, .3, .2), π_0 = (.8, .1, .1). At α = 1: log ratios (-.47, 1.10, .69); token 2 lies below .5 · .5."""
    own, base = (torch.tensor([p], dtype=torch.float64).log() for p in ((0.5, 0.3, 0.2), (0.8, 0.1, 0.1)))
    both = torch.cat([own, base])
    assert Contrast(1.0, 0.5).choose(both, None).tolist() == [1, 1]
    assert Contrast(1.0, 0.7).choose(both, None).tolist() == [0, 0]
    assert Contrast(0.0, 0.1).choose(both, None).tolist() == [0, 0]
    assert Contrast(0.1, 0.1).choose(both, None).tolist() == [0, 0]
    assert Contrast(0.5, 0.4).plausible(own).tolist() == [[True, True, True]]
    assert Contrast(0.5, 0.41).plausible(own).tolist() == [[True, True, False]]


def test_equal_contrasts_go_to_the_adapted_policy_then_to_the_lower_id() -> None:
    own = torch.tensor([[-2.0, -1.0, -1.0, -3.0]], dtype=torch.float64)
    base = torch.tensor([[-2.0, -1.0, -1.0, -8.0]], dtype=torch.float64)
    assert Contrast(1.0, 0.2).choose(torch.cat([own, base]), None).tolist() == [1, 1]


@given(st.integers(0, 999), st.sampled_from([0.0, 0.1, 1.0, 3.0]), st.sampled_from([1e-30, 0.05, 0.5, 1.0]))
def test_the_rule_is_the_obvious_loop(seed: int, alpha: float, plausibility: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    own, base = (torch.randn(3, 7, dtype=torch.float64, generator=draw).mul(3).log_softmax(-1) for _ in range(2))
    own[0, 2] = base[0, 2] = -torch.inf  # forbidden by the stop rule, to both
    rule = Contrast(alpha, plausibility)
    expected = []
    for user, amateur in zip(own.exp().tolist(), base.exp().tolist(), strict=True):
        kept = [v for v in range(7) if user[v] > 0 and user[v] >= plausibility * max(user) * (1 - 1e-12)]
        expected.append(max(kept, key=lambda v: math.log(user[v]) - alpha * math.log(amateur[v])))
    assert rule.choose(torch.cat([own, base]), None).tolist() == [*expected, *expected]


@pytest.mark.parametrize(("options", "name"), [({"alpha": -0.1}, "alpha"), ({"alpha": math.inf}, "alpha"),
                                               ({"plausibility": 0.0}, "plausibility"),
                                               ({"plausibility": 1.1}, "plausibility")])  # fmt: skip
def test_the_rule_refuses_what_it_is_not_defined_for(options: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be"):
        Contrast(**options)


# Decoding.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=6)
@given(data=st.data())
def test_tokens_are_those_of_the_slow_loop(architecture: str, data: st.DataObject) -> None:
    """Batches of users with adapters of their own; rows end at different steps, by end and by stop tokens."""
    host = AdapterHost(tiny_backbone(architecture), SHAPE)
    ids = st.integers(0, VOCABULARY - 1)
    prompts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=20), min_size=1, max_size=3), label="prompts")
    users = data.draw(st.lists(st.integers(0, 1), min_size=len(prompts), max_size=len(prompts)), label="users")
    rule = Contrast(data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])), data.draw(st.sampled_from([1e-9, 0.1, 0.6])))
    end = data.draw(st.sets(ids, min_size=1, max_size=5), label="end")
    stops = data.draw(st.sets(ids, max_size=3), label="stop") - end
    longest = data.draw(st.integers(1, 6), label="longest")
    shortest = data.draw(st.integers(0, longest), label="shortest")
    adapters = shaken(host, 2)
    fast = run(host, adapters[users], prompts, rule, StopRule(tuple(end), longest, shortest, tuple(stops)))
    own = {user: merged(host, adapters[user]) for user in set(users)}
    for row, (prompt, user) in enumerate(zip(prompts, users, strict=True)):
        expected = slow_contrast(own[user], host.base.model, prompt, rule, end, stops, shortest, longest)
        assert (fast[row].ids, fast[row].ended) == expected


PROMPTS = [[1, 2, 3], [(7 * i + 2) % 29 for i in range(23)], [28], [5, 4, 3, 2, 1, 0, 9]]
STOP = StopRule((0, 3, 11, 17, 20), 8)


@pytest.mark.parametrize("rule", [Contrast(0.0, 1e-30), Contrast(0.0, 0.3), Contrast(2.0, 1.0)])
def test_without_alpha_or_choice_the_tokens_are_the_adapted_policys_own(rule: Contrast) -> None:
    host = AdapterHost(tiny_backbone(), SHAPE)
    adapters = shaken(host, 4)
    session = TrieSession(host.rows(adapters), 4, 40)
    greedy = decode(session, session.prefill(PROMPTS), Greedy(), STOP)
    assert [row.ids for row in run(host, adapters, PROMPTS, rule, STOP)] == [row.ids for row in greedy]
    assert [row.ids for row in run(host, adapters, PROMPTS, Contrast(2.0, 1e-3), STOP)] != [r.ids for r in greedy]


def test_the_base_reads_what_the_user_reads_and_rows_that_end_are_read_no_further() -> None:
    host = AdapterHost(tiny_backbone(), SHAPE)
    adapters = shaken(host, 4)
    both = host.rows(torch.cat([adapters, torch.zeros_like(adapters)]))
    session = TrieSession(both, 8, 40)
    found = decode(session, session.prefill([*PROMPTS, *PROMPTS]), Contrast(0.5, 0.1), STOP)
    assert [row.ids for row in found[:4]] == [row.ids for row in found[4:]]
    lengths = [len(row.ids) for row in found[:4]]
    assert len(set(lengths)) > 1 and any(row.ended for row in found)
    # The last token is read where another may follow: not at the length limit.
    read = [min(length, STOP.max_new_tokens - 1) for length in lengths]
    assert session.tokens == 2 * (sum(map(len, PROMPTS)) + sum(read))
    assert session.forwards == 1 + max(read)


# The deployment.

QUERIES = ["Why?", "Name a colour of the garden.", "river"]
TEXTS = [["red and blue", "the light"], ["", "winter"], ["stone stone garden", "é"]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_a_support_set_it_is_zero_shot(architecture: str) -> None:
    """π_u = π_base to the bit, so r_u = (1 - α) log π, and the best contrast is the best token."""
    backbone = text_backbone(architecture)
    limits = GenerationSettings(max_new_tokens=8)
    policy, plain = cope(backbone, [], settings=limits), zero_shot(backbone, settings=limits)
    assert policy.state.num_support == 0
    assert policy.generate(QUERIES) == plain.generate(QUERIES)
    run = policy.open(QUERIES)
    assert torch.equal(run.tips[:3], run.tips[3:])
    assert torch.equal(run.tips[:3], policy.open(QUERIES, [policy.state] * 3).tips[:3])
    texts = [row[0] for row in TEXTS]
    base = plain.log_score(QUERIES, texts, variant="base")
    np.testing.assert_allclose(policy.log_score(QUERIES, texts, variant="base"), base, rtol=0, atol=1e-9)
    np.testing.assert_allclose(policy.log_score(QUERIES, texts, variant="raw_delta"), 0.9 * base, rtol=0, atol=1e-9)


@cache
def three_users(architecture: str, alpha: float, plausibility: float) -> tuple[CoPe, list[UserState]]:
    """Two users with adapters far from the base, and one who revealed nothing."""
    limits = GenerationSettings(max_new_tokens=7, score_top_k=2)
    policy = CoPe(text_backbone(architecture), limits, config=small(alpha=alpha, plausibility=plausibility))
    nobody = UserState("cope", {"adapter": policy.host.fresh(0).double()}, 0)
    return policy, [*shaken_states(policy, 2), nobody]


@pytest.mark.parametrize(("architecture", "alpha", "plausibility"), [
    ("llama", 0.1, 0.1), ("gemma3", 0.8, 0.01), ("mistral", 0.0, 0.3), ("qwen2", 0.5, 0.05),
])  # fmt: skip
def test_texts_and_scores_are_those_of_plain_forwards(architecture: str, alpha: float, plausibility: float) -> None:
    policy, states = three_users(architecture, alpha, plausibility)
    backbone, encoder = policy.backbone, policy.backbone.encoder
    batch = policy.open(QUERIES, states, completions=TEXTS)
    scores, written = batch.scores(TEXTS), batch.generate()
    seen = []
    for row, (query, state) in enumerate(zip(QUERIES, states, strict=True)):
        own, prompt = merged(policy.host, state.values["adapter"]), list(encoder.encode_prompt(query))
        rule, ends = policy.decoder, set(encoder.end_ids)
        ids, ended = slow_contrast(own, backbone.model, prompt, rule, ends, set(), 0, 7)
        assert (list(written[row].ids), written[row].ended) == (ids, ended)
        for text, found in zip(TEXTS[row], scores[row], strict=True):
            tokens = [*encoder.encode_completion(text, after=query), encoder.end_id]
            total = full = delta = base = 0.0
            inside = []
            for t, token in enumerate(tokens):
                user = next_log_probs(own, prompt + tokens[:t])
                amateur = next_log_probs(backbone.model, prompt + tokens[:t])
                plausible = {v for v, value in enumerate(user) if value >= max(user) + math.log(plausibility)}
                reward = {v: user[v] - alpha * amateur[v] for v in plausible | {token}}
                total += reward[token] - math.log(sum(map(math.exp, reward.values())))
                every = [u - alpha * b for u, b in zip(user, amateur, strict=True)]
                full += every[token] - math.log(sum(map(math.exp, every)))
                delta, base = delta + reward[token], base + user[token]
                inside.append(token in plausible)
            expected = {"rgd_topk": total, "mean_rgd_topk": total / len(tokens), "raw_delta": delta, "base": base}
            expected["rgd_full"] = full
            for name, value in expected.items():
                assert found.variants[name] == pytest.approx(value, abs=1e-8), name
            assert found.coverage == pytest.approx(np.mean(inside))
            assert "reward_only" not in found.variants
            seen += inside
    assert len(set(seen)) == 2, "some scored tokens are plausible and some are not"


def test_a_batch_of_users_is_one_user_at_a_time() -> None:
    policy, states = three_users("llama", 0.1, 0.1)
    alone = [policy.generate([query], [state])[0] for query, state in zip(QUERIES, states, strict=True)]
    assert policy.generate(QUERIES, states) == alone
    assert policy.generate(QUERIES, states, batch_size=2) == alone
    texts = [row[0] for row in TEXTS]
    single = [policy.log_score([q], [t], [s])[0] for q, t, s in zip(QUERIES, texts, states, strict=True)]
    np.testing.assert_allclose(policy.log_score(QUERIES, texts, states), single, rtol=0, atol=1e-8)


def test_scoring_leaves_the_session_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of any size, before the text is written, and for prompts without completions."""
    policy, states = three_users("llama", 0.1, 0.1)
    batch = policy.open(QUERIES, states, completions=TEXTS)
    whole = batch.scores(TEXTS)
    monkeypatch.setattr(contrast_module, "POSITIONS", 2)
    chunked = batch.scores(TEXTS)
    for row, again in zip(whole, chunked, strict=True):
        for one, other in zip(row, again, strict=True):
            assert one.coverage == other.coverage
            assert one.variants == pytest.approx(other.variants, abs=1e-10)
    assert [len(row) for row in batch.scores([[], ["red"], []])] == [0, 1, 0]
    assert batch.scores([[], [], []]) == [[], [], []]
    assert [g.ids for g in batch.generate()] == [g.ids for g in policy.open(QUERIES, states).generate()]


def test_no_trace_of_a_user_is_kept(tmp_path: Path) -> None:
    backbone = text_backbone()
    traces = TraceCache(tmp_path)
    policy = POLICIES["cope"].build(backbone, GenerationSettings(), traces, None, None, sft_steps=2, dpo_epochs=0)
    policy.log_score(["Why?"], ["red"], [policy.adapt(pairs_of(rows=1))])
    assert not list(tmp_path.rglob("*"))
    zero_shot_card = POLICIES["zero_shot"].build(backbone, GenerationSettings(), traces, None, None)
    zero_shot_card.log_score(["Why?"], ["red"])
    assert list(tmp_path.rglob("*.safetensors"))


# Training.


def own_texts(policy: CoPe, pairs: list[PreferencePair]) -> list[OwnText]:
    return [policy._own_text(pair) for pair in pairs]


def trainer(policy: CoPe, seed: int = 0) -> UserTrainer:
    return UserTrainer(policy.host, policy.config, policy.stop_rule(), seed)


def peft_network(host: AdapterHost, adapter: torch.Tensor) -> Any:
    """Return the base under PEFT's own layers, holding an adapter."""
    peer = attach_lora(host.base, host.settings, 0)
    names = [name for name, _ in peer.model.named_parameters() if ".lora_" in name]
    own = {name.replace(".weight", ".default.weight"): tensor for name, tensor in host.tensors(adapter).items()}
    load_adapter(peer.model, {name: next(t for key, t in own.items() if name.endswith(key)) for name in names})
    return peer.model


def test_the_supervised_loss_is_transformers_own() -> None:
    """Right-padded rows with labels of -100 on prompts and padding; transformers forms its loss in float32."""
    policy = CoPe(text_backbone("qwen2"), config=small())
    adapter = shaken(policy.host, 1)
    texts = own_texts(policy, pairs_of(rows=5))
    rows = [[*text.prompt, *text.completion] for text in texts]
    width = max(map(len, rows))
    ids, labels, mask = torch.zeros(5, width).long(), torch.full((5, width), -100), torch.zeros(5, width).long()
    for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        labels[place, len(text.prompt) : len(row)] = torch.tensor(text.completion)
    branches = [Branches(text.prompt, (text.completion,)) for text in texts]
    count = sum(len(text.completion) for text in texts)
    with torch.no_grad():
        own = supervised_loss(policy.host.rows(adapter), branches, count)
        peer = merged(policy.host, adapter[0])(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert float(own) == pytest.approx(float(peer), rel=1e-6)


def test_a_user_is_supervised_as_by_hand() -> None:
    """Against PEFT's layers, transformers' loss and torch's optimiser, on the same start, order and steps."""
    policy = CoPe(text_backbone(dtype=torch.float32), config=small(batch_size=3, dpo_epochs=0))
    pairs = pairs_of(rows=4)
    texts = sorted(own_texts(policy, pairs))
    seed = child_seed(0, "cope", "u0", "start") % (1 << 31)
    network = peft_network(policy.host, policy.host.fresh(seed))
    schedule = Schedule(3, 3, child_seed(0, "cope", "u0", "supervised") % (1 << 31))
    optimiser = torch.optim.AdamW(adapter_parameters(network), lr=1e-2, weight_decay=0.01)
    follow = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: relative_rate(step, 6))
    for step in range(6):
        losses, count = [], 0
        for row in schedule.batch(4, step):
            ids = torch.tensor([[*texts[row].prompt, *texts[row].completion]])
            labels = ids.clone()
            labels[:, : len(texts[row].prompt)] = -100
            losses.append(network(input_ids=ids, labels=labels).loss * len(texts[row].completion))
            count += len(texts[row].completion)
        optimiser.zero_grad()
        (torch.stack(losses).sum() / count).backward()
        torch.nn.utils.clip_grad_norm_(adapter_parameters(network), 1.0)
        optimiser.step()
        follow.step()
    expected = policy.host.vector({name: p.detach() for name, p in network.named_parameters() if ".lora_" in name})
    found = policy.adapt(pairs).values["adapter"]
    assert float((expected - policy.host.fresh(seed)).abs().max()) > 0.02
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_the_second_loss_and_its_gradient_are_those_of_trl(tmp_path: Path) -> None:
    """TRL with an adapted network, and as its reference the adapter that supervised training left."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    policy = CoPe(text_backbone(), config=small())
    moved, start = shaken(policy.host, 2)
    texts = own_texts(policy, pairs_of(rows=4))
    pairs = [Branches(text.prompt, (text.completion, (7, 8, 9 + row))) for row, text in enumerate(texts)]
    leaf = moved[None].clone().requires_grad_()
    with torch.no_grad():
        reference = log_ratios(policy.host.rows(start[None]), pairs)
    own = dpo_losses(log_ratios(policy.host.rows(leaf), pairs), reference, 0.2).mean()
    (slope,) = torch.autograd.grad(own, leaf)
    peer = DPOTrainer(
        peft_network(policy.host, moved),
        peft_network(policy.host, start),
        DPOConfig(str(tmp_path), beta=0.2, use_cpu=True, report_to=[], bf16=False, gradient_checkpointing=False),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny_tokenizer(),
    )
    batch = DataCollatorForPreference(pad_token_id=0)(
        [
            {"prompt_ids": list(p.prompt), "chosen_ids": list(p.completions[0]), "rejected_ids": list(p.completions[1])}
            for p in pairs
        ]
    )
    peer.model.eval()
    loss = peer._compute_loss(peer.model, batch, False)
    trained = {name: p for name, p in peer.model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()))
    assert float(own.detach()) == pytest.approx(float(loss.detach()), abs=1e-6)
    assert float(slope.abs().max()) > 0.01
    expected = policy.host.vector(dict(zip(trained, found, strict=True)))
    torch.testing.assert_close(slope[0].float(), expected.float(), rtol=0, atol=5e-6)


def test_dpo_begins_at_log_two_and_moves_towards_the_users_text() -> None:
    policy = CoPe(text_backbone(), config=small(dpo_epochs=3, dpo_rate=1e-2, beta=0.1))
    texts = own_texts(policy, pairs_of(rows=4))
    adapter = shaken(policy.host, 1)
    pairs = trainer(policy).rejections("u0", adapter, texts)
    with torch.no_grad():
        start = log_ratios(policy.host.rows(adapter), pairs)
    assert dpo_losses(start, start, 0.1).tolist() == pytest.approx([math.log(2)] * 4, abs=1e-15)
    trained = adapter.clone().requires_grad_()
    trainer(policy).prefer(trained, pairs, 1)
    with torch.no_grad():
        assert (log_ratios(policy.host.rows(trained), pairs) > start).all()


def test_draws_are_the_bases_and_the_lowest_implicit_reward_is_rejected() -> None:
    """Each draw against the slow sampler with its own seed; each reward from a plain forward."""
    backbone = text_backbone()
    stops = backbone.encoder.line_break_ids[:3]
    policy = CoPe(backbone, GenerationSettings(max_new_tokens=5), config=small(num_samples=4, alpha=0.3))
    adapter = shaken(policy.host, 1)
    texts = own_texts(policy, pairs_of(rows=10))  # more than are drawn for at once
    ends = tuple(range(0, 339, 4))
    made = UserTrainer(policy.host, policy.config, StopRule(ends, 5, 0, stops), seed=3)
    rejected = made.rejections("u7", adapter, texts)
    own, closed = merged(policy.host, adapter[0]), []
    for text, drawn, pair in zip(texts, made.draw("u7", texts), rejected, strict=True):
        rewards = []
        for number, ids in enumerate(drawn):
            seed = child_seed(3, "cope", "u7", "draw", text.example_id, number) % (1 << 31)
            slow = slow_decode(
                backbone.model, list(text.prompt), k=None, strength=0.0, reward=None, end=set(ends), stop=set(stops),
                shortest=0, longest=5, uniforms=np.random.Generator(np.random.PCG64(seed)).random(5).tolist(),
            )  # fmt: skip
            by_end = slow.ended and not (slow.tokens and slow.tokens[-1] in stops)
            assert list(ids) == slow.tokens + [backbone.encoder.end_id] * by_end
            closed.append(by_end)
            terms = [
                next_log_probs(own, [*text.prompt, *ids[:t]])[v]
                - 0.3 * next_log_probs(backbone.model, [*text.prompt, *ids[:t]])[v]
                for t, v in enumerate(ids)
            ]
            rewards.append(sum(terms))
        assert made.implicit_rewards(adapter, [Branches(text.prompt, drawn)])[0] == pytest.approx(rewards, abs=1e-9)
        assert pair == Branches(text.prompt, (text.completion, drawn[int(np.argmin(rewards))]))
    assert len(set(closed)) == 2


def test_the_second_stage_follows_the_first() -> None:
    """The state is that of the stages done one after the other; without passes of DPO it is the first one's."""
    pairs = pairs_of(rows=4)
    policy = CoPe(text_backbone(dtype=torch.float32), config=small(dpo_rate=1e-3))
    texts, made = sorted(own_texts(policy, pairs)), trainer(policy)
    adapter = policy.host.fresh(made._seed("u0", "start"))[None].requires_grad_()
    made.supervise(adapter, texts, made._seed("u0", "supervised"))
    first = adapter.detach()[0].clone()
    only = CoPe(policy.backbone, config=small(dpo_epochs=0)).adapt(pairs)
    assert torch.equal(only.values["adapter"], first)
    made.prefer(adapter, made.rejections("u0", adapter.detach(), texts), made._seed("u0", "dpo"))
    both = policy.adapt(pairs).values["adapter"]
    assert torch.equal(both, adapter.detach()[0]) and not torch.equal(both, first)


def test_parts_of_a_batch_add_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a batch is too long for one forward pass, the steps are the same."""
    policy = CoPe(text_backbone(), config=small(dpo_rate=1e-2))
    whole = policy.adapt(pairs_of()).values["adapter"]
    sizes: list[int] = []
    real = token_rewards.tree_states
    monkeypatch.setattr(
        token_rewards, "tree_states", lambda net, blocks: sizes.append(len(blocks)) or real(net, blocks)
    )
    monkeypatch.setattr(user_training, "forward_batches", lambda s: token_rewards.forward_batches(s, 30))
    parts = policy.adapt(pairs_of()).values["adapter"]
    assert set(sizes) == {1}
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)


def test_adapting_changes_nothing_and_depends_on_the_users_own_texts_alone() -> None:
    backbone = text_backbone(dtype=torch.float32)
    policy = CoPe(backbone, config=small(dropout=0.3, dpo_rate=1e-3))
    weights = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    mine, theirs = pairs_of("u0"), pairs_of("u1")
    before = torch.get_rng_state()
    first, other = policy.adapt(mine), policy.adapt(theirs)
    assert policy.adapt(mine) == first
    assert policy.adapt(mine[::-1]) == first, "nor does the order of the texts matter"
    assert CoPe(backbone, config=policy.config).adapt(mine) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.model.state_dict().items())
    assert not policy.host.model.training
    assert first != other, "the same texts of another user start and draw elsewhere"
    assert CoPe(backbone, GenerationSettings(seed=1), config=policy.config).adapt(mine) != first
    loved = [replace(pair, rejected="something else") for pair in mine]
    assert policy.adapt(loved) == first, "rejected texts are not read"
    assert policy.adapt([replace(pair, reference="red") for pair in mine]) != first


def prompts_of(seed: int, count: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(["river", "garden", "light", "winter", "name", "answer"], 3)) for _ in range(count)]


def test_a_planted_style_is_taken_up_by_its_user_alone() -> None:
    """One user always writes "the red", one "blue". On new prompts each is followed; the base would write neither."""
    backbone = text_backbone(dtype=torch.float32)
    limits = GenerationSettings(max_new_tokens=6)
    settings_ = small(sft_steps=40, lora_rank=8, lora_alpha=8, batch_size=8)
    policy, plain = CoPe(backbone, limits, config=settings_), zero_shot(backbone, settings=limits)
    styles, states = ["the red", "blue"], []
    for number, style in enumerate(styles):
        written = enumerate(prompts_of(number, 16))
        pairs = [
            PreferencePair(user_id=f"u{number}", example_id=str(i), prompt=prompt, chosen=style, rejected="")
            for i, prompt in written
        ]
        states.append(policy.adapt(pairs))
    queries = prompts_of(99, 12)
    mixed = policy.generate([query for query in queries for _ in states], states * len(queries))
    assert mixed == styles * len(queries)
    assert not any(word in text for text in plain.generate(queries) for word in ("red", "blue"))
    for style, state, other in zip(styles, states, states[::-1], strict=True):
        text = [style] * len(queries)
        own, strange = (
            policy.log_score(queries, text, [user] * len(queries), variant="base") for user in (state, other)
        )
        zero = plain.log_score(queries, text, variant="base")
        assert (own - zero > 15).all() and (own - strange > 15).all()


# What is refused, and the card.


def test_what_cannot_be_is_said() -> None:
    backbone = text_backbone()
    policy = CoPe(backbone, config=small())
    with pytest.raises(
        ConfigError, match=r"cope needs a user's own state, got None; pass state=policy.adapt\(support\)"
    ):
        policy.generate(["Why?"])
    with pytest.raises(ConfigError, match="got 'mpu'"):
        policy.generate(["Why?"], [UserState("mpu", {}, 0)])
    with pytest.raises(ConfigError, match="2 states for 1 prompts"):
        policy.log_score(["Why?"], ["red"], [policy.adapt([])] * 2)
    with pytest.raises(ShapeError, match="made for another backbone or rank"):
        policy.generate(["Why?"], [CoPe(backbone).adapt([])])
    with pytest.raises(ModelError, match="does not take packed masks"):
        CoPe(without_packing(backbone))
    long = replace(pairs_of(rows=1)[0], reference="river " * 300)
    with pytest.raises(DataError, match=r"example 'u0-0' of user 'u0': its prompt of \d+ tokens .* the 256 that tiny"):
        policy.adapt([long])
    with pytest.raises(DataError, match="leaves no room for a prompt"):
        CoPe(backbone, GenerationSettings(max_new_tokens=256)).adapt(pairs_of())
    for name, value in (("num_demonstrations", 2), ("retriever", "bm25")):
        asked = {"num_demonstrations": None, "retriever": None, name: value}
        with pytest.raises(ConfigError, match="takes neither num_demonstrations nor retriever"):
            POLICIES["cope"].build(backbone, GenerationSettings(), None, **asked)


@pytest.mark.parametrize(("name", "value"), [
    ("sft_steps", 0), ("batch_size", True), ("num_samples", 0), ("dpo_epochs", -1), ("dpo_epochs", 1.5), ("beta", 0.0),
    ("learning_rate", -1.0), ("dpo_rate", math.nan), ("alpha", -0.1), ("alpha", "0.1"), ("plausibility", 0.0),
    ("plausibility", 2), ("dropout", 1.0), ("lora_rank", 0), ("lora_alpha", "8"),
])  # fmt: skip
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"cope: {name} is {value!r}; expected"):
        CoPeConfig(**{name: value})


def test_the_card_builds_what_the_config_says() -> None:
    card = POLICIES["cope"]
    built = card.build(text_backbone(), GenerationSettings(), None, None, None, alpha=0.4, lora_rank=2)
    assert asdict(built.config) == asdict(CoPeConfig()) | {"alpha": 0.4, "lora_rank": 2}
    assert built.decoder == Contrast(0.4, 0.1)
    assert built.host.settings == LoraSettings(2, 8, 0.05)
    assert card.personal and not card.baseline and card.retriever is None
    assert all(entry.metadata["meaning"] for entry in fields(CoPeConfig))
    assert all(sentence.endswith(".") for sentence in card.deviations)
