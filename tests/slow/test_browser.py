"""The page in a browser: it sorts, filters, shows one point, two texts side by side, and lets no text become script."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pointed import POLICIES, pointed
from rewardgap.report import page

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from test_report_study import study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None or DRIVER is None, reason="needs a browser: apt-get install chromium chromium-driver"
    ),
]
ATTACKS = (
    "<script>window.flag = 1</script>",
    '"><img src=x onerror="window.flag = 1">',
    "</script><script>window.flag = 1</script>",
    "' onmouseover='window.flag = 1' x='",
    "\u202egnirts\u202c \u2066and\u2069",
    "before\x00after </textarea></title></style><b onclick=window.flag=1>",
)
DESKTOP, PHONE = 1200, 360


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One point, as the demo has; several points; and texts that try to be script."""
    folder = tmp_path_factory.mktemp("pages")
    one = study(hostile=False)
    sample = one.samples[0]
    attacked = [
        dataclasses.replace(sample, user_id=text, example_id=f"{i}", prompt=text, reference=text,
                            generations={"zero_shot": text, text: f"{text} again", "icl_rag 4": "plain"})
        for i, text in enumerate(ATTACKS)
    ]  # fmt: skip
    hostile = dataclasses.replace(study(), name=ATTACKS[0], samples=attacked, notes=list(ATTACKS))
    made = {"one": one, "several": pointed(one), "hostile": hostile}
    for name, results in made.items():
        page.write(results, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in made}


