"""The one place a retriever is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.core.catalog import Catalog
from rewardgap.retrieval import bm25, simple

if TYPE_CHECKING:
    from rewardgap.retrieval.base import RetrieverCard

RETRIEVERS: Catalog[RetrieverCard] = Catalog("retriever", (simple.RECENT_CARD, bm25.CARD, simple.UNIFORM_CARD))
