"""The one place a decoder is named."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from rewardgap.core.catalog import Catalog
from rewardgap.core.errors import ConfigError
from rewardgap.decoding import args, best_of_n, blockwise, cards, plain, transfer_q

if TYPE_CHECKING:
    from rewardgap.decoding.base import Decoder, DecoderCard

DECODERS: Catalog[DecoderCard] = Catalog(
    "decoder",
    (
        plain.GREEDY_CARD,
        plain.SAMPLE_CARD,
        args.GREEDY_CARD,
        args.STOCHASTIC_CARD,
        best_of_n.CARD,
        blockwise.CARD,
        cards.CARD,
        transfer_q.CARD,
    ),
)


def build_decoder(name: str, **options: Any) -> Decoder:
    """Build a decoder from its name and options.

    Args:
        name: an entry of `DECODERS`.
        options: those of its card; the others keep their defaults.

    Raises:
        UnknownNameError: if there is no such decoder.
        ConfigError: if it has no such option, or a value is out of range.

    Example:
        >>> build_decoder("best_of_n", n=4).n
        4
    """
    card = DECODERS[name]
    unknown = [option for option in options if option not in card.options]
    if unknown:
        near = get_close_matches(unknown[0], card.options, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        known = ", ".join(card.options) or "none"
        raise ConfigError(f"decoder '{name}' has no option '{unknown[0]}'.{hint} Known: {known}.")
    try:
        decoder: Decoder = card.build(**options)
    except TypeError as error:
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise ConfigError(f"decoder '{name}' cannot be built from {given}: {error}.") from error
    return decoder
