"""The networks of VPL as plain functions of named tensors: a set encoder of preference pairs and a reward decoder.

Shapes: D features, E and F the hidden widths of encoder and decoder, L the size of the latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import leaky_relu

if TYPE_CHECKING:
    from collections.abc import Mapping

LOWEST_LOG_VARIANCE = -6.0
HIGHEST_LOG_VARIANCE = 2.0

_SLOPE = 0.2
# Networks that start small in the features learn the few directions that matter; at full size they memorise pairs.
_FIRST_LAYERS = ("embed1", "decode_features")
_INITIAL_SIZE = 0.1


def network_shapes(width: int, encoder_width: int, decoder_width: int, latent: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors by name; without a latent there is no encoder."""
    decoder: dict[str, tuple[int, ...]] = {
        "decode_features": (width, decoder_width),
        "decode_latent": (latent, decoder_width),
        "decode_bias1": (decoder_width,),
        "decode2": (decoder_width, decoder_width),
        "decode_bias2": (decoder_width,),
        "decode3": (decoder_width, 1),
    }
    encoder: dict[str, tuple[int, ...]] = {
        "embed1": (2 * width, encoder_width),
        "embed_bias1": (encoder_width,),
        "embed2": (encoder_width, encoder_width),
        "embed_bias2": (encoder_width,),
        "embed3": (encoder_width, latent),
        "embed_bias3": (latent,),
        "attention_query": (latent, latent),
        "attention_query_bias": (latent,),
        "attention_key": (latent, latent),
        "attention_value": (latent, latent),
        "posterior_mean": (latent, latent),
        "posterior_mean_bias": (latent,),
        "posterior_spread": (latent, latent),
        "posterior_spread_bias": (latent,),
    }
    return decoder | (encoder if latent > 0 else {})


def draw_networks(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Draw matrices from N(0, 1 / inputs), first layers at a tenth of that size; biases are zero.

    Args:
        shapes: from `network_shapes`.
        generator: of the draws.

    Returns:
        Tensors by name, in float64.
    """
    drawn = {}
    joint_inputs = shapes["decode_features"][0] + shapes["decode_latent"][0]
    for name, shape in shapes.items():
        if len(shape) == 1:
            drawn[name] = torch.zeros(shape, dtype=torch.float64)
            continue
        inputs = joint_inputs if name in ("decode_features", "decode_latent") else shape[0]
        size = (_INITIAL_SIZE if name in _FIRST_LAYERS else 1.0) / inputs**0.5
        drawn[name] = size * torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn


def embed_pairs(networks: Mapping[str, torch.Tensor], chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Return the embeddings of pairs; the order of the two sides is the label.

        e = MLP([h+; h-])

    Args:
        networks: the tensors by name.
        chosen: (..., D) standardised features.
        rejected: (..., D) standardised features.

    Returns:
        (..., L) embeddings.
    """
    first, width = networks["embed1"], chosen.shape[-1]
    hidden = leaky_relu(chosen @ first[:width] + rejected @ first[width:] + networks["embed_bias1"], _SLOPE)
    hidden = leaky_relu(hidden @ networks["embed2"] + networks["embed_bias2"], _SLOPE)
    return hidden @ networks["embed3"] + networks["embed_bias3"]


def pool_embeddings(
    networks: Mapping[str, torch.Tensor], embedded: torch.Tensor, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and log variance of the posterior q(z | C) of a set of pairs.

        s = mean_i Σ_j softmax_j(q_iᵀ k_j / √L) v_j,   μ = A s + a,   log σ² = -6 + 8 · sigmoid(B s + b)

    The order of the pairs means nothing. The log variance stays in (-6, 2) with a slope everywhere, where a clamp has
    none beyond its ends; it starts in the middle. The posterior of the empty set is the prior N(0, I). A key has no
    bias, since it would add the same number to a whole row of the softmax; a value has none, since a and b follow.

    Args:
        networks: the tensors by name.
        embedded: (..., n, L) embeddings.
        present: (..., n) booleans; what is not present does not count.

    Returns:
        Two tensors (..., L).

    Source: VPL, arXiv 2408.10075: self-attention over the pairs, then their mean.
    """
    query = embedded @ networks["attention_query"] + networks["attention_query_bias"]
    scores = query @ (embedded @ networks["attention_key"]).mT / embedded.shape[-1] ** 0.5
    # Finite, so that the empty set has a gradient of zero rather than of NaN.
    scores = scores.masked_fill(~present.unsqueeze(-2), torch.finfo(scores.dtype).min)
    attended = torch.softmax(scores, dim=-1) @ (embedded @ networks["attention_value"])
    count = present.sum(-1, keepdim=True)
    pooled = (attended * present.unsqueeze(-1)).sum(-2) / count.clamp(min=1)
    known = (count > 0).to(pooled.dtype)
    mean = pooled @ networks["posterior_mean"] + networks["posterior_mean_bias"]
    spread = torch.sigmoid(pooled @ networks["posterior_spread"] + networks["posterior_spread_bias"])
    log_variance = LOWEST_LOG_VARIANCE + (HIGHEST_LOG_VARIANCE - LOWEST_LOG_VARIANCE) * spread
    return mean * known, log_variance * known


def decode_rewards(networks: Mapping[str, torch.Tensor], features: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """Return the rewards of features for latents.

        r = MLP([h; z])

    There is no last bias: it would cancel in every pair.

    Args:
        networks: the tensors by name.
        features: (..., D) standardised features.
        latent: (..., L) latents; leading axes broadcast.

    Returns:
        (...) rewards.
    """
    personal = latent @ networks["decode_latent"] + networks["decode_bias1"]
    hidden = leaky_relu(features @ networks["decode_features"] + personal, _SLOPE)
    hidden = leaky_relu(hidden @ networks["decode2"] + networks["decode_bias2"], _SLOPE)
    return (hidden @ networks["decode3"]).squeeze(-1)


def standard_normal_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return how far a Gaussian is from the standard normal, for each dimension.

        KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² - 1 - log σ²)

    Args:
        mean: (...) means.
        log_variance: (...) logarithms of the variances.

    Returns:
        (...) divergences in nats.

    Example:
        >>> standard_normal_kl(torch.tensor([0.0, 1.0]), torch.zeros(2)).tolist()
        [0.0, 0.5]
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
