"""The outline of a study whose data or models are not here has the cells that the study has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rewardgap.cli.app import app
from rewardgap.studies.outline import outline
from rewardgap.studies.plan import make_plan
from rewardgap.studies.points import points
from rewardgap.studies.progress import Silent
from rewardgap.studies.shelf import Shelf
from rewardgap.studies.spec import StudySpec, load_study, parse_study
from rewardgap.studies.workbench import Workbench

ROOT = Path(__file__).parents[2]
STUDY = {
    "name": "grid",
    "data": {"name": "synthetic_text", "options": {"users": 12}},
    "policy": "synthetic-words",
    "split": {"train_users": 6, "adapt_users": 4, "support": 4},
    "reward_models": [{"method": "lore"}, {"method": "pref"}, {"method": "icl_judge"}],
    "deployments": [
        {"policy": "zero_shot"},
        {"policy": "icl", "num_demonstrations": [1, 2]},
        {"decoder": "args_greedy"},
    ],
    "metrics": ["rouge1"],
    "vary": [{"seed": [0, 1]}, {"split.support": [2, 4]}],
}


def plain(study: StudySpec) -> list[StudySpec]:
    return [point.study for point in points(study)]


def test_an_outline_counts_the_cells_of_the_plan(tmp_path: Path) -> None:
    studies, shelf = plain(parse_study(STUDY)), Shelf()
    cells = {
        cell.id: cell.kind
        for study in studies
        for cell in make_plan(Workbench(study, tmp_path, Silent(), shelf)).cells()
    }
    assert outline(studies, tmp_path) == Counter(cells.values())


@pytest.mark.parametrize("path", sorted((ROOT / "studies" / "paper").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_studies_are_laid_out_without_their_data_and_models(path: Path, tmp_path: Path) -> None:
    study = load_study(path)
    found = outline(plain(study), tmp_path)
    assert found["deployment"] >= len(points(study))
    assert found["judgement"] > found["deployment"]


def test_a_dry_run_without_the_data_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", str(ROOT / "studies" / "paper" / "pref_lamp_behaviour.yaml"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "12 points, at most" in done.output
    assert "is not known here: dataset folder 'runs/pref_lamp' does not exist" in done.output
