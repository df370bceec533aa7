"""The rules of the diagnosis: each verdict stands on intervals, and falls where any of them allows another reading."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report_study import HOSTILE, main_rows

from rewardgap.core.decomposition import QUANTITIES, Decomposition
from rewardgap.core.results import StudyResults
from rewardgap.report.diagnosis import diagnose
from rewardgap.report.page import render
from rewardgap.report.waterfall import Fall, waterfall

STEERED = "lore · args_greedy λ=1 k=10"
DRAWN = "lore · best_of_n n=8"


def number(quantity: str, value: float, half: float | None = 0.02, deployment: str | None = None, **names: object):
    """A number of `lore` with an interval of a half-width, or none."""
    low, high = (None, None) if half is None else (value - half, value + half)
    return Decomposition(
        dataset="x", method="lore", step="ranking", quantity=quantity, deployment=deployment, value=value, ci_low=low,
        ci_high=high, n_users=20, n_examples=200, **names,
    )  # fmt: skip


def sound() -> dict[str, Decomposition]:
    """A reward model without a fault."""
    steered = {"deployment": STEERED, "guidance_weight": 1.0}
    return {
        "rm": number("rm_accuracy", 0.7),
        "half": number("prefix_accuracy", 0.62, share=0.5),
        "quarter": number("prefix_accuracy", 0.51, share=0.25),
        "kept": number("prefix_kept", 0.02, share=0.5),
        "to_half": number("to_half", -0.08),
        "policy": number("policy_accuracy", 0.6, **steered),
        "gain": number("guidance_gain", 0.05, **steered),
        "error": number("guidance_error", 0.1, **steered),
        "from_half": number("from_half", -0.02, **steered),
        "ratio": number("guidance_ratio", 0.8, unit="ratio", **steered),
        "own": number("win_own", 0.8, **steered),
        "other": number("win_other", 0.6, **steered),
        "win_kept": number("win_kept", -0.05, **steered),
        "writes": number("behaviour_gain", 0.03, metric="rouge1", **steered),
        "search": number("search_reward", -0.5, unit="reward", deployment=DRAWN, against=STEERED),
        "drawn": number("tokens", 400.0, unit="tokens", deployment=DRAWN),
        "spent": number("tokens", 390.0, unit="tokens", deployment=STEERED),
        "personal": number("personal_gain", 0.05),
    }


def moved(numbers: dict[str, Decomposition], **changes: float | tuple[float, float]) -> dict[str, Decomposition]:
    """The numbers with other values; a pair is a value and its half-width."""
    out = dict(numbers)
    for name, change in changes.items():
        value, half = change if isinstance(change, tuple) else (change, 0.02)
        out[name] = replace(out[name], value=value, ci_low=value - half, ci_high=value + half)
    return out


PREFIX = {"half": 0.51, "kept": -0.09}
HACKING = {"own": 0.9, "other": 0.51, "win_kept": -0.2, "writes": -0.01}
IMPERSONAL = {"personal": (0.0, 0.01)}
WEAK = {"ratio": 0.1, "error": 0.1}
STRONG = {"ratio": 6.0, "writes": -0.05}
SEARCH = {"search": 0.4}
FAULTS = {
    "has a prefix error": PREFIX,
    "shows reward hacking": HACKING,
    "is not personal": IMPERSONAL,
    "is too weak": WEAK,
    "is too strong": STRONG,
    "suffers from a search error": SEARCH,
}
ESCAPES = [
    ("has a prefix error", {"half": 0.53}),  # the whole interval lies above one half
    ("has a prefix error", {"kept": -0.01}),  # as much as half may have arrived
    ("has a prefix error", {"rm": 0.51}),  # there may be no advantage to lose
    ("shows reward hacking", {"own": 0.51}),
    ("shows reward hacking", {"other": 0.55}),
    ("shows reward hacking", {"win_kept": -0.01}),
    ("shows reward hacking", {"writes": 0.03}),
    ("is not personal", {"personal": (0.0, 0.02)}),
    ("is not personal", {"rm": 0.5}),
    ("is too weak", {"ratio": 0.24}),
    ("is too weak", {"error": 0.01}),
    ("is too strong", {"ratio": 4.01}),
    ("is too strong", {"writes": -0.01}),
    ("suffers from a search error", {"search": 0.01}),
    ("suffers from a search error", {"drawn": 500.0}),  # more than a tenth above the other's budget
    ("suffers from a search error", PREFIX),  # which says why
]


def said(numbers: dict[str, Decomposition]) -> list[str]:
    return diagnose(list(numbers.values()))


def test_a_sound_reward_model_has_no_verdict() -> None:
    assert said(sound()) == []


@pytest.mark.parametrize(("words", "changes"), FAULTS.items())
def test_each_fault_is_named_alone(words: str, changes: dict[str, float]) -> None:
    (sentence,) = said(moved(sound(), **changes))
    assert words in sentence
    assert "lore" in sentence


@pytest.mark.parametrize(("words", "escape"), ESCAPES)
def test_no_verdict_where_one_interval_allows_another_reading(words: str, escape: dict[str, float]) -> None:
    assert any(words in sentence for sentence in said(moved(sound(), **FAULTS[words])))
    assert not any(words in sentence for sentence in said(moved(sound(), **{**FAULTS[words], **escape})))


@pytest.mark.parametrize("changes", FAULTS.values())
def test_no_verdict_without_intervals(changes: dict[str, float]) -> None:
    """One user has values and no interval over users."""
    bare = [replace(one, ci_low=None, ci_high=None) for one in moved(sound(), **changes).values()]
    assert diagnose(bare) == []


@given(st.sets(st.sampled_from(sorted(sound()))), st.sampled_from(sorted(FAULTS)))
def test_what_was_not_measured_makes_no_verdict(missing: set[str], fault: str) -> None:
    numbers = moved(sound(), **FAULTS[fault])
    kept = {name: one for name, one in numbers.items() if name not in missing}
    faults = [words for words in FAULTS if any(words in sentence for sentence in said(kept))]
    # Without other judges, hacking is read from behaviour alone, which "too strong" has below zero-shot.
    assert set(faults) <= {fault} | ({"shows reward hacking"} if fault == "is too strong" else set())


@pytest.mark.parametrize("changes", FAULTS.values())
def test_no_verdict_from_fewer_than_eight_users(changes: dict[str, float]) -> None:
    few, enough = ([replace(one, n_users=n) for one in moved(sound(), **changes).values()] for n in (7, 8))
    assert diagnose(few) == []
    assert len(diagnose(enough)) == 1


@pytest.mark.parametrize(("examples", "verdicts"), [(149, 0), (150, 0), (151, 1)])
def test_cases_that_are_all_alike_leave_three_of_n_to_others(examples: int, verdicts: int) -> None:
    """No pair is ranked otherwise by another user's state: a gain of 2 points is ruled out by more than 150 pairs."""
    numbers = moved(sound(), personal=(0.0, 0.0))
    numbers["personal"] = replace(numbers["personal"], n_examples=examples)
    assert len(said(numbers)) == verdicts


