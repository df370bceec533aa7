"""New rows enter a running batch: whenever they come, their tokens are those of decoding each prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.lora import LoraSettings
from rewardgap.backbones.row_adapters import AdapterHost
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.soft_prompts import soft_ids, with_soft_prompts
from rewardgap.backbones.trie import chain
from rewardgap.decoding.args import ArgsGreedy, ArgsStochastic
from rewardgap.decoding.base import Decoder
from rewardgap.decoding.loop import LOOK_AHEAD, Decoded, LookAhead, StopRule, decode
from rewardgap.decoding.plain import Greedy, Sample
from rewardgap.decoding.rows import Newcomers
from rewardgap.rewards.guide import BackboneGuide, Guide, PolicyStateGuide, PrefixGuide
from rewardgap.rewards.vocabulary_guide import Stream, VocabularyGuide
from standins import ARCHITECTURES, DotHead, tiny_backbone, without_packing

VOCABULARY = 29
PROMPTS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), min_size=2, max_size=7)
KINDS = ("none", "policy_state", "own_backbone", "prefix", "vocabulary", "soft_prompts")


def prefix_reward(row: int, tokens: tuple[int, ...]) -> float:
    """Return a reward with ties: how often the row's favourite token occurs, minus repetitions."""
    return tokens.count((3 * row + 1) % VOCABULARY) - 0.5 * (len(tokens) - len(set(tokens)))


class World:
    """Prompts, each with a user, a seed and a guide of its own."""

    def __init__(self, policy: Backbone, prompts: list[list[int]], kind: str, decoder: Decoder, stop: StopRule) -> None:
        self.policy, self.prompts, self.kind, self.decoder, self.stop = policy, prompts, kind, decoder, stop
        generator = torch.Generator().manual_seed(5)
        self.users = torch.randn(len(prompts), policy.width, generator=generator, dtype=torch.float64)
        self.rewarder = tiny_backbone("mistral" if "llama" in type(policy.model).__name__.lower() else "llama", seed=1)

    def guide(self, rows: list[int]) -> Guide | None:
        states, longest = [self.users[row] for row in rows], self.stop.max_new_tokens
        prompts = [[7, *self.prompts[row][-5:]] for row in rows]
        room = longest + (self.decoder.top_k or VOCABULARY)
        if self.kind == "policy_state":
            return PolicyStateGuide(DotHead(), states, 3.0)  # type: ignore[arg-type]
        if self.kind == "own_backbone":
            return BackboneGuide(self.rewarder, prompts, DotHead(), states, 3.0, room)  # type: ignore[arg-type]
        if self.kind == "prefix":
            return PrefixGuide(lambda place, tokens: prefix_reward(rows[place], tokens), len(rows))
        weights = torch.tensor([[0.5 + row, -0.3] for row in rows], dtype=torch.float64)
        if self.kind == "vocabulary":
            return VocabularyGuide([Stream(self.rewarder, prompts), Stream(self.policy, prompts)], weights, room)
        if self.kind == "soft_prompts":
            network = with_soft_prompts(self.rewarder, self.users[rows][:, None].repeat(1, 2, 1))
            soft = [[*soft_ids(network, place, 2), *ids] for place, ids in enumerate(prompts)]
            return VocabularyGuide([Stream(network, soft)], weights[:, :1], room)
        return None

    def session(self, rows: list[int]) -> tuple[TrieSession, torch.Tensor]:
        prompts = [self.prompts[row] for row in rows]
        room = self.stop.max_new_tokens + (self.decoder.top_k or 1) + 1
        session = TrieSession(self.policy, len(rows), max(map(len, prompts)) + room)
        return session, session.prefill(prompts)

    def seeds(self, rows: list[int]) -> list[int]:
        return [100 + row for row in rows] if self.decoder.draws else []

    def decode(self, rows: list[int], ahead: LookAhead | None, feed: Any = None) -> list[Decoded]:
        session, tips = self.session(rows)
        return decode(
            session, tips, self.decoder, self.stop, guide=self.guide(rows), seeds=self.seeds(rows), look_ahead=ahead,
            feed=feed,
        )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=3)
