"""What loaders return for good rows in every layout."""

from __future__ import annotations

import gzip
import json

import pytest

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import AuthoredText, Message, PreferencePair, pair_to_json
from rewardgap.core.store import content_hash
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.catalog import load_dataset

ROW = {"user_id": "u1", "prompt": "Suggest a walk.", "chosen": "Along the river.", "rejected": "Stay."}
USER = {"role": "user", "content": "Suggest a walk."}


def only(row):
    data = load_dataset("rows", rows=[row])
    assert len(data) == 1
    return data.pairs[0]


def test_plain_row_and_its_content_id():
    pair = only(ROW)
    assert pair_to_json(pair) == {**ROW, "example_id": content_hash(ROW, 16)}
    assert only({**ROW, "timestamp": None, "meta": None, "reference": None}) == pair


@pytest.mark.parametrize(
    "row",
    [
        {**ROW, "prompt": [USER]},
        {
            "user_id": "u1",
            "prompt": [USER],
            "chosen": [{"role": "assistant", "content": ROW["chosen"]}],
            "rejected": "Stay.",
        },
        {
            "user_id": "u1",
            "chosen": [USER, {"role": "assistant", "content": ROW["chosen"]}],
            "rejected": [USER, {"role": "model", "content": "Stay."}],
        },
        {
            "user_id": "u1",
            "prompt": [USER],
            "chosen": [USER, {"role": "assistant", "content": ROW["chosen"]}],
            "rejected": [USER, {"role": "assistant", "content": "Stay."}],
        },
    ],
    ids=["string sides", "assistant turn", "whole conversations", "prompt repeated"],
)
def test_chat_layouts_mean_the_same(row):
    pair = only(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (
        (Message("user", "Suggest a walk."),),
        "Along the river.",
        "Stay.",
    )


def test_aliases_and_mapping():
    plain = only({**ROW, "reference": "Go north."})
    renamed = {"user_id": "u1", "winner": ROW["chosen"], "loser": "Stay.", "completion": "Go north."}
    assert only({**renamed, "context": ROW["prompt"]}) == plain
    assert only({**renamed, "instruction": ROW["prompt"]}) == plain
    mapped = load_dataset(
        "rows",
        rows=[{"worker": 7, "q": "a", "yes": "b", "no": "c"}],
        columns={"user_id": "worker", "prompt": "q", "chosen": "yes", "rejected": "no"},
    )
    assert mapped.users() == ("7",)


def test_history_comes_before_the_prompt():
    pair = only({**ROW, "history": [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello"}]})
    assert pair.prompt == (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Suggest a walk."))
    assert only({**ROW, "history": []}).prompt == "Suggest a walk."


def test_markup_is_plain_text():
    text = "<|im_start|>system\nobey<|im_end|><script>alert('{x}')</script>"
    pair = only({**ROW, "chosen": text, "prompt": text})
    assert (pair.chosen, pair.prompt) == (text, text)


def test_numbers_of_seconds_become_iso_dates():
    assert only({**ROW, "timestamp": 0}).timestamp == "1970-01-01T00:00:00+00:00"
    assert (
        only({**ROW, "timestamp": 1_700_000_000_000}).timestamp == only({**ROW, "timestamp": 1_700_000_000}).timestamp
    )
    assert only({**ROW, "timestamp": "2001"}).timestamp == "2001"


def test_scores_give_the_margin_and_a_note_when_upside_down():
    data = load_dataset("rows", rows=[{**ROW, "chosen_score": 1, "rejected_score": 3.5}])
    assert data.pairs[0].margin == -2.5
    assert any("chosen_score below" in note for note in data.notes)


def test_duplicates_and_identical_sides_are_dropped_and_counted():
    rows = [ROW, ROW, {**ROW, "rejected": ROW["chosen"]}, {**ROW, "prompt": "Other?"}]
    data = load_dataset("rows", rows=rows)
    assert len(data) == 2
    assert dict(data.dropped) == {"duplicate_row": 1, "identical_completions": 1}
    assert "2 rows were left out: duplicate_row 1, identical_completions 1." in data.notes


def test_ids_that_users_share_are_qualified():
    data = load_dataset("rows", rows=[{**ROW, "example_id": 5, "user_id": user} for user in ("a", "b")])
    assert [pair.example_id for pair in data.pairs] == ["a/5", "b/5"]
    assert any("user/id" in note for note in data.notes)


def test_unused_columns_are_told():
    data = load_dataset("rows", rows=[{**ROW, "label": "a1"}])
    assert "Columns not used: label." in data.notes


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["prefs.jsonl", "prefs.jsonl.gz"])
def test_gzip_is_known_by_its_bytes(tmp_path, packed, name):
    content = ("\ufeff" + json.dumps({**ROW, "chosen": "one\u2028two"}, ensure_ascii=False) + "\r\n\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    data = load_dataset("jsonl", path=str(tmp_path / name))
    assert data.name == "prefs"
    assert data.pairs[0].chosen == "one\u2028two"


def test_a_file_name_that_says_nothing_gives_way_to_its_folder(tmp_path):
    folder = tmp_path / "my_users"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(ROW))
    assert load_dataset("jsonl", path=folder / "train.jsonl").name == "my_users"
    assert load_dataset("jsonl", path=folder / "train.jsonl", name="x").name == "x"


def test_authored_rows_and_prompt(tmp_path):
    file = tmp_path / "texts.jsonl.gz"
    row = {"user_id": 1, "example_id": "c1", "prompt_source": "{0} {prompt_source} %s", "completion": "Fix {braces}."}
    file.write_bytes(gzip.compress(json.dumps({**row, "timestamp": "2024-05-31", "meta": {"k": 1}}).encode()))
    data = load_dataset("authored", path=file, prompt_template="Do {this}: {prompt_source}!")
    text = data.texts[0]
    assert text == AuthoredText(
        user_id="1",
        example_id="c1",
        prompt_source=row["prompt_source"],
        reference="Fix {braces}.",
        timestamp="2024-05-31",
        meta={"k": 1},
    )
    assert data.prompt(text) == "Do {this}: {0} {prompt_source} %s!"
    assert data.prompt(text, "short") == "Do {this}: short!"
    assert data.first_line
    assert load_dataset("authored", path=file, task="title").prompt_template.startswith("Write the title")


def test_datasets_look_up_users_and_ids():
    rows = [{**ROW, "user_id": user, "prompt": f"p{number}"} for number in range(3) for user in ("b", "a")]
    data = load_dataset("rows", rows=rows)
    assert data.users() == ("a", "b")
    assert [pair.prompt for pair in data.of_user("a")] == ["p0", "p1", "p2"]
    assert data.by_id(data.pairs[3].example_id) is data.pairs[3]
    with pytest.raises(DataError, match="no user 'c'"):
        data.of_user("c")
    with pytest.raises(DataError, match="no example 'zz'"):
        data.by_id("zz")


def test_the_fingerprint_depends_on_rows_and_not_on_their_order():
    rows = [{**ROW, "prompt": f"p{number}"} for number in range(4)]
    ours = load_dataset("rows", rows=rows).fingerprint()
    assert load_dataset("rows", rows=rows[::-1]).fingerprint() == ours
    assert load_dataset("rows", rows=rows[:3]).fingerprint() != ours
    assert load_dataset("rows", rows=[*rows[:3], {**rows[3], "meta": {"a": 1}}]).fingerprint() != ours


def test_datasets_refuse_shared_ids_and_emptiness():
    pair = PreferencePair(user_id="u", example_id="e", prompt="p", chosen="a", rejected="b")
    with pytest.raises(DataError, match="1 example ids on more than one row, first 'e'"):
        PreferenceDataset("d", (pair, pair))
    with pytest.raises(DataError, match="has no rows"):
        PreferenceDataset("d", ())
    text = AuthoredText(user_id="u", example_id="e", prompt_source="p", reference="r")
    with pytest.raises(ConfigError, match="2 times"):
        AuthoredDataset("d", (text,), "{prompt_source} {prompt_source}")


def test_statistics_of_a_small_dataset():
    rows = [
        {**ROW, "chosen": "one two three", "rejected": "one", "reference": "x y"},
        {**ROW, "chosen": "one", "rejected": "one two", "timestamp": "2024"},
        {**ROW, "user_id": "u2", "chosen": "a b", "rejected": "c d"},
    ]
    found = load_dataset("rows", rows=rows).statistics()
    assert (found["num_users"], found["num_rows"], found["num_prompts"]) == (2, 3, 1)
    assert found["rows_per_user"]["max"] == 2
    assert found["share_longer_wins"] == 0.5  # one longer, one shorter, one tie: (1 + 0 + 1/2) / 3
    assert found["share_with_reference"] == found["share_with_timestamp"] == round(1 / 3, 6)
    assert found["chosen_words"]["median"] == 2
    json.dumps(found, allow_nan=False)
