"""The choice of a guidance weight through the command line: what it finds, what it shares, and what it never reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml
from command import ok, refused, write_rows

from rewardgap.core.store import write_text
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.policies.guided import Guided
from rewardgap.stats.bootstrap import clustered_mean
from rewardgap.studies import cells, tuning
from rewardgap.studies.progress import Silent
from rewardgap.studies.spec import DeploymentSpec, load_study
from rewardgap.studies.tuning import tune
from rewardgap.studies.tuning_settings import TuningSettings
from rewardgap.studies.workbench import StudyPairs, Workbench

FILES = ("tune.json", "tune.csv", "tune.svg")
ONE = ("--threads", 1)


def write_study(folder: Path, **changes: Any) -> Path:
    study = {
        "name": "words",
        "data": {"name": "synthetic_text", "options": {"users": 20, "rows_per_user": 24}},
        "split": {"train_users": 16, "valid_per_train_user": 4, "adapt_users": 3, "support": 4, "query": 2},
        "policy": "synthetic-words",
        "generation": {"max_new_tokens": 6},
        "batch_size": 16,
        "reward_models": [{"method": "lore", "options": {"rank": 3}}, {"method": "global_bt"}],
        "deployments": [{"policy": "zero_shot"}, {"decoder": "args_greedy", "guidance_weight": 1, "top_k": 6}],
        "metrics": ["rouge1"],
        "controls": {"shuffled_labels": 0, "swap": False, "synthetic_text": False},
        "resamples": 200,
        **changes,
    }
    path = folder / f"{study['name']}.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Return a study, the folder of its tuning, and what the terminal said."""
    folder = tmp_path_factory.mktemp("tune")
    path = write_study(folder)
    said = ok("tune", path, "-o", folder / "out", "--weights", -1, 1, 32, "--top-k", 12, *ONE)
    return path, folder / "out", said.output


def found_in(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "tune.json").read_text(encoding="utf-8"))
    return value


def test_a_planted_reward_gives_a_positive_weight_and_too_much_of_it_hurts(tuned: tuple[Path, Path, str]) -> None:
    found = found_in(tuned[1])
    by_weight = {row["guidance_weight"]: row for row in found["weights"]}
    assert list(by_weight) == [-1.0, 0.0, 1.0, 32.0]
    assert (found["chosen"], found["criterion"], found["users"], found["rows"]) == (1.0, "rouge1", 16, 64)
    differences = {row["guidance_weight"]: row for row in found["differences"]}
    assert differences[1.0]["low"] > 0 > differences[-1.0]["high"]
    rewards = [by_weight[weight]["reward"]["value"] for weight in (-1.0, 0.0, 1.0, 32.0)]
    assert rewards == sorted(rewards), "the reward that steers rises with its weight"
    assert by_weight[32.0]["rouge1"]["value"] < by_weight[1.0]["rouge1"]["value"]
    none = by_weight[0.0]
    assert (none["changed"]["value"], none["guidance_ratio"]["value"]) == (0.0, 0.0)
    assert none["fluency_gap"]["value"] == pytest.approx(0, abs=1e-5)
    gaps = [by_weight[weight]["fluency_gap"]["value"] for weight in (0.0, 1.0, 32.0)]
    assert gaps == sorted(gaps)
    assert found["reward_scales"]["lore"] > 0


def test_the_terminal_says_the_choice_and_the_line(tuned: tuple[Path, Path, str]) -> None:
    _, folder, said = tuned
    found = found_in(folder)
    assert " ".join(found["sentence"].split()) in " ".join(said.split())
    assert found["line"] in said
    assert "below 0" in said
    (line,) = yaml.safe_load(found["line"])
    spec = DeploymentSpec.model_validate(line)
    assert (spec.guidance_weight, spec.reward_models, spec.top_k) == (1, ["lore"], 12)


