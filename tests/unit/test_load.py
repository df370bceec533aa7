"""Loading: one sentence for everything that can be wrong with a model, and never a pickle."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rewardgap.backbones.hf import mask_form
from rewardgap.backbones.load import load_backbone, sampling_stride, weights_hash
from rewardgap.core.errors import ConfigError, ModelError
from standins import ARCHITECTURES, save_hub_folder, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def saved(folder: Path, architecture: str = "llama", **generation: Any) -> Path:
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, vocabulary=len(tokenizer) + 5, dtype=torch.float32)
    return save_hub_folder(folder / architecture, model, tokenizer, **generation)


def sentence(name: str | Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_backbone(str(name), **options)
    text = str(caught.value)
    assert "\n" not in text
    assert 20 < len(text) < 500
    return text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_comes_back(architecture: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, architecture, eos_token_id=[3, 5])
    backbone = load_backbone(str(folder))
    original = tiny_model(architecture, vocabulary=backbone.vocabulary, dtype=torch.float32)
    ids = torch.tensor([list(range(20))])
    torch.testing.assert_close(backbone.model(ids).logits, original(ids).logits)
    assert backbone.packs
    assert backbone.dtype == torch.float32
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not backbone.model.training
    assert {3, 5} < set(backbone.encoder.end_ids)
    assert backbone.context == 256
    assert backbone.width == 24
    assert load_backbone(f"file:{folder}").fingerprint == backbone.fingerprint


def test_float64_is_the_same_model_with_another_fingerprint(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    single, double = load_backbone(str(folder)), load_backbone(str(folder), dtype="float64")
    assert double.dtype == torch.float64
    assert single.fingerprint != double.fingerprint
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(single.model(ids).logits, double.model(ids).logits.float(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="unknown dtype 'float8'"):
        load_backbone(str(folder), dtype="float8")


def test_the_fingerprint_sees_every_weight_matrix(tmp_path: Path) -> None:
    model = tiny_model("gemma3", dtype=torch.float32)
    seen = {weights_hash(model)}
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.mul_(1.01).add_(1e-3)
        assert weights_hash(model) not in seen, name
        seen.add(weights_hash(model))


def test_the_fingerprint_meets_every_column() -> None:
    """A stride that is a multiple of the row's width would look at one column of a large matrix only."""
    model = tiny_model("llama", vocabulary=4096 * 6, dtype=torch.float32)
    before = weights_hash(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 1:] += 1
    assert weights_hash(model) != before


@given(rows=st.integers(1, 5000), columns=st.integers(1, 2000))
def test_sampled_values_of_any_matrix_meet_every_column(rows: int, columns: int) -> None:
    size = rows * columns
    step = sampling_stride(size, columns)
    met = {place % columns for place in range(0, size, step)}
    assert len(met) == min(columns, -(-size // step))
    assert len(met) >= min(columns, 2000, size)


def test_the_fingerprint_sees_settings_template_and_vocabulary(tmp_path: Path) -> None:
    """Equal weights read another way are another model: features of one must not be served to the other."""
    folder = saved(tmp_path, "mistral")
    seen = {load_backbone(str(folder)).fingerprint}
    config = json.loads((folder / "config.json").read_text())
    for change in ({"sliding_window": 4}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}):
        (folder / "config.json").write_text(json.dumps(config | change))
        seen.add(load_backbone(str(folder)).fingerprint)
    (folder / "config.json").write_text(json.dumps(config))
    assert load_backbone(str(folder)).fingerprint in seen
    assert len(seen) == 3
    tiny_tokenizer("qwen").save_pretrained(folder)
    seen.add(load_backbone(str(folder)).fingerprint)
    tiny_tokenizer("qwen", extra=["colour"]).save_pretrained(folder)
    seen.add(load_backbone(str(folder)).fingerprint)
    assert len(seen) == 5


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "a"), saved(tmp_path / "b" / "c")
    assert load_backbone(str(one)).fingerprint == load_backbone(str(two)).fingerprint


@pytest.mark.parametrize("name", ["/no/such/model", "./no/such", "file:no/such", "~/no/such/model"])
def test_paths_that_do_not_exist(name: str) -> None:
    assert "does not exist" in sentence(name)


@pytest.mark.parametrize(
    "name", ["", "gpt", "a/b/c", "smollm2", "hf:x", "@main", "/", "owner/na me", "owner/", "a//b", "o/n@"]
)
def test_names_that_are_nothing(name: str) -> None:
    text = sentence(name)
    if name not in ("/", "o/n@"):
        assert "neither a folder, nor a hub id (owner/name)" in text


def test_hub_ids_while_offline() -> None:
    for name in ("nobody/nothing", "hf:nobody/nothing@main", "nobody/nothing@v1"):
        text = sentence(name)
        assert "not in the local hub cache" in text
        assert "HF_HUB_OFFLINE is set" in text
        assert name in text


