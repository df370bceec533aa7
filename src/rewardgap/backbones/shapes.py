"""Networks of a known architecture's size with random weights: for measuring where the weights themselves are not."""

from __future__ import annotations

from typing import Any

import torch

from rewardgap.backbones.chat import ChatEncoder
from rewardgap.backbones.hf import Backbone
from rewardgap.core.errors import UnknownNameError
from rewardgap.core.store import content_hash
from rewardgap.numerics.control_world import WORDS

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2.5-3b": {
        "model_type": "qwen2", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Name of a public checkpoint to the settings of its configuration; the rest is the architecture's own default."""


def random_backbone(shape: str, *, dtype: str = "float32", device: str = "cpu", seed: int = 0) -> Backbone:
    """Return a backbone of a known size with random weights and a vocabulary of a few words.

    Every word is one token, so the length of a text in words is its length in tokens.

    Raises:
        UnknownNameError: if there is no such shape.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    if shape not in SHAPES:
        raise UnknownNameError("shape", shape, list(SHAPES))
    settings = dict(SHAPES[shape])
    end = len(WORDS)
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate((*WORDS, "<end>"))}, unk_token="<end>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")
    config = AutoConfig.for_model(
        settings.pop("model_type"), **settings, max_position_embeddings=32768, bos_token_id=None, eos_token_id=end
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    encoder = ChatEncoder(tokenizer, (end,))
    backbone = Backbone(f"random {shape}", content_hash([shape, seed, dtype]), model, encoder)
    backbone.prove_packing()
    return backbone
