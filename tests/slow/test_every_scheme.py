"""Every guided scheme with every reward model that its card names: the table of docs/guidance.md, row by row."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from rewardgap.core.records import PreferencePair
from rewardgap.decoding.base import JUDGES, STATE_VALUES, TOKEN_REWARDS
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.catalog import DECODERS, build_decoder
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.catalog import JUDGES as JUDGE_CARDS
from rewardgap.policies.catalog import build_judge
from rewardgap.policies.guided import Guided
from rewardgap.policies.judged import Judged
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.catalog import REWARD_MODELS
from standins import as_backbone, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

KINDS = {"head": STATE_VALUES, "autoregressive": TOKEN_REWARDS}
GUIDED = [card.name for card in DECODERS if card.guided]
OPTIONS: dict[str, dict[str, Any]] = {
    "best_of_n": {"n": 3}, "blockwise": {"block": 2, "num_blocks": 2}, "cards": {"calibrate": 2},
    "transfer_q": {"top_k": 2, "rollout": 1},
}  # fmt: skip
SETTINGS = GenerationSettings(max_new_tokens=4, min_new_tokens=1)
PROMPTS = ["what is the river", "a garden", "winter"]
PAIRS = [
    PreferencePair(
        user_id=f"u{i % 3}", example_id=str(i), prompt=f"write {word}", chosen=f"{word} light", rejected=f"no {word}"
    )
    for i, word in enumerate(("river", "paper", "winter", "red", "blue", "one"))
]


@cache
def policy() -> Any:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocabulary=len(tokenizer))
    model.config.max_position_embeddings = 2048
    return as_backbone(model, tokenizer)


@cache
def fitted(method: str) -> Any:
    small = {"num_user_tokens": 2, "num_clusters": 2, "adapt_steps": 2}
    known = REWARD_MODELS[method].config.__dataclass_fields__
    options = {name: value for name, value in small.items() if name in known}
    model = reward_model(method, policy(), **options)
    return model.fit(PAIRS, **({"epochs": 1} if model.fit_mode == "lora" else {}))


@pytest.mark.parametrize("scheme", GUIDED)
@pytest.mark.parametrize("method", REWARD_MODELS.names())
def test_a_scheme_decodes_with_a_reward_model_whatever_the_batch(scheme: str, method: str) -> None:
    assert KINDS[REWARD_MODELS[method].family] in DECODERS[scheme].families
    model = fitted(method)
    states = [model.adapt(PAIRS[:2]), model.state_of("u1"), model.adapt([])]
    deployed = Guided(policy(), build_decoder(scheme, **OPTIONS.get(scheme, {})), SETTINGS, reward=model)
    together = deployed.open(PROMPTS, states, [1, 2, 3]).generate()
    alone = [
        deployed.open([prompt], [state], [seed]).generate()[0]
        for prompt, state, seed in zip(PROMPTS, states, (1, 2, 3), strict=True)
    ]
    assert [text.ids for text in together] == [text.ids for text in alone]
    assert all(1 <= len(text.ids) <= 4 for text in together)
    assert deployed.scorable == DECODERS[scheme].scores


@pytest.mark.parametrize("name", JUDGE_CARDS.names())
def test_every_judge_picks(name: str) -> None:
    assert [scheme for scheme in GUIDED if JUDGES in DECODERS[scheme].families] == ["best_of_n"]
    judge = build_judge(name, policy(), labels=("A", "B")).fit(PAIRS)
    states = [judge.adapt(PAIRS[:2]), judge.state_of("u1"), judge.adapt([])]
    written = Judged(policy(), BestOfN(3), SETTINGS, judge=judge).open(PROMPTS, states, [1, 2, 3]).generate()
    assert all(text.questions is not None and text.questions > 0 for text in written)
