"""The reward models: the one place where a method is named."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from rewardgap.core.catalog import Catalog
from rewardgap.core.errors import ConfigError
from rewardgap.rewards import farma, genarm, global_bt, lore, mpu, p_dpo, pad, pal_a, pal_b, pref, vpl

if TYPE_CHECKING:
    from rewardgap.rewards.base import Head, MethodCard

REWARD_MODELS: Catalog[MethodCard] = Catalog(
    "reward model",
    (
        global_bt.CARD,
        mpu.CARD,
        lore.CARD,
        pref.CARD,
        pal_a.CARD,
        pal_b.CARD,
        vpl.CARD,
        p_dpo.CARD,
        pad.CARD,
        genarm.CARD,
        farma.CARD,
    ),
)


def fit_mode_of(method: str, asked: Literal["frozen", "lora"] | None = None) -> Literal["frozen", "lora"]:
    """Return how a method is fitted: as asked, else in its own way.

    Raises:
        UnknownNameError: if there is no such method.
        ConfigError: if it cannot be fitted as asked.
    """
    own: Literal["frozen", "lora"] = "frozen" if REWARD_MODELS[method].family == "head" else "lora"
    if own == "lora" and asked == "frozen":
        raise ConfigError(f"{method} trains an adapter, it reads no features; leave fit_mode out.")
    return asked or own


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
