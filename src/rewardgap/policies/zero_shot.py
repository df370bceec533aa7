"""The policy as it is: no user, no demonstrations, no reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.core.errors import ConfigError
from rewardgap.decoding.plain import Greedy
from rewardgap.policies.base import AdaptedPolicy, GenerationSettings
from rewardgap.policies.cards import PolicyCard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import TraceCache
    from rewardgap.core.records import PreferencePair
    from rewardgap.decoding.base import Decoder


class ZeroShot(AdaptedPolicy):
    """The frozen policy; every user gets the same."""

    name = "zero_shot"
    servable = True

    def adapt(self, support: Sequence[PreferencePair]) -> None:
        """Return nothing: the support set is not used."""


def zero_shot(
    policy: Backbone, *, decoder: Decoder | None = None, settings: GenerationSettings | None = None
) -> ZeroShot:
    """Return the policy without any adaptation."""
    return ZeroShot(policy, decoder or Greedy(), settings)


def _build(
    backbone: Backbone,
    settings: GenerationSettings,
    traces: TraceCache | None,
    num_demonstrations: int | None,
    retriever: str | None,
) -> ZeroShot:
    if num_demonstrations is not None or retriever is not None:
        raise ConfigError("zero_shot takes neither num_demonstrations nor retriever; use icl or icl_rag.")
    return ZeroShot(backbone, Greedy(), settings, traces=traces)


CARD = PolicyCard(
    name="zero_shot",
    summary="The frozen policy without adaptation; the baseline of every win rate.",
    equation="y ~ π(y | x)",
    paper="",
    build=_build,
    baseline=True,
    servable=True,
)
