"""The fast loop gives the tokens of the slow one: exactly, in float64, on every architecture."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import GenerationConfig

from peers.slow_decoding import SlowText, last_state, model_reward, next_log_probs, slow_decode
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.session import TrieSession
from rewardgap.core.errors import ModelError
from rewardgap.decoding.args import ArgsGreedy, ArgsStochastic
from rewardgap.decoding.base import Decoder
from rewardgap.decoding.loop import LOOK_AHEAD, Decoded, LookAhead, StopRule, decode
from rewardgap.decoding.plain import Greedy, Sample
from rewardgap.rewards.guide import BackboneGuide, Guide, PolicyStateGuide, PrefixGuide
from standins import ARCHITECTURES, DotHead, tiny_backbone, without_packing

VOCABULARY = 29
SCALE = 3.0
PROMPTS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=44), min_size=1, max_size=4)
AHEAD = st.none() | st.just(LOOK_AHEAD) | st.sampled_from([1, 2, 3, 6]).map(lambda steps: LookAhead(fixed=steps))
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 4.0, -1.0, -3.0])
ENDS = st.sets(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4)


def run(
    backbone: Backbone,
    prompts: list[list[int]],
    decoder: Decoder,
    stop: StopRule,
    guide: Guide | None = None,
    seeds: list[int] = [],  # noqa: B006
    ahead: LookAhead | None = LOOK_AHEAD,
) -> list[Decoded]:
    room = 3 * stop.max_new_tokens + (decoder.top_k or 1)
    session = TrieSession(backbone, len(prompts), max(map(len, prompts)) + room)
    return decode(session, session.prefill(prompts), decoder, stop, guide=guide, seeds=seeds, look_ahead=ahead)


def users(rows: int, width: int) -> list[torch.Tensor]:
    """Return one weight vector a row."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(rows)]


def uniforms(seed: int, count: int) -> list[float]:
    return np.random.Generator(np.random.PCG64(seed)).random(count).tolist()


def prefix_reward(row: int, tokens: tuple[int, ...]) -> float:
    """Return a reward with ties: how often the row's favourite token occurs, minus repetitions."""
    return tokens.count((3 * row + 1) % VOCABULARY) - 0.5 * (len(tokens) - len(set(tokens)))


def check(fast: Decoded, slow: SlowText) -> None:
    assert fast.ids == slow.tokens
    assert fast.ended == slow.ended


