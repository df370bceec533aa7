"""Searches over pieces and rollouts: the tokens of the slow loop, the laws they promise, and their limits."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from peers.slow_decoding import last_state, next_log_probs
from peers.slow_searches import (
    Rules,
    Text,
    slow_best_of_n,
    slow_blockwise,
    slow_cards,
    slow_transfer_q,
)
from rewardgap.backbones.session import TrieSession
from rewardgap.core.errors import ConfigError, ModelError, UnknownNameError
from rewardgap.core.seeds import child_seed
from rewardgap.core.store import content_hash
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.blockwise import Blockwise
from rewardgap.decoding.cards import Cards
from rewardgap.decoding.catalog import DECODERS, build_decoder
from rewardgap.decoding.loop import Decoded, StopRule, decode
from rewardgap.decoding.plain import Sample
from rewardgap.decoding.pools import PoolCache
from rewardgap.decoding.sampling import nucleus
from rewardgap.decoding.transfer_q import TransferQ
from rewardgap.rewards.guide import BackboneGuide, Guide, PolicyStateGuide, PrefixGuide
from rewardgap.rewards.vocabulary_guide import Stream, VocabularyGuide
from standins import DotHead, tiny_backbone, without_packing

SCALE = 3.0
VOCABULARY = 29
PROMPTS = [[1, 2, 3], [(7 * i + 2) % 29 for i in range(21)], [28], [5, 4, 3, 2]]
KINDS = ("policy_state", "policy_state_ends", "own_backbone", "vocabulary", "prefix")
SCHEMES = ("best_of_n", "blockwise", "cards", "transfer_q")
WEIGHTS = [torch.randn(24, generator=torch.Generator().manual_seed(row), dtype=torch.float64) for row in range(4)]
COEFFICIENTS = torch.tensor([[1.0, -0.5], [0.3, 0.7], [-1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
SEEDS = [11, 2**62 + 5, 13, 0]


class EndsGuide(PolicyStateGuide):
    """Reads the policy's states at end tokens too."""

    rewards_ends = True


def networks() -> tuple[Any, Any]:
    return tiny_backbone("mistral", seed=1), tiny_backbone("gemma3", seed=2)


def guide_of(kind: str, rows: list[int], room: int = 300) -> Guide:
    prompts, weights = [PROMPTS[row] for row in rows], [WEIGHTS[row] for row in rows]
    first, second = networks()
    if kind == "policy_state":
        return PolicyStateGuide(DotHead(), weights, SCALE)  # type: ignore[arg-type]
    if kind == "policy_state_ends":
        return EndsGuide(DotHead(), weights, SCALE)  # type: ignore[arg-type]
    if kind == "own_backbone":
        return BackboneGuide(first, [[7, *ids] for ids in prompts], DotHead(), weights, SCALE, room)  # type: ignore[arg-type]
    if kind == "vocabulary":
        return VocabularyGuide([Stream(first, prompts), Stream(second, prompts)], COEFFICIENTS[rows], room)
    return PrefixGuide(lambda place, tokens: known(rows[place], tokens), len(rows))


