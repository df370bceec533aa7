"""Every method of the catalogues in one study, from the fit to the page: a new card is taken up by itself."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ok, refused
from test_cli_study import study_of, write_study

from rewardgap.policies.catalog import JUDGES, POLICIES
from rewardgap.rewards.catalog import REWARD_MODELS
from rewardgap.studies.methods import mode_of
from standins import save_hub_folder, tiny_model, tiny_tokenizer

FEW: dict[str, dict[str, Any]] = {
    "p_dpo": {"num_user_tokens": 2, "num_clusters": 2, "adapt_steps": 3},
    "genarm": {"num_user_tokens": 2, "num_clusters": 2, "adapt_steps": 3},
    "farma": {"num_user_tokens": 2, "num_clusters": 2, "adapt_steps": 3, "backup_top_k": 3},
    "pad": {"num_examples": 1, "text_tokens": 160},
}
LABELS = {"labels": ["A", "B"]}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float32)
    model.config.max_position_embeddings = 2048  # a persona is asked for in a long prompt
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return save_hub_folder(tmp_path_factory.mktemp("models") / "tiny-llama", model, tokenizer, eos_token_id=end)


def everything(policy: str) -> dict[str, Any]:
    models: list[dict[str, Any]] = [{"method": card.name, "options": FEW.get(card.name, {})} for card in REWARD_MODELS]
    models += [
        {"method": name, "fit_mode": "lora", "batch_size": 8, "options": options}
        for name, options in (("lore", {"rank": 2}), ("mpu", {"user_steps": 2}), ("pal_b", {}), ("vpl", {}))
        if name in REWARD_MODELS.names()
    ]
    models += [{"method": card.name, "options": LABELS} for card in JUDGES]
    deployments: list[dict[str, Any]] = [{"policy": card.name} for card in POLICIES if card.config is None]
    deployments += [
        {"policy": card.name, "options": LABELS if "labels" in card.config.__dataclass_fields__ else {}}
        for card in POLICIES
        if card.config is not None
    ]
    deployments.append({"decoder": "args_greedy", "guidance_weight": 1, "top_k": 3})
    return study_of(
        policy,
        name="everything",
        reward_models=models,
        deployments=deployments,
        split={"train_users": 4, "valid_per_train_user": 1, "adapt_users": 2, "support": 3, "query": 1},
        controls={"shuffled_labels": 1, "swap": True, "synthetic_text": False},
        metrics=["rouge1"],
        resamples=50,
    )


def test_every_method_goes_through_a_whole_study(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    study = everything(str(tiny_folder))
    path = write_study(tmp_path, study)
    said = ok("run", path, "--output", tmp_path / "out", "--threads", 1).output
    done = len(list((tmp_path / "out" / "cells").glob("*/DONE")))
    assert f"{done} of {done} cells computed" in said
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open(encoding="utf-8")))
    ranked = {(row["method"], row["fit_mode"]) for row in rows if row["stage"] == "rm_accuracy" and row["value"]}
    expected = {(m["method"], m.get("fit_mode") or mode_of(m["method"]) or "") for m in study["reward_models"]}
    assert ranked == expected
    steering = {(row["method"], row["fit_mode"]) for row in rows if row["decoder"] == "args_greedy"}
    assert steering == {pair for pair in expected if pair[0] not in JUDGES.names()}
    scored = {row["method"] for row in rows if row["stage"] == "policy_accuracy" and row["value"]}
    assert scored >= {card.name for card in REWARD_MODELS} | {card.name for card in POLICIES}
    full = {row["method"] for row in rows if row["metric"] == "rgd_full" and row["value"]}
    heads = {card.name for card in REWARD_MODELS if card.family == "head"}
    assert full == scored - heads, "rewards read one prefix at a time are not had for a whole vocabulary"
    judges = {row["judge"] for row in rows if row["stage"] == "win_rate" and row["value"]}
    assert judges >= {*REWARD_MODELS.names(), *JUDGES.names()}
    again = ok("run", path, "--output", tmp_path / "out", "--threads", 1).output
    assert f"0 of {done} cells computed" in again


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"method": "icl_judge", "fit_mode": "lora"}, "icl_judge is not fitted"),
        ({"method": "icl_judge", "options": {"labls": ["a", "b"]}}, "has no option 'labls'. Did you mean 'labels'?"),
        ({"method": "lore", "epochs": 2}, "lore on frozen features takes no epochs"),
        ({"method": "p_dpo", "fit_mode": "frozen"}, "p_dpo"),
        ({"method": "icl_juge"}, "unknown reward model 'icl_juge'. Did you mean 'icl_judge'?"),
    ],
)
def test_what_a_method_cannot_take_is_said_before_anything_runs(
    model: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    study = study_of("synthetic-words", reward_models=[{"method": "global_bt"}, model])
    study["deployments"] = [{"policy": "zero_shot"}]
    assert sentence in refused(2, "run", write_study(tmp_path, study), "--output", tmp_path / "out", "--threads", 1)


def test_a_judge_cannot_steer(tmp_path: Path) -> None:
    study = study_of("synthetic-words", reward_models=[{"method": "global_bt"}, {"method": "icl_judge"}])
    study["deployments"] = [{"decoder": "args_greedy", "reward_models": ["icl_judge"]}]
    sentence = refused(2, "run", write_study(tmp_path, study), "--output", tmp_path / "out", "--threads", 1)
    assert "icl_judge, which ranks whole texts and rewards no token" in sentence
