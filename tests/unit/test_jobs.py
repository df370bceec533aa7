"""Jobs: the order of one worker respects every need, any order that respects needs runs each cell once, in batches alike."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewardgap.studies.executors.base import RETRIES, Schedule
from rewardgap.studies.executors.line import Line
from rewardgap.studies.jobs import PHASES, STAGES
from rewardgap.studies.progress import Silent
from rewardgap.studies.running import Outcome
from rewardgap.studies.spec import StudySpec, parse_study

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rewardgap.studies.jobs import Job

METHODS = [{"method": "global_bt"}, {"method": "lore", "options": {"rank": 2}}, {"method": "pal_b"}]


def study(seed: int = 0, **changes: Any) -> StudySpec:
    return parse_study(
        {
            "name": "jobs",
            "seed": seed,
            "data": {"name": "synthetic_text", "options": {"users": 5, "rows_per_user": 7}},
            "split": {"train_users": 3, "valid_per_train_user": 1, "adapt_users": 2, "support": 3, "query": 4},
            "policy": "synthetic-words",
            "reward_models": METHODS,
            "deployments": [
                {"policy": "zero_shot"},
                {"policy": "icl", "num_demonstrations": 1},
                {"decoder": "args_greedy", "guidance_weight": [1, 5], "top_k": 3},
                {"decoder": "best_of_n", "options": {"n": [2, 4]}},
            ],
            "metrics": ["rouge1", "rougeL"],
            "controls": {"shuffled_labels": 2, "synthetic_text": True},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Three points: two that differ in the seed, and one that shares all but its deployments with the first."""
    other = study(
        deployments=[{"policy": "zero_shot"}, {"decoder": "args_greedy", "guidance_weight": [5, 7], "top_k": 3}]
    )
    return Line([study(), study(1), other], tmp_path_factory.mktemp("line"), Silent())


def emptied(line: Line) -> Line:
    line.failures, line.notes, line.computed = [[] for _ in line.studies], [[] for _ in line.studies], {}
    return line


def test_every_kind_of_cell_has_a_stage_and_every_job_a_phase(made: Line) -> None:
    kinds = {cell.kind for plan in made.plans for cell in plan.cells()}
    assert kinds >= {"reward_model", "prefixes", "deployment", "behaviour", "judgement", "shuffled", "synthetic_swap"}
    assert kinds <= set(STAGES)
    assert {job.kind for job in made.jobs.values()} <= set(PHASES)


def test_each_cell_is_in_one_job_and_after_what_it_needs(made: Line) -> None:
    place = {step.cell.id: number for number, job in enumerate(made.jobs.values()) for step in job.steps}
    steps = [step.cell.id for job in made.jobs.values() for step in job.steps]
    assert len(steps) == len(set(steps))
    assert set(steps) == {cell.id for plan in made.plans for cell in plan.cells()}
    seen: set[str] = set()
    for job in made.jobs.values():
        assert set(job.needs) <= seen, job.key
        seen.add(job.key)
    behind = {key: reach(made, key) for key in made.jobs}
    owner = {step.cell.id: job.key for job in made.jobs.values() for step in job.steps}
    for job in made.jobs.values():
        for step in job.steps:
            for need in step.cell.needs:
                assert place[need.id] <= place[step.cell.id]
                assert owner[need.id] == job.key or owner[need.id] in behind[job.key], (job.key, need.title)


def reach(line: Line, key: str) -> set[str]:
    """All that a job waits for, the obvious way."""
    out: set[str] = set()
    for need in line.jobs[key].needs:
        out |= {need} | reach(line, need)
    return out


def test_what_fills_a_cache_has_one_order(made: Line) -> None:
    """Encodings follow each other over all points; what deployments share is computed by the first of them."""
    encoders = [job.key for job in made.jobs.values() if job.encodes]
    assert [key.split("-")[1] for key in encoders] == ["encode_pairs"] * 3 + ["encode_written"] * 3
    for before, after in itertools.pairwise(encoders):
        assert before in reach(made, after)
    written = [job for job in made.jobs.values() if job.kind == "deployment" and job.point == 0]
    guided = [job for job in written if "args_greedy" in job.title]
    assert all(written[0].key in job.needs for job in guided)
    assert all(guided[0].key in job.needs for job in guided[1:])
    pools = [job for job in written if "best_of_n" in job.title]
    small, large = ([job for job in pools if f"n={n}" in job.title] for n in (2, 4))
    assert small[0].key in reach(made, large[0].key)
    for group in (small, large):
        assert all(group[0].key in reach(made, job.key) for job in group[1:])


