"""ROUGE and the plain counts; every catalogued text metric keeps the common face."""

from __future__ import annotations

import sys
from importlib.metadata import version

import numpy as np
import pytest

from rewardgap.core.errors import ConfigError, ShapeError, UnknownNameError
from rewardgap.core.results import STAGES
from rewardgap.metrics.base import TextMetric
from rewardgap.metrics.catalog import METRICS
from rewardgap.metrics.overlap import Distinct, EmptyRate, LengthRatio
from rewardgap.metrics.policy_accuracy import VARIANT_NAMES
from rewardgap.metrics.rouge import Rouge, needs_unicode

TEXT_CARDS = [card for card in METRICS if card.takes == "texts" and card.name != "bertscore_f1"]
REFERENCED = [card for card in TEXT_CARDS if card.needs_reference]


def test_rouge_by_hand():
    # "the cat sat" against "the cat sat down": P = 3/3, R = 3/4, F = 2·.75/1.75
    for name in ("rouge1", "rougeL"):
        assert Rouge(name).score(["the cat sat"], ["the cat sat down"])[0] == pytest.approx(6 / 7, abs=1e-12)
    # Reversed, all words are shared and the longest common sequence is one word: P = R = 1/3
    assert Rouge("rouge1").score(["sat cat the"], ["the cat sat"])[0] == 1.0
    assert Rouge("rougeL").score(["sat cat the"], ["the cat sat"])[0] == pytest.approx(1 / 3)


def test_rouge_is_googles_on_awkward_texts():
    from rouge_score.rouge_scorer import RougeScorer

    texts = [
        "",
        "!!!",
        "don't stop",
        "Ünïcode café",
        "日本語 text",
        "a a a b",
        "A-B_c 1.5",
        "x" * 300,
        "line\nline\ttab",
        "İ K ſ",
    ]
    left = [a for a in texts for _ in texts]
    right = texts * len(texts)
    for stem in (False, True):
        google = RougeScorer(["rouge1", "rougeL"], use_stemmer=stem)
        for name in ("rouge1", "rougeL"):
            got = Rouge(name, use_stemmer=stem).score(left, right)
            for prediction, reference, value in zip(left, right, got, strict=True):
                if reference:
                    assert value == google.score(reference, prediction)[name].fmeasure
                else:
                    assert np.isnan(value)


def test_stemming_moves_scores_and_is_in_the_signature():
    plain, stemmed = Rouge("rouge1"), Rouge("rouge1", use_stemmer=True)
    assert plain.score(["running dogs"], ["run dog"])[0] == 0.0
    assert stemmed.score(["running dogs"], ["runs dogs"])[0] == 1.0
    release = version("rouge-score-rs")
    assert plain.signature == f"rouge1|stem=no|tok=rouge-score|impl=rouge-score-rs-{release}"
    assert stemmed.signature == f"rouge1|stem=yes|tok=rouge-score|impl=rouge-score-rs-{release}"
    assert (
        Rouge("rougeL", tokenizer="unicode").signature == f"rougeL|stem=no|tok=unicode-v1|impl=rouge-score-rs-{release}"
    )


def test_other_scripts_need_the_unicode_tokenizer_and_are_detected():
    russian = "привет мир"
    assert Rouge("rouge1").score([russian], [russian])[0] == 0.0
    assert Rouge("rouge1", tokenizer="unicode").score([russian], [russian])[0] == 1.0
    assert needs_unicode([russian, "hello", "!!!", "日本", None, " "]) == 2 / 4
    assert np.isnan(needs_unicode([None, ""]))


def test_bad_rouge_settings():
    with pytest.raises(ConfigError, match="'rouge2' came"):
        Rouge("rouge2")
    with pytest.raises(ConfigError, match="'bpe' came"):
        Rouge("rouge1", tokenizer="bpe")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="stemmer"):
        Rouge("rouge1", tokenizer="unicode", use_stemmer=True)


