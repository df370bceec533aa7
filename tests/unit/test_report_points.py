"""Several points in one study: none is mixed with another, on the board, on the page and in every export."""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_diagnosis import PREFIX, moved, sound
from test_report_page import Reader, assert_inert
from test_report_study import HOSTILE, Rows, main_rows, study

from pointed import POLICIES, pointed
from rewardgap.core.results import StudyResults
from rewardgap.report import page
from rewardgap.report.board import at, boards
from rewardgap.report.diagnosis import SOUND
from rewardgap.report.latex import study_latex
from rewardgap.report.markdown import study_markdown
from rewardgap.report.overview import HEADS, across_sentences, overview, reading
from rewardgap.report.signatures import failure_signatures
from rewardgap.report.sweep import parameters, sweeps
from rewardgap.report.words import RM_ACCURACY, ROUGE_1


@pytest.fixture(scope="module")
def several() -> StudyResults:
    return pointed(study(hostile=False))


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True),
    st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
)
def test_every_board_has_the_rows_of_one_point_and_all_rows_are_on_a_board(
    policies: list[str], sizes: list[int], seeds: list[int]
) -> None:
    results = pointed(StudyResults(name="x", rows=main_rows()), policies, sizes, seeds)
    found = boards(results)
    assert len(found) == len(policies) * len(sizes) * len(seeds)
    assert len({board.name for board in found}) == len(found)
    for board, (policy, size, seed) in zip(found, itertools.product(policies, sizes, seeds), strict=True):
        rows = [row for line in (*board.lines, *board.reward_models) for row in line.rows]
        wanted = {
            row.key()
            for row in results.rows
            if (row.support_size, row.seed) == (size, seed) and row.policy in (policy, None)
        }
        assert {row.key() for row in rows} == wanted
        assert len({row.key() for row in rows}) == len(rows)


