"""Searches in a study and in `generate`: options, names, and a policy accuracy that is missing with its reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import lines, ok, refused, write_rows

from rewardgap.core.results import KEY_COLUMNS
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.catalog import DECODERS
from rewardgap.studies.deployments import expand
from rewardgap.studies.spec import parse_study

STUDY: dict[str, Any] = {
    "name": "searches",
    "data": {"name": "synthetic_text", "options": {"users": 7, "rows_per_user": 8}},
    "split": {"train_users": 5, "valid_per_train_user": 1, "adapt_users": 2, "support": 4, "query": 2},
    "policy": "synthetic-words",
    "generation": {"max_new_tokens": 4},
    "batch_size": 3,
    "reward_models": [{"method": "global_bt"}, {"method": "lore", "options": {"rank": 2}}],
    "deployments": [
        {"policy": "zero_shot"},
        {"decoder": "args_greedy", "top_k": 3},
        {"decoder": "args_stochastic", "top_k": 3, "options": {"temperature": 0.5}, "reward_models": ["lore"]},
        {"decoder": "best_of_n", "options": {"n": [2, 4], "pool_seed": 0}},
        {"decoder": "best_of_n", "guidance_weight": [0.5, 2], "options": {"soft": True}, "reward_models": ["lore"]},
        {"decoder": "blockwise", "options": {"block": 2, "num_blocks": 2}, "reward_models": ["lore"]},
        {"decoder": "cards", "options": {"calibrate": 3}, "reward_models": ["lore"]},
        {"decoder": "transfer_q", "options": {"rollout": 2}, "top_k": 2, "reward_models": ["lore"]},
    ],
    "metrics": ["rouge1"],
    "controls": {"shuffled_labels": 0, "swap": False, "synthetic_text": False},
    "resamples": 50,
}
NAMES = {
    ("args_greedy", "1.0", "3"),
    ("args_stochastic temperature=0.5", "1.0", "3"),
    ("best_of_n n=2 pool_seed=0", "1.0", ""),
    ("best_of_n n=4 pool_seed=0", "1.0", ""),
    ("best_of_n soft=true", "0.5", ""),
    ("best_of_n soft=true", "2.0", ""),
    ("blockwise block=2 num_blocks=2", "", ""),
    ("cards calibrate=3", "", ""),
    ("transfer_q rollout=2", "1.0", "2"),
}
ONE = ("--threads", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, cache = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("cache")
    path = folder / "searches.yaml"
    path.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(cache))
        ok("run", path, "--output", folder / "out", *ONE)
    return folder / "out", cache


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "results.csv").open(encoding="utf-8")))


def test_every_deployment_has_a_name_of_its_own(finished: tuple[Path, Path]) -> None:
    rows = rows_of(finished[0])
    keys = [tuple(row[name] for name in KEY_COLUMNS) for row in rows]
    assert len(keys) == len(set(keys))
    assert {(r["decoder"], r["guidance_weight"], r["top_k"]) for r in rows if r["decoder"]} == NAMES


def test_policy_accuracy_is_missing_where_texts_have_no_probability(finished: tuple[Path, Path]) -> None:
    out, _ = finished
    for row in rows_of(out):
        if row["stage"] != "policy_accuracy" or not row["decoder"]:
            continue
        if DECODERS[row["decoder"].split()[0]].scores:
            assert row["value"]
        else:
            assert (row["metric"], row["value"], row["n_missing"]) == ("rgd_topk", "", "4")
    searches = {row["decoder"] for row in rows_of(out) if row["metric"] == "rgd_topk" and not row["value"]}
    assert searches == {name for name, _, _ in NAMES if not name.startswith("args")}
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    said = [note for note in results["notes"] if note.startswith("Policy accuracy is missing")]
    assert len(said) == 4
    assert any("the decoder cards gives a text no probability" in note for note in said)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "not scored: no tractable density" in page
    assert "the decoder cards gives a text no probability" in page
    assert "best_of_n n=4 pool_seed=0" in page
    assert "best_of_n n=4 pool_seed=0" in ok("report", out).stdout


def test_texts_are_judged_and_pieces_counted(finished: tuple[Path, Path]) -> None:
    rows = [row for row in rows_of(finished[0]) if row["decoder"].startswith(("best_of_n", "blockwise", "cards"))]
    for name in {(row["method"], row["decoder"], row["guidance_weight"]) for row in rows}:
        own = [row for row in rows if (row["method"], row["decoder"], row["guidance_weight"]) == name]
        values = {row["metric"]: row["value"] for row in own if row["stage"] in ("behaviour", "cost")}
        assert 0 < float(values["distinct_share"]) <= 1
        assert 0 <= float(values["accepted_share"]) <= 1
        assert float(values["pieces_per_completion"]) > 0
        assert len([row for row in own if row["stage"] == "win_rate"]) == 2
    best = {row["decoder"]: row["value"] for row in rows if row["metric"] == "pieces_per_completion"}
    assert (best["best_of_n n=2 pool_seed=0"], best["best_of_n n=4 pool_seed=0"]) == ("2.0", "4.0")


def test_one_pool_serves_all_reward_models(finished: tuple[Path, Path]) -> None:
    """Two reward models and two numbers of samples: as many pools as there are different query prompts."""
    out, cache = finished
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("cells/*/cell.json")]
    pooled = [cell for cell in cells if cell["key"].get("options", {}).get("pool_seed") == 0]
    assert len(pooled) == 4
    assert 1 <= len(list((cache / "pools").rglob("*.safetensors"))) <= 4


def test_a_second_run_finds_everything(finished: tuple[Path, Path]) -> None:
    out, cache = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(cache))
        assert "0 of" in ok("run", out.parent / "searches.yaml", "--output", out, *ONE).output


def test_the_study_in_a_results_folder_is_the_study(finished: tuple[Path, Path]) -> None:
    held = yaml.safe_load((finished[0] / "study.yaml").read_text(encoding="utf-8"))
    assert expand(parse_study(held)) == expand(parse_study(STUDY))


def test_options_at_their_defaults_name_nothing() -> None:
    def titles(*deployments: dict[str, Any]) -> list[str]:
        study = parse_study({**STUDY, "reward_models": [{"method": "lore"}], "deployments": list(deployments)})
        return [deployment.decoder_title for deployment in expand(study)]

    assert titles({"decoder": "best_of_n"}, {"decoder": "best_of_n", "options": {"n": [16, 4]}}) == [
        "best_of_n λ=1",
        "best_of_n n=4 λ=1",
    ]
    assert titles({"decoder": "args_greedy"}, {"decoder": "transfer_q"}) == [
        "args_greedy λ=1 k=10",
        "transfer_q λ=1 k=5",
    ]
    assert BestOfN().n == 16


@pytest.mark.parametrize(
    ("deployment", "sentence"),
    [
        ("{decoder: best_of_n, options: {num: 4}}", "no option 'num'"),
        ("{decoder: best_of_n, options: {n: []}}", "an empty list runs nothing"),
        ("{decoder: best_of_n, options: {n: many}}", "n must be a whole number"),
        ("{decoder: best_of_n, top_k: 4}", "no option 'top_k'"),
        ("{decoder: blockwise, guidance_weight: 2}", "no option 'guidance_weight'"),
        ("{decoder: args_greedy, options: {top_k: 3}}", "top_k stands beside options"),
        ("{decoder: cards}", "needs target and entropy"),
        ("{decoder: blockwize}", "Did you mean 'blockwise'"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(deployment: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    said = refused(2, "run", path, "--output", tmp_path / "out", "--set", f"deployments=[{deployment}]", *ONE)
    assert sentence in said
    assert not (tmp_path / "out" / "cells").exists()


def test_the_catalogue_says_which_reward_models_a_decoder_works_with() -> None:
    listed = {entry["name"]: entry for entry in json.loads(ok("decoders", "--json").stdout)}
    assert listed["best_of_n"]["families"] == "state values, token rewards, judges"
    assert listed["greedy"]["families"] == "none"
    assert "state values, token rewards" in ok("decoders").stdout
    card = ok("decoders", "best_of_n").stdout
    assert "log N - (N - 1) / N" in card
    assert "no policy accuracy" in card


def test_generate_takes_options_of_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    words = ["river", "garden", "stone", "light"]
    pairs = [
        {"user_id": f"u{user}", "prompt": words[row], "chosen": "light", "rejected": "stone"}
        for user in range(3)
        for row in range(4)
    ]
    prefs = write_rows(tmp_path / "prefs.jsonl", pairs)
    asked = write_rows(tmp_path / "asked.jsonl", [{"user_id": "u0", "prompt": word} for word in words])
    ok(
        "fit",
        "--data",
        prefs,
        "--method",
        "global_bt",
        "--backbone",
        "synthetic-words",
        "--output",
        tmp_path / "m",
        *ONE,
    )
    call = ("generate", "synthetic-words", "--prompts", asked, "--model", tmp_path / "m", "--max-new-tokens", 4, *ONE)
    best = [lines(ok(*call, "--decoder", "best_of_n", "--set", f"n={n}").stdout) for n in (1, 8, 8)]
    assert best[1] == best[2]
    assert best[0] != best[1]
    sampled = [r["completion"] for r in lines(ok(*call[:4], *call[6:], "--decoder", "sample").stdout)]
    assert [r["completion"] for r in best[0]] == sampled
    plain = [lines(ok(*call, *more).stdout) for more in ((), ("--decoder", "transfer_q", "--set", "rollout=0"))]
    assert [r["completion"] for r in plain[0]] == [r["completion"] for r in plain[1]]
    assert "no option 'num'" in refused(2, *call, "--decoder", "best_of_n", "--set", "num=8")
    assert "given twice" in refused(2, *call, "--decoder", "best_of_n", "--set", "temperature=1", "--temperature", 1)
