"""What a decoder is: a rule that picks one of k candidates, or a search over longer pieces; and its card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from rewardgap.backbones.session import TrieSession
    from rewardgap.decoding.outcome import Decoded, StopRule, Watch
    from rewardgap.rewards.guide import Guide


STATE_VALUES = "state values"
TOKEN_REWARDS = "token rewards"
JUDGES = "judges"
"""Families of reward models: read on hidden states, so that every prefix has a value; summed over tokens; or comparing
whole texts, without a reward."""


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


@runtime_checkable
class Search(Protocol):
    """A decoder that chooses among pieces longer than a token: it has a loop of its own.

    It gives no token a probability that could be computed, so it scores no given text.
    """

    def search(
        self,
        session: TrieSession,
        tip_states: torch.Tensor,
        stop: StopRule,
        guide: Guide | None,
        seeds: Sequence[int],
        watch: Watch | None = None,
    ) -> list[Decoded]:
        """Generate until every row has ended; the arguments are those of `decode`."""
        ...

    def room(self, max_new_tokens: int) -> int:
        """Return the slots that a row needs behind its prompt, in the policy's session and in a guide's."""
        ...


@dataclass(frozen=True)
class DecoderCard:
    """A decoder as the catalogue lists it.

    Attributes:
        guided: whether it takes a reward model.
        build: makes the decoder from plain options.
        options: option -> meaning.
        families: kinds of reward models it works with.
        scores: whether it gives texts a probability, and so has a policy accuracy.
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
    families: tuple[str, ...] = ()
    scores: bool = True
