"""Users in words: the state of a judge or of a persona deployment, which is text and nothing else, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.records import Message, PreferencePair, pair_to_json
from rewardgap.core.store import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 1


class Owner(Protocol):
    """Whom states belong to: a judge."""

    def fingerprint(self) -> str:
        """Return a hash of everything that decides what a state is worth."""
        ...


@dataclass(frozen=True)
class TriedPersona:
    """A persona that competed.

    Attributes:
        text: the persona; empty for none.
        accuracy: share of the held-out pairs it ranked right, ties one half; None where none were held out.
        margin: mean margin of the held-out pairs, nats; None where none were held out.
    """

    text: str
    accuracy: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Persona:
    """What is said of a user in a few sentences, and how it came to be that.

    Attributes:
        tried: the empty persona, then the drawn ones in order.
        winner: index in `tried`; 0 is the empty persona.
        num_written: support pairs it was written from.
        num_held_out: support pairs it was verified on; 0 where it is unverified.
        num_dropped: pairs to be written from that did not fit the writer's context.
    """

    tried: tuple[TriedPersona, ...] = (TriedPersona(""),)
    winner: int = 0
    num_written: int = 0
    num_held_out: int = 0
    num_dropped: int = 0

    @property
    def text(self) -> str:
        """Return the persona that is used; empty for none."""
        return self.tried[self.winner].text

    @property
    def verified(self) -> bool:
        """Return whether it won on pairs that it had not seen."""
        return self.num_held_out > 0


@dataclass(frozen=True)
class JudgeState:
    """A user's state under a judge.

    Attributes:
        method: the judge's name.
        pairs: what the user revealed, oldest first.
        persona: for judges that write one.
    """

    method: str
    pairs: tuple[PreferencePair, ...]
    persona: Persona | None = None

    @property
    def num_support(self) -> int:
        """Return the number of pairs the user revealed."""
        return len(self.pairs)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {
            "method": self.method,
            "pairs": [pair_to_json(pair) for pair in self.pairs],
            "persona": None if self.persona is None else persona_to_json(self.persona),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> JudgeState:
        """Read what `to_json` wrote."""
        persona = value["persona"]
        return cls(
            value["method"],
            tuple(pair_from_json(row) for row in value["pairs"]),
            None if persona is None else persona_from_json(persona),
        )


def persona_to_json(persona: Persona) -> dict[str, Any]:
    """Return a persona as a JSON value."""
    return asdict(persona)


def persona_from_json(value: Mapping[str, Any]) -> Persona:
    """Read what `persona_to_json` wrote."""
    return Persona(**{**value, "tried": tuple(TriedPersona(**row) for row in value["tried"])})


def pair_from_json(row: Mapping[str, Any]) -> PreferencePair:
    """Read what `pair_to_json` wrote."""
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in prompt)
    return PreferencePair(**{**row, "prompt": prompt})


def save_judge_states(path: Path, judge: Owner, states: Mapping[str, JudgeState]) -> None:
    """Write the states of users as JSON, with the judge they belong to."""
    users = {user: state.to_json() for user, state in states.items()}
    write_json(path, {"format": FORMAT, "judge": judge.fingerprint(), "users": users})


def load_judge_states(path: Path, judge: Owner) -> dict[str, JudgeState]:
    """Read what `save_judge_states` wrote.

    Raises:
        ModelError: if there is no such file.
        DataError: if it is damaged.
        ConfigError: if the states belong to another judge.
    """
    if not path.is_file():
        raise ModelError(f"states file '{path}' does not exist; adapt the judge to its users and save them.")
    try:
        facts = read_json(path)
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, expected {FORMAT}")
        owner = facts["judge"]
        states = {user: JudgeState.from_json(value) for user, value in facts["users"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"states file '{path}' is damaged ({error}); adapt the judge again and save.") from error
    if owner != judge.fingerprint():
        raise ConfigError(f"states file '{path}' belongs to another judge; adapt again with this one.")
    return states
