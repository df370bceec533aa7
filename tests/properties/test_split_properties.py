"""Splits of any generated data under any options: refused with a reason, or without any promised overlap."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgap.core.errors import SplitError
from rewardgap.core.records import AuthoredText, PreferencePair
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.restricting import restrict_split
from rewardgap.data.splits import Split, split_users


@st.composite
def datasets(draw) -> PreferenceDataset | AuthoredDataset:
    """Return rows in which users share prompts and texts, with times on all rows, on some or on none."""
    authored = draw(st.booleans())
    timed = draw(st.sampled_from(["all", "all", "some", "none"]))
    prompts, texts = draw(st.integers(1, 12)), draw(st.integers(2, 12))
    rows = []
    for user in range(draw(st.integers(2, 6))):
        for number in range(draw(st.integers(1, 14))):
            has_time = timed == "all" or (timed == "some" and draw(st.booleans()))
            time = f"2024-01-{draw(st.integers(1, 20)):02d}" if has_time else None
            base = {"user_id": f"u{user}", "example_id": f"{user}.{number}", "timestamp": time}
            prompt = f"p{draw(st.integers(1, prompts))}"
            if authored:
                rows.append(AuthoredText(**base, prompt_source=prompt, reference=f"t{draw(st.integers(1, texts))}"))
                continue
            first = draw(st.integers(1, texts))
            second = 1 + (first + draw(st.integers(0, texts - 2))) % texts
            reference = draw(st.none() | st.integers(1, texts).map("t{}".format))
            rows.append(
                PreferencePair(**base, prompt=prompt, chosen=f"t{first}", rejected=f"t{second}", reference=reference)
            )
    if authored:
        return AuthoredDataset("generated", tuple(rows), "Write: {prompt_source}")
    return PreferenceDataset("generated", tuple(rows))


OPTIONS = st.fixed_dictionaries(
    {
        "support": st.integers(0, 3),
        "query": st.none() | st.integers(1, 3),
        "pairs_per_train_user": st.none() | st.integers(1, 3),
        "valid_per_train_user": st.none() | st.integers(0, 2),
        "order": st.sampled_from(["auto", "auto", "time", "random"]),
        "disjoint": st.sampled_from(["prompt", "item", "row"]),
        "prompts": st.sampled_from(["shared", "disjoint"]),
        "items": st.sampled_from(["shared", "disjoint"]),
        "held_out_fraction": st.sampled_from([0.2, 0.5, 0.7]),
        "cut": st.sampled_from([None, None, "2024-01-10", 0.3, 0.5]),
        "adapt_users": st.none() | st.integers(1, 2),
        "seed": st.integers(0, 9),
    }
)


def broken_promises(data, split: Split, options) -> list[str]:
    """Compare every row with every other, by nothing but the rows themselves and the options asked for."""
    by_id = {row.example_id: row for row in data.rows}
    listed = [("learn", "train", name) for name in split.train_ids] + [
        ("learn", "valid", name) for name in split.valid_ids
    ]
    for user in split.adapt_users:
        listed += [("learn", "support", name) for name in split.support_ids[user]]
        listed += [("ask", "query", name) for name in split.query_ids[user]]
    found = []
    if len({name for _, _, name in listed}) < len(listed):
        found.append("a row twice")
    if set(split.train_users) & set(split.adapt_users):
        found.append("a user twice")
    for side, part, name in listed:
        users = split.train_users if part in ("train", "valid") else split.adapt_users
        row = by_id[name]
        if row.user_id not in users:
            found.append("a row of another user")
        if split.cut is not None and (row.timestamp >= split.cut) != (side == "ask"):
            found.append("a row across the cut")
    for i, (left_side, left_part, left_name) in enumerate(listed):
        for right_side, right_part, right_name in listed[:i]:
            left, right = by_id[left_name], by_id[right_name]
            same_prompt = prompt(left) == prompt(right)
            same_item = bool(items(left) & items(right))
            if left_part != right_part and left.user_id == right.user_id:
                if same_prompt and (options["disjoint"] == "prompt" or options["prompts"] == "disjoint"):
                    found.append("a prompt within")
                if same_item and (options["disjoint"] == "item" or options["items"] == "disjoint"):
                    found.append("an item within")
            if left_side != right_side:
                if same_prompt and options["prompts"] == "disjoint":
                    found.append("a prompt across")
                if same_item and options["items"] == "disjoint":
                    found.append("an item across")
    for user in split.adapt_users:
        times = [row.timestamp for row in data.rows if row.user_id == user]
        if options["order"] != "random" and None not in times:
            support = [by_id[name].timestamp for name in split.support_ids[user]]
            query = [by_id[name].timestamp for name in split.query_ids[user]]
            if support and query and max(support) > min(query):
                found.append("a query before support")
    return found


def prompt(row) -> str:
    return row.prompt if isinstance(row, PreferencePair) else row.prompt_source


def items(row) -> set[str]:
    texts = {row.chosen, row.rejected, row.reference} if isinstance(row, PreferencePair) else {row.reference}
    return texts - {None}


def drawn(data, **options) -> Split | None:
    try:
        return split_users(data, **options)
    except SplitError as error:
        # A reason has the data's name and a number of rows or users in it.
        assert "generated" in str(error)
        assert any(letter.isdigit() for letter in str(error)) or "order='time' needs" in str(error)
        return None


@settings(max_examples=250)
@given(datasets(), OPTIONS)
def test_a_split_is_refused_or_without_any_promised_overlap(data, options):
    split = drawn(data, **options)
    if split is None:
        return
    assert broken_promises(data, split, options) == []
    assert all(split.proof()[name] == 0 for name in split.promises())
    assert Split.from_json(json.loads(json.dumps(split.to_json()))) == split
    for user in split.adapt_users:
        assert len(split.support_ids[user]) == options["support"]
        assert 1 <= len(split.query_ids[user]) <= (options["query"] or 99)


@settings(max_examples=100)
@given(datasets(), OPTIONS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(data, options, random):
    rows = list(data.rows)
    random.shuffle(rows)
    mixed = replace(data, **{"texts" if isinstance(data, AuthoredDataset) else "pairs": tuple(rows)})
    assert drawn(mixed, **options) == drawn(data, **options)


@settings(max_examples=100)
@given(datasets(), OPTIONS)
def test_a_smaller_draw_takes_the_same_users_first(data, options):
    large = drawn(data, **options)
    if large is None:
        return
    smaller = drawn(data, **options, train_users=max(1, len(large.train_users) - 1))
    assert smaller.train_users == large.train_users[: len(smaller.train_users)]
    assert (smaller.support_ids, smaller.query_ids) == (large.support_ids, large.query_ids)
    fewer = drawn(data, **{**options, "adapt_users": 1})
    assert fewer.adapt_users == large.adapt_users[:1]
    assert fewer.query_ids[fewer.adapt_users[0]] == large.query_ids[fewer.adapt_users[0]]


@settings(max_examples=100)
@given(datasets(), OPTIONS, st.data())
def test_no_row_can_be_moved_unseen(data, options, pick):
    """Exchange a listed row for any other row: the file is refused, or the split is as honest as before."""
    split = drawn(data, **options)
    if split is None:
        return
    user = pick.draw(st.sampled_from(split.adapt_users))
    ids = list(split.query_ids[user])
    ids[pick.draw(st.integers(0, len(ids) - 1))] = pick.draw(st.sampled_from([row.example_id for row in data.rows]))
    changed = replace(split, query_ids={**split.query_ids, user: tuple(ids)})
    if changed == split:
        return
    with pytest.raises(SplitError):
        Split.from_json({**changed.to_json(), "digest": split.to_json()["digest"]})
    by_id = {row.example_id: row for row in data.rows}
    lists = [changed.train_ids, changed.valid_ids, *changed.support_ids.values(), *changed.query_ids.values()]
    wrong = broken_promises(data, changed, options) or {by_id[name].user_id for name in ids} != {user}
    assert sum(map(len, lists)) > 0
    try:
        replace(changed, proven={}).check(data)
    except SplitError:
        assert wrong
    else:
        assert not wrong


@settings(max_examples=150)
@given(datasets(), OPTIONS, st.data())
def test_on_other_data_a_split_is_what_both_have_and_keeps_its_promises(data, options, more):
    split = drawn(data, **options)
    if split is None:
        return
    ids = [row.example_id for row in data.rows]
    kept = set(more.draw(st.lists(st.sampled_from(ids), min_size=1, unique=True)))
    fewer = replace(data, **{data_rows(data): tuple(row for row in data.rows if row.example_id in kept)})
    trained = {data.by_id(name).user_id for name in split.train_ids if name in kept}
    asked = {user for user in split.adapt_users if kept & set(split.query_ids[user])}
    if not trained or not asked:
        with pytest.raises(SplitError, match="expected at least 1 of each"):
            restrict_split(split, fewer)
        return
    found = restrict_split(split, fewer)
    assert found.train_users == tuple(user for user in split.train_users if user in trained)
    assert found.adapt_users == tuple(user for user in split.adapt_users if user in asked)
    assert found.train_ids == tuple(name for name in split.train_ids if name in kept)
    valid = [name for name in split.valid_ids if name in kept]
    assert found.valid_ids == tuple(name for name in valid if data.by_id(name).user_id in trained)
    for user in asked:
        assert found.support_ids[user] == tuple(name for name in split.support_ids[user] if name in kept)
        assert found.query_ids[user] == tuple(name for name in split.query_ids[user] if name in kept)
    assert broken_promises(fewer, found, options) == []
    assert Split.from_json(json.loads(json.dumps(found.to_json()))) == found
    found.check(fewer)
    if kept == set(ids):
        assert found is split


def data_rows(data) -> str:
    return "pairs" if isinstance(data, PreferenceDataset) else "texts"
