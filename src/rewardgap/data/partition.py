"""Splits as lists of example ids: who is trained on, who is met afterwards, what they reveal, what they are judged on.

A split never puts one prompt on both sides within a user, and lets support come first in time where rows have times.
It is a value: stored, compared, checked against the data, and resolved to rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, overload

from rewardgap.core.errors import SplitError
from rewardgap.core.records import AuthoredText, PreferencePair
from rewardgap.core.store import read_json, write_json
from rewardgap.data.base import AuthoredDataset, PreferenceDataset, RowT, UserRows
from rewardgap.data.checking import check_apart, check_time, rows_of

if TYPE_CHECKING:
    from pathlib import Path

    from rewardgap.data.ordering import Disjoint

SplitOrder: TypeAlias = Literal["auto", "time", "random"]
VERSION = 1


@dataclass(frozen=True)
class Split:
    """Which rows serve for what.

    Args:
        train_users: users in fitting, as drawn: a smaller draw with the same seed takes the first of them.
        adapt_users: users met afterwards, disjoint from train_users.
        train_ids: rows to fit on.
        valid_ids: rows of training users kept for choices such as guidance_weight.
        support_ids: adapt user -> rows the user reveals.
        query_ids: adapt user -> rows the user is judged on.
        seed: what it was drawn from.
        fingerprint: of the dataset it was drawn from.
        order: "auto", "time" or "random", as asked for.
        disjoint: what must not be on both sides within a user: "prompt", "item" (a text of either side) or "row".
        notes: what was left out, in sentences.
    """

    train_users: tuple[str, ...]
    adapt_users: tuple[str, ...]
    train_ids: tuple[str, ...]
    valid_ids: tuple[str, ...]
    support_ids: Mapping[str, tuple[str, ...]]
    query_ids: Mapping[str, tuple[str, ...]]
    seed: int
    fingerprint: str
    order: SplitOrder = "auto"
    disjoint: Disjoint = "prompt"
    notes: tuple[str, ...] = ()

    def proof(self) -> dict[str, int]:
        """Return the counts a reader can check: sizes, and overlaps that must all be 0."""
        support = [name for ids in self.support_ids.values() for name in ids]
        query = [name for ids in self.query_ids.values() for name in ids]
        listed = [*self.train_ids, *self.valid_ids, *support, *query]
        return {
            "train_users": len(self.train_users),
            "adapt_users": len(self.adapt_users),
            "train_rows": len(self.train_ids),
            "valid_rows": len(self.valid_ids),
            "support_rows": len(support),
            "query_rows": len(query),
            "users_on_both_sides": len(set(self.train_users) & set(self.adapt_users)),
            "rows_listed_twice": len(listed) - len(set(listed)),
            "users_without_lists": len({*self.adapt_users} ^ {*self.support_ids})
            + len({*self.adapt_users} ^ {*self.query_ids}),
        }

    def check(self, dataset: UserRows[RowT]) -> None:
        """Check every promise of the split against the rows it was drawn from.

        Raises:
            SplitError: naming the first problem: other data, an unknown id, an id of another user, users on both
                sides, a row listed twice, a prompt on both sides, a query row earlier than a support row.
        """
        if dataset.fingerprint() != self.fingerprint:
            raise SplitError(
                f"split was drawn from data {self.fingerprint[:12]}, but dataset '{dataset.name}' is "
                f"{dataset.fingerprint()[:12]}; draw a new split or load the data it was made from."
            )
        self.check_ids()
        train = rows_of(dataset, self.train_ids, set(self.train_users), "train")
        valid = rows_of(dataset, self.valid_ids, set(self.train_users), "valid")
        fit, held = _by_user(train), _by_user(valid)
        for user in self.train_users:
            check_apart(user, fit.get(user, []), held.get(user, []), self.disjoint, ("train", "valid"))
        for user in self.adapt_users:
            support = rows_of(dataset, self.support_ids[user], {user}, "support")
            query = rows_of(dataset, self.query_ids[user], {user}, "query")
            check_apart(user, support, query, self.disjoint, ("support", "query"))
            if self.order != "random":
                check_time(user, dataset.of_user(user), support, query)

    def check_ids(self) -> None:
        """Check what the lists of ids alone can show.

        Raises:
            SplitError: if users or rows stand on two sides, or an adapt user has no lists.
        """
        both = sorted(set(self.train_users) & set(self.adapt_users))
        if both:
            raise SplitError(f"user '{both[0]}' is both a train and an adapt user ({len(both)} such users).")
        for user in self.adapt_users:
            if user not in self.support_ids or user not in self.query_ids:
                raise SplitError(f"adapt user '{user}' has no support or no query list.")
        extra = sorted({*self.support_ids, *self.query_ids} - {*self.adapt_users})
        if extra:
            raise SplitError(f"split lists rows for '{extra[0]}', who is not an adapt user.")
        sides: dict[str, str] = {}
        lists = [("train", self.train_ids), ("valid", self.valid_ids)]
        lists += [(f"support of '{user}'", ids) for user, ids in self.support_ids.items()]
        lists += [(f"query of '{user}'", ids) for user, ids in self.query_ids.items()]
        for side, ids in lists:
            for name in ids:
                if name in sides:
                    raise SplitError(f"example '{name}' is listed in {sides[name]} and again in {side}.")
                sides[name] = side

    @overload
    def resolve(self, dataset: PreferenceDataset) -> PairSplit: ...
    @overload
    def resolve(self, dataset: AuthoredDataset) -> TextSplit: ...
    def resolve(self, dataset: PreferenceDataset | AuthoredDataset) -> PairSplit | TextSplit:
        """Return the split with rows in place of ids.

        The dataset may be another than the split was drawn from: pairs made of the same authored rows keep their ids,
        and rows that a pairing rule dropped are skipped and counted in `missing`.

        Raises:
            SplitError: if an id belongs to another user than the split says, or no id is in the dataset.
        """
        self.check_ids()
        if isinstance(dataset, PreferenceDataset):
            return PairSplit(self, *_sides(self, dataset))
        return TextSplit(self, *_sides(self, dataset))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value, with the proof."""
        return {
            "version": VERSION,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "order": self.order,
            "disjoint": self.disjoint,
            "proof": self.proof(),
            "notes": list(self.notes),
            "train_users": list(self.train_users),
            "adapt_users": list(self.adapt_users),
            "train_ids": list(self.train_ids),
            "valid_ids": list(self.valid_ids),
            "support_ids": {user: list(ids) for user, ids in self.support_ids.items()},
            "query_ids": {user: list(ids) for user, ids in self.query_ids.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Split:
        """Read what `to_json` wrote, and prove it again.

        Raises:
            SplitError: if a field is missing, rows overlap, or the stored counts are not those of the lists.
        """
        try:
            if value["version"] != VERSION:
                raise SplitError(f"split file has version {value['version']}, this program reads {VERSION}.")
            split = cls(
                train_users=tuple(value["train_users"]),
                adapt_users=tuple(value["adapt_users"]),
                train_ids=tuple(value["train_ids"]),
                valid_ids=tuple(value["valid_ids"]),
                support_ids={user: tuple(ids) for user, ids in value["support_ids"].items()},
                query_ids={user: tuple(ids) for user, ids in value["query_ids"].items()},
                seed=int(value["seed"]),
                fingerprint=str(value["fingerprint"]),
                order=value["order"],
                disjoint=value["disjoint"],
                notes=tuple(value["notes"]),
            )
            stored = dict(value["proof"])
        except KeyError as error:
            raise SplitError(f"split file has no field {error}; write it again with to_json.") from None
        except (TypeError, AttributeError, ValueError) as error:
            if isinstance(error, SplitError):
                raise
            raise SplitError(f"split file is not in the expected form ({error}).") from None
        split.check_ids()
        found = split.proof()
        for name, count in found.items():
            if stored.get(name) != count:
                raise SplitError(
                    f"split file says {name} {stored.get(name)}, but lists {count}: it was changed or damaged."
                )
        return split

    def save(self, path: Path) -> None:
        """Write the split as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read a split file.

        Raises:
            SplitError: if it cannot be read or does not hold what it says.
        """
        try:
            value = read_json(path)
        except (OSError, ValueError) as error:
            raise SplitError(f"split file '{path}' cannot be read: {error}.") from None
        if not isinstance(value, Mapping):
            raise SplitError(f"split file '{path}' holds a {type(value).__name__}, expected an object.")
        return cls.from_json(value)


@dataclass(frozen=True)
class ResolvedSplit(Generic[RowT]):
    """A split with rows in place of ids.

    Args:
        split: the ids.
        train: rows to fit on.
        valid: rows of training users kept for choices.
        support_rows: adapt user -> rows.
        query_rows: adapt user -> rows.
        missing: how many ids of each side have no row in the dataset.
    """

    split: Split
    train: list[RowT]
    valid: list[RowT]
    support_rows: Mapping[str, list[RowT]]
    query_rows: Mapping[str, list[RowT]]
    missing: Mapping[str, int] = field(default_factory=dict)

    @property
    def train_users(self) -> tuple[str, ...]:
        """Return the users in fitting."""
        return self.split.train_users

    @property
    def adapt_users(self) -> tuple[str, ...]:
        """Return the users met afterwards."""
        return self.split.adapt_users

    @property
    def seed(self) -> int:
        """Return the seed of the split."""
        return self.split.seed

    def support(self, user_id: str) -> list[RowT]:
        """Return the rows an adapt user reveals.

        Raises:
            SplitError: if the user is not an adapt user.
        """
        return self._of(self.support_rows, user_id)

    def query(self, user_id: str) -> list[RowT]:
        """Return the rows an adapt user is judged on.

        Raises:
            SplitError: if the user is not an adapt user.
        """
        return self._of(self.query_rows, user_id)

    def _of(self, rows: Mapping[str, list[RowT]], user_id: str) -> list[RowT]:
        if user_id not in rows:
            what = "a train user" if user_id in self.train_users else "unknown"
            raise SplitError(
                f"user '{user_id}' is {what}; support and query exist for the {len(rows)} adapt users only."
            )
        return list(rows[user_id])


@dataclass(frozen=True)
class PairSplit(ResolvedSplit[PreferencePair]):
    """A split of preference pairs."""


@dataclass(frozen=True)
class TextSplit(ResolvedSplit[AuthoredText]):
    """A split of authored texts."""


def _sides(
    split: Split, dataset: UserRows[RowT]
) -> tuple[list[RowT], list[RowT], dict[str, list[RowT]], dict[str, list[RowT]], dict[str, int]]:
    missing = {"train": 0, "valid": 0, "support": 0, "query": 0}

    def rows(ids: tuple[str, ...], users: set[str], side: str) -> list[RowT]:
        found = rows_of(dataset, ids, users, side, skip_unknown=True)
        missing[side] += len(ids) - len(found)
        return found

    train_users = set(split.train_users)
    train = rows(split.train_ids, train_users, "train")
    valid = rows(split.valid_ids, train_users, "valid")
    support = {user: rows(split.support_ids[user], {user}, "support") for user in split.adapt_users}
    query = {user: rows(split.query_ids[user], {user}, "query") for user in split.adapt_users}
    if not train and not any(support.values()) and not any(query.values()):
        raise SplitError(
            f"none of the split's {len(split.train_ids)} train rows or other ids is in dataset '{dataset.name}'; "
            "it was drawn from other data."
        )
    return train, valid, support, query, missing


def _by_user(rows: list[RowT]) -> dict[str, list[RowT]]:
    groups: dict[str, list[RowT]] = {}
    for row in rows:
        groups.setdefault(row.user_id, []).append(row)
    return groups