def visit(browser: Chrome, path: Path, width: int = DESKTOP, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    # Without motion an element stands still once it is scrolled to, so that a click lands on it.
    wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(path.as_uri())


def all_of(browser: Chrome | WebElement, selector: str) -> list[WebElement]:
    return browser.find_elements("css selector", selector)


def choose(browser: Chrome, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", name)).select_by_value(value)


def keys(table: WebElement, column: int) -> list[float]:
    cells = all_of(table, f"tbody tr td:nth-child({column + 1})")
    return [float(text) for cell in cells if (text := cell.get_attribute("data-sort"))]


def shown(elements: list[WebElement]) -> list[WebElement]:
    return [one for one in elements if one.is_displayed()]


@pytest.mark.parametrize("name", ["one", "several", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_page_opens_without_an_error_and_fits(
    browser: Chrome, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    visit(browser, pages[name], width, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) > 384
    assert light == (scheme == "light")
    assert browser.execute_script("return document.documentElement.classList.contains('js')")


def test_a_click_on_a_head_sorts_and_a_second_one_turns_the_order(browser: Chrome, pages: dict[str, Path]) -> None:
    visit(browser, pages["one"])
    table = all_of(browser, "#leaderboard table")[0]
    heads = all_of(table, "thead tr:last-child th")
    column = next(i for i, head in enumerate(heads) if head.text.startswith("RM"))
    before = keys(table, column)
    heads[column].find_element("tag name", "button").click()
    assert heads[column].get_attribute("aria-sort") == "descending"
    down = keys(table, column)
    assert down == sorted(before, reverse=True) != before
    last = all_of(table, "tbody tr")[-1]
    assert all_of(last, "td")[column - 1].get_attribute("data-sort") == ""
    heads[column].find_element("tag name", "button").send_keys("\ue007")
    assert heads[column].get_attribute("aria-sort") == "ascending"
    assert keys(table, column) == down[::-1]
    assert [head.get_attribute("aria-sort") for head in heads].count("none") == len(heads) - 1
    names = [row.text for row in all_of(table, "tbody th")]
    heads[0].find_element("tag name", "button").click()
    assert [row.text for row in all_of(table, "tbody th")] == sorted(names) != names


def test_a_filter_hides_the_other_rows(browser: Chrome, pages: dict[str, Path]) -> None:
    visit(browser, pages["one"])
    field = all_of(browser, "#leaderboard .filter input")[0]
    rows = all_of(all_of(browser, "#leaderboard table")[0], "tbody tr")
    field.send_keys("icl_rag 4")
    assert [row.find_element("tag name", "th").text for row in shown(rows)] == ["icl_rag 4"]
    assert all_of(browser, "#leaderboard .filter output")[0].text == f"1 of {len(rows)}"
    field.clear()
    field.send_keys(" ")
    assert len(shown(rows)) == len(rows)


def test_one_point_is_shown_and_another_on_demand(browser: Chrome, pages: dict[str, Path]) -> None:
    visit(browser, pages["several"])
    parts = all_of(browser, "#leaderboard .point")
    assert len(parts) == 2 * len(POLICIES) + 1
    (first,) = shown(parts)
    assert first.find_element("tag name", "h3").text == f"docstrings, {POLICIES[0]}, n=4"
    choose(browser, "point", "5")
    (other,) = shown(parts)
    assert other.find_element("tag name", "h3").text == f"docstrings, {POLICIES[2]}, n=8"
    sections = {part.get_attribute("data-point") for part in shown(all_of(browser, ".point"))}
    assert sections == {"5"}
    lifted = [float(part.find_element("css selector", "td.best[data-sort]").get_attribute("data-sort") or "nan")
              for part in (first, other)]  # fmt: skip
    assert lifted[0] == lifted[1], "accuracy of reward models does not know the policy"


def test_without_script_all_points_and_texts_are_there(browser: Chrome, pages: dict[str, Path]) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        visit(browser, pages["several"])
        assert len(shown(all_of(browser, "#leaderboard .point"))) == 2 * len(POLICIES) + 1
        assert not shown(all_of(browser, "select"))
        assert len(all_of(browser, ".person summary")) == len(shown(all_of(browser, ".person summary"))) == 2
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_two_texts_stand_side_by_side(browser: Chrome, pages: dict[str, Path], width: int) -> None:
    visit(browser, pages["one"], width)

    def texts() -> list[str]:
        found = shown(all_of(browser, "#explorer .texts .text"))
        return [one.find_element("css selector", ".tagline bdi").text for one in found]

    assert sorted(texts()) == ["icl_rag 4", "zero_shot"]
    choose(browser, "left", "2")
    choose(browser, "right", "1")
    assert sorted(texts()) == ["icl_rag 4", "lore · args_greedy λ=2 k=10"]
    left, right = sorted(
        shown(all_of(browser, "#explorer .texts .text")), key=lambda one: (one.rect["y"], one.rect["x"])
    )
    assert left.text.startswith("lore")
    assert (left.rect["y"] == right.rect["y"]) == (width == DESKTOP)
    choose(browser, "who", "1")
    choose(browser, "which", "1")
    (prompt,) = shown(all_of(browser, "#explorer .reference"))
    assert prompt.text.endswith("Iterate over the words of a text.")
    words = shown(all_of(browser, "#explorer mark"))
    assert words and {word.text for word in words} <= {"Iterate", "over", "the", "words", "of", "a", "text"}
    assert "underline" in words[0].value_of_css_property("text-decoration")
    choose(browser, "left", "")
    assert len(texts()) == 3


def test_texts_stay_texts(browser: Chrome, pages: dict[str, Path]) -> None:
    visit(browser, pages["hostile"])
    for number, text in enumerate(ATTACKS):
        choose(browser, "who", str(number))
        for name in ("left", "right"):
            choose(browser, name, "0")
        card = shown(all_of(browser, "#explorer article"))[0]
        read = "return arguments[0].querySelector(arguments[1]).lastChild.textContent"
        wanted = text.replace("\x00", "\ufffd")
        assert browser.execute_script(read, card, ".prompt") == wanted
        assert browser.execute_script(read, card, ".reference") == wanted
        for one in shown(all_of(card, "[data-label]")):
            browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))", one)
    elements: list[Any] = browser.execute_script(
        "return [window.flag, document.scripts.length, document.images.length, document.querySelectorAll('b[onclick]').length]"
    )
    assert elements == [None, 1, 0, 0]
    assert browser.execute_script("return document.querySelector('h1').textContent") == ATTACKS[0]
    assert browser.get_log("browser") == []
