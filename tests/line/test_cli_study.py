"""The whole chain through the command line: run, run again, report, --json, --dry-run, and what artefacts tell."""

from __future__ import annotations

import csv
import getpass
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import call, ok, refused

from rewardgap.core.results import KEY_COLUMNS, STAGES, StudyResults
from rewardgap.studies import jobs, stages
from standins import save_hub_folder, tiny_model, tiny_tokenizer

DEPLOYMENTS = [
    {"policy": "zero_shot"},
    {"policy": "icl", "num_demonstrations": 1},
    {"policy": "icl_rag", "num_demonstrations": [1, 2]},
    {"decoder": "args_greedy", "guidance_weight": [0.5, 2], "top_k": 4},
    {"decoder": "args_stochastic", "guidance_weight": 1, "top_k": 4, "reward_models": ["lore"]},
]


def study_of(policy: str, name: str = "words", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "data": {"name": "synthetic_text", "options": {"users": 9, "rows_per_user": 9}},
        "split": {"train_users": 6, "valid_per_train_user": 2, "adapt_users": 3, "support": 4, "query": 2},
        "policy": policy,
        "generation": {"max_new_tokens": 4},
        "batch_size": 3,
        "reward_models": [{"method": "global_bt"}, {"method": "lore", "options": {"rank": 2}}],
        "deployments": DEPLOYMENTS,
        "metrics": ["rouge1", "rougeL"],
        "controls": {"shuffled_labels": 2, "swap": True, "synthetic_text": False},
        "resamples": 100,
        **changes,
    }


def write_study(folder: Path, study: dict[str, Any]) -> Path:
    path = folder / f"{study['name']}.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return save_hub_folder(tmp_path_factory.mktemp("models") / "tiny-llama", model, tokenizer, eos_token_id=end)


