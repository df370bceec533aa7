"""Which guidance weight is best, by what, and how sure: paired differences to no guidance, users as clusters."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError
from rewardgap.metrics.catalog import METRICS
from rewardgap.stats.bootstrap import Estimate, clustered_mean, paired_difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEVEL = 0.95


@dataclass(frozen=True)
class Candidate:
    """One weight: (N,) users, and (N,) numbers of each measure, NaN where one is missing."""

    weight: float
    users: Sequence[str]
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Choice:
    """The weight that was chosen, and why.

    Attributes:
        weight: λ; None where nothing can choose.
        criterion: the measure that chose.
        differences: weight -> its criterion minus that of λ = 0.
        level: coverage of each interval, such that all of them hold together with 95 %.
        sentence: the same for a reader.
    """

    weight: float | None
    criterion: str | None
    sentence: str
    differences: dict[float, Estimate] = field(default_factory=dict)
    level: float = LEVEL

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {
            "criterion": self.criterion,
            "chosen": self.weight,
            "sentence": self.sentence,
            "level": self.level,
            "differences": [{"guidance_weight": weight, **asdict(found)} for weight, found in self.differences.items()],
        }


def choose(candidates: Sequence[Candidate], criterion: str | None, resamples: int = 2000, seed: int = 0) -> Choice:
    """Return the weight with the best mean over users; of equal ones the nearest to 0.

    The best of several is high partly by luck, so each interval against λ = 0 has coverage 1 - 0.05 / m for m weights
    (Bonferroni): all of them hold together with 95 %, the best one's too.

    Args:
        candidates: one a weight, λ = 0 among them, all with the same rows.
        criterion: the measure that chooses; None where there is only the reward that steers.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        ConfigError: if λ = 0 is not among them.
    """
    base = next((one for one in candidates if one.weight == 0), None)
    if base is None:
        raise ConfigError("λ = 0 is not among the weights; every other is compared with it.")
    if criterion is None:
        return Choice(
            None,
            None,
            "Nothing here can choose a weight: the rows have no reference and the study no second reward model, and "
            "the reward that steers rises with its own weight. Give the study another reward model, or references.",
        )
    sign = -1.0 if _is_metric(criterion) and METRICS[criterion].higher_is_better is False else 1.0
    others = [one for one in candidates if one.weight != 0]
    level = 1 - (1 - LEVEL) / max(1, len(others))
    means = {
        one.weight: sign * value
        for one in candidates
        if (value := clustered_mean(one.values[criterion], one.users, 1, seed).value) is not None
    }
    differences = {
        one.weight: paired_difference(
            one.values[criterion], base.values[criterion], one.users, resamples, seed, level=level
        )
        for one in others
    }
    if len(means) < len(candidates):
        return Choice(None, criterion, f"{_name(criterion)} has no value at some weight.", differences, level)
    best = min(means, key=lambda weight: (-means[weight], abs(weight), weight))
    sentence = _sentence(best, criterion, differences, sign, [one.weight for one in candidates])
    return Choice(best, criterion, sentence, differences, level)


def _sentence(
    best: float, criterion: str, differences: Mapping[float, Estimate], sign: float, tried: Sequence[float]
) -> str:
    sure = [weight for weight, found in differences.items() if _is_better(found, sign)]
    if best == 0:
        return f"No guidance weight has a better {_name(criterion)} than none (λ = 0)."
    found = differences[best]
    assert found.value is not None
    means = (
        f"λ = {best:g} has the best {_name(criterion)}, {_amount(found.value, criterion)} {_side(found.value)} λ = 0"
    )
    if found.low is None or found.high is None:
        return f"{means}; {found.reason}, so no weight is distinguishable from none."
    together = f" for all {len(differences)} weights together" if len(differences) > 1 else ""
    interval = f"[{_shown(found.low, criterion)}, {_shown(found.high, criterion)}]"
    said = f"{means} {interval} (95 %{together}, paired, {found.n_users} users)"
    if best not in sure:
        return f"{said}. " + (
            f"It is not distinguishable from none, but λ = {sure[0]:g} is."
            if sure
            else "No weight is distinguishable from none."
        )
    end = max(tried) if best > 0 else min(tried)
    edge = f" It is the {'largest' if best > 0 else 'lowest'} that was tried; try others beyond it."
    return f"{said}." + (edge if best == end else "")


def _is_better(found: Estimate, sign: float) -> bool:
    end = found.low if sign > 0 else found.high
    return end is not None and sign * end > 0


def _name(criterion: str) -> str:
    return {"judge_reward": "reward by the judge"}.get(criterion, criterion)


def _is_metric(criterion: str) -> bool:
    return criterion in METRICS.names()


def _shown(value: float, criterion: str) -> str:
    text = f"{100 * value:.1f}" if _is_metric(criterion) else f"{value:.2f}"
    return text.replace("-", "−")


def _amount(value: float, criterion: str) -> str:
    unit = "points" if _is_metric(criterion) else "deviations" if criterion == "judge_reward" else ""
    return f"{_shown(abs(value), criterion)} {unit}".strip()


def _side(value: float) -> str:
    return "above" if value >= 0 else "below"
