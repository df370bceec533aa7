"""ARGS: reward-guided token search among the top-k candidates of the policy (Khanov et al. 2024, arXiv 2402.01694)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from rewardgap.core.errors import ConfigError
from rewardgap.decoding.base import STATE_VALUES, TOKEN_REWARDS, DecoderCard
from rewardgap.numerics.guidance import draw

_DEVIATIONS = (
    "Log-probabilities in the place of raw logits; the ranking is the same.",
    "Decoding stops at every end token of the model; the published code runs to the length limit.",
    "An end-token candidate takes the reward of the prefix it closes, since heads are read on content tokens.",
)


@dataclass(frozen=True)
class ArgsGreedy:
    """Takes the candidate with the highest log π + λ r.

    Args:
        guidance_weight: λ, in units of the reward's margin deviation on training users.
        top_k: candidates a step.
    """

    guidance_weight: float = 1.0
    top_k: int = 10
    name: str = "args_greedy"
    draws: bool = False
    temperature: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Refuse fewer than one candidate and weights that are no number."""
        _check(self.top_k, self.guidance_weight)

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Return the first index of each row's maximum; candidates come best first, so ties go to the policy."""
        best = scores.max(-1, keepdim=True).values
        return (scores == best).to(torch.uint8).argmax(-1)


@dataclass(frozen=True)
class ArgsStochastic:
    """Draws a candidate from softmax((log π + λ r) / temperature).

    Args:
        guidance_weight: λ.
        top_k: candidates a step.
        temperature: above 0; at 1 and top_k = V the draw follows π exp(λ r) / Z.
    """

    guidance_weight: float = 1.0
    top_k: int = 10
    temperature: float = 1.0
    name: str = "args_stochastic"
    draws: bool = True

    def __post_init__(self) -> None:
        """Refuse fewer than one candidate, weights that are no number and temperatures that are not positive."""
        _check(self.top_k, self.guidance_weight)
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}. Use args_greedy for the limit.")

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Return one drawn index a row."""
        assert uniforms is not None
        return draw(scores, uniforms, self.temperature)


def _check(top_k: int, guidance_weight: float) -> None:
    if not isinstance(top_k, int) or top_k < 1:
        raise ConfigError(f"top_k must be a whole number and at least 1, got {top_k!r}.")
    if not math.isfinite(guidance_weight):
        raise ConfigError(f"guidance_weight must be a finite number, got {guidance_weight}.")


_OPTIONS = {"guidance_weight": "λ, weight of the reward against log-probability", "top_k": "candidates a step"}

GREEDY_CARD = DecoderCard(
    name="args_greedy",
    summary="Reward-guided token search, highest log π + λ r among the top-k candidates.",
    guided=True,
    build=ArgsGreedy,
    options=_OPTIONS,
    paper="Khanov, Burapacheep, Li 2024, ARGS, arXiv 2402.01694",
    equation="argmax over top-k of log π(v | x, y<t) + λ r(x, y<t, v)",
    peer="deeplearning-wisc/args argsearch.py @ db0e1c1",
    deviations=_DEVIATIONS,
    families=(STATE_VALUES, TOKEN_REWARDS),
)
STOCHASTIC_CARD = DecoderCard(
    name="args_stochastic",
    summary="Reward-guided token search, drawn from softmax((log π + λ r) / temperature) over the top-k candidates.",
    guided=True,
    build=ArgsStochastic,
    options=_OPTIONS | {"temperature": "of the draw, above 0"},
    paper="Khanov, Burapacheep, Li 2024, ARGS, arXiv 2402.01694",
    equation="v ~ softmax over top-k of (log π + λ r) / τ",
    peer="deeplearning-wisc/args argsearch.py @ db0e1c1, where the temperature argument is never passed on",
    deviations=_DEVIATIONS,
    families=(STATE_VALUES, TOKEN_REWARDS),
)
