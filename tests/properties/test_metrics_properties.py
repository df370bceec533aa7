"""What holds for any text, margin or candidate set."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rewardgap.metrics.catalog import METRICS
from rewardgap.metrics.guidance_ratio import guidance_ratio
from rewardgap.metrics.policy_accuracy import FLOOR, policy_scores
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.metrics.rouge import Rouge
from rewardgap.metrics.win_rate import wins

GOOGLE = RougeScorer(["rouge1", "rougeL"])
LIGHT = [card.build() for card in METRICS if card.takes == "texts" and card.name != "bertscore_f1"]
words = st.lists(st.sampled_from(["the", "cat", "Sat", "down,", "2", "naïve", "кот", "—"]), max_size=12).map(" ".join)
text = st.one_of(words, st.text(max_size=25))
number = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, float("nan"), float("inf"), float("-inf")]))


@settings(max_examples=200, deadline=None)
@given(text, text.filter(lambda t: t.strip()))
def test_rouge_is_googles(prediction, reference):
    want = GOOGLE.score(reference, prediction)
    for name in ("rouge1", "rougeL"):
        assert Rouge(name).score([prediction], [reference])[0] == want[name].fmeasure


@settings(deadline=None)
@given(text, text)
def test_rouge_is_symmetric_in_range_and_one_on_itself(a, b):
    for tokenizer in ("default", "unicode"):
        one = Rouge("rouge1", tokenizer=tokenizer)
        longest = Rouge("rougeL", tokenizer=tokenizer)
        for metric in (one, longest):
            there, back = metric.score([a], [b])[0], metric.score([b], [a])[0]
            if a.strip() and b.strip():
                assert abs(there - back) < 1e-12 and 0 <= there <= 1
                assert metric.score([a], [a])[0] in (0.0, 1.0)
        if a.strip() and b.strip():
            assert longest.score([a], [b])[0] <= one.score([a], [b])[0] + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(text, st.one_of(st.none(), text)), max_size=8), st.randoms())
def test_text_metrics_are_blind_to_order_and_company(pairs, random):
    order = list(range(len(pairs)))
    random.shuffle(order)
    predictions, references = [a for a, _ in pairs], [b for _, b in pairs]
    for metric in LIGHT:
        scores = metric.score(predictions, references)
        shuffled = metric.score([predictions[i] for i in order], [references[i] for i in order])
        np.testing.assert_array_equal(shuffled, scores[order] if len(order) else scores)
        for row, (a, b) in enumerate(pairs):
            np.testing.assert_array_equal(metric.score([a], [b]), scores[[row]])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(text, st.one_of(st.none(), st.just(" "), text)), max_size=8))
def test_missing_exactly_where_there_is_no_reference(pairs):
    gone = [b is None or not b.strip() for _, b in pairs]
    empty = [not a.strip() for a, _ in pairs]
    for name in ("rouge1", "rougeL", "length_ratio"):
        scores = METRICS[name].build().score([a for a, _ in pairs], [b for _, b in pairs])
        assert np.isnan(scores).tolist() == gone
        assert all(score == 0 for score, g, e in zip(scores, gone, empty, strict=True) if e and not g)


@settings(deadline=None)
@given(st.lists(st.tuples(number, number), max_size=10))
def test_wins_and_accuracies_are_complements_and_keep_the_missing(pairs):
    a, b = (np.array([pair[side] for pair in pairs], dtype=float) for side in (0, 1))
    np.testing.assert_array_equal(wins(a, b), 1 - wins(b, a))
    np.testing.assert_array_equal(pair_accuracy(-a), 1 - pair_accuracy(a))
    assert (np.isnan(wins(a, b)) >= (np.isnan(a) | np.isnan(b))).all()
    np.testing.assert_array_equal(np.isnan(pair_accuracy(a)), np.isnan(a))
    assert set(wins(a, b)[~np.isnan(wins(a, b))]) <= {0.0, 0.5, 1.0}


def slow_rgd(log_pi, rewards, mask, gold, covered, weight, cover):
    """The definition, token by token, in plain floats."""
    total = 0.0
    for t in range(len(gold)):
        if not covered[t] and cover == "exclude":
            return float("nan")
        if not covered[t] and cover == "floor":
            total += np.log(FLOOR)
            continue
        mass = [np.exp(log_pi[t][v] + weight * rewards[t][v]) if mask[t][v] else 0.0 for v in range(len(log_pi[t]))]
        total += np.log(mass[gold[t]] / sum(mass))
    return total


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 6),
    st.integers(1, 6),
    st.floats(0, 4),
    st.sampled_from(["add", "floor", "exclude"]),
    st.integers(0, 10**6),
)
def test_rgd_is_the_slow_loop(length, width, weight, cover, seed):
    rng = np.random.default_rng(seed)
    log_pi = np.log(rng.dirichlet(np.ones(width), size=length)).reshape(length, width)
    rewards, gold = rng.normal(size=(length, width)), rng.integers(0, width, length)
    mask = rng.random((length, width)) < 0.7
    mask[np.arange(length), gold] = True
    covered = rng.random(length) < 0.7
    prefix = np.concatenate([rng.normal(size=1), rewards[np.arange(length), gold]])
    scores = policy_scores(
        log_pi[np.arange(length), gold],
        prefix,
        weight,
        candidate_log_probs=log_pi,
        candidate_rewards=rewards + rng.normal(size=(length, 1)),
        candidate_mask=mask,
        gold_column=gold,
        in_top_k=covered,
        cover=cover,
    )
    np.testing.assert_allclose(
        scores["rgd_topk"], slow_rgd(log_pi, rewards, mask, gold, covered, weight, cover), atol=1e-9
    )
    assert np.isnan(scores["rgd_topk"]) or scores["rgd_topk"] <= 1e-9
    columns = rng.permutation(width)
    moved = policy_scores(
        log_pi[np.arange(length), gold],
        prefix,
        weight,
        candidate_log_probs=log_pi[:, columns],
        candidate_rewards=rewards[:, columns],
        candidate_mask=mask[:, columns],
        gold_column=np.argsort(columns)[gold],
        in_top_k=covered,
        cover=cover,
    )
    np.testing.assert_allclose(moved["rgd_topk"], scores["rgd_topk"], atol=1e-9)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.floats(-3, 3), st.integers(0, 10**6))
def test_guidance_ratio_is_its_formula(length, width, weight, seed):
    rng = np.random.default_rng(seed)
    log_pi, rewards = rng.normal(size=(2, length, width))
    mask = rng.random((length, width)) < 0.8
    top, bottom = [], []
    for t in range(length):
        kept = mask[t]
        if kept.sum() >= 2:
            top.append((weight * rewards[t][kept]).std())
            bottom.append(log_pi[t][kept].std())
    want = np.mean(top) / np.mean(bottom) if top else float("nan")
    np.testing.assert_allclose(guidance_ratio(log_pi, rewards, weight, mask), want, atol=1e-12)
