"""What a run was made with: versions and threads; no host name, user name or path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from typing import TYPE_CHECKING, Any

import rewardgap
from rewardgap.core.store import read_json

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "numpy", "scipy", "safetensors", "rouge-score-rs", "bm25s")
PROBE_REPEATS = 5


def environment() -> dict[str, Any]:
    """Return versions, machine type and threads as a JSON value."""
    import torch

    return {
        "rewardgap": rewardgap.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        **{name: _version(name) for name in PACKAGES},
    }


def threads_of(root: Path) -> int | None:
    """Return the threads that a results folder was begun with, None for a new one.

    Another number of threads adds in another order, and a draw or near-tie may fall otherwise: a resumed run keeps it.
    """
    path = root / "env.json"
    known = read_json(path).get("threads") if path.exists() else None
    return known if isinstance(known, int) else None


def choose_threads(threads: int | None = None) -> int:
    """Set and return the number of torch threads.

    Args:
        threads: how many; unless given, `OMP_NUM_THREADS`, else what a short probe finds fastest. Two threads on two
            busy cores can be far slower than one, so the probe multiplies matrices of a small model's size.
    """
    import torch

    if threads is None and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        threads = int(os.environ["OMP_NUM_THREADS"])
    if threads is None:
        seconds = thread_seconds()
        threads = min(seconds, key=lambda number: seconds[number])
    torch.set_num_threads(threads)
    return threads


def thread_seconds() -> dict[int, float]:
    """Return what a short probe takes at each number of threads, 1 to the cores at hand and 4 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {number: _probe(number) for number in range(1, min(cores, 4) + 1)}


def _probe(threads: int) -> float:
    """Return the median seconds of a few matrix products at this number of threads."""
    import torch

    torch.set_num_threads(threads)
    left, right = torch.ones(96, 576), torch.ones(576, 1536)
    seconds = []
    for _ in range(PROBE_REPEATS):
        begin = time.perf_counter()
        for _ in range(30):
            left @ right
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds)[PROBE_REPEATS // 2]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
