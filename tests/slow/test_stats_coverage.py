"""A small part of docs/statistics.md again: intervals hold the truth as often as the page says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark_script():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks" / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(("num_methods", "correlation"), [(6, 0.5), (9, 0.9), (9, 1.0)])
def test_the_corrected_interval_covers_where_it_is_identified(benchmark_script, num_methods, correlation):
    found = benchmark_script.tau_cell(num_methods, 0.95, correlation, "normal", 60)
    assert found["identified"] >= 30
    # 90 % of 60 less two standard errors of a binomial at 90 %
    assert (
        found["covered_identified"]["corrected"] / found["identified"] >= 0.9 - 2 * (0.09 / found["identified"]) ** 0.5
    )


def test_the_naive_interval_misses_one_order(benchmark_script):
    found = benchmark_script.tau_cell(9, 0.7, 1.0, "normal", 40)
    assert found["covered"]["naive"] < 20 < found["covered"]["corrected"]


@pytest.mark.parametrize("kind", ["normal", "hits"])
def test_paired_differences_are_covered(benchmark_script, kind):
    found = benchmark_script.paired_cell(kind, 60, 400)
    assert 0.925 <= found["covered"]["whole_users"] / 400 <= 0.98


def test_worlds_are_those_of_the_figures(benchmark_script):
    """A cell again, from its seeds: the same counts to the last world."""
    cells = json.loads(benchmark_script.RESULTS.read_text(encoding="utf-8"))["cells"]
    key = f"paired/normal/20/{benchmark_script.PAIRED_WORLDS}"
    assert benchmark_script.paired_cell("normal", 20, benchmark_script.PAIRED_WORLDS) == cells[key]
