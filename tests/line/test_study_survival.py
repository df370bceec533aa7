"""A study that is killed and run again ends with the numbers of one that was not."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from rewardgap.core.errors import ConfigError
from rewardgap.core.results import KEY_COLUMNS, StudyResults
from rewardgap.studies.aggregate import aggregate
from rewardgap.studies.cells import Cell, CellFolder, from_parquet, to_parquet
from rewardgap.studies.environment import threads_of
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import run_study
from rewardgap.studies.spec import parse_study

if TYPE_CHECKING:
    from pathlib import Path
from standins import save_hub_folder, tiny_model, tiny_tokenizer

WORDS = ["river", "stone", "light", "garden", "paper", "winter", "music", "candle"]
BEHIND = {"seconds", "tokens"}


def write_data(path: Path, users: int = 7, rows: int = 9) -> None:
    draw = np.random.default_rng(3)
    lines = []
    for user in range(users):
        for row in range(rows):
            source = " ".join(draw.choice(WORDS, 5)) + f" {user}{row}"
            lines.append(
                {
                    "user_id": f"w{user}",
                    "example_id": f"w{user}-{row}",
                    "prompt_source": source,
                    "completion": " ".join(draw.choice(WORDS, 3)),
                    "timestamp": f"2024-01-{row + 1:02d}",
                }
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_data(folder / "texts.jsonl")
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float32)
    save_hub_folder(folder / "model", model, tokenizer, eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"))
    return folder


def tiny_study(material: Path, **changes: object) -> dict[str, object]:
    return {
        "name": "tiny",
        "data": {
            "name": "authored",
            "options": {"path": str(material / "texts.jsonl"), "prompt_template": "Shorten: {prompt_source}"},
        },
        "split": {"train_users": 4, "pairs_per_train_user": 5, "valid_per_train_user": 2, "adapt_users": 3,
                  "support": 4, "query": 4},
        "policy": str(material / "model"),
        "generation": {"max_new_tokens": 6, "min_new_tokens": 1},
        "batch_size": 4,
        "reward_models": [{"method": "global_bt"}, {"method": "lore", "options": {"rank": 2}}],
        "deployments": [
            {"policy": "zero_shot"},
            {"policy": "icl_rag", "num_demonstrations": 1},
            {"decoder": "args_greedy", "guidance_weight": [1, 5], "top_k": 4},
        ],
        "metrics": ["rouge1", "rougeL"],
        "controls": {"shuffled_labels": 3, "synthetic_text": False},
        "resamples": 200,
        **changes,
    }  # fmt: skip


def numbers(results: StudyResults) -> list[dict[str, object]]:
    """Everything that equality of runs is about: no times, no token counts, no costs."""
    rows = results.to_json()["rows"]
    kept = [{k: v for k, v in row.items() if k not in BEHIND} for row in rows if row["stage"] != "cost"]
    texts = [sample["generations"] for sample in results.to_json()["samples"]]
    controls = results.to_json()["controls"]
    return [*kept, *texts, *controls]


def finish(material: Path, root: Path, **changes: object) -> tuple[StudyResults, int]:
    done = run_study(parse_study(tiny_study(material, **changes)), root, Silent())
    assert not done.failures
    return aggregate(done, "again"), done.computed


@pytest.fixture(scope="module")
def uninterrupted(material: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return finish(material, tmp_path_factory.mktemp("plain") / "tiny")[0]


def test_the_chain_has_every_stage_and_unique_keys(uninterrupted: StudyResults) -> None:
    assert {row.stage for row in uninterrupted.rows} == {
        "rm_accuracy", "policy_accuracy", "behaviour", "win_rate", "cost",
    }  # fmt: skip
    keys = [row.key() for row in uninterrupted.rows]
    assert len(keys) == len(set(keys))
    assert len(KEY_COLUMNS) == len(keys[0])
    for row in uninterrupted.rows:
        if row.ci_low is not None:
            assert row.ci_low <= row.value <= row.ci_high


def test_reward_only_is_rm_accuracy(uninterrupted: StudyResults) -> None:
    """The policy's packed pass and the reward model's feature pass are two computations of one number."""
    whole = {r.method: r.value for r in uninterrupted.rows if r.metric == "accuracy" and r.users == "unseen"}
    seen = 0
    for row in uninterrupted.rows:
        if row.metric == "reward_only":
            assert row.value == pytest.approx(whole[row.method], abs=1e-12)
            seen += 1
    assert seen == 4


def test_a_second_run_computes_nothing(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    first, computed = finish(material, tmp_path / "tiny")
    again, nothing = finish(material, tmp_path / "tiny")
    assert computed > 0
    assert nothing == 0
    assert again.to_json() == first.to_json()


class Killed(BaseException):
    """Not an Exception: nothing in the runner may catch it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("last", [2, 9, 15, 24])
