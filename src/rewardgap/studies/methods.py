"""What a study may list under reward_models: heads, autoregressive models and judges, by one name and with one face."""

from __future__ import annotations

from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rewardgap.core.catalog import Catalog
from rewardgap.core.errors import ConfigError
from rewardgap.policies.catalog import JUDGES
from rewardgap.policies.judge_states import load_judge_states, save_judge_states
from rewardgap.policies.judges import Judge
from rewardgap.rewards.catalog import REWARD_MODELS, fit_mode_of
from rewardgap.rewards.model import RewardModel
from rewardgap.rewards.oracles import ORACLES, Oracle
from rewardgap.rewards.state_files import load_states, save_states

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.policies.cards import JudgeCard, PolicyCard
    from rewardgap.rewards.base import MethodCard
    from rewardgap.rewards.oracles import OracleCard


class Ranker(Protocol):
    """What a study asks of everything under reward_models; states are the method's own."""

    @property
    def name(self) -> str:
        """Return the name in records."""
        ...

    @property
    def scale(self) -> float:
        """Return the unit of rewards."""
        ...

    @property
    def users(self) -> tuple[str, ...]:
        """Return the training users."""
        ...

    @property
    def diagnostics(self) -> dict[str, float]:
        """Return what the fit says of itself."""
        ...

    @property
    def fit(self) -> Callable[..., Any]:
        """Fit on the pairs of the training users; returns itself."""
        ...

    def warm(self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute ahead of time what pairs will need."""
        ...

    def adapt_all(self, supports: Sequence[Sequence[PreferencePair]]) -> Sequence[Any]:
        """Return the states of several users."""
        ...

    def state_of(self, user_id: str) -> Any:
        """Return a training user's own state."""
        ...

    def margins(self, pairs: Sequence[PreferencePair], states: Any) -> NDArray[np.float64]:
        """Return (N,) rewards of chosen minus rejected, one state a pair."""
        ...

    def rewards(self, prompts: Sequence[Prompt], completions: Sequence[str], states: Any) -> NDArray[np.float64]:
        """Return (B,) rewards of completions, one state each or one for all."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the method's files."""
        ...


METHODS: Catalog[MethodCard | JudgeCard | OracleCard] = Catalog("reward model", (*REWARD_MODELS, *JUDGES, *ORACLES))


def mode_of(method: str, asked: Literal["frozen", "lora"] | None = None) -> Literal["frozen", "lora"] | None:
    """Return how a method is fitted: as asked, else in its own way; None for judges and oracles, which are not.

    Raises:
        UnknownNameError: if there is no such method.
        ConfigError: if it cannot be fitted as asked.
    """
    return None if METHODS[method].family in ("judge", "oracle") else fit_mode_of(method, asked)


def steers(method: str) -> bool:
    """Say whether a method rewards tokens, so that a decoder can be steered by it."""
    return METHODS[method].family != "judge"


def config_of(card: MethodCard | JudgeCard | OracleCard | PolicyCard, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card's settings with every default written out.

    Raises:
        ConfigError: if there is no such setting; the message names the nearest.
    """
    known = [entry.name for entry in fields(card.config)] if card.config is not None else []
    unknown = [option for option in options if option not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"{card.name} has no option '{unknown[0]}'.{hint} Known: {', '.join(known) if known else 'none'}."
        )
    return asdict(card.config(**options)) if card.config is not None else {}


def save_ranker_states(path: Path, model: Ranker, states: Mapping[str, Any]) -> None:
    """Write the states of users, in the form of the method's family."""
    if isinstance(model, Judge):
        save_judge_states(path, model, states)
    elif isinstance(model, Oracle):
        model.save_states(path, states)
    else:
        assert isinstance(model, RewardModel)
        save_states(path, model, states)


def load_ranker_states(path: Path, model: Ranker) -> Mapping[str, Any]:
    """Read what `save_ranker_states` wrote."""
    if isinstance(model, Judge):
        return load_judge_states(path, model)
    if isinstance(model, Oracle):
        return model.load_states(path)
    assert isinstance(model, RewardModel)
    return load_states(path, model)
