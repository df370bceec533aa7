"""From a tidy table to methods by users, and the users on whom all methods can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.stats.clustered import scored_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class UserMatrix:
    """Mean score of each user under each method.

    Attributes:
        methods: M names, in order of first appearance or as asked for.
        users: U ids, sorted or as asked for.
        values: (M, U) means; NaN where a user has no value under a method.
        n_missing: rows without a value.
    """

    methods: tuple[str, ...]
    users: tuple[str, ...]
    values: NDArray[np.float64]
    n_missing: int


def user_matrix(
    methods: Sequence[str],
    users: Sequence[str],
    values: ArrayLike,
    *,
    method_order: Sequence[str] | None = None,
    user_order: Sequence[str] | None = None,
) -> UserMatrix:
    """Average a tidy table, one row an example, over each user's examples under each method.

    Args:
        methods: (N,) method of each row.
        users: (N,) user of each row.
        values: (N,) numbers; NaN is missing and counted.
        method_order: the rows of the result, for matrices of two stages that must agree.
        user_order: its columns, likewise.

    Raises:
        ShapeError: if the lengths differ.
        ConfigError: if a value is infinite, or an order lacks a name of the table.

    Example:
        >>> user_matrix(["a", "a", "b"], ["u", "u", "u"], [1.0, 0.0, 1.0]).values.tolist()
        [[0.5], [1.0]]
    """
    if len(methods) != len(users):
        raise ShapeError(f"methods has {len(methods)} rows and users {len(users)}; expected one of each per value.")
    scored_rows(values, users)  # the shape and the finiteness of the values
    numbers = np.asarray(values, dtype=np.float64)
    row_of = _positions("method", [str(m) for m in methods], method_order, in_order=True)
    column_of = _positions("user", [str(u) for u in users], user_order, in_order=False)
    sums, counts = np.zeros((2, len(row_of), len(column_of)))
    kept = np.flatnonzero(~np.isnan(numbers)).tolist()
    rows, columns = [row_of[str(methods[i])] for i in kept], [column_of[str(users[i])] for i in kept]
    np.add.at(sums, (rows, columns), numbers[kept])
    np.add.at(counts, (rows, columns), 1)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return UserMatrix(tuple(row_of), tuple(column_of), means, len(numbers) - len(kept))


def _positions(kind: str, names: list[str], order: Sequence[str] | None, *, in_order: bool) -> dict[str, int]:
    found = dict.fromkeys(names)
    wanted = list(found) if in_order else sorted(found)
    if order is not None:
        wanted = [str(name) for name in order]
        left_out = [name for name in found if name not in set(wanted)]
        if left_out or len(set(wanted)) < len(wanted):
            what = f"lacks '{left_out[0]}'" if left_out else "names one twice"
            raise ConfigError(f"{kind}_order {what}; expected every {kind} of the table once.")
    return {name: index for index, name in enumerate(wanted)}


@dataclass(frozen=True, slots=True)
class Complete:
    """Stages cut to the methods that were measured in all of them, and to the users who have a value for each.

    Attributes:
        stages: S arrays (M, U) without NaN, users in an order that depends on the values alone.
        kept_methods: (M,) rows of the input.
        n_dropped_methods: methods without any value in one of the stages.
        n_dropped_users: the other users.
    """

    stages: tuple[NDArray[np.float64], ...]
    kept_methods: NDArray[np.intp]
    n_dropped_methods: int
    n_dropped_users: int


def complete(stages: Sequence[ArrayLike], name: str = "acc_x and acc_y") -> Complete:
    """Drop methods without a value, then users without a value for every method, so that all meet the same users.

    Args:
        stages: (M, U) arrays of one shape, NaN for missing.
        name: what a message calls them.

    Raises:
        ShapeError: if the shapes differ or are not matrices.
        ConfigError: if a value is infinite.
    """
    arrays = [np.asarray(stage, dtype=np.float64) for stage in stages]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2:
        shown = " and ".join(f"{shape}" for shape in shapes)
        raise ShapeError(f"{name}: shape {shown}, expected (M, U): methods by users, alike for all.")
    data = np.stack(arrays)
    if np.isinf(data).any():
        raise ConfigError(f"{name}: there is an infinite value; a mean over users needs finite ones or NaN.")
    methods = np.flatnonzero(~np.isnan(data).all(axis=2).any(axis=0))
    rows = data[:, methods]
    users = ~np.isnan(rows).any(axis=(0, 1))
    data = rows[:, :, users]
    if data.size:
        data = data[:, :, np.lexsort(data.reshape(-1, data.shape[2]))]
    dropped = shapes[0][0] - len(methods), shapes[0][1] - int(users.sum())
    return Complete(tuple(data), methods, *dropped)


def user_counts(num_users: int, resamples: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return (R, U): how often a draw of U users with replacement meets each user."""
    cells = rng.integers(0, num_users, size=(resamples, num_users)) + np.arange(resamples)[:, None] * num_users
    counts = np.bincount(cells.ravel(), minlength=resamples * num_users)
    return np.asarray(counts.reshape(resamples, num_users), dtype=np.intp)


def check_resampling(resamples: int, level: float) -> None:
    """Refuse a number of resamples or a coverage that gives no interval.

    Raises:
        ConfigError: if `resamples` is below 1 or `level` is not strictly between 0 and 1.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ConfigError(f"resamples is {resamples} and level {level}; expected at least 1, and a level in (0, 1).")