def test_killed_inside_a_write_and_resumed(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: StudyResults, last: int
) -> None:
    """The write number `last` is torn: half its bytes reach the disk."""
    from rewardgap.core import store
    from rewardgap.studies import cells

    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    count = 0
    real_append = store.append_lines

    def torn(path: Path, rows: object) -> None:
        nonlocal count
        count += 1
        if count < last:
            real_append(path, rows)  # type: ignore[arg-type]
            return
        payload = "".join(store.canonical_json(row) + "\n" for row in rows)  # type: ignore[attr-defined]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as stream:
            stream.write(payload[: 2 * len(payload) // 3])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(cells, "append_lines", torn)
        with pytest.raises(Killed):
            finish(material, tmp_path / "tiny")
    resumed, computed = finish(material, tmp_path / "tiny")
    assert computed > 0
    assert numbers(resumed) == numbers(uninterrupted)


def test_killed_by_sigkill_at_random_moments(material: Path, tmp_path: Path, uninterrupted: StudyResults) -> None:
    study = tmp_path / "tiny.yaml"
    study.write_text(json.dumps(tiny_study(material)))
    command = [sys.executable, "-c", "from rewardgap.cli.app import main; main()", "run", str(study)]
    command += ["-o", str(tmp_path / "tiny"), "--threads", "1"]
    environment = {**os.environ, "REWARDGAP_CACHE": str(tmp_path / "cache")}
    draw = np.random.default_rng(11)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        target = int(draw.integers(1, 20)) + len(list((tmp_path / "tiny").rglob("DONE")))
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "tiny").rglob("DONE"))) >= target:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
    assert kills
    subprocess.run(command, env=environment, check=True, capture_output=True)
    results = StudyResults.from_json(json.loads((tmp_path / "tiny" / "results.json").read_text()))
    assert numbers(results) == numbers(uninterrupted)
    with (tmp_path / "tiny" / "results.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(results.rows)


def test_another_grid_keeps_the_cells_it_shares(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: StudyResults
) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    finish(material, tmp_path / "tiny")
    wider = [
        {"policy": "zero_shot"},
        {"policy": "icl_rag", "num_demonstrations": 1},
        {"decoder": "args_greedy", "guidance_weight": [1, 5, 9], "top_k": 4},
    ]
    _, more = finish(material, tmp_path / "tiny", deployments=wider)
    # Two reward models at one more weight: two deployments, each with two metrics and two judges.
    assert more == 2 * (1 + 2 + 2)


def test_a_folder_of_another_study_is_left_alone(material: Path, tmp_path: Path) -> None:
    study = parse_study(tiny_study(material))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "study.yaml").write_text("name: other\n")
    with pytest.raises(ConfigError, match="'other', not of 'tiny'"):
        run_study(study, tmp_path / "x", Silent())
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no study"):
        run_study(study, tmp_path / "y", Silent())
    assert (tmp_path / "y" / "thesis.txt").read_text() == "mine"


def test_the_same_name_on_other_data_is_another_study(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    finish(material, tmp_path / "tiny")
    write_data(tmp_path / "others.jsonl", users=8)
    changed = {
        "name": "authored",
        "options": {"path": str(tmp_path / "others.jsonl"), "prompt_template": "{prompt_source}"},
    }
    with pytest.raises(ConfigError, match="on another data"):
        finish(material, tmp_path / "tiny", data=changed)


def test_what_a_killed_first_write_left_is_no_other_study(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / ".study.yaml.x1.tmp").write_text("na")
    assert finish(material, tmp_path / "tiny")[1] > 0


def test_one_adapt_user_has_results_without_a_swap(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    split = {"train_users": 4, "pairs_per_train_user": 5, "valid_per_train_user": 2, "adapt_users": 1, "support": 4}
    results, _ = finish(material, tmp_path / "tiny", split=split)
    swap = [control for control in results.controls if control.name == "swap_test"]
    assert [control.value for control in swap] == [None]
    assert all(row.ci_low is None for row in results.rows if row.users == "unseen")


def test_a_method_twice_needs_labels_and_keeps_its_rows_apart(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    twice = [{"method": "lore", "options": {"rank": 2}}, {"method": "lore", "options": {"rank": 3}}]
    with pytest.raises(ConfigError, match="2 reward models are called 'lore'"):
        finish(material, tmp_path / "tiny", reward_models=twice)
    labelled = [{**spec, "label": f"lore_{spec['options']['rank']}"} for spec in twice]  # type: ignore[index]
    results, _ = finish(material, tmp_path / "tiny", reward_models=labelled)
    keys = [row.key() for row in results.rows]
    assert len(keys) == len(set(keys))
    wins = {(row.method, row.judge): row.metric for row in results.rows if row.stage == "win_rate" and row.decoder}
    assert wins["lore_2", "lore_2"] == wins["lore_3", "lore_3"] == "win_self"
    assert wins["lore_2", "lore_3"] == wins["lore_3", "lore_2"] == "win_cross"


def test_records_survive_parquet() -> None:
    records = [
        {"item": 0, "user_id": "u", "value": 0.1, "nested": {"a": [1, None]}, "none": None, "flag": True},
        {"item": 1, "user_id": "ü<script>", "value": None, "nested": {"a": []}, "none": None, "flag": False},
    ]
    assert from_parquet(to_parquet(records)) == records


def test_a_cell_is_what_it_depends_on(tmp_path: Path) -> None:
    need = Cell("pairing", {"seed": 0}, "pairs")
    one = Cell("reward_model", {"method": "lore"}, "title", (need,))
    renamed = Cell("reward_model", {"method": "lore"}, "another title", (need,))
    other = Cell("reward_model", {"method": "lore"}, "title", (Cell("pairing", {"seed": 1}, "pairs"),))
    assert one.id == renamed.id != other.id
    folder = CellFolder(tmp_path, one)
    folder.start()
    folder.append([{"item": 0}])
    assert not folder.done
    folder.finish()
    assert folder.done
    (folder.path / "records.parquet").unlink()
    assert not folder.done


def test_a_resumed_run_keeps_the_threads_it_was_begun_with(tmp_path: Path) -> None:
    """Sums in another order are other numbers in the last digits, and a draw may then fall otherwise."""
    assert threads_of(tmp_path) is None
    (tmp_path / "env.json").write_text('{"threads": 3}')
    assert threads_of(tmp_path) == 3
    (tmp_path / "env.json").write_text('{"threads": null}')
    assert threads_of(tmp_path) is None
