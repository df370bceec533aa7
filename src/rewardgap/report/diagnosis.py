"""What goes wrong between ranking and writing, in words: each verdict by a stated rule, none where chance could be it.

Throughout, *arrives* means: the advantage over a coin at the later stage is at least half of that at the earlier one.
Less arrives where the interval of the difference lies below zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.report.numbers import Unit, counted, with_interval
from rewardgap.report.words import axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewardgap.core.decomposition import Decomposition

CHANCE = 0.5
FEWEST_USERS = 8
"""With fewer, an interval over users says little: no verdict."""
NO_GAIN = 0.02
"""A gain below this is none: two points."""
FAINT, LOUD = 0.25, 4.0
"""Guidance ratios below which the reward hardly moves the choice, and above which the policy hardly does."""
MORE_TOKENS = 1.1
"""Budgets are equal, or the other's larger, where one spends at most this many times the other's tokens."""
SOUND = "No single step stands out: no rule of the diagnosis holds beyond what chance could do."
_UNITS: dict[str, Unit] = {"points": "points", "ratio": "ratio", "reward": "ratio", "tokens": "whole"}


def diagnose(decomposition: Sequence[Decomposition]) -> list[str]:
    """Return a sentence for each fault that the intervals establish.

        prefix error   whole texts are ranked better than by a coin; cut at one half they are not, and less arrives
        hacking        the guide prefers its texts to zero-shot; less arrives with other judges, who see no gain, nor
                       does behaviour; without other judges, behaviour falls
        not personal   whole texts are ranked better than by a coin; the whole interval of the swap test lies below 2
                       points
        too weak       RM accuracy is ahead of policy accuracy, and the guidance ratio below 1/4, at every weight
        too strong     the guidance ratio is above 4 and behaviour below zero-shot, at the weights named
        search error   best-of-N reaches a higher own reward than token guidance for no more tokens, and it is no
                       prefix error

    "Better", "ahead", "above" and "below" are said of whole intervals, over 8 users at least. Where n examples are all
    alike, resampling them shows no spread, and the interval is taken as 3 / n to both sides (the rule of three).

    Args:
        decomposition: the numbers of one study, of any number of reward models and points.
    """
    ways: dict[tuple[object, ...], list[Decomposition]] = {}
    for one in decomposition:
        ways.setdefault((*one.point(), one.method), []).append(one)
    several = len({way[0].point() for way in ways.values()}) > 1
    found: list[str] = []
    for numbers in ways.values():
        own = _verdicts(_Way(numbers))
        found += [_where(numbers[0]) + text if several else text for text in own]
    return found


class _Way:
    """The numbers of one reward model."""

    def __init__(self, numbers: Sequence[Decomposition]) -> None:
        self.numbers = numbers
        self.method = numbers[0].method
        self.deployments = list(dict.fromkeys(one.deployment for one in numbers if one.deployment is not None))

    def find(self, quantity: str, deployment: str | None = None, share: float | None = None) -> Decomposition | None:
        """Return a number that has an interval over enough users, or None."""
        for one in self.numbers:
            if (one.quantity, one.deployment) == (quantity, deployment) and share in (None, one.share):
                is_known = one.ci_low is not None and one.ci_high is not None and one.n_users >= FEWEST_USERS
                return one if is_known else None
        return None

    @property
    def ranks(self) -> Decomposition | None:
        """Return RM accuracy where it is better than a coin's."""
        accuracy = self.find("rm_accuracy")
        return accuracy if accuracy is not None and _low(accuracy) > CHANCE else None


def _verdicts(way: _Way) -> Iterable[str]:
    prefix = _prefix_error(way)
    yield from prefix
    yield from _hacking(way)
    yield from _not_personal(way)
    yield from _too_weak(way)
    yield from _too_strong(way)
    if not prefix:
        yield from _search_error(way)


def _prefix_error(way: _Way) -> list[str]:
    whole, half, kept = way.ranks, way.find("prefix_accuracy", share=0.5), way.find("prefix_kept")
    if whole is None or half is None or kept is None or _low(half) > CHANCE or _high(kept) >= 0:
        return []
    return [
        f"{way.method} has a prefix error: it ranks whole texts ({_said(whole)}), but texts that are cut at one half "
        f"no better than a coin ({_said(half)}). A decoder that chooses token by token sees cut texts only; one that "
        "chooses between whole texts, as best_of_n does, would not suffer from it."
    ]


