"""What can be ranked without a reward model: length, overlap with the prompt, and the look of the text.

`human_or_machine` matters where the chosen side was written by a person and the rejected one by a model: a high value
says that such pairs test authorship as much as preference.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rewardgap.core.catalog import Catalog
from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import PreferencePair, prompt_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FloatArray: TypeAlias = NDArray[np.float64]
NUM_BUCKETS = 2048
GRAM_LENGTHS = (1, 2, 3)
MAX_CHARACTERS = 1000
MAX_TRAIN_PAIRS = 3000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Ranker:
    """A ranker that needs no fitting: the side with the higher `score(prompt, completion)` wins."""

    name: str
    summary: str
    score: Callable[[str, str], float]

    def __call__(self, pairs: Sequence[PreferencePair]) -> FloatArray:
        """Return (P,): 1 where chosen ranks above rejected, 0 where below, one half where they tie."""
        margins = [
            self.score(prompt_text(pair.prompt), pair.chosen) - self.score(prompt_text(pair.prompt), pair.rejected)
            for pair in pairs
        ]
        return _hits(np.array(margins, dtype=np.float64))


def _length(_prompt: str, completion: str) -> float:
    return float(len(completion.split()))


def _shortness(_prompt: str, completion: str) -> float:
    return -float(len(completion.split()))


def _overlap(prompt: str, completion: str) -> float:
    """Return the share of the completion's words that occur in the prompt; 0 where it has no word."""
    words = _WORD.findall(completion.casefold())
    source = set(_WORD.findall(prompt.casefold()))
    return sum(word in source for word in words) / len(words) if words else 0.0


RANKERS: Catalog[Ranker] = Catalog(
    "baseline",
    (
        Ranker("longer", "the completion with more words wins", _length),
        Ranker("shorter", "the completion with fewer words wins", _shortness),
        Ranker("prompt_overlap", "the completion with the larger share of words from the prompt wins", _overlap),
    ),
)
HUMAN_OR_MACHINE = "human_or_machine"
HUMAN_OR_MACHINE_SUMMARY = "a classifier of surface form, fitted on the training pairs without users, wins"


@dataclass(frozen=True, eq=False)
class SurfaceClassifier:
    """A linear ranker of surface features, the same for all users.

        margin = (f(chosen) - f(rejected))ᵀ w,   w = argmin Σ (1 - margin)² + ridge · ‖w‖²

    There is no intercept: swapping the two sides negates every margin.

    Args:
        weights: (F,).
        scale: (F,) standard deviations that features are divided by.
    """

    weights: FloatArray
    scale: FloatArray

    def margins(self, pairs: Sequence[PreferencePair]) -> FloatArray:
        """Return (P,) margins of chosen over rejected."""
        margins: FloatArray = (_differences(pairs) / self.scale) @ self.weights
        return margins

    def __call__(self, pairs: Sequence[PreferencePair]) -> FloatArray:
        """Return (P,): 1 where chosen ranks above rejected, 0 where below, one half where they tie."""
        return _hits(self.margins(pairs))


def fit_surface_classifier(pairs: Sequence[PreferencePair], ridge: float = 1.0) -> SurfaceClassifier:
    """Fit the classifier; of more than 3000 pairs every n-th is used.

    Args:
        pairs: training pairs.
        ridge: penalty per pair relative to the mean squared feature norm, above 0.

    Raises:
        DataError: if there are no pairs.
        ConfigError: unless ridge is above 0.
    """
    if not pairs:
        raise DataError("human_or_machine got 0 training pairs, needs at least 1.")
    if not ridge > 0:
        raise ConfigError(f"ridge is {ridge}, expected a number above 0.")
    differences = _differences(pairs[:: -(-len(pairs) // MAX_TRAIN_PAIRS)])
    # Root mean square, not the deviation from the mean: a shift that all pairs share is the signal.
    scale = np.sqrt((differences**2).mean(axis=0))
    scale[scale == 0] = 1.0
    features = differences / scale
    kernel = features @ features.T
    penalty = ridge * max(float(np.trace(kernel)) / len(kernel), 1e-12)
    weights = features.T @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), np.ones(len(kernel)))
    return SurfaceClassifier(weights, scale)


def human_or_machine(train: Sequence[PreferencePair], query: Sequence[PreferencePair]) -> FloatArray:
    """Return (P,) hits on the query pairs of a surface classifier fitted on the training pairs.

    Raises:
        DataError: if there are no training pairs.
    """
    return fit_surface_classifier(train)(query)


def surface_features(text: str) -> FloatArray:
    """Return (F,): hashed character n-grams of unit length, then length, case, digits, punctuation and ending."""
    text = text[:MAX_CHARACTERS]
    padded = f"\x02{text}\x03"
    counts = np.zeros(NUM_BUCKETS)
    for length in GRAM_LENGTHS:
        for start in range(len(padded) - length + 1):
            gram = padded[start : start + length].encode("utf-8", "surrogatepass")
            counts[zlib.crc32(gram) % NUM_BUCKETS] += 1.0
    counts /= np.linalg.norm(counts)
    words = text.split()
    size = max(len(text), 1)
    shape = [
        np.log1p(len(words)),
        np.log1p(len(text)),
        sum(character.isupper() for character in text) / size,
        sum(character.isdigit() for character in text) / size,
        sum(not (character.isalnum() or character.isspace()) for character in text) / size,
        float(text.rstrip().endswith((".", "!", "?"))),
        float(text[:1].isupper()),
        sum(word[:1].isupper() for word in words) / max(len(words), 1),
        float("\n" in text.strip()),
    ]
    return np.concatenate([counts, np.array(shape)])


def _differences(pairs: Sequence[PreferencePair]) -> FloatArray:
    known: dict[str, FloatArray] = {}

    def features(text: str) -> FloatArray:
        if text not in known:
            known[text] = surface_features(text)
        return known[text]

    rows = [features(pair.chosen) - features(pair.rejected) for pair in pairs]
    return np.stack(rows) if rows else np.zeros((0, len(surface_features(""))))


def _hits(margins: FloatArray) -> FloatArray:
    hits: FloatArray = (np.sign(margins) + 1.0) / 2.0
    return hits
