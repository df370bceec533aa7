"""docs/statistics.md holds the figures of benchmarks/results/coverage.json, and the figures keep what the page promises."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page_and_figures(monkeypatch):
    spec = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks" / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module, json.loads(module.RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_that_of_the_figures(page_and_figures):
    script, found = page_and_figures
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.render(page, found) == page
    for begin, end in script.MARKS.values():
        assert page.count(begin) == page.count(end) == 1
        assert page.split(begin)[1].split(end)[0].count("\n|") > 2


def test_every_cell_of_the_plan_is_there(page_and_figures):
    script, found = page_and_figures
    assert list(found["cells"]) == ["/".join([kind, *map(str, arguments)]) for kind, arguments in script.plan()]


def test_the_figures_keep_the_promise(page_and_figures):
    """Over true correlations: at least 90 % of all worlds and of those identified; paired differences: 93 to 97 %."""
    _, found = page_and_figures
    groups: dict[tuple[int, float, str], list[int]] = {}
    for key, cell in found["cells"].items():
        if key.startswith("paired"):
            assert 0.93 <= cell["covered"]["whole_users"] / cell["worlds"] <= 0.97
            continue
        group = groups.setdefault((cell["methods"], cell["reliability"], cell["shape"]), [0, 0, 0, 0])
        for index, count in enumerate(
            (cell["covered"]["corrected"], cell["worlds"], cell["covered_identified"]["corrected"], cell["identified"])
        ):
            group[index] += count
    for covered, worlds, covered_identified, identified in groups.values():
        assert covered / worlds >= 0.9
        assert identified < 30 or covered_identified / identified >= 0.9
    assert sum(group[3] for group in groups.values()) > 1000
