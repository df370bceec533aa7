"""The parts of a check against slow, obvious counts and against data whose answer is known."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core.records import PreferencePair
from rewardgap.data.base import PreferenceDataset
from rewardgap.data.baselines import fit_text_classifier, surface_features
from rewardgap.data.splits import split_users
from rewardgap.diagnostics import counts, duplicates, leakage, power, rankers
from rewardgap.diagnostics.figures import Figure, Part
from rewardgap.diagnostics.personal import PersonalHits
from rewardgap.diagnostics.table import pair_table
from rewardgap.diagnostics.text_features import text_features
from rewardgap.diagnostics.verdicts import verdicts
from rewardgap.stats import detectable_factor
from rewardgap.stats.kendall import kendall_tau

TEXTS = ("a", "b b", "c c c", "d")
ROWS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from(TEXTS), st.sampled_from(TEXTS), st.sampled_from(["p", "q"]))
    .filter(lambda row: row[1] != row[2]),
    min_size=1,
    max_size=25,
)  # fmt: skip


def pairs_of(rows: list[tuple[str, str, str, str]]) -> list[PreferencePair]:
    return [
        PreferencePair(user_id=user, example_id=f"{number:03}", prompt=prompt, chosen=chosen, rejected=rejected)
        for number, (user, chosen, rejected, prompt) in enumerate(rows)
    ]


def same_pair(one: PreferencePair, other: PreferencePair) -> bool:
    return one.prompt == other.prompt and {one.chosen, one.rejected} == {other.chosen, other.rejected}


@given(ROWS)
def test_majority_and_agreement_equal_a_count_over_all_rows(rows: list[tuple[str, str, str, str]]) -> None:
    pairs = pairs_of(rows)
    table = pair_table(pairs)
    left_out, half = rankers.majority_of_others(table)
    part = counts.consistency(table, 0)
    within, between = [], []
    for row, pair in enumerate(pairs):
        others = [
            other.chosen == pair.chosen for other in pairs if same_pair(pair, other) and other.user_id != pair.user_id
        ]
        again = [
            other.chosen == pair.chosen
            for other in pairs
            if same_pair(pair, other) and other.user_id == pair.user_id and other.example_id != pair.example_id
        ]
        within += [np.mean(again)] if again else []
        between += [np.mean(others)] if others else []
        if not others:
            assert math.isnan(half[row])
            assert math.isnan(left_out[row])
            continue
        share = np.mean(others)
        assert half[row] == (1.0 if share > 0.5 else 0.0 if share < 0.5 else 0.5)
        assert math.isnan(left_out[row]) if share == 0.5 else left_out[row] == half[row]
    for name, expected in (("within_user_micro", within), ("between_users_micro", between)):
        figure = part.find(name)
        assert figure is not None
        assert figure.value == (pytest.approx(np.mean(expected)) if expected else None)
        assert (figure.reason is None) == (figure.ci_low is not None)


@given(ROWS)
def test_win_share_equals_a_count_over_all_rows(rows: list[tuple[str, str, str, str]]) -> None:
    pairs = pairs_of(rows)

    def share(user: str, prompt: object, text: str) -> float:
        seen = [
            other.chosen == text
            for other in pairs
            if other.user_id != user and other.prompt == prompt and text in (other.chosen, other.rejected)
        ]
        return float(np.mean(seen)) if seen else math.nan

    found = rankers.win_share_of_others(pair_table(pairs))
    for value, pair in zip(found, pairs, strict=True):
        margin = share(pair.user_id, pair.prompt, pair.chosen) - share(pair.user_id, pair.prompt, pair.rejected)
        assert math.isnan(value) if math.isnan(margin) else value == (np.sign(margin) + 1) / 2


def test_the_mean_score_leaves_the_user_out() -> None:
    pairs = [
        PreferencePair(
            user_id=user, example_id=user, prompt="p", chosen="x", rejected="y", chosen_score=x, rejected_score=y
        )
        for user, x, y in (("a", 9.0, 1.0), ("b", 3.0, 2.0), ("c", 2.0, 1.0))
    ]
    # Without a: x has (3 + 2) / 2 = 2.5 and y has 1.5. The others likewise: x stays ahead for everybody.
    table = pair_table(pairs)
    assert rankers.score_of_others(table, rankers.own_scores(table)).tolist() == [1, 1, 1]
    # Only the own score puts x ahead for a; the two others prefer y.
    given_scores = {"a": {"x": 9.0, "y": 0.0}, "b": {"x": 1.0, "y": 2.0}, "c": {"x": 1.0, "y": 2.0}}
    assert rankers.score_of_others(table, rankers.named_scores(table, given_scores)).tolist() == [0, 1, 1]
    alone = pair_table(pairs[:1])
    assert np.isnan(rankers.score_of_others(alone, rankers.own_scores(alone))).all()


def scored(user: str, prompt: str, chosen: str, rejected: str, ahead: float, behind: float) -> PreferencePair:
    return PreferencePair(
        user_id=user, example_id=f"{user}{prompt}", prompt=prompt, chosen=chosen, rejected=rejected, chosen_score=ahead,
        rejected_score=behind,
    )  # fmt: skip


def test_a_text_has_a_mean_score_for_each_prompt() -> None:
    pairs = [
        scored(user, prompt, *sides, 9.0, 1.0)
        for user in "abc"
        for prompt, sides in (("q1", ("yes", "no")), ("q2", ("no", "yes")))
    ]
    table = pair_table(pairs)
    assert rankers.score_of_others(table, rankers.own_scores(table)).tolist() == [1] * 6


def test_equal_mean_scores_tie_whatever_rounding_does() -> None:
    pairs = [
        scored(user, "q", "x", "y", *scores) for user, *scores in (("a", 0.7, 0.9), ("b", 0.1, 0.2), ("c", 0.2, 0.1))
    ]
    table = pair_table(pairs)
    # For a the others give x 0.1 and 0.2, and y 0.2 and 0.1; for b and c y is ahead.
    assert rankers.score_of_others(table, rankers.own_scores(table)).tolist() == [0.5, 0, 0]


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.integers(-99, 99), st.integers(-99, 99)), min_size=1, max_size=9))
def test_mean_scores_equal_exact_fractions(rows: list[tuple[str, int, int]]) -> None:
    pairs = [
        replace(scored(user, "q", "x", "y", ahead / 10, behind / 10), example_id=str(number))
        for number, (user, ahead, behind) in enumerate(rows)
    ]
    table = pair_table(pairs)
    found = rankers.score_of_others(table, rankers.own_scores(table))

    def mean(user: str, side: int) -> Fraction | None:
        own = {
            other: [Fraction(row[side], 10) for row in rows if row[0] == other]
            for other in {r[0] for r in rows} - {user}
        }
        return sum(sum(known) / len(known) for known in own.values()) / Fraction(len(own)) if own else None

    for value, (user, _, _) in zip(found.tolist(), rows, strict=True):
        ahead, behind = mean(user, 1), mean(user, 2)
        if ahead is None or behind is None:
            assert math.isnan(value)
        else:
            assert value == (0.5 if ahead == behind else float(ahead > behind))


def test_features_by_text_serve_a_user_whose_rows_all_have_ids() -> None:
    rows = [
        PreferencePair(
            user_id=f"u{n % 8}", example_id=str(n), prompt="q", chosen=f"item {n % 3}", rejected=f"item {(n + 1) % 3}",
            meta={} if n % 8 == 7 else {"chosen_id": n % 3, "rejected_id": (n + 1) % 3},
        )
        for n in range(240)
    ]  # fmt: skip
    train = [row for row in rows if row.user_id in ("u0", "u1", "u7")]
    features = text_features(train, [row for row in rows if row.user_id in ("u2", "u7")], 0)
    chosen, rejected = features([row for row in rows if row.user_id == "u2"])
    assert features.identity == "text"
    assert (chosen.sum(axis=1) == 1).all()
    assert (rejected.sum(axis=1) == 1).all()


def test_items_go_by_id_where_every_row_has_ids() -> None:
    rows = pairs_of([("u", "a", "d", "p"), ("v", "a", "d", "p")])
    named = [
        PreferencePair(
            user_id=pair.user_id, example_id=pair.example_id, prompt="p", chosen="a", rejected="d",
            meta={"chosen_id": f"i{number}", "rejected_id": 7},
        )
        for number, pair in enumerate(rows)
    ]  # fmt: skip
    assert (pair_table(rows).identity, len(pair_table(rows).items)) == ("text", 2)
    assert (pair_table(named).identity, len(pair_table(named).items)) == ("id", 3)
    assert pair_table([*named, rows[0]]).identity == "text"
    assert pair_table(named).num_others.tolist() == [0, 0]


def test_effective_users_of_equal_and_of_one() -> None:
    assert counts.effective_users(np.array([5.0, 5.0, 5.0])) == pytest.approx(3)
    assert counts.effective_users(np.array([1000.0, 1.0])) == pytest.approx(1.002, abs=1e-3)


def test_repeated_rows_that_were_dropped_are_spoken_of() -> None:
    table = pair_table(pairs_of([("u", "a", "d", "p"), ("u", "d", "a", "p")]))
    assert counts.consistency(table, 0).notes == ()
    assert "3 repeated rows" in counts.consistency(table, 0, 3).notes[0]


# Duplicates.


@given(st.text(max_size=40))
def test_grams_are_those_of_the_folded_text(text: str) -> None:
    folded = " ".join(text.casefold().split())
    width = max(1, min(5, len(folded)))
    slow = {folded[start : start + width] for start in range(len(folded) - width + 1)} or {""}
    assert len(duplicates.grams(text)) == len(slow)
    assert duplicates.grams(f"  {text.upper()} ".lower()).tolist() == duplicates.grams(text.upper().lower()).tolist()


def test_near_texts_are_those_that_an_exact_comparison_of_all_finds() -> None:
    rng = np.random.default_rng(0)
    alphabet = list("abcdefghij ")
    originals = ["".join(rng.choice(alphabet, 120)) for _ in range(25)]
    changed = []
    for number, text in enumerate(originals):
        letters = list(text)
        for place in rng.choice(len(letters), number, replace=False):
            letters[place] = "z"
        changed.append("".join(letters))
    index = duplicates.NearTexts().index(originals)
    exact = [
        max(duplicates.jaccard(duplicates.grams(text), duplicates.grams(other)) for other in originals)
        for text in changed
    ]
    found = [index.has_near(text) for text in changed]
    assert any(found)
    assert not all(found)
    assert not any(near and similar < duplicates.NEAR for near, similar in zip(found, exact, strict=True))
    # A pair at exactly 0.8 is missed once in 2500 times; above 0.85, hardly ever.
    assert all(near for near, similar in zip(found, exact, strict=True) if similar > 0.85)


def test_the_share_of_equal_minima_is_the_jaccard_similarity() -> None:
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(400)]
    left, right = " ".join(words[:300]), " ".join(words[100:])
    equal = []
    for one, other in zip(duplicates.bands(left), duplicates.bands(right), strict=True):
        equal += (np.frombuffer(one[1:], np.uint64) == np.frombuffer(other[1:], np.uint64)).tolist()
    exact = duplicates.jaccard(duplicates.grams(left), duplicates.grams(right))
    assert np.mean(equal) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / len(equal)))


def instructed(instruction: str) -> Part:
    words = ["alpha", "bravo", "cha", "dog", "elf", "fox", "gnu", "hut", "ink", "jam"]
    pairs = [
        PreferencePair(
            user_id=user, example_id=f"{user}{row}", prompt=f"{instruction}{word} {user * 3}. Be brief.",
            chosen=f"c{user}{row}", rejected=f"r{user}{row}",
        )
        for user in "abcdef"
        for row, word in enumerate(words)
    ]  # fmt: skip
    data = PreferenceDataset("x", tuple(pairs))
    return leakage.leakage(split_users(data, support=4, seed=0).resolve(data), 0)


def test_an_instruction_that_all_prompts_share_makes_them_no_duplicates() -> None:
    long = "Write the subject line of the commit message whose body follows, in one line, without a full stop: "
    for side in ("support", "train"):
        values = [instructed(text).find(f"{side}_prompt_near") for text in (long, "")]
        assert [figure.value for figure in values if figure is not None] == [0, 0]


@given(st.lists(st.text("ab \n", max_size=8), min_size=2, max_size=5), st.text("ab ", max_size=4))
def test_words_that_all_prompts_share_are_cut_and_nothing_else(texts: list[str], shared: str) -> None:
    prompts = [f"{shared} {text} {shared}" for text in texts]
    head, tail = leakage._shared(prompts)
    kept = [leakage._without(text, (head, tail)) for text in prompts]
    assert len(set(kept)) == len(set(prompts))
    assert len({text[:head] for text in prompts}) == len({text[len(text) - tail :] for text in prompts}) == 1
    assert all(text == text[:head] + own + text[len(text) - tail :] for text, own in zip(prompts, kept, strict=True))
    for text in prompts:
        assert not head or head == len(text) or text[head - 1].isspace() or text[head].isspace()


def test_questions_that_are_given_up_are_counted() -> None:
    texts = duplicates.NearTexts()
    index = texts.index([f"text {number}" for number in range(300)])
    index._by_band = {band: sorted(index._texts) for band in texts.bands_of("something else altogether")}  # type: ignore[assignment]
    assert not index.has_near("something else altogether")
    assert texts.undecided == 1


# Classifiers.


@given(st.text(max_size=60))
def test_gram_counts_equal_crc_32_of_every_gram(text: str) -> None:
    slow = np.zeros(2048)
    padded = f"\x02{text}\x03"
    for length in (1, 2, 3):
        for start in range(len(padded) - length + 1):
            slow[zlib.crc32(padded[start : start + length].encode("utf-8", "surrogatepass")) % 2048] += 1
    np.testing.assert_allclose(surface_features(text)[:2048], slow / np.linalg.norm(slow), rtol=1e-12)


def styled(visible: bool, users: int = 8, rows: int = 12, seed: int = 3) -> list[PreferencePair]:
    rng = np.random.default_rng(seed)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]

    def text() -> str:
        return " ".join(rng.choice(words, 6))

    return [
        PreferencePair(
            user_id=f"u{number % users}", example_id=str(number), prompt=f"p{number}",
            chosen=text() + ("!" if visible else ""), rejected=text(),
        )
        for number in range(users * rows)
    ]  # fmt: skip


def test_a_visible_mark_is_found_across_users() -> None:
    part = rankers.rank(pair_table(styled(True)), 0)
    blind, single = part.find("user_blind"), part.find("single_text_micro")
    assert blind is not None
    assert single is not None
    assert blind.value == 1.0
    assert single.value == pytest.approx(1.0, abs=0.01)


def test_nothing_is_found_where_a_coin_chose() -> None:
    blind, single = [], []
    for seed in range(6):
        table = pair_table(styled(False, seed=seed))
        folds = rankers.user_folds(table, 0)
        blind.append(rankers.user_blind(table, folds, 0).mean())
        single.append(rankers.single_text(table, folds, 0).mean())
    tolerance = 4 * math.sqrt(0.25 / (6 * 96))
    assert np.mean(blind) == pytest.approx(0.5, abs=tolerance)
    assert np.mean(single) == pytest.approx(0.5, abs=tolerance)


def test_the_area_is_that_of_all_pairs_of_texts() -> None:
    chosen, rejected = np.array([3.0, 1.0, 2.0]), np.array([2.0, 0.0, 2.5])
    slow = np.mean([(c > r) + 0.5 * (c == r) for c in chosen for r in rejected])
    assert rankers._share_below(chosen, rejected).mean() == pytest.approx(slow)
    assert 1 - rankers._share_below(rejected, chosen).mean() == pytest.approx(slow)


def test_folds_share_no_user_and_do_not_depend_on_row_order() -> None:
    pairs = styled(False)
    table = pair_table(pairs)
    folds = rankers.user_folds(table, 0)
    by_user = {user: set() for user in table.users}  # type: ignore[var-annotated]
    for user, fold in zip(table.user_ids, folds.tolist(), strict=True):
        by_user[user].add(fold)
    assert all(len(found) == 1 for found in by_user.values())
    assert set(folds.tolist()) == set(range(5))
    back = rankers.user_folds(pair_table(pairs[::-1]), 0)
    assert back[::-1].tolist() == folds.tolist()
    assert rankers.user_folds(pair_table(styled(False, users=2)), 0).max() == 1


def test_scores_of_texts_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fit_text_classifier(styled(True))
    texts = [pair.chosen for pair in styled(False)]
    whole = model.scores(texts)
    monkeypatch.setattr("rewardgap.data.baselines.CHUNK", 7)
    np.testing.assert_allclose(model.scores(texts), whole, atol=1e-12)


# Power.


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    num_users, spread = 12, 0.2
    factor = detectable_factor(num_users)
    rng = np.random.default_rng(5)
    effect = factor * spread / math.sqrt(num_users)
    draws = effect + spread * rng.standard_normal((20_000, num_users))
    statistic = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(num_users))
    from scipy.stats import t

    found = np.mean(np.abs(statistic) > t.ppf(0.975, num_users - 1))
    assert found == pytest.approx(0.8, abs=0.03)


def test_power_of_known_hits() -> None:
    users = [user for user in "abcdefgh" for _ in range(4)]
    everybody = np.zeros(32)
    own = np.repeat([1.0, 0.0] * 4, 4)
    part = power.power(PersonalHits(users, own, everybody), 0)
    values = {figure.name: figure.value for figure in part.figures}
    # User means 1, 0, 1, 0 ...: standard deviation √(8/7)/2, over √8 users.
    error = math.sqrt(8 / 7) / 2 / math.sqrt(8)
    assert values["accuracy_paired"] == pytest.approx(detectable_factor(8) * error)
    assert values["accuracy_unpaired"] == pytest.approx(math.sqrt(2) * values["accuracy_paired"])
    alike = power.power(PersonalHits(users, own, own), 0)
    assert alike.find("accuracy_paired").value is None  # type: ignore[union-attr]
    assert "alike" in alike.find("accuracy_paired").reason  # type: ignore[union-attr, operator]


def test_users_who_agree_in_the_difference_give_no_spread() -> None:
    found = PersonalHits(["a", "a", "b", "b"], np.array([1.0, 0.0, 1.0, 0.0]), np.zeros(4))
    part = power.power(found, 0)
    figure = part.find("accuracy_paired")
    assert figure is not None
    assert figure.value is None
    assert "no spread" in str(figure.reason)
    (first, *_) = verdicts({"power": part})
    assert (first.level, first.figure) == ("warning", "power/accuracy_paired")
    assert first.sentence.startswith("The data cannot answer which of two reward models is better")


def test_a_difference_beyond_all_accuracies_is_not_promised() -> None:
    noisy = np.array([1.0, 0.0])
    part = power.power(PersonalHits(["a", "b"], noisy, noisy[::-1]), 0)
    figure = part.find("accuracy_paired")
    assert figure is not None
    assert figure.value is not None
    assert figure.value > 1
    said = {one.figure: one.sentence for one in verdicts({"power": part})}
    assert said["power/accuracy_paired"].startswith("No difference between two reward models is large enough")


def test_three_users_prove_no_taste() -> None:
    values = {"value": 0.3, "ci_low": 0.2, "ci_high": 0.4, "n_examples": 30}
    for name in ("own_minus_other", "own_minus_global", "growth"):
        for users, level in ((3, "note"), (30, "ok")):
            figure = Figure(part="personal", name=name, summary="s", n_users=users, **values)
            (said,) = verdicts({"personal": Part("personal", (figure,))})
            assert said.level == level
            at_zero = replace(figure, n_users=30, ci_low=2.4e-18)
            (said,) = verdicts({"personal": Part("personal", (at_zero,))})
            assert said.level != "ok"


def test_taus_smallest_value_that_is_told_from_none() -> None:
    base = range(6)
    taus = np.abs([kendall_tau(list(base), order) for order in permutations(base)])
    smallest = power.smallest_significant_tau(6, 0)
    assert np.mean(taus >= smallest - 1e-9) <= 0.05 < np.mean(taus >= smallest - 2 / 15 - 1e-9)
    assert math.isinf(power.smallest_significant_tau(3, 0))


def test_taus_error_grows_with_noise_from_zero() -> None:
    errors = [power.tau_error(noise, 8, 0.1, 0) for noise in (0.0, 0.01, 0.1)]
    assert errors[0] == 0 < errors[1] < errors[2]


def test_sizes_are_counts() -> None:
    data = PreferenceDataset("x", tuple(pairs_of([("u", "a", "d", "p"), ("u", "a", "d", "q"), ("v", "a", "d", "p")])))
    values = {figure.name: figure.value for figure in counts.sizes(data).figures}
    assert values == {
        "users": 2, "effective_users": pytest.approx(9 / 5), "rows": 3, "fewest_rows": 1, "median_rows": 1.5, "most_rows": 2,
    }  # fmt: skip
