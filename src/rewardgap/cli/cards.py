"""Cards of every catalogue in one shape, for tables, JSON and pages."""

from __future__ import annotations

import inspect
import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewardgap.data.base import DatasetCard
    from rewardgap.decoding.base import DecoderCard
    from rewardgap.metrics.base import MetricCard
    from rewardgap.policies.cards import JudgeCard, PolicyCard
    from rewardgap.retrieval.base import RetrieverCard
    from rewardgap.rewards.base import MethodCard
    from rewardgap.rewards.oracles import OracleCard

REQUIRED = "required"
_BETTER = {True: "higher", False: "lower", None: "neither"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of an entry: its meaning, and its default as text."""

    name: str
    meaning: str
    default: str


@dataclass(frozen=True, slots=True)
class CardView:
    """A card of any catalogue.

    Attributes:
        name: as it is looked up.
        summary: one line.
        columns: what the table shows beside name and summary.
        facts: label -> text, the rest of the card; empty ones are left out.
        settings: what it takes.
        deviations: where it differs from its source; None where that has no meaning, empty is a claim.
        notes: whole sentences.
    """

    name: str
    summary: str
    columns: dict[str, str]
    facts: dict[str, str]
    settings: tuple[Setting, ...] = ()
    deviations: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        value = asdict(self)
        return {"name": value.pop("name"), "summary": value.pop("summary"), **value.pop("columns"), **value}


def methods() -> list[CardView]:
    """Return the reward models, the judges, the oracles, then the deployments that need none of them."""
    from rewardgap.policies.catalog import ALL_JUDGES, POLICIES
    from rewardgap.rewards.catalog import REWARD_MODELS
    from rewardgap.rewards.oracles import ORACLES

    kinds = (("reward model", REWARD_MODELS), ("judge", ALL_JUDGES), ("oracle", ORACLES))
    return [*(_method(card, kind) for kind, cards in kinds for card in cards), *(_policy(card) for card in POLICIES)]


def decoders() -> list[CardView]:
    """Return the decoders."""
    from rewardgap.decoding.catalog import DECODERS

    return [_decoder(card) for card in DECODERS]


def metrics() -> list[CardView]:
    """Return the metrics."""
    from rewardgap.metrics.catalog import METRICS

    return [_metric(card) for card in METRICS]


def datasets() -> list[CardView]:
    """Return the datasets."""
    from rewardgap.data.catalog import DATASETS

    return [_dataset(card) for card in DATASETS]


def retrievers() -> list[CardView]:
    """Return the retrievers."""
    from rewardgap.retrieval.catalog import RETRIEVERS

    return [_retriever(card) for card in RETRIEVERS]


def named(views: list[CardView], kind: str, name: str) -> CardView:
    """Return the card of that name.

    Raises:
        UnknownNameError: if there is none; the message names the nearest.
    """
    from rewardgap.core.errors import UnknownNameError

    found = [view for view in views if view.name == name]
    if not found:
        raise UnknownNameError(kind, name, [view.name for view in views])
    return found[0]


def _method(card: MethodCard | JudgeCard | OracleCard, kind: str) -> CardView:
    return CardView(
        card.name,
        card.summary,
        {"kind": kind, "personal": _yes(card.personal)},
        _told(Paper=card.paper, Equation=card.equation, Peer=card.peer, Family=card.family),
        _fields(card.config),
        card.deviations,
    )


def _policy(card: PolicyCard) -> CardView:
    return CardView(
        card.name,
        card.summary,
        {"kind": "deployment", "personal": _yes(card.personal)},
        _told(Paper=card.paper, Equation=card.equation),
        (*(Setting(name, meaning, "none") for name, meaning in card.options.items()), *_fields(card.config)),
        card.deviations,
    )


def _decoder(card: DecoderCard) -> CardView:
    return CardView(
        card.name,
        card.summary,
        {"guided": _yes(card.guided), "families": ", ".join(card.families) or "none"},
        _told(
            Paper=card.paper,
            Equation=card.equation,
            Peer=card.peer,
            Scores="yes"
            if card.scores
            else "no: a text has no probability that could be computed, so there is no policy accuracy",
        ),
        _settings(card.options, card.build),
        card.deviations,
    )


def _metric(card: MetricCard) -> CardView:
    low, high = card.range
    return CardView(
        card.name,
        card.summary,
        {"stage": card.stage, "better": _BETTER[card.higher_is_better]},
        _told(
            Range=f"{_bound(low)} to {_bound(high)}",
            Signature=card.signature,
            Takes=card.takes,
            Reference=("needed" if card.needs_reference else "not used") if card.takes == "texts" else "",
        ),
    )


def _dataset(card: DatasetCard) -> CardView:
    return CardView(
        card.name,
        card.summary,
        {"kind": card.kind, "licence": card.licence},
        _told(
            Source=card.source, Revision=card.revision, Citation=card.citation, Prompt=repr(card.prompt_template or "")
        ),
        _settings(card.options, card.build),
        card.deviations,
        card.notes,
    )


def _retriever(card: RetrieverCard) -> CardView:
    return CardView(card.name, card.summary, {}, _told(Source=card.source))


def _fields(config: type | None) -> tuple[Setting, ...]:
    return tuple(
        Setting(
            entry.name,
            str(entry.metadata.get("meaning", "")),
            REQUIRED if entry.default is MISSING else shown(entry.default),
        )
        for entry in (fields(config) if config is not None else ())
    )


def _settings(options: Mapping[str, str], build: Any) -> tuple[Setting, ...]:
    parameters = inspect.signature(build).parameters
    return tuple(Setting(name, meaning, _default(parameters.get(name))) for name, meaning in options.items())


def _default(parameter: inspect.Parameter | None) -> str:
    if parameter is None:
        return ""
    return REQUIRED if parameter.default is inspect.Parameter.empty else shown(parameter.default)


def shown(value: Any) -> str:
    """Return a default as one writes it in a study."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _told(**facts: str) -> dict[str, str]:
    return {label: text for label, text in facts.items() if text and text != "''"}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _bound(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else ("∞" if value > 0 else "−∞")