@given(seed=st.integers(0, 10**6), workers=st.integers(1, 6), losses=st.floats(0, 0.4))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_workers_in_any_order_runs_each_job_once(
    seed: int, workers: int, losses: float, made: Line
) -> None:
    """Workers end in a random order, and are lost at random: a job is over once, after its needs, or given up."""
    draw = np.random.default_rng(seed)
    line = emptied(made)
    schedule = Schedule(line)
    running: list[Job] = []
    over: list[str] = []
    tries: dict[str, int] = {}
    while not schedule.is_over:
        while len(running) < workers and (job := schedule.take(draw.choice(["synthetic-words", "metrics"], 1))):
            assert set(job.needs) & set(schedule._place) <= set(over)
            tries[job.key] = tries.get(job.key, 0) + 1
            running.append(job)
        assert running, "nothing runs, and something is left"
        job = running.pop(int(draw.integers(len(running))))
        if draw.random() < losses:
            said = schedule.lost(job, "was killed by SIGKILL")
            if tries[job.key] <= RETRIES:
                assert "trying it again" in said
                continue
            assert "memory ran out" in said
        else:
            schedule.done(job, Outcome(computed=[step.cell.id for step in job.steps]))
        over.append(job.key)
    assert sorted(over) == sorted(job.key for job in line.left())
    assert max(tries.values()) <= RETRIES + 1
    lost = {failure["cell"] for failures in line.failures for failure in failures}
    assert lost | set(line.computed) == {step.cell.id for job in line.jobs.values() for step in job.steps}
    assert not lost & set(line.computed)


def test_one_worker_goes_through_the_phases(made: Line) -> None:
    schedule = Schedule(emptied(made), alone=True)
    kinds = []
    while (job := schedule.take()) is not None:
        kinds.append(job.kind)
        schedule.done(job, Outcome())
    assert kinds == sorted(kinds, key=PHASES.index)
    assert "encode_pairs" not in kinds


def test_a_worker_is_given_what_it_has_in_memory(made: Line) -> None:
    schedule = Schedule(emptied(made))
    while (job := schedule.take()) is not None and job.kind in ("check", "encode_pairs"):
        schedule.done(job, Outcome())
    swap = schedule.take({"synthetic"})
    assert swap is not None
    assert swap.kind == "synthetic_swap"


def test_jobs_whose_cells_are_done_are_left_out(made: Line, tmp_path: Path) -> None:
    """Of a finished point nothing is left; a lost judgement takes the encoding with it, and nothing else."""
    line = Line(made.studies[:1], tmp_path, Silent(), made.shelf.fingerprints)
    cells = line.plans[0].cells()

    def finish(missing: Sequence[str]) -> None:
        for cell in cells:
            folder = line.benches[0].folder(cell)
            if cell.id not in missing and not folder.done:
                folder.start()
                folder.finish()
            if cell.id in missing:
                folder.clear()

    finish([])
    assert line.left() == []
    judged = next(iter(line.plans[0].judgements.values()))
    finish([judged.id])
    assert [job.kind for job in line.left()] == ["check", "encode_written", "judgement"]


def test_points_without_a_common_model_follow_each_other(made: Line) -> None:
    """With a model in common their phases go side by side; without, one point is through before the next begins."""
    from rewardgap.studies.jobs import line

    plans = made.plans
    apart = [made.studies[0], made.studies[1].model_copy(update={"policy": "another"})]
    order = [job.point for job in line(list(zip(apart, plans, strict=False)))]
    assert order == sorted(order)
    side = [job.point for job in line(list(zip(made.studies[:2], plans, strict=False)))]
    assert side != sorted(side)
    joined = [*apart, made.studies[0].model_copy(update={"reward_models": [
        made.studies[0].reward_models[0].model_copy(update={"backbone": "another"})]})]  # fmt: skip
    kinds = [job.kind for job in line(list(zip(joined, plans, strict=True)))]
    assert kinds == sorted(kinds, key=PHASES.index), "the third reads both models"
