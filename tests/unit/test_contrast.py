"""Contrast of two policies: decoding and scores are the plain rule, one full forward a number."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peers.slow_decoding import next_log_probs
from rewardgap.core.errors import ConfigError
from rewardgap.core.records import PreferencePair
from rewardgap.core.results import ResultRow, deployment_label
from rewardgap.decoding.contrast import Contrast
from rewardgap.policies.base import AdaptedPolicy, GenerationSettings
from rewardgap.policies.catalog import POLICIES
from rewardgap.policies.contrast import ContrastConfig, Contrasted, ContrastState, contrast
from rewardgap.policies.cope import CoPe
from rewardgap.policies.in_context import in_context
from rewardgap.policies.zero_shot import zero_shot
from rewardgap.studies.aggregate import deployed
from rewardgap.studies.deployments import expand
from rewardgap.studies.plan import deployment_title
from rewardgap.studies.spec import parse_study
from standins import ARCHITECTURES, private_copy, text_backbone

WORDS = ["red", "blue", "the light", "winter", "garden of stone", "river"]
QUERIES = ["Why?", "Name a colour of the garden.", "river"]
TEXTS = [["red and blue", "the light"], ["", "winter"], ["stone stone garden", "é"]]
LIMITS = GenerationSettings(max_new_tokens=8)


def support(user: int, rows: int = 3) -> list[PreferencePair]:
    return [
        PreferencePair(
            user_id=f"u{user}", example_id=f"{user}-{row}", prompt=f"Why {row}?", chosen=WORDS[(user + 2 * row) % 6],
            rejected="",
        )
        for row in range(rows)
    ]  # fmt: skip


@cache
def deployment(architecture: str, **options: Any) -> Contrasted:
    build = POLICIES["contrast"].build
    made: Contrasted = build(text_backbone(architecture), LIMITS, None, 2, None, **options)
    return made


def slow_contrast(
    policy: AdaptedPolicy, prompts: tuple[list[int], list[int]], weight: float, plausibility: float
) -> tuple[list[int], bool]:
    ids: list[int] = []
    model, ends = policy.backbone.model, set(policy.backbone.encoder.end_ids)
    for _ in range(policy.settings.max_new_tokens):
        plus, minus = (next_log_probs(model, prompt + ids) for prompt in prompts)
        plausible = [v for v, value in enumerate(plus) if value >= max(plus) + math.log(plausibility)]
        chosen = max(plausible, key=lambda v: (plus[v] + weight * (plus[v] - minus[v]), plus[v], -v))
        if chosen in ends:
            return ids, True
        ids.append(chosen)
    return ids, False


@given(st.integers(0, 999), st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from([1e-30, 0.05, 0.5, 1.0]))
def test_the_rule_is_the_obvious_loop(seed: int, weight: float, plausibility: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    own, base = (torch.randn(3, 7, dtype=torch.float64, generator=draw).mul(3).log_softmax(-1) for _ in range(2))
    own[0, 2] = base[0, 2] = -torch.inf  # forbidden by the stop rule, to both
    expected = []
    for plus, minus in zip(own.exp().tolist(), base.exp().tolist(), strict=True):
        kept = [v for v in range(7) if plus[v] > 0 and plus[v] >= plausibility * max(plus) * (1 - 1e-12)]
        expected.append(max(kept, key=lambda v: math.log(plus[v]) + weight * math.log(plus[v] / minus[v])))
    rule = Contrast(weight, plausibility, relative=True)
    assert rule.choose(torch.cat([own, base]), None).tolist() == [*expected, *expected]


@pytest.mark.parametrize(("architecture", "weight", "plausibility"), [
    ("llama", 0.5, 0.1), ("gemma3", 2.0, 0.01), ("mistral", 0.0, 0.3), ("qwen2", 1.0, 1e-6), ("qwen3", 0.3, 1.0),
])  # fmt: skip
def test_texts_and_scores_are_those_of_plain_forwards(architecture: str, weight: float, plausibility: float) -> None:
    """Three users with demonstrations of their own in one batch, the last of them without any."""
    policy = deployment(architecture, guidance_weight=weight, plausibility=plausibility)
    backbone, encoder = policy.backbone, policy.backbone.encoder
    states = [policy.adapt(support(0)), policy.adapt(support(1)), policy.adapt([])]
    batch = policy.open(QUERIES, states, completions=TEXTS)
    assert [prepared.shown for prepared in batch.prepared] == [2, 2, 0]
    scores, written = batch.scores(TEXTS), batch.generate()
    for row, (query, state) in enumerate(zip(QUERIES, states, strict=True)):
        shown = list(policy.plus.show(query, state.plus, policy.prompt_limit).ids)
        prompts = (shown, list(encoder.encode_prompt(query)))
        assert (shown == prompts[1]) == (row == 2)
        assert (list(written[row].ids), written[row].ended) == slow_contrast(policy, prompts, weight, plausibility)
        for text, found in zip(TEXTS[row], scores[row], strict=True):
            tokens = [*encoder.encode_completion(text, after=query), encoder.end_id]
            totals = dict.fromkeys(("rgd_topk", "rgd_full", "raw_delta", "base"), 0.0)
            inside = []
            for t, token in enumerate(tokens):
                plus, minus = (next_log_probs(backbone.model, prompt + tokens[:t]) for prompt in prompts)
                every = [p + weight * (p - m) for p, m in zip(plus, minus, strict=True)]
                plausible = {v for v, value in enumerate(plus) if value >= max(plus) + math.log(plausibility)}
                totals["rgd_full"] += every[token] - math.log(sum(map(math.exp, every)))
                among = sum(math.exp(every[v]) for v in plausible | {token})
                totals["rgd_topk"] += every[token] - math.log(among)
                totals["raw_delta"] += every[token]
                totals["base"] += plus[token]
                inside.append(token in plausible)
            for name, value in totals.items():
                assert found.variants[name] == pytest.approx(value, abs=1e-8), name
            assert found.coverage == pytest.approx(np.mean(inside))
            assert "reward_only" not in found.variants


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_weight_it_is_in_context_learning(architecture: str) -> None:
    backbone, mine = text_backbone(architecture), support(0)
    plain = in_context(backbone, mine, settings=LIMITS)
    policy = contrast(plain, zero_shot(backbone, settings=LIMITS), guidance_weight=0.0)
    assert policy.generate(QUERIES) == plain.generate(QUERIES)
    texts = [row[0] for row in TEXTS]
    base = plain.log_score(QUERIES, texts, variant="base")
    for name in ("base", "raw_delta", "rgd_full"):
        np.testing.assert_allclose(policy.log_score(QUERIES, texts, variant=name), base, rtol=0, atol=1e-9)
    pulled = contrast(plain, zero_shot(backbone, settings=LIMITS), guidance_weight=5.0, plausibility=1e-9)
    # What stands beyond the window of both its layers, mistral has not read.
    assert (pulled.generate(QUERIES) != plain.generate(QUERIES)) == (architecture != "mistral")


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("weight", [0.7, 6.0])
def test_a_policy_against_itself_is_that_policy(architecture: str, weight: float) -> None:
    """At any weight; and the same where a user has no demonstrations to be contrasted."""
    backbone = text_backbone(architecture)
    texts = [row[0] for row in TEXTS]
    shown, plain = in_context(backbone, support(1), settings=LIMITS), zero_shot(backbone, settings=LIMITS)
    nothing = in_context(backbone, [], settings=LIMITS)
    for policy, alone in ((contrast(shown, shown, guidance_weight=weight), shown),
                          (contrast(nothing, plain, guidance_weight=weight), plain)):  # fmt: skip
        assert policy.generate(QUERIES) == alone.generate(QUERIES)
        base = alone.log_score(QUERIES, texts, variant="base")
        np.testing.assert_allclose(policy.log_score(QUERIES, texts, variant="rgd_full"), base, rtol=0, atol=1e-9)


def test_a_batch_of_users_is_one_user_at_a_time() -> None:
    policy = deployment("llama", guidance_weight=1.5)
    states, texts = [policy.adapt(support(user)) for user in (0, 1, 2)], [row[0] for row in TEXTS]
    assert policy.generate(QUERIES, states) == [
        policy.generate([q], [s])[0] for q, s in zip(QUERIES, states, strict=True)
    ]
    assert policy.generate(QUERIES, states, batch_size=2) == policy.generate(QUERIES, states)
    together = policy.log_score(QUERIES, texts, states, variant="rgd_full")
    single = [
        policy.log_score([q], [t], [s], variant="rgd_full")[0] for q, t, s in zip(QUERIES, texts, states, strict=True)
    ]
    np.testing.assert_allclose(together, single, rtol=0, atol=1e-8)


def test_lines_of_a_study_that_differ_in_the_weight_have_rows_of_their_own() -> None:
    line = {"policy": "contrast", "num_demonstrations": [2, 4], "retriever": "bm25"}
    study = parse_study(
        {
            "name": "s", "data": {"name": "docstrings"}, "policy": "p",
            "deployments": [line, {**line, "options": {"guidance_weight": 2}}, {"policy": "icl_rag", "num_demonstrations": 2}],
        }
    )  # fmt: skip
    blank = ResultRow(
        dataset="d", users="unseen", seed=0, stage="behaviour", metric="rouge1", value=None, n_users=0, n_examples=0
    )
    rows = [deployed(blank, None, one) for one in expand(study)]  # type: ignore[arg-type]
    assert [deployment_label(row) for row in rows] == [
        "contrast 2 λ=0.5", "contrast 4 λ=0.5", "contrast 2 λ=2", "contrast 4 λ=2", "icl_rag 2",
    ]  # fmt: skip
    assert {row.retriever for row in rows} == {"bm25"}
    assert [deployment_title(one) for one in expand(study)][2] == "contrast guidance_weight=2 2"


def test_what_cannot_be_is_said() -> None:
    backbone = text_backbone("llama")
    shown, plain = in_context(backbone, support(0), settings=LIMITS), zero_shot(backbone, settings=LIMITS)
    policy = Contrasted(shown, plain)
    with pytest.raises(ConfigError, match=r"state under both policies, got NoneType; pass state=policy\.adapt"):
        policy.generate(["Why?"])
    with pytest.raises(ConfigError, match="2 states for 1 prompts"):
        policy.log_score(["Why?"], ["red"], [policy.adapt(support(0))] * 2)
    other = private_copy(backbone)
    other.fingerprint = "another"
    for strange in (zero_shot(other, settings=LIMITS), zero_shot(backbone)):
        with pytest.raises(ConfigError, match="one backbone and the same settings, got icl on tiny and zero_shot"):
            contrast(shown, strange)
    with pytest.raises(ConfigError, match="cope has adapters in it"):
        contrast(CoPe(backbone, LIMITS), plain)


@pytest.mark.parametrize(("name", "value"), [
    ("guidance_weight", -0.1), ("guidance_weight", math.inf), ("guidance_weight", "1"), ("plausibility", 0.0),
    ("plausibility", True), ("plausibility", 2),
])  # fmt: skip
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"contrast: {name} is {value!r}; expected"):
        ContrastConfig(**{name: value})


def test_the_card_builds_what_the_config_says() -> None:
    card = POLICIES["contrast"]
    built = card.build(text_backbone(), LIMITS, None, 3, "bm25", guidance_weight=0.4)
    assert asdict(built.config) == asdict(ContrastConfig()) | {"guidance_weight": 0.4}
    assert built.decoder == Contrast(0.4, 0.1, relative=True)
    assert (built.plus.name, built.plus.num_demonstrations, built.minus.name) == ("icl_rag", 3, "zero_shot")
    assert card.build(text_backbone(), LIMITS, None, None, None).plus.name == "icl"
    state = built.adapt(support(0))
    assert isinstance(state, ContrastState) and state.plus.pairs == tuple(support(0)) and state.minus is None
    assert card.personal and not card.servable and not built.servable
    assert all(entry.metadata["meaning"] for entry in fields(ContrastConfig))
    assert all(sentence.endswith(".") for sentence in card.deviations)
