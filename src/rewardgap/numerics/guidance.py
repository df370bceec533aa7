"""The one formula of reward-guided decoding, and how strongly it speaks."""

from __future__ import annotations

import torch

from rewardgap.core.errors import ShapeError


def guided_scores(log_probs: torch.Tensor, rewards: torch.Tensor, guidance_weight: float) -> torch.Tensor:
    """Score candidate next tokens by fluency and reward.

        score(v) = log π(v | x, y<t) + λ · r(x, y<t, v)

    Args:
        log_probs: (B, K) log-probabilities of the candidates under the policy, nats.
        rewards: (B, K) reward of each prefix extended by its candidate; an offset per row changes nothing.
        guidance_weight: λ. At 0 the ranking is the policy's.

    Returns:
        (B, K) scores in float64; comparable within a row only.

    Raises:
        ShapeError: if the two shapes differ.

    Source: Khanov et al. 2024 (ARGS), scoring rule. The published code adds the reward to raw logits; a row's logits
        and log-probabilities differ by a constant, so the ranking is the same.
    """
    if log_probs.shape != rewards.shape:
        raise ShapeError(
            f"rewards has shape {tuple(rewards.shape)}, expected (B, K) = {tuple(log_probs.shape)}: one reward per "
            "candidate."
        )
    if guidance_weight == 0:
        return log_probs.double()
    return log_probs.double() + guidance_weight * rewards.double()


def draw(scores: torch.Tensor, uniforms: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return one index a row, drawn from softmax(scores / temperature) by inverting its distribution function.

    Args:
        scores: (B, K); -inf has no mass.
        uniforms: (B,) numbers in [0, 1), float64: one draw a row, so that a row's draw depends on nothing else.
        temperature: above 0.
    """
    mass = torch.softmax(scores.double() / temperature, dim=-1).cumsum(-1)
    picked = torch.searchsorted(mass, (uniforms.double() * mass[:, -1])[:, None], right=True).flatten()
    last = (torch.isfinite(scores) * torch.arange(1, scores.shape[-1] + 1, device=scores.device)).argmax(-1)
    return torch.minimum(picked, last)
