"""Tables for a paper: every text is printed literally, every row has its columns, every brace closes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core.results import StudyResults
from rewardgap.report.board import boards
from rewardgap.report.latex import latex, study_latex
from rewardgap.report.words import ROUGE_1

DEMO = Path(__file__).parents[2] / "docs" / "results" / "demo.json"


def results() -> StudyResults:
    return StudyResults.from_json(json.loads(DEMO.read_text(encoding="utf-8")))


@given(st.text(max_size=30))
def test_no_text_escapes(text: str) -> None:
    found = latex(text)
    # A dollar sign, brace or backslash is only there as part of what stands for a character.
    bare = re.sub(r"\\[{}$&%#_]|\\[a-z]+\{\}|\$[^$]*\$", "", found)
    assert not set(bare) & set('\\{}$&%#_~^|"')
    assert "\n" not in found


def test_what_a_character_stands_for() -> None:
    assert latex("50 % of $x_1^2$ {a} & \\b #1 ~") == (
        r"50 \% of \$x\_1\textasciicircum{}2\$ \{a\} \& \textbackslash{}b \#1 \textasciitilde{}"
    )
    assert latex("lore · args λ=1") == r"lore $\cdot$ args $\lambda$=1"


def test_every_row_has_its_columns_and_every_brace_closes() -> None:
    page = study_latex(results())
    tables = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", page, re.DOTALL)
    assert len(tables) >= 2
    for kinds, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 1
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(kinds) - 1
            depth = 0
            for brace in re.findall(r"(?<!\\)[{}]", row):
                depth += 1 if brace == "{" else -1
                assert depth >= 0
            assert depth == 0
    labels = re.findall(r"\\label\{([^}]*)\}", page)
    assert len(set(labels)) == len(labels) == len(tables)


def test_the_highest_of_a_column_is_bold_and_no_other() -> None:
    (board,) = boards(results())
    best = max(value for line in board.lines if (value := board.cell(line, ROUGE_1).value) is not None)
    page = study_latex(results())
    table = page[: page.index(r"\end{tabular}")]
    heads = next(line for line in table.splitlines() if line.startswith("Deployment &")).split(" & ")
    place = heads.index("ROUGE-1")
    cells = [row.split(" & ")[place] for row in table.splitlines() if row.endswith(r"\\") and "Deployment" not in row]
    bold = [cell for cell in cells if cell.startswith(r"\textbf{")]
    assert len(bold) == 1
    assert bold[0].startswith(rf"\textbf{{{100 * best:.1f} ")
    seconds = [row.split(" & ")[-1] for row in table.splitlines() if row.endswith(r"\\") and "Deployment" not in row]
    assert not any("textbf" in cell for cell in seconds)
