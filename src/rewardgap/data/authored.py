"""Your own authored data: a source text and what a user wrote for it. A pairing rule makes preference pairs of it.

One raw row::

    {"user_id": "u17", "prompt_source": "The loop never ended when the list was empty.",
     "completion": "fix endless loop on empty list", "timestamp": "2024-05-31", "meta": {}}

`reference` is another name of `completion`; example_id, timestamp and meta are optional.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError, UnknownNameError
from rewardgap.core.records import SOURCE_SLOT, AuthoredText
from rewardgap.data.base import AuthoredDataset, DatasetCard
from rewardgap.data.collecting import ExampleIds, OnBadRow, collect
from rewardgap.data.columns import Columns, UserIds, read_meta, read_text, read_timestamp
from rewardgap.data.pairs import read_example_id
from rewardgap.data.reading import dataset_name, read_raw_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT_COLUMNS = ("user_id", "example_id", "prompt_source", "reference", "timestamp", "meta")
TEXT_ALIASES: Mapping[str, tuple[str, ...]] = {
    "prompt_source": ("prompt", "source", "input"),
    "reference": ("completion", "output"),
}
TASKS: Mapping[str, str] = {
    "commit_subject": f"Summarize this change in one short line, as a commit subject.\n\n{SOURCE_SLOT}",
    "headline": f"Write the headline of this news article.\n\n{SOURCE_SLOT}",
    "title": f"Write the title of the paper with this abstract.\n\n{SOURCE_SLOT}",
    "email_subject": f"Write the subject line of this e-mail.\n\n{SOURCE_SLOT}",
    "package_synopsis": f"Write the one-line synopsis of this software package.\n\n{SOURCE_SLOT}",
    "docstring": f"Summarize what this Python object does in one short sentence.\n\n{SOURCE_SLOT}",
    "rewording": f"Say this sentence in your own words.\n\n{SOURCE_SLOT}",
}


def load_authored(
    path: str | Path,
    *,
    task: str | None = None,
    prompt_template: str | None = None,
    first_line: bool = True,
    columns: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
    example_ids: ExampleIds = "given",
    name: str | None = None,
) -> AuthoredDataset:
    """Read a file of authored texts.

    Args:
        path: the file, JSON lines, plain or gzip.
        task: the name of a ready prompt template.
        prompt_template: your own, with `{prompt_source}` in it; one of the two is needed.
        first_line: whether a completion is one line.
        columns: canonical column -> the file's own column.
        on_bad_row: "error" or "drop".
        example_ids: "given" or "content".
        name: the dataset's name; default the file's.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if a row is bad, naming file, line and column.
        ConfigError: if an option is wrong, or neither or both of task and prompt_template are given.
        UnknownNameError: if there is no such task.
    """
    template = _template(task, prompt_template)
    file = Path(path)
    title = name or dataset_name(file)
    table = Columns(TEXT_COLUMNS, TEXT_ALIASES, columns or {})
    users = UserIds()

    def parse(where: str, row: Mapping[str, Any]) -> AuthoredText | None:
        return read_authored(where, row, table, users)

    found = collect(title, read_raw_rows(file), parse, on_bad_row=on_bad_row, example_ids=example_ids)
    return AuthoredDataset(title, found.rows, template, first_line, found.dropped, found.notes)


def read_authored(where: str, row: Mapping[str, Any], columns: Columns, users: UserIds) -> AuthoredText:
    """Return a row as an authored text.

    Raises:
        RowError: if a column is missing or wrong.
        DataError: if user ids are strings in some rows and numbers in others.
    """
    return AuthoredText(
        user_id=users.read(where, columns.required(where, row, "user_id")),
        example_id=read_example_id(where, columns.value(row, "example_id")),
        prompt_source=read_text(where, "prompt_source", columns.required(where, row, "prompt_source")),
        reference=read_text(where, "reference", columns.required(where, row, "reference")),
        timestamp=read_timestamp(where, columns.value(row, "timestamp")),
        meta=read_meta(where, columns.value(row, "meta")),
    )


def _template(task: str | None, prompt_template: str | None) -> str:
    if (task is None) == (prompt_template is None):
        raise ConfigError(
            f"authored needs either task or prompt_template, got {'neither' if task is None else 'both'}; "
            f"tasks are {', '.join(TASKS)}."
        )
    if task is None:
        return str(prompt_template)
    if task not in TASKS:
        raise UnknownNameError("task", task, TASKS)
    return TASKS[task]


CARD = DatasetCard(
    name="authored",
    summary="Your own source texts with what each user wrote for them.",
    kind="authored",
    source="a local file",
    revision="the file's fingerprint",
    licence="yours",
    citation="none",
    options={
        "path": "the file",
        "task": f"a ready prompt template: {', '.join(TASKS)}",
        "prompt_template": "your own prompt template, with {prompt_source} in it",
        "first_line": "whether a completion is one line (default true)",
        "columns": "mapping from canonical column to the file's own column name",
        "on_bad_row": "'error' stops at the first bad row, 'drop' leaves bad rows out and counts them by reason",
        "example_ids": "'given' keeps the file's ids, 'content' names each row by a hash of its content",
        "name": "the dataset's name in tables",
    },
    build=load_authored,
)
