"""The rows of one dataset as lines: a line for each deployment, a line for each reward model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from rewardgap.core.results import ResultRow, deployment_label
from rewardgap.report.numbers import Cell, counted, finite
from rewardgap.report.words import COLUMNS, POLICY_ACCURACY, RM_ACCURACY, ROUGE_1, WIN_CROSS, Column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewardgap.core.results import StudyResults

BASELINE = "zero_shot"
_DEPLOYMENT = ("method", "decoder", "guidance_weight", "top_k", "retriever", "shots", "fit_mode")
_SETTING = ("pairing", "policy", "reward_backbone", "support_size")
_SUFFIX = {"support_size": "n={}", "pairing": "{} pairs"}


def _compatible(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Say whether two settings agree; a field that one of them does not have says nothing."""
    return all(x is None or y is None or x == y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True, slots=True)
class Line:
    """One deployment or one reward model, with all its rows.

    `identity` is a row whose deployment and setting fields are those of the line; its value means nothing.
    """

    label: str
    identity: ResultRow
    rows: tuple[ResultRow, ...]

    @property
    def is_guided(self) -> bool:
        """Say whether a reward model steers this deployment."""
        return self.identity.decoder is not None

    @property
    def is_baseline(self) -> bool:
        """Say whether this is the deployment that win rates compare with."""
        return self.identity.method == BASELINE

    @property
    def is_scored(self) -> bool:
        """Say whether given texts were scored: a deployment that cannot has the headline alone, without a value."""
        return any(row.stage == "policy_accuracy" and row.metric != POLICY_ACCURACY.metric for row in self.rows) or any(
            row.stage == "policy_accuracy" and row.value is not None for row in self.rows
        )

    def cells(self, column: Column, users: Literal["seen", "unseen"] = "unseen") -> list[Cell]:
        """Return the numbers of a column, one for each judge, seeds pooled, in the order of the rows."""
        by_judge: dict[str | None, list[ResultRow]] = defaultdict(list)
        for row in self.rows:
            if row.stage == column.stage and row.metric == column.metric and row.users == users:
                by_judge[row.judge].append(row)
        return [_pool(rows, column) for rows in by_judge.values()]

    def find(self, column: Column, users: Literal["seen", "unseen"] = "unseen") -> Cell | None:
        """Return the number of a column, or None without a row. Of several judges the least favourable is taken."""
        cells = self.cells(column, users)
        known = [cell for cell in cells if cell.value is not None]
        return min(known, key=lambda cell: cell.value or 0.0) if known else (cells[0] if cells else None)


def _pool(rows: list[ResultRow], column: Column) -> Cell:
    """Return one number from the rows of several seeds: their mean, and the span of their intervals."""
    known = [(value, row) for row in rows if (value := finite(row.value)) is not None]
    missing = sum(row.n_missing for row in rows)
    first = rows[0]
    if not known:
        note = f"no score for any of {counted(missing, 'example')}" if missing else "could not be measured"
        return Cell(unit=column.unit, n_users=first.n_users, n_examples=first.n_examples, note=note, judge=first.judge)
    lows = [low for _, row in known if (low := finite(row.ci_low)) is not None]
    highs = [high for _, row in known if (high := finite(row.ci_high)) is not None]
    whole = len(lows) == len(highs) == len(known)
    notes = []
    if missing:
        notes.append(f"{counted(missing, 'example')} without a score left out, not counted as zero")
    if len(known) < len(rows):
        notes.append(f"{len(rows) - len(known)} of {len(rows)} seeds without a value")
    return Cell(
        value=sum(value for value, _ in known) / len(known),
        low=min(lows) if whole else None,
        high=max(highs) if whole else None,
        unit=column.unit,
        n_users=max(row.n_users for _, row in known),
        n_examples=max(row.n_examples for _, row in known),
        note="; ".join(notes) or None,
        judge=first.judge,
    )