@pytest.mark.parametrize("kind", ["policy_state", "own_backbone", "prefix"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=12)
@given(data=st.data())
def test_guided_tokens_are_those_of_the_slow_loop(architecture: str, kind: str, data: st.DataObject) -> None:
    policy = tiny_backbone(architecture)
    prompts = data.draw(PROMPTS, label="prompts")
    strength = data.draw(WEIGHTS, label="strength")
    k = data.draw(st.sampled_from([1, 2, 5, 10, VOCABULARY, VOCABULARY + 9]), label="k")
    end = data.draw(ENDS, label="end")
    stops = data.draw(st.sets(st.integers(0, VOCABULARY - 1), max_size=2), label="stop") - end
    longest = data.draw(st.integers(1, 7), label="longest")
    shortest = data.draw(st.integers(0, longest), label="shortest")
    stop = StopRule(tuple(end), longest, shortest, tuple(stops))
    draws = data.draw(st.booleans(), label="draws")
    decoder: Any = ArgsStochastic(strength, k, 0.7) if draws else ArgsGreedy(strength, k)
    seeds = [data.draw(st.integers(0, 2**63 - 1)) for _ in prompts] if draws else []
    states = users(len(prompts), policy.width)
    reward_prompts = [[7, *prompt[-5:]] for prompt in prompts]
    rewarder = tiny_backbone("llama" if architecture != "llama" else "mistral", seed=1)
    ahead = data.draw(AHEAD, label="ahead")
    guide: Guide
    if kind == "policy_state":
        guide = PolicyStateGuide(DotHead(), states, SCALE)  # type: ignore[arg-type]
    elif kind == "own_backbone":
        room = longest + min(k, VOCABULARY) * data.draw(st.sampled_from([1, 3, 8]), label="room")
        guide = BackboneGuide(rewarder, reward_prompts, DotHead(), states, SCALE, room)  # type: ignore[arg-type]
    else:
        guide = PrefixGuide(prefix_reward, len(prompts))
    fast = run(policy, prompts, decoder, stop, guide, seeds, ahead)
    for row, prompt in enumerate(prompts):
        if kind == "policy_state":
            reward = model_reward(policy.model, prompt, states[row], SCALE)
        elif kind == "own_backbone":
            reward = model_reward(rewarder.model, reward_prompts[row], states[row], SCALE)
        else:
            reward = lambda tokens, row=row: prefix_reward(row, tuple(tokens))  # noqa: E731
        slow = slow_decode(
            policy.model, prompt, k=k, strength=strength, reward=reward, end=end, stop=stops, shortest=shortest,
            longest=longest, uniforms=uniforms(seeds[row], longest) if draws else None, temperature=0.7,
        )  # fmt: skip
        check(fast[row], slow)
        assert fast[row].reward == pytest.approx(slow.reward, abs=1e-9)
        assert fast[row].changed == slow.changed
        assert len(fast[row].reward_spread) == (fast[row].steps if min(k, VOCABULARY) > 1 else 0)
        assert fast[row].guide_passes <= fast[row].steps
        assert fast[row].drafted == 0 or fast[row].steps <= fast[row].drafted


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=12)
@given(data=st.data())
def test_plain_decoding_is_that_of_the_slow_loop(architecture: str, data: st.DataObject) -> None:
    policy = tiny_backbone(architecture)
    prompts = data.draw(PROMPTS)
    end = data.draw(ENDS)
    longest = data.draw(st.integers(1, 12))
    stop = StopRule(tuple(end), longest, data.draw(st.integers(0, 4)))
    k = data.draw(st.sampled_from([None, 3]))
    for decoder in (Greedy(), Sample(0.8, k)):
        seeds = list(range(len(prompts))) if decoder.draws else []
        fast = run(policy, prompts, decoder, stop, seeds=seeds)
        for row, prompt in enumerate(prompts):
            slow = slow_decode(
                policy.model, prompt, k=k, strength=0.0, reward=None, end=end, stop=set(),
                shortest=stop.min_new_tokens, longest=longest, temperature=0.8,
                uniforms=uniforms(row, longest) if decoder.draws else None,
            )  # fmt: skip
            check(fast[row], slow)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=10)
@given(prompts=PROMPTS, end=ENDS, longest=st.integers(1, 20), data=st.data())
def test_greedy_is_transformers_generate(
    architecture: str, prompts: list[list[int]], end: set[int], longest: int, data: st.DataObject
) -> None:
    policy = tiny_backbone(architecture)
    shortest = data.draw(st.integers(0, longest))
    fast = run(policy, prompts, Greedy(), StopRule(tuple(end), longest, shortest))
    for done, prompt in zip(fast, prompts, strict=True):
        config = GenerationConfig(
            do_sample=False, max_new_tokens=longest, min_new_tokens=shortest, eos_token_id=sorted(end), pad_token_id=0
        )
        ids = torch.tensor([prompt])
        full = policy.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        tokens = full[0, len(prompt) :].tolist()
        assert done.ids == [token for token in tokens if token not in end]
        assert done.ended == (tokens[-1] in end)


PROMPT_SET = [[1, 2, 3], [(7 * i + 2) % 29 for i in range(43)], [28], [5, 4, 3, 2, 1, 0, 9], [8, 8]]
STOP = StopRule((0, 3, 11, 17, 20), 10)


@cache
def guided_alone(row: int, decoder: Decoder, architecture: str) -> tuple[int, ...]:
    policy = tiny_backbone(architecture)
    guide = PolicyStateGuide(DotHead(), [users(5, policy.width)[row]], SCALE)  # type: ignore[arg-type]
    return tuple(run(policy, [PROMPT_SET[row]], decoder, STOP, guide, [100 + row] if decoder.draws else [])[0].ids)


