"""Measurements: what is timed is the same mathematics on both sides, and a finished fit is told from another."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from rewardgap.backbones.features import PromptLimit
from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.session import tree_states
from rewardgap.backbones.shapes import SHAPES, random_backbone
from rewardgap.backbones.trie import Block
from rewardgap.bench.decode import Bench, DecodeSizes, load_peers, measure_decoding
from rewardgap.bench.heads import HeadSizes, measure_heads, planted
from rewardgap.bench.prompts import prompts_of_length
from rewardgap.bench.score import ScoreSizes, measure_scoring
from rewardgap.bench.timing import ratio, take_turns
from rewardgap.bench.train import TrainSizes, measure_training, random_pairs
from rewardgap.core.errors import ConfigError, MissingExtraError, UnknownNameError
from rewardgap.data.catalog import load_dataset
from standins import text_backbone, tiny_backbone


def test_trl_and_the_packed_forward_begin_at_the_same_loss() -> None:
    """The same ids, adapter size and direction: TRL reads prompts twice, we once; the loss is one number."""
    sizes = TrainSizes(prompt=40, completion=8, batch_size=3, steps=2, rounds=1)
    found = measure_training(load_backbone("synthetic-words"), sizes)
    assert found["first_loss"]["rewardgap"] == pytest.approx(found["first_loss"]["trl"], abs=1e-6)
    assert abs(found["first_loss"]["rewardgap"] - math.log(2)) > 0.01
    assert set(found["pairs_per_second"]) == {"rewardgap", "trl", "trl_defaults"}
    assert all(value > 0 for value in found["pairs_per_second"].values())
    assert found["trl_over_rewardgap"]["rounds"] == 1


def test_without_trl_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rewardgap\[trl\]', or leave it out with --no-trl"):
        measure_training(load_backbone("synthetic-words"))


def test_texts_have_the_stated_lengths() -> None:
    backbone = load_backbone("synthetic-words")
    sizes = TrainSizes(prompt=17, completion=5)
    for pair in random_pairs(backbone, sizes, 6):
        assert len(backbone.encoder.encode_prompt(pair.prompt)) == 17
        assert len(backbone.encoder.encode_completion(pair.rejected, after=pair.prompt)) == 5
        assert pair.chosen != pair.rejected


def test_a_head_is_measured_in_a_process_of_its_own() -> None:
    sizes = HeadSizes(pairs=400, width=12, users=10, support=6)
    (cost,) = measure_heads(["global_bt"], sizes)
    assert cost.method == "global_bt"
    assert cost.fit_seconds > 0 and cost.adapt_milliseconds > 0 and cost.peak_bytes > 1 << 26
    assert 0 < cost.loss < math.log(2)
    assert abs(cost.gain_of_longer) < 1e-3  # convex and solved: five times the steps find nothing
    assert cost.seen > 0.55


def test_the_planted_world_is_what_it_says() -> None:
    """Users are spread evenly, new ones are new, and the chosen side really is the likelier one."""
    sizes = HeadSizes(pairs=600, width=20, users=15, support=4, rank=3)
    train, held_out, supports, queries = planted(sizes)
    assert train.chosen.shape == (600, 20) and train.chosen.dtype == np.float32
    assert {train.user.count(user) for user in set(train.user)} == {40}
    assert set(held_out.user) == set(train.user)
    assert not set(supports) & set(train.user) and set(supports) == set(queries)
    assert {len(rows.user) for rows in supports.values()} == {4}
    again = planted(sizes)[0]
    np.testing.assert_array_equal(train.chosen, again.chosen)
    mean = (train.chosen - train.rejected).mean(0)
    assert ((held_out.chosen - held_out.rejected) @ mean > 0).mean() > 0.6


def test_ratios_are_taken_round_by_round() -> None:
    clock = iter([2.0, 1.0, 9.0, 3.0, 8.0, 4.0])
    found = take_turns({"slow": lambda: next(clock), "fast": lambda: next(clock)}, 3)
    assert found == {"slow": [2.0, 9.0, 8.0], "fast": [1.0, 3.0, 4.0]}
    assert ratio(found["slow"], found["fast"]) == {"median": 2.0, "low": 2.0, "high": 3.0, "rounds": 3}


def test_a_shape_is_that_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer layers, so that it fits a test; the count of SmolLM2's layer is known from its published shape."""
    monkeypatch.setitem(SHAPES, "smollm2-135m", {**SHAPES["smollm2-135m"], "num_hidden_layers": 1})
    backbone = random_backbone("smollm2-135m")
    assert backbone.width == 576 and backbone.vocabulary == 49152
    attention, mlp = 576 * 576 * 2 + 2 * 576 * 192, 3 * 576 * 1536
    assert sum(p.numel() for p in backbone.model.parameters()) == 49152 * 576 + attention + mlp + 3 * 576
    with torch.no_grad():
        states = tree_states(backbone, [Block((0, 1, 2), (-1, 0, 0))])
    assert states.shape == (1, 3, 576) and bool(torch.isfinite(states).all())
    assert PromptLimit().max_tokens is None
    with pytest.raises(UnknownNameError, match=r"unknown shape 'qwen2.5-1b'. Did you mean 'qwen2.5-1.5b'"):
        random_backbone("qwen2.5-1b")


