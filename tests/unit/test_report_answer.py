"""The executive answer: it follows from comparisons on the same users and from what a choice costs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from test_report_study import Rows, study

from made import made, noise, study_of
from rewardgap.core.results import ComparisonResult, HeterogeneityResult, RegretResult, StudyResults, TauResult
from rewardgap.report.answer import Answer, answer
from rewardgap.report.board import boards
from rewardgap.report.findings import crossover_sentence, measured_tau, meta_sentence, tau_text, verdict
from rewardgap.report.sheets import choice_sheet, comparison_sheets, tau_sheets, user_sheet
from rewardgap.studies.aggregate import deployed
from rewardgap.studies.comparisons import comparison_results, heterogeneity_results, regret_results

if TYPE_CHECKING:
    from pathlib import Path

    from rewardgap.studies.aggregate import Tables

GUIDED = "lore · args_greedy λ=1 k=10"


def results(
    best: str = "icl 2", *, gap: float | None = 0.07, p: float | None = 0.002, equivalent: bool | None = False,
    chosen: str | None = GUIDED, point: dict[str, Any] | None = None,
) -> StudyResults:  # fmt: skip
    """Return a study of zero-shot, two shots and one guided deployment, the best `gap` above zero-shot."""
    rows = Rows("d")
    base = 0.23
    means = {"zero_shot": base, "icl 2": base + 0.01, GUIDED: base - 0.01}
    means[best] = base + (0.01 if gap is None or best == "zero_shot" else gap)
    rows.add("behaviour", means["zero_shot"], 0.02, "rouge1", method="zero_shot")
    rows.add("behaviour", means["icl 2"], 0.02, "rouge1", method="icl", shots=2)
    rows.add("behaviour", means[GUIDED], 0.02, "rouge1", method="lore", decoder="args_greedy", guidance_weight=1.0,
             top_k=10)  # fmt: skip
    for method, value in (("zero_shot", 0.4), ("icl", 0.5)):
        shots = 2 if method == "icl" else None
        rows.add("cost", value, None, "seconds_per_completion", method=method, shots=shots)
    named = {"dataset": "d", "metric": "rouge1"} | (point or {})
    half = None if p is None else 0.03

    def one(a: str, b: str, kind: str, value: float | None) -> ComparisonResult:
        ends = (None, None) if value is None or half is None else (value - half, value + half)
        return ComparisonResult(
            **named, a=a, b=b, b_is=kind, difference=value, ci_low=ends[0], ci_high=ends[1], p_value=p, p_holm=p,
            n_users=24, margin=0.01, equivalent=equivalent, detectable=0.021, reason=None if p is not None else "one user",
        )  # fmt: skip

    comparisons = [one(name, "zero_shot", "baseline", gap) for name in means if name != "zero_shot"]
    comparisons += [one(name, best, "best", None if gap is None else -gap) for name in means if name != best]
    known = None if p is None else 0.83
    regrets = [RegretResult(**named, stage="rouge1", among="all", chosen=best, best=best, regret=0.0,
                            p_chosen_best=known, p_best={} if p is None else {best: 0.83}, n_users=24)]  # fmt: skip
    if chosen is not None:
        known = (None, None, None) if p is None else (0.063, 0.021, 0.098)
        regrets.append(
            RegretResult(**named, stage="rm_accuracy", among="all", chosen=chosen, best=best, regret=0.07,
                         expected=known[0], ci_low=known[1], ci_high=known[2], n_users=24)
        )  # fmt: skip
    return StudyResults(name="x", rows=rows.rows, comparisons=comparisons, regrets=regrets)


def said(found: StudyResults) -> Answer:
    return answer(found, boards(found)[0])


def test_the_headline_says_what_to_deploy_how_surely_and_what_rm_accuracy_costs() -> None:
    assert said(results()).headline == (
        "Deploy icl 2 (best with probability 0.83); RM accuracy would have chosen lore · args_greedy λ=1 k=10, "
        "costing 6.3 [2.1, 9.8] ROUGE-1 points."
    )
    assert said(results(GUIDED)).headline == (
        f"Deploy {GUIDED} (best with probability 0.83); RM accuracy would have chosen it too."
    )
    assert said(results(chosen=None)).headline == "Deploy icl 2 (best with probability 0.83)."


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({"p": 0.4}, "icl 2 is ahead (best with probability 0.83), but cannot be told from zero_shot."),
        (
            {"p": 0.4, "equivalent": True, "gap": 0.002},
            "icl 2 (best with probability 0.83) is no better than zero_shot: the two are as good within 1.0 point.",
        ),
        ({"p": None}, "icl 2 is ahead of zero_shot; nobody can say how surely (one user)."),
        (
            {"best": "zero_shot", "gap": -0.02},
            "Deploy zero_shot (best with probability 0.83): nothing here was measured to write better.",
        ),
    ],
)
def test_the_headline_does_not_oversell(changes: dict[str, Any], headline: str) -> None:
    assert said(results(chosen=None, **changes)).headline == headline


def test_scores_that_are_the_same_with_every_user_are_called_so() -> None:
    found = results(chosen=None, gap=0.0, p=1.0, equivalent=None)
    same = [dataclasses.replace(one, ci_low=0.0, ci_high=0.0) for one in found.comparisons]
    text = said(dataclasses.replace(found, comparisons=same)).headline
    assert text.endswith("is no better than zero_shot: the two are as good with every user.")


def test_the_sentences_carry_the_paired_numbers() -> None:
    text = " ".join(said(results()).sentences)
    assert "By ROUGE-1 against what the users wrote, the best of 3 deployments is icl 2 with 30.0 [28.0, 32.0]." in text
    assert "icl 2 against zero_shot on the same 24 users: +7.0 points [4.0, 10.0], p 0.002 after Holm: better." in text
    assert "Of the others, compared with it on the same 24 users: 2 worse beyond chance." in text
    assert f"by RM accuracy {GUIDED}, costing 6.3 [2.1, 9.8]." in text
    text = " ".join(said(results(p=0.4)).sentences)
    assert "2 not told apart; a difference of 2.1 points would show in 4 of 5 studies like this." in text
    assert "The cheapest of the 3 deployments that are not told from the best, itself included, is zero_shot" in text


def test_intervals_that_overlap_decide_nothing() -> None:
    """The intervals of the two means overlap, and the paired difference is beyond chance: it is the latter that counts."""
    found = results(gap=0.02)
    cells = [boards(found)[0].cell(line, boards(found)[0].criterion) for line in boards(found)[0].ordered()]
    assert cells[0].low < cells[1].high
    assert said(found).headline.startswith("Deploy icl 2 (best with probability 0.83);")


def test_the_whole_study_is_answered() -> None:
    whole = study(hostile=False)
    found = said(whole)
    assert found.headline == (
        "Deploy icl_rag 4 (best with probability 0.80); RM accuracy would have chosen global_bt · args_greedy λ=0.5 "
        "k=10, costing 6.1 [3.3, 9.3] ROUGE-1 points."
    )
    text = " ".join(found.sentences)
    assert "icl_rag 4 writes better than zero_shot for 72.0 % of users [55.0, 88.0]; users differ by 4.0 points" in text
    assert "the cheapest" not in text and "The cheapest of the 4 deployments" in text
    assert found.cautions[0].startswith("1 of 4 controls fails (user swap)")
    assert [fact.text for fact in found.facts] == ["30.1", "+7.0", "6.1"]


def test_several_points_are_answered_one_by_one() -> None:
    parts = [results(best, point={"seed": seed, "policy": "p"}) for seed, best in ((0, "icl 2"), (1, "icl 2"))]
    whole = dataclasses.replace(
        parts[0],
        comparisons=[one for part in parts for one in part.comparisons],
        regrets=[one for part in parts for one in part.regrets],
    )
    found = said(whole)
    assert found.headline == "Deploy icl 2: it is the best at all 2 points (with probability 0.83)."
    assert found.sentences[0].startswith("seed 0: Deploy icl 2 (best with probability 0.83); RM accuracy would have")
    assert (
        found.sentences[-1] == "RM accuracy would have chosen the best at 0 of 2 points; elsewhere it costs 6.3 points."
    )
    other = results(GUIDED, point={"seed": 2, "policy": "p"})
    mixed = dataclasses.replace(
        whole, comparisons=whole.comparisons + other.comparisons, regrets=whole.regrets + other.regrets
    )
    assert said(mixed).headline == "What to deploy depends on the point: icl 2 is the best at 2 of 3 points."
    assert "RM accuracy would have chosen the best at 1 of 3 points" in said(mixed).sentences[-1]
    (sheet,) = comparison_sheets(mixed, "d")
    assert sheet.heads[0] == "Point"
    assert {row[0] for row in sheet.rows} == {"seed 0", "seed 1", "seed 2"}


def test_without_comparisons_nothing_is_claimed() -> None:
    bare = dataclasses.replace(results(), comparisons=[], regrets=[])
    assert said(bare).headline == "icl 2 has the highest ROUGE-1 of 3 deployments, 30.0 [28.0, 32.0]."
    assert "no comparison of deployments on the same users" in said(bare).sentences[0]
    assert answer(StudyResults(name="x", rows=[]), None).headline == (
        "Nothing was measured that could choose a deployment."
    )


def answered(tables: Tables) -> Answer:
    """Return the answer of made-up records, from the comparisons on."""
    rows = [
        dataclasses.replace(
            deployed(tables.template("unseen", "behaviour", "rouge1"), tables, one.deployment),
            value=float(tables.scores.by_user(tables.scores.stage("rouge1", one)).mean()),
        )
        for one in tables.scores.written
    ]
    return said(
        StudyResults(
            name="x",
            rows=rows,
            comparisons=comparison_results(tables),
            regrets=regret_results(tables),
            heterogeneity=heterogeneity_results(tables),
        )
    )


def test_a_planted_difference_and_a_planted_equality_reach_the_headline(tmp_path: Path) -> None:
    """Two shots better by 6 points; then all alike with little noise; then all alike with much of it."""

    def rouge(gain: float, spread: float) -> Any:
        return lambda label, user, example: (
            0.3 + gain * (label == "icl 2") - 0.05 * (label == "lore") + spread * noise(label, user, example)
        )

    def right(label: str, user: int, example: int) -> float:
        return 1.0

    small = study_of(16, 2, reward_models=[{"method": "lore"}])
    better = answered(made(tmp_path / "a", small, rouge(0.06, 0.01), accuracy=right))
    assert better.headline.startswith("Deploy icl 2 (best with probability over 0.99); RM accuracy would have chosen")
    assert GUIDED in better.headline
    alike = answered(made(tmp_path / "b", small, rouge(0.0, 0.005)))
    assert "is no better than zero_shot: the two are as good within 1.0 point" in alike.headline or (
        "nothing here was measured to write better" in alike.headline
    )
    assert "as good within 1.0 point" in " ".join(alike.sentences)
    unclear = answered(made(tmp_path / "c", small, rouge(0.0, 0.2)))
    assert "as good" not in " ".join((unclear.headline, *unclear.sentences))
    assert "not told apart" in " ".join(unclear.sentences)


def test_a_tau_is_never_shown_by_its_naive_interval_alone() -> None:
    taus = {tau.x + tau.y: tau for tau in study(hostile=False).taus}
    known, unsure = taus["rm_accuracyrouge1"], taus["win_selfrouge1"]
    assert tau_text(known) == "−0.44 [−0.83, 0.12]"
    assert measured_tau(known) == "−0.31 (naive [−0.62, 0.08])"
    assert tau_text(unsure).startswith("not identified: split-half reliability 0.40 is below 0.8")
    sheets = tau_sheets(study(hostile=False), "docstrings")
    assert [sheet.title for sheet in sheets] == [
        "Rank correlation with ROUGE-1",
        "Rank correlation with policy accuracy",
    ]
    assert [row[4] for sheet in sheets for row in sheet.rows] == [
        "−0.44 [−0.83, 0.12]",
        "not identified",
        "not identified",
    ]
    assert sheets[1].rows[0][2] == "no: 2 reward models; a rank correlation needs 6"
    older = StudyResults.from_json(
        {"name": "x", "rows": [], "taus": [{"dataset": "d", "x": "rm_accuracy · args", "y": "rouge1 · args",
                                            "n_models": 7, "tau": 0.5, "ci_low": 0.1, "ci_high": 0.8}]}
    ).taus[0]  # fmt: skip
    assert measured_tau(older) == "0.50 (naive [0.10, 0.80])"
    assert tau_text(older) == "not identified: these results are older than the corrected interval"


def test_tables_hold_every_finding() -> None:
    whole = study(hostile=False)
    (sheet,) = comparison_sheets(whole, "docstrings")
    assert sheet.rows[0][0] == "icl_rag 4"
    assert sheet.rows[0][1] == "+7.0 [5.0, 9.0]"
    assert sheet.rows[0][5:] == ("0.80", "better", "this one")
    assert len(sheet.rows) == len({one.a for one in whole.comparisons}) == 9
    choices = choice_sheet(whole, "docstrings")
    assert [row[0] for row in choices.rows] == ["ROUGE-1 itself", "RM accuracy"]
    assert user_sheet(whole, "docstrings").rows[0][-1] == "n=8: 15 / 1 / 8"
    assert choice_sheet(whole, "synthetic_text") is None


def test_verdicts_and_crossovers_in_words() -> None:
    one = results().comparisons[0]
    assert verdict(one) == "better"
    assert verdict(dataclasses.replace(one, equivalent=True)) == "better, though within 1.0 point"
    assert verdict(dataclasses.replace(one, p_holm=0.3)) == "not told apart; 2.1 points would show"
    assert verdict(dataclasses.replace(one, p_holm=None, reason="one user")) == "not known: one user"
    cross = study(hostile=False).crossovers[0]
    assert crossover_sentence(cross) == (
        "icl_rag overtakes lore · args_greedy λ=0.5 k=10 in ROUGE-1 at 4 demonstrations (95 % interval: below the range "
        "to 6.5; measured from 2 to 8; 24 users)."
    )
    scale = dataclasses.replace(cross, axis="parameters", places=[1.35e8, 7e9], where="above", at=None, ci_high=None,
                                ci_low=3e9, low_where="inside", high_where="above")  # fmt: skip
    assert crossover_sentence(scale) == (
        "icl_rag is not ahead of lore · args_greedy λ=0.5 k=10 in ROUGE-1 up to 7B parameters of the policy, the most "
        "tried: the crossover lies outside the range (95 % interval: 3B to above the range; measured from 135M to 7B; "
        "24 users)."
    )
    assert meta_sentence(study(hostile=False).meta[0]) == (
        "τ between RM accuracy and ROUGE-1, mean of 3 points: 0.21 [−0.30, 0.60]; at another point like these it would "
        "lie in [−0.70, 0.80]; 35.0 % of the spread is not chance (I²); 1 point left out, where it is not identified or "
        "±1."
    )


def test_effects_that_are_not_known_say_why() -> None:
    found = dataclasses.replace(
        results(),
        heterogeneity=[HeterogeneityResult(dataset="d", metric="rouge1", deployment="icl 2", baseline="zero_shot",
                                           reason="no user with two examples")],
    )  # fmt: skip
    assert user_sheet(found, "d").rows[0][-1] == "no user with two examples"
    assert "users" not in " ".join(s for s in said(found).sentences if "writes better" in s)
    assert TauResult(dataset="d", x="a", y="b", n_models=2).point() == ("d", None, None, None, None)