class Bomb:
    """Unpickling this would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("suffix", ["pytorch_model.bin", "adapter_model.bin", "model.pt"])
def test_a_pickle_is_never_read(tmp_path: Path, suffix: str) -> None:
    folder = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    trace = tmp_path / "ran"
    (folder / suffix).write_bytes(pickle.dumps(Bomb(trace)))
    torch.save(Bomb(trace), folder / f"zip_{suffix}")
    text = sentence(folder)
    assert "safetensors" in text
    assert not trace.exists()
    pickle.loads((folder / suffix).read_bytes())
    assert trace.exists()  # the trap works


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "config.json").unlink()
    assert str(folder) in sentence(folder)
    assert "cannot be loaded" in sentence(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path / "m", tiny_model("llama", dtype=torch.float32))
    assert "tokenizer" in sentence(folder)


def test_damaged_files(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        assert str(folder) in sentence(folder)
    (folder / "model.safetensors").write_bytes(whole)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        kept = (folder / name).read_bytes()
        for broken in (kept[: len(kept) // 2], b"", b"[]", b"\xff\xfe{}"):
            (folder / name).write_bytes(broken)
            assert str(folder) in sentence(folder), (name, broken[:10])
        (folder / name).write_bytes(kept)
    assert load_backbone(str(folder)).packs


def test_weights_that_are_missing_or_of_another_shape_are_never_made_up(tmp_path: Path) -> None:
    """transformers fills what a checkpoint lacks with random numbers; that would be a model nobody trained."""
    folder = saved(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for key in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        save_file({k: v for k, v in tensors.items() if k != key}, folder / "model.safetensors", {"format": "pt"})
        assert key in sentence(folder)
        save_file(tensors | {key: tensors[key][:-1]}, folder / "model.safetensors", {"format": "pt"})
        sentence(folder)


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, LlamaForSequenceClassification

    tokenizer = tiny_tokenizer()
    plain = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float32)
    plain.config.num_labels = 1
    judge = save_hub_folder(tmp_path / "judge", LlamaForSequenceClassification(plain.config), tokenizer)
    assert "lm_head" in sentence(judge)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=50)
    sentence(save_hub_folder(tmp_path / "bert", BertForSequenceClassification(config), tokenizer))
    folder = saved(tmp_path)
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"model_type": "of_next_year"}))
    sentence(folder)


def test_code_in_a_model_folder_does_not_run(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    trace = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
    facts = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    facts["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(facts))
    sentence(folder)
    assert not trace.exists()


def test_logits_that_are_changed_after_the_head_are_noticed(tmp_path: Path) -> None:
    """Granite divides its logits by a number that only its own forward knows."""
    from transformers import GraniteConfig, GraniteForCausalLM

    tokenizer = tiny_tokenizer()
    config = GraniteConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=8.0, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    folder = save_hub_folder(tmp_path / "granite", GraniteForCausalLM(config), tokenizer)
    assert "granite" in sentence(folder).lower()


def test_a_model_that_cannot_pack_says_so_and_gives_the_same_numbers(tmp_path: Path) -> None:
    """GPT-2 takes the mask and packs; BLOOM's positions are in its mask, so it cannot."""
    from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

    from rewardgap.backbones.session import tree_states
    from rewardgap.backbones.trie import Block

    tokenizer = tiny_tokenizer()
    shared = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    gpt2 = GPT2LMHeadModel(GPT2Config(**shared, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3))
    bloom = BloomForCausalLM(BloomConfig(**shared, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3))
    tree = Block((1, 2, 3, 4, 5, 6), (-1, 0, 1, 1, 3, 0))
    paths = [[1, 2, 3], [1, 2, 4, 5], [1, 6]]
    for model, nodes in ((gpt2, "gpt2"), (bloom, "bloom")):
        folder = save_hub_folder(tmp_path / nodes, model.eval(), tokenizer)
        if nodes == "bloom":
            with pytest.warns(UserWarning, match="does not take a packed attention mask"):
                backbone = load_backbone(str(folder))
            assert not backbone.packs
        else:
            backbone = load_backbone(str(folder))
            assert backbone.packs
        with torch.no_grad():
            states = tree_states(backbone, [tree])[0]
            for path, node in zip(paths, (2, 4, 5), strict=True):
                logits = model(torch.tensor([path])).logits[0, -1]
                torch.testing.assert_close(backbone.logits(states[node]), logits, rtol=1e-4, atol=1e-4)


def test_layers_of_an_unknown_kind_are_not_packed() -> None:
    """Chunked attention looks like full attention on a short probe, and is not."""
    config = tiny_model("qwen3").config
    assert mask_form(config) == "by_layer"
    config.layer_types = ["chunked_attention", "full_attention"]
    assert mask_form(config) == "unknown"
