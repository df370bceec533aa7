"""The reward models: the one place where a method is named."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from rewardgap.core.catalog import Catalog
from rewardgap.core.errors import ConfigError
from rewardgap.rewards import global_bt, lore

if TYPE_CHECKING:
    from rewardgap.rewards.base import Head, MethodCard

REWARD_MODELS: Catalog[MethodCard] = Catalog(
    "reward model",
    (
        global_bt.CARD,
        lore.CARD,
    ),
)


def build_head(name: str, **options: Any) -> Head:
    """Build an unfitted head from its name and settings.

    Args:
        name: an entry of `REWARD_MODELS`.
        options: fields of its config; the others keep their defaults.

    Raises:
        UnknownNameError: if there is no such method.
        ConfigError: if it has no such option, or a value is out of range.

    Example:
        >>> build_head("lore", rank=4).config()["rank"]
        4
    """
    card = REWARD_MODELS[name]
    known = [entry.name for entry in fields(card.config)]
    unknown = [option for option in options if option not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{name} has no option '{unknown[0]}'.{hint} Known: {', '.join(known)}.")
    return card.build(card.config(**options))
