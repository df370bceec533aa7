"""Cohen's kappa: the arithmetic, scikit-learn's, and an interval over users."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.stats.agreement import NO_CHANCE, cohen_kappa
from rewardgap.stats.bootstrap import NO_VALUES, ONE_USER

VERDICTS = st.sampled_from([0.0, 0.5, 1.0, float("nan")])


def test_the_textbook_table() -> None:
    """45 yes-yes, 15 yes-no, 25 no-yes, 15 no-no: p_o = .6, p_e = .6 * .7 + .4 * .3 = .54, kappa = .06/.46."""
    a = [1.0] * 60 + [0.0] * 40
    b = [1.0] * 45 + [0.0] * 15 + [1.0] * 25 + [0.0] * 15
    found = cohen_kappa(a, b, ["u"] * 100)
    assert found.kappa == pytest.approx(0.06 / 0.46, abs=1e-12)
    assert (found.observed, found.n_examples, found.reason, found.low) == (0.6, 100, ONE_USER, None)


@given(st.lists(st.tuples(VERDICTS, VERDICTS, st.sampled_from("uvw")), min_size=1, max_size=40))
def test_it_is_that_of_scikit_learn(rows: list[tuple[float, float, str]]) -> None:
    from sklearn.metrics import cohen_kappa_score

    a, b, users = (list(column) for column in zip(*rows, strict=True))
    found = cohen_kappa(a, b, users, resamples=50)
    kept = [(x, y) for x, y, _ in rows if x == x and y == y]
    assert found.n_missing == len(rows) - len(kept)
    assert found.n_examples == len(kept)
    if not kept:
        assert (found.kappa, found.reason) == (None, NO_VALUES)
    elif len({v for pair in kept for v in pair}) == 1:
        assert (found.kappa, found.reason, found.observed) == (None, NO_CHANCE, 1.0)
    else:
        words = [[str(v) for v in side] for side in zip(*kept, strict=True)]
        assert found.kappa == pytest.approx(cohen_kappa_score(*words), abs=1e-12)
        assert found.observed == np.mean([x == y for x, y in kept])
    if found.low is not None:
        assert found.low <= found.high
    # Neither names nor order have a say, and the two judges change places.
    names = {"u": "z", "v": "b", "w": "q"}
    turned = cohen_kappa(b[::-1], a[::-1], [names[user] for user in users[::-1]], resamples=50)
    assert (turned.kappa is None) == (found.kappa is None)
    if found.kappa is not None:
        assert turned.kappa == pytest.approx(found.kappa, abs=1e-12)
    same = cohen_kappa(a[::-1], b[::-1], [names[user] for user in users[::-1]], resamples=50)
    assert (same.low, same.high) == (found.low, found.high)


def test_the_interval_covers_what_users_differ_by() -> None:
    """Users on whom the judges agree and users on whom they do not: with few of them the interval is wide."""
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(40), 10)
    a = draw.integers(0, 2, 400).astype(float)
    b = np.where(users % 2 == 0, a, draw.integers(0, 2, 400))
    whole = cohen_kappa(a, b, [str(u) for u in users])
    few = cohen_kappa(a[:80], b[:80], [str(u) for u in users[:80]])
    assert whole.low < 0.5 < whole.high
    assert whole.high - whole.low < few.high - few.low
    assert cohen_kappa(a, a, [str(u) for u in users]).kappa == 1.0
    assert cohen_kappa(a, 1 - a, [str(u) for u in users]).kappa < -0.9


def test_wrong_input_is_named() -> None:
    with pytest.raises(ShapeError, match="with 1 users"):
        cohen_kappa([1.0, 0.0], [1.0, 0.0], ["u"])
    with pytest.raises(ConfigError, match="resamples"):
        cohen_kappa([1.0], [1.0], ["u"], resamples=0)
