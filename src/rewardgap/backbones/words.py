"""A Llama whose next-token distribution is known in closed form: the policy behind the `synthetic_text` dataset.

Its weights are set by hand, so that it is a bigram model and nothing else: embeddings are one-hot, the only attention
layer averages the one-hot vectors of all earlier tokens (a bag of words) into a second block of the hidden state, and
the output head reads the first block alone. So log π(v | prefix) is the table's entry for the last token, while the
hidden state also tells which words came before: enough for a linear reward head to learn a utility over words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rewardgap.core.store import cache_root, content_hash, new_folder
from rewardgap.numerics.control_world import control_table

if TYPE_CHECKING:
    from pathlib import Path

BAG_SIZE = 1e-3
"""Length of the bag-of-words block beside the one-hot block; its square is what the final norm adds, below float32."""


def words_model(words: tuple[str, ...], log_probs: np.ndarray) -> tuple[Any, Any]:
    """Return a Llama model and its tokenizer that follow a bigram table.

    Args:
        words: W words; ids 0..W-1, then the end token.
        log_probs: (V, V) with V = W + 1; row = previous token, column = next token, nats.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    size = len(words) + 1
    vocabulary = {word: index for index, word in enumerate(words)} | {"<end>": len(words)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=2 * size,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2 * size,
        max_position_embeddings=256,
        eos_token_id=len(words),
        bos_token_id=None,
        pad_token_id=len(words),
        tie_word_embeddings=False,
        rms_norm_eps=1e-12,
    )
    model = LlamaForCausalLM(config).eval()
    layer = model.model.layers[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
            norm.weight.fill_(1.0)
        hot = torch.arange(size)
        model.model.embed_tokens.weight[hot, hot] = 1.0
        # The norm makes a one-hot vector sqrt(2 V) long; queries and keys are zero, so all tokens weigh alike.
        layer.self_attn.v_proj.weight[hot, hot] = 1.0
        layer.self_attn.o_proj.weight[size + hot, hot] = BAG_SIZE / (2 * size) ** 0.5
        table = torch.from_numpy(np.asarray(log_probs, np.float64)).T / (2 * size) ** 0.5
        model.lm_head.weight[:, :size] = table.float()
    return model, tokenizer


def words_folder() -> Path:
    """Return the folder of the `synthetic_text` policy in the hub's layout, made in the cache if it is not there."""
    table = control_table()
    name = content_hash([list(table.words), table.log_probs.round(12).tolist(), BAG_SIZE, 1])
    folder = cache_root() / "models" / f"synthetic-words-{name}"
    if (folder / "config.json").exists():
        return folder
    with new_folder(folder) as scratch:
        model, tokenizer = words_model(table.words, table.log_probs)
        model.save_pretrained(scratch, safe_serialization=True)
        tokenizer.save_pretrained(scratch)
    return folder
