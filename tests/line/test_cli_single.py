"""Single stages on one's own data: fit, adapt, score, generate; and what each refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command import lines, ok, refused, write_rows

import rewardgap as rg
from rewardgap.rewards.catalog import REWARD_MODELS
from standins import save_hub_folder, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["river", "garden", "stone", "light", "music", "paper", "winter", "forest"]
ONE = ("--threads", 1)


def pair(user: int, row: int) -> dict[str, Any]:
    """Even users like light, odd users like paper."""
    sides = [f"light {WORDS[row % 8]}", f"paper {WORDS[row % 8]}"]
    return {
        "user_id": f"u{user}",
        "prompt": f"{WORDS[row % 8]} {WORDS[(3 * row + user) % 8]}",
        "chosen": sides[user % 2],
        "rejected": sides[1 - user % 2],
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training users 0-5; users 10 and 11 reveal four pairs; users 0, 10, 11 and 12 are judged."""
    folder = tmp_path_factory.mktemp("own")
    write_rows(folder / "prefs.jsonl", [pair(user, row) for user in range(6) for row in range(6)])
    write_rows(folder / "support.jsonl", [pair(user, row) for user in (10, 11) for row in range(4)])
    write_rows(folder / "pairs.jsonl", [pair(user, row) for user in (0, 10, 11, 12) for row in (5, 6, 7)])
    asked = [{"user_id": f"u{user}", "prompt": text} for user in (0, 10, 11, 12) for text in ("garden river", "stone")]
    write_rows(folder / "prompts.jsonl", asked)
    return folder