@given(data=st.data())
def test_tokens_are_those_of_each_prompt_alone(architecture: str, kind: str, data: st.DataObject) -> None:
    policy = tiny_backbone(architecture)
    if data.draw(st.integers(0, 3)) == 0:
        policy = without_packing(policy)
    # Where many tokens end a row, rows end at different steps, and others go on beside them: only then is there joining.
    count = data.draw(st.integers(4, 7), label="prompts")
    prompts = [data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)) for _ in range(count)]
    ends = data.draw(st.sets(st.integers(0, VOCABULARY - 1), min_size=6, max_size=12), label="ends")
    longest = data.draw(st.integers(4, 9), label="longest")
    stop = StopRule(tuple(ends), longest, data.draw(st.integers(0, 3), label="shortest"))
    draws, k = data.draw(st.booleans(), label="draws"), data.draw(st.sampled_from([1, 2, 5, VOCABULARY]), label="k")
    strength = data.draw(st.sampled_from([0.0, 0.5, 4.0, -2.0]), label="strength")
    decoder: Any = ArgsStochastic(strength, k, 0.7) if draws else ArgsGreedy(strength, k)
    if kind == "none":
        decoder = Sample(0.8, k) if draws else Greedy()
    ahead = data.draw(st.none() | st.just(LOOK_AHEAD) | st.sampled_from([1, 3]).map(lambda n: LookAhead(fixed=n)))
    world = World(policy, prompts, kind, decoder, stop)
    places = data.draw(st.integers(2, 4).filter(lambda n: n < count), label="places")
    came = list(range(places))
    largest = 0

    def feed(free: int, guide: Guide | None) -> Newcomers | None:
        nonlocal largest
        waiting = list(range(len(came), len(prompts)))
        rows = waiting[: data.draw(st.sampled_from([free, 1, 0]), label="newcomers")]
        if not rows:
            return None
        fresh = world.guide(rows)
        if guide is not None and not guide.joins(fresh):  # type: ignore[attr-defined]
            assert kind == "vocabulary" and not policy.packs  # its second network is the policy
            return None
        came.extend(rows)
        largest = max(largest, places - free + len(rows))
        return Newcomers(*world.session(rows), fresh, world.seeds(rows))

    together = world.decode(list(range(places)), ahead, feed)
    assert len(together) == len(came)
    assert largest <= places
    for row, done in enumerate(together):
        alone = world.decode([row], None)[0]
        assert (done.ids, done.ended, done.steps) == (alone.ids, alone.ended, alone.steps)
        assert done.alternatives == alone.alternatives
        assert done.reward == pytest.approx(alone.reward, abs=1e-9)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=4)
@given(first=PROMPTS, second=PROMPTS, tails=st.data())
def test_joined_sessions_hold_the_states_of_every_path(
    architecture: str, packs: bool, first: list[list[int]], second: list[list[int]], tails: st.DataObject
) -> None:
    policy = tiny_backbone(architecture) if packs else without_packing(tiny_backbone(architecture))
    sessions = [TrieSession(policy, len(prompts), max(map(len, prompts)) + 9) for prompts in (first, second)]
    for session, prompts in zip(sessions, (first, second), strict=True):
        session.prefill(prompts)
    session, paths = sessions[0], [*first, *second]
    cost = session.tokens + sessions[1].tokens
    session.join(sessions[1])
    assert session.tokens == cost
    assert [session.forest.path(row, tip) for row, tip in enumerate(session.tips)] == paths
    for _ in range(2):
        more = [tails.draw(st.lists(st.integers(0, 28), min_size=1, max_size=4)) for _ in paths]
        session.reserve(max(map(len, more)))
        begin = session.forest.length
        states = session.extend([chain(ids, tip, begin) for ids, tip in zip(more, session.tips, strict=True)])
        session.commit([range(begin, begin + len(ids)) for ids in more], begin)
        paths = [path + ids for path, ids in zip(paths, more, strict=True)]
        for row, (path, ids) in enumerate(zip(paths, more, strict=True)):
            with torch.no_grad():
                own = policy.model.get_decoder()(input_ids=torch.tensor([path]), use_cache=False).last_hidden_state
            torch.testing.assert_close(states[row, len(ids) - 1], own[0, -1], rtol=0, atol=1e-9)


def test_rows_bring_their_own_adapters() -> None:
    host = AdapterHost(tiny_backbone(), LoraSettings(rank=2))
    adapters = torch.randn(4, host.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 5
    prompts = [[1, 2, 3], [5], [7, 8, 9, 10, 11], [4, 4]]
    alone = []
    for row, ids in enumerate(prompts):
        session = TrieSession(host.rows(adapters[row : row + 1]), 1, 9)
        session.prefill([ids])
        alone.append(session.extend([chain([6, 13], session.tips[0], len(ids))])[0])
    # One row and one row: (1, P) would also mean adapters alike for any number of rows.
    session = TrieSession(host.rows(adapters[:1]), 1, 9)
    session.prefill(prompts[:1])
    for group in ([1], [2, 3]):
        other = TrieSession(host.rows(adapters[group]), len(group), 9)
        other.prefill([prompts[row] for row in group])
        session.join(other)
    session.select([3, 0, 2, 1])
    begin = session.forest.length
    states = session.extend([chain([6, 13], tip, begin) for tip in session.tips])
    for place, row in enumerate([3, 0, 2, 1]):
        torch.testing.assert_close(states[place], alone[row], rtol=0, atol=1e-9)
    assert (alone[0] - alone[1]).abs().max() > 1e-3
