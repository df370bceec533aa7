"""Tournaments: the best text of a known order, the lowest index of a tie, and no more questions than promised."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core.errors import ModelError
from rewardgap.decoding.tournaments import ALL_PAIRS, TOURNAMENTS, Match, Tournament, play, tournament_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIZES = st.integers(1, 12)


class Referee:
    """Answers by a rule, and remembers what it was asked, call by call."""

    def __init__(self, rule: Callable[[Match], float]) -> None:
        self.rule, self.calls = rule, []

    def __call__(self, matches: Sequence[Match]) -> list[float]:
        self.calls.append(list(matches))
        return [self.rule(match) for match in matches]


def by_worth(worth: dict[str, float]) -> Callable[[Match], float]:
    return lambda match: worth[match.one] - worth[match.other]


def count(n: int, tournament: Tournament) -> int:
    return n - 1 if tournament == "knockout" else n * (n - 1) // 2


@pytest.mark.parametrize("tournament", TOURNAMENTS)
@given(order=SIZES.flatmap(lambda n: st.permutations(range(n))))
def test_of_a_known_order_the_best_text_wins(tournament: Tournament, order: list[int]) -> None:
    texts = [f"text {i}" for i in range(len(order))]
    referee = Referee(by_worth(dict(zip(texts, map(float, order), strict=True))))
    (found,) = play(tournament, [texts], referee)
    assert found.choice == order.index(max(order))
    assert found.questions == sum(map(len, referee.calls)) == count(len(order), tournament)
    assert (found.ties, found.near_ties) == (0, 0)
    pairs = [frozenset((m.one, m.other)) for call in referee.calls for m in call]
    assert len(set(pairs)) == len(pairs)
    # All questions of a round come in one call.
    assert len(referee.calls) == (math.ceil(math.log2(len(order))) if tournament == "knockout" else len(order) > 1)


@pytest.mark.parametrize("tournament", TOURNAMENTS)
@given(worths=st.lists(st.integers(0, 2), min_size=1, max_size=9))
def test_of_equally_good_texts_the_first_wins(tournament: Tournament, worths: list[int]) -> None:
    texts = [f"text {i}" for i in range(len(worths))]
    (found,) = play(tournament, [texts], Referee(by_worth(dict(zip(texts, map(float, worths), strict=True)))))
    assert found.choice == worths.index(max(worths))
    if tournament == "round_robin":
        assert found.ties == sum(a == b for a, b in itertools.combinations(worths, 2))
    assert found.near_ties == found.ties


def obvious(tournament: Tournament, margins: list[list[float]]) -> int:
    """Return the winner by the rule as one would write it down: a table of points, or a bracket."""
    n = len(margins)
    if tournament == "round_robin":
        points = [sum((margins[i][j] > 0) + (margins[i][j] == 0) / 2 for j in range(n) if j != i) for i in range(n)]
        return points.index(max(points))

    def best(left: list[int]) -> int:
        if len(left) == 1:
            return left[0]
        winners = [b if margins[a][b] < 0 else a for a, b in zip(left[::2], left[1::2], strict=False)]
        return best(winners + left[len(left) - len(left) % 2 :])

    return best(list(range(n)))


@pytest.mark.parametrize("tournament", TOURNAMENTS)
@given(data=st.data())
def test_tastes_that_go_in_circles_are_decided_by_the_rule(tournament: Tournament, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    margins = [[0.0] * n for _ in range(n)]
    for i, j in itertools.combinations(range(n), 2):
        margins[i][j] = data.draw(st.sampled_from([-2.0, -1e-5, 0.0, 1e-5, 1.0]))
        margins[j][i] = -margins[i][j]
    (found,) = play(tournament, [list(map(str, range(n)))], Referee(lambda m: margins[int(m.one)][int(m.other)]))
    assert found.choice == obvious(tournament, margins)
    assert found.ties <= found.near_ties <= found.questions


@pytest.mark.parametrize("tournament", TOURNAMENTS)
@given(rows=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), min_size=1, max_size=4))
def test_the_same_text_is_not_asked_about_and_no_pair_twice(tournament: Tournament, rows: list[list[str]]) -> None:
    """Texts drawn twice keep their places and tie with one another; rows do not meet."""
    referee = Referee(by_worth({"a": 0.0, "b": 2.0, "c": 1.0, "d": 2.0}))
    found = play(tournament, rows, referee)
    asked = [(m.row, frozenset((m.one, m.other))) for call in referee.calls for m in call]
    assert len(set(asked)) == len(asked)
    for row, (texts, standing) in enumerate(zip(rows, found, strict=True)):
        assert play(tournament, [texts], Referee(referee.rule)) == [standing]
        table = [[referee.rule(Match(row, a, b)) for b in texts] for a in texts]
        assert standing.choice == obvious(tournament, table)
        assert standing.questions == sum(own == row for own, _ in asked) <= math.comb(len(set(texts)), 2)


def test_a_margin_that_is_no_number_is_named() -> None:
    with pytest.raises(ModelError, match=r"margin between two texts of row 1 is nan"):
        play("knockout", [["a"], ["a", "b"]], Referee(lambda _: math.nan))


def test_all_pairs_meet_while_they_are_few() -> None:
    assert [tournament_of(n) for n in (1, ALL_PAIRS, ALL_PAIRS + 1)] == ["round_robin", "round_robin", "knockout"]
    assert ALL_PAIRS == 8