@pytest.mark.parametrize("decoder", [ArgsGreedy(2.0, 5), ArgsStochastic(2.0, 5), ArgsStochastic(0.5, 29)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=12)
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_a_rows_tokens_do_not_depend_on_its_batch(architecture: str, decoder: Decoder, rows: list[int]) -> None:
    """I4: alone, in a batch, in another order, twice in one batch."""
    policy = tiny_backbone(architecture)
    states = [users(5, policy.width)[row] for row in rows]
    guide = PolicyStateGuide(DotHead(), states, SCALE)  # type: ignore[arg-type]
    seeds = [100 + row for row in rows] if decoder.draws else []
    batch = run(policy, [PROMPT_SET[row] for row in rows], decoder, STOP, guide, seeds)
    assert [tuple(done.ids) for done in batch] == [guided_alone(row, decoder, architecture) for row in rows]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_without_packing_the_tokens_are_the_same(architecture: str) -> None:
    """I4: cached and packed against uncached rows."""
    policy = tiny_backbone(architecture)
    states = users(5, policy.width)
    for decoder, seeds in ((ArgsGreedy(2.0, 4), []), (ArgsStochastic(2.0, 4), [1, 2, 3, 4, 5])):
        results = []
        for backbone in (policy, without_packing(policy)):
            own = PolicyStateGuide(DotHead(), states, SCALE)  # type: ignore[arg-type]
            other = BackboneGuide(backbone, PROMPT_SET, DotHead(), states, SCALE, 20)  # type: ignore[arg-type]
            results += [[d.ids for d in run(backbone, PROMPT_SET, decoder, STOP, g, seeds)] for g in (own, other)]
        assert results[0] == results[1] == results[2] == results[3]
        assert len({len(ids) for ids in results[0]}) > 1  # rows end at different steps


def offset_guide(states: list[torch.Tensor], width: int) -> Guide:
    """Return a guide whose rewards carry an offset that depends on the prefix only."""

    class Offset(PolicyStateGuide):
        def __init__(self) -> None:
            super().__init__(DotHead(), states, SCALE)  # type: ignore[arg-type]
            self.steps = 0

        def start(self, policy_states: torch.Tensor) -> torch.Tensor:
            return super().start(policy_states) + 17.0

        def candidates(self, tokens: torch.Tensor, policy_states: torch.Tensor | None) -> torch.Tensor:
            return super().candidates(tokens, policy_states) + 17.0

    return Offset()


@pytest.mark.parametrize("decoder", [ArgsGreedy(2.0, 6), ArgsStochastic(2.0, 6)])
def test_an_offset_of_all_rewards_changes_nothing(decoder: Decoder) -> None:
    """I1. End candidates carry the reward of the prefix they close, so the offset reaches them too."""
    policy = tiny_backbone()
    states = users(5, policy.width)
    seeds = [9, 8, 7, 6, 5] if decoder.draws else []
    plain = run(policy, PROMPT_SET, decoder, STOP, PolicyStateGuide(DotHead(), states, SCALE), seeds)  # type: ignore[arg-type]
    moved = run(policy, PROMPT_SET, decoder, STOP, offset_guide(states, policy.width), seeds)
    assert [d.ids for d in plain] == [d.ids for d in moved]


@pytest.mark.parametrize("kind", ["policy_state", "own_backbone"])
def test_without_weight_or_choice_guidance_is_the_policy(kind: str) -> None:
    """I3: λ = 0 is the policy, greedy and sampled; k = 1 is greedy whatever λ."""
    policy = tiny_backbone("gemma3")
    states = users(5, policy.width)

    def guide() -> Guide:
        if kind == "policy_state":
            return PolicyStateGuide(DotHead(), states, SCALE)  # type: ignore[arg-type]
        return BackboneGuide(tiny_backbone("llama", seed=1), PROMPT_SET, DotHead(), states, SCALE, 40)  # type: ignore[arg-type]

    seeds = [1, 2, 3, 4, 5]
    greedy = [d.ids for d in run(policy, PROMPT_SET, Greedy(), STOP)]
    assert [d.ids for d in run(policy, PROMPT_SET, ArgsGreedy(0.0, 10), STOP, guide())] == greedy
    assert [d.ids for d in run(policy, PROMPT_SET, ArgsGreedy(50.0, 1), STOP, guide())] == greedy
    assert [d.ids for d in run(policy, PROMPT_SET, ArgsStochastic(50.0, 1), STOP, guide(), seeds)] == greedy
    sampled = [d.ids for d in run(policy, PROMPT_SET, Sample(top_k=VOCABULARY), STOP, seeds=seeds)]
    guided = run(policy, PROMPT_SET, ArgsStochastic(0.0, VOCABULARY), STOP, guide(), seeds)
    assert [d.ids for d in guided] == sampled
    assert all(sum(d.reward_spread) == 0 for d in guided)


def test_logits_and_log_probabilities_rank_alike() -> None:
    """I2: a row's logits differ from its log-probabilities by a constant, and so do the guided scores."""
    policy = tiny_backbone("gemma3")
    state = last_state(policy.model, PROMPT_SET[1])
    rewards = torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64)
    raw, normed = policy.logits(state) + 3 * rewards, policy.log_probs(state) + 3 * rewards
    assert raw.argsort().tolist() == normed.argsort().tolist()
    torch.testing.assert_close(torch.softmax(raw, 0), torch.softmax(normed, 0), rtol=0, atol=1e-14)