@pytest.fixture(scope="module")
def model(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a fitted LoRe and the states of users 10 and 11."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        arguments = ("--data", files / "prefs.jsonl", "--backbone", "synthetic-words", "--set", "rank=2", *ONE)
        said = ok("fit", *arguments, "--output", folder / "lore").stdout
        assert "36 pairs of 6 users" in said
        assert "accuracy" in said
        states = ("--data", files / "support.jsonl", "--output", folder / "states.safetensors", *ONE)
        assert "2 states of lore from 8 pairs" in ok("adapt", folder / "lore", *states).stdout
    return folder


def scored(model: Path, files: Path, *more: object) -> dict[str, Any]:
    arguments = ("--data", files / "pairs.jsonl", "--states", model / "states.safetensors", "--json", *ONE, *more)
    value: dict[str, Any] = json.loads(ok("score", model / "lore", *arguments).stdout)
    return value


def test_score_writes_lines_and_says_the_accuracy(model: Path, files: Path) -> None:
    arguments = ("--data", files / "pairs.jsonl", "--states", model / "states.safetensors", *ONE)
    result = ok("score", model / "lore", *arguments)
    records = lines(result.stdout)
    assert [record["user_id"] for record in records] == [f"u{user}" for user in (0, 10, 11, 12) for _ in range(3)]
    assert {(record["user_id"], record["state"]) for record in records} == {
        ("u0", "training"), ("u10", "adapted"), ("u11", "adapted"), ("u12", "cold_start"),
    }  # fmt: skip
    for record in records:
        assert record["margin"] == pytest.approx(record["chosen_reward"] - record["rejected_reward"])
    assert "12 pairs of 4 users" in result.stderr
    assert "1 of 4 users have no state: cold start" in result.stderr


def test_score_equals_the_objects(model: Path, files: Path) -> None:
    found = scored(model, files)
    rm = rg.load_reward_model(model / "lore")
    support, data = (rg.load_dataset("jsonl", path=files / name) for name in ("support.jsonl", "pairs.jsonl"))
    state = rm.adapt(support.of_user("u10"))
    wanted = rm.margins(data.of_user("u10"), [state] * 3)
    got = [record["margin"] for record in found["pairs"] if record["user_id"] == "u10"]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    hits = [
        np.mean([r["margin"] > 0 for r in found["pairs"] if r["user_id"] == u]) for u in ("u0", "u10", "u11", "u12")
    ]
    assert found["accuracy"] == pytest.approx(np.mean(hits))
    assert found["ci_low"] <= found["accuracy"] <= found["ci_high"]
    assert found["users_by_state"] == {"training": 1, "adapted": 2, "cold_start": 1}


def test_two_opposite_users_get_opposite_margins(model: Path, files: Path) -> None:
    records = scored(model, files)["pairs"]
    margins = {user: [r["margin"] for r in records if r["user_id"] == user] for user in ("u10", "u11")}
    assert min(margins["u10"]) > 0
    assert min(margins["u11"]) > 0


def test_limit_takes_the_first_rows(model: Path, files: Path) -> None:
    assert scored(model, files, "--limit", 2)["pairs"] == scored(model, files)["pairs"][:2]


WITH_ADAPTER = [(card.name, "lora") for card in REWARD_MODELS if card.family == "head"]


@pytest.mark.parametrize(("method", "mode"), [*((card.name, None) for card in REWARD_MODELS), *WITH_ADAPTER])
def test_every_method_goes_through_the_single_verbs(
    method: str, mode: str | None, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fit, adapt, score and generate, each a process of its own for a user: nothing is carried but the files."""
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    # The tiny network reads 256 tokens: a user's text must leave room for the pair.
    few = {("mpu", "lora"): ("--set", "user_steps=2"), ("pad", None): ("--set", "text_tokens=120")}.get(
        (method, mode), ()
    )
    fitted = ("--data", files / "prefs.jsonl", "--method", method, "--backbone", "synthetic-words", *few, *ONE)
    ok("fit", *fitted, *(("--fit-mode", mode) if mode else ()), "--output", tmp_path / "m")
    states = tmp_path / "states.safetensors"
    ok("adapt", tmp_path / "m", "--data", files / "support.jsonl", "--output", states, *ONE)
    judged = ("--data", files / "pairs.jsonl", "--states", states, "--json", *ONE)
    found = json.loads(ok("score", tmp_path / "m", *judged).stdout)
    assert len(found["pairs"]) == 12
    assert all(np.isfinite(record["margin"]) for record in found["pairs"])
    again = json.loads(ok("score", tmp_path / "m", *judged).stdout)
    assert again["pairs"] == found["pairs"]
    prompts = ("--prompts", files / "prompts.jsonl", "--model", tmp_path / "m", "--states", states)
    written = lines(ok("generate", "synthetic-words", *prompts, "--max-new-tokens", 4, *ONE).stdout)
    assert len(written) == 8


def test_a_model_without_users_says_nothing_of_cold_starts(files: Path, tmp_path: Path) -> None:
    fitted = ("--data", files / "prefs.jsonl", "--method", "global_bt", "--backbone", "synthetic-words", *ONE)
    facts = json.loads(ok("fit", *fitted, "--output", tmp_path / "bt", "--json").stdout)
    assert (facts["model"], facts["users"], facts["pairs"]) == ("global_bt", 6, 36)
    assert "cold start" not in ok("score", tmp_path / "bt", "--data", files / "pairs.jsonl", *ONE).stderr


def generate(files: Path, *more: object, stdin: str | None = None) -> list[Any]:
    prompts = "-" if stdin is not None else files / "prompts.jsonl"
    arguments = ("--prompts", prompts, "--max-new-tokens", 4, *ONE, *more)
    return lines(ok("generate", "synthetic-words", *arguments, stdin=stdin).stdout)


def test_generate_does_not_depend_on_the_batch(model: Path, files: Path) -> None:
    steered = (
        "--model",
        model / "lore",
        "--states",
        model / "states.safetensors",
        "--guidance-weight",
        3,
        "--top-k",
        6,
    )
    whole = generate(files, *steered)
    assert [row["user_id"] for row in whole] == [f"u{user}" for user in (0, 10, 11, 12) for _ in range(2)]
    assert generate(files, *steered, "--batch-size", 3) == whole
    assert generate(files, *steered, "--limit", 3) == whole[:3]
    drawn = (*steered, "--decoder", "args_stochastic", "--temperature", 2)
    assert generate(files, *drawn, "--batch-size", 1) == generate(files, *drawn)


def test_a_weight_of_zero_is_zero_shot(model: Path, files: Path) -> None:
    assert generate(files, "--model", model / "lore", "--guidance-weight", 0) == generate(files)


def test_generate_reads_standard_input_and_prompts_of_nobody(files: Path) -> None:
    rows = generate(files, stdin='{"prompt": "stone"}\n{"prompt": [{"role": "user", "content": "stone"}]}\n')
    assert [row["user_id"] for row in rows] == [None, None]
    assert rows[0]["completion"] == rows[1]["completion"]


def test_generate_with_demonstrations(files: Path) -> None:
    shown = ("--demonstrations", files / "support.jsonl", "--num-demonstrations", 2, "--retriever", "bm25")
    rows = generate(files, *shown)
    assert [row["demonstrations"] for row in rows] == [0, 0, 2, 2, 2, 2, 0, 0]
    arguments = ("--prompts", files / "prompts.jsonl", *ONE, *shown, "--json")
    document = json.loads(ok("generate", "synthetic-words", *arguments).stdout)
    assert (document["users"], document["users_without"], document["decoder"]) == (4, 2, "greedy")


def test_a_local_backbone_leaves_no_path_and_is_asked_for(files: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    network = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    backbone = save_hub_folder(tmp_path / "tiny", network, tokenizer, eos_token_id=end)
    ok("fit", "--data", files / "prefs.jsonl", "--backbone", backbone, "-o", tmp_path / "m", *ONE)
    assert json.loads((tmp_path / "m" / "model.json").read_text(encoding="utf-8"))["backbone"] == "tiny"
    adapt = ("adapt", tmp_path / "m", "--data", files / "support.jsonl", "-o", tmp_path / "s.safetensors", *ONE)
    assert "--backbone" in refused(4, *adapt)
    ok(*adapt, "--backbone", backbone)
    steered = ("--model", tmp_path / "m", "--states", tmp_path / "s.safetensors", "--prompts", files / "prompts.jsonl")
    assert len(lines(ok("generate", backbone, *steered, "--max-new-tokens", 3, *ONE).stdout)) == 8
    other = ok("generate", "synthetic-words", *steered, "--backbone", backbone, "--max-new-tokens", 3, *ONE)
    assert "have different tokenizers" in other.stderr
    assert len(lines(other.stdout)) == 8


def test_fit_with_an_adapter(files: Path, tmp_path: Path) -> None:
    arguments = ("--data", files / "prefs.jsonl", "--backbone", "synthetic-words", "--fit-mode", "lora", "--limit", 12)
    said = ok("fit", *arguments, "--output", tmp_path / "m", *ONE).stdout
    assert "lore+lora" in said
    assert (tmp_path / "m" / "adapter.safetensors").exists()
    ok("score", tmp_path / "m", "--data", files / "pairs.jsonl", *ONE)


def test_what_cannot_be_fitted(files: Path, tmp_path: Path) -> None:
    given = ("--data", files / "prefs.jsonl", "--backbone", "synthetic-words", "--output", tmp_path / "m")
    assert "'lore'" in refused(2, "fit", *given, "--method", "lorre")
    assert "'rank'" in refused(2, "fit", *given, "--set", "rnk=2")
    assert "rank" in refused(2, "fit", *given, "--set", "rank=0")
    assert "learning_rate" in refused(2, "fit", *given, "--fit-mode", "lora", "--learning-rate", "nan", *ONE)
    texts = write_rows(tmp_path / "texts.jsonl", [{"user_id": "x", "prompt": "long text", "completion": "text"}])
    assert "authored texts" in refused(2, "fit", "--data", texts, "--data-set", "task=title", "-o", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_models_and_states_that_are_not_there_or_do_not_belong(model: Path, files: Path, tmp_path: Path) -> None:
    pairs = ("--data", files / "pairs.jsonl", *ONE)
    assert "no reward model" in refused(4, "score", tmp_path, *pairs)
    assert "is a folder" in refused(2, "adapt", model / "lore", *pairs, "--output", tmp_path)
    assert "does not exist" in refused(4, "score", model / "lore", *pairs, "--states", tmp_path / "no.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\x00\x00")
    assert "damaged" in refused(3, "score", model / "lore", *pairs, "--states", tmp_path / "bad.safetensors")
    fitted = ("--data", files / "prefs.jsonl", "--backbone", "synthetic-words", "--set", "rank=3", *ONE)
    ok("fit", *fitted, "--output", tmp_path / "other")
    states = model / "states.safetensors"
    assert "another reward model" in refused(2, "score", tmp_path / "other", *pairs, "--states", states)
    (tmp_path / "other" / "model.json").write_text("{", encoding="utf-8")
    assert "damaged" in refused(4, "score", tmp_path / "other", *pairs)


def test_generate_refuses_what_does_not_go_together(model: Path, files: Path) -> None:
    given = ("generate", "synthetic-words", "--prompts", files / "prompts.jsonl", *ONE)
    demonstrations = ("--demonstrations", files / "support.jsonl")
    assert "give one of them" in refused(2, *given, "--model", model / "lore", *demonstrations)
    assert "--model" in refused(2, *given, "--states", model / "states.safetensors")
    assert "needs a reward model" in refused(2, *given, "--decoder", "args_greedy")
    assert "takes no reward model" in refused(2, *given, "--model", model / "lore", "--decoder", "greedy")
    assert "no option 'guidance_weight'" in refused(2, *given, "--guidance-weight", 2)
    assert "--demonstrations" in refused(2, *given, "--retriever", "bm25")
    assert "'bm25'" in refused(2, *given, *demonstrations, "--retriever", "bm52")
    assert "unknown decoder" in refused(2, *given, "--decoder", "gredy")


def test_prompts_are_checked_like_other_data(tmp_path: Path) -> None:
    for text, expected in (
        ('{"prompt": ""}', "'prompt' is empty"),
        ('{"user_id": "u"}', "column 'prompt' is missing"),
        ('{"user_id": 1, "prompt": "a"}\n{"user_id": "1", "prompt": "a"}', "as strings"),
        ('{"prompt": "\\ud800"}', "lone surrogate"),
        ("", "is empty"),
    ):
        (tmp_path / "p.jsonl").write_text(text + "\n", encoding="utf-8")
        assert expected in refused(3, "generate", "synthetic-words", "--prompts", tmp_path / "p.jsonl", *ONE)
