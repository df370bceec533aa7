"""Goodhart curves: what the guide's own reward and what behaviour gain over zero-shot, along the guidance weight.

Where reward goes on rising while behaviour falls, the reward model is being gamed by what it steers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rewardgap.report.dots import ends
from rewardgap.report.lines import Curve, Curves
from rewardgap.report.numbers import DASH, Cell
from rewardgap.report.sheets import Sheet
from rewardgap.report.svg import Scale, scale
from rewardgap.report.words import axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.decomposition import Decomposition
    from rewardgap.report.numbers import Unit

_NORMAL = 1.959963984540054
"""A 95 % interval of a normal distribution reaches so many standard deviations to either side."""
REWARD, BEHAVIOUR = "own_reward", "behaviour_gain"


@dataclass(frozen=True, slots=True)
class Step:
    """One guidance weight: gains over zero-shot of reward in its own unit, of it standardised, and of behaviour."""

    weight: float
    deployment: str
    reward: Cell
    standard: Cell
    behaviour: Cell


@dataclass(frozen=True, slots=True)
class Trial:
    """One reward model along the guidance weight; `spread` is what a unit of its standardised reward is."""

    method: str
    steps: tuple[Step, ...]
    spread: float | None


@dataclass(frozen=True, slots=True)
class Goodhart:
    """The reward models of one decoder and number of candidates, on common scales."""

    decoder: str
    metric: str
    trials: tuple[Trial, ...]

    def rewards(self, trial: Trial) -> Curves:
        """Return the curve of the standardised reward."""
        points = tuple((i, step.deployment, step.standard) for i, step in enumerate(trial.steps))
        title = f"Own reward of {trial.method} over zero-shot, in standard deviations between users, along λ"
        curve = Curve("own reward", "guided", points)
        return Curves(title, "Own reward", "λ", _weights(trial), (curve,), (_nothing(),), plain_units=True)

    def behaviours(self, trial: Trial) -> Curves:
        """Return the curve of behaviour."""
        points = tuple((i, step.deployment, step.behaviour) for i, step in enumerate(trial.steps))
        title = f"{axis(self.metric)} of what {trial.method} guides over zero-shot, in points, along λ"
        return Curves(title, axis(self.metric), "λ", _weights(trial), (Curve(axis(self.metric), "k2", points),),
                      (_nothing(),))  # fmt: skip

    def scales(self) -> tuple[Scale | None, Scale | None]:
        """Return the scales that all reward models share, of rewards and of behaviour; None without a number."""
        out = []
        for cells in (
            [step.standard for trial in self.trials for step in trial.steps],
            [step.behaviour for trial in self.trials for step in trial.steps],
        ):
            values = [value for cell in cells for value in ends(cell)]
            out.append(scale([0.0, *values], 3) if values else None)
        return out[0], out[1]

    def sheet(self) -> Sheet:
        """Return the numbers as a table."""
        heads = ("Reward model", "λ", "Own reward over zero-shot", "the same, standardised",
                 f"{axis(self.metric)} over zero-shot, points", "users")  # fmt: skip
        rows = tuple(
            (
                trial.method,
                f"{step.weight:g}",
                step.reward.full,
                step.standard.full,
                step.behaviour.full,
                str(step.behaviour.n_users or step.reward.n_users or DASH),
            )
            for trial in self.trials
            for step in trial.steps
        )
        return Sheet(f"Reward and behaviour along λ, {self.decoder}", heads, rows, 1, 5)


def goodhart(decomposition: Sequence[Decomposition]) -> list[Goodhart]:
    """Return the curves of one point of a study, one figure a decoder; only what has at least two guidance weights.

    The own reward of each reward model has a unit of its own. It is shown in standard deviations: the gain divided by
    its standard deviation between users, the root of the mean square over weights, each from its interval and number
    of users.
    """
    found: dict[str, dict[str, dict[float, dict[str, Decomposition]]]] = {}
    for one in decomposition:
        if one.quantity in (REWARD, BEHAVIOUR) and one.deployment is not None and one.guidance_weight is not None:
            decoder = _decoder(one)
            steps = found.setdefault(decoder, {}).setdefault(one.method, {})
            steps.setdefault(one.guidance_weight, {})[one.quantity] = one
    out = []
    for decoder, methods in found.items():
        trials = [_trial(method, steps) for method, steps in methods.items()]
        kept = tuple(trial for trial in trials if len(trial.steps) > 1)
        metrics = [one.metric for steps in methods.values() for own in steps.values() for one in own.values()]
        metric = next((name for name in metrics if name is not None), "behaviour")
        if kept:
            out.append(Goodhart(decoder, metric, kept))
    return out


def _trial(method: str, steps: dict[float, dict[str, Decomposition]]) -> Trial:
    spreads = [spread for own in steps.values() if (spread := _spread(own.get(REWARD))) is not None]
    spread = math.sqrt(sum(value**2 for value in spreads) / len(spreads)) if spreads else None
    made = []
    for weight in sorted(steps):
        own = steps[weight]
        reward, gain = _cell(own.get(REWARD)), _cell(own.get(BEHAVIOUR))
        if reward.value is not None or gain.value is not None:
            label = next(str(one.deployment) for one in own.values())
            made.append(Step(weight, label, reward, _divided(reward, spread), gain))
    return Trial(method, tuple(made), spread)


def _spread(one: Decomposition | None) -> float | None:
    """Return the standard deviation between users, None without an interval that has a width."""
    if one is None or one.ci_low is None or one.ci_high is None or one.ci_high <= one.ci_low:
        return None
    return (one.ci_high - one.ci_low) / (2 * _NORMAL) * math.sqrt(one.n_users)


def _divided(cell: Cell, spread: float | None) -> Cell:
    if spread is None or cell.value is None:
        return Cell(unit="ratio")
    low, high = (None if end is None else end / spread for end in (cell.low, cell.high))
    return replace(cell, value=cell.value / spread, low=low, high=high)


def _cell(one: Decomposition | None) -> Cell:
    if one is None:
        return Cell()
    unit: Unit = "ratio" if one.unit == "reward" else "points"
    return Cell(one.value, one.ci_low, one.ci_high, unit, one.n_users, one.n_examples)


def _decoder(one: Decomposition) -> str:
    """Return what a deployment is but for its reward model and weight."""
    label = str(one.deployment).removeprefix(f"{one.method} · ")
    return label.replace(f" λ={one.guidance_weight:g}", "", 1)


def _weights(trial: Trial) -> tuple[str, ...]:
    return tuple(f"{step.weight:g}" for step in trial.steps)


def _nothing() -> tuple[str, Cell, str]:
    return "zero-shot", Cell(0.0), "base"
