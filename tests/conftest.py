"""Settings of every test: one thread, no network, a cache of the session's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
settings.register_profile(
    "rewardgap",
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("rewardgap")


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache folder of this run."""
    return tmp_path_factory.mktemp("rewardgap-cache")


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point the cache at a folder of this run; tests with real models keep the user's, where they are converted."""
    if request.node.get_closest_marker("real_model") is None:
        monkeypatch.setenv("REWARDGAP_CACHE", str(session_cache))
    yield
