"""Prompts to be answered, as JSON lines: whose they are, and what is asked.

One raw row::

    {"user_id": "u17", "prompt": "Suggest a walk."}

`prompt` may be a list of {role, content} messages; `user_id` and `example_id` are optional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewardgap.core.records import Prompt, prompt_to_json
from rewardgap.core.store import content_hash
from rewardgap.data.columns import MISSING, Columns, UserIds, check_unicode, read_prompt
from rewardgap.data.pairs import PAIR_ALIASES, read_example_id
from rewardgap.data.reading import decode_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rewardgap.data.reading import RawRow

PROMPT_COLUMNS = ("user_id", "example_id", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPrompt:
    """A prompt to be answered; `user_id` is None where the file names nobody."""

    user_id: str | None
    example_id: str
    prompt: Prompt


def read_prompts(raw_rows: Iterable[RawRow]) -> list[AskedPrompt]:
    """Return the prompts of raw rows, in order; a prompt may be asked twice.

    Raises:
        RowError: if a row is bad, naming place and column.
        DataError: if user ids are strings in some rows and numbers in others.
    """
    columns = Columns(PROMPT_COLUMNS, {"prompt": PAIR_ALIASES["prompt"]})
    users = UserIds()
    return [_read(raw.where, decode_row(raw), columns, users) for raw in raw_rows]


def _read(where: str, row: Mapping[str, Any], columns: Columns, users: UserIds) -> AskedPrompt:
    user = columns.value(row, "user_id")
    prompt = read_prompt(where, columns.required(where, row, "prompt"))
    user_id = None if user is MISSING or user is None else users.read(where, user)
    check_unicode(where, {"prompt": prompt_to_json(prompt), "user_id": user_id})
    given = read_example_id(where, columns.value(row, "example_id"))
    return AskedPrompt(
        user_id=user_id, example_id=given or content_hash([user_id, prompt_to_json(prompt)]), prompt=prompt
    )
