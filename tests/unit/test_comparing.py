"""Two runs side by side: the differences are those of the common users, and gates neither miss nor invent one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from rewardgap.cli.app import app
from rewardgap.core.errors import ConfigError, DataError, UnknownNameError
from rewardgap.core.results import ResultRow
from rewardgap.stats import compare_deployments
from rewardgap.studies.comparing import Gate, compare_runs
from rewardgap.studies.user_means import FILE_NAME, UserMeans

if TYPE_CHECKING:
    from pathlib import Path

ROW = ResultRow(
    dataset="titles", policy="small", support_size=4, users="unseen", seed=0, stage="behaviour", metric="rouge1",
    method="lore", decoder="args_greedy", guidance_weight=0.5, top_k=10, value=None, n_users=0, n_examples=0,
)  # fmt: skip
PLAIN = replace(ROW, method="zero_shot", decoder=None, guidance_weight=None, top_k=None)
USERS = [f"u{number:02d}" for number in range(20)]


def run(folder: Path, lines: dict[ResultRow, dict[str, list[float]]], **settings: Any) -> Path:
    means = UserMeans()
    for row, values in lines.items():
        flat = [(user, value) for user, owned in values.items() for value in owned]
        means.add(row, [value for _, value in flat], [user for user, _ in flat])
    folder.mkdir()
    means.write(folder / FILE_NAME)
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "titles", "split": {"support": 4}, **settings}))
    (folder / "env.json").write_text(json.dumps({"torch": "2.13.0"}))
    return folder


def drawn(shift: float = 0.0, users: list[str] = USERS, seed: int = 0) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {user: (rng.normal(0.3, 0.05, 3) + shift).tolist() for user in users}


def test_means_come_back_as_they_were_written(tmp_path: Path) -> None:
    means = UserMeans()
    means.add(ROW, [1.0, 2.0, np.nan, 4.0], ["b", "a", "b", "b"])
    means.add(PLAIN, [np.nan], ["a"])
    assert means.lines[ROW.key()] == (["a", "b"], [2.0, 2.5], [1, 2])
    means.write(tmp_path / FILE_NAME)
    assert UserMeans.read(tmp_path / FILE_NAME).lines == {ROW.key(): (["a", "b"], [2.0, 2.5], [1, 2])}


def test_a_difference_is_that_of_the_users_both_have(tmp_path: Path) -> None:
    first = drawn()
    second = {**drawn(0.1, USERS[4:], seed=1), "new": [9.0]}
    found = compare_runs(run(tmp_path / "a", {ROW: first}), run(tmp_path / "b", {ROW: second}))
    (line,) = found.lines
    common = USERS[4:]
    by_hand = np.array([[np.mean(rows[user]) for user in common] for rows in (second, first)])
    (paired,) = compare_deployments(by_hand, ["b", "a"])
    assert (line.difference, line.low, line.high) == (paired.difference, paired.low, paired.high)
    assert line.difference == pytest.approx(by_hand[0].mean() - by_hand[1].mean())
    assert (line.n_users, line.n_only_a, line.n_only_b) == (16, 4, 1)
    assert line.label == "lore · args_greedy λ=0.5 k=10"
    assert (found.settings, found.versions, found.ignored) == ((), (), ())


def test_what_differs_as_a_whole_tells_no_lines_apart(tmp_path: Path) -> None:
    one = run(tmp_path / "a", {ROW: drawn(), PLAIN: drawn()}, policy="small", seed=0)
    other = {replace(row, policy="large", seed=3): drawn(0.2) for row in (ROW, PLAIN)}
    found = compare_runs(one, run(tmp_path / "b", other, policy="large", seed=3))
    assert found.ignored == ("policy", "seed")
    assert [line.difference for line in found.lines] == pytest.approx([0.2, 0.2])
    assert found.settings == (("policy", "small", "large"), ("seed", 0, 3))
    # With a line of another weight in one run only, weights are what tells lines apart.
    weights = {replace(ROW, guidance_weight=weight): drawn() for weight in (0.5, 2.0)}
    found = compare_runs(one, run(tmp_path / "c", weights))
    assert [line.label for line in found.lines] == ["lore · args_greedy λ=0.5 k=10"]
    assert found.only_a == ("behaviour rouge1 zero_shot",)
    assert found.only_b == ("behaviour rouge1 lore · args_greedy λ=2 k=10",)


def test_p_is_corrected_over_the_lines_of_one_metric(tmp_path: Path) -> None:
    shifts = (0.0, 0.01, 0.02)
    rows = [replace(ROW, guidance_weight=float(number)) for number in range(3)]
    other = replace(ROW, metric="rougeL")
    a = {**{row: drawn() for row in rows}, other: drawn()}
    b = {**{row: drawn(shift, seed=1) for row, shift in zip(rows, shifts, strict=True)}, other: drawn(0.01, seed=1)}
    found = compare_runs(run(tmp_path / "a", a), run(tmp_path / "b", b))
    lines = sorted((line for line in found.lines if line.metric == "rouge1"), key=lambda line: line.p_value or 0)
    assert lines[0].p_holm == pytest.approx(min(1, 3 * lines[0].p_value))
    (alone,) = (line for line in found.lines if line.metric == "rougeL")
    assert alone.p_holm == alone.p_value


@pytest.mark.parametrize(
    ("shift", "condition", "fails"),
    [
        (-0.2, "rouge1.high < 0", True),
        (-0.2, "rouge1.low < -0.01", True),
        (0.2, "rouge1.low < -0.01", False),
        (0.2, "rouge1 <= 0", False),
        (0.0, "rouge1.high < 0", False),
        (0.2, "rouge1.difference > 1e-1", True),
    ],
)
def test_a_gate_reads_the_difference(tmp_path: Path, shift: float, condition: str, fails: bool) -> None:
    a, b = run(tmp_path / "a", {ROW: drawn()}), run(tmp_path / "b", {ROW: drawn(shift)})
    assert bool(Gate.parse(condition).failures(compare_runs(a, b))) == fails
    done = CliRunner().invoke(app, ["compare", str(a), str(b), "--fail-if", condition])
    assert done.exit_code == (6 if fails else 0), done.output
    assert not fails or "lore · args_greedy λ=0.5 k=10" in done.output
    as_json = CliRunner().invoke(app, ["compare", str(a), str(b), "--fail-if", condition, "--json"])
    assert bool(json.loads(as_json.stdout)["failed"]) == fails
    assert as_json.exit_code == done.exit_code


def test_a_gate_that_cannot_be_decided_fails(tmp_path: Path) -> None:
    a = run(tmp_path / "a", {ROW: {"u1": [0.1]}})
    found = compare_runs(a, run(tmp_path / "b", {ROW: {"u2": [0.9]}}))
    (sentence,) = Gate.parse("rouge1 < 0").failures(found)
    assert "not known (no user has a value in both runs)" in sentence
    found = compare_runs(a, run(tmp_path / "c", {ROW: {"u1": [0.9]}}))
    assert not Gate.parse("rouge1 < 0").failures(found)
    assert Gate.parse("rouge1.low < 0").failures(found)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    a = run(tmp_path / "a", {ROW: drawn()})
    with pytest.raises(ConfigError, match="is no condition"):
        Gate.parse("rouge1 is bad")
    with pytest.raises(UnknownNameError, match="Did you mean 'rouge1'"):
        Gate.parse("rouge < 0").failures(compare_runs(a, a))
    with pytest.raises(UnknownNameError, match="unknown metric 'rouge'"):
        compare_runs(a, a, metrics=["rouge"])
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(app, ["compare", str(a), str(tmp_path / "empty")])
    assert done.exit_code == 4
    assert "holds no user_means.parquet; run the study there again" in done.output
    (a / FILE_NAME).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="cannot be read as means of users"):
        compare_runs(a, a)
