"""Where an oracle may stand in a study: on synthetic texts, under the policy that they were drawn from."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from rewardgap.backbones.load import SYNTHETIC_WORDS
from rewardgap.core.errors import ConfigError
from rewardgap.data.synthetic_text import CARD, SyntheticTextTruth, truth
from rewardgap.rewards.oracles import ORACLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewardgap.studies.spec import StudySpec


def check_oracles(study: StudySpec) -> None:
    """Refuse oracles where the truth is not known.

    Raises:
        ConfigError: if the data are others, the policy is another, or texts may have other lengths than in the data.
    """
    names = [spec.name for spec in study.reward_models if spec.method in ORACLES.names()]
    if not names:
        return
    backbones = [spec.backbone for spec in study.reward_models if spec.method in ORACLES.names() and spec.backbone]
    if study.data.name != CARD.name or study.policy != SYNTHETIC_WORDS or backbones:
        raise ConfigError(
            f"reward model '{names[0]}' knows the users of {CARD.name} under the policy {SYNTHETIC_WORDS}, and nobody "
            "else; set both and give it no backbone, or leave it out."
        )
    longest, lengths = truth_of(study.data.options).max_length, study.generation
    if (lengths.min_new_tokens, lengths.max_new_tokens) != (1, longest):
        raise ConfigError(
            f"reward model '{names[0]}' knows texts of 1 to {longest} words; set generation.min_new_tokens to 1 and "
            f"generation.max_new_tokens to {longest}, or data.options.max_length to what is generated."
        )


def truth_of(options: Mapping[str, Any]) -> SyntheticTextTruth:
    """Return the truth behind `synthetic_text` with these options of its loader."""
    return truth(**{name: value for name, value in options.items() if name in inspect.signature(truth).parameters})
