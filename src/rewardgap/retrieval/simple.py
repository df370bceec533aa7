"""Retrievers that do not look at words: the most recent demonstrations, and a seeded draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.seeds import child_seed
from rewardgap.retrieval.base import RetrieverCard

if TYPE_CHECKING:
    from collections.abc import Sequence


class Recent:
    """The last demonstrations of the support set, the same for every query."""

    def order(self, query: str, demonstrations: Sequence[str], *, seed: int = 0) -> list[int]:
        """Return all indices, last first."""
        return list(range(len(demonstrations) - 1, -1, -1))


class Uniform:
    """A draw without replacement, by query."""

    def order(self, query: str, demonstrations: Sequence[str], *, seed: int = 0) -> list[int]:
        """Return all indices in a random order that depends on seed and query only."""
        generator = np.random.Generator(np.random.PCG64(child_seed(seed, "uniform", query)))
        return [int(index) for index in generator.permutation(len(demonstrations))]


RECENT_CARD = RetrieverCard("recent", "The last demonstrations of the support set, the same for every query.", Recent)
UNIFORM_CARD = RetrieverCard("uniform", "Demonstrations drawn at random for each query.", Uniform)