@dataclass(frozen=True, slots=True)
class Board:
    """All lines of one dataset."""

    dataset: str
    lines: tuple[Line, ...]
    reward_models: tuple[Line, ...]
    seeds: tuple[int, ...]
    _stages: frozenset[str] = field(repr=False)

    def cell(self, line: Line, column: Column) -> Cell:
        """Return the number of a deployment in a column; a missing one carries its reason."""
        source: Line | None = line
        if column is RM_ACCURACY:
            source = self.reward_model(line)
        found = None if source is None else source.find(column)
        missing = found is None or (column is POLICY_ACCURACY and not line.is_scored)
        return Cell(unit=column.unit, note=self._reason(line, column)) if found is None or missing else found

    def reward_model(self, line: Line) -> Line | None:
        """Return the reward model that guides a deployment, None where there is none."""
        if not line.is_guided:
            return None
        own = line.identity
        for model in self.reward_models:
            other = model.identity
            if (other.method, other.fit_mode) == (own.method, own.fit_mode) and _compatible(
                (other.pairing, other.reward_backbone, other.support_size),
                (own.pairing, own.reward_backbone, own.support_size),
            ):
                return model
        return None

    def guided_by(self, model: Line) -> list[Line]:
        """Return the deployments that a reward model guides."""
        return [line for line in self.lines if self.reward_model(line) is model]

    def has(self, column: Column) -> bool:
        """Say whether any deployment has a row for a column, measured or not."""
        sources = self.reward_models if column is RM_ACCURACY else self.lines
        return any(line.find(column) is not None for line in sources)

    @property
    def baseline(self) -> Line | None:
        """Return the zero-shot deployment."""
        return next((line for line in self.lines if line.is_baseline), None)

    @property
    def criterion(self) -> Column | None:
        """Return what deployments are ordered by: ROUGE-1; without references the win rate under another judge."""
        for column in (ROUGE_1, WIN_CROSS, POLICY_ACCURACY):
            if any(self.cell(line, column).value is not None for line in self.lines):
                return column
        return None

    def ranked(self, column: Column | None = None) -> list[tuple[Line, Cell]]:
        """Return the deployments that have a number in a column (default: the criterion), best first."""
        column = column or self.criterion
        if column is None:
            return []
        pairs = [(line, self.cell(line, column)) for line in self.lines]
        return sorted(((n, c) for n, c in pairs if c.value is not None), key=lambda pair: -(pair[1].value or 0.0))

    def ordered(self) -> list[Line]:
        """Return every deployment, best first, those without a number last."""
        first = [line for line, _ in self.ranked()]
        return first + [line for line in self.lines if line not in first]

    def counts(self, columns: Iterable[Column] = COLUMNS) -> tuple[set[int], set[int]]:
        """Return the numbers of users and of examples behind the shown cells."""
        cells = [self.cell(line, column) for line in self.lines for column in columns]
        known = [cell for cell in cells if cell.value is not None]
        return {cell.n_users for cell in known}, {cell.n_examples for cell in known}

    def _reason(self, line: Line, column: Column) -> str:
        if not line.is_guided and column.name in ("rm", "self"):
            return "no reward model guides it"
        if line.is_baseline and column.stage == "win_rate":
            return "it is what the others are compared with"
        if column.stage not in self._stages:
            return {
                "behaviour": "no behaviour in this dataset: it needs texts that users wrote",
                "win_rate": "no win rates were measured in this dataset",
            }.get(column.stage, "this stage was not run")
        if column.stage == "policy_accuracy" and not line.is_scored:
            return "not scored: no tractable density, or not run"
        return "not measured"


def boards(results: StudyResults) -> list[Board]:
    """Return a board for each dataset with rows; the study's main dataset first."""
    rows: dict[str, list[ResultRow]] = {}
    for entry in results.datasets:
        rows.setdefault(dataset_name(entry), [])
    for row in results.rows:
        rows.setdefault(row.dataset, []).append(row)
    return [_board(name, own) for name, own in rows.items() if own]


def dataset_name(entry: dict[str, Any]) -> str:
    """Return the name in an entry of `StudyResults.datasets`."""
    return str(entry.get("name", entry.get("dataset", "dataset")))


def _board(dataset: str, rows: list[ResultRow]) -> Board:
    return Board(
        dataset=dataset,
        lines=tuple(_lines(row for row in rows if not _is_of_reward_model(row))),
        reward_models=tuple(_lines(row for row in rows if _is_of_reward_model(row))),
        seeds=tuple(sorted({row.seed for row in rows})),
        _stages=frozenset(row.stage for row in rows),
    )


def _is_of_reward_model(row: ResultRow) -> bool:
    """Say whether a row speaks of a reward model alone: its accuracy, or what fitting it cost."""
    return row.stage == "rm_accuracy" or (row.stage == "cost" and row.fit_mode is not None and row.decoder is None)


def _lines(rows: Iterable[ResultRow]) -> list[Line]:
    grouped: dict[tuple[Any, ...], dict[tuple[Any, ...], list[ResultRow]]] = {}
    for row in rows:
        deployment = tuple(getattr(row, name) for name in _DEPLOYMENT)
        setting = tuple(getattr(row, name) for name in _SETTING)
        grouped.setdefault(deployment, {}).setdefault(setting, []).append(row)
    lines = []
    for settings in grouped.values():
        kept: list[tuple[Any, ...]] = []
        for setting in sorted(settings, key=lambda s: sum(value is None for value in s)):
            if not any(_compatible(setting, other) for other in kept):
                kept.append(setting)
        for setting in sorted(kept, key=list(settings).index):
            own = [row for other, part in settings.items() if _compatible(setting, other) for row in part]
            identity = replace(own[0], **dict(zip(_SETTING, setting, strict=True)))
            lines.append(Line(deployment_label(identity), identity, tuple(own)))
    return _labelled(lines)


def _labelled(lines: list[Line]) -> list[Line]:
    """Add to equal labels what tells them apart, and only that."""
    same: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        same[line.label].append(line)
    named = []
    for line in lines:
        label = line.label
        for name in ("fit_mode", "retriever", *_SETTING):
            value = getattr(line.identity, name)
            if value is not None and len({getattr(other.identity, name) for other in same[line.label]}) > 1:
                label += " · " + _SUFFIX.get(name, "{}").format(value)
        named.append(replace(line, label=label))
    return named
