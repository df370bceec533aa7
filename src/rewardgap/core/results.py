"""The shape of a study's results: one row a number, and the document that reports are made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rewardgap.core.decomposition import Decomposition
from rewardgap.core.findings import (
    Across,
    ComparisonResult,
    CrossoverResult,
    HeterogeneityResult,
    MetaResult,
    PointResult,
    RegretResult,
    SupportResult,
    TauResult,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "KEY_COLUMNS",
    "RESULT_COLUMNS",
    "SCHEMA_VERSION",
    "STAGES",
    "Across",
    "BaselineResult",
    "ComparisonResult",
    "ControlResult",
    "CrossoverResult",
    "Decomposition",
    "HeterogeneityResult",
    "MetaResult",
    "PointResult",
    "RegretResult",
    "ResultRow",
    "Sample",
    "Stage",
    "StudyResults",
    "SupportResult",
    "TauResult",
    "deployment_label",
    "distinct_labels",
]

Stage: TypeAlias = Literal["rm_accuracy", "policy_accuracy", "behaviour", "win_rate", "cost"]
STAGES: tuple[Stage, ...] = ("rm_accuracy", "policy_accuracy", "behaviour", "win_rate", "cost")
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One number of a study. All fields before `value` together are a unique key.

    Fractions are stored as fractions. `value` is None where nothing could be measured; `n_missing` counts the examples
    without a score, which are never taken as zero.
    """

    dataset: str
    pairing: str | None = None
    policy: str | None = None
    reward_backbone: str | None = None
    fit_mode: str | None = None
    method: str | None = None
    decoder: str | None = None
    guidance_weight: float | None = None
    top_k: int | None = None
    retriever: str | None = None
    shots: int | None = None
    support_size: int | None = None
    users: Literal["seen", "unseen"]
    judge: str | None = None
    seed: int
    stage: Stage
    metric: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n_users: int
    n_examples: int
    n_missing: int = 0
    seconds: float | None = None
    tokens: int | None = None

    def key(self) -> tuple[Any, ...]:
        """Return the values of the key columns, in order."""
        return tuple(getattr(self, name) for name in KEY_COLUMNS)


RESULT_COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(ResultRow))
KEY_COLUMNS: tuple[str, ...] = RESULT_COLUMNS[: RESULT_COLUMNS.index("value")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlResult:
    """A check with a known answer. `passed` says whether the interval agrees with the expectation."""

    name: str
    dataset: str
    method: str | None
    value: float | None
    ci_low: float | None
    ci_high: float | None
    expectation: str
    passed: bool | None
    sentence: str
    unit: Literal["points", "ratio"] = "points"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineResult:
    """Accuracy of a trivial ranker on the query pairs: what can be had without a reward model."""

    dataset: str
    pairing: str | None
    name: str
    summary: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n_users: int
    n_examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One query prompt with what the user wrote and what each deployment wrote. Every text is untrusted.

    `point` says in words which point of a study with axes it is from, '' where there is one only.
    """

    dataset: str
    user_id: str
    example_id: str
    prompt: str
    reference: str | None
    generations: dict[str, str]
    point: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResults:
    """Everything a report reads: `results.json`."""

    name: str
    rows: list[ResultRow]
    taus: list[TauResult] = field(default_factory=list)
    comparisons: list[ComparisonResult] = field(default_factory=list)
    regrets: list[RegretResult] = field(default_factory=list)
    heterogeneity: list[HeterogeneityResult] = field(default_factory=list)
    support: list[SupportResult] = field(default_factory=list)
    crossovers: list[CrossoverResult] = field(default_factory=list)
    meta: list[MetaResult] = field(default_factory=list)
    controls: list[ControlResult] = field(default_factory=list)
    baselines: list[BaselineResult] = field(default_factory=list)
    decompositions: list[Decomposition] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    command: str = ""
    study: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StudyResults:
        """Read what `to_json` wrote."""
        parts: dict[str, Any] = dict(value)
        for name, kind in _PARTS.items():
            parts[name] = [kind(**_renamed(name, row)) for row in parts.get(name, [])]
        return cls(**parts)


_PARTS: dict[str, type] = {
    "rows": ResultRow,
    "taus": TauResult,
    "comparisons": ComparisonResult,
    "regrets": RegretResult,
    "heterogeneity": HeterogeneityResult,
    "support": SupportResult,
    "crossovers": CrossoverResult,
    "meta": MetaResult,
    "controls": ControlResult,
    "baselines": BaselineResult,
    "decompositions": Decomposition,
    "samples": Sample,
}

_OLDER_TAU = {"ci_low": "naive_low", "ci_high": "naive_high"}


def _renamed(part: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row by the names of today: the interval of a tau was once the naive one alone."""
    return {_OLDER_TAU.get(name, name): value for name, value in row.items()} if part == "taus" else row


def deployment_label(row: ResultRow) -> str:
    """Return a short name for the deployment a row speaks of, for example 'lore · args_greedy λ=1 k=10'."""
    weight = "" if row.guidance_weight is None else f" λ={row.guidance_weight:g}"
    if row.decoder is not None:
        width = "" if row.top_k is None else f" k={row.top_k}"
        return f"{row.method} · {row.decoder}{weight}{width}"
    shots = "" if row.shots is None else f" {row.shots}"
    return f"{row.method}{shots}{weight}"


_TELLS_APART = {
    "fit_mode": "{}",
    "retriever": "{}",
    "pairing": "{} pairs",
    "policy": "{}",
    "reward_backbone": "{}",
    "support_size": "n={}",
}


def distinct_labels(rows: Sequence[ResultRow]) -> list[str]:
    """Return a label for each deployment; equal ones are followed by what tells them apart, and only that."""
    labels = [deployment_label(row) for row in rows]
    same: dict[str, list[ResultRow]] = {}
    for label, row in zip(labels, rows, strict=True):
        same.setdefault(label, []).append(row)
    named = []
    for label, row in zip(labels, rows, strict=True):
        parts = [label]
        for name, form in _TELLS_APART.items():
            value = getattr(row, name)
            if value is not None and len({getattr(other, name) for other in same[label]}) > 1:
                parts.append(form.format(value))
        named.append(" · ".join(parts))
    return named
