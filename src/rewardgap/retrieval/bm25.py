"""Lexical retrieval: BM25 over the user's own prompts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.retrieval.base import RetrieverCard

if TYPE_CHECKING:
    from collections.abc import Sequence

WORD = re.compile(r"\w+")


class Bm25:
    """Okapi BM25 with k1 = 1.5 and b = 0.75 over lower-cased words, ties to the lower index.

    Where no word is shared with any demonstration, the most recent come first.
    """

    def order(self, query: str, demonstrations: Sequence[str], *, seed: int = 0) -> list[int]:
        """Return all indices, best first; `seed` changes nothing."""
        count = len(demonstrations)
        scores = bm25_scores(query, demonstrations)
        if not scores.any():
            return list(range(count - 1, -1, -1))
        return sorted(range(count), key=lambda index: (-scores[index], index))


def bm25_scores(query: str, documents: Sequence[str], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Return (N,) BM25 scores (Lucene's form, whose inverse document frequency is never negative)."""
    import bm25s

    corpus = [WORD.findall(text.lower()) for text in documents]
    words = set(WORD.findall(query.lower()))
    vocabulary = {word: index for index, word in enumerate(sorted({w for text in corpus for w in text}))}
    known = sorted(words & set(vocabulary))
    if not known:
        return np.zeros(len(documents))
    index = bm25s.BM25(method="lucene", k1=k1, b=b, dtype="float64")
    index.index(
        bm25s.tokenization.Tokenized([[vocabulary[w] for w in text] for text in corpus], vocabulary),
        show_progress=False,
    )
    return np.asarray(index.get_scores(known), dtype=np.float64)


CARD = RetrieverCard(
    name="bm25",
    summary="The demonstrations whose prompts share the most telling words with the query.",
    build=Bm25,
    compares=True,
    source="Robertson and Zaragoza 2009; bm25s (Lucene variant)",
)
