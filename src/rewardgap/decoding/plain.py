"""Decoding without a reward: greedy, and sampling at a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from rewardgap.core.errors import ConfigError
from rewardgap.decoding.base import DecoderCard
from rewardgap.numerics.guidance import draw


@dataclass(frozen=True)
class Greedy:
    """Takes the policy's most probable token."""

    name: str = "greedy"
    top_k: int | None = 1
    guidance_weight: float = 0.0
    draws: bool = False
    temperature: ClassVar[float] = 1.0

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Return 0 for each row: candidates come best first."""
        return torch.zeros(scores.shape[0], dtype=torch.long, device=scores.device)


@dataclass(frozen=True)
class Sample:
    """Draws from the policy at a temperature, over the whole vocabulary unless `top_k` is given."""

    temperature: float = 1.0
    top_k: int | None = None
    name: str = "sample"
    guidance_weight: float = 0.0
    draws: bool = True

    def __post_init__(self) -> None:
        """Refuse temperatures that are not positive and fewer than one candidate."""
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}. Use greedy for the limit.")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {self.top_k}. Leave it out for the whole vocabulary.")

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Return one drawn index a row."""
        assert uniforms is not None
        return draw(scores, uniforms, self.temperature)


GREEDY_CARD = DecoderCard(
    name="greedy",
    summary="The policy's most probable token at each step.",
    guided=False,
    build=Greedy,
    options={},
    equation="argmax of log π(v | x, y<t)",
)
SAMPLE_CARD = DecoderCard(
    name="sample",
    summary="A draw from the policy at a temperature.",
    guided=False,
    build=Sample,
    options={"temperature": "of the draw, above 0", "top_k": "draw among the k most probable tokens only"},
    equation="v ~ softmax(log π / τ)",
)
