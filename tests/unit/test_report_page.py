"""The HTML page: hostile texts stay texts, nothing is loaded, the same study gives the same bytes."""

import dataclasses
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report_study import HOSTILE, planted, study

from rewardgap.core.results import ResultRow, StudyResults
from rewardgap.report import page

VOID = {"meta", "input", "br", "col"}


class Reader(HTMLParser):
    """Collects what a browser would see: elements, attributes, texts, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: set[tuple[str, str]] = set()
        self.values: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.texts.setdefault(tag, [])
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.add((tag, name))
            self.values.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]].append(data)

    @property
    def text(self) -> str:
        return "".join(piece for pieces in self.texts.values() for piece in pieces)


def shipped(name: str) -> str:
    return (resources.files("rewardgap.report") / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile() -> Reader:
    return Reader(page.render(study()))


def assert_inert(reader: Reader) -> None:
    assert reader.texts["script"] == [shipped("page.js")]
    assert reader.texts["style"] == [shipped("page.css")]
    harmless = {"html", "head", "meta", "title", "style", "body", "a", "header", "nav", "main", "section", "footer",
                "p", "h1", "h2", "h3", "h4", "ul", "ol", "li", "dl", "dt", "dd", "div", "span", "b", "i", "sup", "bdi",
                "mark", "code", "pre", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption",
                "details", "summary", "article", "svg", "g", "line", "rect", "circle", "text", "script", "label", "select",
                "option"}  # fmt: skip
    assert set(reader.texts) <= harmless
    names = {name for _, name in reader.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "srcset", "style", "data", "action", "formaction", "xlink:href", "background", "poster"}
    for tag, name, value in reader.values:
        if name == "href":
            assert re.fullmatch(r"#[a-z]+", value), (tag, value)


def test_hostile_texts_add_no_element_and_no_attribute(hostile: Reader) -> None:
    plain = Reader(page.render(study(hostile=False)))
    assert_inert(hostile)
    assert set(hostile.texts) - {"i"} == set(plain.texts) - {"i"}
    assert hostile.attributes == plain.attributes


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_as_they_are(hostile: Reader, text: str) -> None:
    for raw in ("\x1b", "\x00", "\ud83d"):
        text = text.replace(raw, "�")
    assert text in hostile.text


def test_templates_escape_everything_but_our_own_files() -> None:
    for name in ("page.html.j2", "parts.html.j2"):
        assert "|safe" not in shipped(name).replace(" ", "")
    results = study()
    anchors = re.findall(r'href="#([a-z]+)"', page.render(results))
    reader = Reader(page.render(results))
    assert len(set(reader.ids)) == len(reader.ids)
    assert set(anchors) <= set(reader.ids)


def test_nothing_is_loaded_from_elsewhere(hostile: Reader) -> None:
    for name in ("page.css", "page.js", "page.html.j2", "parts.html.j2"):
        assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|import\(", shipped(name)), name
    policy = next(value for tag, name, value in hostile.values if tag == "meta" and value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=30) | st.sampled_from(HOSTILE), st.text(alphabet="<>\"'&/{}%#!-]=\\ sx\x00\ud800", max_size=30))
def test_no_text_becomes_markup(one: str, two: str) -> None:
    results = study(hostile=False)
    row = ResultRow(dataset=one, method=two, decoder=one, users="unseen", seed=0, stage="behaviour", metric="rouge1",
                    value=0.2, n_users=1, n_examples=1)  # fmt: skip
    sample = dataclasses.replace(results.samples[0], user_id=two, prompt=one, reference=two, generations={one: two})
    results = dataclasses.replace(
        results, name=one, rows=[*results.rows, row], samples=[sample], notes=[two], signatures=[one], command=two,
        datasets=[{"name": two, one: {two: [one]}}], failures=[{one: two + "\n"}], study={one: two},
        environment={two: one},
    )  # fmt: skip
    assert_inert(Reader(page.render(results)))


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import hashlib, sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from test_report_study import study\n"
        "from pointed import pointed\n"
        "from rewardgap.report import page\n"
        "for number, one in enumerate((study(), pointed(study()))):\n"
        "    path = Path(sys.argv[3], f'{number}.html'); page.write(one, path)\n"
        "    print(hashlib.sha256(path.read_bytes()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(Path(__file__).parents[1]), str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(hashes) == 1
    page.write(study(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page.render(study())
    again = StudyResults.from_json(study().to_json())
    assert page.render(again) == page.render(study())


def test_a_missing_number_is_a_dash_with_its_reason(hostile: Reader) -> None:
    text = page.render(study())
    assert 'title="no score for any of 48 examples">–</span>' in text
    assert 'title="no reward model guides it">–</span>' in text
    assert "<li>no score for any of 48 examples</li>" in text
    assert "3 examples without a score left out, not counted as zero" in hostile.text
    assert not re.search(r">\s*(None|nan|inf)\b", text)


def test_tables_say_how_they_are_sorted_and_carry_exact_values(hostile: Reader) -> None:
    assert ("th", "aria-sort", "descending") in hostile.values
    assert ("td", "data-sort", "0.301") in hostile.values
    assert ("td", "data-sort", "") in hostile.values
    titles = [value for tag, name, value in hostile.values if (tag, name) == ("td", "title")]
    assert "24 users, 144 examples, judge: lore" in titles


def test_words_of_the_reference_are_marked(hostile: Reader) -> None:
    assert {"Iterate", "over", "copy", "tree"} <= set(hostile.texts["mark"])
    assert "5 of 13 words" in hostile.text


def test_a_study_without_rows_still_makes_a_page() -> None:
    reader = Reader(page.render(StudyResults(name="empty", rows=[])))
    assert_inert(reader)
    assert "Nothing was measured that could choose a deployment." in reader.text


def test_many_models_and_seeds_make_a_page_of_sound_size() -> None:
    text = page.render(planted())
    assert_inert(Reader(text))
    assert [text.count(f'data-point="{place}"') for place in range(4)] == [7, 7, 7, 0]
    assert len(text) < 1_500_000
