"""Functions of the package's root that join rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.splits import split_pairs
from rewardgap.data.splits import split_users as draw_split

if TYPE_CHECKING:
    from rewardgap.data.splits import PairSplit, Split


@overload
def split_users(data: PreferenceDataset, **options: Any) -> PairSplit: ...
@overload
def split_users(data: AuthoredDataset, **options: Any) -> Split: ...
def split_users(data: PreferenceDataset | AuthoredDataset, **options: Any) -> PairSplit | Split:
    """Split a dataset by users: U_train, U_adapt, and each adapt user's support and query.

    Args:
        data: preference pairs, or authored texts.
        options: of `rewardgap.data.splits.split_users`: adapt_fraction, support, query, seed, ...

    Returns:
        For pairs: `.train`, `.valid`, `.support(user)`, `.query(user)` as lists of pairs. For authored texts: lists of
        ids, to be resolved once a pairing rule made pairs of them.

    Raises:
        SplitError: if the data have too few users or rows; the message has the numbers.
    """
    return split_pairs(data, **options) if isinstance(data, PreferenceDataset) else draw_split(data, **options)
