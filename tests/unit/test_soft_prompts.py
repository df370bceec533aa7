"""Soft prompts: a forest whose first nodes are vectors equals transformers' own forward over `inputs_embeds`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgap.backbones.chat import ChatEncoder
from rewardgap.backbones.features import FeatureCache, Item
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.session import TrieSession, tree_states
from rewardgap.backbones.soft_prompts import (
    num_embeddings,
    put_first,
    random_embeddings,
    soft_ids,
    with_soft_prompts,
)
from rewardgap.backbones.trie import Block, chain, siblings
from rewardgap.core.errors import ShapeError
from standins import ARCHITECTURES, tiny_backbone, tiny_tokenizer, without_packing

VOCABULARY = 29
PROMPTS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), min_size=1, max_size=3)


def vectors(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, length, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(backbone: Backbone, ids: list[int], prompt: torch.Tensor, opened: int) -> torch.Tensor:
    """Return (T, D) states of one row through transformers, the soft prompt after `opened` tokens."""
    table = backbone.model.get_input_embeddings()
    embedded = table(torch.tensor(ids))
    whole = torch.cat([embedded[:opened], prompt, embedded[opened:]])[None]
    state: torch.Tensor = backbone.model.get_decoder()(inputs_embeds=whole, use_cache=False).last_hidden_state[0]
    return state


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=6)
@given(prompts=PROMPTS, length=st.integers(1, 12), opened=st.integers(0, 1), seed=st.integers(0, 99))
def test_a_forest_that_begins_with_vectors_is_the_forward_over_embeddings(
    architecture: str, packs: bool, prompts: list[list[int]], length: int, opened: int, seed: int
) -> None:
    """Rows of different length with soft prompts of their own and two continuations each, in one packed pass."""
    base = tiny_backbone(architecture) if packs else without_packing(tiny_backbone(architecture))
    soft = vectors(len(prompts), length, seed)
    reader = with_soft_prompts(base, soft)
    tails = [[4, 5, 6], [7, 8]]
    blocks = []
    for row, ids in enumerate(prompts):
        own = soft_ids(base, row, length)
        head = chain((*ids[:opened], *own, *ids[opened:]), -1, 0)
        tip = len(head.tokens) - 1
        one = chain(tails[0], tip, tip + 1)
        two = chain(tails[1], tip, tip + 4)
        blocks.append(Block(head.tokens + one.tokens + two.tokens, head.parents + one.parents + two.parents))
    with torch.no_grad():
        states = tree_states(reader, blocks)
        for row, ids in enumerate(prompts):
            tip = length + len(ids) - 1
            first = plain(base, [*ids, *tails[0]], soft[row], opened)
            second = plain(base, [*ids, *tails[1]], soft[row], opened)
            torch.testing.assert_close(states[row, : tip + 4], first, rtol=0, atol=1e-9)
            torch.testing.assert_close(states[row, tip + 4 : tip + 6], second[-2:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_behind_a_cached_soft_prompt_equal_whole_forwards(architecture: str, packs: bool) -> None:
    """Prefill, siblings, a row that leaves: every state is that of its path read from the beginning."""
    base = tiny_backbone(architecture) if packs else without_packing(tiny_backbone(architecture))
    soft = vectors(3, 5)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    session = TrieSession(with_soft_prompts(base, soft), 3, 40)
    tips = session.prefill([(*soft_ids(base, row, 5), *ids) for row, ids in enumerate(prompts)])
    with torch.no_grad():
        for row, ids in enumerate(prompts):
            torch.testing.assert_close(tips[row], plain(base, ids, soft[row], 0)[-1], rtol=0, atol=1e-9)
        session.extend([siblings((12, 13), tip) for tip in session.tips])
        session.keep([0, 1, 0], 2)
        session.select([2, 1])
        states = session.extend([siblings((14, 15), tip) for tip in session.tips])
        for place, (row, kept) in enumerate([(2, 12), (1, 13)]):
            for number, token in enumerate((14, 15)):
                expected = plain(base, [*prompts[row], kept, token], soft[row], 0)[-1]
                torch.testing.assert_close(states[place, number], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_reach_the_vectors_and_are_those_of_transformers(architecture: str) -> None:
    base = tiny_backbone(architecture)
    weight = torch.linspace(-1, 1, 24, dtype=torch.float64)
    soft, peer = (vectors(2, 3).requires_grad_() for _ in range(2))
    ids = [[1, 2, 3, 4], [5, 6]]
    blocks = [chain((*soft_ids(base, row, 3), *own), -1, 0) for row, own in enumerate(ids)]
    states = tree_states(with_soft_prompts(base, soft), blocks)
    (found,) = torch.autograd.grad((states[0, 6] + states[1, 4]) @ weight, soft)
    expected = sum((plain(base, own, peer[row], 0)[-1] for row, own in enumerate(ids)), torch.zeros(24).double())
    (slope,) = torch.autograd.grad(expected @ weight, peer)
    torch.testing.assert_close(found, slope, rtol=0, atol=1e-9)
    assert float(found.abs().min(dim=1).values.max()) > 0


def test_tokens_are_read_as_ever() -> None:
    base = tiny_backbone("gemma3")  # whose embeddings are scaled on the way
    reader = with_soft_prompts(base, vectors(1, 2))
    with torch.no_grad():
        assert torch.equal(tree_states(reader, [chain((1, 2, 3), -1, 0)]), tree_states(base, [chain((1, 2, 3), -1, 0)]))


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_vectors_that_are_embeddings_are_those_tokens(architecture: str) -> None:
    """Soft prompts start as rows of the vocabulary in the units the decoder reads."""
    base = tiny_backbone(architecture)
    drawn = random_embeddings(base, 4, torch.Generator().manual_seed(3))
    ids = torch.randint(VOCABULARY, (4,), generator=torch.Generator().manual_seed(3)).tolist()
    reader = with_soft_prompts(base, drawn[None])
    with torch.no_grad():
        soft = tree_states(reader, [chain((*soft_ids(base, 0, 4), 1, 2), -1, 0)])
        torch.testing.assert_close(soft, tree_states(base, [chain((*ids, 1, 2), -1, 0)]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("template", "bos", "prompt", "place"),
    [(None, True, "Why?", 1), (None, False, "Why?", 0), ("chatml", False, "Why?", 0), ("gemma", True, "Why?", 1)],
)
def test_the_soft_prompt_stands_after_the_beginning_of_text(
    template: str | None, bos: bool, prompt: str, place: int
) -> None:
    encoder = ChatEncoder(tiny_tokenizer(template, bos=bos))
    ids = encoder.encode_prompt(prompt)
    assert (ids[0] == encoder.tokenizer.bos_token_id) == bool(place)
    assert put_first(encoder, ids, (900, 901)) == (*ids[:place], 900, 901, *ids[place:])


def test_a_beginning_of_text_that_opens_turns_is_not_parted_from_its_role() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.bos_token = "<|im_start|>"
    encoder = ChatEncoder(tokenizer)
    ids = encoder.encode_prompt("Why?")
    assert ids[0] == tokenizer.bos_token_id
    assert put_first(encoder, ids, (900,)) == (900, *ids)
    assert put_first(encoder, (), (900,)) == (900,)


def test_no_vectors_is_the_backbone_itself_and_other_widths_are_refused() -> None:
    base = tiny_backbone()
    assert with_soft_prompts(base, torch.zeros(3, 0, 24)) is base
    with pytest.raises(ShapeError, match=r"\(1, 2, 23\), expected \(B, T, D\) with D = 24"):
        with_soft_prompts(base, torch.zeros(1, 2, 23))
    assert soft_ids(base, 2, 3) == (num_embeddings(base) + 6, num_embeddings(base) + 7, num_embeddings(base) + 8)


def test_what_a_user_s_soft_prompt_makes_has_no_place_in_a_shared_cache() -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        FeatureCache().encode(with_soft_prompts(tiny_backbone(), vectors(1, 2)), [Item("a", "b")])
