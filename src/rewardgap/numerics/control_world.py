"""The fixed bigram policy of the `synthetic_text` control: data are drawn from it, and a network is built from it."""

from __future__ import annotations

from functools import cache

from rewardgap.numerics.bigram import BigramTable, bigram_table

WORDS: tuple[str, ...] = (
    "river", "stone", "light", "garden", "paper", "winter", "music", "candle", "harbor", "forest", "copper", "summer",
)  # fmt: skip
TABLE_SEED = 20


@cache
def control_table() -> BigramTable:
    """Return the policy's table over the twelve words; the same for every seed of the dataset."""
    return bigram_table(WORDS, TABLE_SEED)
