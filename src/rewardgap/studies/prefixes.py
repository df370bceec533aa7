"""The stage that records what a reward model says of unfinished texts: every prefix of both sides of a query pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rewardgap.metrics.prefix_accuracy import QUARTERS, first_right, prefix_margins, same_prefixes
from rewardgap.studies.batches import in_batches
from rewardgap.studies.stages import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.traces import TraceCache
    from rewardgap.core.records import PreferencePair
    from rewardgap.rewards.prefixes import PairPrefixes
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.spec import RewardModelSpec
    from rewardgap.studies.workbench import Workbench


@runtime_checkable
class RanksPrefixes(Protocol):
    """What gives unfinished texts a reward."""

    def pair_prefixes(self, pair: PreferencePair, state: Any, cache: TraceCache | None = None) -> PairPrefixes:
        """Return the rewards of every prefix of both sides of a pair."""
        ...


def run_prefixes(bench: Workbench, cell: Cell, reward_cell: Cell, spec: RewardModelSpec) -> None:
    """Cut every query pair after each quarter of its tokens and record which side the reward model has ahead.

    A record holds the margins after 25, 50, 75 and 100 % of the tokens (`margin_25` ...), whether both sides are still
    one text there (`same_25` ...), the share after which the order is right for good (`first_right`, missing where it
    is wrong in the end), and the tokens of both sides.
    """
    model, states = bench.fitted(reward_cell, spec), bench.states(reward_cell, spec)
    assert isinstance(model, RanksPrefixes)

    def work(batch: Sequence[PreferencePair]) -> list[dict[str, Any]]:
        return [_record(pair, model, states[pair.user_id], bench) for pair in batch]

    in_batches(bench, cell, bench.study_pairs().query_pairs, work)


def _record(pair: PreferencePair, model: RanksPrefixes, state: Any, bench: Workbench) -> dict[str, Any]:
    along = model.pair_prefixes(pair, state, bench.traces)
    margins = prefix_margins(along.chosen, along.rejected)
    same = same_prefixes(along.chosen_ids, along.rejected_ids)
    return {
        "user_id": pair.user_id,
        "example_id": pair.example_id,
        **{f"margin_{25 * cut}": number(margin) for cut, margin in zip(QUARTERS, margins, strict=True)},
        **{f"same_{25 * cut}": one for cut, one in zip(QUARTERS, same, strict=True)},
        "first_right": number(first_right(along.chosen, along.rejected)),
        "tokens_chosen": len(along.chosen_ids),
        "tokens_rejected": len(along.rejected_ids),
    }