def test_without_another_judge_hacking_needs_worse_behaviour() -> None:
    alone = {name: one for name, one in sound().items() if name not in ("other", "win_kept")}
    assert said(moved(alone, writes=-0.01)) == []
    (sentence,) = said(moved(alone, writes=-0.04))
    assert "shows reward hacking" in sentence
    assert "others" not in sentence


def test_guidance_is_too_weak_only_at_every_weight() -> None:
    weak = moved(sound(), **WEAK)
    louder = [
        replace(one, deployment="lore · args_greedy λ=4 k=10", guidance_weight=4.0, value=value, ci_low=value - 0.02,
                ci_high=value + 0.02)
        for one, value in ((weak["ratio"], 0.5), (weak["error"], 0.1))
    ]  # fmt: skip
    assert diagnose([*weak.values(), *louder]) == []


def test_points_of_a_study_are_told_apart() -> None:
    first = [replace(one, seed=0, policy="small") for one in moved(sound(), **IMPERSONAL).values()]
    second = [replace(one, seed=1, policy="small") for one in sound().values()]
    (sentence,) = diagnose([*first, *second])
    assert sentence.startswith("On x, small, seed 0: lore is not personal")


def bars(fall: Fall) -> dict[str, tuple[float, float]]:
    return {bar.label: (round(bar.begin, 9), round(bar.end, 9)) for bar, _ in fall.bars}


