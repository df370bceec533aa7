"""The choice of a guidance weight: its arithmetic, its intervals, what the policy says of a text, and the drawing."""

from __future__ import annotations

import csv
import io
import json
import math
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.backbones.session import TrieSession
from rewardgap.core.errors import ConfigError, UnknownNameError
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.decoding.plain import Greedy
from rewardgap.report.tuning import ESTIMATE, csv_text, goodhart
from rewardgap.stats.bootstrap import paired_difference
from rewardgap.studies.spec import DeploymentSpec
from rewardgap.studies.tuning_cells import fluency_gaps
from rewardgap.studies.tuning_choice import Candidate, Choice, choose
from rewardgap.studies.tuning_settings import TuningSettings
from standins import ARCHITECTURES, tiny_backbone

USERS = [f"u{row // 4}" for row in range(24)]


def grid(gains: dict[float, float], noise: float = 0.01, measure: str = "rouge1") -> list[Candidate]:
    """Each weight has the same rows, moved by its gain and by a little noise."""
    draw = np.random.default_rng(5)
    base = draw.uniform(0.2, 0.6, len(USERS))
    return [
        Candidate(
            weight, USERS, {measure: list(base + gain + (noise * draw.standard_normal(len(USERS)) if gain else 0))}
        )
        for weight, gain in gains.items()
    ]


def test_the_best_mean_over_users_is_chosen_and_its_interval_is_that_of_the_paired_difference() -> None:
    tried = grid({-1.0: -0.2, 0.0: 0.0, 0.5: 0.05, 1.0: 0.1, 2.0: 0.02})
    found = choose(tried, "rouge1", resamples=500, seed=3)
    assert found.weight == 1.0
    by_weight = {one.weight: one.values["rouge1"] for one in tried}
    for weight, difference in found.differences.items():
        wanted = paired_difference(by_weight[weight], by_weight[0.0], USERS, 500, 3, level=1 - 0.05 / 4)
        assert difference == wanted
    assert found.level == 1 - 0.05 / 4
    assert found.differences[1.0].low > 0 > found.differences[-1.0].high
    assert found.sentence.startswith("λ = 1 has the best rouge1, 9.5 points above λ = 0 [9.1, 10.0]")
    assert "all 4 weights together" in found.sentence
    assert "distinguishable" not in found.sentence
    assert "tried" not in found.sentence


@given(st.lists(st.floats(-1, 1), min_size=len(USERS), max_size=len(USERS)))
def test_what_a_row_gains_at_every_weight_decides_nothing(shift: list[float]) -> None:
    tried = grid({0.0: 0.0, 1.0: 0.1, 2.0: 0.05})
    moved = [Candidate(one.weight, USERS, {"rouge1": list(np.array(one.values["rouge1"]) + shift)}) for one in tried]
    before, after = choose(tried, "rouge1", 50), choose(moved, "rouge1", 50)
    assert before.weight == after.weight == 1.0
    for weight, difference in before.differences.items():
        assert after.differences[weight].value == pytest.approx(difference.value, abs=1e-12)


def test_a_weight_at_the_end_of_what_was_tried_is_said_to_be() -> None:
    assert "It is the largest that was tried" in choose(grid({0.0: 0.0, 1.0: 0.1}), "rouge1", 200).sentence
    assert "It is the lowest that was tried" in choose(grid({-1.0: 0.1, 0.0: 0.0, 1.0: 0.05}), "rouge1", 200).sentence


def test_it_is_said_that_no_weight_is_distinguishable_from_none() -> None:
    found = choose(grid({0.0: 0.0, 1.0: 0.005, 2.0: 0.001}, noise=0.3), "rouge1", 500)
    assert found.weight is not None
    assert found.weight != 0
    assert found.differences[found.weight].low < 0 < found.differences[found.weight].high
    assert found.sentence.endswith("No weight is distinguishable from none.")
    worse = choose(grid({0.0: 0.0, 1.0: -0.1, 2.0: -0.2}), "rouge1", 200)
    assert (worse.weight, worse.sentence) == (0.0, "No guidance weight has a better rouge1 than none (λ = 0).")
    noisy, sure = grid({0.0: 0.0, 1.0: 0.2}, noise=0.5)[1], grid({0.0: 0.0, 2.0: 0.01}, noise=0.001)
    values = np.array(sure[0].values["rouge1"]) + 0.02 + np.where(np.arange(24) % 24 < 4, 0.6, -0.05)
    found = choose([*sure, Candidate(1.0, noisy.users, {"rouge1": list(values)})], "rouge1", 500)
    assert found.weight == 1.0
    assert found.sentence.endswith("It is not distinguishable from none, but λ = 2 is.")


