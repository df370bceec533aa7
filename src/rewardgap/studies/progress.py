"""Progress of long work: what is running, how far, how fast, how long still."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Task(Protocol):
    """One thing that advances."""

    def __call__(self, done: int, total: int) -> None:
        """Say how far it is."""
        ...


class Progress(Protocol):
    """Where progress goes."""

    def task(self, title: str, total: int) -> AbstractContextManager[Task]:
        """Open a task; it closes itself."""
        ...

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """Ignore a task."""
        yield lambda done, total: None

    def say(self, text: str) -> None:
        """Ignore a line."""


class Lines:
    """A line when a task ends, and one every half minute while it runs.

    Args:
        say: takes the lines.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """Show one task."""
        begin = last = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > 30 and done:
                last = now
                rate = done / (now - begin)
                left = (total - done) / rate
                self.say(f"  {title}: {done}/{total}, {rate:.2f}/s, {_clock(left)} left")

        yield tell
        self.say(f"  {title}: {_clock(time.monotonic() - begin)}")


class Terminal:
    """Bars on a terminal; on anything else a line when a task ends, and one every half minute while it runs."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(file=sys.stderr, highlight=False)

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """Show one task."""
        if self.console.is_terminal:
            with self._bar(title, total) as task:
                yield task
            return
        with Lines(self.say).task(title, total) as task:
            yield task

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Task]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console) as bars:
            row = bars.add_task(title, total=total, rate="")
            begin = time.monotonic()

            def tell(done: int, total: int) -> None:
                rate = done / max(time.monotonic() - begin, 1e-9)
                bars.update(row, completed=done, total=total, rate=f"{rate:.2f}/s")

            yield tell
            bars.update(row, completed=bars.tasks[0].total)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
