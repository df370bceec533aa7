"""BERTScore-F1, computed a pair at a time as bert-score defines it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from rewardgap.metrics.base import paired_scores
from rewardgap.metrics.encoder import DEFAULT_ENCODER, LocalEncoder, TokenEncoder, TokenStates

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

_PAIRS_AT_ONCE = 256


class BertScore:
    """BERTScore-F1 of a prediction against one reference.

        P = Σ_i w_i max_j cos(p_i, r_j) / Σ_i w_i,   R likewise from the reference's side,   F = 2PR / (P + R)

    Every token may be matched, [CLS] and [SEP] included, but these two have weight 0 themselves. There is no idf weight
    and no rescaling with a baseline. Texts of more than 512 tokens lose their end; `num_truncated` counts them. Cosines
    may be negative: where P and R differ in sign, F is no mean of the two, can have any size and magnifies rounding. It
    is kept as the formula gives it; `num_unstable` counts such pairs.

    Args:
        encoder: "all-minilm-l6-v2" (from the installed package), a local folder, a hub id, or an object with `identity`
            and `encode`.
        layer: hidden layer of a named encoder; None for its default.
        batch_size: texts in a forward pass of a named encoder.
        device: torch device of a named encoder.

    Raises:
        MissingExtraError: if the default encoder is not installed; the metric is then unavailable.
        ConfigError: if the layer is unknown.

    Source: Zhang et al. (2020), as bert-score 0.3.13 computes it with a batch of one. Deviations: its padding takes
        part in the maximum where a token's best cosine is negative, so its batches change a score, and ours do not; an
        empty text, on which it stops, scores 0 as a prediction and is missing as a reference. Equality is tested on a
        WordPiece encoder.
    """

    name = "bertscore_f1"

    def __init__(
        self,
        encoder: str | TokenEncoder = DEFAULT_ENCODER,
        *,
        layer: int | None = None,
        batch_size: int = 32,
        device: str = "cpu",
    ) -> None:
        self.encoder: TokenEncoder = (
            LocalEncoder(encoder, layer=layer, batch_size=batch_size, device=device)
            if isinstance(encoder, str)
            else encoder
        )
        self.num_truncated = 0
        self.num_unstable = 0

    @property
    def signature(self) -> str:
        """Return encoder with weights, layer and every choice that moves the number."""
        return f"{self.name}|{self.encoder.identity}|idf=no|rescale=no|special=match"

    def score(self, predictions: Sequence[str], references: Sequence[str | None]) -> NDArray[np.float64]:
        """Return (N,) F1, at most 1 where P and R are positive; NaN without a reference, 0 for an empty prediction.

        `num_truncated` then holds the number of distinct texts that were cut, and `num_unstable` that of the distinct
        pairs whose P and R differ in sign.

        Raises:
            ShapeError: if the two lengths differ.
            ModelError: if the encoder cannot be loaded.
        """
        self.num_truncated = self.num_unstable = 0
        return paired_scores(predictions, references, self._f1)

    def _f1(self, predictions: list[str], references: list[str]) -> list[float]:
        # Sorted by reference, so that one shared by several predictions is mostly encoded once, in bounded memory.
        pairs = iter(sorted(set(zip(predictions, references, strict=True)), key=lambda pair: (pair[1], pair[0])))
        scores: dict[tuple[str, str], float] = {}
        cut: set[str] = set()
        for chunk in _chunks(pairs):
            texts = sorted({text for pair in chunk for text in pair})
            states = dict(zip(texts, self.encoder.encode(texts), strict=True))
            cut |= {text for text in texts if states[text].truncated}
            for prediction, reference in chunk:
                precision, recall = greedy_match(states[prediction], states[reference])
                self.num_unstable += precision * recall < 0
                scores[prediction, reference] = harmonic_mean(precision, recall)
        self.num_truncated = len(cut)
        return [scores[pair] for pair in zip(predictions, references, strict=True)]


def _chunks(pairs: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    while chunk := list(islice(pairs, _PAIRS_AT_ONCE)):
        yield chunk


def greedy_match(prediction: TokenStates, reference: TokenStates) -> tuple[float, float]:
    """Return precision and recall of greedy cosine matching between two texts.

    A side whose tokens all have weight 0 has a mean of 0.

    Args:
        prediction: (T, D) vectors and (T,) weights.
        reference: (S, D) vectors and (S,) weights.
    """
    cosine = _unit(prediction.vectors) @ _unit(reference.vectors).T
    precision = _weighted_mean(cosine.amax(dim=1), prediction.weights)
    return precision, _weighted_mean(cosine.amax(dim=0), reference.weights)


def harmonic_mean(precision: float, recall: float) -> float:
    """Return 2PR / (P + R), and 0 where P + R is 0."""
    total = precision + recall
    return 2 * precision * recall / total if total != 0 else 0.0


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.square().sum(dim=-1, keepdim=True).sqrt()


def _weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> float:
    mass = float(weights.sum())
    return float((values * weights).sum()) / mass if mass else 0.0
