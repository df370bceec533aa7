"""Presets through the command line: on data of one's own, or one sentence."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ok, refused, write_rows

from standins import save_hub_folder, tiny_model, tiny_tokenizer

SMALL = {
    "reward_models": "[{method: global_bt}, {method: lore, options: {rank: 2}}]",
    "split": "{train_users: 3, valid_per_train_user: 1, adapt_users: 2, support: 3, query: 2}",
    "generation": "{max_new_tokens: 3, min_new_tokens: 1}",
    "controls": "{shuffled_labels: 0, synthetic_text: false}",
    "metrics": "[rouge1]",
    "resamples": "50",
}


def rows(**more: Any) -> list[dict[str, Any]]:
    return [
        {"user_id": f"u{user}", "prompt": f"say {user} {row}", "chosen": f"light {row}", "rejected": "stone", **more}
        for user in range(5)
        for row in range(6)
    ]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer()
    model = tiny_model("qwen2", vocabulary=len(tokenizer), dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return save_hub_folder(tmp_path_factory.mktemp("models") / "tiny-qwen2", model, tokenizer, eos_token_id=end)


def test_a_preset_runs_on_a_file(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    data = write_rows(tmp_path / "prefs.jsonl", rows(reference="light stone"))
    settings = [item for key, value in SMALL.items() for item in ("--set", f"{key}={value}")]
    ok("run", "preset:correlation", "--data", data, "--set", f"policy={tiny_folder}", *settings, "-o", tmp_path / "out")
    found = list(csv.DictReader((tmp_path / "out" / "results.csv").open(encoding="utf-8")))
    assert {row["dataset"] for row in found} == {"prefs"}
    assert {row["method"] for row in found if row["stage"] == "policy_accuracy"} == {"zero_shot", "global_bt", "lore"}
    assert {row["method"] for row in found if row["metric"] == "rouge1"} == {"zero_shot", "global_bt", "lore"}
    command = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["command"]
    assert command.startswith("rewardgap run preset:correlation --data prefs.jsonl --set policy=tiny-qwen2 ")


@pytest.mark.parametrize("name", ["circular", "icl_vs_rgd"])
def test_data_without_references_are_refused(name: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "prefs.jsonl", rows())
    sentence = refused(3, "run", f"preset:{name}", "--data", data, "-o", tmp_path / "out")
    assert "no row of dataset 'prefs' has a reference" in sentence
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    sentence = refused(2, "run", "preset:nope")
    assert sentence == "unknown preset 'nope'. Known: circular, correlation, demo, icl_vs_rgd."
    assert "say which with --data FILE" in refused(2, "run", "preset:correlation")
    assert "does not exist" in refused(4, "run", "preset:correlation", "--data", tmp_path / "none.jsonl")
    odd = write_rows(tmp_path / "odd.jsonl", [{"left": 1}])
    assert "odd.jsonl has the columns left" in refused(3, "run", "preset:correlation", "--data", odd)