def test_equal_weights_give_the_one_nearest_to_none() -> None:
    same = grid({0.0: 0.0})[0]
    tried = [Candidate(weight, USERS, same.values) for weight in (-2.0, -0.5, 0.5, 2.0)]
    assert choose([same, *tried], "rouge1", 50).weight == 0.0
    better = {"rouge1": [value + 0.1 for value in same.values["rouge1"]]}
    assert choose([same, *(Candidate(w, USERS, better) for w in (4.0, -2.0, 1.0))], "rouge1", 50).weight == 1.0


def test_users_count_alike_however_many_rows_they_have() -> None:
    users = ["a"] * 9 + ["b", "c"]
    none = Candidate(0.0, users, {"rouge1": [0.5] * 11})
    one = Candidate(1.0, users, {"rouge1": [0.6] * 9 + [0.4, 0.4]})  # better for most rows, worse for most users
    assert choose([none, one], "rouge1", 50).weight == 0.0


def test_a_metric_that_is_better_low_is_chosen_low() -> None:
    tried = grid({0.0: 0.0, 1.0: -0.1, 2.0: 0.1}, measure="empty_rate")
    found = choose(tried, "empty_rate", 200)
    assert found.weight == 1.0
    assert "below λ = 0" in found.sentence
    assert "distinguishable" not in found.sentence


def test_the_reward_that_steers_never_chooses() -> None:
    found = choose(grid({0.0: 0.0, 1.0: 0.5}, measure="reward"), None)
    assert (found.weight, found.criterion, found.differences) == (None, None, {})
    assert "Nothing here can choose" in found.sentence


def test_one_user_has_a_choice_without_an_interval() -> None:
    found = choose([Candidate(w, ["u"] * 3, {"rouge1": [0.1 + w / 10] * 3}) for w in (0.0, 1.0)], "rouge1", 50)
    assert found.weight == 1.0
    assert found.differences[1.0].low is None
    assert "one user" in found.sentence
    with pytest.raises(ConfigError, match="λ = 0"):
        choose([Candidate(1.0, ["u"], {"rouge1": [0.0]})], "rouge1")


def test_settings_are_checked() -> None:
    assert TuningSettings(weights=(2, 0.5, 2, -0.0)).grid == [0.0, 0.5, 2.0]
    assert TuningSettings(weights=(-1.0, 3.0)).grid == [-1.0, 0.0, 3.0]
    for weights, said in (((math.nan,), "nan is not a finite"), ((0.0,), "no guidance weight but 0"), ((), "but 0")):
        with pytest.raises(ConfigError, match=said):
            TuningSettings(weights=weights)
    with pytest.raises(ConfigError, match="no guidance weight to choose"):
        TuningSettings(decoder="greedy").build(1.0)
    with pytest.raises(UnknownNameError, match="args_greedy"):
        TuningSettings(decoder="arg_greedy").build(1.0)
    assert TuningSettings(top_k=7).build(0.5).top_k == 7


def test_the_line_is_a_deployment_of_a_study() -> None:
    name = "lore: [rank 4], #2"
    settings = TuningSettings(decoder="args_stochastic", top_k=7)
    (found,) = yaml.safe_load(settings.line(name, 0.25))
    spec = DeploymentSpec.model_validate(found)
    assert (spec.decoder, spec.guidance_weight, spec.top_k) == ("args_stochastic", 0.25, 7)
    assert spec.reward_models == [name]


# What the policy says of a text.


def slow_gap(backbone: Any, prompt: list[int], ids: list[int], ended: bool, stop: StopRule) -> float:
    """Reads the whole prefix again at each step."""
    closed = ended and (not ids or ids[-1] not in stop.stop_ids)
    gaps = []
    for step in range(len(ids) + closed):
        logits = backbone.model(torch.tensor([[*prompt, *ids[:step]]])).logits[0, -1].double()
        scores = torch.log_softmax(logits, -1)
        for token in (*stop.end_ids, *stop.stop_ids) if step < stop.min_new_tokens else ():
            scores[token] = -torch.inf
        taken = scores[ids[step]] if step < len(ids) else max(scores[token] for token in stop.end_ids)
        gaps.append(float(scores.max() - taken))
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gaps_equal_the_slow_loop(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    stop = StopRule((0, 3), 20, 2, (11,))
    draw = np.random.default_rng(1)
    prompt = draw.integers(12, 29, 17).tolist()
    texts = [(draw.integers(12, 29, length).tolist(), ended) for length, ended in ((9, True), (13, False), (2, True))]
    texts += [([*texts[0][0][:5], 11], True), (texts[0][0][:5], False)]
    found = fluency_gaps(backbone, prompt, texts, stop)
    np.testing.assert_allclose(found, [slow_gap(backbone, prompt, *text, stop) for text in texts], rtol=0, atol=1e-9)
    alone = [fluency_gaps(backbone, prompt, [text], stop)[0] for text in texts]
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-9)


