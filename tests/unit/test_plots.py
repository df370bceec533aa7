"""Figures for a paper: one for every chart, the same bytes whenever rebuilt, no text that becomes markup."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import pytest
from test_goodhart import along
from test_report_study import main_rows, study

from pointed import pointed
from rewardgap.core.errors import MissingExtraError
from rewardgap.core.results import StudyResults
from rewardgap.report import plots
from rewardgap.report.plots import MARKERS, OKABE_ITO, write_figures

HASHES = """
import hashlib, sys
sys.path[:0] = sys.argv[1:3]
from test_plots import hashes, little
print(hashes(little()))
"""


def little() -> StudyResults:
    """Return a study of which only the number of demonstrations and behaviour are drawn."""
    rows = [row for row in main_rows() if row.metric == "rouge1" and row.decoder is None]
    return StudyResults(name="little", rows=rows)


def hashes(results: StudyResults) -> dict[str, str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        written = write_figures(results, Path(folder))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}


def whole() -> StudyResults:
    numbers = [dataclasses.replace(one, dataset="docstrings") for one in along("lore", [1.0, 2.0, 3.0], [0.1, 0, -0.1])]
    return dataclasses.replace(study(), decompositions=numbers)


def test_there_is_a_figure_for_every_chart() -> None:
    names = [plot.name for plot in plots.plots(whole())]
    assert [name for name in names if name.startswith("docstrings")] == [
        f"docstrings-{name}"
        for name in ("behaviour", "rm-accuracy-policy", "rm-accuracy-rouge1", "goodhart-args-greedy-k-10", "judges",
                     "shots", "baselines")
    ]  # fmt: skip
    several = [plot.name for plot in plots.plots(pointed(StudyResults(name="x", rows=main_rows())))]
    assert several[:5] == [f"points-{number}" for number in range(1, 6)]
    assert len(set(several)) == len(several)


def test_rebuilt_files_have_the_same_bytes() -> None:
    here, unit = Path(__file__).parents[1], Path(__file__).parent
    said = subprocess.run(
        [sys.executable, "-c", HASHES, str(here), str(unit)],
        env=os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    mine = hashes(little())
    assert said.strip() == str(mine)
    assert list(mine) == [
        f"{name}-{width}.{form}"
        for name in ("behaviour", "shots")
        for width in ("1col", "2col")
        for form in ("svg", "pdf")
    ]


@pytest.mark.parametrize(("width", "points"), [("1col", 237.6), ("2col", 496.8)])
def test_a_figure_has_the_width_of_its_place(tmp_path: Path, width: str, points: float) -> None:
    write_figures(little(), tmp_path)
    root = ElementTree.parse(tmp_path / f"behaviour-{width}.svg").getroot()
    assert float(root.attrib["width"].removesuffix("pt")) == pytest.approx(points)


@pytest.mark.filterwarnings("error:constrained_layout")
def test_hostile_names_stay_text() -> None:
    for plot in plots.plots(whole()):
        root = ElementTree.fromstring(plots._drawn(plot, 3.3, "svg"))
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not names & {"script", "a", "image", "foreignObject"}, plot.name


def test_what_is_drawn_reads_without_colour() -> None:
    looks = [plots._look(turn) for turn in range(len(MARKERS) ** 2)]
    assert len(set(looks)) == len(looks)
    assert len({marker for _, marker in looks[: len(MARKERS)]}) == len(MARKERS)
    for one, other in combinations(OKABE_ITO, 2):
        assert one != other


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rewardgap\[figures\]'"):
        write_figures(little(), tmp_path)
    assert not any(tmp_path.iterdir())
