"""Many prompts under one deployment, a batch at a time: each is told of as soon as its text has ended.

Where tokens are chosen one by one, a prompt takes the place of a row that ended, so that the batch stays full.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rewardgap.backbones.memory import fewer_rows, give_back
from rewardgap.backbones.serving import ServedBackbone
from rewardgap.decoding.base import Search
from rewardgap.decoding.loop import decode
from rewardgap.decoding.rows import Newcomers
from rewardgap.rewards.guide import JoiningGuide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.records import Prompt
    from rewardgap.decoding.outcome import Decoded
    from rewardgap.policies.base import AdaptedPolicy
    from rewardgap.policies.run import Generation, PolicyRun, Prepared
    from rewardgap.rewards.guide import Guide


class Done(Protocol):
    """Called once for each prompt."""

    def __call__(self, number: int, prepared: Prepared, written: Generation) -> None:
        """Take what was written for the prompt of this number."""
        ...


@dataclass(frozen=True)
class Asked:
    """N prompts, the states of their users, and a seed for the draws of each."""

    prompts: Sequence[Prompt]
    states: Sequence[Any]
    seeds: Sequence[int]

    def open(self, policy: AdaptedPolicy, numbers: Sequence[int]) -> PolicyRun:
        """Prefill some of the prompts."""
        prompts = [self.prompts[number] for number in numbers]
        return policy.open(prompts, [self.states[n] for n in numbers], [self.seeds[n] for n in numbers])


def write_many(policy: AdaptedPolicy, asked: Asked, batch_size: int, done: Done) -> None:
    """Write a completion for each prompt; the texts are those of each prompt alone.

    Where memory runs out, what has ended stays, and the rest goes on with smaller batches, with a warning.

    Args:
        policy: the deployment.
        asked: what it is asked.
        batch_size: prompts at a time.
        done: called as soon as a text has ended; of searches and served policies, at the end of their batch.

    Raises:
        OutOfMemoryError: before anything is computed, if a batch would not fit; later, if not even one row does.
    """
    policy.check_batches(asked.prompts, asked.states, batch_size)
    write = _in_batches if _whole_batches(policy) else _in_turn
    left = list(range(len(asked.prompts)))

    def note(number: int, prepared: Prepared, written: Generation) -> None:
        left.remove(number)
        done(number, prepared, written)

    while left:
        rows = min(batch_size, len(left))
        try:
            write(policy, asked, list(left), rows, note)
        except Exception as error:
            batch_size = fewer_rows(error, rows)
        if left:
            # Only now: while the error was there, what it had led through held the batch in memory.
            give_back()
            warnings.warn(f"out of memory with {rows} prompts at a time; going on with {batch_size}.", stacklevel=2)


def _whole_batches(policy: AdaptedPolicy) -> bool:
    """Return whether rows cannot enter a batch.

    Searches have loops of their own, engines fill their batches, and rows that read along in pairs keep their places.
    """
    return isinstance(policy.decoder, Search) or isinstance(policy.backbone, ServedBackbone) or policy.rows_a_prompt > 1


def _in_batches(policy: AdaptedPolicy, asked: Asked, numbers: list[int], batch_size: int, done: Done) -> None:
    for begin in range(0, len(numbers), batch_size):
        batch = numbers[begin : begin + batch_size]
        run = asked.open(policy, batch)
        for number, prepared, written in zip(batch, run.prepared, run.generate(), strict=True):
            done(number, prepared, written)


def _in_turn(policy: AdaptedPolicy, asked: Asked, numbers: list[int], batch_size: int, done: Done) -> None:
    line = _Line(policy, asked, numbers, done)
    while (first := line.first(batch_size)) is not None:
        run, guide = first
        decode(
            run.session, run.tips, policy.decoder, policy.stop_rule(), guide=guide, seeds=run.seeds,
            watch=line.watch, feed=line,
        )  # fmt: skip


class _Line:
    """Prompts in a line: the feed of a batch, and who is told what its rows have written.

    Args:
        policy: the deployment.
        asked: what it is asked.
        numbers: of the prompts in the line.
        done: called with each that has ended.
    """

    def __init__(self, policy: AdaptedPolicy, asked: Asked, numbers: Sequence[int], done: Done) -> None:
        self._policy, self._asked, self._waiting, self._done = policy, asked, list(numbers), done
        self._next: tuple[list[int], PolicyRun, Guide | None] | None = None
        self._inside: list[tuple[int, Prepared]] = []

    def first(self, places: int) -> tuple[PolicyRun, Guide | None] | None:
        """Return the prompts that begin a batch, and their guide; None if nobody waits."""
        if not self._open(places):
            return None
        self._inside = []
        return self._enter()

    def __call__(self, places: int, guide: Guide | None) -> Newcomers | None:
        """Return prompts that join a batch; those whose guide cannot wait until it has ended."""
        if not self._open(places):
            return None
        assert self._next is not None
        _, _, own = self._next
        if guide is not None and not (own is not None and isinstance(guide, JoiningGuide) and guide.joins(own)):
            return None
        run, own = self._enter()
        return Newcomers(run.session, run.tips, own, run.seeds)

    def watch(self, row: int, decoded: Decoded) -> None:
        """Tell of a row that has ended."""
        if decoded.ended or decoded.steps == self._policy.settings.max_new_tokens:
            number, prepared = self._inside[row]
            self._done(number, prepared, self._policy.finish(decoded))

    def _open(self, places: int) -> bool:
        """Prefill the next prompts, unless some wait prefilled; return whether there are any."""
        if self._next is None and self._waiting:
            numbers, self._waiting = self._waiting[:places], self._waiting[places:]
            run = self._asked.open(self._policy, numbers)
            self._next = numbers, run, self._policy.guide(run)
        return self._next is not None

    def _enter(self) -> tuple[PolicyRun, Guide | None]:
        assert self._next is not None
        numbers, run, guide = self._next
        self._inside += zip(numbers, run.prepared, strict=True)
        self._next = None
        return run, guide
