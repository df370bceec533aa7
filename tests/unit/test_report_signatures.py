"""Failure signatures, the answer, and the board they read."""

import dataclasses

from test_report_study import MODELS, Rows, compared, main_rows, planted, study

from rewardgap.core.results import ResultRow, StudyResults, TauResult
from rewardgap.report.board import boards
from rewardgap.report.numbers import Cell, compare
from rewardgap.report.signatures import failure_signatures
from rewardgap.report.words import POLICY_ACCURACY, RM_ACCURACY, ROUGE_1, WIN_CROSS, axis


def of(models: dict, **more: object) -> StudyResults:
    rows = main_rows("d", models)
    return StudyResults(name="x", rows=rows, **compared(rows), **more)


def matching(results: StudyResults, words: str) -> list[str]:
    return [text for text in failure_signatures(results) if words in text]


def test_ranking_without_steering() -> None:
    good = (0.8, 0.75, {1.0: (0.74, 0.28, 0.8, 0.6, 1.0)})
    poor = (0.8, 0.75, {1.0: (0.55, 0.22, 0.8, 0.5, 1.0), 2.0: (0.74, 0.23, 0.8, 0.5, 1.0)})
    found = matching(of({"good": good, "poor": poor}), "ranks well but does not steer")
    assert len(found) == 1
    assert found[0].startswith("poor ranks well")
    assert "75.0 [70.8, 79.2]" in found[0]
    assert "55.0 [51.2, 58.8] (poor · args_greedy λ=1 k=10; in 1 of 2 deployments" in found[0]
    chance = (0.6, 0.53, {1.0: (0.40, 0.2, 0.8, 0.5, 1.0)})
    assert not matching(of({"chance": chance}), "ranks well")


def test_own_judge_above_95_with_text_no_better_than_zero_shot() -> None:
    found = matching(of(MODELS), "pleases its own judge only")
    assert len(found) == 2
    assert "99.0 [98.0, 100.0]" in found[1]
    assert "its ROUGE-1 is no better on the same users: −2.0 [−4.0, 0.0] points, not told apart" in found[1]
    assert "Another reward model, global_bt, gives 53.2 [47.1, 59.3]" in found[1]
    writes = {"m": (0.7, 0.6, {1.0: (0.6, 0.40, 0.99, 0.9, 1.0)})}
    assert not matching(of(writes), "pleases its own judge")
    unknown = StudyResults(name="x", rows=main_rows("d", MODELS))
    assert not matching(unknown, "pleases its own judge"), "without a paired comparison nothing is claimed"


def test_corrected_tau_below_zero() -> None:
    def tau(corrected: float | None, high: float) -> StudyResults:
        row = TauResult(dataset="d", x="rm_accuracy", y="rouge1", decoder="args", n_models=9, tau=-0.4,
                        corrected=corrected, low=-0.9, high=high)  # fmt: skip
        return of(MODELS, taus=[row])

    text = matching(tau(-0.5, -0.1), "write worse")[0]
    assert "Better rankers write worse under args: Kendall's τ between RM accuracy and ROUGE-1 over 9 reward" in text
    assert "is −0.50 [−0.90, −0.10] with the noise of users taken out." in text
    assert not matching(tau(-0.5, 0.1), "write worse"), "the interval holds zero"
    assert not matching(tau(None, 0.5), "write worse"), "a measured tau that is not identified says nothing"


def test_a_global_model_ahead_of_the_personal_ones() -> None:
    found = matching(of(MODELS), "knows no user")
    assert len(found) == 1
    assert "global_bt has 65.2 [61.0, 69.4], the best personal one, lore, 64.1" in found[0]
    alone = {"global_bt": MODELS["global_bt"]}
    assert not matching(of(alone), "knows no user")


def test_what_cannot_be_concluded_is_said() -> None:
    text = matching(of(MODELS), "What cannot be concluded")[0]
    assert "not identified with 2 reward models" in text
    assert "one seed" in text
    assert "cannot be told from the best one on 24 users, which is no proof that they are as good" in text
    seeds = planted()
    assert not matching(seeds, "one seed")
    assert all(text.startswith("On ") for text in failure_signatures(study()))


