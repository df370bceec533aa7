"""Look-ahead: trees of rewards are the rewards of prefixes, the tokens are those of one step at a time, and it pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.slow_decoding import model_reward, next_log_probs
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import build_trie
from rewardgap.core.errors import DataError, ModelError
from rewardgap.decoding import look_ahead
from rewardgap.decoding.args import ArgsGreedy, ArgsStochastic
from rewardgap.decoding.loop import Decoded, LookAhead, StopRule, decode
from rewardgap.rewards.guide import BackboneGuide, Guide, PolicyStateGuide, PrefixGuide
from rewardgap.rewards.vocabulary_guide import Stream, VocabularyGuide
from standins import DotHead, private_copy, tiny_backbone

SCALE, ROOM = 3.0, 400
PROMPTS = [[1, 2, 3], [(7 * i + 2) % 29 for i in range(23)], [28]]
KINDS = ("own_backbone", "vocabulary", "prefix")
WEIGHTS = [torch.randn(24, generator=torch.Generator().manual_seed(row), dtype=torch.float64) for row in range(3)]
COEFFICIENTS = torch.tensor([[1.0, -0.5], [0.3, 0.7], [-1.0, 0.0]], dtype=torch.float64)


def networks():
    return tiny_backbone("mistral", seed=1), tiny_backbone("gemma3", seed=2)


def guide_of(kind: str) -> Guide:
    first, second = networks()
    if kind == "own_backbone":
        return BackboneGuide(first, PROMPTS, DotHead(), WEIGHTS, SCALE, ROOM)  # type: ignore[arg-type]
    if kind == "vocabulary":
        return VocabularyGuide([Stream(first, PROMPTS), Stream(second, PROMPTS)], COEFFICIENTS, ROOM)
    return PrefixGuide(known, len(PROMPTS))


def known(row: int, tokens: tuple[int, ...]) -> float:
    return float(sum((place + 1) * ((token * (row + 2)) % 7) for place, token in enumerate(tokens)))


def reward(kind: str, row: int, tokens: list[int]) -> float:
    """Return the reward of a prefix, from its first token on."""
    if kind == "prefix":
        return known(row, tuple(tokens))
    if kind == "own_backbone":
        return model_reward(networks()[0].model, PROMPTS[row], WEIGHTS[row], SCALE)(tokens)
    total = 0.0
    for network, weight in zip(networks(), COEFFICIENTS[row].tolist(), strict=True):
        for end in range(len(tokens)):
            total += weight * next_log_probs(network.model, PROMPTS[row] + tokens[:end])[tokens[end]]
    return total


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(data=st.data())
def test_rewards_of_trees_and_steps_in_any_order_are_those_of_the_prefixes(kind: str, data: st.DataObject) -> None:
    guide, rows = guide_of(kind), [0, 1, 2]
    paths: list[list[int]] = [[], [], []]
    guide.start(torch.zeros(3, 24, dtype=torch.float64))
    for _ in range(data.draw(st.integers(1, 4), label="moves")):
        if data.draw(st.booleans(), label="tree"):
            texts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=3)
            tries = [build_trie(data.draw(texts)) for _ in rows]
            found = guide.tree(tries, None)
            kept = []
            for place, (row, trie) in enumerate(zip(rows, tries, strict=True)):
                spelled: list[list[int]] = []
                for node, (token, parent) in enumerate(zip(trie.tokens, trie.parents, strict=True)):
                    spelled.append([*(spelled[parent] if parent >= 0 else paths[place]), token])
                    assert float(found[place, node]) == pytest.approx(reward(kind, row, spelled[-1]), abs=1e-9)
                ways = [(), *(path[: end + 1] for path in trie.paths for end in range(len(path)))]
                way = data.draw(st.sampled_from(ways), label="way")
                kept.append(list(way))
                paths[place] = spelled[way[-1]] if way else paths[place]
            guide.commit(kept)
        else:
            tokens = torch.tensor([data.draw(st.lists(st.integers(0, 28), min_size=2, max_size=2)) for _ in rows])
            found = guide.candidates(tokens, None)
            for place, row in enumerate(rows):
                for at, token in enumerate(tokens[place].tolist()):
                    whole = reward(kind, row, [*paths[place], token])
                    assert float(found[place, at]) == pytest.approx(whole, abs=1e-9)
            picks = [data.draw(st.integers(0, 1)) for _ in rows]
            guide.keep(picks, [tokens[place, pick].item() for place, pick in enumerate(picks)])
            paths = [[*path, int(tokens[place, picks[place]])] for place, path in enumerate(paths)]
        stay = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1), label="stay"))
        guide.select(stay)
        rows, paths = [rows[place] for place in stay], [paths[place] for place in stay]


def test_states_of_the_policy_are_read_at_every_node() -> None:
    guide = PolicyStateGuide(DotHead(), WEIGHTS, SCALE)  # type: ignore[arg-type]
    states = torch.randn(3, 4, 24, dtype=torch.float64)
    expected = torch.stack([states[row] @ WEIGHTS[row] for row in range(3)]) / SCALE
    torch.testing.assert_close(guide.tree([build_trie([[1, 2], [3, 4]])] * 3, states), expected)


def written(kind: str, decoder, ahead: LookAhead | None, stop: StopRule) -> list[Decoded]:
    policy = tiny_backbone("llama")
    session = TrieSession(policy, 3, 23 + ROOM)
    seeds = [5, 6, 7] if decoder.draws else []
    tips = session.prefill(PROMPTS)
    return decode(session, tips, decoder, stop, guide=guide_of(kind), seeds=seeds, look_ahead=ahead)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoder", [ArgsGreedy(1.0, 4), ArgsGreedy(-0.2, 29), ArgsStochastic(0.5, 5)])
def test_everything_but_the_passes_is_that_of_one_step_at_a_time(kind: str, decoder) -> None:
    stop = StopRule((0, 3), 12, 2, (11,))
    plain = written(kind, decoder, None, stop)
    assert any(done.alternatives for done in plain)
    for ahead in (1, 2, 5, 12):
        found = written(kind, decoder, LookAhead(fixed=ahead), stop)
        for one, other in zip(plain, found, strict=True):
            assert (one.ids, one.ended, one.steps) == (other.ids, other.ended, other.steps)
            assert (one.alternatives, one.near_ties) == (other.alternatives, other.near_ties)
            np.testing.assert_allclose(one.reward_spread, other.reward_spread, rtol=0, atol=1e-9)
            np.testing.assert_allclose(one.fluency_spread, other.fluency_spread, rtol=0, atol=1e-9)
            assert one.reward == pytest.approx(other.reward, abs=1e-9)
            assert one.guide_passes == one.steps
            fewest = -(-other.steps // ahead)
            assert fewest <= other.guide_passes <= other.steps
            if not decoder.draws:  # a pass is full, or ends at a token that guidance changed or that ends the row
                assert other.guide_passes <= fewest + other.changed


def test_without_a_weight_every_draft_stands() -> None:
    stop = StopRule((), 12)
    for done in written("own_backbone", ArgsGreedy(0.0, 4), LookAhead(fixed=4), stop):
        assert (done.steps, done.guide_passes, done.drafted, done.changed) == (12, 3, 12, 0)


def test_a_reward_that_is_no_number_counts_only_on_the_way() -> None:
    policy = tiny_backbone("llama")

    def run(bad: list[int]) -> list[Decoded]:
        def value(row: int, tokens: tuple[int, ...]) -> float:
            return float("nan") if list(tokens[: len(bad)]) == bad else float(sum(token % 5 for token in tokens))

        session = TrieSession(policy, 1, 60)
        tips = session.prefill([[1, 2, 3]])
        guide = PrefixGuide(value, 1)
        return decode(session, tips, ArgsGreedy(5.0, 4), StopRule((), 6), guide=guide, look_ahead=LookAhead(fixed=6))

    plain = run([-1])[0]
    first = min(plain.alternatives)
    assert first < 5
    rejected = [*plain.ids[:first], plain.alternatives[first]]
    with pytest.raises(ModelError, match="row 0"):
        run(rejected)
    # The draft went on behind the token that guidance then refused: what is there was never on the way.
    seen: list[tuple[int, ...]] = []

    def value(row: int, tokens: tuple[int, ...]) -> float:
        seen.append(tokens)
        beyond = len(tokens) > len(rejected) and list(tokens[: len(rejected)]) == rejected
        return float("nan") if beyond else float(sum(token % 5 for token in tokens))

    session = TrieSession(policy, 1, 60)
    tips = session.prefill([[1, 2, 3]])
    guide = PrefixGuide(value, 1)
    found = decode(session, tips, ArgsGreedy(5.0, 4), StopRule((), 6), guide=guide, look_ahead=LookAhead(fixed=6))
    assert any(list(tokens[:-1]) == rejected for tokens in seen)
    assert found[0].ids == plain.ids


def test_a_changed_token_that_was_read_beside_the_draft_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row: the policy reads its runners-up with its draft, so a change to one of them costs it no pass."""
    policy, stop = tiny_backbone("llama"), StopRule((), 20)
    passes, ids = {}, {}
    for runners in (0, 2):
        monkeypatch.setattr(look_ahead, "RUNNERS_UP", runners)
        guide = BackboneGuide(networks()[0], PROMPTS[:1], DotHead(), WEIGHTS[:1], SCALE, ROOM)  # type: ignore[arg-type]
        session = TrieSession(policy, 1, 200)
        tips = session.prefill(PROMPTS[:1])
        (done,) = decode(session, tips, ArgsGreedy(2.0, 4), stop, guide=guide, look_ahead=LookAhead(fixed=3))
        passes[runners], ids[runners] = session.forwards, done.ids
        assert done.changed > 2
    assert ids[0] == ids[2]
    assert passes[2] < passes[0]


