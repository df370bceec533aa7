r"""A dataset as a folder that the hub and the `datasets` library read too.

The folder holds `data/*.parquet`, the card `README.md`, and `rewardgap.json` with what the columns cannot hold: name,
fingerprint, completion rule, rows left out, and how the pairs were made. One row::

    {"user_id": "u17", "example_id": "u17-4", "prompt": "Suggest a walk.", "chosen": "Along the river.",
     "rejected": "Stay in.", "reference": None, "timestamp": "2024-05-31", "chosen_score": 0.4, "rejected_score": 0.1,
     "meta": "{\"topic\":\"walks\"}"}

`prompt` is a text in all rows, or a list of {role, content} messages in all rows; where a dataset has both, texts
become one user message and the column `prompt_is_text` tells which.
"""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import PreferencePair, prompt_messages
from rewardgap.core.store import canonical_json, new_folder, read_json, write_bytes, write_json, write_text
from rewardgap.data.base import DatasetCard, PreferenceDataset, row_to_json
from rewardgap.data.columns import Columns, UserIds, check_unicode
from rewardgap.data.hub_card import COLUMNS, DATA_FILES, PROMPT_IS_TEXT, Background, card_text
from rewardgap.data.hub_files import hub_folder, reason_of
from rewardgap.data.pairs import PAIR_ALIASES, PAIR_COLUMNS, read_pair
from rewardgap.data.reading import MissingFileError, RowError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rewardgap.data.partition import Split

SCHEMA_VERSION = 1
FACTS_FILE, CARD_FILE, SPLIT_FILE, ROWS_FILE = "rewardgap.json", "README.md", "split.json", "data/train.parquet"
HUB_FILES = (FACTS_FILE, CARD_FILE, SPLIT_FILE, DATA_FILES)
"""What belongs to a dataset folder, as patterns; nothing else is fetched from the hub or pushed to it."""
BATCH = 4096
"""Rows turned into Python values at a time: the file is never in memory twice."""


def write_folder(
    dataset: PreferenceDataset,
    folder: Path,
    background: Background,
    *,
    provenance: Mapping[str, Any] | None = None,
    split: Split | None = None,
) -> None:
    """Write a dataset as a folder, whole or not at all; what was written is read back before it gets its name.

    Args:
        dataset: the pairs.
        folder: where; must not exist, or be empty.
        background: licence, source and making, for the card.
        provenance: how the pairs were made, a JSON value.
        split: the split that the pairs were made for, where they depend on one.

    Raises:
        ConfigError: if the folder holds something.
        DataError: if a row cannot be stored without change, naming it.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"'{folder}' exists already; choose another folder, or remove it first.")
    for number, row in enumerate(dataset.pairs, start=1):
        check_unicode(f"dataset '{dataset.name}', row {number}", row_to_json(row))
    table = _table(dataset)
    facts = {
        "schema_version": SCHEMA_VERSION,
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "num_users": len(dataset.users()),
        "num_rows": len(dataset),
        "first_line": dataset.first_line,
        "prompt_template": dataset.prompt_template,
        "pairing": dataset.pairing,
        "dropped": dict(sorted(dataset.dropped.items())),
        "notes": list(dataset.notes),
        "provenance": dict(provenance or {}),
    }
    with new_folder(folder) as scratch:
        write_bytes(scratch / ROWS_FILE, _parquet(table))
        write_text(scratch / CARD_FILE, card_text(dataset, background, tuple(table.column_names)))
        write_json(scratch / FACTS_FILE, facts)
        if split is not None:
            split.save(scratch / SPLIT_FILE)
        _check_kept(dataset, list(_pairs(scratch)))
        # A scratch folder is private; the finished one has the permissions that any new folder has.
        scratch.chmod(stat.S_IMODE((scratch / "data").stat().st_mode))


def load_folder(
    path: str | Path | None = None, *, repo: str | None = None, revision: str | None = None, name: str | None = None
) -> PreferenceDataset:
    """Read a dataset folder, and prove that its rows are those that were written.

    Args:
        path: the folder.
        repo: in its place, a dataset of the hub, `owner/name`; fetched once, then found in the hub's local cache.
        revision: branch, tag or commit of `repo`.
        name: the dataset's name in tables; the folder's own unless given.

    Raises:
        ConfigError: if neither or both of path and repo are given.
        MissingFileError: if the folder, one of its files or the hub's dataset is not there.
        DataError: if a row is bad, or the rows are not those that the folder's fingerprint was taken of.
    """
    if (path is None) == (repo is None):
        raise ConfigError(f"folder needs either path or repo, got {'neither' if path is None else 'both'}.")
    if revision is not None and repo is None:
        raise ConfigError("revision names a version of repo; leave it out where path is given.")
    place = hub_folder(repo, revision, HUB_FILES) if repo is not None else Path(str(path)).expanduser()
    facts = read_facts(place)
    dataset = PreferenceDataset(
        name or facts["name"],
        tuple(_pairs(place)),
        facts["dropped"],
        tuple(facts["notes"]),
        facts["first_line"],
        facts["prompt_template"],
        facts["pairing"],
    )
    if dataset.fingerprint() != facts["fingerprint"]:
        raise DataError(
            f"the data in '{place.name}' were changed: {FACTS_FILE} was written for rows {facts['fingerprint'][:12]}, "
            f"the parquet files hold {dataset.fingerprint()[:12]} ({len(dataset)} rows, expected "
            f"{facts['num_rows']}); restore the files or prepare the folder again."
        )
    return dataset


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what `rewardgap.json` of a dataset folder holds, every field of the right type.

    Raises:
        MissingFileError: if there is no such folder, or it is no dataset folder.
        DataError: if the file is damaged, or of another version.
    """
    path = folder / FACTS_FILE
    if not folder.is_dir():
        raise MissingFileError(f"dataset folder '{folder}' does not exist; check the path.")
    if not path.is_file():
        raise MissingFileError(f"'{folder}' holds no {FACTS_FILE}, so it is no dataset folder; check the path.")
    try:
        facts = read_json(path)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} in '{folder.name}' is not JSON ({error}); restore it.") from None
    version = facts.get("schema_version") if isinstance(facts, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path.name} in '{folder.name}' has schema version {version!r}, this program reads {SCHEMA_VERSION}; "
            "use the version of rewardgap that wrote it."
        )
    for name, kind in _FACTS.items():
        if name not in facts or not isinstance(facts[name], kind):
            raise DataError(
                f"{path.name} in '{folder.name}': field '{name}' is missing or of a wrong type; restore it."
            )
    return dict(facts)


