"""What a tuning of the guidance weight tries, and by what it is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError
from rewardgap.decoding.catalog import DECODERS
from rewardgap.studies.single import build_decoder

if TYPE_CHECKING:
    from rewardgap.decoding.base import Decoder

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """What is tried, and by what it is judged.

    Args:
        weights: values of λ; 0 is always among them, since every other is compared with it.
        reward_model: which steers, by label or method; the first of the study that can unless given.
        judge: another one, which rewards what was written; the first other that rewards tokens unless given.
        decoder: a guided one.
        top_k: candidates a step; the decoder's own unless given.
        metric: a behaviour metric.
        limit: held-out rows at most, drawn by the study's seed.

    Raises:
        ConfigError: if a weight is not finite, or none differs from 0.
    """

    weights: tuple[float, ...] = WEIGHTS
    reward_model: str | None = None
    judge: str | None = None
    decoder: str = "args_greedy"
    top_k: int | None = None
    metric: str = "rouge1"
    limit: int | None = None

    def __post_init__(self) -> None:
        """Refuse weights that are no number, and a grid with nothing to choose from."""
        endless = [weight for weight in self.weights if not math.isfinite(weight)]
        if endless:
            raise ConfigError(f"guidance weight {endless[0]} is not a finite number.")
        if not set(self.weights) - {0.0}:
            raise ConfigError("no guidance weight but 0 is tried; give --weights, for example 0 0.5 1 2.")

    @property
    def grid(self) -> list[float]:
        """Return the weights, each once, from the smallest up, 0 among them."""
        return sorted({0.0, *(weight + 0.0 for weight in self.weights)})

    def build(self, weight: float) -> Decoder:
        """Return the decoder at one weight.

        Raises:
            UnknownNameError: if there is no such decoder.
            ConfigError: if it has no guidance weight, or no such option.
        """
        card = DECODERS[self.decoder]
        if not card.guided or "guidance_weight" not in card.options:
            raise ConfigError(f"decoder '{self.decoder}' has no guidance weight to choose; use args_greedy.")
        return build_decoder(self.decoder, guidance_weight=weight, top_k=self.top_k)

    def line(self, reward_model: str, weight: float) -> str:
        """Return a deployment as a study lists it."""
        import yaml

        value: dict[str, Any] = {
            "decoder": self.decoder,
            "reward_models": [reward_model],
            "guidance_weight": int(weight) if weight == int(weight) else weight,
        }
        if "top_k" in DECODERS[self.decoder].options:
            value["top_k"] = self.build(weight).top_k
        return (
            "- "
            + yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000, allow_unicode=True).strip()
        )