def test_a_draft_does_not_outgrow_what_the_reward_model_can_read() -> None:
    """The text ends in time; a draft that went on beyond it would not have fitted."""
    policy, rewarder, prompt = tiny_backbone("llama"), private_copy(networks()[0]), PROMPTS[0]

    def run(ahead: LookAhead | None, ends: tuple[int, ...]) -> Decoded:
        guide = VocabularyGuide([Stream(rewarder, [prompt])], torch.tensor([[1.0]], dtype=torch.float64), 40)
        session = TrieSession(policy, 1, 120)
        tips = session.prefill([prompt])
        stop = StopRule(ends, 20)
        return decode(session, tips, ArgsGreedy(1.0, 4), stop, guide=guide, look_ahead=ahead)[0]

    free = run(None, ())
    place = next(at for at in range(3, 15) if free.ids[at] not in free.ids[:at])
    ends = (free.ids[place],)
    rewarder.model.config.max_position_embeddings = len(prompt) + place
    assert run(None, ends).steps == place + 1
    for ahead in (2, 3, 8):
        assert run(LookAhead(fixed=ahead), ends).ids == free.ids[:place]
    rewarder.model.config.max_position_embeddings -= 1
    for look in (None, LookAhead(fixed=3)):
        with pytest.raises(DataError, match="reads"):
            run(look, ends)
