"""Texts encoded ahead, in batches that the study alone decides, for all who read their features later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.backbones.features import Item
from rewardgap.core.errors import RewardGapError, StorageError
from rewardgap.rewards.model import RewardModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rewardgap.studies.cells import Cell
    from rewardgap.studies.spec import RewardModelSpec
    from rewardgap.studies.workbench import Workbench


def encode_pairs(bench: Workbench, rewards: Sequence[tuple[RewardModelSpec, Cell]]) -> None:
    """Encode the study's pairs as its reward models read them."""
    used = bench.all_pairs()
    for spec, model in _readers(bench, rewards):
        with bench.progress.task("encode the pairs", 2 * len(used)) as task:
            try:
                model.warm(used, task)
            except RewardGapError as error:
                _say(bench, spec, error)


def encode_written(bench: Workbench, written: Sequence[Cell], rewards: Sequence[tuple[RewardModelSpec, Cell]]) -> None:
    """Encode what all deployments wrote in one go, each prompt once, as the judges on frozen backbones read it."""
    prompts = {item.example_id: item.prompt for items in bench.study_pairs().query.values() for item in items}
    items = [
        Item(prompts[record["example_id"]], record["completion"])
        for cell in written
        if bench.folder(cell).done
        for record in bench.folder(cell).records()
    ]
    judges = [(spec, cell) for spec, cell in rewards if spec.mode == "frozen" and bench.folder(cell).done]
    for spec, model in _readers(bench, judges):
        with bench.progress.task("encode completions for the judges", len(items)) as task:
            try:
                model.features_of(items, task)
            except RewardGapError as error:
                _say(bench, spec, error)


def _readers(
    bench: Workbench, rewards: Sequence[tuple[RewardModelSpec, Cell]]
) -> Iterator[tuple[RewardModelSpec, RewardModel]]:
    """Yield a reward model, not fitted, for each way in which texts are read: a backbone, whole or sides apart."""
    seen = set()
    for spec, _ in rewards:
        if spec.mode is None:
            continue
        model = bench.new_reward_model(spec)
        # Methods that train a network of their own read no features.
        if not isinstance(model, RewardModel) or type(model).warm is not RewardModel.warm:
            continue
        way = (model.backbone.fingerprint, type(model).features_of)
        if way not in seen:
            seen.add(way)
            yield spec, model


def _say(bench: Workbench, spec: RewardModelSpec, error: RewardGapError) -> None:
    """Name what cannot be encoded: the cell that needs it fails by itself, with its own note; the others go on."""
    if isinstance(error, StorageError):
        raise error
    bench.progress.say(f"  texts for {spec.name}: {error}")
