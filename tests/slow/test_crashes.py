"""A study that is killed twenty times ends with the numbers of one that was not, and runs no cell after its DONE."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewardgap.studies import journal
from standins import save_hub_folder, tiny_model, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "line"))
from study_runner import PLACES, command, hook
from test_study_survival import tiny_study, write_data

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (make test-all)")
KILLS = 20
LAST = {"rename": 40, "parquet": 7, "DONE": 7, "append": 25}
"""Writes of a kind after which a kill comes at the latest."""
CELLS = 7
"""Cells after whose begin it comes at the latest: twenty kills leave much of the study to do."""
DEPLOYMENTS = [
    {"policy": "zero_shot"},
    {"policy": "icl_rag", "num_demonstrations": [1, 2]},
    {"decoder": "args_greedy", "guidance_weight": [0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], "top_k": 4},
]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_data(folder / "texts.jsonl")
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float32)
    save_hub_folder(folder / "model", model, tokenizer, eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"))
    (folder / "tiny.yaml").write_text(json.dumps(tiny_study(folder, deployments=DEPLOYMENTS)))
    hook(folder / "hook")
    return folder


def environment(material: Path, cache: Path, kill: str = "") -> dict[str, str]:
    own = {
        "REWARDGAP_CACHE": str(cache),
        "TEST_KILL": kill,
        "PYTHONPATH": str(material / "hook"),
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **own}


def run(material: Path, folder: Path, *more: object) -> list[str]:
    return command("run", material / "tiny.yaml", "--output", folder / "run", "--threads", 1, *more)


def rows(folder: Path) -> list[dict[str, str]]:
    """results.csv but for what a run costs."""
    with (folder / "run" / "results.csv").open() as stream:
        found = list(csv.DictReader(stream))
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "tokens")}
        for row in found
        if row["stage"] != "cost"
    ]


@pytest.fixture(scope="module")
def uninterrupted(material: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("plain")
    subprocess.run(
        run(material, folder), env=environment(material, folder / "cache"), check=True, capture_output=True, text=True
    )
    return rows(folder)


def done(folder: Path) -> set[str]:
    return {path.parent.name for path in (folder / "run").glob("cells/*/DONE")}


def killed_again_and_again(material: Path, folder: Path, kills: int, seed: int, *more: object) -> dict[int, set[str]]:
    """Kill a run at aimed and at random moments; return what was done at each kill, by the number of journal lines.

    Every second kill is aimed: the process that makes the n-th write of a kind dies inside it, and the run itself dies
    a moment later. The others come a moment after the run began its n-th cell.
    """
    draw = np.random.default_rng(seed)
    finished_at: dict[int, set[str]] = {}
    for number in range(kills):
        place = PLACES[number // 2 % len(PLACES)] if number % 2 else None
        last = int(draw.integers(1, LAST[place] if place else CELLS))
        moment = float(draw.uniform(0, 0.3))
        counter, begun = folder / f"count{number}", starts(folder)
        with subprocess.Popen(
            run(material, folder, *more),
            env=environment(material, folder / "cache", f"{place}|{counter}|{last}" if place else ""),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            deadline = time.monotonic() + 120
            hit = False
            while not hit and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
                made = size(counter) if place else starts(folder) - begun
                hit = made >= last
            time.sleep(moment)
            process.kill()
        assert hit, f"kill {number}, {place or 'at random'}: the run ended before it, or nothing came to be written"
        assert not (folder / "run" / "results.csv").exists(), "nothing was left to do at a kill"
        # Workers see that the run is gone, and go.
        time.sleep(1)
        finished_at[len(journal.read(folder / "run"))] = done(folder)
    return finished_at


def size(counter: Path) -> int:
    return counter.stat().st_size if counter.exists() else 0


def starts(folder: Path) -> int:
    return sum(line["event"] == "start" for line in journal.read(folder / "run"))


def check_journal(folder: Path, finished_at: dict[int, set[str]]) -> None:
    lines: list[dict[str, Any]] = journal.read(folder / "run")
    ended: set[str] = set()
    for number, line in enumerate(lines):
        if line["event"] == "end":
            ended.add(line["cell"])
        assert line["event"] != "start" or line["cell"] not in ended, f"{line['kind']} was run again after its end"
        assert line["event"] not in ("failed", "damaged"), line
        before = [cells for at, cells in finished_at.items() if at <= number]
        if line["event"] == "start" and before:
            assert line["cell"] not in set().union(*before), f"{line['kind']} was run again after its DONE"
    assert len(ended) > len(set().union(*finished_at.values())), "the last run had something left to do"


@pytest.mark.parametrize(
    "executor",
    [
        pytest.param(("--jobs", 2), id="local"),
        pytest.param(("--executor", "ray", "--jobs", 2), id="ray", marks=needs_ray),
    ],
)
def test_twenty_kills(
    executor: tuple[object, ...], material: Path, tmp_path: Path, uninterrupted: list[dict[str, str]]
) -> None:
    finished_at = killed_again_and_again(material, tmp_path, KILLS, 5, *executor)
    last = subprocess.run(
        run(material, tmp_path, *executor),
        env=environment(material, tmp_path / "cache"),
        capture_output=True,
        text=True,
    )
    assert last.returncode == 0, last.stderr[-3000:]
    assert rows(tmp_path) == uninterrupted
    check_journal(tmp_path, finished_at)
