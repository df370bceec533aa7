"""Means of every user under every line of a study's results: what two runs are compared by, without their cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.core.errors import DataError
from rewardgap.core.results import KEY_COLUMNS
from rewardgap.core.store import write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from rewardgap.core.results import ResultRow

FILE_NAME = "user_means.parquet"
Key = tuple[Any, ...]


class UserMeans:
    """Means of users, by the key of a line of the results.

    Attributes:
        lines: key -> (users, their means, how many examples each mean is over).
    """

    def __init__(self) -> None:
        self.lines: dict[Key, tuple[list[str], list[float], list[int]]] = {}

    def add(self, row: ResultRow, values: ArrayLike, users: Sequence[str]) -> None:
        """Take in the values of a line.

        Args:
            row: the line.
            values: (N,) of examples, NaN for missing; a user without any value has no mean.
            users: (N,) whose they are.
        """
        numbers = np.asarray(values, dtype=np.float64)
        known = ~np.isnan(numbers)
        names, codes = np.unique(np.asarray(users, dtype=object)[known].astype(str), return_inverse=True)
        counts = np.bincount(codes, minlength=len(names))
        sums = np.bincount(codes, weights=numbers[known], minlength=len(names))
        self.lines[row.key()] = (names.tolist(), (sums / np.maximum(counts, 1)).tolist(), counts.tolist())

    def write(self, path: Path) -> None:
        """Write them as one Parquet table: the key columns, `user_id`, `mean` and `n_examples`."""
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq

        whole = dict.fromkeys(("top_k", "shots", "support_size", "seed"), pa.int64())
        kinds = {**whole, "guidance_weight": pa.float64()}
        lengths = [len(users) for users, _, _ in self.lines.values()]
        columns: dict[str, Any] = {}
        for place, name in enumerate(KEY_COLUMNS):
            values = pa.array([key[place] for key in self.lines], kinds.get(name, pa.string()))
            columns[name] = values.take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
        columns["user_id"] = pa.array([user for users, _, _ in self.lines.values() for user in users], pa.string())
        columns["mean"] = pa.array([mean for _, means, _ in self.lines.values() for mean in means], pa.float64())
        columns["n_examples"] = pa.array([n for _, _, counts in self.lines.values() for n in counts], pa.int64())
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink, compression="zstd")
        write_bytes(path, sink.getvalue())

    @classmethod
    def read(cls, path: Path) -> UserMeans:
        """Read what `write` wrote.

        Raises:
            DataError: if the file cannot be read as such a table.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path, use_threads=False, pre_buffer=False)
            columns = [table.column(name).to_pylist() for name in (*KEY_COLUMNS, "user_id", "mean", "n_examples")]
        except (OSError, KeyError, pa.ArrowException) as error:
            raise DataError(f"'{path}' cannot be read as means of users ({error}); run the study again.") from error
        found = cls()
        for *key, user, mean, count in zip(*columns, strict=True):
            users, means, counts = found.lines.setdefault(tuple(key), ([], [], []))
            users.append(user)
            means.append(mean)
            counts.append(count)
        return found
