"""ROUGE-1 and ROUGE-L F1 against the text the user wrote."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rewardgap.core.errors import ConfigError
from rewardgap.metrics.base import is_empty, paired_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

RougeTokenizer: TypeAlias = Literal["default", "unicode"]


class Rouge:
    """ROUGE F1 of a prediction against one reference.

        F = 2PR / (P + R)

    P and R are the shared unigrams (rouge1), or the longest common subsequence of the whole texts (rougeL), over the
    tokens of the prediction and of the reference.

    Args:
        name: "rouge1" or "rougeL".
        use_stemmer: Porter-stem tokens; moves scores by whole points, so it is part of the signature.
        tokenizer: "default" keeps `[a-z0-9]` runs only, as everyone's ROUGE does: a Russian text scores 0 against
            itself. "unicode" keeps words of any script. It is never chosen for you; see `needs_unicode`.

    Raises:
        ConfigError: if the name or tokenizer is unknown, or stemming is asked of the Unicode tokenizer.

    Source: Lin (2004), as Google's rouge-score 0.1.2 computes it. Deviation: none in the number (tested); the
        implementation is rouge-score-rs.
    """

    def __init__(
        self,
        name: str = "rouge1",
        *,
        use_stemmer: bool = False,
        tokenizer: RougeTokenizer = "default",
    ) -> None:
        if name not in ("rouge1", "rougeL"):
            raise ConfigError(f"ROUGE is 'rouge1' or 'rougeL'; '{name}' came.")
        if tokenizer not in ("default", "unicode"):
            raise ConfigError(f"the ROUGE tokenizer is 'default' or 'unicode'; '{tokenizer}' came.")
        if use_stemmer and tokenizer == "unicode":
            raise ConfigError("use_stemmer needs the default tokenizer: there is no stemmer for all scripts.")
        self.name = name
        self.use_stemmer = use_stemmer
        self.tokenizer = tokenizer

    @property
    def signature(self) -> str:
        """Return name, stemming, tokenizer and implementation."""
        from rouge_score_rs import __version__

        words = "rouge-score" if self.tokenizer == "default" else "unicode-v1"
        stem = "yes" if self.use_stemmer else "no"
        return f"{self.name}|stem={stem}|tok={words}|impl=rouge-score-rs-{__version__}"

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score_rs import RougeScorer
        from rouge_score_rs.tokenizers import UnicodeTokenizer

        words = UnicodeTokenizer() if self.tokenizer == "unicode" else None
        return RougeScorer([self.name], use_stemmer=self.use_stemmer, tokenizer=words)

    def score(self, predictions: Sequence[str], references: Sequence[str | None]) -> NDArray[np.float64]:
        """Return (N,) F1 in [0, 1]; NaN without a reference, 0 for an empty prediction.

        Raises:
            ShapeError: if the two lengths differ.

        Example:
            >>> Rouge("rougeL").score(["the cat sat"], ["the cat sat down"]).round(6).tolist()
            [0.857143]
        """
        return paired_scores(predictions, references, self._f1)

    def _f1(self, predictions: list[str], references: list[str]) -> list[float]:
        return [scores[self.name].fmeasure for scores in self._scorer.score_batch(references, predictions)]


def needs_unicode(references: Sequence[str | None]) -> float:
    """Return the share of references that only the Unicode tokenizer can read.

        share = |default finds no token, unicode finds one| / |not empty|

    Where this is not near 0, ROUGE with the default tokenizer is 0 by construction and says nothing.

    Args:
        references: texts; the missing are left out.

    Returns:
        A fraction; NaN where every reference is missing.

    Example:
        >>> needs_unicode(["привет", "hello", None, "42"]).__round__(3)
        0.333
    """
    from rouge_score_rs.tokenizers import DefaultTokenizer, UnicodeTokenizer

    texts = [text for text in references if text is not None and not is_empty(text)]
    if not texts:
        return float("nan")
    default, unicode = DefaultTokenizer(), UnicodeTokenizer()
    return sum(not default.tokenize(text) and bool(unicode.tokenize(text)) for text in texts) / len(texts)
