"""Presets on a file of one's own through the command line, with all their deployments, on a random network."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from paper_worlds import WORDS, write_policy
from rewardgap.cli.app import app
from rewardgap.studies.presets import preset_path

pytestmark = pytest.mark.slow
JUDGE = {"method": "icl_judge", "options": {"num_demonstrations": 2, "labels": ["A", "B"]}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("models") / "tiny-qwen2", seed=0)


def texts(path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "user_id": f"u{user}",
            "prompt_source": f"{WORDS[row % 10]} {WORDS[user]} {row}",
            "reference": WORDS[-row % 10],
        }
        for user in range(7)
        for row in range(14)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["correlation", "circular", "icl_vs_rgd"])
def test_a_preset_runs_on_texts(name: str, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy's samples make the pairs; the judge's labels alone differ, since this network's tokens are few."""
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    study = yaml.safe_load(preset_path(name).read_text(encoding="utf-8"))
    models = [JUDGE if model["method"] == "icl_judge" else model for model in study["reward_models"]]
    changes = {
        "data.options.task": "title",
        "policy": policy,
        "generation.max_new_tokens": 4,
        "resamples": 50,
        "metrics": "[rouge1]",
        "controls.shuffled_labels": 0,
        "controls.synthetic_text": "false",
        "reward_models": models,
    }
    settings = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    command = ["run", f"preset:{name}", "--data", texts(tmp_path / "mine.jsonl"), *settings, "-o", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open(encoding="utf-8")))
    written = {
        (row["method"], row["decoder"], row["shots"], row["support_size"]) for row in rows if row["metric"] == "rouge1"
    }
    heads = {model["method"] for model in models} - {"icl_judge"}
    sizes = ("2", "4", "8") if name == "icl_vs_rgd" else ("8",)
    expected = {(head, "args_greedy", "", size) for head in heads for size in sizes}
    if name == "icl_vs_rgd":
        expected |= {(how, "", size, size) for how in ("icl", "icl_rag") for size in sizes}
        expected |= {("zero_shot", "", "", size) for size in sizes}
    else:
        expected |= {("zero_shot", "", "", "")}
    if name == "circular":
        expected |= {
            ("icl_rag", "", "4", "8"),
            *((head, "best_of_n n=8", "", "8") for head in ("global_bt", "lore", "pref")),
        }
        assert {row["judge"] for row in rows if row["stage"] == "win_rate" and row["value"]} == heads | {"icl_judge"}
    assert written == expected