# The toy vocabulary {a, b, E}: π = (.5, .3, .2) at every step, r(prefix) = #a - #b.

A, B, E = 0, 1, 2
TOY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


class ToyBackbone:
    """A policy that says a, b, E with odds 5 : 3 : 2, whatever came before."""

    packs = False
    num_weights = 1

    def hidden_unpacked(self, paths: list[list[int]]) -> list[torch.Tensor]:
        return [torch.zeros(len(path), 1, dtype=torch.float64) for path in paths]

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        return TOY.log().expand(*hidden.shape[:-1], 3).clone()


def toy_reward(row: int, tokens: tuple[int, ...]) -> float:
    return float(tokens.count(A) - tokens.count(B))


def toy(decoder: Decoder, longest: int, rows: int = 1, seeds: list[int] = []) -> list[Decoded]:  # noqa: B006
    guide = PrefixGuide(toy_reward, rows)
    return run(ToyBackbone(), [[0]] * rows, decoder, StopRule((E,), longest), guide, seeds)  # type: ignore[arg-type]


@pytest.mark.parametrize(("strength", "token"), [(0.0, A), (-1.0, B), (1.0, A)])
def test_toy_choices(strength: float, token: int) -> None:
    """λ = -1: a -.693 - 1 = -1.693, b -1.204 + 1 = -.204, E -1.609. λ = 1: a .307, b -2.204, E -1.609."""
    done = toy(ArgsGreedy(strength, 3), 4)[0]
    assert done.ids == [token] * 4
    assert not done.ended
    assert done.changed == (4 if token == B else 0)
    assert done.reward == (4 if token == A else -4)


def test_toy_end_takes_the_reward_of_the_prefix_it_closes() -> None:
    """λ = -4 and b out of reach (k = 1, 2 with b closed): E scores log .2 - 4 · 0, a scores log .5 - 4."""
    guide = PrefixGuide(lambda row, tokens: float(tokens.count(A) + tokens.count(B)), 1)
    done = run(ToyBackbone(), [[0]], ArgsGreedy(-4.0, 3), StopRule((E,), 5), guide)[0]  # type: ignore[arg-type]
    assert (done.ids, done.ended, done.reward) == ([], True, 0.0)
    guide = PrefixGuide(lambda row, tokens: float(tokens.count(A) + tokens.count(B)), 1)
    late = run(ToyBackbone(), [[0]], ArgsGreedy(-4.0, 3), StopRule((E,), 5, 2), guide)[0]  # type: ignore[arg-type]
    assert (late.ids, late.ended, late.reward) == ([A, A], True, 2.0)


@pytest.mark.parametrize("strength", [0.0, 1.0, -2.0])
def test_toy_draws_follow_the_tilted_distribution(strength: float) -> None:
    """P(v) = π(v) exp(λ r(v)) / Z at τ = 1 and k = V; 10,000 draws, χ² with two degrees of freedom, p > 1e-3."""
    done = toy(ArgsStochastic(strength, 3), 1, 10_000, list(range(10_000)))
    counts = np.array([sum(d.ids == [A] for d in done), sum(d.ids == [B] for d in done), sum(d.ended for d in done)])
    tilted = TOY.numpy() * np.exp(strength * np.array([1.0, -1.0, 0.0]))
    assert counts.sum() == 10_000
    assert stats.chisquare(counts, 10_000 * tilted / tilted.sum()).pvalue > 1e-3


