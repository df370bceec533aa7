"""How continuations are drawn: random numbers by row and chain, temperature and nucleus, and what options may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rewardgap.core.errors import ConfigError
from rewardgap.core.seeds import child_seed
from rewardgap.numerics.guidance import draw
from rewardgap.numerics.topk import top_candidates

if TYPE_CHECKING:
    from collections.abc import Sequence

Place = tuple[int, int]
"""A row of a batch, and one of its streams of random numbers."""


def stream_seed(seed: int, stream: int) -> int:
    """Return the seed of one of a row's streams of random numbers; stream 0 has the row's own."""
    return child_seed(seed, "chain", stream) if stream else seed


class Streams:
    """The random numbers of many chains of each row: number t of a stream decides token t of the row's text there.

    Stream 0 is what sampling the row once uses. A number depends on the row's seed, the stream and t only: a row draws
    the same in any batch, and its first chains are the same however many are drawn.

    Args:
        seeds: one a row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._generators: dict[Place, np.random.Generator] = {}
        self._drawn: dict[Place, list[float]] = {}

    def at(self, places: Sequence[Place], steps: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return (N,) numbers in [0, 1), float64."""
        values = [self._number(place, step) for place, step in zip(places, steps, strict=True)]
        return torch.tensor(values, dtype=torch.float64, device=device)

    def _number(self, place: Place, step: int) -> float:
        if place not in self._generators:
            row, stream = place
            seed = stream_seed(self._seeds[row], stream)
            self._generators[place], self._drawn[place] = np.random.Generator(np.random.PCG64(seed)), []
        drawn = self._drawn[place]
        while len(drawn) <= step:
            drawn.append(self._generators[place].random())
        return drawn[step]


@dataclass(frozen=True)
class Sampler:
    """Draws tokens from the policy at a temperature, among the most probable that hold a share of the mass.

    Args:
        streams: the random numbers.
        temperature: above 0.
        top_p: in (0, 1].
    """

    streams: Streams
    temperature: float = 1.0
    top_p: float = 1.0

    def pick(self, log_probs: torch.Tensor, places: Sequence[Place], steps: Sequence[int]) -> torch.Tensor:
        """Return a token for each row of (N, V) log-probabilities."""
        kept = nucleus(log_probs, self.top_p, self.temperature)
        return draw(kept, self.streams.at(places, steps, log_probs.device), self.temperature)


class Greediest:
    """Takes the most probable token, of equal ones the lowest id."""

    def pick(self, log_probs: torch.Tensor, places: Sequence[Place], steps: Sequence[int]) -> torch.Tensor:
        """Return a token for each row of (N, V) log-probabilities."""
        return top_candidates(log_probs, 1)[1].flatten()


def first_best(scores: torch.Tensor) -> torch.Tensor:
    """Return the first index of each row's maximum in (B, K) scores."""
    return (scores == scores.max(-1, keepdim=True).values).to(torch.uint8).argmax(-1)


def nucleus(log_probs: torch.Tensor, top_p: float, temperature: float = 1.0) -> torch.Tensor:
    """Return log-probabilities with -inf outside the nucleus.

    The nucleus is the shortest list of tokens, most probable first and equal ones by id, whose mass at the temperature
    reaches `top_p`.

    Args:
        log_probs: (N, V); -inf has no mass.
        top_p: in (0, 1]; at 1 nothing changes.
        temperature: above 0.

    Source: nucleus sampling, arXiv 1904.09751, behind the temperature, as transformers orders the two.
    """
    if top_p >= 1:
        return log_probs
    best, index = torch.sort(log_probs.double(), dim=-1, descending=True, stable=True)
    mass = torch.softmax(best / temperature, -1).cumsum(-1)
    outside = torch.nn.functional.pad(mass[:, :-1], (1, 0)) >= top_p
    return log_probs.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), -torch.inf)


def check_counts(decoder: str, least: int, **values: Any) -> None:
    """Refuse options that are no whole number of at least `least`.

    Raises:
        ConfigError: naming the decoder, the option and the value.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{decoder}: {name} must be a whole number of at least {least}, got {value!r}.")


def check_numbers(decoder: str, **values: Any) -> None:
    """Refuse options that are no finite number.

    Raises:
        ConfigError: naming the decoder, the option and the value.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{decoder}: {name} must be a finite number, got {value!r}.")


def check_sampling(decoder: str, temperature: Any, top_p: Any) -> None:
    """Refuse a temperature that is not positive and a nucleus outside (0, 1].

    Raises:
        ConfigError: naming the decoder, the option and the value.
    """
    check_numbers(decoder, temperature=temperature, top_p=top_p)
    if temperature <= 0:
        raise ConfigError(f"{decoder}: temperature must be above 0, got {temperature}.")
    if not 0 < top_p <= 1:
        raise ConfigError(f"{decoder}: top_p must be above 0 and at most 1, got {top_p}.")
