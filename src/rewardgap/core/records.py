"""The values that cross rooms: prompts, preference pairs, authored texts.

All are frozen; ids are strings; texts are kept as they were read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Role: TypeAlias = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


SOURCE_SLOT = "{prompt_source}"
"""Where a prompt template takes the text it is about."""

Prompt: TypeAlias = str | tuple[Message, ...]


def prompt_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Return the prompt as chat messages; a string is one user turn."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def prompt_text(prompt: Prompt) -> str:
    """Return the text of the last user turn: what retrieval compares and reports show."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt):
        if message.role == "user":
            return message.content
    return prompt[-1].content if prompt else ""


def prompt_to_json(prompt: Prompt) -> str | list[dict[str, str]]:
    """Return a JSON value: a string, or a list of {role, content}."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": m.role, "content": m.content} for m in prompt]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two completions of one prompt, of which a user chose one.

    `reference` is what the user wrote, where the data have it.
    """

    user_id: str
    example_id: str
    prompt: Prompt
    chosen: str
    rejected: str
    reference: str | None = None
    timestamp: str | None = None
    chosen_score: float | None = None
    rejected_score: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def margin(self) -> float | None:
        """Return chosen_score - rejected_score, or None where a score is missing."""
        if self.chosen_score is None or self.rejected_score is None:
            return None
        return self.chosen_score - self.rejected_score

    @property
    def demonstration(self) -> str:
        """Return the text an in-context prompt shows: what the user wrote, else what the user chose."""
        return self.chosen if self.reference is None else self.reference


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoredText:
    """A source text and the completion that a user really wrote for it.

    The prompt a model sees is the dataset's fixed template filled with `prompt_source`.
    """

    user_id: str
    example_id: str
    prompt_source: str
    reference: str
    timestamp: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def pair_to_json(pair: PreferencePair) -> dict[str, Any]:
    """Return the canonical JSON row of a pair, without the columns that are absent."""
    row: dict[str, Any] = {
        "user_id": pair.user_id,
        "example_id": pair.example_id,
        "prompt": prompt_to_json(pair.prompt),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }
    for name in ("reference", "timestamp", "chosen_score", "rejected_score"):
        value = getattr(pair, name)
        if value is not None:
            row[name] = value
    if pair.meta:
        row["meta"] = dict(pair.meta)
    return row