def test_toy_spreads_are_standard_deviations_over_the_candidates() -> None:
    done = toy(ArgsGreedy(2.0, 3), 1)[0]
    assert done.reward_spread == [pytest.approx(np.std([2.0, -2.0, 0.0]))]
    assert done.fluency_spread == [pytest.approx(np.std(np.log(TOY.numpy())))]
    forbidden = run(ToyBackbone(), [[0]], ArgsGreedy(2.0, 3), StopRule((E,), 1, 1), PrefixGuide(toy_reward, 1))[0]  # type: ignore[arg-type]
    assert forbidden.reward_spread == [pytest.approx(np.std([2.0, -2.0]))]
    assert forbidden.fluency_spread == [pytest.approx(np.std(np.log([0.5, 0.3])))]


def test_near_ties_are_counted() -> None:
    """log .5 + λ·1 = log .3 + λ·(-1) at λ = log(.3 / .5) / 2: off by 1e-4 counts, off by 1e-3 does not."""
    even = float(np.log(0.3 / 0.5) / 2)
    assert toy(ArgsGreedy(even + 2.5e-5, 3), 1)[0].near_ties == 1
    assert toy(ArgsGreedy(even + 5e-4, 3), 1)[0].near_ties == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_reward_that_is_no_number_is_refused_by_row(bad: float, strength: float) -> None:
    def reward(row: int, tokens: tuple[int, ...]) -> float:
        return bad if row == 1 and len(tokens) == 2 else 0.0

    with pytest.raises(ModelError, match="row 1"):
        run(ToyBackbone(), [[0]] * 2, ArgsGreedy(strength, 2), StopRule((E,), 5, 5), PrefixGuide(reward, 2))  # type: ignore[arg-type]


def test_a_policy_that_gives_no_number_is_refused_by_row() -> None:
    class Broken(ToyBackbone):
        def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
            out = super().log_probs(hidden)
            out[-1] = torch.nan
            return out

    for decoder in (Greedy(), Sample()):
        with pytest.raises(ModelError, match="row 1"):
            run(Broken(), [[0]] * 2, decoder, StopRule((E,), 5), seeds=[1, 2] if decoder.draws else [])  # type: ignore[arg-type]


def test_a_closed_token_of_the_lowest_id_is_no_fault() -> None:
    """Without a top_k candidates come by id; that the first is forbidden says nothing about the others."""
    stop = StopRule((A,), 3, 3)
    done = run(ToyBackbone(), [[0]] * 50, Sample(), stop, seeds=list(range(50)))  # type: ignore[arg-type]
    assert {token for row in done for token in row.ids} == {B, E}
    with pytest.raises(ModelError, match="no next token for row 0"):
        run(ToyBackbone(), [[0]], Sample(), StopRule((A, B, E), 3, 1), seeds=[1])  # type: ignore[arg-type]


def test_sampling_follows_the_policy() -> None:
    """10,000 draws against (.5, .3, .2), and at temperature 2 against their square roots; χ², p > 1e-3."""
    for temperature, odds in ((1.0, TOY.numpy()), (2.0, np.sqrt(TOY.numpy()))):
        for top_k in (None, 3):
            done = run(
                ToyBackbone(), [[0]] * 10_000, Sample(temperature, top_k), StopRule((E,), 1), seeds=list(range(10_000))
            )  # type: ignore[arg-type]
            counts = [sum(d.ids == [A] for d in done), sum(d.ids == [B] for d in done), sum(d.ended for d in done)]
            assert stats.chisquare(counts, 10_000 * odds / odds.sum()).pvalue > 1e-3


def test_draws_need_a_seed_a_row() -> None:
    with pytest.raises(ValueError, match="1 seeds for 2 rows"):
        run(ToyBackbone(), [[0]] * 2, Sample(), STOP, seeds=[1])  # type: ignore[arg-type]


def test_the_slow_loop_reads_the_model_right() -> None:
    """The answer key itself: its next-token law is the model's, and it sums to one."""
    log_probs = next_log_probs(tiny_backbone().model, [1, 2, 3])
    assert sum(map(np.exp, log_probs)) == pytest.approx(1.0, abs=1e-12)
