"""The same network in less time: prepared weights for small batches of tokens, and attention without copied heads.

Nothing here knows an architecture: what may be done in another way is tried against the network itself. It is done for
networks in float32 on a CPU, while no gradient is wanted.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from rewardgap.backbones.lean_layer import joined_to_prepare, make_lean_layers
from rewardgap.backbones.prepared import SIZES, PreparedLinear

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARE = 1 / 8
"""Prepared weights may take this share of the machine's memory, all sizes together; else they are left alone."""
ATTENTION = "rewardgap_grouped"


def make_lean(model: Any) -> None:
    """Let a network run faster where it can; its weights, their names and its results stay what they are.

    Args:
        model: a causal language model of transformers, changed in place.
    """
    _group_heads(model)
    _join_norms(model)
    layers = list(_layers(model))
    bytes_needed = len(SIZES) * sum(layer.weight.numel() * 4 for layer in layers)
    if layers and bytes_needed <= SHARE * _memory():
        for layer in layers:
            layer.__class__ = PreparedLinear
        make_lean_layers(model)


class JoinedNorm:
    """Root mean square normalisation in one call where no gradient is wanted; a layer's class is derived from it."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return (..., D) of (..., D): that of the layer's own class, to the last bit."""
        if torch.is_grad_enabled():
            plain: torch.Tensor = super().forward(hidden_states)  # type: ignore[misc]
            return plain
        weight: torch.Tensor = self.weight  # type: ignore[attr-defined]
        return functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)  # type: ignore[attr-defined]


def weights_to_prepare(model: Any) -> int:
    """Return the bytes that a network's prepared weights will still take, once a batch of every size was met."""
    joined, bytes_needed = joined_to_prepare(model)
    layers = (module for module in model.modules() if isinstance(module, PreparedLinear) and module not in joined)
    return bytes_needed + sum((len(SIZES) - layer.num_prepared) * layer.weight.numel() * 4 for layer in layers)


def _layers(model: Any) -> Iterator[torch.nn.Linear]:
    """Yield the linear layers of the decoder that may be prepared; the output head reads one token a row anyway."""
    if not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")):  # type: ignore[no-untyped-call]
        return
    for module in model.get_decoder().modules():
        if type(module) is torch.nn.Linear:
            weight = module.weight
            if weight.dtype == torch.float32 and weight.device.type == "cpu":
                yield module


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a system that tells
        return 0


def _join_norms(model: Any) -> None:
    """Turn normalisations into single calls, where that is the same to the bit: tried, not read off a name."""
    joined: dict[type, type] = {}
    for module in model.get_decoder().modules():
        kind = type(module)
        weight = getattr(module, "weight", None)
        if isinstance(module, JoinedNorm) or not hasattr(module, "variance_epsilon") or weight is None:
            continue
        if weight.ndim != 1 or weight.dtype != torch.float32 or weight.device.type != "cpu":
            continue
        rows = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            same = torch.equal(module(rows), functional.rms_norm(rows, weight.shape, weight, module.variance_epsilon))
        if same:
            module.__class__ = joined.setdefault(kind, type(kind.__name__, (JoinedNorm, kind), {}))


def _group_heads(model: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config.get_text_config()
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return
    AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    config._attn_implementation = ATTENTION


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention in which the queries that share a key head are one longer query, so that no key is copied.

    Args:
        module: the attention layer.
        query: (B, H, Q, d).
        key: (B, G, S, d), H a multiple of G.
        value: (B, G, S, d).
        attention_mask: (B, 1, Q, S), True or 0 where a query sees a key; anything else goes to transformers' own.
        dropout: share of weights dropped; only 0 is done here.
        scaling: of the products.
        rest: what transformers passes on.

    Returns:
        (B, Q, H, d), and None in the place of weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, length, width = query.shape
    groups = key.shape[1]
    plain = attention_mask is None or attention_mask.ndim != 4 or attention_mask.shape[1] != 1
    plain = plain or any(rest.get(name) is not None for name in ("position_bias", "cache"))
    if plain or heads == groups or dropout or torch.is_grad_enabled() or query.device.type != "cpu":
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return out
    assert attention_mask is not None
    share = heads // groups
    mask = attention_mask[:, :, None].expand(-1, -1, share, -1, -1).flatten(2, 3)
    folded = functional.scaled_dot_product_attention(
        query.reshape(rows, groups, share * length, width), key, value, attn_mask=mask, scale=scaling
    )
    return folded.reshape(rows, heads, length, width).transpose(1, 2).contiguous(), None
