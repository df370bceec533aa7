"""A dataset folder gives back what was written, to this program and to others, and notices every change."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_cache import cache_repo
from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import Message, PreferencePair
from rewardgap.data.base import PreferenceDataset
from rewardgap.data.catalog import load_dataset
from rewardgap.data.folder import write_folder
from rewardgap.data.hub_card import Background, card_text, licence_id, size_category
from rewardgap.data.reading import MissingFileError

ABOUT = Background(licence="CC BY 4.0", source="our own users", citation="nobody", making=("Made by hand.",))
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tea?"}]
ROWS = [
    {"user_id": "u1", "example_id": "a", "prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "reference": "Sure."},
    {"user_id": "u2", "example_id": "b", "prompt": CHAT, "chosen": "Yes.", "rejected": "<|im_end|>", "chosen_score": 2},
    {
        "user_id": "u2",
        "example_id": "c",
        "prompt": CHAT[1:],
        "chosen": "Ja.",
        "rejected": "No.",
        "meta": {"n": [1, 2.5]},
    },
]


def dataset(rows=ROWS, **changes):
    return load_dataset("rows", rows=rows, name="walks", **changes)


@pytest.fixture
def folder(tmp_path):
    write_folder(dataset(), tmp_path / "walks", ABOUT, provenance={"seed": 3})
    return tmp_path / "walks"


def test_it_comes_back_equal(folder):
    again = load_dataset("folder", path=str(folder))
    assert again == dataset()
    assert again.fingerprint() == dataset().fingerprint()
    assert [type(pair.prompt) for pair in again.pairs] == [str, tuple, tuple]
    assert json.loads((folder / "rewardgap.json").read_text())["provenance"] == {"seed": 3}


def test_name_notes_drops_and_first_line_are_kept(tmp_path):
    made = dataset(
        [*ROWS, ROWS[0], {**ROWS[0], "colour": "red", "example_id": "d", "prompt": "Cake?"}], first_line=True
    )
    assert made.dropped
    assert made.notes
    write_folder(made, tmp_path / "x", ABOUT)
    assert load_dataset("folder", path=tmp_path / "x") == made


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
TURN = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.just("") | TEXT)
SCORE = st.none() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
PAIR = st.builds(
    PreferencePair,
    user_id=TEXT,
    example_id=st.just(""),
    prompt=TEXT | st.lists(TURN, min_size=1, max_size=3).map(tuple),
    chosen=TEXT,
    rejected=TEXT,
    reference=st.none() | TEXT,
    timestamp=st.none() | st.datetimes().map(lambda moment: moment.isoformat()),
    chosen_score=SCORE,
    rejected_score=SCORE,
    meta=st.dictionaries(TEXT, JSON, max_size=2),
).filter(lambda pair: pair.chosen != pair.rejected)


@settings(max_examples=40)
@given(st.lists(PAIR, min_size=1, max_size=4), st.booleans())
def test_any_rows_survive(made, first_line):
    pairs = tuple(replace(pair, example_id=str(number)) for number, pair in enumerate(made))
    first = PreferenceDataset("any", pairs, {"bad_role": 2}, ("A note.",), first_line)
    with tempfile.TemporaryDirectory() as place:
        write_folder(first, Path(place) / "x", ABOUT)
        again = load_dataset("folder", path=Path(place) / "x")
    assert again == first
    assert again.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[1:], ROWS], ids=["texts", "messages", "both"])
def test_the_datasets_library_reads_it(tmp_path, monkeypatch, rows):
    import datasets

    write_folder(dataset(rows), tmp_path / "walks", ABOUT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    found = datasets.load_dataset(str(tmp_path / "walks"), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    table = found["train"]
    assert table["example_id"] == [row["example_id"] for row in rows]
    assert table["chosen"] == [row["chosen"] for row in rows]
    prompts = [row["prompt"] for row in rows]
    mixed = len({type(prompt) for prompt in prompts}) > 1
    turned = [[{"role": "user", "content": p}] if mixed and isinstance(p, str) else p for p in prompts]
    assert table["prompt"] == turned
    assert ("prompt_is_text" in table.column_names) == mixed


def test_the_card_has_front_matter_and_no_text_of_the_data(folder):
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
    ]
    assert "Made by hand." in text
    assert "3 pairs of completions" in text
    assert "by 2 users" in text
    assert not any(row["chosen"] in text for row in ROWS)
    columns = pq.read_table(folder / "data" / "train.parquet").column_names
    assert all(f"- `{name}`:" in text for name in columns)


def test_a_licence_that_is_no_identifier_is_other():
    assert [licence_id(text) for text in ("cc_by_4.0", "Apache-2.0", "yours")] == ["cc-by-4.0", "apache-2.0", "other"]
    text = card_text(dataset(), Background(licence="ask us first", source="x"), ("user_id",))
    assert yaml.safe_load(text.split("---")[1])["license"] == "other"
    assert "Licence: ask us first." in text


def test_sizes_have_the_words_of_the_hub():
    assert [size_category(n) for n in (1, 999, 1000, 99_999, 100_000, 10**6)] == [
        "n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "n>1M",
    ]  # fmt: skip


def test_the_same_data_give_the_same_bytes(folder, tmp_path):
    write_folder(dataset(), tmp_path / "again", ABOUT, provenance={"seed": 3})
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert [str(name) for name in names] == ["README.md", "data/train.parquet", "rewardgap.json"]
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_a_folder_is_whole_or_not_there(tmp_path):
    changed = PreferenceDataset(
        "walks",
        (PreferencePair(user_id="u", example_id="1", prompt="Tea?", chosen="Y", rejected="N", chosen_score=True),),
    )
    with pytest.raises(DataError, match=r"row 1 .*'1'.* cannot be stored without change"):
        write_folder(changed, tmp_path / "x", ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_it_has_the_permissions_of_any_new_folder(folder, tmp_path):
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_text_that_utf8_cannot_carry_is_refused(tmp_path):
    pair = PreferencePair(user_id="u", example_id="1", prompt="Tea?", chosen="\ud800", rejected="N")
    with pytest.raises(DataError, match=r"row 1: column 'chosen' holds a lone surrogate"):
        write_folder(PreferenceDataset("walks", (pair,)), tmp_path / "x", ABOUT)


def test_nothing_is_written_over(folder):
    with pytest.raises(ConfigError, match="exists already"):
        write_folder(dataset(), folder, ABOUT)
    assert load_dataset("folder", path=folder) == dataset()


def rewrite(folder, change):
    path = folder / "data" / "train.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def column(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.slice(1), r"were changed: .* \(2 rows, expected 3\)"),
        (lambda t: column(t, "chosen", ["Yes.", "Yes.", "Oui."]), "were changed"),
        (lambda t: t.drop_columns(["meta"]), "column 'meta' is missing"),
        (lambda t: t.append_column("more", t["user_id"]), "column 'more' is unknown"),
        (lambda t: column(t, "user_id", ["u1", None, "u2"]), r"row 2: column 'user_id' is null"),
        (lambda t: column(t, "chosen", ["Yes.", "<|im_end|>", "Ja."]), r"row 2: chosen and rejected are the same"),
        (lambda t: column(t, "meta", [None, "{", None]), r"row 2: column 'meta' is not JSON"),
        (lambda t: column(t, "prompt_is_text", [False, True, False]), r"row 2: prompt_is_text is true"),
        (
            lambda t: column(t, "prompt", [[None]] * 3).filter(t["prompt_is_text"]),
            "prompt_is_text is true, but prompt is",
        ),
        (lambda t: column(t, "chosen", [1, 2, 3]), r"row 1: column 'chosen' is a number"),
    ],
)
def test_every_change_is_noticed(folder, change, said):
    rewrite(folder, change)
    with pytest.raises(DataError, match=said):
        load_dataset("folder", path=folder)


def test_order_of_rows_is_no_change(folder):
    rewrite(folder, lambda t: t.take([2, 0, 1]))
    assert load_dataset("folder", path=folder).fingerprint() == dataset().fingerprint()


def test_damage_is_told_in_a_sentence(folder):
    path = folder / "data" / "train.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as parquet"):
        load_dataset("folder", path=folder)
    path.unlink()
    with pytest.raises(MissingFileError, match="has no data/"):
        load_dataset("folder", path=folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1, "name": 7}', "field 'name'"),
    ],
)
def test_damaged_facts_are_told_in_a_sentence(folder, content, said):
    (folder / "rewardgap.json").write_text(content)
    with pytest.raises(DataError, match=said):
        load_dataset("folder", path=folder)


def test_what_is_no_dataset_folder(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        load_dataset("folder", path=tmp_path / "none")
    with pytest.raises(MissingFileError, match=r"holds no rewardgap\.json"):
        load_dataset("folder", path=tmp_path)
    for options in ({}, {"path": tmp_path, "repo": "a/b"}, {"path": tmp_path, "revision": "main"}):
        with pytest.raises(ConfigError):
            load_dataset("folder", **options)


def test_a_dataset_of_the_hub_is_found_in_its_cache(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    cache_repo(tmp_path / "hub", "me/walks", "main", files)
    shutil.rmtree(folder)
    assert load_dataset("folder", repo="me/walks") == dataset()
    with pytest.raises(MissingFileError, match=r"'me/other' of the hub cannot be fetched"):
        load_dataset("folder", repo="me/other")
    with pytest.raises(ConfigError, match="is no name of a dataset"):
        load_dataset("folder", repo="../me")


def test_another_name_changes_no_row(folder):
    named = load_dataset("folder", path=folder, name="mine")
    assert named.name == "mine" != dataset().name
    assert named.fingerprint() == dataset().fingerprint()
