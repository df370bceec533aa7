"""Slots, parents, visibility; and the theorem of the module: a packed node meets what it would meet alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgap.backbones.session import tree_states
from rewardgap.backbones.trie import ROOT, Block, TokenForest, build_trie, chain, siblings
from rewardgap.numerics.bradley_terry import pair_loss
from standins import ARCHITECTURES, tiny_backbone, without_packing

TOKENS = st.integers(0, 28)


@st.composite
def trees(draw: st.DrawFn, longest_prefix: int = 44, width: int = 8) -> Block:
    """Draw a chain and a random tree below it, nodes in any order that puts parents first; several roots may occur."""
    length = draw(st.integers(0, longest_prefix))
    extra = draw(st.integers(0 if length else 1, width))
    tokens = draw(st.lists(TOKENS, min_size=length + extra, max_size=length + extra))
    parents = list(range(-1, length - 1))
    for node in range(length, length + extra):
        parents.append(draw(st.integers(max(ROOT, length - 3), node - 1)))
    return Block(tuple(tokens), tuple(parents))


def ancestors(block: Block, node: int) -> list[int]:
    line = []
    while node != ROOT:
        line.append(node)
        node = block.parents[node]
    return line[::-1]


def test_trie_merges_common_beginnings_and_nothing_else() -> None:
    trie = build_trie([[5, 6, 7], [5, 6, 8], [6], [], [5, 6, 7], [5]])
    assert trie.tokens == (5, 6, 7, 8, 6)
    assert trie.parents == (ROOT, 0, 1, 1, ROOT)
    assert trie.paths == ((0, 1, 2), (0, 1, 3), (4,), (), (0, 1, 2), (0,))
    assert trie.block(parent=9, start=10) == Block((5, 6, 7, 8, 6), (9, 10, 11, 11, 9))


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=6))
def test_trie_paths_spell_the_continuations(continuations: list[list[int]]) -> None:
    trie = build_trie(continuations)
    assert [[trie.tokens[node] for node in path] for path in trie.paths] == continuations
    beginnings = {tuple(c[: i + 1]) for c in continuations for i in range(len(c))}
    assert len(trie.tokens) == len(beginnings)


@given(st.lists(trees(10), min_size=1, max_size=3), st.data())
def test_visible_is_exactly_the_ancestors(blocks: list[Block], data: st.DataObject) -> None:
    """Appending a tree in one or in several blocks gives the visibility that the definition gives."""
    forest = TokenForest(len(blocks), 80)
    slots: list[list[int]] = [[] for _ in blocks]
    at = [0] * len(blocks)
    while any(at[row] < len(block.tokens) for row, block in enumerate(blocks)):
        start = forest.length
        parts = []
        for row, block in enumerate(blocks):
            left = len(block.tokens) - at[row]
            size = left - data.draw(st.integers(0, left))
            nodes = range(at[row], at[row] + size)
            slots[row] += [start + i for i in range(size)]
            at[row] += size
            parents = [ROOT if block.parents[n] == ROOT else slots[row][block.parents[n]] for n in nodes]
            parts.append(Block(tuple(block.tokens[n] for n in nodes), tuple(parents)))
        appended = forest.append(parts)
        for row, part in enumerate(parts):
            for place in range(appended.tokens.shape[1]):
                slot = start + place
                if place >= len(part.tokens):
                    assert not appended.valid[row, place]
                    assert np.flatnonzero(appended.visible[row, place]).tolist() == [slot]
                    continue
                node = slots[row].index(slot)
                line = ancestors(blocks[row], node)
                assert np.flatnonzero(appended.visible[row, place]).tolist() == [slots[row][n] for n in line]
                assert appended.positions[row, place] == appended.key_positions[row, slot] == len(line) - 1
                assert forest.path(row, slot) == [blocks[row].tokens[n] for n in line]


def test_a_parent_must_come_before_its_child() -> None:
    forest = TokenForest(1, 8)
    for parents in ((0,), (1, ROOT), (-2,), (7,)):
        with pytest.raises(ValueError, match="parent"):
            forest.append([Block((1,) * len(parents), parents)])


def test_padding_is_nobodys_parent() -> None:
    forest = TokenForest(2, 8)
    forest.append([chain((1, 2, 3), ROOT, 0), chain((1,), ROOT, 0)])
    with pytest.raises(ValueError, match="parent"):
        forest.append([siblings((4,), 2), siblings((4,), 2)])


def test_a_kept_node_takes_its_depth_and_its_view_along() -> None:
    """Of two nodes below different parents the second is kept: it moves to the first one's slot, not into its place."""
    forest = TokenForest(1, 16)
    forest.append([chain((1, 2, 3), ROOT, 0)])
    forest.append([Block((4, 5), (0, 2))])
    forest.keep([4], 3)
    assert (forest.length, forest.path(0, 3)) == (4, [1, 2, 3, 5])
    below = forest.append([siblings((6,), 3)])
    assert below.positions.tolist() == [[4]]
    assert below.key_positions.tolist() == [[0, 1, 2, 3, 4]]
    assert below.visible[0, 0].tolist() == [True] * 5
    with pytest.raises(ValueError, match="forgotten"):
        forest.keep([4], 2)


