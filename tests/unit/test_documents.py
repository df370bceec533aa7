"""Figures in README and docs are those of the results files named beside them."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rewardgap.cli.app import app
from rewardgap.core.results import StudyResults
from rewardgap.report.markdown import study_markdown
from rewardgap.report.tables import markdown_table
from rewardgap.studies.deployments import expand
from rewardgap.studies.folders import study_yaml
from rewardgap.studies.plan import check_names
from rewardgap.studies.spec import load_study

ROOT = Path(__file__).parents[2]
RESULTS = sorted(
    path for folder in (".", "datasets", "pairing") for path in (ROOT / "docs" / "results" / folder).glob("*.json")
)


def read(path: Path) -> StudyResults:
    return StudyResults.from_json(json.loads(path.read_text(encoding="utf-8")))


def test_the_table_in_the_readme_is_the_demos() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- table of docs/results/demo.json -->\n(.*)<!-- end of table -->", text, re.DOTALL)
    assert found
    assert found.group(1).strip() == markdown_table(read(ROOT / "docs" / "results" / "demo.json")).strip()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_result_pages_hold_their_results(path: Path) -> None:
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    results = read(path)
    assert study_markdown(results).strip() in page
    assert not results.samples
    assert not results.failures
    assert not any(results.environment.get("first_prompts", {}).values())


def test_the_demo_is_one_study() -> None:
    preset = ROOT / "src" / "rewardgap" / "studies" / "presets" / "demo.yaml"
    assert (ROOT / "studies" / "demo.yaml").read_text() == preset.read_text()
    assert yaml.safe_load(preset.read_text())["name"] == "demo"


@pytest.mark.parametrize("path", sorted((ROOT / "studies").rglob("*.yaml")), ids=lambda path: path.stem)
def test_studies_name_what_there_is(path: Path) -> None:
    study = load_study(path)
    check_names(study)
    assert study.name == path.stem


@pytest.mark.parametrize("path", sorted((ROOT / "studies").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_study_that_was_written_out_is_the_study(path: Path, tmp_path: Path) -> None:
    """What a results folder holds, and what --print-study prints, can be run again."""
    study = load_study(path)
    written = tmp_path / "study.yaml"
    written.write_text(study_yaml(study), encoding="utf-8")
    again = load_study(written)
    assert expand(again) == expand(study)
    assert again.model_dump() == study.model_dump()
    assert study_yaml(again) == study_yaml(study)


def test_the_page_of_benchmarks_holds_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("page")
    assert page.render() == page.PAGE.read_text(encoding="utf-8")
    performance = page.PERFORMANCE.read_text(encoding="utf-8")
    assert page.tables(performance) == performance


def test_the_tables_across_studies_hold_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("studies_page")
    assert page.datasets() == page.DATASETS.read_text(encoding="utf-8")
    assert page.pairing() == page.PAIRING.read_text(encoding="utf-8")
    assert page.claims() == page.CLAIMS.read_text(encoding="utf-8")


def test_a_study_is_one_line_of_the_table_across_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("studies_page")
    results = json.loads((ROOT / "docs" / "results" / "demo.json").read_text(encoding="utf-8"))
    line = page.Study(results).line("demo")
    assert line.count(" | ") + 1 == page.HEAD.splitlines()[0].count(" | ") + 1
    split = results["datasets"][0]["split"]
    assert f"| demo | {split['adapt users']}, {split['query pairs']} |" in line
    ranked = [
        row["value"]
        for row in results["rows"]
        if (row["stage"], row["metric"], row["users"]) == ("rm_accuracy", "accuracy", "unseen")
    ]
    assert f"| {100 * min(ranked):.1f} to {100 * max(ranked):.1f} |" in line
    (tau,) = [
        t
        for t in page.Study(results).results["taus"]
        if t["x"].startswith("rm_accuracy") and t["y"].startswith("rouge1")
    ]
    shown = f"not identified (measured {tau['tau']:.2f}, p {tau['p_value']:.2f}) |"
    if tau["corrected"] is not None:
        shown = f"{tau['corrected']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}], p {tau['p_value']:.2f} |"
    assert shown in line


def test_catalogue_pages_are_those_of_the_cards(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["docs", str(tmp_path)])
    assert done.exit_code == 0
    committed = {page.name: page.read_text() for page in (ROOT / "docs" / "catalogue").glob("*.md")}
    assert {page.name: page.read_text() for page in tmp_path.glob("*.md")} == committed


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