PROMPTS = [[1, 2, 3, 4, 5], [(7 * i + 2) % 29 for i in range(20)], [9, 9, 2]]


def test_every_way_to_decode_writes_the_same_text() -> None:
    """What is timed is one mathematics: ours in every mode, search with k cached rows, and search without a cache."""
    peers = load_peers()
    for architecture in ("llama", "qwen2"):
        bench = Bench(tiny_backbone(architecture), PROMPTS, DecodeSizes(tokens=9, top_k=(4,), batch=3))
        for turn in range(3):
            bench.turn = turn
            (own,) = bench.guided(9, 4)
            (step,) = bench.guided(9, 4, ahead=None)
            assert (
                own.ids == step.ids == bench.published(9, "args", 4, peers) == bench.published(9, "reencode", 4, peers)
            )
            assert bench.guided(9, 4, rows=3)[0].ids == own.ids
            assert bench.plain(9)[0].ids == bench.transformers(9)
    # A reward model that is a copy of the policy and reads the same prompt gives the rewards of a shared backbone.
    assert bench.guided(9, 4, shared=True)[0].ids == own.ids
    done = [row for turn in range(3) for row in bench.guided(9, 4, rows=3)]
    assert sum(row.changed for row in done) > 0


def test_decoding_is_measured_in_rounds_and_ratios_are_theirs() -> None:
    sizes = DecodeSizes(tokens=4, top_k=(3,), rounds=2, batch=2, slow_steps=2)
    found = measure_decoding(tiny_backbone(), PROMPTS, sizes, against=["args"])
    assert {cost["rounds"] for name, cost in found["ways"].items() if name != "args k=3"} == {2}
    assert found["ways"]["args k=3"]["tokens_measured"] == 2
    assert found["ratios"]["transformers greedy / transformers greedy"]["median"] == 1
    assert 0 < found["look_ahead"]["3"]["changed"] < 1
    assert found["look_ahead"]["3"]["tokens_a_pass"] >= 1
    with pytest.raises(ConfigError, match="3 prompts for a batch of 8"):
        measure_decoding(tiny_backbone(), PROMPTS)
    with pytest.raises(ConfigError, match="not 'vllm'"):
        measure_decoding(tiny_backbone(), PROMPTS, sizes, against=["vllm"])


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_the_norm_bound_is_what_the_last_norm_can_give(architecture: str) -> None:
    """The states along the direction and against it come within a millionth of it, random ones stay far below."""
    bench = Bench(tiny_backbone(architecture), PROMPTS, DecodeSizes(tokens=9, top_k=(4,), batch=3))
    sure, norm = bench.certificate(), bench.rewarder.model.get_decoder().norm
    draw = torch.Generator().manual_seed(0)
    weight = bench.weight.double()
    scale = norm(torch.full((1, 24), 1e3, dtype=torch.float64))[0]
    towards, random = weight * scale, torch.randn(500, 24, generator=draw, dtype=torch.float64)
    ends = norm(1e3 * torch.stack([towards, -towards])) @ weight
    assert float(ends[0] - ends[1]) == pytest.approx(sure["bound"], rel=1e-6)
    found = norm(random) @ weight
    assert float(found.max() - found.min()) < sure["bound"]
    assert 0 < sure["spread"] < sure["bound"]


def test_every_way_to_score_gives_the_same_rewards() -> None:
    sizes = ScoreSizes(completion=6, positions=9, top_k=3, weights=2, sample=4, rounds=1)
    found = measure_scoring(text_backbone("gemma3"), PROMPTS[1], sizes)
    assert max(found["largest_difference"].values()) < 1e-5
    assert set(found["ratios"]) >= {"pair, two passes / packed", "2 weights / one"}


def test_prompts_have_about_the_wanted_length() -> None:
    backbone = load_backbone("synthetic-words")
    assert {len(ids) for ids in prompts_of_length(backbone, 14, 5, None)} == {14}
    data = load_dataset("synthetic_text", users=4, rows_per_user=6)
    found = prompts_of_length(backbone, 30, 6, data)
    assert len(found) == 6 and max(map(len, found)) <= 30
    lengths = sorted({len(backbone.encoder.encode_prompt(pair.prompt)) for pair in data.pairs})
    assert len(found[0]) == max(length for length in lengths if length <= 30)
    with pytest.raises(ConfigError, match="expected at least 900"):
        prompts_of_length(backbone, 30, 900, data)
