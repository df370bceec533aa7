"""What a metric is: a card in the catalogue, and one face for those that compare texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from rewardgap.core.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rewardgap.core.results import Stage

Takes: TypeAlias = Literal["texts", "margins", "scores", "candidates", "answers"]


@runtime_checkable
class TextMetric(Protocol):
    """A metric over predictions and references."""

    @property
    def name(self) -> str:
        """Return the catalogue name."""
        ...

    @property
    def signature(self) -> str:
        """Return everything that moves the number, `name|key=value|...`; two numbers compare only where it is equal."""
        ...

    def score(self, predictions: Sequence[str], references: Sequence[str | None]) -> NDArray[np.float64]:
        """Return (N,) scores; NaN is missing (no reference), and an empty prediction scores 0."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricCard:
    """One entry of the metric catalogue.

    Attributes:
        name: the name in results and on the command line.
        summary: one line for listings.
        stage: the stage of a result row.
        higher_is_better: None where neither direction is better.
        range: lowest and highest possible value of one example.
        signature: what the signature of a built metric states; a value in angle brackets is filled in when it is built.
        build: makes the metric. What it returns is called by `takes`.
        takes: "texts": an object with `score(predictions, references)`; "margins": a function of (N,) margins, chosen
            minus rejected; "scores": a function of two (N,) score vectors, of this deployment and of the baseline;
            "candidates": a function of (T, K) log-probabilities and rewards; "answers": a function of a judge's N
            answers in one order and in the other.
        needs_reference: False where the score does not look at the reference, and is never missing for want of one.
    """

    name: str
    summary: str
    stage: Stage
    higher_is_better: bool | None
    range: tuple[float, float]
    signature: str
    build: Callable[..., Any]
    takes: Takes = "texts"
    needs_reference: bool = True


def is_empty(text: str | None) -> bool:
    """Return whether there is no text: None, or white space alone."""
    return text is None or not text.strip()


def check_pairing(predictions: Sequence[str], references: Sequence[str | None]) -> None:
    """Raise ShapeError unless there is one reference (or None) for each prediction."""
    if isinstance(predictions, str) or isinstance(references, str):
        raise ShapeError("predictions and references are lists of texts; a single text came. Put it in a list.")
    if len(predictions) != len(references):
        raise ShapeError(
            f"{len(predictions)} predictions came with {len(references)} references; give one each, None where missing."
        )


def paired_scores(
    predictions: Sequence[str],
    references: Sequence[str | None],
    score_pairs: Callable[[list[str], list[str]], Sequence[float]],
) -> NDArray[np.float64]:
    """Score the pairs that can be scored: NaN without a reference, 0 for an empty prediction.

    Args:
        predictions: (N,) texts.
        references: (N,) texts; None and white space are missing.
        score_pairs: scores the remaining predictions and references, neither of them empty.

    Raises:
        ShapeError: if the two lengths differ.
    """
    check_pairing(predictions, references)
    scores = np.full(len(predictions), np.nan)
    rows: list[int] = []
    left: list[str] = []
    right: list[str] = []
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if reference is None or is_empty(reference):
            continue
        if is_empty(prediction):
            scores[row] = 0.0
            continue
        rows.append(row)
        left.append(prediction)
        right.append(reference)
    if rows:
        scores[rows] = score_pairs(left, right)
    return scores