def _hacking(way: _Way) -> list[str]:
    found = []
    for name in way.deployments:
        own, other, kept = (way.find(quantity, name) for quantity in ("win_own", "win_other", "win_kept"))
        writes = way.find("behaviour_gain", name)
        if own is None or _low(own) <= CHANCE or (writes is not None and _low(writes) > 0):
            continue
        if other is None or kept is None:
            if writes is None or _high(writes) >= 0:
                continue
        elif _low(other) > CHANCE or _high(kept) >= 0:
            continue
        found.append((name, own, other, writes))
    if not found:
        return []
    name, own, other, writes = max(found, key=lambda entry: entry[1].value or 0.0)
    judged = sum(way.find("win_own", deployment) is not None for deployment in way.deployments)
    seen = "" if other is None else f" others in {_said(other)},"
    written = "" if writes is None else f" and {axis(str(writes.metric))} changes by {_said(writes)} points"
    return [
        f"{way.method} shows reward hacking: it prefers what it guided to zero-shot in {_said(own)} of 100 cases,{seen}"
        f"{written} ({name}; {len(found)} of {counted(judged, 'deployment')}). What its reward gains is not what "
        "users want."
    ]


def _not_personal(way: _Way) -> list[str]:
    whole, gain = way.ranks, way.find("personal_gain")
    if whole is None or gain is None or _high(gain) >= NO_GAIN:
        return []
    return [
        f"{way.method} is not personal: a user's own state ranks {_said(gain)} points better than another user's, less "
        f"than {100 * NO_GAIN:.0f}. Its accuracy ({_said(whole)}) is what all users share."
    ]


def _too_weak(way: _Way) -> list[str]:
    steered = [name for name in way.deployments if way.find("guidance_error", name) is not None]
    pairs = [(way.find("guidance_ratio", name), way.find("guidance_error", name)) for name in steered]
    known = [(ratio, error) for ratio, error in pairs if ratio is not None and error is not None]
    if not known or len(known) < len(steered) or way.ranks is None:
        return []
    if any(_high(ratio) >= FAINT or _low(error) <= 0 for ratio, error in known):
        return []
    ratio, error = max(known, key=lambda pair: pair[0].value or 0.0)
    return [
        f"Guidance by {way.method} is too weak at every weight that was tried: at most, the reward moves candidates "
        f"{_said(ratio)} times as much as the policy's own preferences do ({ratio.deployment}), and policy accuracy "
        f"stays {_said(error)} points behind RM accuracy. Raise guidance_weight."
    ]


def _too_strong(way: _Way) -> list[str]:
    found = []
    for name in way.deployments:
        ratio, writes = way.find("guidance_ratio", name), way.find("behaviour_gain", name)
        if ratio is not None and writes is not None and _low(ratio) > LOUD and _high(writes) < 0:
            found.append((ratio, writes))
    if not found:
        return []
    ratio, writes = min(found, key=lambda pair: pair[0].value or 0.0)
    weights = ", ".join(f"{one.guidance_weight:g}" for one, _ in found if one.guidance_weight is not None)
    return [
        f"Guidance by {way.method} is too strong at λ = {weights}: the reward moves candidates {_said(ratio)} times as "
        f"much as the policy's own preferences do, and {axis(str(writes.metric))} falls by {_said(writes)} points "
        f"({ratio.deployment}). Lower guidance_weight."
    ]


def _search_error(way: _Way) -> list[str]:
    for name in way.deployments:
        gain, spent = way.find("search_reward", name), way.find("tokens", name)
        other = None if gain is None else way.find("tokens", gain.against)
        if gain is None or spent is None or other is None or _low(gain) <= 0:
            continue
        if (spent.value or 0.0) <= MORE_TOKENS * (other.value or 0.0):
            return [
                f"{way.method} suffers from a search error: {name} reaches {_said(gain)} more of its own reward than "
                f"{gain.against}, for {_said(spent)} against {_said(other)} tokens a completion. Token guidance "
                "misses texts that the reward model itself prefers."
            ]
    return []


def _said(one: Decomposition) -> str:
    return with_interval(one.value, one.ci_low, one.ci_high, _UNITS[one.unit])


def _low(one: Decomposition) -> float:
    assert one.ci_low is not None
    return one.ci_low - _unseen(one)


def _high(one: Decomposition) -> float:
    assert one.ci_high is not None
    return one.ci_high + _unseen(one)


def _unseen(one: Decomposition) -> float:
    """Return by how much an interval without width falls short: n like cases leave 3 / n of others possible at 95 %."""
    return 3 / one.n_examples if one.ci_low == one.ci_high else 0.0


def _where(one: Decomposition) -> str:
    parts = [one.dataset, *(str(part) for part in (one.policy,) if part is not None)]
    parts += [] if one.support_size is None else [f"n={one.support_size}"]
    parts += [] if one.seed is None else [f"seed {one.seed}"]
    return f"On {', '.join(parts)}: "