def test_long_texts_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewardgap.studies import tuning_cells

    backbone, stop = tiny_backbone(), StopRule((0,), 20, 3)
    texts = [([5, 9, 12, 7, 7, 20, 21], True), ([8], True), ([], True)]
    texts[2] = ([4, 4, 4], True)
    whole = fluency_gaps(backbone, [3, 2, 1], texts, stop)
    monkeypatch.setattr(tuning_cells, "POSITIONS", 2)
    np.testing.assert_allclose(fluency_gaps(backbone, [3, 2, 1], texts[:1] + texts[2:], stop), whole[::2], atol=1e-12)


def test_greedy_text_has_no_gap_and_a_changed_token_has() -> None:
    backbone, stop, prompt = tiny_backbone(), StopRule((0,), 10, 1), [5, 9, 2]
    session = TrieSession(backbone, 1, 40)
    (done,) = decode(session, session.prefill([prompt]), Greedy(), stop)
    assert fluency_gaps(backbone, prompt, [(done.ids, done.ended)], stop) == [pytest.approx(0, abs=1e-9)]
    other = [*done.ids[:-1], (done.ids[-1] + 1) % 29 or 1]
    assert fluency_gaps(backbone, prompt, [(other, False)], stop)[0] > 1e-6


# The drawing and the file.


def document(**changes: Any) -> dict[str, Any]:
    def estimate(value: float | None) -> dict[str, Any]:
        ends = (None, None) if value is None else (value - 0.1, value + 0.1)
        return {"value": value, "low": ends[0], "high": ends[1], "n_users": 6, "n_examples": 24, "n_missing": 0,
                "reason": None}  # fmt: skip

    measures = {"reward": "own", "judge_reward": "other", "rouge1": "ROUGE-1", "changed": "share"}
    heights = {0.0: (0.0, 0.1, 0.2, 0.0), 1.0: (1.0, 0.6, 0.35, 0.4), 4.0: (2.0, 0.4, 0.1, 0.9)}
    return {
        "study": "s", "reward_model": "lore <b>", "judge": "global_bt", "decoder": "args_greedy", "top_k": 10,
        "users": 6, "rows": 24, "measures": measures, "chosen": 1.0,
        "weights": [
            {"guidance_weight": weight, **dict(zip(measures, map(estimate, values), strict=True))}
            for weight, values in heights.items()
        ],
        **changes,
    }  # fmt: skip


def points(root: ElementTree.Element, colour: str) -> list[tuple[float, float, str]]:
    """Return x, y and words of the dots of one colour, from left to right."""
    space = "{http://www.w3.org/2000/svg}"
    (group,) = [one for one in root.iter(f"{space}g") if one.attrib.get("class") == colour]
    return [
        (float(dot.attrib["cx"].rstrip("%")), float(dot.attrib["cy"]), str(dot.findtext(f"{space}title")))
        for dot in group.findall(f"{space}circle")
    ]


def test_the_curve_shows_each_number_where_it_is() -> None:
    root = ElementTree.fromstring(goodhart(document()))
    own, judge, true = (points(root, colour) for colour in ("own", "judge", "true"))
    assert [x for x, _, _ in own] == [x for x, _, _ in true] == pytest.approx([100 / 6, 50, 500 / 6], abs=0.01)
    assert own[0][1] > own[1][1] > own[2][1], "the reward that steers rises"
    assert own[0][1] - own[1][1] == pytest.approx(own[1][1] - own[2][1], abs=0.02)
    assert true[1][1] < true[0][1] < true[2][1], "what users wrote is met best at λ = 1"
    assert own[1][1] < judge[1][1], "both rewards stand on one scale"
    assert true[1][2] == "rouge1, λ = 1: 35.0 [25.0, 45.0]"
    shown = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert shown.count("1 chosen") == 2
    assert "Guidance weight of lore <b>" in shown
    assert "<b>" not in goodhart(document())


def test_what_has_no_value_is_not_drawn() -> None:
    missing = document(chosen=None)
    missing["weights"][1]["rouge1"] = {**missing["weights"][1]["rouge1"], "value": None, "low": None, "high": None}
    root = ElementTree.fromstring(goodhart(missing))
    assert len(points(root, "true")) == 2
    assert not [one for one in root.iter() if one.attrib.get("class") == "chosen"]
    bare = document(measures={"reward": "own"}, judge=None)
    assert len(points(ElementTree.fromstring(goodhart(bare)), "own")) == 3


def test_the_file_holds_every_number_as_it_is() -> None:
    value = document()
    rows = list(csv.DictReader(io.StringIO(csv_text(value))))
    assert len(rows) == 3 * 4
    for row in rows:
        (entry,) = [one for one in value["weights"] if repr(one["guidance_weight"]) == row["guidance_weight"]]
        for name in ESTIMATE:
            assert (float(row[name]) if row[name] else None) == entry[row["measure"]][name]
    assert json.loads(json.dumps(Choice(None, None, "s").to_json()))["differences"] == []