def test_the_waterfall_goes_down_from_ranking_to_the_guided_policy() -> None:
    numbers = sound()
    plot = waterfall(list(numbers.values()))
    assert plot is not None
    (fall,) = plot.falls
    assert (fall.method, fall.detail) == ("lore", "args_greedy λ=1 k=10")
    assert bars(fall) == {
        "ranks whole texts": (0.0, 0.2),
        "cut at one half": (0.2, 0.12),
        "in steering": (0.12, 0.1),
        "the guided policy ranks": (0.0, 0.1),
        "of it by guidance": (0.05, 0.1),
        "writes, ROUGE-1": (0.0, 0.03),
    }
    assert [bar.style for bar, _ in fall.bars] == ["stage", "loss", "loss", "stage", "gain", "stage"]
    assert [f"{bar.text} {bar.cell.interval}" for bar, _ in fall.bars][:2] == [
        "+20.0 [18.0, 22.0]",
        "−8.0 [−10.0, −6.0]",
    ]


def test_every_bar_is_drawn_from_where_it_begins_to_where_it_ends() -> None:
    plot = waterfall(list(sound().values()))
    assert plot is not None
    places = {}
    for bar, track in plot.falls[0].bars:
        root = ElementTree.fromstring(track)
        assert root.attrib["aria-hidden"] == "true"
        (drawn,) = root.findall("rect")
        left = float(drawn.attrib["x"].rstrip("%"))
        for value, place in zip(
            sorted((bar.begin, bar.end)), (left, left + float(drawn.attrib["width"].rstrip("%"))), strict=True
        ):
            places[round(value, 9)] = place
    values = sorted(places)
    slopes = {round((places[b] - places[a]) / (b - a), 0) for a, b in pairwise(values)}
    assert len(slopes) == 1 or max(slopes) - min(slopes) <= 2  # one scale; coordinates have two decimals


def test_the_deployment_that_wrote_best_is_shown() -> None:
    numbers = sound()
    other = "lore · args_greedy λ=4 k=10"
    more = [
        replace(numbers["policy"], deployment=other, value=0.55),
        replace(numbers["writes"], deployment=other, value=0.06),
        replace(numbers["writes"], deployment=DRAWN, value=0.09),  # not steered token by token
    ]
    plot = waterfall([*numbers.values(), *more])
    assert plot is not None
    assert plot.falls[0].detail == "args_greedy λ=4 k=10"
    assert bars(plot.falls[0])["writes, ROUGE-1"] == (0.0, 0.06)


def test_there_is_no_waterfall_of_ranking_alone() -> None:
    assert waterfall([]) is None
    assert waterfall([sound()["rm"]]) is None


def steps_section(numbers: list[Decomposition]) -> str:
    page = render(StudyResults(name="x", rows=main_rows("x"), decompositions=numbers))
    return page.partition('<section id="steps"')[2].partition('<section id="judges"')[0]


def test_the_page_says_every_number_of_the_drawing() -> None:
    section = steps_section(list(moved(sound(), **IMPERSONAL).values()))
    for text in ("+20.0", "[18.0, 22.0]", "−8.0", "[−10.0, −6.0]", "+3.0", "lore is not personal"):
        assert text in section
    assert section.count('<svg class="track"') == section.count('aria-hidden="true"') == 7  # six bars and the scale
    assert "No single step stands out" in steps_section(list(sound().values()))
    assert "No reward model here has both" in steps_section([])


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_stays_text(text: str) -> None:
    numbers = [
        replace(one, method=text, deployment=one.deployment and text, against=one.against and text)
        for one in moved(sound(), **IMPERSONAL).values()
    ]
    plain, section = steps_section(list(sound().values())), steps_section(numbers)
    assert section.count("<script") == section.count("<img") == section.count("<style") == 0
    # One sentence more stands in the place of one paragraph; the elements are otherwise the same.
    assert section.count("<svg") == plain.count("<svg")
    assert section.count("<bdi") == plain.count("<bdi")


def test_every_quantity_that_the_rules_read_is_defined() -> None:
    assert {one.quantity for one in sound().values()} <= set(QUANTITIES)
