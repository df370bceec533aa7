"""Low-rank completion of a matrix of which few entries are seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from rewardgap.core.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix of low rank, left · diag(singular) · rightᵀ.

    Attributes:
        left: (M, R) orthonormal columns.
        singular: (R,) singular values, descending, ≥ 0; zero where nothing of that rank was found.
        right: (U, R) orthonormal columns.
    """

    left: NDArray[np.float64]
    singular: NDArray[np.float64]
    right: NDArray[np.float64]

    def dense(self) -> NDArray[np.float64]:
        """Return the (M, U) matrix itself."""
        matrix: NDArray[np.float64] = (self.left * self.singular) @ self.right.T
        return matrix


def coin_flip_level(num_entries: int, shape: tuple[int, int]) -> float:
    """Return the largest singular value to expect of a matrix of coin flips ±1 with that many entries, others zero.

        √(entries a row) + √(entries a column)

    Source: the leading term of Bandeira and van Handel (2016), arXiv 1408.6185, theorem 1.1.
    """
    return float(np.sqrt(num_entries / shape[0]) + np.sqrt(num_entries / shape[1]))


def soft_impute(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.float64],
    start: NDArray[np.float64],
    *,
    num_rows: int,
    shrinkage: float,
    max_steps: int = 50,
    tolerance: float = 1e-6,
) -> LowRank:
    """Complete a matrix by one of low rank.

        min_Z  ½ Σ_seen (X - Z)²_ij + λ ‖Z‖_*   with  rank Z ≤ R

    Every step fills the unseen entries from the present answer, at first with zeros, and takes the best matrix that
    keeps its column space, then its row space: decompose, and shrink the singular values by λ. No step raises the
    objective. Only seen entries are stored, so a step costs (entries + (M + U) R) R.

    Args:
        rows: (E,) row of each seen entry.
        columns: (E,) column of each seen entry, below U.
        values: (E,) the entries; several at one place are averaged.
        start: (U, R) any directions to begin from; decides nothing but the way.
        num_rows: M.
        shrinkage: λ ≥ 0; 0 cuts to the rank without shrinking.
        max_steps: limit on the alternations.
        tolerance: stop when an alternation changes the answer by less than this part of its norm.

    Returns:
        The completed matrix as its decomposition.

    Raises:
        ShapeError: if the three lists differ in length.
        ConfigError: if R exceeds M or U, or λ is negative.
        DataError: if a value is not finite, an index is outside the matrix, or nothing is seen.

    Source: soft-impute, Mazumder, Hastie and Tibshirani (2010); sparse plus low rank, and one factor at a time, as in
        Hastie, Mazumder, Lee and Zadeh (2015), arXiv 1410.2596.
    """
    seen = _seen_entries(rows, columns, values, num_rows, start, shrinkage)
    places = seen.tocoo()
    entry_rows, entry_columns = places.coords
    rank = start.shape[1]
    found = LowRank(np.zeros((num_rows, rank)), np.zeros(rank), np.linalg.qr(start)[0])

    def unexplained(answer: LowRank) -> csr_array:
        """Return what is seen beyond the answer; with the answer added, it is the filled-in matrix."""
        inside = ((answer.left * answer.singular)[entry_rows] * answer.right[entry_columns]).sum(axis=1)
        return csr_array((seen.data - inside, seen.indices, seen.indptr), shape=seen.shape)

    for _ in range(max_steps):
        before = found
        rest = unexplained(found)
        product = rest @ found.right + found.left * found.singular
        left, sizes, turn = np.linalg.svd(product, full_matrices=False)
        found = LowRank(left, np.maximum(sizes - shrinkage, 0.0), found.right @ turn.T)
        rest = unexplained(found)
        product = rest.T @ found.left + found.right * found.singular
        right, sizes, turn = np.linalg.svd(product, full_matrices=False)
        found = LowRank(found.left @ turn.T, np.maximum(sizes - shrinkage, 0.0), right)
        if _change(before, found) <= tolerance * np.linalg.norm(found.singular):
            break
    return found


def _change(before: LowRank, after: LowRank) -> float:
    """Return the Frobenius distance of two low-rank matrices, without forming either."""
    left = np.concatenate([before.left * before.singular, -after.left * after.singular], axis=1)
    right = np.concatenate([before.right, after.right], axis=1)
    return float(np.linalg.norm(np.linalg.qr(left)[1] @ np.linalg.qr(right)[1].T))


def _seen_entries(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.float64],
    num_rows: int,
    start: NDArray[np.float64],
    shrinkage: float,
) -> csr_array:
    values = np.asarray(values, dtype=np.float64)
    if not len(rows) == len(columns) == len(values):
        raise ShapeError(f"got {len(rows)} rows, {len(columns)} columns and {len(values)} values; expected one each.")
    shape = (num_rows, len(start))
    if start.ndim != 2 or not 1 <= start.shape[1] <= min(shape):
        raise ConfigError(f"start has shape {start.shape}; a matrix of shape {shape} has rank 1 to {min(shape)}.")
    if not shrinkage >= 0:
        raise ConfigError(f"shrinkage is {shrinkage!r}; expected a number of at least 0.")
    if not len(values) or not np.isfinite(values).all():
        raise DataError("a matrix to complete needs at least 1 seen entry, and finite ones.")
    inside = (np.asarray(rows) >= 0) & (np.asarray(rows) < shape[0])
    inside &= (np.asarray(columns) >= 0) & (np.asarray(columns) < shape[1])
    if not inside.all():
        bad = int(np.argmin(inside))
        raise DataError(f"entry {bad} is at ({rows[bad]}, {columns[bad]}), outside a matrix of shape {shape}.")
    totals = csr_array((values, (rows, columns)), shape=shape)
    counts = csr_array((np.ones(len(values)), (rows, columns)), shape=shape)
    totals.sum_duplicates()
    counts.sum_duplicates()
    totals.sort_indices()
    counts.sort_indices()
    totals.data = totals.data / counts.data
    return totals