def test_the_numbers_are_those_of_the_objects_one_prompt_at_a_time(tuned: tuple[Path, Path, str]) -> None:
    """Texts from `Guided.generate` alone, rewards from `RewardModel.rewards`, means by hand."""
    path, folder, _ = tuned
    bench = Workbench(load_study(path), folder, Silent())
    plan = tuning.make_plan(bench)
    bench.pairs = tuning.dealt(bench, plan)
    spec, cell = plan.rewards[0]
    model = bench.fitted(cell, spec)
    policy = Guided(bench.policy, ArgsGreedy(1.0, 12), bench.settings, reward=model)  # type: ignore[arg-type]
    rows = bench.study_pairs().valid
    states = [model.state_of(row.user_id) for row in rows]
    texts = [policy.generate([row.prompt], [state])[0] for row, state in zip(rows, states, strict=True)]
    rewards = model.rewards([row.prompt for row in rows], texts, states)
    found = next(row for row in found_in(folder)["weights"] if row["guidance_weight"] == 1.0)["reward"]
    wanted = clustered_mean(rewards, [row.user_id for row in rows], 200, 0)
    assert found["value"] == pytest.approx(wanted.value, abs=1e-5)
    assert found["low"] == pytest.approx(wanted.low, abs=1e-5)
    users = sorted({row.user_id for row in rows})
    by_user = [np.mean([r for r, row in zip(rewards, rows, strict=True) if row.user_id == user]) for user in users]
    assert found["value"] == pytest.approx(np.mean(by_user), abs=1e-5)


