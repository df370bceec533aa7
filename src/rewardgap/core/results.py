"""The shape of a study's results: one row a number, and the document that reports are made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias

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
class TauResult:
    """Kendall's tau-b between two stages over reward models; `tau` is None with a reason where it is not identified."""

    dataset: str
    x: str
    y: str
    n_models: int
    n_ties_x: int = 0
    n_ties_y: int = 0
    tau: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    undefined_resamples: int = 0
    reason: str | None = None


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
    """One query prompt with what the user wrote and what each deployment wrote. Every text is untrusted."""

    dataset: str
    user_id: str
    example_id: str
    prompt: str
    reference: str | None
    generations: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResults:
    """Everything a report reads: `results.json`."""

    name: str
    rows: list[ResultRow]
    taus: list[TauResult] = field(default_factory=list)
    controls: list[ControlResult] = field(default_factory=list)
    baselines: list[BaselineResult] = field(default_factory=list)
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
            parts[name] = [kind(**row) for row in parts.get(name, [])]
        return cls(**parts)


_PARTS: dict[str, type] = {
    "rows": ResultRow,
    "taus": TauResult,
    "controls": ControlResult,
    "baselines": BaselineResult,
    "samples": Sample,
}


def deployment_label(row: ResultRow) -> str:
    """Return a short name for the deployment a row speaks of, for example 'lore · args_greedy λ=1 k=10'."""
    weight = "" if row.guidance_weight is None else f" λ={row.guidance_weight:g}"
    if row.decoder is not None:
        width = "" if row.top_k is None else f" k={row.top_k}"
        return f"{row.method} · {row.decoder}{weight}{width}"
    shots = "" if row.shots is None else f" {row.shots}"
    return f"{row.method}{shots}{weight}"
