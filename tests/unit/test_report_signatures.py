"""Failure signatures, the answer, and the board they read."""

import dataclasses

from test_report_study import MODELS, Rows, main_rows, planted, study

from rewardgap.core.results import ResultRow, StudyResults, TauResult
from rewardgap.report.answer import answer
from rewardgap.report.board import boards
from rewardgap.report.numbers import Cell, compare
from rewardgap.report.signatures import failure_signatures
from rewardgap.report.words import POLICY_ACCURACY, RM_ACCURACY, ROUGE_1, WIN_CROSS, axis


def of(models: dict, **more: object) -> StudyResults:
    return StudyResults(name="x", rows=main_rows("d", models), **more)


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


def test_own_judge_above_95_with_text_like_zero_shot() -> None:
    found = matching(of(MODELS), "pleases its own judge only")
    assert len(found) == 2
    assert "99.0 [98.0, 100.0]" in found[1]
    assert "the intervals overlap; the interval of the difference is not known" in found[1]
    assert "Another reward model, global_bt, gives 53.2 [47.1, 59.3]" in found[1]
    writes = {"m": (0.7, 0.6, {1.0: (0.6, 0.40, 0.99, 0.9, 1.0)})}
    assert not matching(of(writes), "pleases its own judge")


def test_tau_below_zero() -> None:
    def tau(value: float | None, high: float) -> StudyResults:
        row = TauResult(
            dataset="d", x="rm_accuracy", y="behaviour.rouge1", n_models=9, tau=value, ci_low=-0.9, ci_high=high
        )
        return of(MODELS, taus=[row])

    assert "is −0.40 [−0.90, −0.10]." in matching(tau(-0.4, -0.1), "write worse")[0]
    assert "also possible" in matching(tau(-0.4, 0.1), "write worse")[0]
    assert not matching(tau(0.4, 0.5), "write worse")
    assert not matching(tau(None, 0.5), "write worse")


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
    assert "overlap is no proof of equality" in text
    seeds = planted()
    assert not matching(seeds, "one seed")
    assert all(text.startswith("On ") for text in failure_signatures(study()))


def test_the_answer_says_what_to_deploy_and_what_rm_accuracy_costs() -> None:
    results = study(hostile=False)
    said = answer(results, boards(results)[0])
    assert said.headline == "Deploy icl_rag 4; 3 others cannot be told from it."
    text = " ".join(said.sentences)
    assert "7.0 points above zero_shot (23.1 [20.5, 25.7]); the lead is outside the intervals (24 users)" in text
    assert "Second is icl_rag 8 with 29.6 [27.0, 32.2], 0.5 points behind; the intervals overlap" in text
    assert "would have deployed global_bt, the highest RM accuracy of 2 reward models (65.2 [61.0, 69.4])" in text
    assert "global_bt · args_greedy λ=0.5 k=10 has 23.8 [21.2, 26.4]. That costs 6.3 points" in text
    assert "the cheapest of them is icl_rag 2 at 0.49 seconds" in text
    assert said.cautions[0].startswith("1 of 4 controls fails (user swap)")
    assert [fact.text for fact in said.facts] == ["30.1", "23.1", "23.8"]


def test_the_answer_does_not_oversell() -> None:
    def head(**values: tuple[float | None, float | None]) -> str:
        rows = Rows("d")
        for method, (value, half) in values.items():
            rows.add("behaviour", value, half, "rouge1", method=method, shots=None if method == "zero_shot" else 2)
        results = StudyResults(name="x", rows=rows.rows)
        return answer(results, boards(results)[0]).headline

    assert head(zero_shot=(0.2, 0.02), icl=(0.21, 0.02)) == "icl 2 is ahead, but not distinguishable from zero_shot."
    assert head(zero_shot=(0.2, 0.02), icl=(0.3, 0.02)) == "Deploy icl 2."
    assert "nothing here was measured to write better" in head(zero_shot=(0.2, 0.02), icl=(0.19, 0.02))
    assert "without intervals" in head(zero_shot=(0.2, None), icl=(0.21, None))
    assert head(zero_shot=(None, None)) == "Nothing was measured that could choose a deployment."


def test_without_references_the_independent_win_rate_decides() -> None:
    rows = [row for row in main_rows() if row.stage != "behaviour"]
    results = StudyResults(name="x", rows=rows)
    board = boards(results)[0]
    assert board.criterion is WIN_CROSS
    said = answer(results, board)
    assert said.headline.startswith("Deploy icl_rag 4")
    assert said.sentences[0].startswith("No text of the users to compare with; by another judge")
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


def test_seeds_are_pooled_to_their_mean_and_the_span_of_intervals() -> None:
    rows = Rows("d", method="icl", shots=2)
    for seed, value in ((0, 0.2), (1, 0.3)):
        rows.add("behaviour", value, 0.01, "rouge1", seed=seed)
    rows.add("behaviour", None, None, "rouge1", seed=2)
    board = boards(StudyResults(name="x", rows=rows.rows))[0]
    cell = board.cell(board.lines[0], ROUGE_1)
    assert cell.full == "25.0 [19.0, 31.0]"
    assert cell.note == "1 of 3 seeds without a value"
    assert board.seeds == (0, 1, 2)


def test_lines_of_one_name_are_told_apart_by_what_differs() -> None:
    rows = Rows("d", method="lore", decoder="args", guidance_weight=1.0, top_k=5)
    for mode in ("frozen", "lora"):
        for size in (4, 8):
            keys = {"fit_mode": mode, "support_size": size}
            rows.add("behaviour", 0.2, 0.01, "rouge1", **keys)
            keys |= {"decoder": None, "guidance_weight": None, "top_k": None, "policy": None}
            rows.add("rm_accuracy", 0.6 + size / 100, 0.01, "accuracy", **keys)
        rows.add("rm_accuracy", 0.9, 0.01, "accuracy", users="seen", decoder=None, guidance_weight=None, top_k=None,
                 fit_mode=mode, support_size=None, policy=None)  # fmt: skip
    board = boards(StudyResults(name="x", rows=rows.rows))[0]
    assert [line.label for line in board.lines] == [
        f"lore · args λ=1 k=5 · {mode} · n={size}" for mode in ("frozen", "lora") for size in (4, 8)
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
