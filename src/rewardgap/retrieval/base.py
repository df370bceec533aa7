"""What a retriever is: it orders a user's demonstrations for a query, most useful first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Retriever(Protocol):
    """Orders demonstrations."""

    def order(self, query: str, demonstrations: Sequence[str], *, seed: int = 0) -> list[int]:
        """Return all indices, most useful first.

        Args:
            query: text of the prompt that is to be answered.
            demonstrations: text of each demonstration's prompt, oldest first where there is a time.
            seed: for retrievers that draw.
        """
        ...


@dataclass(frozen=True)
class RetrieverCard:
    """A retriever as the catalogue lists it; `compares` says whether the order depends on the texts."""

    name: str
    summary: str
    build: Callable[[], Retriever]
    source: str = ""
    compares: bool = False
