"""A split on other data than it was drawn from: pairs made of the same texts, or a copy with fewer rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rewardgap.core.errors import SplitError
from rewardgap.data.checking import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rewardgap.data.base import RowT, UserRows
    from rewardgap.data.partition import Split


def restrict_split(split: Split, dataset: UserRows[RowT]) -> Split:
    """Return a split with the rows that a dataset has, proved on it; the data it was drawn from leave it as it is.

    Rows the dataset lacks are left out and counted in a note, and so are users without a row to learn from (train
    users) or to be asked about (adapt users). An adapt user may lose support rows; the others do not move up.

    Args:
        split: ids, which name the same rows in both datasets.
        dataset: where they are looked up.

    Raises:
        SplitError: if either side is left without users, an id belongs to another user, or a promise of the split is
            broken in these rows.
    """
    if dataset.fingerprint() == split.fingerprint:
        split.check(dataset)
        return split
    split.check_ids()
    users = set(split.train_users)
    train, valid = _known(split.train_ids, users, dataset), _known(split.valid_ids, users, dataset)
    support = {user: _known(split.support_ids[user], {user}, dataset) for user in split.adapt_users}
    query = {user: _known(split.query_ids[user], {user}, dataset) for user in split.adapt_users}
    learnt = {dataset.by_id(name).user_id for name in train}
    train_users = tuple(user for user in split.train_users if user in learnt)
    adapt_users = tuple(user for user in split.adapt_users if query[user])
    if not train_users or not adapt_users:
        raise SplitError(
            f"of the split's {len(split.train_users)} train and {len(split.adapt_users)} adapt users, "
            f"{len(train_users)} and {len(adapt_users)} have rows in dataset '{dataset.name}', expected at least 1 of "
            "each; give the split that was drawn from these data or from the texts they were made of."
        )
    kept = replace(
        split,
        train_users=train_users,
        adapt_users=adapt_users,
        train_ids=train,
        valid_ids=tuple(name for name in valid if dataset.by_id(name).user_id in learnt),
        support_ids={user: support[user] for user in adapt_users},
        query_ids={user: query[user] for user in adapt_users},
        fingerprint=dataset.fingerprint(),
        proven={},
    )
    lost = len(_ids(split)) - len(_ids(kept))
    gone = len(split.train_users) + len(split.adapt_users) - len(train_users) - len(adapt_users)
    note = (
        f"The split was drawn from other data ({split.fingerprint[:12]}); {lost} of its {len(_ids(split))} rows and "
        f"{gone} of its users are not in these."
    )
    return replace(kept, notes=(*split.notes, note)).prove(dataset)


def _known(ids: Iterable[str], users: set[str], dataset: UserRows[RowT]) -> tuple[str, ...]:
    rows = rows_of(dataset, tuple(ids), users, "split", skip_unknown=True)
    return tuple(row.example_id for row in rows)


def _ids(split: Split) -> list[str]:
    sides = [split.train_ids, split.valid_ids, *split.support_ids.values(), *split.query_ids.values()]
    return [name for side in sides for name in side]
