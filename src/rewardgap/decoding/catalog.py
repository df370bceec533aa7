"""The one place a decoder is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.core.catalog import Catalog
from rewardgap.decoding import args, plain

if TYPE_CHECKING:
    from rewardgap.decoding.base import DecoderCard

DECODERS: Catalog[DecoderCard] = Catalog(
    "decoder", (plain.GREEDY_CARD, plain.SAMPLE_CARD, args.GREEDY_CARD, args.STOCHASTIC_CARD)
)
