"""The example of a new method: one file and one catalogue line, and the conformance tests take it up by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADD_THE_LINE = """
import sys
sys.path.insert(0, "examples")
import user_mean
import rewardgap.rewards.catalog as home
from rewardgap.core.catalog import Catalog
home.REWARD_MODELS = Catalog("reward model", (*home.REWARD_MODELS, user_mean.CARD))
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/conformance/test_reward_heads.py", "-k", "user_mean"]))
"""


def test_a_method_in_one_file_passes_conformance() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ADD_THE_LINE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