def test_length_ratio():
    np.testing.assert_array_equal(
        LengthRatio().score(["abcd", " ab ", "", "x"], ["ab", "abcd", "abc", None]), [2, 0.5, 0, np.nan]
    )


def test_empty_rate_looks_at_predictions_alone():
    np.testing.assert_array_equal(EmptyRate().score(["", " \n", "a", ""], ["r", None, None, ""]), [1, 1, 0, 1])


def test_distinct():
    # "a b a b a" has the pairs ab, ba, ab, ba: 2 of 4 are distinct
    np.testing.assert_array_equal(
        Distinct(2).score(["a b A b", "a b c", "one", ""], [None] * 4), [2 / 3, 1, np.nan, np.nan]
    )
    assert Distinct(1).score(["a a a a"], [None])[0] == 0.25
    with pytest.raises(ConfigError, match="0 came"):
        Distinct(0)


@pytest.mark.parametrize("card", TEXT_CARDS, ids=lambda card: card.name)
def test_text_metrics_keep_the_face(card):
    metric = card.build()
    assert isinstance(metric, TextMetric)
    assert metric.name == card.name == metric.signature.split("|")[0]
    stated, built = (dict(part.split("=", 1) for part in s.split("|")[1:]) for s in (card.signature, metric.signature))
    assert stated.keys() == built.keys()
    scores = metric.score(["one two three", "", "other words here too"], ["one two four", "one", None])
    assert scores.shape == (3,) and scores.dtype == np.float64
    finite = scores[~np.isnan(scores)]
    assert (finite >= card.range[0]).all() and (finite <= card.range[1]).all()
    assert metric.score([], []).shape == (0,)
    with pytest.raises(ShapeError, match="1 predictions came with 2 references"):
        metric.score(["a"], ["b", "c"])
    with pytest.raises(ShapeError, match="single text"):
        metric.score("a", ["b"])


@pytest.mark.parametrize("card", REFERENCED, ids=lambda card: card.name)
def test_missing_references_are_missing_and_empty_predictions_are_zero(card):
    scores = card.build().score(["a", "a", "a", "", " "], [None, "", " \n", "b", "b"])
    np.testing.assert_array_equal(scores, [np.nan, np.nan, np.nan, 0, 0])


@pytest.mark.parametrize("card", list(METRICS), ids=lambda card: card.name)
def test_cards(card):
    assert card.stage in STAGES and card.summary and not card.summary.endswith(".")
    assert card.signature.split("|")[0] == card.name
    assert card.range[0] < card.range[1]
    if card.takes == "margins":
        scores = card.build()([2.0, 0.0, -1.0, np.nan])
        assert np.isnan(scores[3]) and ((scores[:3] >= 0) & (scores[:3] <= 1)).all()
    if card.takes == "scores":
        np.testing.assert_array_equal(card.build()([2.0, 1.0, np.nan], [1.0, 1.0, 1.0]), [1, 0.5, np.nan])
    if card.takes == "answers":
        np.testing.assert_array_equal(card.build()(["A", "B", "A", None], ["B", "A", "tie", "B"]), [1, 0, 0.5, np.nan])
    if card.takes == "candidates":
        assert card.build()([[0.0, -1.0]], [[1.0, 0.0]], 2.0) == pytest.approx(2.0)


def test_catalogue_names():
    names = METRICS.names()
    assert set(VARIANT_NAMES) < set(names)
    assert {"rm_accuracy", "rouge1", "rougeL", "bertscore_f1", "win_self", "win_cross", "guidance_ratio"} < set(names)
    with pytest.raises(UnknownNameError, match="Did you mean 'rouge1'"):
        METRICS["rogue1"]


def test_the_catalogue_imports_nothing_heavy():
    import subprocess

    heavy = "torch", "scipy", "transformers"
    code = f"import sys, rewardgap.metrics.catalog; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
