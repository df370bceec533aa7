"""Times and weighs the report of a large study: made-up records, added up and written as results and page.

OMP_NUM_THREADS=1 python benchmarks/report_size.py [--users 200] [--query 20] [--folder FOLDER]

The default makes one million records: 20 deployments and 8 reward models over 4,000 prompts. They are made first, in
cells like those of a run; only what comes after is timed, in a process of its own. Writes
benchmarks/results/report_size.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.core.store import write_json
from rewardgap.metrics.policy_accuracy import VARIANT_NAMES
from rewardgap.studies.aggregate import aggregate
from rewardgap.studies.environment import environment
from rewardgap.studies.plan import make_plan
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import Finished
from rewardgap.studies.running import dealt
from rewardgap.studies.spec import parse_study
from rewardgap.studies.workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rewardgap.studies.cells import Cell
    from rewardgap.studies.deployments import Deployment

RESULT = Path(__file__).parent / "results" / "report_size.json"
MODELS = ("global_bt", "lore", "pref", "mpu", "pal_a", "pal_b", "vpl")
WORDS = [f"word{number}" for number in range(400)]


def study_of(users: int, query: int) -> dict[str, Any]:
    return {
        "name": "report_size",
        "data": {"name": "synthetic_text", "options": {"users": users + 10, "rows_per_user": query + 6}},
        "split": {
            "train_users": 10,
            "valid_per_train_user": 4,
            "adapt_users": users,
            "support": 4,
            "query": query,
        },
        "policy": "synthetic-words",
        "generation": {"max_new_tokens": 4},
        "reward_models": [
            *({"method": name} for name in MODELS),
            {"method": "lore", "label": "lore 8", "options": {"rank": 8}},
        ],
        "deployments": [
            {"policy": "zero_shot"},
            {"policy": "icl", "num_demonstrations": 2},
            {"policy": "icl_rag", "num_demonstrations": [2, 4]},
            {"decoder": "args_greedy", "guidance_weight": [0.5, 2.0]},
        ],
        "metrics": ["rouge1", "rougeL", "bertscore_f1"],
        "controls": {"shuffled_labels": 0, "synthetic_text": False},
    }


def opened(users: int, query: int, folder: Path) -> Finished:
    bench = Workbench(parse_study(study_of(users, query)), folder, Silent())
    plan = make_plan(bench)
    bench.pairs = dealt(bench, plan)
    return Finished(bench, plan, [], 0)


def fill(finished: Finished) -> int:
    """Write the cells, and return how many records they hold."""
    bench, plan = finished.bench, finished.plan
    rng = np.random.default_rng(0)
    items = [item for items in bench.study_pairs().query.values() for item in items]
    count = 0

    def keep(cell: Cell, records: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        nonlocal count
        folder = bench.folder(cell)
        folder.start()
        folder.append(records)
        folder.finish({"facts": facts})
        count += len(records)

    def values(center: float, spread: float) -> Iterator[dict[str, Any]]:
        user = {item.user_id: rng.normal(0, spread) for item in items}
        for item, own in zip(items, rng.normal(0, spread, len(items)), strict=True):
            value = center + user[item.user_id] + float(own)
            yield {"user_id": item.user_id, "example_id": item.example_id, "value": value}

    strength = dict(zip((spec.name for spec, _ in plan.rewards), np.linspace(0.02, 0.4, 8), strict=True))
    for spec, cell in plan.rewards:
        rows = []
        for part, level in (("seen", 0.3), ("unseen", 0.0), ("other_state", -0.1)):
            pairs = bench.study_pairs().valid if part == "seen" else bench.study_pairs().query_pairs
            margins = rng.normal(strength[spec.name] + level, 1, len(pairs)).tolist()
            rows += [
                {"part": part, "user_id": pair.user_id, "example_id": pair.example_id, "margin": margin}
                for pair, margin in zip(pairs, margins, strict=True)
            ]
        keep(cell, rows, {"seconds_fit": 1.0, "seconds_adapt_per_user": 0.1, "missing_seen": 0})
    for deployment, cell, _ in plan.written:
        gain = 0.02 * len(deployment.name) % 0.03
        if deployment.reward_model is not None:
            gain = 0.1 * strength[deployment.reward_model.name] * (deployment.guidance_weight or 0.0)
        rows = [
            {"user_id": item.user_id, "example_id": item.example_id, **_written(deployment, rng, gain)}
            for item in items
        ]
        keep(cell, rows, {"first_prompt": "Write."})
        for (owner, _), scored in plan.behaviour.items():
            if owner == cell.id:
                keep(scored, list(values(0.25 + gain, 0.1)), {})
        for index, (spec, _) in enumerate(plan.rewards):
            own = deployment.reward_model is not None and deployment.reward_model.name == spec.name
            keep(plan.judgements[cell.id, index], list(values(1.0 if own else 0.2, 1.0)), {})
    write_json(bench.root / "env.json", environment())
    return count


def _written(deployment: Deployment, rng: np.random.Generator, gain: float) -> dict[str, Any]:
    scores = {
        f"{side}_{name}": float(rng.normal(gain if side == "chosen" else 0.0))
        for side in ("chosen", "rejected")
        for name in VARIANT_NAMES
    }
    return {
        "completion": " ".join(rng.choice(WORDS, 24)),
        "ended": True,
        "new_tokens": 24,
        "demonstrations": deployment.shots or 0,
        "demonstrations_dropped": 0,
        "guidance_ratio": 0.5,
        "changed": 0.3,
        "near_ties": 0,
        "guide_passes": 24,
        "pruned": 0,
        "seconds": float(rng.uniform(0.5, 1.0)),
        "forwards": 24.0,
        "network_tokens": 300.0,
        "coverage_chosen": 0.9,
        "coverage_rejected": 0.8,
        **scores,
    }


def report(users: int, query: int, folder: Path) -> dict[str, float]:
    """Add the study up and write its report; seconds of each part, and the most memory the process ever held."""
    from rewardgap.report import page, tables
    from rewardgap.report.signatures import failure_signatures

    finished = opened(users, query, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, worked = time.perf_counter(), time.process_time()
    results = aggregate(finished, "benchmark")
    added = time.perf_counter()
    failure_signatures(results)
    write_json(folder / "results.json", results.to_json())
    tables.write_csv(results, folder / "results.csv")
    page.write(results, folder / "report.html")
    return {
        "seconds_aggregate": added - begin,
        "seconds_page": time.perf_counter() - added,
        "seconds_of_processor": time.process_time() - worked,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "gigabytes_before": before / 2**20,
        "page_megabytes": (folder / "report.html").stat().st_size / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--query", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="keep the records here, and use those that are there")
    parser.add_argument("--report", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.report:
        print(json.dumps(report(given.users, given.query, given.folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        counted = folder / "count.json"
        if not counted.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(counted, fill(opened(given.users, given.query, folder)))
        command = [sys.executable, __file__, "--report", "--users", str(given.users), "--query", str(given.query)]
        said = subprocess.run([*command, "--folder", str(folder)], check=True, capture_output=True, text=True).stdout
        found = {"records": json.loads(counted.read_text()), **json.loads(said.splitlines()[-1])}
    write_json(RESULT, found | {"environment": environment()})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