def test_the_file_and_json_say_the_same(tuned: tuple[Path, Path, str]) -> None:
    path, folder, _ = tuned
    before = {name: (folder / name).read_bytes() for name in FILES}
    again = ok("tune", path, "-o", folder, "--weights", 32, 1, -1, 1, "--top-k", 12, "--json", *ONE)
    assert json.loads(again.stdout) == found_in(folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    rows = list(csv.DictReader((folder / "tune.csv").open(encoding="utf-8")))
    assert len(rows) == 4 * len(found_in(folder)["measures"])
    assert str(folder.parent) not in "".join(payload.decode() for payload in before.values())


class Forbidden(dict[str, Any]):
    """A mapping of adapt users that nobody may look into."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise AssertionError("an adapt user was asked about")

    __getitem__ = __iter__ = __contains__ = __len__ = keys = values = items = get = _refuse  # type: ignore[assignment]


def test_no_adapt_user_is_read(tuned: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits are there, as after a run; everything else is done again, with adapt users that raise when touched."""
    path, folder, _ = tuned
    before = found_in(folder)
    for marker in folder.glob("cells/*/DONE"):
        if json.loads((marker.parent / "cell.json").read_text(encoding="utf-8"))["kind"].startswith("tuning"):
            marker.unlink()
    real = tuning.dealt

    def guarded(*given: Any) -> StudyPairs:
        pairs = real(*given)
        return StudyPairs(pairs.train, pairs.valid, Forbidden(), Forbidden(), Forbidden(), pairs.dropped)

    bench = Workbench(load_study(path), folder, Silent())
    with pytest.raises(AssertionError, match="adapt user"):
        _ = guarded(bench, tuning.make_plan(bench)).query_pairs
    monkeypatch.setattr(tuning, "dealt", guarded)
    settings = TuningSettings(weights=(-1.0, 1.0, 32.0), top_k=12)
    with pytest.warns(UserWarning, match="below 0"):
        assert tune(load_study(path), settings, folder, Silent()) == before


def test_fits_are_shared_with_a_run(tmp_path: Path) -> None:
    few = {"train_users": 5, "valid_per_train_user": 1, "adapt_users": 2, "support": 2, "query": 1}
    data = {"name": "synthetic_text", "options": {"users": 8, "rows_per_user": 8}}
    path, folder = write_study(tmp_path, data=data, split=few), tmp_path / "out"
    arguments = ("tune", path, "-o", folder, "--weights", 1, *ONE)
    ok(*arguments)
    planned = json.loads(ok("run", path, "-o", folder, "--dry-run", "--json", *ONE).stdout)["cells"]
    assert [cell["kind"] for cell in planned if cell["done"]] == ["reward_model"] * 2
    ok("run", path, "-o", folder, *ONE)
    stamps = {marker: marker.stat().st_mtime_ns for marker in folder.glob("cells/*/DONE")}
    ok(*arguments)
    assert all(marker.stat().st_mtime_ns == stamp for marker, stamp in stamps.items())
    assert set(folder.glob("cells/*/DONE")) == set(stamps)


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


def test_killed_and_resumed_gives_the_same_files(
    tuned: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start is killed inside its seventh write, half of which reaches the disk, until one comes through."""
    path, folder, _ = tuned
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    out, arguments = tmp_path / "out", ("--weights", -1, 1, 32, "--top-k", 12, *ONE)
    real = cells.append_lines
    kills = 0
    while kills < 40:
        with monkeypatch.context() as patch:
            left = iter(range(6))

            def torn(file: Path, rows: Any, left: Iterator[int] = left) -> None:
                kept = list(rows)
                if next(left, None) is not None:
                    real(file, kept)
                    return
                with file.open("a", encoding="utf-8") as stream:
                    stream.write("".join(json.dumps(row) + "\n" for row in kept)[: 20 * len(kept)])
                raise Killed

            patch.setattr(cells, "append_lines", torn)
            try:
                with pytest.warns(UserWarning, match="below 0"):
                    tune(load_study(path), TuningSettings(weights=(-1.0, 1.0, 32.0), top_k=12), out, Silent())
            except Killed:
                kills += 1
                continue
        break
    assert 2 < kills < 40
    ok("tune", path, "-o", out, *arguments)
    for name in FILES:
        assert (out / name).read_bytes() == (folder / name).read_bytes()


def pairs_file(folder: Path) -> Path:
    """Pairs without references: some like light, some like paper."""
    words = ["river", "garden", "stone", "light", "music", "paper", "winter", "forest"]
    rows = []
    for user in range(6):
        for row in range(10):
            sides = [f"light {words[row % 8]}", f"paper {words[row % 8]}"]
            chosen, rejected = sides[user % 2], sides[1 - user % 2]
            prompt = f"{words[row % 8]} {words[(3 * row + user) % 8]} {words[row // 8]}"
            rows.append({"user_id": f"u{user}", "prompt": prompt, "chosen": chosen, "rejected": rejected})
    return write_rows(folder / "pairs.jsonl", rows)


def test_without_references_another_reward_model_chooses_and_without_one_nothing_does(tmp_path: Path) -> None:
    data = {"name": "jsonl", "options": {"path": str(pairs_file(tmp_path))}}
    split = {"train_users": 4, "valid_per_train_user": 2, "adapt_users": 2, "support": 3}
    few = {"data": data, "split": split}
    two = ok("tune", write_study(tmp_path, **few), "-o", tmp_path / "two", "--weights", 1, "--limit", 5, "--json", *ONE)
    found = json.loads(two.stdout)
    assert (found["criterion"], found["judge"], found["rows"]) == ("judge_reward", "global_bt", 5)
    assert "rouge1" not in found["measures"]
    assert "5 of 8 held-out rows, drawn." in found["notes"]
    alone = write_study(tmp_path, **few, reward_models=[{"method": "lore", "options": {"rank": 2}}])
    found = json.loads(ok("tune", alone, "-o", tmp_path / "one", "--weights", 1, "--json", *ONE).stdout)
    assert (found["chosen"], found["criterion"], found["line"]) == (None, None, None)
    assert "Nothing here can choose" in found["sentence"]


def test_what_cannot_be_tuned(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    given = ("tune", path, "-o", tmp_path / "out", *ONE)
    assert "Did you mean 'lore'" in refused(2, *given, "--reward-model", "lor")
    assert "praise itself" in refused(2, *given, "--judge", "lore")
    assert "no guidance weight to choose" in refused(2, *given, "--decoder", "greedy")
    assert "no option" not in refused(2, *given, "--decoder", "args_greed")
    assert "which of two texts is better" in refused(2, *given, "--metric", "length_ratio")
    assert "'rouge1'" in refused(2, *given, "--metric", "rouge11")
    assert "not a finite number" in refused(2, *given, "--weights", "nan")
    assert "no guidance weight but 0" in refused(2, *given, "--weights", "0")
    assert not (tmp_path / "out").exists(), "nothing is begun"
    judged = write_study(tmp_path, reward_models=[{"method": "icl_judge"}], deployments=[{"policy": "zero_shot"}])
    assert "no reward model that steers" in refused(2, "tune", judged, "-o", tmp_path / "out", *ONE)
    none_held = {"train_users": 16, "valid_per_train_user": 0, "adapt_users": 3, "support": 4}
    bare = write_study(tmp_path, split=none_held)
    assert "valid_per_train_user" in refused(3, "tune", bare, "-o", tmp_path / "out", *ONE)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_text(tmp_path / "mine" / "thesis.txt", "mine")
    assert "holds no study" in refused(2, "tune", write_study(tmp_path), "-o", tmp_path / "mine", *ONE)
    assert [child.name for child in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
