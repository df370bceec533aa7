"""Small networks with random weights and awkward sizes, a small tokenizer, and the wrappers that make them backbones."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rewardgap.backbones.chat import ChatEncoder
from rewardgap.backbones.hf import Backbone, mask_form
from rewardgap.backbones.load import weights_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "mistral")
WINDOW = 8

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_LIKE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
GEMMA_LIKE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' "
    "+ message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
TRIMS_SOME = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ message['content'].lstrip('\n') }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] | trim }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "qwen": QWEN_LIKE, "gemma": GEMMA_LIKE, "trims_some": TRIMS_SOME}

_CORPUS = [
    "Name a colour, for example red. One word, please.\nThe user wrote the text and the answer.",
    "what is the name of the river in the garden? the stone and the light of winter",
    "system user assistant model You are helpful.\n\n 1 2 3 4 5 6 7 8 9 10",
] * 3


@cache
def _bpe(across: bool = False) -> str:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=390 if across else 330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    raw.train_from_iterator(_CORPUS, trainer)
    return raw.to_str()


def tiny_tokenizer(
    template: str | None = "chatml", *, bos: bool = False, extra: Sequence[AddedToken] = (), across: bool = False
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer; `bos` makes it put `<|begin|>` before every text.

    With `across` it is another one: its merges go across blanks, so that a longer text is often read anew.
    """
    raw = Tokenizer.from_str(_bpe(across))
    raw.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>"])
    raw.add_tokens(list(extra))
    if bos:
        begin = raw.token_to_id("<|begin|>")
        raw.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", begin)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        bos_token="<|begin|>" if bos or template == "gemma" else None,
    )
    if template is not None:
        tokenizer.chat_template = TEMPLATES.get(template, template)
    return tokenizer


def tiny_model(architecture: str, *, vocabulary: int = 29, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """Return a random network: 4 query and 2 key heads of width 10 on hidden states of width 24, window 8 where it has one."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 256,
        "initializer_range": 0.35,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": architecture in ("gemma3", "qwen2"),
    }
    if architecture == "llama":
        config, build = LlamaConfig(**shape), LlamaForCausalLM
    elif architecture == "mistral":
        config, build = MistralConfig(**shape, sliding_window=WINDOW), MistralForCausalLM
    elif architecture == "qwen2":
        config, build = Qwen2Config(**shape), Qwen2ForCausalLM
    elif architecture == "qwen3":
        config = Qwen3Config(**shape, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
        build = Qwen3ForCausalLM
    elif architecture == "gemma3":
        shape["num_hidden_layers"] = 3
        config = Gemma3TextConfig(
            **shape,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=10,
            final_logit_softcapping=20.0,
        )
        build = Gemma3ForCausalLM
    else:
        raise ValueError(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases: away from one and zero, so that leaving one out shows
                torch.nn.init.normal_(parameter, 0.0 if "bias" in name or architecture == "gemma3" else 1.0, 0.2)
    model = model.to(dtype).eval().requires_grad_(False)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.__class__ = _double_norm(type(module))
    return model


@cache
def _double_norm(norm: type) -> type:
    """Return the norm without its detour through float32, which would leave seven digits of an identity."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        epsilon = self.eps if "Gemma" in norm.__name__ else self.variance_epsilon
        scaled = hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + epsilon)
        return scaled * (1 + self.weight if "Gemma" in norm.__name__ else self.weight)

    return type(norm.__name__, (norm,), {"forward": forward})


def as_backbone(model: Any, tokenizer: Any | None = None, *, packs: bool = True, name: str = "tiny") -> Backbone:
    """Wrap a network as `load_backbone` would."""
    encoder = ChatEncoder(tokenizer if tokenizer is not None else tiny_tokenizer())
    return Backbone(name, weights_hash(model), model, encoder, packs, mask_form(model.config))


@cache
def tiny_backbone(
    architecture: str = "llama",
    *,
    vocabulary: int = 29,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    packs: bool = True,
) -> Backbone:
    """Return a backbone over bare token ids; shared, so do not change it."""
    return as_backbone(tiny_model(architecture, vocabulary=vocabulary, seed=seed, dtype=dtype), packs=packs)


@cache
def text_backbone(
    architecture: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float64, packs: bool = True
) -> Backbone:
    """Return a backbone whose vocabulary is the small tokenizer's, with five padded rows; shared."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, vocabulary=len(tokenizer) + 5, seed=seed, dtype=dtype)
    return as_backbone(model, tokenizer, packs=packs)


def without_packing(backbone: Backbone) -> Backbone:
    """Return the same backbone, told that it cannot pack."""
    return Backbone(backbone.name, backbone.fingerprint, backbone.model, backbone.encoder, False, backbone._mask_form)


def private_copy(backbone: Backbone) -> Backbone:
    """Return a copy whose weights may be changed."""
    model = copy.deepcopy(backbone.model)
    return Backbone(backbone.name, backbone.fingerprint, model, backbone.encoder, backbone.packs, backbone._mask_form)


def save_hub_folder(folder: Path, model: Any, tokenizer: Any | None = None, **generation: Any) -> Path:
    """Write a model, and a tokenizer if given, in the hub's layout."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


class DotHead:
    """A linear reward head: one weight vector a user, r = w · h."""

    def batch_rewards(self, features: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        weights = torch.stack(list(states)).to(features)
        return torch.einsum("b...d,bd->b...", features, weights)
