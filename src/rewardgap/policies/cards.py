"""Cards of deployments that need no reward model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rewardgap.policies.base import AdaptedPolicy


@dataclass(frozen=True)
class PolicyCard:
    """A deployment as the catalogue lists it.

    `build(backbone, settings, traces, num_demonstrations, retriever)` makes it; the last two are None where the study
    does not give them, and `options` says what they mean. `baseline` marks the one that win rates are over.
    """

    name: str
    summary: str
    equation: str
    paper: str
    build: Callable[..., AdaptedPolicy]
    retriever: str | None = None
    deviations: tuple[str, ...] = ()
    family: str = "policy"
    personal: bool = False
    baseline: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
