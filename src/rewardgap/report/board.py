"""The rows of one point of a study as lines: a line for each deployment, a line for each reward model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rewardgap.core.results import CrossoverResult, PointResult, ResultRow, deployment_label, distinct_labels
from rewardgap.report.numbers import Cell, counted, finite
from rewardgap.report.words import BERTSCORE, COLUMNS, POLICY_ACCURACY, RM_ACCURACY, ROUGE_1, ROUGE_L, WIN_CROSS, Column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewardgap.core.results import StudyResults

BASELINE = "zero_shot"
_DEPLOYMENT = ("method", "decoder", "guidance_weight", "top_k", "retriever", "shots", "fit_mode")
_SETTING = ("pairing", "policy", "reward_backbone", "support_size")
_POINT = ("pairing", "policy", "support_size", "seed")
POINT_FORMS = ("{} pairs", "{}", "n={}", "seed {}")
Point = tuple[Any, ...]
P = TypeVar("P", bound=PointResult)


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
        """Return the numbers of a column, one for each judge, in the order of the rows."""
        by_judge: dict[str | None, ResultRow] = {}
        for row in self.rows:
            if row.stage == column.stage and row.metric == column.metric and row.users == users:
                by_judge.setdefault(row.judge, row)
        return [_cell(row, column) for row in by_judge.values()]

    def find(self, column: Column, users: Literal["seen", "unseen"] = "unseen") -> Cell | None:
        """Return the number of a column, or None without a row. Of several judges the least favourable is taken."""
        cells = self.cells(column, users)
        known = [cell for cell in cells if cell.value is not None]
        return min(known, key=lambda cell: cell.value or 0.0) if known else (cells[0] if cells else None)


def _cell(row: ResultRow, column: Column) -> Cell:
    """Return the number of a row, with a note on what is missing from it."""
    value, low, high = finite(row.value), finite(row.ci_low), finite(row.ci_high)
    missing = row.n_missing
    if value is None:
        note = f"no score for any of {counted(missing, 'example')}" if missing else "could not be measured"
        return Cell(unit=column.unit, n_users=row.n_users, n_examples=row.n_examples, note=note, judge=row.judge)
    whole = low is not None and high is not None
    return Cell(
        value=value,
        low=low if whole else None,
        high=high if whole else None,
        unit=column.unit,
        n_users=row.n_users,
        n_examples=row.n_examples,
        note=f"{counted(missing, 'example')} without a score left out, not counted as zero" if missing else None,
        judge=row.judge,
    )


@dataclass(frozen=True, slots=True)
class Board:
    """All lines of one point of a study: of one dataset, pairing rule, policy, support size and seed.

    `name` is the dataset, and where it has several points what tells this one from them. `point` holds the pairing
    rule, policy, support size and seed, None in a dataset with one point.
    """

    dataset: str
    name: str
    point: Point
    lines: tuple[Line, ...]
    reward_models: tuple[Line, ...]
    seeds: tuple[int, ...]
    _stages: frozenset[str] = field(repr=False)

    @property
    def is_one_of_several(self) -> bool:
        """Say whether the dataset has other points."""
        return any(value is not None for value in self.point)

    def findings(self, found: Iterable[P]) -> list[P]:
        """Return the findings of this point. What spans several points of a dataset belongs to none of them."""
        return [
            one
            for one in found
            if one.dataset == self.dataset
            and _compatible(self.point, one.point()[1:])
            and not (self.is_one_of_several and _is_across(one))
        ]

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
        """Return what deployments are ordered by: behaviour; without references the win rate under another judge."""
        for column in (ROUGE_1, ROUGE_L, BERTSCORE, WIN_CROSS, POLICY_ACCURACY):
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
    """Return a board for each point with rows, in the order of the study; its main dataset first.

    A dataset has several points where its rows differ in pairing rule, policy, support size or seed. A row that leaves
    one of these open, as the accuracy of a reward model does with the policy, belongs to every point that agrees
    with the rest.
    """
    rows: dict[str, list[ResultRow]] = {}
    for entry in results.datasets:
        rows.setdefault(dataset_name(entry), [])
    for row in results.rows:
        rows.setdefault(row.dataset, []).append(row)
    named = {name: _points(own) for name, own in rows.items() if own}
    out = []
    for name, points in named.items():
        for point, title in points.items():
            own = [row for row in rows[name] if _compatible(point, _point(row))]
            full = name if not title else title if len(named) == 1 else f"{name}, {title}"
            out.append(_board(name, full, point, own))
    return out


def at(results: StudyResults, board: Board) -> StudyResults:
    """Return the results with what statistics found at one board's point alone."""
    return replace(
        results,
        taus=board.findings(results.taus),
        comparisons=board.findings(results.comparisons),
        regrets=board.findings(results.regrets),
        heterogeneity=board.findings(results.heterogeneity),
        support=board.findings(results.support),
        crossovers=board.findings(results.crossovers),
        decompositions=board.findings(results.decompositions),
        baselines=[
            one
            for one in results.baselines
            if one.dataset == board.dataset and _compatible(board.point[:1], (one.pairing,))
        ],
    )


def _points(rows: Sequence[ResultRow]) -> dict[Point, str]:
    """Return the points of a dataset with a title each, of what tells them apart; one point without any for one."""
    found = list(dict.fromkeys(_point(row) for row in rows))
    differ = [index for index in range(len(_POINT)) if len({one[index] for one in found} - {None}) > 1]
    if not differ:
        return {(None,) * len(_POINT): ""}
    kept: list[Point] = []
    for one in sorted(found, key=lambda point: sum(value is None for value in point)):
        if not any(_compatible(one, other) for other in kept):
            kept.append(one)
    return {
        one: ", ".join(POINT_FORMS[index].format(one[index]) for index in differ if one[index] is not None)
        for one in sorted(kept, key=found.index)
    }


def _point(row: ResultRow) -> Point:
    return tuple(getattr(row, name) for name in _POINT)


def _is_across(one: PointResult) -> bool:
    return isinstance(one, CrossoverResult) and one.axis != "shots"


def dataset_name(entry: dict[str, Any]) -> str:
    """Return the name in an entry of `StudyResults.datasets`."""
    return str(entry.get("name", entry.get("dataset", "dataset")))


def _board(dataset: str, name: str, point: Point, rows: list[ResultRow]) -> Board:
    return Board(
        dataset=dataset,
        name=name,
        point=point,
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
    labels = distinct_labels([line.identity for line in lines])
    return [replace(line, label=label) for line, label in zip(lines, labels, strict=True)]
