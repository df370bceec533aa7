"""Best-of-N in a study and in `generate`: judges that pick, and pools that a served policy writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import lines, ok, refused, write_rows

from model_server import MODEL, model_server
from rewardgap.backbones.load import load_backbone
from rewardgap.core.seeds import child_seed
from rewardgap.decoding import best_of_n, sampling
from rewardgap.studies import single, stages
from rewardgap.studies.cells import from_parquet
from rewardgap.studies.deployments import expand
from rewardgap.studies.spec import parse_study
from standins import save_hub_folder, tiny_model, tiny_tokenizer

ONE = ("--threads", 1)
WORDS = ("river", "stone", "light", "garden", "paper", "winter")
BY_RM = {"decoder": "best_of_n", "options": {"n": 3, "pool_seed": 0}}
BY_JUDGE = {"decoder": "best_of_n", "reward_models": ["icl_judge"]}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float64)
    model.config.max_position_embeddings = 1024  # a question holds the user's choices
    return save_hub_folder(tmp_path_factory.mktemp("models") / "tiny-llama", model, tokenizer)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"user_id": f"u{user}", "prompt": f"About {word}.", "chosen": f"{word} {user}", "rejected": f"no {word}"}
        for user in range(5)
        for word in WORDS
    ]
    return write_rows(tmp_path / "prefs.jsonl", rows)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, a cache of the test's own, and seeds that go through a request as they are."""
    monkeypatch.setenv("OPENAI_API_KEY", "any text")
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    for module in (best_of_n, sampling, single, stages):
        monkeypatch.setattr(module, "child_seed", lambda *parts: child_seed(*parts) % (1 << 31))


def study_of(pairs: Path, folder: Path, deployments: list[dict[str, Any]], policy: str = "") -> dict[str, Any]:
    return {
        "name": "picked",
        "data": {"name": "jsonl", "options": {"path": str(pairs)}},
        "split": {"train_users": 3, "valid_per_train_user": 1, "adapt_users": 2, "support": 3, "query": 2},
        "policy": policy or str(folder),
        "dtype": "float64",
        "generation": {"max_new_tokens": 4},
        "reward_models": [
            {"method": "global_bt", "backbone": str(folder)},
            {"method": "lore", "backbone": str(folder), "options": {"rank": 2}},
            {"method": "icl_judge", "backbone": str(folder), "options": {"labels": ["A", "B"]}},
        ],
        "deployments": deployments,
        "controls": {"shuffled_labels": 0, "swap": False, "synthetic_text": False},
        "resamples": 50,
    }


def run(study: dict[str, Any], out: Path, stem: str = "study") -> Path:
    path = out.parent / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    ok("run", path, "--output", out, *ONE)
    return out


