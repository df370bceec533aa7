"""Plain counts beside ROUGE: length, emptiness and repetition, which move it without any personalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError
from rewardgap.metrics.base import check_pairing, is_empty, paired_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class LengthRatio:
    """Length of the prediction over that of the reference, white space at the ends aside.

    ratio = characters of the prediction / characters of the reference
    """

    name = "length_ratio"
    signature = "length_ratio|unit=characters"

    def score(self, predictions: Sequence[str], references: Sequence[str | None]) -> NDArray[np.float64]:
        """Return (N,) ratios; NaN without a reference, 0 for an empty prediction."""
        return paired_scores(
            predictions,
            references,
            lambda left, right: [len(a.strip()) / len(b.strip()) for a, b in zip(left, right, strict=True)],
        )


class EmptyRate:
    """1 for a prediction without text, 0 for any other; references are not looked at."""

    name = "empty_rate"
    signature = "empty_rate|empty=whitespace"

    def score(self, predictions: Sequence[str], references: Sequence[str | None]) -> NDArray[np.float64]:
        """Return (N,) ones and zeros."""
        check_pairing(predictions, references)
        return np.array([float(is_empty(text)) for text in predictions], dtype=np.float64)


class Distinct:
    """Share of distinct word n-grams within a prediction; low where decoding loops. References are not looked at.

        distinct-n = |set of n-grams| / |n-grams|

    Args:
        order: n, in words split at white space, lower-cased.

    Raises:
        ConfigError: if `order` is below 1.

    Source: Li et al. (2016). Deviation: within one text and not over a corpus, so that it has a value per example.
    """

    def __init__(self, order: int = 2) -> None:
        if order < 1:
            raise ConfigError(f"distinct-n needs n of at least 1; {order} came.")
        self.order = order
        self.name = f"distinct{order}"
        self.signature = f"{self.name}|words=whitespace|case=lower"

    def score(self, predictions: Sequence[str], references: Sequence[str | None]) -> NDArray[np.float64]:
        """Return (N,) shares in (0, 1]; NaN for a text too short to have an n-gram."""
        check_pairing(predictions, references)
        shares = np.full(len(predictions), np.nan)
        for row, text in enumerate(predictions):
            words = text.lower().split()
            grams = list(zip(*(words[start:] for start in range(self.order)), strict=False))
            if grams:
                shares[row] = len(set(grams)) / len(grams)
        return shares
