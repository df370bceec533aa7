"""What token guidance misses, against every text of a toy vocabulary: the search error is real, and exact values end it.

The objective of guided decoding over a whole text is J(y) = log π(y | x) + λ r(x, y). Texts of up to three words out of
twelve can all be listed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from rewardgap.backbones.load import SYNTHETIC_WORDS, load_backbone
from rewardgap.data.synthetic_text import truth
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.numerics.bigram import log_prob
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import guided
from rewardgap.rewards.known import KnownReward, KnownUser
from rewardgap.rewards.oracles import ClosingGuide

if TYPE_CHECKING:
    from rewardgap.backbones.hf import Backbone

LONGEST = 3
WEIGHT = 2.0
KNOWN = truth(0, 4, max_length=LONGEST)
USER = KnownUser(KNOWN.user_ids[1])
WORTH = KNOWN.token_utilities(USER.user_id)
PROMPTS = [f"river {word}" for word in KNOWN.table.words]
SETTINGS = GenerationSettings(max_new_tokens=LONGEST, min_new_tokens=1, seed=0)


def rests(length: int) -> list[tuple[int, ...]]:
    """Every way to go on after so many words."""
    least = 1 if length == 0 else 0
    words = range(len(KNOWN.table.words))
    return [rest for size in range(least, LONGEST - length + 1) for rest in itertools.product(words, repeat=size)]


def objective(last: int, ids: tuple[int, ...]) -> float:
    return log_prob(KNOWN.base_law, last, ids) + WEIGHT * float(WORTH[list(ids)].sum())


def last_word(prompt: str) -> int:
    return KNOWN.table.ids(prompt)[-1]


@dataclass
class BestToCome(KnownReward):
    """Of a prefix, the best that any text can reach that begins with it; of a closed text, its worth."""

    def guide(self, policy: Backbone, prompts: Any, prompt_ids: Any, states: Any, room: int) -> Any:
        def value(row: int, ids: tuple[int, ...]) -> float:
            ended = bool(ids) and ids[-1] in policy.encoder.end_ids
            words = tuple(KNOWN.table.ids(policy.encoder.decode(ids[:-1] if ended else ids)))
            if ended or len(words) == LONGEST:
                return float(WORTH[list(words)].sum())
            # J of the best text, less what the words so far cost in log-probability: the decoder has added that.
            last = last_word(prompts[row])
            best = max(objective(last, (*words, *rest)) for rest in rests(len(words)))
            contexts = zip((last, *words), words, strict=False)
            return (best - sum(KNOWN.base_law[t, a, b] for t, (a, b) in enumerate(contexts))) / WEIGHT

        return ClosingGuide(value, len(prompts))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_backbone(SYNTHETIC_WORDS)


@pytest.fixture(scope="module")
def best() -> list[float]:
    """J of the best text after each prompt, of all 1,884."""
    return [max(objective(last_word(prompt), ids) for ids in rests(0)) for prompt in PROMPTS]


def reached(policy: Backbone, reward: KnownReward, decoder: Any) -> list[float]:
    deployed = guided(policy, reward, decoder=decoder, settings=SETTINGS)
    texts = deployed.generate(PROMPTS, [USER] * len(PROMPTS))
    return [objective(last_word(x), tuple(KNOWN.table.ids(y))) for x, y in zip(PROMPTS, texts, strict=True)]


def text_so_far() -> KnownReward:
    return KnownReward(lambda user, prompt, text: KNOWN.utility(user, text))


def test_with_exact_values_token_guidance_finds_the_best_of_all_texts(policy: Backbone, best: list[float]) -> None:
    decoder = ArgsGreedy(WEIGHT, len(KNOWN.table.words) + 1)
    found = reached(policy, BestToCome(text_so_far().utility), decoder)
    assert found == pytest.approx(best, abs=1e-4)


def test_with_the_worth_of_the_text_so_far_it_misses_some_and_exceeds_none(policy: Backbone, best: list[float]) -> None:
    found = reached(policy, text_so_far(), ArgsGreedy(WEIGHT, len(KNOWN.table.words) + 1))
    lost = [most - one for most, one in zip(best, found, strict=True)]
    assert min(lost) > -1e-4
    assert max(lost) > 0.5
    drawn = reached(policy, text_so_far(), BestOfN(n=16))
    assert all(one <= most + 1e-4 for one, most in zip(drawn, best, strict=True))
