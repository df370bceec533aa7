"""A policy and a reward model of different tokenizers on the command line: steered by text, in one go and in a study."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import pytest
import torch
from command import lines, ok, write_rows
from test_cli_study import study_of, write_study

from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.trie import build_trie
from rewardgap.rewards.build import load_reward_model
from rewardgap.rewards.text_guide import TextGuide
from standins import save_hub_folder, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

ONE = ("--threads", 1)
WORDS = ["river", "garden", "stone", "light", "winter"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two models in the hub's layout: a Llama, and a Qwen3 whose tokenizer merges across blanks."""
    made = []
    for architecture, across in (("llama", False), ("qwen3", True)):
        tokenizer = tiny_tokenizer("qwen" if across else "chatml", across=across)
        model = tiny_model(architecture, vocabulary=len(tokenizer) + 2, seed=3, dtype=torch.float32)
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        place = tmp_path_factory.mktemp("models") / f"tiny-{architecture}"
        made.append(save_hub_folder(place, model, tokenizer, eos_token_id=end))
    return made[0], made[1]


def test_a_reward_model_of_another_tokenizer_steers(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written does not depend on the batch, and guidance changes it; the warning comes once a command."""
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    policy, reward = folders
    pairs = [
        {
            "user_id": f"u{user}",
            "prompt": f"{WORDS[row]}?",
            "chosen": WORDS[(row + user) % 5],
            "rejected": "é the stone",
        }
        for user in range(3)
        for row in range(5)
    ]
    write_rows(tmp_path / "pairs.jsonl", [pair for pair in pairs if pair["chosen"] != pair["rejected"]])
    asked = [{"user_id": f"u{user}", "prompt": word} for user in range(3) for word in WORDS[:2]]
    write_rows(tmp_path / "prompts.jsonl", asked)
    ok("fit", "--data", tmp_path / "pairs.jsonl", "--backbone", reward, "-o", tmp_path / "m", "--set", "rank=2", *ONE)
    given = ("generate", policy, "--prompts", tmp_path / "prompts.jsonl", "--max-new-tokens", 6, *ONE)
    steered = (*given, "--model", tmp_path / "m", "--backbone", reward, "--guidance-weight", 4, "--top-k", 5)
    whole = ok(*steered, "--batch-size", 6)
    assert whole.stderr.count("the policy tiny-llama (336 tokens)") == 1
    assert whole.stderr.count("have different tokenizers") == 1
    assert lines(ok(*steered, "--batch-size", 2).stdout) == lines(whole.stdout)
    plain = lines(ok(*given).stdout)
    assert [row["completion"] for row in lines(whole.stdout)] != [row["completion"] for row in plain]
    made, writer = load_reward_model(tmp_path / "m", load_backbone(str(reward))), load_backbone(str(policy))
    ids = [writer.encoder.encode_prompt("river")]
    state = made.state_of("u1")
    guide = made.guide(writer, ["river"], ids, [state], 20)
    assert isinstance(guide, TextGuide)
    guide.start(torch.zeros(1, 24))
    trie = build_trie([writer.encoder.encode_completion("the garden")])
    value = float(guide.tree([trie], None)[0, trie.paths[0][-1]])
    assert value == pytest.approx(made.rewards(["river"], ["the garden"], state)[0], abs=1e-3)


def test_a_study_takes_reward_models_on_another_backbone(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    policy, reward = folders
    study = study_of(
        str(policy),
        reward_models=[{"method": "global_bt"}, {"method": "lore", "backbone": str(reward), "options": {"rank": 2}}],
        deployments=[{"policy": "zero_shot"}, {"decoder": "args_greedy", "guidance_weight": 1, "top_k": 3}],
        split={"train_users": 4, "valid_per_train_user": 1, "adapt_users": 2, "support": 3, "query": 1},
        controls={"shuffled_labels": 1, "swap": False, "synthetic_text": False},
        metrics=["rouge1"],
        resamples=50,
    )
    said = ok("run", write_study(tmp_path, study), "--output", tmp_path / "out", *ONE)
    assert "have different tokenizers" in said.stderr
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open(encoding="utf-8")))
    steered = [row for row in rows if row["method"] == "lore" and row["decoder"] == "args_greedy"]
    assert {row["reward_backbone"] for row in steered} == {"tiny-qwen3"}
    for stage in ("rm_accuracy", "policy_accuracy", "win_rate"):
        found = [row for row in rows if row["method"] == "lore" and row["stage"] == stage]
        assert found and any(row["value"] for row in found), stage
    assert all(row["value"] for row in steered if row["stage"] == "policy_accuracy")
