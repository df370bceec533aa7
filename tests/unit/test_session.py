"""Sessions: whatever sequence of moves is made, the states are those of encoding each path from its first token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import build_trie, chain, siblings
from standins import ARCHITECTURES, tiny_backbone, without_packing

PROMPTS = st.lists(st.lists(st.integers(0, 28), min_size=1, max_size=42), min_size=1, max_size=3)


def encode(backbone: Backbone, path: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model.get_decoder()(input_ids=torch.tensor([path]), use_cache=False).last_hidden_state[0, -1]


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=12)
@given(prompts=PROMPTS, data=st.data())
def test_any_sequence_of_moves_equals_full_encoding(
    architecture: str, packs: bool, prompts: list[list[int]], data: st.DataObject
) -> None:
    backbone = tiny_backbone(architecture)
    session = TrieSession(backbone if packs else without_packing(backbone), len(prompts), 128)
    paths = [list(p) for p in prompts]
    for row, state in enumerate(session.prefill(prompts)):
        close(state, encode(backbone, paths[row]))
    for _ in range(data.draw(st.integers(1, 5), label="moves")):
        move = data.draw(st.sampled_from(["siblings", "probe", "turn", "select", "commit"]), label="move")
        if move == "siblings":
            width = data.draw(st.integers(1, 4))
            tokens = [data.draw(st.lists(st.integers(0, 28), min_size=width, max_size=width)) for _ in paths]
            states = session.extend([siblings(t, tip) for t, tip in zip(tokens, session.tips, strict=True)])
            for row, path in enumerate(paths):
                for place, token in enumerate(tokens[row]):
                    close(states[row, place], encode(backbone, [*path, token]))
            picks = [data.draw(st.integers(0, width - 1)) for _ in paths]
            session.keep(picks, width)
            paths = [[*path, tokens[row][picks[row]]] for row, path in enumerate(paths)]
        elif move == "probe":  # completions are hung below the tips, read and cut off again
            length = session.forest.length
            tails = [data.draw(st.lists(st.integers(0, 28), min_size=1, max_size=5)) for _ in paths]
            blocks = [chain(tail, tip, length) for tail, tip in zip(tails, session.tips, strict=True)]
            states = session.extend(blocks)
            for row, path in enumerate(paths):
                for place in range(len(tails[row])):
                    close(states[row, place], encode(backbone, path + tails[row][: place + 1]))
            session.truncate(length)
        elif move == "commit":  # a tree below each tip, of which each row keeps a path of its own length
            session.reserve(8)
            begin = session.forest.length
            tries = [
                build_trie(data.draw(st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=3))) for _ in paths
            ]
            rows = zip(tries, session.tips, strict=True)
            states = session.extend([trie.block(parent=tip, start=begin) for trie, tip in rows])
            kept = []
            for row, trie in enumerate(tries):
                spelled: list[list[int]] = []
                for node, (token, parent) in enumerate(zip(trie.tokens, trie.parents, strict=True)):
                    spelled.append([*(spelled[parent] if parent >= 0 else paths[row]), token])
                    close(states[row, node], encode(backbone, spelled[-1]))
                ways = [(), *(path[: end + 1] for path in trie.paths for end in range(len(path)))]
                way = data.draw(st.sampled_from(ways), label="way")
                kept.append([begin + node for node in way])
                paths[row] = spelled[way[-1]] if way else paths[row]
            session.commit(kept, begin)
        elif move == "turn":
            more = [data.draw(st.lists(st.integers(0, 28), min_size=1, max_size=6)) for _ in paths]
            states = session.prefill(more)
            paths = [path + extra for path, extra in zip(paths, more, strict=True)]
            for row, path in enumerate(paths):
                close(states[row], encode(backbone, path))
        else:
            rows = data.draw(st.lists(st.integers(0, len(paths) - 1), min_size=1, max_size=3))
            session.select(rows)
            paths = [list(paths[row]) for row in rows]
        assert session.rows == len(paths)
        assert [session.forest.path(row, tip) for row, tip in enumerate(session.tips)] == paths


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gaps_of_rows_that_keep_less_are_closed_when_room_runs_out(architecture: str, packs: bool) -> None:
    backbone = tiny_backbone(architecture)
    session = TrieSession(backbone if packs else without_packing(backbone), 2, 26)
    paths = [[1, 2, 3], [(5 * i + 1) % 29 for i in range(11)]]
    session.prefill(paths)
    for turn in range(6):  # in turn, one row keeps three tokens and the other none: 18 slots, of which 9 are a row's
        tails = [[7 + turn, 8, 9], [10, 11, 12 + turn]]
        session.reserve(3)
        begin = session.forest.length
        session.extend([chain(tail, tip, begin) for tail, tip in zip(tails, session.tips, strict=True)])
        kept = [[begin, begin + 1, begin + 2] if row == turn % 2 else [] for row in range(2)]
        session.commit(kept, begin)
        paths = [path + tails[row] if kept[row] else path for row, path in enumerate(paths)]
    session.reserve(2)
    states = session.extend([siblings((4, 6), tip) for tip in session.tips])
    for row, path in enumerate(paths):
        for place, token in enumerate((4, 6)):
            close(states[row, place], encode(backbone, [*path, token]))
    with pytest.raises(ValueError, match="27 slots needed, capacity is 26"):
        session.reserve(27 - max(map(len, paths)))


def test_rows_may_be_selected_before_anything_was_read() -> None:
    backbone = tiny_backbone()
    session = TrieSession(backbone, 3, 16)
    session.select([2, 0])
    states = session.prefill([[1, 2, 3], [4, 5]])
    close(states[0], encode(backbone, [1, 2, 3]))
    close(states[1], encode(backbone, [4, 5]))


def test_costs_count_real_tokens_only() -> None:
    backbone = tiny_backbone()
    session = TrieSession(backbone, 2, 32)
    session.prefill([[1, 2, 3, 4], [5]])
    session.extend([siblings((1, 2), tip) for tip in session.tips])
    assert (session.forwards, session.tokens) == (2, 5 + 4)
    slow = TrieSession(without_packing(backbone), 2, 32)
    slow.prefill([[1, 2, 3, 4], [5]])
    slow.extend([siblings((1, 2), tip) for tip in slow.tips])
    assert (slow.forwards, slow.tokens) == (2, 5 + 2 * 5 + 2 * 2)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        TrieSession(tiny_backbone(), 2, 8).prefill([[1, 2], []])


def test_keep_moves_into_place_and_forgets_the_rest() -> None:
    backbone = tiny_backbone()
    session = TrieSession(backbone, 1, 8)
    session.prefill([[1, 2, 3]])
    for token in (
        4,
        5,
        6,
        7,
        8,
    ):  # five steps of three siblings fit in eight slots only if the losers' slots are reused
        session.extend(
            [siblings((0, token, 9), session.tips[0])]
            if session.forest.length + 3 <= 8
            else [siblings((token,), session.tips[0])]
        )
        width = session.forest.length - session.tips[0] - 1
        session.keep([1 if width == 3 else 0], width)
    assert session.forest.path(0, session.tips[0]) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_node_whose_parent_would_be_forgotten_cannot_be_kept() -> None:
    session = TrieSession(tiny_backbone(), 1, 16)
    session.prefill([[1, 2, 3]])
    session.extend([chain((4, 5), 2, 3)])
    with pytest.raises(ValueError, match="forgotten"):
        session.keep([1], 2)
