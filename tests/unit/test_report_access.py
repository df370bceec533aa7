"""For every reader: contrast in both modes, headings in order, tables with captions and scopes, and a page of sound size."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from test_goodhart import along
from test_report_page import Reader, shipped
from test_report_study import planted, study

from pointed import pointed
from rewardgap.core.results import Sample, StudyResults
from rewardgap.report import page
from rewardgap.report.board import boards
from rewardgap.report.explorer import explorer

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT, DRAWN = 4.5, 3.0
"""Contrasts that WCAG 2.2 asks for: 1.4.3 of text, 1.4.11 of what is drawn."""
ON = {
    "paper": ("ink", "soft", "guided", "good", "bad"),
    "card": ("ink", "soft", "guided", "good"),
    "tint": ("ink",),
    "mark": ("ink",),
    "bad-tint": ("ink", "soft", "bad"),
}
LINES = ("guided", "context", "base", "good", "bad", *(f"k{i}" for i in range(6)), *(f"c{i}" for i in range(4)))


def colours(mode: str) -> dict[str, str]:
    blocks = re.findall(r":root \{(.*?)\}", shipped("page.css"), re.DOTALL)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    return found | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1])) if mode == "dark" else found


def contrast(one: str, other: str) -> float:
    """Return the contrast of WCAG 2.2: (L₁ + 0.05) / (L₂ + 0.05), L the relative luminance."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_texts_and_drawings_stand_out(mode: str) -> None:
    found = colours(mode)
    for ground, names in ON.items():
        for name in names:
            assert contrast(found[name], found[ground]) >= TEXT, (name, ground)
    for name in LINES:
        assert contrast(found[name], found["paper"]) >= DRAWN, name


def pages() -> Iterator[tuple[str, StudyResults]]:
    plain = study(hostile=False)
    numbers = [dataclasses.replace(one, dataset="docstrings") for one in along("lore", [1.0, 2.0, 3.0], [0.1, 0, -0.1])]
    yield "two datasets", dataclasses.replace(plain, decompositions=numbers)
    yield "several points", pointed(dataclasses.replace(plain, decompositions=numbers))
    yield "one dataset", StudyResults(name="one", rows=[row for row in plain.rows if row.dataset == "docstrings"])
    yield "nothing", StudyResults(name="empty", rows=[])


@pytest.mark.parametrize(("name", "results"), list(pages()), ids=lambda value: value if isinstance(value, str) else "")
def test_headings_go_down_by_one_level_at_a_time(name: str, results: StudyResults) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])", page.render(results))]
    assert levels[0] == 1 and levels.count(1) == 1
    for before, after in pairwise(levels):
        assert after <= before + 1, (before, after)


@pytest.mark.parametrize(("name", "results"), list(pages()), ids=lambda value: value if isinstance(value, str) else "")
def test_tables_have_captions_and_scopes(name: str, results: StudyResults) -> None:
    text = page.render(results)
    tables = re.findall(r"<table.*?</table>", text, re.DOTALL)
    for table in tables:
        assert table.count("<caption") == 1
        assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", table))
    for table in tables:
        if "pairs" not in table.partition(">")[0]:
            at = text.index(table)
            assert 'class="scroll"' in text[at - 200 : at], "a table scrolls in a box of its own"


def test_labels_name_their_fields() -> None:
    reader = Reader(page.render(pointed(study(hostile=False))))
    wanted = {value for tag, name, value in reader.values if (tag, name) == ("label", "for")}
    fields = {value for tag, name, value in reader.values if (tag, name) == ("select", "id")}
    assert wanted == fields == {"point", "who", "which", "left", "right"}


def test_the_style_keeps_focus_visible_and_motion_off_on_request() -> None:
    style = shipped("page.css")
    assert ":focus-visible { outline: 2px" in style
    assert not re.search(r"outline:\s*(0|none)", style)
    assert "@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }" in style
    assert not re.search(r"\b(animation|transition)\s*:", style)


def test_words_of_the_reference_are_told_by_more_than_colour() -> None:
    rule = re.search(r"\nmark \{([^}]*)\}", shipped("page.css"))
    assert rule is not None and "text-decoration: underline" in rule.group(1)


def test_ten_thousand_rows_and_two_hundred_samples_fit_in_fifteen_megabytes() -> None:
    large = planted(24)
    rows = [dataclasses.replace(row, seed=seed) for seed in range(9) for row in large.rows if row.seed == 0]
    assert len(rows) > 10_000
    words = " ".join(f"word{number}" for number in range(400))
    labels = [f"deployment {number}" for number in range(40)]
    samples = [
        Sample(dataset="large", user_id=f"u{i % 50}", example_id=str(i), prompt=words, reference=words,
               generations=dict.fromkeys(labels, words))
        for i in range(200)
    ]  # fmt: skip
    results = StudyResults(name="large", rows=rows, samples=samples, study={"seed": 3})
    text = page.render(results)
    assert len(text.encode()) < 15_000_000
    shown = text.count("<article>")
    assert 1 < shown < 200
    assert f"This page holds the first {shown}; with all of them it would be too large." in text
    assert "200 query prompts" in text and "that seed 3 drew" in text


def test_a_sample_says_how_it_was_drawn_and_what_it_starts_with() -> None:
    results = dataclasses.replace(study(hostile=False), study={"seed": 0})
    found = explorer(results, boards(results))
    assert found is not None
    assert (found.labels[found.left], found.labels[found.right]) == ("icl_rag 4", "zero_shot")
    assert found.statement == (
        "9 query prompts of 144: the first of every user in turn, users in the order that seed 0 drew. Nobody chose "
        "them by what was written."
    )
    filed = dataclasses.replace(results, study={"seed": 0, "split": {"file": "split.json"}})
    assert "in the order of the split's file" in explorer(filed, boards(filed)).statement
    assert len(explorer(results, boards(results), most=1).people) == 1
    assert explorer(dataclasses.replace(results, samples=[]), boards(results)) is None
