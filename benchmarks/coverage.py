"""How often intervals hold the truth, on simulated worlds: benchmarks/results/coverage.json, and the tables of
docs/statistics.md between their markers; a test holds that the page is theirs.

OMP_NUM_THREADS=1 python benchmarks/coverage.py     finishes what is missing, cell by cell, then writes the page
python benchmarks/coverage.py --page                writes the page alone

About ten minutes of one quiet core; what is finished stays finished when it is stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy.special import ndtr, ndtri

from rewardgap import stats
from rewardgap.core.seeds import child_seed
from rewardgap.stats.kendall import kendall_tau_rows
from rewardgap.stats.matrix import user_counts

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
PAGE = ROOT / "docs" / "statistics.md"
MARKS = {name: (f"<!-- table of {name} -->", f"<!-- end of {name} -->") for name in ("tau", "others", "paired")}

NUM_USERS = 60
METHODS = {6: 150, 9: 100, 32: 60}
"""Worlds a cell; 32 methods cost ten times as much."""
RELIABILITIES = (0.5, 0.7, 0.85, 0.95)
CORRELATIONS = (0.0, 0.5, 0.9, 1.0)
RESAMPLES, DRAWS = 500, 2000
PAIRED_WORLDS, PAIRED_RESAMPLES = 1000, 1000
PAIRED_USERS = (20, 60, 200)
KINDS = ("normal", "skewed", "hits")
TAIL = (0.025, 0.975)
TOUCH = 1e-9


@dataclass(frozen=True)
class World:
    """True scores of M methods at two stages, and what U users measured: (M,), (M,), (M, U), (M, U)."""

    true_x: np.ndarray
    true_y: np.ndarray
    x: np.ndarray
    y: np.ndarray


def world(num_methods: int, reliability: float, correlation: float, shape: str, rng: np.random.Generator) -> World:
    """Draw one. Errors are alike within three families of methods, related between stages and of unequal size."""
    if shape == "normal":
        first, own = rng.standard_normal((2, num_methods))
    else:
        first, own = rng.standard_t(3, (2, num_methods)) / np.sqrt(3)
    true = first, correlation * first + np.sqrt(1 - correlation**2) * own
    everybody = rng.standard_normal((2, 1, NUM_USERS))
    family = rng.standard_normal((2, 3, NUM_USERS))[:, rng.integers(0, 3, num_methods)]
    noise = rng.standard_normal((2, num_methods, NUM_USERS))
    noise[1] = 0.3 * noise[0] + np.sqrt(1 - 0.3**2) * noise[1]
    size = np.sqrt((1 - reliability) / reliability * NUM_USERS) * rng.uniform(0.7, 1.3, (1, num_methods, 1))
    noise = everybody + size * np.sqrt(0.5) * (family + noise)
    return World(*true, true[0][:, None] + noise[0], true[1][:, None] + noise[1])


def means(w: World, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return counts @ w.x.T / NUM_USERS, counts @ w.y.T / NUM_USERS


def tau_intervals(w: World, reliabilities: tuple[float, float], seed: int) -> dict[str, tuple[float, float]]:
    """Return the interval of tau by every way that was tried."""
    rng = np.random.default_rng(child_seed(seed, "intervals"))
    resampled = kendall_tau_rows(*means(w, user_counts(NUM_USERS, RESAMPLES, rng)))
    measured = stats.kendall_tau(w.x.mean(axis=1), w.y.mean(axis=1))
    below = np.mean(resampled < measured - TOUCH) + 0.5 * np.mean(np.abs(resampled - measured) <= TOUCH)
    shift = 2 * ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    posterior = stats.true_scores([w.x, w.y], DRAWS, seed)
    taus = kendall_tau_rows(posterior.draws[:, 0], posterior.draws[:, 1])
    return {
        "naive": quantiles(resampled),
        "bias_corrected": quantiles(resampled, tuple(ndtr(shift + ndtri(np.array(TAIL))))),
        "disattenuated": quantiles(disattenuated(resampled, reliabilities)),
        "simex": simex(w, measured, rng),
        "corrected": quantiles(taus),
        "population": quantiles(posterior.population_tau),
    }


def quantiles(draws: np.ndarray, tail: tuple[float, ...] = TAIL) -> tuple[float, float]:
    low, high = np.quantile(draws, tail)
    return float(low), float(high)


def disattenuated(taus: np.ndarray, reliabilities: tuple[float, float]) -> np.ndarray:
    """Divide by the root of both reliabilities, as correlations sin(πτ/2); without reliability anything is possible."""
    if min(reliabilities) <= 0:
        return np.array([-1.0, 1.0])
    stretched = np.sin(np.pi * taus / 2) / np.sqrt(np.prod(reliabilities))
    return 2 / np.pi * np.arcsin(np.clip(stretched, -1, 1))


def simex(
    w: World, measured: float, rng: np.random.Generator, boots: int = 60, repeats: int = 10
) -> tuple[float, float]:
    """Add noise of 0.5, 1, 1.5 and 2 times the measured variance and follow a parabola back to none; over resamples."""
    both = np.concatenate([w.x, w.y])
    root = np.linalg.cholesky(np.cov(both) / NUM_USERS + 1e-9 * np.eye(len(both)))
    levels = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    back = np.polyfit(levels, np.eye(5), 2).T @ np.array([1.0, -1.0, 1.0])
    centers = np.concatenate([both.mean(axis=1)[None], user_counts(NUM_USERS, boots, rng) @ both.T / NUM_USERS])
    half = len(w.x)
    curve = np.empty((len(levels), len(centers)))
    for index, level in enumerate(levels):
        times = repeats if level else 1
        added = np.sqrt(level) * rng.standard_normal((times, *centers.shape)) @ root.T
        noisy = (centers + added).reshape(-1, 2 * half)
        curve[index] = kendall_tau_rows(noisy[:, :half], noisy[:, half:]).reshape(times, -1).mean(axis=0)
    found = back @ curve
    low, high = np.quantile(found[1:] - found[1:].mean(), TAIL)
    return float(max(-1, found[0] + low)), float(min(1, found[0] + high))


def regret_intervals(w: World, seed: int) -> tuple[float, dict[str, tuple[float, float]]]:
    """Return the true regret of what stage x chose, and two intervals of it."""
    chosen = int(np.argmax(w.x.mean(axis=1)))
    rng = np.random.default_rng(child_seed(seed, "regret"))
    _, resampled = means(w, user_counts(NUM_USERS, RESAMPLES, rng))
    found = stats.selection_regret(w.x, w.y, [f"m{i}" for i in range(len(w.x))], DRAWS, seed)
    corrected = (float(found.low or 0.0), float(found.high or 0.0))
    return float(w.true_y.max() - w.true_y[chosen]), {
        "regret_naive": quantiles(resampled.max(axis=1) - resampled[:, chosen]),
        "regret": corrected,
    }


def tau_cell(num_methods: int, reliability: float, correlation: float, shape: str, worlds: int) -> dict[str, Any]:
    """Return coverage in percent and mean width of every interval, over worlds and over those identified."""
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    identified = []
    for index in range(worlds):
        seed = child_seed(0, "coverage", num_methods, str(reliability), str(correlation), shape, index)
        w = world(num_methods, reliability, correlation, shape, np.random.default_rng(seed))
        found = [stats.split_half_reliability(side, 100, seed) for side in (w.x, w.y)]
        identified.append(stats.not_identified(num_methods, *found) is None)
        values = (found[0].value or 0.0, found[1].value or 0.0)
        truth = dict.fromkeys(
            ("naive", "bias_corrected", "disattenuated", "simex", "corrected"), stats.kendall_tau(w.true_x, w.true_y)
        )
        truth["population"] = 2 / np.pi * np.arcsin(correlation)
        intervals = tau_intervals(w, values, seed)
        truth["regret"], more = regret_intervals(w, seed)
        truth["regret_naive"] = truth["regret"]
        for way, (low, high) in (intervals | more).items():
            held.setdefault(way, []).append(bool(low - TOUCH <= truth[way] <= high + TOUCH))
            widths.setdefault(way, []).append(high - low)
    kept = np.array(identified)
    return {
        "methods": num_methods,
        "reliability": reliability,
        "correlation": correlation,
        "shape": shape,
        "worlds": worlds,
        "identified": int(kept.sum()),
        "covered": {way: int(np.sum(hits)) for way, hits in held.items()},
        "covered_identified": {way: int(np.sum(np.array(hits)[kept])) for way, hits in held.items()},
        "width": {way: round(float(np.mean(each)), 4) for way, each in widths.items()},
    }


def paired_cell(kind: str, num_users: int, worlds: int) -> dict[str, Any]:
    """Return how often intervals of a paired difference hold it: whole users, and users with their examples."""
    held = {"whole_users": 0, "users_and_examples": 0}
    for index in range(worlds):
        seed = child_seed(0, "paired", kind, num_users, index)
        rng = np.random.default_rng(seed)
        sizes = rng.integers(3, 13, num_users)
        users = np.repeat([f"u{i}" for i in range(num_users)], sizes)
        if kind == "hits":
            # P(hit) of a user is 0.55 to 0.75 under a and 0.05 lower under b.
            chance = np.repeat(rng.uniform(0.55, 0.75, num_users), sizes)
            a, b = (
                (rng.random(len(users)) < chance).astype(float),
                (rng.random(len(users)) < chance - 0.05).astype(float),
            )
            truth = 0.05
        else:
            effect = rng.standard_normal(num_users) if kind == "normal" else rng.exponential(1.0, num_users) - 1
            a = 0.2 + np.repeat(effect, sizes) + rng.standard_normal(len(users))
            b, truth = rng.standard_normal(len(users)), 0.2
        matrix = stats.user_matrix(["a"] * len(users) + ["b"] * len(users), [*users, *users], [*a, *b])
        (whole,) = stats.compare_deployments(matrix.values, matrix.methods, resamples=PAIRED_RESAMPLES, seed=seed)
        both = stats.paired_difference(a, b, users, PAIRED_RESAMPLES, seed)
        for way, found in (("whole_users", whole), ("users_and_examples", both)):
            held[way] += bool(found.low is not None and found.high is not None and found.low <= truth <= found.high)
    return {"kind": kind, "users": num_users, "worlds": worlds, "covered": held}


def plan() -> list[tuple[str, tuple[Any, ...]]]:
    """Return every cell: its kind and its arguments."""
    cells: list[tuple[str, tuple[Any, ...]]] = [
        ("paired", (kind, users, PAIRED_WORLDS)) for kind, users in product(KINDS, PAIRED_USERS)
    ]
    for methods, worlds in METHODS.items():
        cells += [
            ("tau", (methods, reliability, correlation, "normal", worlds))
            for reliability, correlation in product(RELIABILITIES, CORRELATIONS)
        ]
    cells += [("tau", (9, 0.85, correlation, "t3", METHODS[9])) for correlation in CORRELATIONS]
    return cells


def run() -> None:
    """Finish what is missing; a cell is written as soon as it is done."""
    cells = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"] if RESULTS.exists() else {}
    for kind, arguments in plan():
        key = "/".join([kind, *map(str, arguments)])
        if key in cells:
            continue
        cells[key] = paired_cell(*arguments) if kind == "paired" else tau_cell(*arguments)
        environment = {"numpy": np.__version__, "scipy": scipy.__version__, "python": platform.python_version()}
        sizes = {"users": NUM_USERS, "resamples": RESAMPLES, "draws": DRAWS}
        found = {"environment": environment, "sizes": sizes, "cells": cells}
        fresh = RESULTS.with_suffix(".tmp")
        fresh.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        fresh.replace(RESULTS)
        print(key, flush=True)


def percent(cells: list[dict[str, Any]], way: str, of: str = "covered") -> str:
    """Return the lowest and highest coverage of some cells; their worlds, or those identified, are the base."""
    base = "worlds" if of == "covered" else "identified"
    shares = [100 * cell[of][way] / cell[base] for cell in cells if cell[base]]
    ends = dict.fromkeys(f"{share:.0f}" for share in (min(shares), max(shares))) if shares else {"–": None}
    return " to ".join(ends)


def tau_table(cells: list[dict[str, Any]]) -> str:
    heads = " | ".join(f"true correlation {correlation:g}" for correlation in CORRELATIONS)
    lines = [
        f"| methods | reliability | {heads} | width, corrected | identified, % | corrected, of those identified |",
        f"| ---: | ---: | {'---: | ' * len(CORRELATIONS)}---: | ---: | ---: |",
    ]
    for methods, reliability in product(METHODS, RELIABILITIES):
        row = [c for c in cells if (c["methods"], c["reliability"], c["shape"]) == (methods, reliability, "normal")]
        if len(row) < len(CORRELATIONS):
            continue
        shown = " | ".join(f"{percent([cell], 'naive')} → **{percent([cell], 'corrected')}**" for cell in row)
        width = np.mean([cell["width"]["corrected"] for cell in row])
        identified = 100 * sum(cell["identified"] for cell in row) / sum(cell["worlds"] for cell in row)
        pooled = {
            "identified": sum(cell["identified"] for cell in row),
            "covered_identified": {"corrected": sum(cell["covered_identified"]["corrected"] for cell in row)},
        }
        kept = percent([pooled], "corrected", "covered_identified")
        lines.append(f"| {methods} | {reliability:g} | {shown} | {width:.2f} | {identified:.0f} | {kept} |")
    return "\n".join(lines)


def others_table(cells: list[dict[str, Any]]) -> str:
    ways = {
        "naive": "naive",
        "bias_corrected": "bias-corrected",
        "disattenuated": "disattenuated",
        "simex": "SIMEX",
        "corrected": "**corrected**",
        "population": "methods as a sample",
        "regret_naive": "regret, naive",
        "regret": "**regret**",
    }
    lines = [
        f"| methods | reliability | true scores | {' | '.join(ways.values())} | width of regret |",
        f"| ---: | ---: | --- | {' | '.join('---:' for _ in ways)} | ---: |",
    ]
    groups = dict.fromkeys((cell["methods"], cell["reliability"], cell["shape"]) for cell in cells)
    for group in groups:
        row = [cell for cell in cells if (cell["methods"], cell["reliability"], cell["shape"]) == group]
        shape = "normal" if group[2] == "normal" else "heavy tails"
        widths = [np.mean([cell["width"][way] for cell in row]) for way in ("regret_naive", "regret")]
        shown = " | ".join(percent(row, way) for way in ways)
        lines.append(f"| {group[0]} | {group[1]:g} | {shape} | {shown} | {widths[0]:.2f} → {widths[1]:.2f} |")
    return "\n".join(lines)


def paired_table(cells: list[dict[str, Any]]) -> str:
    lines = ["| scores | users | whole users | users, then their examples |", "| --- | ---: | ---: | ---: |"]
    for cell in cells:
        shares = [f"{100 * cell['covered'][way] / cell['worlds']:.1f}" for way in ("whole_users", "users_and_examples")]
        lines.append(f"| {cell['kind']} | {cell['users']} | {' | '.join(shares)} |")
    return "\n".join(lines)


def render(page: str, found: dict[str, Any]) -> str:
    """Return the page with each table put between its markers."""
    cells = found["cells"]
    groups = {kind: [cell for key, cell in cells.items() if key.startswith(kind + "/")] for kind in ("tau", "paired")}
    tables = {
        "tau": tau_table(groups["tau"]),
        "others": others_table(groups["tau"]),
        "paired": paired_table(groups["paired"]),
    }
    for name, table in tables.items():
        begin, end = MARKS[name]
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page alone")
    if not parser.parse_args().page:
        run()
    text = render(PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8")))
    PAGE.write_text(text, encoding="utf-8")
