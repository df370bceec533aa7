"""Features: computed once, the same whoever asks and in whatever company, and never lost to a damaged file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewardgap.backbones import features
from rewardgap.backbones.features import FeatureCache, Item, PromptLimit
from rewardgap.core.errors import DataError
from rewardgap.core.records import Message
from standins import ARCHITECTURES, text_backbone, without_packing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.trie import Block

PROMPTS = [
    "Name a colour.",
    "what is the name of the river?",
    (Message("system", "Be brief."), Message("user", "Why?")),
]
TEXTS = st.sampled_from(
    ["", "red", "red one", "red two", "blue", "<|im_end|>", "The light of winter.\n", "é"]
) | st.text(max_size=8)
ITEMS = st.lists(st.builds(Item, st.sampled_from(PROMPTS), TEXTS), min_size=1, max_size=9)


def alone(backbone: Backbone, item: Item) -> NDArray[np.float32]:
    """Return the state at the last content token, by a forward of the model itself; the prompt's end if there is none."""
    ids = [*backbone.encoder.encode_prompt(item.prompt), *backbone.encoder.encode_completion(item.completion)]
    with torch.no_grad():
        output = backbone.model(torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0, -1].float().numpy()


class Counting:
    """Counts the distinct texts a cache computes, through its progress."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, done: int, total: int) -> None:
        assert 0 < done <= total
        if done == total:
            self.total += total


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=ITEMS)
def test_packed_batches_equal_one_text_at_a_time(
    architecture: str, packs: bool, items: list[Item], tmp_path_factory: pytest.TempPathFactory
) -> None:
    backbone = text_backbone(architecture)
    counting = Counting()
    cache = FeatureCache(tmp_path_factory.mktemp("features"))
    got = cache.encode(backbone if packs else without_packing(backbone), items, progress=counting)
    expected = np.stack([alone(backbone, item) for item in items])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert got.dtype == np.float32
    assert counting.total == len(set(items))


def test_a_text_is_computed_once_whoever_asks(tmp_path: Path) -> None:
    backbone, counting = text_backbone(), Counting()
    items = [Item(PROMPTS[0], "red"), Item(PROMPTS[1], "red"), Item(PROMPTS[0], "red"), Item(PROMPTS[0], "")]
    first = FeatureCache(tmp_path)
    one = first.encode(backbone, items, progress=counting)
    assert counting.total == 3
    assert np.array_equal(one[0], one[2])
    again = first.encode(backbone, items[::-1], progress=counting)
    other = FeatureCache(tmp_path).encode(backbone, [*items, Item(PROMPTS[0], "new")], progress=counting)
    assert counting.total == 3 + 1
    assert np.array_equal(again, one[::-1])
    assert np.array_equal(other[:4], one)


def test_a_string_is_not_a_conversation_and_limits_count(tmp_path: Path) -> None:
    """Keys hold what decides the ids: another limit may cut another prompt, so it is another key."""
    backbone, counting = text_backbone(), Counting()
    cache = FeatureCache(tmp_path)
    long = "0123456789" * 4
    whole = cache.encode(backbone, [Item(long, "red")], progress=counting)
    size = len(backbone.encoder.encode_prompt(long))
    cut = PromptLimit(size - 10, "truncate_prompt")
    shorter = cache.encode(backbone, [Item(long, "red")], cut, progress=counting)
    assert counting.total == 2
    assert not np.allclose(whole, shorter)
    np.testing.assert_allclose(shorter, cache.encode(backbone, [Item(long[10:], "red")]), atol=1e-6)
    with pytest.raises(DataError, match=f"{size} tokens is longer than the {size - 1} allowed"):
        cache.encode(backbone, [Item(long, "red")], PromptLimit(size - 1))


def test_backbones_do_not_share_features(tmp_path: Path) -> None:
    cache, item = FeatureCache(tmp_path), [Item(PROMPTS[0], "red")]
    one, two = cache.encode(text_backbone(), item), cache.encode(text_backbone(seed=3), item)
    assert not np.allclose(one, two)
    assert np.array_equal(FeatureCache(tmp_path).encode(text_backbone(seed=3), item), two)


def test_company_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of any size give the features of one at a time to float32's last digits."""
    backbone = text_backbone("mistral")
    items = [
        Item(f"{prompt} {i}", text) for i, prompt in enumerate(["Name it.", "Why?"] * 6) for text in ("a", "abc", "")
    ]
    one_by_one = np.concatenate([FeatureCache(tmp_path / str(i)).encode(backbone, [x]) for i, x in enumerate(items)])
    for size in (1, 40, 100, 100_000):
        monkeypatch.setattr(features, "NODES_PER_FORWARD", size)
        got = FeatureCache(tmp_path / f"size{size}").encode(backbone, items)
        np.testing.assert_allclose(got, one_by_one, rtol=0, atol=1e-6)


