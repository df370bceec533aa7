"""What a study will take: counts of tokens against those that a run records, and the time of several workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rewardgap.studies import estimate
from rewardgap.studies.estimate import A_STEP, OVERHEAD, READING, WRITING, Cost, Estimate, probe, wall_seconds
from rewardgap.studies.executors.line import Line
from rewardgap.studies.progress import Silent
from several import run, study

if TYPE_CHECKING:
    from pathlib import Path


def test_the_constants_are_those_of_the_benchmarks() -> None:
    """The files that the constants name, at the rate that two threads of that machine had: 374 GFLOP/s."""
    import json
    from pathlib import Path

    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    weights, rate = 134_515_008, 374e9
    token = 2 * weights / rate
    pair = json.loads((folder / "score.json").read_text())["milliseconds"]["pair packed"] / 1000
    assert pair / (260 * token) == pytest.approx(READING, rel=0.03)
    ways = {name: way["milliseconds_a_token"] / 1000 for name, way in
            json.loads((folder / "decode.json").read_text())["ways"].items()}  # fmt: skip
    slope = (ways["guided k=10, batch of 8"] - ways["guided k=10, shared backbone"]) / (88 - 11)
    assert slope / token == pytest.approx(WRITING, rel=0.05)
    for name, tokens in (("greedy", 1), ("guided k=10, shared backbone", 11), ("guided k=10, batch of 8", 88)):
        assert ways[name] == pytest.approx(token * WRITING * (tokens + A_STEP), rel=0.1)


def test_tokens_of_a_deployment_are_those_that_it_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts that are written to the full length, the estimate counts what the run counts; an end comes earlier."""
    finished = run(tmp_path / "run", monkeypatch, generation={"max_new_tokens": 4, "min_new_tokens": 4})
    bench, plan = finished.bench, finished.plan
    rate = 2.0 * bench.policy.num_weights
    monkeypatch.setattr(estimate, "READING", 1.0)
    monkeypatch.setattr(estimate, "WRITING", 1.0)
    monkeypatch.setattr(estimate, "A_STEP", 0.0)
    costs = Estimate(bench, plan, rate).costs
    _, cell, _ = plan.written[0]
    records = bench.folder(cell).records()
    encoder = bench.policy.encoder
    query = [item for items in bench.study_pairs().query.values() for item in items]
    scored = sum(
        len(encoder.encode_prompt(item.prompt))
        + len(encoder.encode_completion(item.pair.chosen, after=item.prompt))
        + len(encoder.encode_completion(item.pair.rejected, after=item.prompt))
        for item in query if item.pair is not None
    )  # fmt: skip
    written = sum(record["network_tokens"] for record in records)
    assert costs[cell.id].seconds - OVERHEAD == pytest.approx(written + scored, rel=0.3)


def test_several_workers_take_what_a_schedule_by_hand_takes(tmp_path: Path) -> None:
    """With a second for each cell: one worker takes their sum, and ever more workers no less than the longest chain."""
    line = Line([study()], tmp_path, Silent())
    cells = line.plans[0].cells()
    costs = {cell.id: Cost(1.0, 0) for cell in cells}
    assert wall_seconds(line, costs, 1) == len(cells)
    times = [wall_seconds(line, costs, workers) for workers in (1, 2, 3, 99)]
    assert times == sorted(times, reverse=True)

    def chain(key: str) -> float:
        job = line.jobs[key]
        return len(job.steps) + max((chain(need) for need in job.needs), default=0)

    assert times[-1] == max(map(chain, line.jobs))
    assert times[1] >= len(cells) / 2


def test_the_probe_finds_a_rate_of_matrix_products() -> None:
    assert 1e8 < probe() < 1e15
