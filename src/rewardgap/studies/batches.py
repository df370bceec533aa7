"""The rows of a cell, a batch at a time: a batch is kept as soon as it is there, and made smaller where it must be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewardgap.backbones.memory import fewer_rows, give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.studies.cells import Cell
    from rewardgap.studies.workbench import Workbench


def in_batches(
    bench: Workbench,
    cell: Cell,
    items: Sequence[Any],
    work: Callable[[Sequence[Any]], list[dict[str, Any]]],
    facts: dict[str, Any] | None = None,
    size: int | None = None,
) -> None:
    """Run a cell batch by batch; batches are cut by item index, so a resumed run rebuilds the same ones.

    A batch is kept as a whole once it is there: what ends the program costs the batch in flight and no other. Where
    memory runs out, the batch and those after it are computed in smaller parts. A batch has `size` items, the study's
    batch size unless given.

    Raises:
        OutOfMemoryError: if not even one row fits.
    """
    folder = bench.folder(cell)
    size = width = size or bench.study.batch_size
    kept: dict[int, list[dict[str, Any]]] = {}
    left = folder.start()
    for record in left:
        kept.setdefault(record["item"] // size * size, []).append(record)
    whole = {begin for begin, rows in kept.items() if len(rows) == len(items[begin : begin + size])}
    if len(whole) < len(kept):
        # The kill fell inside a write: a batch counts only with all its lines.
        folder.rewrite([record for begin in sorted(whole) for record in kept[begin]])

    def say(text: str) -> None:
        bench.progress.say(f"  {cell.title}: {text}")

    with bench.progress.task(cell.title, len(items)) as task:
        for begin in range(0, len(items), size):
            batch = items[begin : begin + size]
            if begin not in whole:
                records, width = _in_parts(batch, work, width, say)
                folder.append({"item": begin + place, **record} for place, record in enumerate(records))
            task(begin + len(batch), len(items))
    folder.finish({"facts": {"batch_size": size, **(facts or {})}})


def _in_parts(
    batch: Sequence[Any],
    work: Callable[[Sequence[Any]], list[dict[str, Any]]],
    width: int,
    say: Callable[[str], None],
) -> tuple[list[dict[str, Any]], int]:
    """Return a batch's records, computed `width` rows at a time, or fewer where memory runs out, and how many it was.

    Raises:
        OutOfMemoryError: if not even one row fits.
    """
    records: list[dict[str, Any]] = []
    while len(records) < len(batch):
        part, before = batch[len(records) : len(records) + width], width
        try:
            records += work(part)
        except Exception as error:
            width = fewer_rows(error, len(part))
        if width < before:
            # Only now: while the error was there, what it had led through held the batch in memory.
            give_back()
            say(f"out of memory with {len(part)} at a time; going on with {width}.")
    return records, width