def test_without_references_the_independent_win_rate_decides() -> None:
    rows = [row for row in main_rows() if row.stage != "behaviour"]
    results = StudyResults(name="x", rows=rows)
    board = boards(results)[0]
    assert board.criterion is WIN_CROSS
    line = board.baseline
    assert line is not None
    assert board.cell(line, ROUGE_1).note == "no behaviour in this dataset: it needs texts that users wrote"
    assert board.cell(line, WIN_CROSS).note == "it is what the others are compared with"


def test_several_judges_show_the_least_favourable() -> None:
    board = boards(study(hostile=False))[0]
    icl = next(line for line in board.lines if line.label == "icl 4")
    assert [cell.judge for cell in icl.cells(WIN_CROSS)] == ["global_bt", "lore"]
    cell = board.cell(icl, WIN_CROSS)
    assert (cell.text, cell.judge) == ("58.4", "lore")


def test_lines_of_one_name_are_told_apart_by_what_differs() -> None:
    rows = Rows("d", method="lore", decoder="args", guidance_weight=1.0, top_k=5)
    alone = {"decoder": None, "guidance_weight": None, "top_k": None, "policy": None}
    for mode in ("frozen", "lora"):
        for backbone, value in (("small", 0.64), ("large", 0.68)):
            keys = {"fit_mode": mode, "reward_backbone": backbone}
            rows.add("behaviour", 0.2, 0.01, "rouge1", **keys)
            rows.add("rm_accuracy", value, 0.01, "accuracy", **keys, **alone)
        rows.add("rm_accuracy", 0.9, 0.01, "accuracy", users="seen", fit_mode=mode, reward_backbone=None, **alone)
    (board,) = boards(StudyResults(name="x", rows=rows.rows))
    assert [line.label for line in board.lines] == [
        f"lore · args λ=1 k=5 · {mode} · {backbone}" for mode in ("frozen", "lora") for backbone in ("small", "large")
    ]
    assert len(board.reward_models) == 4
    assert [board.cell(line, RM_ACCURACY).text for line in board.lines] == ["64.0", "68.0"] * 2
    assert all(model.find(RM_ACCURACY, "seen") is not None for model in board.reward_models)


def test_a_deployment_without_density_says_so() -> None:
    rows = Rows("d", method="lore", decoder="best_of_n", fit_mode="frozen")
    rows.add("behaviour", 0.2, 0.01, "rouge1")
    rows.add("policy_accuracy", 0.5, 0.01, "rgd_topk", method="zero_shot", decoder=None, fit_mode=None)
    board = boards(StudyResults(name="x", rows=rows.rows))[0]
    assert board.cell(board.lines[0], POLICY_ACCURACY).note == "not scored: no tractable density, or not run"


def test_not_a_number_is_missing() -> None:
    row = ResultRow(dataset="d", method="icl", users="unseen", seed=0, stage="behaviour", metric="rouge1",
                    value=float("nan"), n_users=1, n_examples=1)  # fmt: skip
    board = boards(StudyResults(name="x", rows=[row]))[0]
    assert board.cell(board.lines[0], ROUGE_1).text == "–"
    assert board.ranked() == []


def test_intervals_that_touch_overlap() -> None:
    one = Cell(0.2, 0.1, 0.3)
    assert compare(one, Cell(0.4, 0.3, 0.5)) == "overlap"
    assert compare(one, Cell(0.5, 0.31, 0.6)) == "below"
    assert compare(Cell(0.5, 0.31, 0.6), one) == "above"
    assert compare(one, dataclasses.replace(one, low=None)) == "unknown"


def test_axis_names() -> None:
    assert axis("behaviour.rouge1") == axis("rouge1") == "ROUGE-1"
    assert axis("rm_accuracy.accuracy") == axis("rm_accuracy") == "RM accuracy"
    assert axis("<new>") == "<new>"
