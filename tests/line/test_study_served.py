"""A study on a served policy: it runs through, agrees with the local one, and names no host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import ok, refused

from model_server import MODEL, model_server
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.load import load_backbone
from rewardgap.core.seeds import child_seed
from rewardgap.data.catalog import load_dataset
from rewardgap.policies.base import GenerationSettings
from rewardgap.studies import pairing
from rewardgap.studies.cells import from_parquet
from rewardgap.studies.spec import PairingSpec
from standins import save_hub_folder, tiny_model, tiny_tokenizer


def records(out: Path, kind: str) -> dict[str, list[dict[str, Any]]]:
    """Return the records of finished cells of a kind, by the name of what they are."""
    found = {}
    for folder in (out / "cells").iterdir():
        facts = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        if facts["kind"] == kind:
            found[facts["key"].get("name", kind)] = from_parquet((folder / "records.parquet").read_bytes())
    return found


def drawn_pairs(policy: Backbone, data: Path) -> list[dict[str, Any]]:
    """Return the pairs of two samples each, drawn with seeds that both sides take as they are."""
    texts = load_dataset("authored", path=str(data), prompt_template="About {prompt_source}.")
    settings = GenerationSettings(max_new_tokens=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairing, "child_seed", lambda *parts: child_seed(*parts) % (1 << 31))
        pairer = pairing.Pairer(texts, policy, PairingSpec(), settings, 0, {})
        return pairer.records(texts.texts[:6])


def test_a_served_study_is_the_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any text")
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float64)
    folder = save_hub_folder(tmp_path / "tiny-llama", model, tokenizer)
    rows = [
        {"user_id": f"u{user}", "prompt_source": f"{word} of {user}", "reference": f"the {word} and {user}"}
        for user in range(6)
        for word in ("river", "stone", "light", "garden", "paper", "winter")
    ]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    backbone = load_backbone(str(folder), dtype="float64")
    study = {
        "name": "served",
        "data": {"name": "authored", "options": {"path": str(data), "prompt_template": "About {prompt_source}."}},
        "pairing": {"rule": "generated"},
        "split": {"train_users": 3, "valid_per_train_user": 1, "adapt_users": 3, "support": 3, "query": 2},
        "dtype": "float64",
        "generation": {"max_new_tokens": 5},
        "reward_models": [{"method": "global_bt", "backbone": str(folder)}],
        "deployments": [{"policy": "zero_shot"}, {"policy": "icl", "num_demonstrations": 2}],
        "metrics": ["rouge1"],
        "controls": {"shuffled_labels": 0, "synthetic_text": False},
        "resamples": 50,
    }

    def run(policy: str, name: str, **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**study, "policy": policy, **changes}), encoding="utf-8")
        ok("run", path, "--output", tmp_path / name, "--threads", 1)
        return tmp_path / name

    with model_server(backbone) as server:
        place = f"served:{server.base_url}#model={MODEL},tokenizer={folder}"
        there = run(place, "there")
        pairs = drawn_pairs(load_backbone(place), data)
        path = tmp_path / "there.yaml"
        args = ("run", path, "--output", tmp_path / "no", "--set", "deployments=[{decoder: args_greedy}]")
        said = refused(2, *args)
    here = run(str(folder), "here")
    assert "steers each step by the policy's weights" in said
    assert records(there, "pairing") == records(here, "pairing")
    local = records(here, "deployment")
    assert set(local) == set(records(there, "deployment")) == {"zero_shot", "icl"}
    for name, found in records(there, "deployment").items():
        for row, expected in zip(found, local[name], strict=True):
            assert {k: row[k] for k in ("example_id", "completion", "ended", "new_tokens", "demonstrations")} == {
                k: expected[k] for k in ("example_id", "completion", "ended", "new_tokens", "demonstrations")
            }
            for side in ("chosen_base", "rejected_base", "chosen_rgd_topk", "rejected_rgd_topk"):
                assert row[side] == pytest.approx(expected[side], abs=1e-9)
                assert row[side] < 0
    assert pairs == drawn_pairs(backbone, data)
    assert any(row["chosen"] != row["rejected"] for row in pairs if row["dropped"] is None)
    for artefact in [*there.rglob("*.json"), *there.rglob("*.yaml"), *there.rglob("*.csv"), *there.rglob("*.html")]:
        text = artefact.read_text(encoding="utf-8")
        assert "127.0.0.1" not in text, artefact
        assert str(folder) not in text, artefact
    assert "policy: served:tiny-served" in (there / "study.yaml").read_text(encoding="utf-8")