def known(row: int, tokens: tuple[int, ...]) -> float:
    """Return a reward with many ties."""
    return float(sum((token * (row + 2)) % 3 for token in tokens) - len(tokens) // 2)


@cache
def state_reward(architecture: str, seed: int, ids: tuple[int, ...], row: int) -> float:
    return float(last_state(tiny_backbone(architecture, seed=seed).model, list(ids)) @ WEIGHTS[row]) / SCALE


@cache
def token_reward(row: int, tokens: tuple[int, ...]) -> float:
    if not tokens:
        return 0.0
    before = PROMPTS[row] + list(tokens[:-1])
    gained = [next_log_probs(network.model, before)[tokens[-1]] for network in networks()]
    return token_reward(row, tokens[:-1]) + float(torch.tensor(gained, dtype=torch.float64) @ COEFFICIENTS[row])


def reward_of(kind: str, row: int, architecture: str) -> Callable[[list[int]], float]:
    if kind == "prefix":
        return lambda tokens: known(row, tuple(tokens))
    if kind == "vocabulary":
        return lambda tokens: token_reward(row, tuple(tokens))
    if kind == "own_backbone":
        return lambda tokens: state_reward("mistral", 1, (7, *PROMPTS[row], *tokens), row)
    return lambda tokens: state_reward(architecture, 0, (*PROMPTS[row], *tokens), row)


def run(
    decoder: Any,
    stop: StopRule,
    kind: str = "policy_state",
    rows: list[int] | None = None,
    architecture: str = "llama",
    packs: bool = True,
    session: list[TrieSession] | None = None,
) -> list[Decoded]:
    rows = [0, 1, 2, 3] if rows is None else rows
    policy = tiny_backbone(architecture)
    policy = policy if packs else without_packing(policy)
    prompts, room = [PROMPTS[row] for row in rows], stop.max_new_tokens + 1
    room = decoder.room(stop.max_new_tokens) if hasattr(decoder, "room") else room + (decoder.top_k or 1)
    opened = TrieSession(policy, len(rows), max(map(len, prompts)) + room)
    if session is not None:
        session.append(opened)
    guide = None if kind == "none" else guide_of(kind, rows, room)
    return decode(opened, opened.prefill(prompts), decoder, stop, guide=guide, seeds=[SEEDS[row] for row in rows])


def numbers_of(seed: int) -> Callable[[int, int], float]:
    """Return (chain, position) -> number: chain 0 has the row's own, the others a child seed's."""
    drawn: dict[int, list[float]] = {}

    def number(chain: int, at: int) -> float:
        if chain not in drawn:
            own = child_seed(seed, "chain", chain) if chain else seed
            drawn[chain] = np.random.Generator(np.random.PCG64(own)).random(64).tolist()
        return drawn[chain][at]

    return number


def first_numbers(seed: int, purpose: str) -> list[float]:
    return np.random.Generator(np.random.PCG64(child_seed(seed, purpose))).random(400).tolist()


def stop_rules(data: st.DataObject) -> StopRule:
    end = data.draw(st.sets(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5), label="end")
    stops = data.draw(st.sets(st.integers(0, VOCABULARY - 1), max_size=2), label="stop") - end
    longest = data.draw(st.integers(1, 5), label="longest")
    return StopRule(tuple(end), longest, data.draw(st.integers(0, longest), label="shortest"), tuple(stops))


def drawn_decoder(data: st.DataObject, scheme: str) -> Any:
    def pick(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    sampling = {"temperature": pick(1.0, 0.6, 1.7), "top_p": pick(1.0, 0.8)}
    if scheme == "best_of_n":
        extra = {"soft": pick(True, False), "log_prob_weight": pick(0.0, 0.5)}
        return BestOfN(pick(1, 2, 4), pick(1.0, -2.0, 0.0), **sampling, **extra)
    if scheme == "blockwise":
        return Blockwise(pick(1, 2, 3, 9), pick(1, 3), **sampling)
    if scheme == "cards":
        return Cards(
            target=pick(0.0, 1.0, 3.0, -math.inf), entropy=pick(0.5, 2.6, 2.9, math.inf), slack=pick(0.05, 0.7),
            alpha=pick(0.0, 0.5, 1.0), shortest=pick(1, 2), longest=pick(2, 5), tries=pick(1, 2, 5),
            together=pick(1, 2, 4), **sampling,
        )  # fmt: skip
    return TransferQ(pick(1.0, -1.0, 0.0, 3.0), pick(1, 2, 4), pick(0, 1, 3))


def slow(decoder: Any, row: int, reward: Callable[[list[int]], float], stop: StopRule, policy: Any, ends: bool) -> Text:
    rules = Rules(set(stop.end_ids), set(stop.stop_ids), stop.min_new_tokens, stop.max_new_tokens, rewards_ends=ends)
    if not isinstance(decoder, TransferQ):
        rules.temperature, rules.top_p = decoder.temperature, decoder.top_p
    numbers, prompt = numbers_of(SEEDS[row]), PROMPTS[row]
    if isinstance(decoder, BestOfN):
        pick = first_numbers(SEEDS[row], "pick")[0] if decoder.soft else None
        return slow_best_of_n(
            policy, prompt, reward, rules, numbers, n=decoder.n, strength=decoder.guidance_weight,
            log_prob_strength=decoder.log_prob_weight, pick=pick,
        )  # fmt: skip
    if isinstance(decoder, Blockwise):
        return slow_blockwise(policy, prompt, reward, rules, numbers, block=decoder.block, k=decoder.num_blocks)
    if isinstance(decoder, Cards):
        coins = first_numbers(SEEDS[row], "accept")
        return slow_cards(
            policy, prompt, reward, rules, numbers, lambda d: coins[d], target=decoder.target, entropy=decoder.entropy,
            slack=decoder.slack, alpha=decoder.alpha, shortest=decoder.shortest, longest=decoder.longest,
            tries=decoder.tries,
        )  # fmt: skip
    return slow_transfer_q(
        policy, prompt, reward, rules, k=decoder.top_k, strength=decoder.guidance_weight, rollout=decoder.rollout
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(data=st.data())
def test_texts_are_those_of_the_slow_loop(scheme: str, kind: str, data: st.DataObject) -> None:
    architecture = data.draw(st.sampled_from(["llama", "gemma3", "qwen3", "mistral", "qwen2"]), label="architecture")
    stop = stop_rules(data)
    decoder = drawn_decoder(data, scheme)
    rows = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3), label="rows")
    ends = kind in ("policy_state_ends", "vocabulary")
    for row, done in zip(rows, run(decoder, stop, kind, rows, architecture), strict=True):
        reward = reward_of(kind, row, architecture)
        text = slow(decoder, row, reward, stop, tiny_backbone(architecture).model, ends)
        assert done.ids == text.tokens
        assert done.ended == text.ended
        assert done.reward == pytest.approx(text.reward, abs=1e-9)
        assert (done.proposed, done.accepted, done.changed) == (text.proposed, text.accepted, text.changed)


LONG = StopRule((0, 3, 11, 17), 9, 1, (20,))
EVERY = [
    BestOfN(3),
    BestOfN(3, soft=True),
    BestOfN(3, pool_seed=4),
    Blockwise(3, 3),
    Cards(1.0, 2.6, shortest=1, longest=4, tries=4),
    Cards(calibrate=3, shortest=1),
    TransferQ(2.0, 3, 2),
]


@cache
def alone(row: int, number: int, kind: str) -> tuple[int, ...]:
    return tuple(run(EVERY[number], LONG, kind, [row])[0].ids)


@pytest.mark.parametrize("number", range(len(EVERY)))
@pytest.mark.parametrize("kind", ["policy_state", "own_backbone", "vocabulary"])
def test_a_rows_text_does_not_depend_on_its_batch(number: int, kind: str) -> None:
    for rows in ([0, 1, 2, 3], [3, 1, 1, 0]):
        batch = run(EVERY[number], LONG, kind, rows)
        assert [tuple(done.ids) for done in batch] == [alone(row, number, kind) for row in rows]


@pytest.mark.parametrize("decoder", EVERY)
def test_without_packing_the_texts_are_the_same(decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = run(decoder, LONG)
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path))
    assert [done.ids for done in run(decoder, LONG, packs=False)] == [done.ids for done in packed]


