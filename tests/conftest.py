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

USERS_CACHE = os.environ.get("REWARDGAP_CACHE")
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


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point the cache at a folder of this run, before any fixture of a module can write to the user's."""
    folder = tmp_path_factory.mktemp("rewardgap-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def cache_of_module(request: pytest.FixtureRequest, session_cache: Path) -> Iterator[None]:
    """Give modules with real models the user's cache, where those are converted."""
    yield from _users_cache_if_real(request)


@pytest.fixture(autouse=True)
def cache_of_test(request: pytest.FixtureRequest, cache_of_module: None) -> Iterator[None]:
    """Give single tests with real models the user's cache."""
    yield from _users_cache_if_real(request)


def _users_cache_if_real(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("real_model") is not None:
            if USERS_CACHE is None:
                patch.delenv("REWARDGAP_CACHE", raising=False)
            else:
                patch.setenv("REWARDGAP_CACHE", USERS_CACHE)
        yield