_FACTS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "fingerprint": str,
    "num_rows": int,
    "first_line": bool,
    "prompt_template": (str, type(None)),
    "pairing": (str, type(None)),
    "dropped": dict,
    "notes": list,
    "provenance": dict,
}


def _check_kept(dataset: PreferenceDataset, stored: list[PreferencePair]) -> None:
    """Refuse rows that do not come back as they are, such as a time that is no date or a score that is no float."""
    for number, (row, kept) in enumerate(zip(dataset.pairs, stored, strict=True), start=1):
        if canonical_json(row_to_json(row)) != canonical_json(row_to_json(kept)):
            raise DataError(
                f"row {number} of dataset '{dataset.name}' (example '{row.example_id}') cannot be stored without "
                "change; load it with load_dataset, which brings every value into its stored form."
            )


def _table(dataset: PreferenceDataset) -> Any:
    """Return the rows as an Arrow table; its types depend on the form of the prompts only."""
    import pyarrow as pa

    texts = [isinstance(pair.prompt, str) for pair in dataset.pairs]
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    columns = {
        "user_id": pa.array([pair.user_id for pair in dataset.pairs], pa.string()),
        "example_id": pa.array([pair.example_id for pair in dataset.pairs], pa.string()),
        "prompt": pa.array([pair.prompt for pair in dataset.pairs], pa.string())
        if all(texts)
        else pa.array([_turns(pair) for pair in dataset.pairs], messages),
    }
    if any(texts) and not all(texts):
        columns[PROMPT_IS_TEXT] = pa.array(texts, pa.bool_())
    for name in ("chosen", "rejected", "reference", "timestamp"):
        columns[name] = pa.array([getattr(pair, name) for pair in dataset.pairs], pa.string())
    for name in ("chosen_score", "rejected_score"):
        columns[name] = pa.array([getattr(pair, name) for pair in dataset.pairs], pa.float64())
    metas = [canonical_json(dict(pair.meta)) if pair.meta else None for pair in dataset.pairs]
    columns["meta"] = pa.array(metas, pa.string())
    return pa.table(columns)


def _turns(pair: PreferencePair) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt_messages(pair.prompt)]


def _parquet(table: Any) -> bytes:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _pairs(folder: Path) -> Iterator[PreferencePair]:
    files = sorted((folder / "data").glob("*.parquet"))
    if not files:
        raise MissingFileError(f"'{folder}' has no {DATA_FILES}; copy or download the folder again.")
    columns, users = Columns(PAIR_COLUMNS, PAIR_ALIASES), UserIds()
    for path in files:
        for number, row in enumerate(_rows(path), start=1):
            where = f"{path.name}, row {number}"
            pair = read_pair(where, _unpacked(where, row), columns, users)
            if pair is None:
                raise RowError(
                    "identical_completions", f"{where}: chosen and rejected are the same text; remove the row."
                )
            yield pair


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one parquet file as they are stored, a batch of them in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            _check_columns(path, file.schema_arrow.names)
            # One thread: a pool that is still alive at exit can abort the process.
            for batch in file.iter_batches(BATCH, use_threads=False):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise DataError(
            f"{path.name} cannot be read as parquet ({reason_of(error)}); copy or download it again."
        ) from None


def _unpacked(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a stored row as a raw row: the prompt in its own form, meta as an object."""
    if row.pop(PROMPT_IS_TEXT, False):
        turns = row["prompt"]
        if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
            raise RowError(
                "wrong_type", f"{where}: {PROMPT_IS_TEXT} is true, but prompt is not one message; restore it."
            )
        row["prompt"] = turns[0]["content"]
    if row["meta"] is not None:
        try:
            row["meta"] = json.loads(row["meta"])
        except (TypeError, ValueError, RecursionError):
            raise RowError("wrong_type", f"{where}: column 'meta' is not JSON text; restore it.") from None
    return row


def _check_columns(path: Path, found: list[str]) -> None:
    absent = [name for name in COLUMNS if name not in found]
    unknown = [name for name in found if name not in COLUMNS and name != PROMPT_IS_TEXT]
    if absent or unknown:
        what = f"column '{absent[0]}' is missing" if absent else f"column '{unknown[0]}' is unknown"
        raise DataError(
            f"{path.name}: {what}; a dataset folder has {', '.join(COLUMNS)}. Restore the file, or read it as plain "
            "parquet."
        )


CARD = DatasetCard(
    name="folder",
    summary="A dataset folder of your own or from the hub, as `rewardgap data prepare` writes it.",
    kind="preference",
    source="a local folder, or a dataset of the hub in the same form",
    revision="the folder's fingerprint, checked on load",
    licence="that of the folder's README.md",
    citation="that of the folder's README.md",
    options={
        "path": "the folder",
        "repo": "in place of path, a dataset of the hub: owner/name",
        "revision": "branch, tag or commit of repo",
        "name": "the dataset's name in tables (default: the folder's own)",
    },
    build=load_folder,
)
