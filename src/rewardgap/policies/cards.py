"""Cards of deployments that need no reward model, and of judges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rewardgap.policies.base import AdaptedPolicy


@dataclass(frozen=True)
class PolicyCard:
    """A deployment as the catalogue lists it.

    `build(backbone, settings, traces, num_demonstrations, retriever)` makes it; the last two are None where the study
    does not give them, and `options` says what they mean. `baseline` marks the one that win rates are over, `servable`
    those that a policy in a serving engine can be deployed as. Where there is a `config`, a dataclass of further
    settings with their meanings, `build` takes each of them by keyword too. Where adapting to a user is work,
    `state_format` keeps what came of it: (to bytes, from bytes).
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
    servable: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    config: type | None = None
    state_format: tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None = None


@dataclass(frozen=True)
class JudgeCard:
    """A judge as the catalogue lists it: what it is, where it is from, what is done differently here.

    `config` is a frozen dataclass of plain fields, each with its `meaning`. `build(model, **settings)` makes the judge
    from the fields of one and from what the study knows: `prompt_template`, and `opponent` where it ranks pairs.
    """

    name: str
    summary: str
    paper: str
    equation: str
    peer: str
    deviations: tuple[str, ...]
    config: type
    build: Callable[..., Any]
    personal: bool = True
    family: Literal["judge"] = "judge"
