"""From what users wrote to a dataset folder, to a study on it, and to the hub's door, through the command line."""

from __future__ import annotations

import csv
import getpass
import json
import random
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import call, ok, refused, write_rows
from test_cli_study import study_of, write_study

from rewardgap.cli.check import _command
from rewardgap.core.seeds import child_seed
from rewardgap.data.catalog import load_dataset
from rewardgap.data.partition import Split
from rewardgap.data.splits import split_pairs
from rewardgap.studies import pairing
from rewardgap.studies.prepare import _publishable
from standins import save_hub_folder, tiny_model, tiny_tokenizer

WORDS = ["river", "stone", "light", "garden", "paper", "winter", "music", "candle"]
USERS, EACH = 5, 6
RULES = ("closest", "generated", "other_user")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return save_hub_folder(tmp_path_factory.mktemp("models") / "tiny-llama", model, tokenizer, eos_token_id=end)


def texts() -> list[dict[str, Any]]:
    draw = random.Random(5)
    return [
        {
            "user_id": f"w{user}",
            "example_id": f"w{user}-{row}",
            "prompt_source": " ".join(draw.choices(WORDS, k=5)) if row else "the same for all",
            "completion": " ".join([f"w{user}", *draw.choices(WORDS, k=3)]),
            "timestamp": f"2024-01-{row + 1:02d}",
            "meta": {"row": row},
        }
        for user in range(USERS)
        for row in range(EACH)
    ]


@pytest.fixture(scope="module")
def authored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "texts.jsonl", texts())


