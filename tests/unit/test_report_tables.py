"""Terminal tables, CSV and Markdown."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from rich.cells import cell_len
from rich.console import Console
from test_report_study import HOSTILE, planted, study

from rewardgap.core.results import RESULT_COLUMNS, ControlResult, ResultRow, StudyResults
from rewardgap.report.board import boards
from rewardgap.report.tables import leaderboard, markdown_table, print_summary, study_markdown, write_csv


def printed(results: StudyResults, width: int, **options: object) -> str:
    stream = io.StringIO()
    print_summary(results, Console(file=stream, width=width, **options))
    return stream.getvalue()


def read(path: Path) -> list[ResultRow]:
    kinds = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(ResultRow).items()}
    rows = []
    with path.open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            values: dict[str, object] = {}
            for name, text in line.items():
                kind = next((k for k in (float, int) if k in kinds[name]), str)
                values[name] = None if text == "" else kind(text)
            rows.append(ResultRow(**values))
    return rows


def test_csv_round_trip_is_exact(tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, value=None if row.value is None else row.value / 3) for row in study().rows]
    results = dataclasses.replace(study(), rows=rows)
    path = tmp_path / "results.csv"
    write_csv(results, path)
    assert read(path) == rows
    assert path.read_text(encoding="utf-8").splitlines()[0].split(",") == list(RESULT_COLUMNS)
    first = path.read_bytes()
    write_csv(results, path)
    assert path.read_bytes() == first
    assert [one.name for one in tmp_path.iterdir()] == ["results.csv"]


def test_csv_holds_half_a_surrogate_pair(tmp_path: Path) -> None:
    row = dataclasses.replace(study().rows[0], dataset='a "quoted"\nline, \ud83d')
    write_csv(StudyResults(name="x", rows=[row]), tmp_path / "x.csv")
    assert read(tmp_path / "x.csv")[0].dataset == 'a "quoted"\nline, \ufffd'


@pytest.mark.parametrize("width", [80, 120, 200])
def test_summary_fits_the_terminal_without_colour(width: int) -> None:
    for results in (study(), study(hostile=False), planted(7)):
        text = printed(results, width)
        assert max(cell_len(line) for line in text.splitlines()) <= width
        assert "\x1b" not in text


def test_summary_keeps_numbers_whole_at_80_columns() -> None:
    text = printed(study(hostile=False), 80)
    for words in ("30.1  [27.5, 32.7]", "21.1² [18.5, 23.7]", "99.0  [98.0, 100.0]", "65.2  [61.0, 69.4]", "0.42",
                  "✓ pass", "✗ FAIL", "−0.44 [−0.83, 0.12]", "measured −0.31 (naive", "¹ no reward model guides it",
                  "² 3 examples without a score left out", "pleases its own judge only", "self, circular"):  # fmt: skip
        assert words in text, words


def test_summary_shows_no_control_characters_and_no_styles_from_data() -> None:
    text = printed(study(), 100, force_terminal=True, color_system=None)
    assert "[red]rich[/red]" in text
    assert "\x1b[31m" not in text
    assert not {"\x00", "\u202e", "\u202c"} & set(text)


def test_colour_only_repeats_what_words_say() -> None:
    coloured = printed(study(), 120, force_terminal=True, color_system="standard")
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    print_summary(study(), console)
    assert "\x1b[" in coloured
    assert "✗ FAIL" in stream.getvalue()


def test_leaderboard_is_ordered_by_behaviour_and_never_shows_a_missing_number_as_zero() -> None:
    table = leaderboard(study(hostile=False))
    assert [column.header.plain for column in table.columns[1:]] == [
        "RM acc.", "Policy acc.", "base", "ROUGE-1", "ROUGE-L", "BERTScore", "self, circular", "cross", "s / compl.",
    ]  # fmt: skip
    labels = list(table.columns[0].cells)
    assert labels[0] == "icl_rag 4"
    assert labels[-1] == "global_bt · args_greedy λ=2 k=10"
    zero = labels.index("zero_shot")
    shown = [list(column.cells)[zero].plain.split()[0] for column in table.columns[1:]]
    assert shown == ["–¹", "54.0", "54.0", "23.1", "21.0", "66.8", "–¹", "–²", "0.42"]
    assert "no reward model guides it" in table.caption.plain
    control = leaderboard(study(), board=boards(study())[1])
    assert next(iter(control.columns[6].cells)).plain.strip() == "–²"
    assert "² no score for any of 48 examples" in control.caption.plain


def test_an_empty_study_prints() -> None:
    empty = StudyResults(name="empty", rows=[])
    assert "Nothing was measured" in printed(empty, 80)
    assert leaderboard(empty).row_count == 0
    assert markdown_table(empty).count("\n") == 1
    assert study_markdown(empty).startswith("# empty\n")


def test_markdown_tables_have_equal_columns_and_no_markup_from_data() -> None:
    for text in (markdown_table(study()), study_markdown(study())):
        rows = [line for line in text.splitlines() if line.startswith("|")]
        block = None
        for line in text.splitlines():
            if not line.startswith("|"):
                block = None
                continue
            count = line.replace("\\|", "").count("|")
            block = block or count
            assert count == block, line
        assert rows
    outside = "".join(study_markdown(study()).split("```")[::2])
    assert "<" not in outside.replace("&lt;", "")
    assert "| docstrings | icl_rag 4 | –¹ |" in markdown_table(study())
    assert markdown_table(study()) == markdown_table(study())


def test_study_page_names_everything_that_was_run() -> None:
    text = study_markdown(study(hostile=False))
    for words in ("## docstrings", "## synthetic_text", "### Reward models", "### Rank correlation with ROUGE-1", "## Controls",
                  "### What a choice costs", "### For whom it pays, by ROUGE-1", "## Across points",
                  "**fail**", "## What can be had without a reward model", "longer wins", "## Warning signs",
                  "## Failed cells", "```sh\nrewardgap run", "guidance_weights:", "| packages.torch | 2"):  # fmt: skip
        assert words in text, words


def test_a_fence_is_longer_than_backticks_in_the_text() -> None:
    results = StudyResults(name="x", rows=[], command="echo ````` | sh")
    assert "``````sh\necho ````` | sh\n``````" in study_markdown(results)


def test_links_in_names_are_not_links() -> None:
    control = ControlResult(name="![x](http://a) [y]: z", dataset="d", method=None, value=None, ci_low=None,
                            ci_high=None, expectation="# h", passed=None, sentence="a_b _c_ ~~d~~ *e* `f`")  # fmt: skip
    text = study_markdown(StudyResults(name="x", rows=[], controls=[control]))
    assert r"![x\](http://a) [y\]: z" in text
    assert r"\# h" in text
    assert r"a_b \_c\_ \~~d\~~ \*e\* \`f\`" in text
    assert HOSTILE[0] not in study_markdown(study()).split("```")[0]
