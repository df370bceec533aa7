"""Who is trained on and who is adapted to: a study's `split` section on its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rewardgap.core.errors import ConfigError
from rewardgap.core.seeds import child_seed
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.partition import Split
from rewardgap.data.protocols import split_protocol
from rewardgap.data.restricting import restrict_split
from rewardgap.data.splits import split_users
from rewardgap.studies.spec import filled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.studies.spec import SplitSpec


def draw_split(dataset: PreferenceDataset | AuthoredDataset, spec: SplitSpec, seed: int) -> Split:
    """Return the split a study asks for: read from a file, a published protocol's, or drawn by options.

    Args:
        dataset: pairs or authored texts.
        spec: the study's `split` section.
        seed: the study's seed.

    Raises:
        SplitError: if the data do not hold what is asked for, or a file is not what it says.
        ConfigError: if a protocol parts pairs and the data are texts that have none yet.
    """
    seed = child_seed(seed, "split")
    if spec.file is not None:
        split = Split.load(Path(filled(spec.file)))
        # Spelled out: a type checker joins neither the two kinds of data nor their rows.
        if isinstance(dataset, AuthoredDataset):
            return restrict_split(split, dataset)
        return restrict_split(split, dataset)
    if spec.protocol is not None:
        if isinstance(dataset, AuthoredDataset):
            raise ConfigError(
                f"split.protocol '{spec.protocol}' parts preference pairs, and dataset '{dataset.name}' holds texts; "
                "leave it out and give split.support and split.query."
            )
        return split_protocol(spec.protocol, dataset, seed)
    options = spec.model_dump()
    if isinstance(dataset, AuthoredDataset):
        return split_users(dataset, seed=seed, **options)
    return split_users(dataset, seed=seed, **options)


def support_size(split: Split, spec: SplitSpec) -> int:
    """Return how many rows an adapt user reveals; where the split fixes no number, the most of any."""
    if spec.is_drawn:
        return spec.support
    return max((len(ids) for ids in split.support_ids.values()), default=0)


def support_notes(spec: SplitSpec, wanted: int, sizes: Sequence[int]) -> list[str]:
    """Return what is to be said where adapt users reveal different numbers of pairs.

    Args:
        spec: the study's `split` section.
        wanted: the number of `support_size`.
        sizes: pairs by adapt user.
    """
    short = sum(size < wanted for size in sizes)
    if not short:
        return []
    if spec.is_drawn:
        return [f"{short} adapt users have fewer than {wanted} support pairs, since some of their texts gave none."]
    return [f"The split fixes no number of support pairs: adapt users reveal {min(sizes)} to {wanted}."]