def test_a_prompt_with_very_many_completions_is_cut_into_several_trees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention over one tree costs the square of its nodes: 900 arguments on one question may not be one tree."""
    backbone = text_backbone()
    widths = []
    whole = features.tree_states

    def spy(given: Backbone, blocks: list[Any]) -> torch.Tensor:
        widths.append(len(blocks) * max(len(block.tokens) for block in blocks))
        return whole(given, blocks)

    monkeypatch.setattr(features, "tree_states", spy)
    monkeypatch.setattr(features, "NODES_PER_FORWARD", 120)
    items = [Item("Name a number.", f"number {i} of {i * 7}") for i in range(60)]
    got = FeatureCache(tmp_path).encode(backbone, items)
    assert max(widths) <= 120
    np.testing.assert_allclose(got, np.stack([alone(backbone, item) for item in items]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other keys", "fewer rows"])
def test_a_damaged_shard_is_reported_and_computed_again(tmp_path: Path, damage: str) -> None:
    from safetensors.numpy import load_file, save_file

    backbone, counting = text_backbone(), Counting()
    items = [Item(PROMPTS[0], text) for text in ("red", "blue", "green")]
    expected = FeatureCache(tmp_path).encode(backbone, items)
    (shard,) = tmp_path.rglob("*.safetensors")
    whole = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(whole[:-7])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "garbage":
        shard.write_bytes(b"\xff" * len(whole))
    elif damage == "other keys":
        save_file({"x": np.zeros(3)}, shard)
    else:
        tensors = load_file(shard)
        save_file({"keys": tensors["keys"], "features": tensors["features"][:2]}, shard)
    with pytest.warns(UserWarning, match="damaged and is computed again"):
        got = FeatureCache(tmp_path).encode(backbone, items, progress=counting)
    assert counting.total == 3
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert np.array_equal(FeatureCache(tmp_path).encode(backbone, items, progress=counting), got)
    assert counting.total == 3


def test_shards_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that was saved before a kill is not computed again."""
    backbone = text_backbone()
    monkeypatch.setattr(features, "ITEMS_PER_SHARD", 2)
    monkeypatch.setattr(features, "NODES_PER_FORWARD", 40)
    items = [Item(f"Name {i}.", "red") for i in range(9)]

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done >= 5:
            raise Killed

    with pytest.raises(Killed):
        FeatureCache(tmp_path).encode(backbone, items, progress=kill)
    counting = Counting()
    FeatureCache(tmp_path).encode(backbone, items, progress=counting)
    assert counting.total == 9 - 4


def test_a_resumed_encoding_ends_with_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the shards of a killed run are gone: what is missing is encoded in the company it would have had."""
    monkeypatch.setattr(features, "NODES_PER_FORWARD", 64)
    monkeypatch.setattr(features, "ITEMS_PER_SHARD", 5)
    backbone = text_backbone("llama", dtype=torch.float32)
    items = [Item(f"question {n % 7} of many", f"answer {n} " * (1 + n % 5)) for n in range(40)]
    whole = FeatureCache(tmp_path / "whole").encode(backbone, items)
    FeatureCache(tmp_path / "killed").encode(backbone, items)
    shards = sorted((tmp_path / "killed").rglob("*.safetensors"))
    assert len(shards) > 4
    for shard in shards[::2]:
        shard.unlink()
    companies: list[tuple[int, ...]] = []
    real = features.tree_states

    def counted(model: Backbone, blocks: Sequence[Block]) -> torch.Tensor:
        companies.append(tuple(len(block.tokens) for block in blocks))
        return real(model, blocks)

    monkeypatch.setattr(features, "tree_states", counted)
    resumed = FeatureCache(tmp_path / "killed").encode(backbone, items)
    np.testing.assert_array_equal(resumed, whole)
    again = list(companies)
    companies.clear()
    FeatureCache(tmp_path / "fresh").encode(backbone, items)
    assert 0 < len(again) < len(companies)
    assert set(again) <= set(companies)


def test_no_texts_give_no_rows(tmp_path: Path) -> None:
    assert FeatureCache(tmp_path).encode(text_backbone(), []).shape == (0, 24)


def test_a_text_that_does_not_fit_the_context_is_named(tmp_path: Path) -> None:
    backbone = text_backbone()
    prompt = len(backbone.encoder.encode_prompt("Why?"))
    with pytest.raises(DataError, match=rf"prompt of {prompt} tokens and completion of 250 .* 256 .*'Why\?'"):
        FeatureCache(tmp_path).encode(backbone, [Item("Why?", "0" * 250)])
    with pytest.raises(DataError, match="longer than the 256 allowed"):
        FeatureCache(tmp_path).encode(backbone, [Item("0" * 260, "")])
    assert len(FeatureCache(tmp_path).encode(backbone, [Item("Why?", "0" * (256 - prompt))])) == 1