def test_a_number_is_that_of_its_point(several: StudyResults) -> None:
    alone = boards(study(hostile=False))[0]
    found = [board for board in boards(several) if board.dataset == "docstrings"]
    for place, board in enumerate(found):
        shift = 0.01 * (place // 2) + 0.001 * (place % 2)
        for line, own in zip(board.lines, alone.lines, strict=True):
            assert line.label == own.label
            assert board.cell(line, ROUGE_1).value == pytest.approx((alone.cell(own, ROUGE_1).value or 0.0) + shift)
            assert board.cell(line, RM_ACCURACY).value == alone.cell(own, RM_ACCURACY).value
        assert board.seeds == (0,)


def test_findings_are_those_of_the_point(several: StudyResults) -> None:
    before = study(hostile=False)
    for board in boards(several):
        own = at(several, board)
        assert len(own.comparisons) == (len(before.comparisons) if board.is_one_of_several else 0)
        assert {one.point()[1:] for one in own.regrets} <= {(None, *board.point[1:])}


def test_what_leaves_a_setting_open_is_at_every_point_that_agrees() -> None:
    rows = Rows("d")
    for size in (2, 4):
        rows.add("behaviour", 0.2 + size / 100, 0.01, "rouge1", method="lore", decoder="args", support_size=size)
    rows.add("behaviour", 0.3, 0.01, "rouge1", method="zero_shot")
    found = boards(StudyResults(name="x", rows=rows.rows))
    assert [board.name for board in found] == ["n=2", "n=4"]
    assert [[board.cell(line, ROUGE_1).text for line in board.lines] for board in found] == [
        ["22.0", "30.0"],
        ["24.0", "30.0"],
    ]


def test_seeds_are_points_too() -> None:
    rows = Rows("d", method="icl", shots=2)
    for seed, value in ((0, 0.2), (1, 0.3)):
        rows.add("behaviour", value, 0.01, "rouge1", seed=seed)
    results = StudyResults(name="x", rows=rows.rows)
    assert [(board.name, board.cell(board.lines[0], ROUGE_1).text) for board in boards(results)] == [
        ("seed 0", "20.0"),
        ("seed 1", "30.0"),
    ]
    assert not any("one seed" in text for text in failure_signatures(results))


def test_the_overview_names_each_point_and_what_ranking_would_have_cost(several: StudyResults) -> None:
    found = boards(several)
    table = overview(several, found)
    assert table is not None and table.heads == HEADS
    assert [row[0] for row in table.rows] == [board.name for board in found]
    first = table.rows[0]
    assert first[1:5] == ("icl_rag 4", "global_bt · args_greedy λ=0.5 k=10", "+7.0 [5.0, 9.0]", "6.1 [3.3, 9.3]")
    assert first[5:] == ("−0.44 [−0.83, 0.12]", "better", "the interval holds both signs (args_greedy λ=1 k=10)")
    assert table.rows[-1][6] == "not compared"
    assert overview(study(), boards(study())) is None


@pytest.mark.parametrize(("low", "high", "words"), [
    (0.1, 0.8, "better rankers write better"),
    (-0.8, -0.1, "better rankers write worse"),
    (-0.1, 0.5, "the interval holds both signs"),
])  # fmt: skip
def test_tau_is_read_by_its_whole_interval(low: float, high: float, words: str) -> None:
    tau = dataclasses.replace(study().taus[1], low=low, high=high)
    assert reading(tau) == words
    assert reading(study().taus[0]) == "not identified: 2 reward models; a rank correlation needs 6"


def test_what_spans_points_is_told_once(several: StudyResults) -> None:
    one = dataclasses.replace(several.crossovers[0], axis="support", support_size=None, policy="p")
    whole = dataclasses.replace(several, crossovers=[*several.crossovers, one])
    found = boards(whole)
    sentences = across_sentences(whole, found)
    assert len(sentences) == 1 + len(whole.meta)
    assert sentences[0].startswith("docstrings, p: icl_rag overtakes lore")
    text = page.render(whole)
    assert text.count("docstrings, p: icl_rag overtakes") == 1
    assert text.count("<li>icl_rag overtakes") == 2 * len(POLICIES), "that over shots, once at each point"


def test_a_chart_follows_one_deployment_of_each_side(several: StudyResults) -> None:
    charts = sweeps([board for board in boards(several) if board.dataset == "docstrings"])
    assert [chart.x_title for chart in charts] == ["policy, by the size in its name"] * 2 + [
        "support pairs of a user"
    ] * 3
    first = charts[0]
    assert first.places == ("500M", "1.5B", "3B")
    assert [curve.name for curve in first.curves] == [
        "zero-shot", "lore · args_greedy λ=0.5 k=10", "icl_rag 2", "icl_rag 4", "icl_rag 8",
    ]  # fmt: skip
    zero = [cell.value for _, _, cell in first.curves[0].points]
    assert zero == pytest.approx([0.231, 0.241, 0.251])
    most = charts[-1].curves[-1]
    assert most.name == "icl_rag, all that a point shows"
    assert [cell.value for _, _, cell in most.points] == pytest.approx([0.316, 0.317])


def test_sizes_are_read_from_names_only_where_they_are_stated() -> None:
    assert parameters("Qwen/Qwen2.5-0.5B-Instruct") == 5e8
    assert parameters("smollm2-135m") == 135e6
    assert parameters("bigram") is parameters("mix-2B-7B") is parameters("gpt4b2") is None
    results = pointed(StudyResults(name="x", rows=main_rows()), ("zeta", "alpha"), (4,))
    (chart,) = sweeps(boards(results))
    assert chart.places == ("zeta", "alpha")
    assert chart.x_title == "policy"


def test_the_page_has_each_board_once_and_a_chooser(several: StudyResults) -> None:
    text = page.render(several)
    reader = Reader(text)
    assert_inert(reader)
    names = [board.name for board in boards(several)]
    assert reader.texts["option"][: len(names)] == names
    for place in range(len(names)):
        assert text.count(f'data-point="{place}"') == 7
    assert "data-point" not in page.render(study())


def test_exports_keep_points_apart(several: StudyResults) -> None:
    shown, latex = study_markdown(several), study_latex(several)
    for board in boards(several):
        assert f"\n## {board.name}\n" in shown.replace("\\", "")
    assert shown.count("## Points") == 1
    labels = re.findall(r"\\label\{([^}]*)\}", latex)
    assert len(set(labels)) == len(labels)
    assert sum("-deployments" in label for label in labels) == 2 * len(POLICIES) + 1


def test_hostile_names_of_points_stay_text() -> None:
    results = pointed(study(), HOSTILE[:3], (4,))
    reader = Reader(page.render(results))
    assert_inert(reader)
    for text in HOSTILE[:3]:
        assert any(text in option for option in reader.texts["option"])


@pytest.mark.parametrize("several", [False, True])
def test_the_diagnosis_and_its_steps_are_in_every_export(several: bool) -> None:
    numbers = [replace(one, dataset="docstrings") for one in moved(sound(), **PREFIX).values()]
    results = dataclasses.replace(study(hostile=False), decompositions=numbers)
    if several:
        results = pointed(results)
    times = 2 * len(POLICIES) if several else 1
    shown, latex = study_markdown(results), study_latex(results)
    for words in ("lore has a prefix error", "From ranking to writing", "+20.0"):
        assert shown.count(words) == times, words
    assert latex.count(r"\item lore has a prefix error") == times
    assert latex.count(r"\begin{itemize}") == latex.count(r"\end{itemize}") == times
    assert page.render(results).count("lore has a prefix error") == times
    healthy = dataclasses.replace(
        results, decompositions=[replace(one, dataset="docstrings") for one in sound().values()]
    )
    assert SOUND in study_markdown(healthy) and SOUND in page.render(healthy)