@pytest.mark.parametrize("decoder", EVERY)
def test_a_watcher_sees_every_token_of_the_text_in_order(decoder: Any) -> None:
    seen: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    policy = tiny_backbone()
    session = TrieSession(policy, 2, 40 + decoder.room(LONG.max_new_tokens))
    tips = session.prefill(PROMPTS[:2])
    found = decode(
        session, tips, decoder, LONG, guide=guide_of("policy_state", [0, 1]), seeds=[1, 2],
        watch=lambda row, done: seen[row].append(tuple(done.ids)),
    )  # fmt: skip
    for row, done in enumerate(found):
        assert len(seen[row]) == done.steps
        assert [len(ids) for ids in seen[row]] == [min(step + 1, len(done.ids)) for step in range(done.steps)]
        assert seen[row][-1] == tuple(done.ids)


def test_one_sample_is_sampling() -> None:
    """N = 1, K = 1, and acceptance of everything: by a target of -inf and by endless slack."""
    for temperature in (1.0, 0.6):
        plain = [done.ids for done in run(Sample(temperature), LONG, "none")]
        everything = {"entropy": 2.5, "shortest": 1, "temperature": temperature}
        for decoder in (
            BestOfN(1, temperature=temperature),
            Blockwise(2, 1, temperature=temperature),
            Cards(-math.inf, **everything),
            Cards(50.0, slack=math.inf, **everything),
        ):
            found = run(decoder, LONG)
            assert [done.ids for done in found] == plain
            assert all(done.accepted == done.proposed for done in found)


