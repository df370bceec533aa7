"""Figures: every point where its numbers say, labels apart, texts escaped, nothing drawn from nothing."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report_study import planted, study

from rewardgap.core.results import StudyResults
from rewardgap.report import figures
from rewardgap.report.board import Board, boards
from rewardgap.report.svg import WIDTHS, Spot, _box, _touch, coordinate, place_labels, scale, tag, tick_text
from rewardgap.report.texts import encodable, plain, shared_words
from rewardgap.report.words import POLICY_ACCURACY, ROUGE_1


@pytest.fixture(scope="module")
def board() -> Board:
    return boards(study(hostile=False))[0]


def parsed(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


def test_scatter_puts_each_deployment_where_its_numbers_are(board: Board) -> None:
    chart = figures.scatter(board, ROUGE_1)
    assert chart is not None
    root = parsed(chart.drawing)
    circles = root.findall("circle")
    assert [one.findtext("title") for one in circles] == [
        f"{name} · args_greedy λ={weight} k=10: RM accuracy {rm}; ROUGE-1 {rouge}"
        for name, weight, rm, rouge in (
            ("global_bt", "0.5", "65.2 [61.0, 69.4]", "23.8 [21.2, 26.4]"),
            ("global_bt", "2", "65.2 [61.0, 69.4]", "20.7 [18.1, 23.3]"),
            ("lore", "0.5", "64.1 [59.9, 68.3]", "24.3 [21.7, 26.9]"),
            ("lore", "2", "64.1 [59.9, 68.3]", "21.1 [18.5, 23.7]"),
        )
    ]
    x = [float(one.attrib["cx"].rstrip("%")) for one in circles]
    y = [float(one.attrib["cy"]) for one in circles]
    assert x[0] == x[1] > x[2] == x[3]
    assert y[2] < y[0] < y[3] < y[1]
    assert [one.text for one in root.findall("text") if "label" in one.attrib["class"]] == [
        "global_bt λ=0.5", "global_bt λ=2", "lore λ=0.5", "lore λ=2",
    ]  # fmt: skip
    assert chart.key == (("band base", "zero-shot"), ("band context", "icl_rag 4"))


def test_a_crowded_scatter_numbers_its_points_and_gives_a_key() -> None:
    chart = figures.scatter(boards(planted())[0], POLICY_ACCURACY)
    assert chart is not None
    labels = [one.text for one in parsed(chart.drawing).findall("text") if "label" in one.attrib["class"]]
    assert labels == [str(i) for i in range(1, 37)]
    assert chart.key[0] == ("1", "model_0 · args_greedy λ=0.5 k=10")


def test_shots_draws_a_line_for_each_way_to_choose_demonstrations(board: Board) -> None:
    chart = figures.shots(board)
    assert chart is not None
    root = parsed(chart.drawing)
    groups = [one for one in root.findall("g") if one.find("circle") is not None]
    assert [len(one.findall("circle")) for one in groups] == [1, 3]
    assert [len([line for line in one.findall("line") if line.attrib["class"] == "path"]) for one in groups] == [0, 2]
    assert [text for _, text in chart.key] == ["icl", "icl_rag", "zero-shot", "lore · args_greedy λ=0.5 k=10"]


def test_dot_plots_say_their_numbers_in_words(board: Board) -> None:
    forest, judges = figures.forest(board), figures.judges(board)
    baselines = figures.baselines(board, [one for one in study().baselines if one.dataset == board.dataset])
    assert forest is not None and judges is not None and baselines is not None
    assert (forest.rows[0].label, forest.rows[0].text, forest.rows[0].interval) == ("icl_rag 4", "30.1", "[27.5, 32.7]")
    assert [row.text for row in judges.rows] == ["84.7 → 58.3", "82.6 → 57.1", "99.0 → 53.2", "98.3 → 54.9"]
    assert [row.label for row in baselines.rows] == [
        "longer wins",
        "human or machine",
        "base policy",
        "global_bt",
        "lore",
    ]
    ring = parsed(judges.rows[0].track).find("circle[@class='ring']")
    assert ring is not None and ring.attrib["cx"] == "84.7%"
    assert parsed(forest.rows[0].track).attrib["aria-hidden"] == "true"


def test_nothing_is_drawn_from_nothing() -> None:
    control = boards(study())[1]
    assert figures.shots(control) is None
    assert figures.baselines(control, []) is None
    bare = boards(StudyResults(name="x", rows=[row for row in study(False).rows if row.stage == "rm_accuracy"]))[0]
    assert figures.forest(bare) is figures.judges(bare) is figures.scatter(bare, ROUGE_1) is figures.shots(bare) is None


def test_hostile_names_stay_text_inside_svg() -> None:
    board = boards(study())[0]
    for chart in (figures.scatter(board, ROUGE_1), figures.shots(board)):
        assert chart is not None
        names = {one.tag for one in parsed(encodable(chart.drawing)).iter()}
        assert names <= {"svg", "g", "line", "rect", "circle", "text", "title"}
    assert tag("text", '<b a="1">', class_='"><script>') == (
        '<text class="&#34;&gt;&lt;script&gt;">&lt;b a=&#34;1&#34;&gt;</text>'
    )


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_scale_covers_its_values_with_a_few_ticks(values: list[float]) -> None:
    across = scale(values)
    assert across.low < min(values) <= max(values) < across.high
    assert 2 <= len(across.ticks) <= 9
    assert all(0 <= across(tick) <= 1 for tick in across.ticks)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(10, 290), st.sampled_from(["a", "lore λ=1", "global_bt λ=0.25"])),
                max_size=8))  # fmt: skip
def test_placed_labels_touch_neither_each_other_nor_a_foreign_point(raw: list[tuple[float, float, str]]) -> None:
    spots = [Spot(*one) for one in raw]
    places = place_labels(spots, 300)
    if places is None:
        return
    for width in WIDTHS:
        boxes = [_box(spot, place, width) for spot, place in zip(spots, places, strict=True)]
        points = [(s.x * width - 6, s.y - 6, s.x * width + 6, s.y + 6) for s in spots]
        for i, box in enumerate(boxes):
            assert not any(_touch(box, other) for other in boxes[:i])
            assert not any(_touch(box, point) for j, point in enumerate(points) if j != i)


def test_coordinates_are_short() -> None:
    assert [coordinate(value) for value in (1.0, 1.005, 33.333, -0.001, 100)] == ["1", "1", "33.33", "0", "100"]
    assert [tick_text(value) for value in (0.25, 0.005, -0.1, 0.1 + 0.2)] == ["25", "0.5", "−10", "30"]


@given(st.text(), st.text())
def test_shared_words_cut_without_losing_a_character(reference: str, text: str) -> None:
    pieces, shared, total = shared_words(reference, text)
    assert "".join(piece for piece, _ in pieces) == text
    assert shared == sum(flag for _, flag in pieces) <= total
    assert shared_words(reference, reference)[1:] == (total, total)


@given(st.text(), st.integers(1, 40))
def test_plain_text_is_one_printable_line(text: str, limit: int) -> None:
    line = plain(text, limit)
    assert len(line) <= max(limit, 2)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in line)