@pytest.fixture
def command(authored: Path, tiny_folder: Path) -> Any:
    def build(output: Path, *more: object, source: object = authored, rule: str = "closest") -> list[object]:
        fixed = ["data", "prepare", "notes", "--from", source, "--rule", rule, "--policy", tiny_folder, "-o", output]
        settings = ["task=title", "generation.max_new_tokens=6", "split.support=2"]
        return [*fixed, *(part for setting in settings for part in ("--set", setting)), *more]

    return build


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def prepared(authored: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("prepared")
    for rule in RULES:
        ok(
            "data", "prepare", "notes", "--from", authored, "--set", "task=title", "--rule", rule, "--policy",
            tiny_folder, "--set", "generation.max_new_tokens=6", "--set", "split.support=2", "-o", folder / rule,
            "--licence", "cc-by-4.0",
        )  # fmt: skip
    return {rule: folder / rule for rule in RULES}


@pytest.mark.parametrize("rule", RULES)
def test_a_prepared_folder_holds_pairs_of_its_rule(prepared: dict[str, Path], rule: str) -> None:
    data = load_dataset("folder", path=prepared[rule])
    wrote = {text["example_id"]: text for text in texts()}
    assert data.name == "notes"
    assert data.first_line
    assert len(data) + sum(data.dropped.values()) == USERS * EACH
    for pair in data.pairs:
        text = wrote[pair.example_id]
        assert (pair.user_id, pair.reference, pair.meta) == (text["user_id"], text["completion"], text["meta"])
        assert str(pair.prompt).endswith(text["prompt_source"])
        assert (pair.chosen == pair.reference) == (rule != "closest")
        assert pair.rejected != pair.reference
    card = (prepared[rule] / "README.md").read_text(encoding="utf-8")
    said = {"closest": "Both sides were written by a language model", "generated": "without knowing the user"}
    assert said.get(rule, "in another user's manner") in card.replace("\n", " ")
    facts = json.loads((prepared[rule] / "rewardgap.json").read_text(encoding="utf-8"))
    made = facts["provenance"]
    assert made["pairing"] == {"rule": rule, "temperature": 1.0, "tries": 4}
    assert (made["policy"]["name"], made["seed"], made["source"]["num_rows"]) == ("tiny-llama", 0, USERS * EACH)
    assert facts["prompt_template"] == data.prompt_template
    assert facts["prompt_template"].endswith("{prompt_source}")
    assert data.pairing == rule
    assert (prepared[rule] / "split.json").exists() == (rule == "other_user")


def test_the_verbs_about_data_take_a_dataset_folder(prepared: dict[str, Path]) -> None:
    found = json.loads(ok("data", "validate", prepared["closest"], "--json").stdout)
    assert found["fingerprint"] == load_dataset("folder", path=prepared["closest"]).fingerprint()
    assert found["share_with_reference"] == 1


def test_other_user_shows_no_text_that_a_query_asks_for(prepared: dict[str, Path], authored: Path) -> None:
    data = load_dataset("folder", path=prepared["other_user"])
    split = Split.load(prepared["other_user"] / "split.json")
    split.check(load_dataset("authored", path=authored, task="title"))
    view = split.resolve(data)
    asked = {pair.reference for user in split.adapt_users for pair in view.query(user)}
    rejected = {pair.rejected for pair in data.pairs}
    shown = {pair.reference for pair in view.train} | {p.reference for u in split.adapt_users for p in view.support(u)}
    assert asked
    assert not asked & rejected
    drawn = split_pairs(data, seed=child_seed(0, "split"), support=2)
    again = {pair.reference for user in drawn.adapt_users for pair in drawn.query(user)}
    assert not again & rejected, "a study with the same seed and split options asks for no text that was shown"
    assert rejected & shown, "where users share a prompt, another user's own text is the alternative"


def test_the_same_command_gives_the_same_bytes_and_no_trace_of_the_machine(
    prepared: dict[str, Path], command: Any, tmp_path: Path, authored: Path
) -> None:
    ok(*command(tmp_path / "again", "--licence", "cc-by-4.0"))
    assert content(tmp_path / "again") == content(prepared["closest"])
    everything = b"".join(content(tmp_path / "again").values()).decode("latin1")
    for trace in (str(authored.parent), str(tmp_path), socket.gethostname(), f"/{getpass.getuser()}/"):
        assert trace not in everything
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_no_secret_of_a_loader_is_published() -> None:
    """Whoever has the salt of a git dataset can undo the ids of its people."""
    given = {"path": "/home/me/repo", "salt": "hush", "paths": ["/home/me/repo/src", "docs"], "min_words": 3}
    shown = _publishable(given)
    assert shown == {"path": "repo", "salt": "not kept", "paths": ["src", "docs"], "min_words": 3}
    assert "hush" not in _command("git", ["path=/home/me/repo", "salt=hush"], None, 0)


def test_a_stopped_preparation_goes_on_where_it_was(
    prepared: dict[str, Path], command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    records = pairing.Pairer.records

    def stop_at_third(self: Any, batch: Any) -> Any:
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return records(self, batch)

    monkeypatch.setattr(pairing.Pairer, "records", stop_at_third)
    arguments = command(tmp_path / "x", "--licence", "cc-by-4.0")
    assert call(*arguments).exit_code == 130
    assert not (tmp_path / "x").exists()
    (partial,) = tmp_path.glob(".x.partial/cells/*/records.partial.jsonl")
    assert len(partial.read_text().splitlines()) == 16
    with partial.open("a") as stream:
        stream.write('{"item": 16, "torn')
    ok(*arguments)
    assert calls == [8, 8, 8, 8, 6], "the two finished batches are not repeated"
    assert content(tmp_path / "x") == content(prepared["closest"])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_finished_folder_is_found_and_another_one_is_not_overwritten(
    prepared: dict[str, Path], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(prepared["closest"])
    monkeypatch.setattr(pairing.Pairer, "records", None)
    found = json.loads(ok(*command(prepared["closest"], "--licence", "cc-by-4.0", "--json")).stdout)
    assert found["num_rows"] == len(load_dataset("folder", path=prepared["closest"]))
    for change in (("--seed", 1, "--licence", "cc-by-4.0"), ("--licence", "mit"), ("--limit-users", 2)):
        assert "was prepared with other data or settings" in refused(2, *command(prepared["closest"], *change))
    assert content(prepared["closest"]) == before


def test_limits_draw_users_and_rows_whatever_their_order(command: Any, tmp_path: Path, authored: Path) -> None:
    turned = write_rows(tmp_path / "texts.jsonl", texts()[::-1])
    limits = ("--limit-users", 2, "--rows-per-user", 3, "--seed", 4)
    ok(*command(tmp_path / "a", *limits))
    ok(*command(tmp_path / "b", *limits, source=turned))
    first, second = (load_dataset("folder", path=tmp_path / name) for name in "ab")
    assert first.fingerprint() == second.fingerprint()
    assert len(first.users()) == 2
    assert all(len(first.of_user(user)) <= 3 for user in first.users())


def test_bad_requests_are_one_sentence(command: Any, tmp_path: Path, authored: Path) -> None:
    out = tmp_path / "x"
    assert "unknown key 'generation.tokens'" in refused(2, *command(out, "--set", "generation.tokens=3"))
    assert "no part 'report'" in refused(2, *command(out, "--set", "report.x=3"))
    assert "--rule" in refused(2, *command(out, "--set", "pairing.rule=closest"))
    assert "no option 'topic'" in refused(2, *command(out, "--set", "topic=3"))
    assert "does not exist" in refused(4, *command(out, source=tmp_path / "none.jsonl"))
    assert "holds no authored texts" in refused(
        2, "data", "prepare", "x", "--from", "synthetic_text", "--policy", "synthetic-words", "-o", out
    )
    assert "split.support" in refused(
        2, *command(out, "--set", "split.support=0", "--set", "split.train_users=1", rule="other_user")
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "is no dataset folder" in refused(2, *command(tmp_path / "full"))
    assert not out.exists()


def test_a_study_runs_on_a_prepared_folder(prepared: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:
    study = study_of(
        str(tiny_folder),
        data={"name": "folder", "options": {"path": str(prepared["closest"])}},
        split={"adapt_users": 2, "support": 2, "query": 2},
        deployments=[{"policy": "zero_shot"}, {"decoder": "args_greedy", "guidance_weight": 1, "top_k": 3}],
        controls={"shuffled_labels": 0, "swap": False, "synthetic_text": False},
        resamples=20,
    )
    ok("run", write_study(tmp_path, study), "--output", tmp_path / "out", "--threads", 1)
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open(encoding="utf-8")))
    assert {row["dataset"] for row in rows} == {"notes"}
    assert {row["pairing"] for row in rows} == {"closest"}
    measured = {row["stage"] for row in rows if row["value"]}
    assert {"rm_accuracy", "policy_accuracy", "behaviour", "win_rate"} <= measured


def test_a_study_names_the_split_that_pairs_were_made_with(
    prepared: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    """With the file that says which texts were shown, no shown text is a query, whatever rule made the pairs."""
    made = Split.load(prepared["other_user"] / "split.json")
    for rule in ("other_user", "closest"):
        study = study_of(
            str(tiny_folder),
            data={"name": "folder", "options": {"path": str(prepared[rule])}},
            split={"file": str(prepared["other_user"] / "split.json")},
            deployments=[{"policy": "zero_shot"}],
            controls={"shuffled_labels": 0, "swap": False, "synthetic_text": False},
            resamples=20,
        )
        ok("run", write_study(tmp_path, study), "--output", tmp_path / rule, "--threads", 1)
        (used,) = (Split.load(path) for path in (tmp_path / rule / "splits").iterdir())
        data = load_dataset("folder", path=prepared[rule])
        used.check(data)
        there = {pair.example_id for pair in data.pairs}
        assert used.query_ids == {user: tuple(i for i in ids if i in there) for user, ids in made.query_ids.items()}
        rows = list(csv.DictReader((tmp_path / rule / "results.csv").open(encoding="utf-8")))
        assert {row["support_size"] for row in rows if row["users"] == "unseen"} - {""} == {"2"}
        assert yaml.safe_load((tmp_path / rule / "study.yaml").read_text())["split"] == {"file": "split.json"}
    study["split"] = {"file": str(tmp_path / "none.json")}
    said = refused(3, "run", write_study(tmp_path, study), "--output", tmp_path / "x", "--threads", 1)
    assert "none.json' cannot be read" in said


def test_a_study_takes_a_published_protocol(tiny_folder: Path, tmp_path: Path, authored: Path) -> None:
    sides = ["train"] * 5 + ["valid1", "valid2"]
    rows = [
        {
            "user_id": f"w{worker}",
            "example_id": f"{worker}.{number}",
            "prompt": f"{WORDS[number]} {worker}",
            "chosen": f"{WORDS[worker]} paper",
            "rejected": f"{WORDS[worker]} stone",
            "meta": {"split": side},
        }
        for worker in range(6)
        for number, side in enumerate(sides[: 7 - (worker == 5)])
    ]
    study = study_of(
        str(tiny_folder),
        data={"name": "jsonl", "options": {"path": str(write_rows(tmp_path / "rows.jsonl", rows))}},
        split={"protocol": "tldr_lore"},
        deployments=[{"policy": "zero_shot"}],
        metrics=[],
        controls={"shuffled_labels": 0, "swap": False, "synthetic_text": False},
        resamples=20,
    )
    ok("run", write_study(tmp_path, study), "--output", tmp_path / "out", "--threads", 1)
    (used,) = (Split.load(path) for path in (tmp_path / "out" / "splits").iterdir())
    assert (len(used.train_users), len(used.adapt_users)) == (3, 3)
    assert {len(ids) for ids in used.support_ids.values()} == {5}
    study["data"] = {"name": "authored", "options": {"path": str(authored), "task": "title"}}
    said = refused(2, "run", write_study(tmp_path, study), "--output", tmp_path / "x", "--threads", 1)
    assert "'tldr_lore' parts preference pairs" in said


def test_a_dry_run_of_a_push_tells_everything_and_sends_nothing(prepared: dict[str, Path]) -> None:
    folder = prepared["generated"]
    said = ok("data", "push", folder, "--repo", "me/notes", "--dry-run").stdout
    for part in (
        "notes would go to me/notes",
        "data/train.parquet",
        "license: cc-by-4.0",
        "Nothing speaks against it.",
    ):
        assert part in said
    found = json.loads(ok("data", "push", folder, "--repo", "me/notes", "--dry-run", "--json").stdout)
    assert found["files"] == {name: len(payload) for name, payload in content(folder).items()}
    assert found["findings"] == []


def test_a_push_without_a_token_is_one_sentence(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "there is no token of the hub" in refused(4, "data", "push", prepared["closest"], "--repo", "me/notes")
    assert "give owner/name" in refused(2, "data", "push", prepared["closest"], "--repo", "notes")
    assert "does not exist" in refused(4, "data", "push", tmp_path / "none", "--repo", "me/notes", "--dry-run")