def test_of_rejected_segments_with_equal_rewards_the_first_is_kept() -> None:
    session = TrieSession(tiny_backbone(), 4, 200)
    tips = session.prefill(PROMPTS)
    decoder = Cards(1e9, math.inf, tries=5, together=2)
    found = decode(session, tips, decoder, LONG, guide=PrefixGuide(lambda row, tokens: 0.0, 4), seeds=SEEDS)
    assert [done.ids for done in found] == [done.ids for done in run(Sample(), LONG, "none")]
    assert all((done.proposed, done.accepted) == (5, 0) for done in found)
    assert any(done.distinct > 1 for done in found)


@pytest.mark.parametrize("kind", ["policy_state", "own_backbone", "vocabulary"])
def test_blocks_as_long_as_the_text_are_best_of_k(kind: str) -> None:
    blocks = run(Blockwise(9, 4), LONG, kind)
    whole = run(BestOfN(4), LONG, kind)
    assert [(done.ids, done.reward) for done in blocks] == [(done.ids, done.reward) for done in whole]


def test_larger_pools_begin_with_smaller_ones_and_reward_no_less() -> None:
    rewards = [[done.reward for done in run(BestOfN(n), LONG)] for n in (1, 2, 4, 8, 16)]
    for smaller, larger in itertools.pairwise(np.array(rewards)):
        assert (larger >= smaller - 1e-9).all()
    assert (np.array(rewards[-1]) > np.array(rewards[0])).any()
    worst = run(BestOfN(16, -1.0), LONG)
    assert all(low.reward < high for low, high in zip(worst, rewards[-1], strict=True))


@pytest.mark.parametrize("kind", ["policy_state", "own_backbone", "vocabulary", "prefix"])
@pytest.mark.parametrize("k", [1, 4, VOCABULARY])
def test_without_a_rollout_transfer_q_is_args(kind: str, k: int) -> None:
    for weight in (0.0, 1.5, -1.0):
        for found, args in zip(
            run(TransferQ(weight, k, 0), LONG, kind), run(ArgsGreedy(weight, k), LONG, kind), strict=True
        ):
            assert (found.ids, found.ended, found.alternatives, found.near_ties) == (
                args.ids, args.ended, args.alternatives, args.near_ties
            )  # fmt: skip
            assert found.reward == pytest.approx(args.reward, abs=1e-9)
            np.testing.assert_allclose(found.reward_spread, args.reward_spread, rtol=0, atol=1e-9)


@pytest.mark.parametrize("together", [1, 2, 20])
def test_how_many_segments_are_drawn_in_a_pass_changes_nothing(together: int) -> None:
    for target in (0.5, 4.0):
        rule = {"entropy": 2.8, "shortest": 1, "longest": 4, "tries": 6, "slack": 0.1}
        plain, found = run(Cards(target, **rule), LONG), run(Cards(target, **rule, together=together), LONG)
        assert [(d.ids, d.proposed, d.accepted, d.distinct) for d in found] == [
            (d.ids, d.proposed, d.accepted, d.distinct) for d in plain
        ]
    assert any(done.accepted < done.proposed for done in found)


def test_calibration_reads_what_is_missing_from_samples_of_the_prompt() -> None:
    """The thresholds are the quantiles of the samples' rewards and entropies, by the slow loop."""
    policy, row = tiny_backbone(), 1
    reward, numbers = reward_of("policy_state", row, "llama"), numbers_of(child_seed(SEEDS[row], "calibrate"))
    rewards, entropies = [], []
    for chain in range(5):
        tokens: list[int] = []
        while len(tokens) < LONG.max_new_tokens and not (tokens and tokens[-1] in LONG.closers):
            log_probs = next_log_probs(policy.model, PROMPTS[row] + tokens)
            entropies.append(-sum(math.exp(p) * p for p in log_probs))
            shares = np.exp([-np.inf if not tokens and t in LONG.closers else p for t, p in enumerate(log_probs)])
            mass = np.cumsum(shares) / shares.sum()
            tokens.append(int(np.searchsorted(mass, numbers(chain, len(tokens)), side="right")))
        rewards.append(reward([t for t in tokens if t not in LONG.end_ids]))
    target, entropy = float(np.quantile(rewards, 0.8)), float(np.quantile(entropies, 0.7))
    given = run(Cards(target, entropy, shortest=1, slack=0.05), LONG, rows=[row])
    for partly in ({}, {"target": target}, {"entropy": entropy}):
        found = run(Cards(**partly, calibrate=5, shortest=1, slack=0.05), LONG, rows=[row])
        assert [(d.ids, d.proposed) for d in found] == [(d.ids, d.proposed) for d in given]


