"""Low-rank completion against the dense algorithm, and by the conditions of its optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgap.core.errors import ConfigError, DataError, ShapeError
from rewardgap.numerics.matrix_completion import coin_flip_level, soft_impute


def dense_soft_impute(matrix, seen, rank, shrinkage, steps=4000):
    """Fill in, decompose, shrink, cut; again."""
    answer = np.zeros_like(matrix)
    for _ in range(steps):
        left, sizes, right = np.linalg.svd(np.where(seen, matrix, answer), full_matrices=False)
        sizes = np.maximum(sizes - shrinkage, 0)
        sizes[rank:] = 0
        answer = (left * sizes) @ right
    return answer


def drawn(seed, shape=(15, 10), rank=2, share=0.7):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    seen = rng.random(shape) < share
    return matrix, seen, rng.normal(size=(shape[1], shape[1]))


def complete(matrix, seen, start, **options):
    rows, columns = np.nonzero(seen)
    settings = {"num_rows": len(matrix), "max_steps": 4000, "tolerance": 1e-12, **options}
    return soft_impute(rows, columns, matrix[rows, columns], start, **settings)


@pytest.mark.parametrize(("rank", "shrinkage"), [(2, 0.0), (2, 1.0), (10, 1.0), (3, 4.0)])
def test_it_is_the_dense_algorithm(rank, shrinkage):
    matrix, seen, start = drawn(0)
    found = complete(matrix, seen, start[:, :rank], shrinkage=shrinkage)
    np.testing.assert_allclose(found.dense(), dense_soft_impute(matrix, seen, rank, shrinkage), atol=1e-8)


def test_a_matrix_of_that_rank_is_recovered_from_some_of_its_entries():
    matrix, seen, start = drawn(1, shape=(30, 20))
    found = complete(matrix, seen, start[:, :2], shrinkage=0.0)
    np.testing.assert_allclose(found.dense(), matrix, atol=1e-8)
    assert not seen.all()


def test_a_matrix_seen_whole_is_decomposed_and_shrunk():
    matrix, _, start = drawn(2, rank=4)
    sizes = np.linalg.svd(matrix, compute_uv=False)
    found = complete(matrix, np.ones_like(matrix, dtype=bool), start[:, :4], shrinkage=sizes[2])
    np.testing.assert_allclose(found.singular, [sizes[0] - sizes[2], sizes[1] - sizes[2], 0, 0], atol=1e-9)
    for side in (found.left, found.right):
        np.testing.assert_allclose(side.T @ side, np.eye(4), atol=1e-10)


@settings(max_examples=10)
@given(st.integers(0, 2**20), st.floats(0.1, 3.0))
def test_the_optimum_of_the_convex_problem(seed, shrinkage):
    # 0 ∈ subgradient: P_seen(X - Z) = λ (U Vᵀ + W) with W orthogonal to both and of norm at most one.
    matrix, seen, start = drawn(seed, shape=(8, 6))
    seen[0, 0] = True
    found = complete(matrix, seen, start, shrinkage=shrinkage, max_steps=20_000)
    rest = np.where(seen, matrix - found.dense(), 0.0)
    kept = found.singular > 1e-7
    left, right = found.left[:, kept], found.right[:, kept]
    np.testing.assert_allclose(left.T @ rest @ right, shrinkage * np.eye(kept.sum()), atol=1e-4)
    assert np.linalg.norm(rest, ord=2) <= shrinkage * (1 + 1e-4)


def test_where_it_begins_decides_nothing():
    matrix, seen, start = drawn(3)
    one = complete(matrix, seen, start[:, :3], shrinkage=1.0)
    other = complete(matrix, seen, start[:, 4:7], shrinkage=1.0)
    np.testing.assert_allclose(one.dense(), other.dense(), atol=1e-8)


def test_several_values_at_one_place_are_averaged_and_a_zero_is_seen():
    rows, columns, values = np.array([0, 0, 1, 1, 0]), np.array([0, 0, 1, 0, 1]), np.array([3.0, 1.0, 0.0, 0.0, 0.0])
    found = soft_impute(rows, columns, values, np.eye(2), num_rows=2, shrinkage=0.0)
    np.testing.assert_allclose(found.dense(), [[2.0, 0.0], [0.0, 0.0]], atol=1e-12)


def test_coin_flips_have_no_singular_value_far_above_their_level():
    rng = np.random.default_rng(0)
    for share in (0.1, 1.0):
        seen = rng.random((120, 60)) < share
        flips = np.where(rng.random(seen.shape) < 0.5, -1.0, 1.0) * seen
        largest = np.linalg.norm(flips, ord=2)
        assert 0.8 < largest / coin_flip_level(int(seen.sum()), (120, 60)) < 1.1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"values": np.ones(2)}, ShapeError, "3 rows, 3 columns and 2 values"),
        ({"values": np.array([1.0, np.nan, 1.0])}, DataError, "at least 1 seen entry, and finite"),
        ({"rows": np.array([0, 1, 4])}, DataError, r"entry 2 is at \(4, 1\), outside a matrix of shape \(4, 2\)"),
        ({"columns": np.array([0, -1, 1])}, DataError, r"entry 1 is at \(1, -1\)"),
        ({"start": np.ones((2, 3))}, ConfigError, r"start has shape \(2, 3\)"),
        ({"shrinkage": -1.0}, ConfigError, r"shrinkage is -1\.0"),
        ({"shrinkage": float("nan")}, ConfigError, "shrinkage is nan"),
    ],
)
def test_what_is_wrong_is_one_sentence(change, error, words):
    given_ = {"rows": np.array([0, 1, 3]), "columns": np.array([0, 1, 1]), "values": np.ones(3), "start": np.eye(2)}
    given_ |= {"shrinkage": 0.0} | change
    with pytest.raises(error, match=words):
        soft_impute(**given_, num_rows=4)
