"""Catalogues: ordered tables of cards, where a name is given once and looked up with a helpful error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from rewardgap.core.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Named(Protocol):
    """Anything with a name and a one-line summary."""

    @property
    def name(self) -> str:
        """Return the name it is looked up by."""
        ...

    @property
    def summary(self) -> str:
        """Return one line for listings."""
        ...


CardT = TypeVar("CardT", bound=Named)


@dataclass(frozen=True)
class Catalog(Generic[CardT]):
    """An ordered, duplicate-refusing table of cards.

    Args:
        kind: what the entries are, in the words of an error message ("reward model").
        cards: the entries, in the order listings show them.
    """

    kind: str
    cards: tuple[CardT, ...]

    def __post_init__(self) -> None:
        """Refuse two cards of one name."""
        names = [card.name for card in self.cards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{self.kind} catalogue names {', '.join(twice)} twice.")

    def __getitem__(self, name: str) -> CardT:
        """Return the card of that name.

        Raises:
            UnknownNameError: if there is none; the message names the nearest.
        """
        for card in self.cards:
            if card.name == name:
                return card
        raise UnknownNameError(self.kind, name, self.names())

    def __iter__(self) -> Iterator[CardT]:
        """Iterate over the cards in order."""
        return iter(self.cards)

    def __len__(self) -> int:
        """Return the number of cards."""
        return len(self.cards)

    def names(self) -> tuple[str, ...]:
        """Return the names in order."""
        return tuple(card.name for card in self.cards)
