"""Users as clusters: the partition that every statistic here shares, and the clustered standard error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class ClusterPartition:
    """Which rows belong to which user.

    Attributes:
        labels: the distinct users, sorted.
        codes: (N,) index into `labels` of each row.
        order: (N,) rows sorted by user, stable.
        starts: (U,) first position of each user in `order`.
        sizes: (U,) rows of each user.
    """

    labels: tuple[str, ...]
    codes: NDArray[np.intp]
    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.labels)


def cluster_partition(users: Sequence[str] | NDArray[np.str_]) -> ClusterPartition:
    """Group rows by user.

    Args:
        users: (N,) user ids; anything that is not a string is taken by its `str`.

    Returns:
        The partition; a user without rows does not exist.

    Example:
        >>> part = cluster_partition(["b", "a", "b"])
        >>> part.labels, part.sizes.tolist(), part.order.tolist()
        (('a', 'b'), [1, 2], [1, 0, 2])
    """
    # A dict rather than np.unique: numpy strips trailing NULs from strings, which would merge two user ids.
    names = [str(user) for user in users]
    labels = tuple(sorted(set(names)))
    position = {label: index for index, label in enumerate(labels)}
    codes = np.fromiter((position[name] for name in names), dtype=np.intp, count=len(names))
    sizes = np.bincount(codes, minlength=len(labels)).astype(np.intp)
    starts = np.concatenate([np.zeros(1, np.intp), np.cumsum(sizes)[:-1]]) if len(labels) else sizes
    return ClusterPartition(labels, codes, np.argsort(codes, kind="stable"), starts, sizes)


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rows that have a value, grouped by user, and how many had none."""

    values: NDArray[np.float64]
    partition: ClusterPartition
    n_missing: int


def scored_rows(values: ArrayLike, users: Sequence[str] | NDArray[np.str_]) -> ScoredRows:
    """Drop and count the missing values, and group the rest by user.

    Args:
        values: (N,) numbers; NaN is missing.
        users: (N,) user ids.

    Raises:
        ShapeError: if the two lengths differ, or `values` is not a vector.
        ConfigError: if a value is infinite: no mean would exist.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) != len(users):
        raise ShapeError(f"values has shape {array.shape}, expected (N,) = ({len(users)},): one value per user id.")
    infinite = np.flatnonzero(np.isinf(array))
    if len(infinite):
        row = int(infinite[0])
        raise ConfigError(
            f"value {row} of user '{users[row]}' is {array[row]}; a mean needs finite ones. Pass NaN if it is missing."
        )
    kept = np.flatnonzero(~np.isnan(array)).tolist()
    return ScoredRows(array[kept], cluster_partition([users[i] for i in kept]), len(array) - len(kept))


def user_means(rows: ScoredRows) -> NDArray[np.float64]:
    """Return the (U,) mean of each user, in the order of `rows.partition.labels`."""
    sums = np.bincount(rows.partition.codes, weights=rows.values, minlength=len(rows.partition))
    return np.asarray(sums / rows.partition.sizes, dtype=np.float64)


def clustered_standard_error(
    values: ArrayLike, users: Sequence[str] | NDArray[np.str_], *, micro: bool = False
) -> float:
    """Return the standard error of a mean whose rows are independent between users only.

        macro:  s(user means) / √U
        micro:  √( U/(U−1) · Σ_u (Σ_{i∈u} (v_i − v̄))² ) / N

    With one row a user both are the plain s / √N, with s the (N−1) standard deviation.

    Args:
        values: (N,) numbers; NaN is missing and dropped.
        users: (N,) user ids.
        micro: of the mean over rows rather than of the mean over user means.

    Returns:
        The standard error, NaN with fewer than two users: one cluster says nothing about the spread of clusters.

    Raises:
        ShapeError: if the two lengths differ.
        ConfigError: if a value is infinite.

    Source: Liang and Zeger (1986), with the U/(U−1) correction for few clusters.
    """
    rows = scored_rows(values, users)
    num_users = len(rows.partition)
    if num_users < 2:
        return float("nan")
    if not micro:
        return float(np.std(user_means(rows), ddof=1) / np.sqrt(num_users))
    residuals = rows.values - rows.values.mean()
    sums = np.bincount(rows.partition.codes, weights=residuals, minlength=num_users)
    return float(np.sqrt(num_users / (num_users - 1) * np.sum(sums**2)) / len(rows.values))