def test_capacity_and_row_count_are_checked() -> None:
    forest = TokenForest(1, 2)
    with pytest.raises(ValueError, match="capacity is 2"):
        forest.append([chain((1, 2, 3), ROOT, 0)])
    with pytest.raises(ValueError, match="2 blocks for 1 rows"):
        forest.append([chain((1,), ROOT, 0)] * 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15)
@given(blocks=st.lists(trees(), min_size=1, max_size=3))
def test_packed_forward_is_the_unpacked_forward(architecture: str, blocks: list[Block]) -> None:
    """In float64, to 1e-9: each node's state and log-probabilities against its path as a sequence of its own."""
    backbone = tiny_backbone(architecture)
    with torch.no_grad():
        states = tree_states(backbone, blocks)
        slow = tree_states(without_packing(backbone), blocks)
        for row, block in enumerate(blocks):
            for node in range(len(block.tokens)):
                path = [block.tokens[n] for n in ancestors(block, node)]
                ids = torch.tensor([path])
                alone = backbone.model(input_ids=ids, output_hidden_states=True, use_cache=False)
                state = alone.hidden_states[-1][0, -1]
                torch.testing.assert_close(states[row, node], state, rtol=0, atol=1e-9)
                torch.testing.assert_close(slow[row, node], state, rtol=0, atol=1e-9)
                peer = torch.log_softmax(alone.logits[0, -1], -1)
                torch.testing.assert_close(backbone.log_probs(states[row, node]), peer, rtol=0, atol=1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_windows_count_depth_beyond_forty_tokens(architecture: str) -> None:
    """Two continuations of 44 tokens lie 60 slots from the prompt; the window of 8 must not notice."""
    backbone = tiny_backbone(architecture)
    prompt = [(5 * i + 1) % 29 for i in range(44)]
    tails = [[(3 * i + 2) % 29 for i in range(30)], [(7 * i + 3) % 29 for i in range(30)]]
    trie = build_trie(tails)
    head, tail = chain(prompt, ROOT, 0), trie.block(parent=43, start=44)
    with torch.no_grad():
        states = tree_states(backbone, [Block(head.tokens + tail.tokens, head.parents + tail.parents)])[0]
        for path, tokens in zip(trie.paths, tails, strict=True):
            alone = backbone.model.get_decoder()(input_ids=torch.tensor([prompt + tokens])).last_hidden_state[0]
            torch.testing.assert_close(states[:44], alone[:44], rtol=0, atol=1e-9)
            torch.testing.assert_close(states[[44 + n for n in path]], alone[44:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_of_a_pair_loss_is_that_of_two_forwards(architecture: str, packs: bool) -> None:
    backbone = tiny_backbone(architecture)
    backbone = backbone if packs else without_packing(backbone)
    weight = torch.linspace(-1, 1, backbone.width, dtype=torch.float64)
    pairs = [
        ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3] * 4, [7, 8, 9], [7, 8, 2, 2]),
        ([2, 7], [1], []),
        ([1, 1, 2, 3, 5, 8], [4, 4, 4, 4], [4, 4]),
    ]
    parameters = list(backbone.model.parameters())

    def gradients(loss: torch.Tensor) -> list[torch.Tensor | None]:
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        blocks, ends = [], []
        for prompt, chosen, rejected in pairs:
            trie = build_trie([chosen, rejected])
            head, tail = chain(prompt, ROOT, 0), trie.block(parent=len(prompt) - 1, start=len(prompt))
            blocks.append(Block(head.tokens + tail.tokens, head.parents + tail.parents))
            ends.append([len(prompt) + path[-1] if path else len(prompt) - 1 for path in trie.paths])
        states = tree_states(backbone, blocks)
        rewards = torch.stack([states[row, nodes] @ weight for row, nodes in enumerate(ends)])
        packed = gradients(pair_loss(rewards[:, 0] - rewards[:, 1]).mean())
        slow = []
        for prompt, *sides in pairs:
            both = [
                backbone.model.get_decoder()(input_ids=torch.tensor([prompt + side])).last_hidden_state[0, -1] @ weight
                for side in sides
            ]
            slow.append(pair_loss(both[0] - both[1]))
        separate = gradients(torch.stack(slow).mean())
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    moved = 0
    for one, other in zip(packed, separate, strict=True):
        if other is None:
            assert one is None or not one.any()
            continue
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
        moved += bool(other.abs().max() > 1e-8)
    assert moved > 10