def test_equal_beginnings_are_read_once() -> None:
    """Eight chains at a temperature near 0 are one chain: prompt and text are all that the network reads."""
    opened: list[TrieSession] = []
    stop = StopRule((), 6)
    done = run(BestOfN(8, temperature=1e-3), stop, rows=[1], session=opened)[0]
    assert (done.distinct, done.proposed) == (1, 8)
    assert opened[0].tokens == len(PROMPTS[1]) + 6


# Pools that several reward models choose from.


def test_a_pool_is_drawn_once_for_all_users_and_reward_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path))
    first = run(BestOfN(4, pool_seed=7), LONG, "prefix", [0, 0, 1])
    assert [done.drafted > 0 for done in first] == [True, False, True]
    for kind in ("policy_state", "own_backbone", "vocabulary"):
        assert [done.drafted for done in run(BestOfN(4, pool_seed=7), LONG, kind, [0, 1])] == [0, 0]
    # What is chosen is what the slow loop chooses from the texts of the prompt's own seed.
    for row in (0, 1):
        own = numbers_of(child_seed(7, "pool", content_hash(PROMPTS[row])))
        rules = Rules(set(LONG.end_ids), set(LONG.stop_ids), LONG.min_new_tokens, LONG.max_new_tokens)
        for kind in ("policy_state", "own_backbone"):
            reward = reward_of(kind, row, "llama")
            text = slow_best_of_n(tiny_backbone().model, PROMPTS[row], reward, rules, own, n=4)
            found = run(BestOfN(4, pool_seed=7), LONG, kind, [row])[0]
            assert (found.ids, found.reward) == (text.tokens, pytest.approx(text.reward, abs=1e-9))


def test_a_pool_grows_and_a_damaged_one_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path))
    few = run(BestOfN(2, pool_seed=0), LONG)
    path = min(tmp_path.rglob("*.safetensors"))
    more = run(BestOfN(6, pool_seed=0), LONG)
    assert all(done.drafted > 0 for done in more)
    assert [done.drafted for done in run(BestOfN(2, pool_seed=0), LONG)] == [0] * 4
    path.write_bytes(b"no pool")
    again = run(BestOfN(6, pool_seed=0), LONG)
    assert sorted(done.drafted > 0 for done in again) == [False, False, False, True]
    assert [done.ids for done in again] == [done.ids for done in more]
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "other"))
    whole = run(BestOfN(6, pool_seed=0), LONG)
    assert [(d.ids, d.reward) for d in whole] == [(d.ids, d.reward) for d in more]
    assert [done.ids for done in run(BestOfN(2, pool_seed=0), LONG)] == [done.ids for done in few]


def test_a_pools_name_holds_all_that_its_texts_depend_on() -> None:
    base = ("weights", [1, 2], StopRule((0,), 5), 1.0, 1.0, 0)
    changed = [
        ("other", [1, 2], StopRule((0,), 5), 1.0, 1.0, 0),
        ("weights", [1, 3], StopRule((0,), 5), 1.0, 1.0, 0),
        ("weights", [1, 2], StopRule((1,), 5), 1.0, 1.0, 0),
        ("weights", [1, 2], StopRule((0,), 6), 1.0, 1.0, 0),
        ("weights", [1, 2], StopRule((0,), 5, 1), 1.0, 1.0, 0),
        ("weights", [1, 2], StopRule((0,), 5, 0, (3,)), 1.0, 1.0, 0),
        ("weights", [1, 2], StopRule((0,), 5), 0.9, 1.0, 0),
        ("weights", [1, 2], StopRule((0,), 5), 1.0, 0.9, 0),
        ("weights", [1, 2], StopRule((0,), 5), 1.0, 1.0, 1),
    ]
    names = [PoolCache.key(*parts) for parts in (base, *changed)]
    assert len(set(names)) == len(names)
    assert PoolCache.key(*base) == names[0]


