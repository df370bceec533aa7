"""Timing that survives a noisy machine: alternatives take turns, and their ratio is taken turn by turn."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def seconds(work: Callable[[], Any]) -> float:
    """Return what one call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def take_turns(works: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Run every alternative once a round, in turn, and return each one's measure a round.

    Args:
        works: name -> a call that does the work and returns its measure, for example seconds a pair.
        repetitions: rounds.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            found[name].append(work())
    return found


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest of slow / fast, round by round."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "rounds": len(ratios)}


def peak_bytes() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
