"""Prompts of a wanted length, as ids: real texts, or words where a network has random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewardgap.bench.train import TrainSizes, random_pairs
from rewardgap.core.errors import ConfigError
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.ordering import in_random_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import Prompt

RANDOM_WORDS = "words"


def prompts_of_length(
    backbone: Backbone, length: int, count: int, data: PreferenceDataset | AuthoredDataset | None, seed: int = 0
) -> list[tuple[int, ...]]:
    """Return ids of prompts with at most `length` tokens, as near to it as the texts allow.

    Args:
        backbone: whose template and tokenizer.
        length: tokens wanted, the template's included; longer prompts are cut at a word.
        count: prompts wanted.
        data: whose prompts; None for random words that are one token each.
        seed: decides which of the texts that are long enough.

    Raises:
        ConfigError: if the data have too few prompts.
    """
    encoder = backbone.encoder
    if data is None:
        pairs = random_pairs(backbone, TrainSizes(prompt=length, seed=seed), count)
        return [encoder.encode_prompt(pair.prompt) for pair in pairs]
    texts = _texts(data, seed)
    if len(texts) < count:
        raise ConfigError(f"dataset '{data.name}' has {len(texts)} prompts, expected at least {count}.")
    found: list[tuple[int, ...]] = []
    for text in texts:
        ids = encoder.encode_prompt(text, max_tokens=length, on_long="truncate_prompt")
        found.append(ids)
        if len(found) >= 50 * count:
            break
    return sorted(found, key=lambda ids: -len(ids))[:count]


def _texts(data: PreferenceDataset | AuthoredDataset, seed: int) -> Sequence[Prompt]:
    if isinstance(data, AuthoredDataset):
        rows: Mapping[Any, None] = dict.fromkeys(data.prompt(row) for row in in_random_order(data.texts, seed, "bench"))
    else:
        rows = dict.fromkeys(row.prompt for row in in_random_order(data.pairs, seed, "bench"))
    return list(rows)