# The toy vocabulary {a, b, E}: π = (.5, .3, .2) at every step, r(prefix) = #a - #b, texts of at most two tokens.

A, B, E = 0, 1, 2
TOY = (0.5, 0.3, 0.2)
LAW = {(E,): 0.2} | {(x, y): TOY[x] * TOY[y] for x in (A, B) for y in (A, B, E)}
DRAWS = 1500


class ToyPolicy:
    packs = False
    num_weights = 1
    fingerprint = "toy"

    def hidden_unpacked(self, paths: list[list[int]]) -> list[torch.Tensor]:
        return [torch.zeros(len(path), 1, dtype=torch.float64) for path in paths]

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tensor(TOY, dtype=torch.float64).log().expand(*hidden.shape[:-1], 3).clone()

    def of_rows(self, rows: list[int]) -> ToyPolicy:
        return self


def toy_reward(tokens: tuple[int, ...]) -> float:
    return float(tokens.count(A) - tokens.count(B))


def counted(decoder: Any, rows: int = DRAWS) -> Counter[tuple[int, ...]]:
    session = TrieSession(ToyPolicy(), rows, 1 + decoder.room(2))  # type: ignore[arg-type]
    guide = PrefixGuide(lambda row, tokens: toy_reward(tokens), rows)
    tips = session.prefill([[0]] * rows)
    found = decode(session, tips, decoder, StopRule((E,), 2), guide=guide, seeds=list(range(rows)))
    return Counter((*done.ids, E) if done.ended else tuple(done.ids) for done in found)


def agrees(decoder: Any, law: dict[tuple[int, ...], float]) -> None:
    counts = counted(decoder)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    assert set(counts) <= {text for text, share in law.items() if share > 0}
    texts = [text for text, share in law.items() if share > 0]
    found = stats.chisquare([counts[t] for t in texts], [DRAWS * law[t] for t in texts])
    assert found.pvalue > 1e-3


def chosen_law(n: int, soft: bool, strength: float = 1.0, fluency: float = 0.0) -> dict[tuple[int, ...], float]:
    """Return the law of best-of-N by adding up every N-tuple of texts."""
    law: dict[tuple[int, ...], float] = defaultdict(float)
    for texts in itertools.product(LAW, repeat=n):
        share = math.prod(LAW[text] for text in texts)
        scores = np.array([strength * toy_reward(text) + fluency * math.log(LAW[text]) for text in texts])
        if soft:
            for text, part in zip(texts, np.exp(scores) / np.exp(scores).sum(), strict=True):
                law[text] += share * part
        else:
            law[texts[int(scores.argmax())]] += share
    return dict(law)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_best_of_n_follows_its_law(n: int, soft: bool) -> None:
    agrees(BestOfN(n, soft=soft), chosen_law(n, soft))


def test_log_probabilities_count_as_much_as_their_weight() -> None:
    for soft in (True, False):
        decoder = BestOfN(2, 0.5, soft=soft, log_prob_weight=-0.9)
        agrees(decoder, chosen_law(2, soft, 0.5, -0.9))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_divergence_of_best_of_n_is_within_its_bound(n: int) -> None:
    law = chosen_law(n, soft=False)
    divergence = sum(share * math.log(share / LAW[text]) for text, share in law.items() if share)
    assert divergence <= BestOfN(n).kl_bound + 1e-12
    assert divergence > 0.5 * BestOfN(n).kl_bound - 1e-12


def test_blocks_follow_their_law() -> None:
    """M = 1, K = 2: the better of two first tokens, then of two second ones."""

    def step(before: tuple[int, ...]) -> dict[tuple[int, ...], float]:
        law: dict[tuple[int, ...], float] = defaultdict(float)
        for pair in itertools.product((A, B, E), repeat=2):
            texts = [(*before, token) for token in pair]
            best = texts[int(np.argmax([toy_reward(text) for text in texts]))]
            law[best] += TOY[pair[0]] * TOY[pair[1]]
        return law

    law: dict[tuple[int, ...], float] = defaultdict(float)
    for first, share in step(()).items():
        if first == (E,):
            law[first] += share
        else:
            for text, part in step(first).items():
                law[text] += share * part
    agrees(Blockwise(1, 2), dict(law))


