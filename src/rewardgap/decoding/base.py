"""What a decoder is: a rule that picks one of k candidates, and the card that lists it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Decoder(Protocol):
    """Picks the next token among candidates.

    Attributes:
        name: entry in the catalogue.
        top_k: candidates looked at; None for the whole vocabulary.
        guidance_weight: λ; ignored without a guide.
    """

    @property
    def name(self) -> str:
        """Return the name in the catalogue."""
        ...

    @property
    def top_k(self) -> int | None:
        """Return the number of candidates, None for the whole vocabulary."""
        ...

    @property
    def guidance_weight(self) -> float:
        """Return λ."""
        ...

    @property
    def temperature(self) -> float:
        """Return the temperature of the distribution that scores are taken under; 1 for greedy decoders."""
        ...

    @property
    def draws(self) -> bool:
        """Return whether `choose` needs random numbers."""
        ...

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Return the index of the chosen candidate in each row of (B, K) scores.

        Candidates come best first under π, or, without a `top_k`, in the order of their ids.
        """
        ...


@dataclass(frozen=True)
class DecoderCard:
    """A decoder as the catalogue lists it.

    Attributes:
        guided: whether it takes a reward model.
        build: makes the decoder from plain options.
        options: option -> meaning.
    """

    name: str
    summary: str
    guided: bool
    build: type
    options: dict[str, str]
    paper: str = ""
    equation: str = ""
    peer: str = ""
    deviations: tuple[str, ...] = ()
