"""Tournaments: the best of several texts where each can be compared with another, and none has a reward of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from rewardgap.core.errors import ModelError
from rewardgap.decoding.outcome import NEAR_TIE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Tournament: TypeAlias = Literal["round_robin", "knockout"]
TOURNAMENTS: tuple[Tournament, ...] = get_args(Tournament)
ALL_PAIRS = 8
"""Up to this many texts every pair is compared, unless a tournament is named."""


class Match(NamedTuple):
    """A question: does the user of a row prefer `one` of its texts to the `other`?"""

    row: int
    one: str
    other: str


@dataclass
class Standing:
    """How a tournament over the texts of a row ended.

    Attributes:
        choice: index of the winner; of equally good texts the lowest.
        questions: pairs of different texts that were compared, each once.
        ties: how many of them ended without a preference.
        near_ties: how many had a margin below 2e-4, the ties among them: another batch may turn them.
    """

    choice: int = 0
    questions: int = 0
    ties: int = 0
    near_ties: int = 0


def tournament_of(n: int) -> Tournament:
    """Return the tournament of n texts where none is named: all pairs while they are few.

    Example:
        >>> tournament_of(8), tournament_of(9)
        ('round_robin', 'knockout')
    """
    return "round_robin" if n <= ALL_PAIRS else "knockout"


def play(
    tournament: Tournament,
    texts: Sequence[Sequence[str]],
    margins: Callable[[Sequence[Match]], Sequence[float]],
) -> list[Standing]:
    """Find the best text of each row; rows do not meet.

        round_robin: all N (N - 1) / 2 pairs; a win counts 1, a tie ½; the highest count wins (Copeland's rule)
        knockout: neighbours meet, winners go on in order, one without a neighbour goes on; N - 1 pairs

    A tie leaves the lower index ahead. Two texts that are the same tie without being asked about, and a pair that meets
    again is not asked about again.

    Args:
        tournament: its name.
        texts: for each row its texts, at least one.
        margins: how far the first text of each match is preferred to the second; positive where it wins, 0 for a tie.
            Asked about the matches of all rows at once, whole rounds at a time.

    Raises:
        ModelError: if a margin is NaN or infinite; the message names the row.
    """
    table = _Table(margins, [Standing() for _ in texts])
    if tournament == "round_robin":
        _round_robin(texts, table)
    else:
        _knockout(texts, table)
    return table.standings


class _Table:
    """Results of matches so far."""

    def __init__(self, margins: Callable[[Sequence[Match]], Sequence[float]], standings: list[Standing]) -> None:
        self._margins, self.standings = margins, standings
        self._known: dict[Match, float] = {}

    def results(self, matches: Sequence[Match]) -> list[float]:
        """Return the margin of each match, asking about those of a pair that has not met."""
        fresh: dict[Match, None] = {}
        for match in matches:
            if match.one != match.other and match not in self._known and _turned(match) not in fresh:
                fresh[match] = None
        asked = list(fresh)
        for match, margin in zip(asked, self._margins(asked) if asked else (), strict=True):
            if not math.isfinite(margin):
                raise ModelError(f"a judge's margin between two texts of row {match.row} is {margin}; see its model.")
            self._known[match], self._known[_turned(match)] = margin, -margin
            standing = self.standings[match.row]
            standing.questions += 1
            standing.ties += int(margin == 0)
            standing.near_ties += int(abs(margin) < NEAR_TIE)
        return [self._known[match] if match.one != match.other else 0.0 for match in matches]


def _turned(match: Match) -> Match:
    return Match(match.row, match.other, match.one)


def _round_robin(texts: Sequence[Sequence[str]], table: _Table) -> None:
    places = [(row, i, j) for row, own in enumerate(texts) for i in range(len(own)) for j in range(i + 1, len(own))]
    points = [[0.0] * len(own) for own in texts]
    found = table.results([Match(row, texts[row][i], texts[row][j]) for row, i, j in places])
    for (row, i, j), margin in zip(places, found, strict=True):
        points[row][i] += 1.0 if margin > 0 else 0.5 * (margin == 0)
        points[row][j] += 1.0 if margin < 0 else 0.5 * (margin == 0)
    for standing, own in zip(table.standings, points, strict=True):
        standing.choice = own.index(max(own))


def _knockout(texts: Sequence[Sequence[str]], table: _Table) -> None:
    left = [list(range(len(own))) for own in texts]
    while any(len(own) > 1 for own in left):
        places = [(row, *own[k : k + 2]) for row, own in enumerate(left) for k in range(0, len(own) - 1, 2)]
        found = table.results([Match(row, texts[row][i], texts[row][j]) for row, i, j in places])
        through: list[list[int]] = [[] for _ in texts]
        for (row, i, j), margin in zip(places, found, strict=True):
            through[row].append(i if margin >= 0 else j)
        left = [won + own[2 * len(won) :] for won, own in zip(through, left, strict=True)]
    for standing, (winner,) in zip(table.standings, left, strict=True):
        standing.choice = winner