def kept_law(decoder: Cards, proposals: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Return the law of one segment: the first that is accepted, else the best of all tries, the first of equal ones."""
    law: dict[tuple[int, ...], float] = defaultdict(float)
    chance = {text: decoder.accepts(toy_reward(text), len(text), decoder.target, 0.0, 2) for text in proposals}
    for texts in itertools.product(proposals, repeat=decoder.tries):
        share, rejected = math.prod(proposals[text] for text in texts), 1.0
        for text in texts:
            law[text] += share * rejected * chance[text]
            rejected *= 1 - chance[text]
        law[max(texts, key=toy_reward)] += share * rejected
    return law


@pytest.mark.parametrize(("tries", "alpha"), [(1, 0.5), (3, 0.0)])
def test_whole_segments_are_rejection_sampling_of_texts(tries: int, alpha: float) -> None:
    """h = inf and segments as long as the text; with endless tries it would be π · min(1, exp((r - τ) / slack)) / Z."""
    decoder = Cards(1.5, math.inf, slack=0.8, alpha=alpha, tries=tries, together=2)
    agrees(decoder, dict(kept_law(decoder, LAW)))


def test_many_tries_are_rejection_sampling_without_an_end() -> None:
    decoder = Cards(0.5, math.inf, slack=1.0, tries=200)
    wanted = {t: p * decoder.accepts(toy_reward(t), len(t), 0.5, 0.0, 2) for t, p in LAW.items()}
    agrees(decoder, {text: share / sum(wanted.values()) for text, share in wanted.items()})


def test_segments_of_one_token_follow_their_law() -> None:
    """h = 0: every next token is too uncertain, so each token is a segment; rejected ones leave no trace."""
    decoder = Cards(1.0, 0.0, slack=0.6, shortest=1, tries=2)
    law: dict[tuple[int, ...], float] = defaultdict(float)
    for first, share in kept_law(decoder, {(token,): TOY[token] for token in (A, B, E)}).items():
        if first == (E,):
            law[first] += share
        else:
            for text, part in kept_law(decoder, {(*first, token): TOY[token] for token in (A, B, E)}).items():
                law[text] += share * part
    agrees(decoder, dict(law))


def test_the_threshold_rises_from_the_prompts_own_reward_to_the_target() -> None:
    rule = Cards(3.0, 1.0, slack=0.5, alpha=0.25)
    for length, threshold in ((0, 0.75 * -1.0 + 0.25 * 3.0), (10, 3.0), (5, 1.5)):
        assert rule.accepts(threshold + 1e-9, length, 3.0, -1.0, 10) == 1.0
        assert rule.accepts(threshold - 0.5, length, 3.0, -1.0, 10) == pytest.approx(math.exp(-1), abs=1e-12)


def test_transfer_q_sees_what_lies_behind_a_token() -> None:
    """Behind a the policy goes on with a: Q(a) = 2, Q(b) = 0, Q(E) = 0; with r = 1 for "b a" alone, b is worth it."""

    def text(value: Callable[[tuple[int, ...]], float], rollout: int, longest: int = 2) -> Decoded:
        session = TrieSession(ToyPolicy(), 1, 20)  # type: ignore[arg-type]
        guide = PrefixGuide(lambda row, tokens: value(tokens), 1)
        decoder = TransferQ(2.0, 3, rollout)
        return decode(session, session.prefill([[0]]), decoder, StopRule((E,), longest), guide=guide)[0]

    def hidden(tokens: tuple[int, ...]) -> float:
        return float(tokens == (B, A))

    assert text(toy_reward, 1).ids == [A, A]
    assert text(hidden, 0).ids == [A, A]
    assert text(hidden, 1).ids == [B, A]
    # An end token has the reward of the prefix it closes, 5, not that of the rollout behind it, 1; a further a has 2.
    done = text(lambda tokens: {(B,): 5.0, (B, A): 1.0, (B, A, A): 2.0}.get(tokens, 0.0), 1, 4)
    assert (done.ids, done.ended, done.reward) == ([B], True, 5.0)


@settings(max_examples=60)
@given(
    logits=st.lists(st.sampled_from([0.0, 0.3, 1.0, 1.0, 2.5, -3.0]), min_size=1, max_size=8),
    top_p=st.sampled_from([1e-9, 0.2, 0.55, 0.83, 0.999, 1.0]),
    temperature=st.sampled_from([0.4, 1.0, 2.0]),
)
def test_the_nucleus_is_the_shortest_list_that_holds_the_mass(
    logits: list[float], top_p: float, temperature: float
) -> None:
    log_probs = torch.log_softmax(torch.tensor([logits], dtype=torch.float64), -1)
    kept = [i for i, value in enumerate(nucleus(log_probs, top_p, temperature)[0].tolist()) if value > -math.inf]
    shares = torch.softmax(log_probs[0] / temperature, 0).tolist()
    order = sorted(range(len(logits)), key=lambda i: (-shares[i], i))
    assert sorted(order[: len(kept)]) == kept
    assert sum(shares[i] for i in kept) >= top_p - 1e-12
    assert sum(shares[i] for i in order[: len(kept) - 1]) < top_p


def test_rewards_that_are_no_number_name_the_row() -> None:
    for decoder in (BestOfN(2), Blockwise(2, 2), Cards(1.0, 1.0), TransferQ(1.0, 2, 1)):
        session = TrieSession(tiny_backbone(), 2, 40 + decoder.room(5))
        guide = PrefixGuide(lambda row, tokens: math.nan if row == 1 and tokens else 0.0, 2)
        tips = session.prefill(PROMPTS[:2])
        with pytest.raises(ModelError, match="row 1"):
            decode(session, tips, decoder, StopRule((), 5), guide=guide, seeds=[1, 2])
    with pytest.raises(ModelError, match="no next token for row 0"):
        run(BestOfN(2), StopRule(tuple(range(VOCABULARY)), 3, 1))


@pytest.mark.parametrize("decoder", EVERY)
def test_a_search_needs_a_reward(decoder: Any) -> None:
    with pytest.raises(ConfigError, match="chooses by a reward"):
        run(decoder, LONG, "none")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("best_of_n", {"n": 0}, "n must be a whole number of at least 1, got 0"),
        ("best_of_n", {"n": "many"}, "n must be a whole number"),
        ("best_of_n", {"soft": 1}, "soft must be true or false"),
        ("best_of_n", {"top_p": 0}, "top_p must be above 0"),
        ("best_of_n", {"temperature": 0}, "temperature must be above 0"),
        ("best_of_n", {"guidance_weight": math.nan}, "guidance_weight must be a finite number"),
        ("best_of_n", {"pool_seed": -1}, "pool_seed must be a whole number of at least 0"),
        ("best_of_n", {"top_k": 4}, "no option 'top_k'.*Known: n, "),
        ("best_of_n", {"num": 4}, "no option 'num'"),
        ("blockwise", {"block": 0}, "block must be"),
        ("blockwise", {"num_blocks": True}, "num_blocks must be a whole number"),
        ("cards", {}, "needs target and entropy.*calibrate=8"),
        ("cards", {"target": 1.0}, "needs entropy, which nothing gives"),
        ("cards", {"target": 1.0, "entropy": 2.0, "slack": 0}, "slack must be above 0"),
        ("cards", {"target": 1.0, "entropy": 2.0, "alpha": 1.5}, "alpha must be between 0 and 1"),
        ("cards", {"target": math.inf, "entropy": 2.0}, "target must be a finite number"),
        ("cards", {"target": 1.0, "entropy": 2.0, "shortest": 9, "longest": 8}, "shortest is 9, more than longest, 8"),
        ("transfer_q", {"rollout": -1}, "rollout must be a whole number of at least 0"),
        ("transfer_q", {"top_k": 2.5}, "top_k must be a whole number"),
        ("args_greedy", {"top_k": 2.5}, "top_k must be a whole number"),
        ("args_stochastic", {"temperature": "hot"}, "cannot be built from temperature='hot'"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_decoder(name, **options)


def test_every_option_of_a_card_is_taken() -> None:
    needed = {"cards": {"target": 0.0, "entropy": 1.0}}
    for card in DECODERS:
        made = build_decoder(card.name, **needed.get(card.name, {}))
        given = {option: getattr(made, option) for option in card.options}
        assert build_decoder(card.name, **given) == made
        assert card.scores is not hasattr(made, "search")
        assert bool(card.families) is card.guided
    with pytest.raises(UnknownNameError, match="Did you mean 'best_of_n'"):
        build_decoder("best_of")