@pytest.fixture(scope="module", params=["tiny-llama", "synthetic-words"])
def finished(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("study")
    controls = {"shuffled_labels": 2, "swap": True, "synthetic_text": request.param == "synthetic-words"}
    policy = str(tiny_folder) if request.param == "tiny-llama" else request.param
    path = write_study(folder, study_of(policy, controls=controls))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        result = ok("run", path, "--output", folder / "out", "--threads", 1)
    return path, folder / "out", result.output


def test_a_first_run_computes_every_cell_and_shows_the_leaderboard(finished: tuple[Path, Path, str]) -> None:
    _, out, said = finished
    done = len(list((out / "cells").glob("*/DONE")))
    assert f"{done} of {done} cells computed" in said
    assert "lore" in said
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!")


def test_results_have_all_stages_and_unique_keys(finished: tuple[Path, Path, str]) -> None:
    rows = list(csv.DictReader((finished[1] / "results.csv").open(encoding="utf-8")))
    assert {row["stage"] for row in rows} == set(STAGES)
    keys = [tuple(row[name] for name in KEY_COLUMNS) for row in rows]
    assert len(keys) == len(set(keys))
    assert {row["method"] for row in rows} == {"global_bt", "lore", "zero_shot", "icl", "icl_rag"}
    assert {row["guidance_weight"] for row in rows if row["decoder"] == "args_greedy"} == {"0.5", "2.0"}


def test_the_data_are_checked_in_every_study(finished: tuple[Path, Path, str]) -> None:
    _, out, _ = finished
    (entry,) = json.loads((out / "results.json").read_text(encoding="utf-8"))["datasets"]
    parts = {part["name"]: part for part in entry["check"]["parts"]}
    assert {"sizes", "rankers", "leakage", "personal", "power"} <= set(parts)
    counted = {figure["name"]: figure["value"] for figure in parts["sizes"]["figures"]}
    split = entry["split"]
    support_and_query = split["support pairs"] + split["query pairs"]
    assert counted["rows"] == split["train pairs"] + split["valid pairs"] + support_and_query
    assert entry["check"]["statistics"]["dropped"] == entry["dropped"]
    assert "How personal the data are" in (out / "report.html").read_text(encoding="utf-8")


def test_a_second_run_computes_nothing(finished: tuple[Path, Path, str]) -> None:
    path, out, _ = finished
    before = (out / "results.json").read_bytes()
    result = ok("run", path, "--output", out, "--threads", 1)
    cells = len(list((out / "cells").glob("*/DONE")))
    assert f"0 of {cells} cells computed" in result.output
    assert (out / "results.json").read_bytes() == before


def test_json_is_one_document_on_stdout(finished: tuple[Path, Path, str]) -> None:
    path, out, _ = finished
    result = ok("run", path, "--output", out, "--threads", 1, "--json")
    assert StudyResults.from_json(json.loads(result.stdout)).rows
    assert json.loads(ok("report", out, "--json").stdout) == json.loads(result.stdout)


def test_report_needs_the_results_alone(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    """A table is rebuilt from results.json: no cells, no models, no data."""
    _, out, _ = finished
    (tmp_path / "results.json").write_bytes((out / "results.json").read_bytes())
    assert "lore" in ok("report", tmp_path).stdout
    for name in ("results.csv", "report.html"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    assert ok("report", tmp_path, "--format", "md").stdout.startswith("#")
    ok("report", tmp_path, "--figures", tmp_path / "figures")
    assert (tmp_path / "figures" / "behaviour-1col.svg").stat().st_size > 1000


def test_a_dry_run_writes_nothing(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    path, out, _ = finished
    cells = json.loads(ok("run", path, "--output", out, "--dry-run", "--json").stdout)["cells"]
    assert len(cells) == len(list((out / "cells").glob("*/DONE")))
    assert all(cell["done"] for cell in cells)
    fresh = tmp_path / "fresh"
    shown = ok("run", path, "--output", fresh, "--dry-run", "--set", "split.support=3").stdout
    assert "support: 3" in shown
    assert "to do" in shown
    assert not fresh.exists()


def test_artefacts_name_no_machine(finished: tuple[Path, Path, str], tiny_folder: Path) -> None:
    _, out, _ = finished
    private = [socket.gethostname(), str(out.parent), str(tiny_folder.parent), str(Path.home()) + "/"]
    if getpass.getuser() != "root":  # a word that texts may hold
        private.append(getpass.getuser())
    files = ["study.yaml", "env.json", "results.json", "results.csv", "report.html"]
    texts = {name: (out / name).read_text(encoding="utf-8") for name in files}
    texts |= {str(f.relative_to(out)): f.read_text(encoding="utf-8") for f in out.glob("cells/*/*.json")}
    texts |= {str(f.relative_to(out)): f.read_text(encoding="utf-8") for f in out.glob("cells/*/model/*.json")}
    for name, text in texts.items():
        assert not [word for word in private if word and word in text], name


def test_a_setting_with_a_path_is_shown_by_its_last_part(tiny_folder: Path, tmp_path: Path) -> None:
    small = {
        "deployments": [{"policy": "zero_shot"}],
        "reward_models": [],
        "controls": {"shuffled_labels": 0, "synthetic_text": False},
    }
    path = write_study(tmp_path, study_of("synthetic-words", **small))
    out = tmp_path / "out"
    ok("run", path, "--output", out, "--threads", 1, "--set", f"policy={tiny_folder}")
    command = json.loads((out / "results.json").read_text(encoding="utf-8"))["command"]
    assert command == f"rewardgap run {path.name} --set policy={tiny_folder.name}"
    assert yaml.safe_load((out / "study.yaml").read_text(encoding="utf-8"))["policy"] == tiny_folder.name


def test_a_cell_that_fails_leaves_the_others(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One metric breaks; everything else is computed and kept, and the exit code says so."""
    whole = stages.run_behaviour

    def breaks(bench: Any, cell: Any, written: Any, name: str) -> None:
        if name == "rougeL":
            raise OSError(f"no space left under {tmp_path}/somewhere/file")
        whole(bench, cell, written, name)

    monkeypatch.setitem(jobs.STAGES, "behaviour", breaks)
    controls = {"shuffled_labels": 0, "synthetic_text": False}
    study = study_of("synthetic-words", deployments=[{"policy": "zero_shot"}], reward_models=[], controls=controls)
    study["metrics"] = ["rouge1", "rougeL"]
    path, out = write_study(tmp_path, study), tmp_path / "out"
    sentence = refused(5, "run", path, "--output", out, "--threads", 1)
    assert "no space left" in sentence
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [failure["title"] for failure in results["failures"]] == ["rougeL of zero_shot"]
    assert {row["metric"] for row in results["rows"]} >= {"rouge1", "rgd_topk"}
    assert str(tmp_path) not in json.dumps(results["failures"])
    trace = next(out.glob("cells/*/error.txt")).read_text(encoding="utf-8")
    assert 'File "test_cli_study.py"' in trace
    assert str(tmp_path) not in trace


def test_an_interrupt_leaves_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rewardgap.studies.run.run_points", stop)
    path = write_study(tmp_path, study_of("synthetic-words"))
    result = call("run", path, "--output", tmp_path / "out", "--threads", 1)
    assert result.exit_code == 130
    assert "goes on from there" in result.stderr


def test_the_demo_prints_its_study() -> None:
    assert yaml.safe_load(ok("demo", "--print-study").stdout)["name"] == "demo"