def written(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the records of every deployment by the progress line's name, without what the machine's speed decides."""
    found = {}
    for folder in (out / "cells").iterdir():
        facts = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        if facts["kind"] == "deployment":
            name = json.dumps([facts["key"]["name"], facts["key"]["options"], facts["key"]["guidance_weight"]])
            records = from_parquet((folder / "records.parquet").read_bytes())
            cost = ("seconds", "forwards", "network_tokens")
            rows = [{k: v for k, v in row.items() if k not in cost} for row in records]
            found.setdefault(name, []).extend(sorted(rows, key=lambda row: json.dumps(row, sort_keys=True)))
    return found


def test_a_judge_picks_in_a_study(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    tournaments = {"n": 3, "pool_seed": 0, "tournament": ["round_robin", "knockout"]}
    deployments = [{"policy": "zero_shot"}, BY_RM, {**BY_JUDGE, "options": tournaments}]
    study = study_of(pairs, tiny_folder, deployments)
    out = run(study, tmp_path / "out")
    rows = list(csv.DictReader((out / "results.csv").open(encoding="utf-8")))
    names = {(r["method"], r["decoder"], r["guidance_weight"]) for r in rows if r["decoder"]}
    pool = "best_of_n n=3 pool_seed=0"
    assert names == {
        ("global_bt", pool, "1.0"),
        ("lore", pool, "1.0"),
        ("icl_judge", f"{pool} tournament=round_robin", ""),
        ("icl_judge", f"{pool} tournament=knockout", ""),
    }
    own = {(r["decoder"], r["metric"]): r for r in rows if r["method"] == "icl_judge" and r["decoder"]}
    for tournament, most in (("round_robin", 3), ("knockout", 2)):
        questions = float(own[f"{pool} tournament={tournament}", "questions_per_completion"]["value"])
        assert 0 < questions <= most
        assert own[f"{pool} tournament={tournament}", "pieces_per_completion"]["value"] == "3.0"
        assert own[f"{pool} tournament={tournament}", "rgd_topk"]["value"] == ""
    wins = {(r["method"], r["metric"], r["judge"]) for r in rows if r["stage"] == "win_rate" and r["decoder"]}
    assert ("icl_judge", "win_self", "icl_judge") in wins
    assert {("icl_judge", "win_cross", "lore"), ("lore", "win_cross", "icl_judge")} <= wins
    assert not any(row["metric"] == "questions_per_completion" for row in rows if row["method"] != "icl_judge")
    notes = json.loads((out / "results.json").read_text(encoding="utf-8"))["notes"]
    assert any("icl_judge rewards no token, so there is no policy accuracy" in note for note in notes)
    # Two reward models and one judge: a pool for each query prompt.
    query = {record["example_id"] for records in written(out).values() for record in records}
    assert 1 <= len(list((tmp_path / "cache" / "pools").rglob("*.safetensors"))) <= len(query)
    held = yaml.safe_load((out / "study.yaml").read_text(encoding="utf-8"))
    assert [d.model_dump(exclude={"reward_model"}) for d in expand(parse_study(held))] == [
        d.model_dump(exclude={"reward_model"}) for d in expand(parse_study(study))
    ]
    assert "0 of" in ok("run", tmp_path / "study.yaml", "--output", out, *ONE).output


def test_a_served_study_picks_as_the_local_one(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    """Two reward models and a judge choose from the pool that the server wrote once."""
    deployments = [{"policy": "zero_shot"}, BY_RM, {**BY_JUDGE, "options": {"n": 3}}]
    backbone = load_backbone(str(tiny_folder), dtype="float64")
    with model_server(backbone) as server:
        place = f"served:{server.base_url}#model={MODEL},tokenizer={tiny_folder}"
        there = run(study_of(pairs, tiny_folder, deployments, place), tmp_path / "there", "there")
        asked = [request for request in server.requests if request["temperature"] > 0 and request["max_tokens"] == 4]
        said = refused(
            2, "run", tmp_path / "there.yaml", "--output", tmp_path / "no", *ONE,
            "--set", "deployments=[{decoder: blockwise}]",
        )  # fmt: skip
    assert "'blockwise' steers each step by the policy's weights" in said
    assert "deploy zero_shot, icl, icl_rag, best_of_n" in said
    here = run(study_of(pairs, tiny_folder, deployments), tmp_path / "here", "here")
    found, local = written(there), written(here)
    assert set(found) == set(local)
    for name, rows in local.items():
        if "best_of_n" in name:
            assert found[name] == rows
    # The judge's line has no pool_seed: its texts are drawn for each row, those of the reward models for each prompt.
    rows = sum(len(found[name]) for name in found if "best_of_n" in name and "pool_seed" not in name)
    assert len(asked) == 3 * (len({tuple(request["prompt"]) for request in asked}) + rows)


def test_generate_picks_from_what_a_server_wrote(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    asked = write_rows(tmp_path / "asked.jsonl", [{"user_id": "u0", "prompt": word} for word in WORDS])
    fit = ("fit", "--data", pairs, "--method", "global_bt", "--backbone", tiny_folder, "--dtype", "float64")
    ok(*fit, "--output", tmp_path / "m", *ONE)
    rest = ("--prompts", asked, "--model", tmp_path / "m", "--backbone", tiny_folder, "--dtype", "float64", *ONE)
    best = ("--decoder", "best_of_n", "--set", "n=3", "--max-new-tokens", 4)
    with model_server(load_backbone(str(tiny_folder), dtype="float64")) as server:
        place = f"served:{server.base_url}#model={MODEL},tokenizer={tiny_folder}"
        there = lines(ok("generate", place, *rest, *best).stdout)
        assert "'global_bt' with decoder 'args_greedy' cannot be deployed on a served policy" in refused(
            2, "generate", place, *rest
        )
    assert there == lines(ok("generate", tiny_folder, *rest, *best).stdout)
    assert len({row["completion"] for row in there}) > 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({**BY_JUDGE, "guidance_weight": 2}, "guidance_weight weighs rewards, and icl_judge has none"),
        ({**BY_JUDGE, "options": {"soft": True}}, "soft weighs rewards, and a judge has none"),
        ({**BY_JUDGE, "options": {"tournament": "league"}}, "known: round_robin, knockout"),
        ({**BY_RM, "options": {"tournament": "knockout"}}, "a reward model takes the highest reward"),
        ({**BY_JUDGE, "decoder": "blockwise"}, "ranks whole texts and rewards no token"),
        ({**BY_JUDGE, "reward_models": ["icl_juge"]}, "names reward model 'icl_juge', which reward_models does not"),
    ],
)
def test_what_does_not_go_with_who_picks_is_said_before_anything_runs(
    line: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    study = study_of(tmp_path / "none.jsonl", Path("synthetic-words"), [line])
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    assert sentence in refused(2, "run", path, "--output", tmp_path / "out", *ONE)
    assert not (tmp_path / "out").exists()


def test_a_line_without_names_leaves_judges_out() -> None:
    study = parse_study(study_of(Path("x"), Path("y"), [BY_RM]))
    assert [deployment.reward_model.name for deployment in expand(study) if deployment.reward_model] == [
        "global_bt",
        "lore",
    ]
