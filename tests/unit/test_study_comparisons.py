"""What a study says of its deployments: the numbers of `rewardgap.stats`, and planted truths found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from made import METHODS, made, noise, study_of
from rewardgap import stats
from rewardgap.studies.comparisons import (
    comparison_results,
    heterogeneity_results,
    outcome,
    regret_results,
    support_results,
)
from rewardgap.studies.correlations import tau_results

if TYPE_CHECKING:
    from pathlib import Path

    from rewardgap.studies.aggregate import Tables

USERS, QUERY = 30, 4
BETTER = {"icl 1": 0.0, "icl 2": 0.06} | {name: -0.01 * i for i, name in enumerate(METHODS)}
RANKS = {name: 0.9 - 0.1 * i for i, name in enumerate(METHODS)}


def rouge(label: str, user: int, example: int) -> float:
    own = 0.02 * noise(label, user, example)
    return 0.3 + BETTER.get(label, 0.0) + 0.05 * noise("user", user) + own


def hit(label: str, user: int, example: int) -> float:
    return float(0.5 * noise("hit", label, user, example) + RANKS[label] - 0.5 > 0)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return made(
        tmp_path_factory.mktemp("made"),
        study_of(USERS, QUERY),
        rouge,
        accuracy=hit,
        seen=lambda name: 1.0 if name == "vpl" else 0.5,
        policy=lambda label, user, example: float(noise("policy", label, user, example) > 0),
        reward=lambda judge, label, user, example: float(judge == label) + 0.3 * noise(judge, label, user, example),
    )


def matrix(value: object, names: list[str], users: int = USERS) -> np.ndarray:
    """Return (M, U) means of users, by the functions the records were made of."""
    return np.array([[np.mean([value(m, u, n) for n in range(QUERY)]) for u in range(users)] for m in names])


LABELS = ["zero_shot", "icl 1", "icl 2", *METHODS]


def test_comparisons_are_those_of_stats_on_the_same_matrix(tables: Tables) -> None:
    scores = matrix(rouge, LABELS)
    found = comparison_results(tables)
    shown = [one.label for one in tables.scores.written]
    assert shown[:3] == ["zero_shot", "icl 1", "icl 2"]
    users = [f"u{i}" for i in range(USERS)]
    for kind, anchor in (("baseline", 0), ("best", 2)):
        own = [one for one in found if one.b_is == kind]
        assert {one.b for one in own} == {shown[anchor]}
        by_hand = stats.compare_deployments(scores, shown, against=shown[anchor], resamples=9 * 400)
        assert [one.a for one in own] == [one.a for one in by_hand]
        for one, expected in zip(own, by_hand, strict=True):
            at = shown.index(one.a)
            assert one.difference == pytest.approx(expected.difference)
            assert (one.ci_low, one.ci_high) == pytest.approx((expected.low, expected.high))
            assert (one.p_value, one.p_holm) == (expected.p_value, expected.p_holm)
            same = stats.equivalence(scores[at], scores[anchor], users, 0.01)
            assert (one.equivalent, one.margin) == (same.equivalent, 0.01)
            assert (one.equivalence_p, one.equivalence_low) == pytest.approx((same.p_value, same.low))
            least = stats.minimal_detectable_difference(scores[at], scores[anchor], users)
            assert one.detectable == pytest.approx(least.difference)
            assert one.point() == ("synthetic_text", None, "synthetic-words", 4, 0)


def test_a_planted_difference_is_found_and_equality_is_shown_where_the_data_suffice(tables: Tables) -> None:
    found = {one.a: one for one in comparison_results(tables) if one.b_is == "baseline"}
    better = found["icl 2"]
    assert better.ci_low < 0.06 < better.ci_high
    assert better.p_holm < 0.01
    assert better.equivalent is False
    same = found["icl 1"]
    assert same.equivalent is True
    assert same.p_holm > 0.05


def test_equality_is_not_claimed_where_the_data_do_not_suffice(tmp_path: Path) -> None:
    def wild(label: str, user: int, example: int) -> float:
        return 0.3 + 0.2 * noise(label, user, example)

    few = made(tmp_path, study_of(6, 1, reward_models=[{"method": "lore"}]), wild)
    for one in comparison_results(few):
        assert one.equivalent is False
        assert one.detectable > 0.01


def test_equal_scores_with_every_user_have_nothing_to_test(tmp_path: Path) -> None:
    tables = made(tmp_path, study_of(6, 1, reward_models=[]) | {"deployments": [
        {"policy": "zero_shot"}, {"policy": "icl", "num_demonstrations": 1}]}, lambda label, user, example: 0.1 * user)  # fmt: skip
    (one,) = [one for one in comparison_results(tables) if one.b_is == "baseline"]
    assert (one.difference, one.p_holm, one.equivalent) == (0.0, 1.0, None)
    assert one.reason == "every user's difference is the same, so there is no spread to test with"


def test_regret_is_that_of_stats_with_the_best_setting_of_a_tie(tables: Tables) -> None:
    found = {(one.stage, one.among): one for one in regret_results(tables)}
    scores, ranking = matrix(rouge, LABELS), matrix(hit, list(METHODS))
    shown = [one.label for one in tables.scores.written]
    own = found["rouge1", "all"]
    order = np.argsort(-scores.mean(axis=1), kind="stable")
    by_hand = stats.selection_regret(scores[order], scores[order], [shown[i] for i in order], 500)
    assert own.chosen == own.best == "icl 2"
    assert own.p_best == dict(by_hand.p_best)
    assert own.p_chosen_best > 0.99
    for stage, guided in (("rm_accuracy", ranking), ("rm_accuracy_seen", None)):
        one = found[stage, "all"]
        full = np.full(scores.shape, -1.0)
        full[3:] = ranking if guided is not None else np.array([[0.5]] * 6 + [[1.0]])
        by_hand = stats.selection_regret(full[order], scores[order], [shown[i] for i in order], 500)
        assert (one.chosen, one.best) == (by_hand.chosen, "icl 2")
        assert (one.regret, one.expected, one.ci_low, one.ci_high) == pytest.approx(
            (by_hand.regret, by_hand.expected, by_hand.low, by_hand.high)
        )
        assert one.out_of_bag == pytest.approx(by_hand.out_of_bag)
        assert one.p_chosen_best == by_hand.p_chosen_best
    assert found["rm_accuracy", "all"].chosen.startswith("global_bt ·")
    assert found["rm_accuracy_seen", "guided"].chosen.startswith("vpl ·")
    assert found["rm_accuracy_seen", "guided"].best.startswith("global_bt ·")
    assert found["rm_accuracy_seen", "guided"].ci_low < 0.06 < found["rm_accuracy_seen", "guided"].ci_high
    assert {stage for stage, _ in found} == {
        "rouge1", "rm_accuracy", "rm_accuracy_seen", "policy_accuracy", "win_self", "win_cross"
    }  # fmt: skip


def test_taus_are_those_of_stats_on_the_same_matrix(tables: Tables) -> None:
    found = {(one.x, one.y): one for one in tau_results(tables)}
    names = list(METHODS)
    scores, ranking = matrix(rouge, names), matrix(hit, names)
    one, by_hand = found["rm_accuracy", "rouge1"], stats.rank_correlation(ranking, scores, 500)
    for name in ("tau", "naive_low", "naive_high", "corrected", "low", "high", "population", "spearman", "p_value",
                 "spearman_p", "population_low", "population_high"):  # fmt: skip
        assert getattr(one, name) == pytest.approx(getattr(by_hand, name)), name
    assert one.disattenuated == pytest.approx(by_hand.spearman_disattenuated)
    assert (one.leave_one_out_low, one.leave_one_out_high) == by_hand.leave_one_out
    assert one.reliability_x == pytest.approx(by_hand.reliability_x.value)
    assert one.low > 0, "the planted order is the same at both stages"
    assert (one.n_models, one.n_users, one.reason) == (7, USERS, None)
    assert found["policy_accuracy", "rouge1"].corrected is None
    assert found["policy_accuracy", "rouge1"].reason.startswith("not identified: split-half reliability")
    assert set(found) == {
        ("rm_accuracy", "policy_accuracy"),
        *((x, "rouge1") for x in ("rm_accuracy", "policy_accuracy", "win_self", "win_cross")),
    }


def test_wins_are_those_of_the_judges_that_did_not_guide(tables: Tables) -> None:
    guided = next(one for one in tables.scores.written if one.label.startswith("lore"))
    own, other = (tables.scores.stage(name, guided) for name in ("win_self", "win_cross"))

    def won(judge: str, user: int, example: int) -> float:
        a = float(judge == "lore") + 0.3 * noise(judge, "lore", user, example)
        return float(a > 0.3 * noise(judge, "zero_shot", user, example))

    rows = [(user, example) for user in range(USERS) for example in range(QUERY)]
    assert own.tolist() == [won("lore", *row) for row in rows]
    judges = [name for name in METHODS if name != "lore"]
    assert other == pytest.approx([np.mean([won(judge, *row) for judge in judges]) for row in rows])


def test_fewer_reward_models_than_a_rank_correlation_takes_give_one_line(tmp_path: Path) -> None:
    two = study_of(6, 1, reward_models=[{"method": "lore"}, {"method": "pref"}])
    two["deployments"] = [{"policy": "zero_shot"}, {"decoder": "args_greedy", "guidance_weight": [1, 2]}]
    (one,) = tau_results(made(tmp_path, two, rouge))
    assert (one.tau, one.n_models) == (None, 2)
    assert one.reason == f"not identified: 2 reward models; a rank correlation needs {stats.MIN_METHODS}"


def test_effects_of_users_are_those_of_stats(tables: Tables) -> None:
    found = {one.deployment: one for one in heterogeneity_results(tables)}
    assert set(found) == {one.label for one in tables.scores.written[1:]}
    owners = [f"{user:03d}" for user in range(USERS) for _ in range(QUERY)]
    gaps = [rouge("icl 2", u, n) - rouge("zero_shot", u, n) for u in range(USERS) for n in range(QUERY)]
    by_hand = stats.user_effects(gaps, owners, 500)
    one = found["icl 2"]
    assert (one.mean, one.between, one.share) == pytest.approx((by_hand.mean, by_hand.between, by_hand.share_positive))
    assert (one.ci_low, one.ci_high) == pytest.approx((by_hand.low, by_hand.high))
    assert (one.n_users, one.n_examples) == (USERS, USERS * QUERY)
    assert one.share > 0.95
    (row,) = [one for one in support_results(tables) if one.deployment == "icl 2"]
    means = np.reshape(gaps, (USERS, QUERY)).mean(axis=1)
    assert (row.support_size, row.wins, row.losses) == (4, int((means > 0).sum()), int((means < 0).sum()))


def test_one_example_a_user_gives_no_effect_and_says_why(tmp_path: Path) -> None:
    tables = made(tmp_path, study_of(5, 1, reward_models=[{"method": "lore"}]), rouge)
    found = heterogeneity_results(tables)
    assert found
    assert all(one.share is None and one.reason.startswith("no user with two examples") for one in found)


def test_missing_examples_are_left_out_of_users_means(tmp_path: Path) -> None:
    def some(label: str, user: int, example: int) -> float | None:
        return (
            None
            if (label == "lore" and example == 1) or (label == "icl 1" and user == 0)
            else rouge(label, user, example)
        )

    tables = made(tmp_path, study_of(5, 3, reward_models=[{"method": "lore"}]), some)
    found = outcome(tables.scores, "rouge1")
    lore = next(row for one, row in zip(found.written, found.users, strict=True) if one.label.startswith("lore"))
    assert lore == pytest.approx([np.mean([rouge("lore", u, n) for n in (0, 2)]) for u in range(5)])
    assert {one.n_users for one in comparison_results(tables) if one.a == "icl 1"} == {4}
    assert regret_results(tables)[0].n_dropped_users == 1


def test_without_texts_of_users_the_independent_win_rate_decides(tmp_path: Path) -> None:
    tables = made(
        tmp_path,
        study_of(8, 2, metrics=[], reward_models=[{"method": "lore"}, {"method": "pref"}]),
        rouge,
        reward=lambda judge, label, user, example: BETTER.get(label, 0.0) + 0.01 * noise(judge, label, user, example),
    )
    assert tables.scores.outcomes() == ["win_cross"]
    found = [one for one in comparison_results(tables) if one.b_is == "baseline"]
    assert {one.metric for one in found} == {"win_cross"}
    best = next(one for one in found if one.a == "icl 2")
    assert best.difference == pytest.approx(0.5)
