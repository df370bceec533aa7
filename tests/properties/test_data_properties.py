"""Properties of rows, ids and splits over generated data."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewardgap.core.errors import SplitError
from rewardgap.core.records import Message, PreferencePair, pair_to_json
from rewardgap.data.base import PreferenceDataset, prompt_key
from rewardgap.data.catalog import load_dataset
from rewardgap.data.collecting import content_id
from rewardgap.data.splits import Split, split_users

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT), min_size=1, max_size=3
).map(tuple)
SCORE = st.none() | st.floats(allow_nan=False, allow_infinity=False)
PAIRS = st.builds(
    PreferencePair,
    user_id=st.sampled_from(["u1", "u2", "Zoë", "7"]),
    example_id=st.just(""),
    prompt=TEXT | MESSAGES,
    chosen=TEXT,
    rejected=TEXT,
    reference=st.none() | TEXT,
    timestamp=st.none() | st.dates().map(lambda day: day.isoformat()),
    chosen_score=SCORE,
    rejected_score=SCORE,
    meta=st.dictionaries(TEXT, st.none() | st.integers() | TEXT | st.lists(st.booleans()), max_size=2),
).filter(lambda pair: pair.chosen != pair.rejected)


def row_of(pair: PreferencePair) -> dict[str, object]:
    row = pair_to_json(pair)
    if not row["example_id"]:
        del row["example_id"]
    return row


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PAIRS, min_size=1, max_size=6), st.booleans())
def test_rows_survive_a_file(made, ascii_only):
    first = load_dataset("rows", rows=[row_of(pair) for pair in made])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        lines = [json.dumps(pair_to_json(pair), ensure_ascii=ascii_only) for pair in first.pairs]
        path.write_bytes("\n".join(lines).encode())
        again = load_dataset("jsonl", path=path)
    assert again.pairs == first.pairs
    assert again.fingerprint() == first.fingerprint()


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_content_ids_depend_on_content_only(pair, random):
    row = row_of(pair)
    columns = list(row.items())
    random.shuffle(columns)
    (found,) = load_dataset("rows", rows=[dict(columns)]).pairs
    assert found.example_id == content_id(pair)
    assert len(found.example_id) == 16
    (changed,) = load_dataset("rows", rows=[{**row, "chosen": pair.chosen + pair.rejected}]).pairs
    assert changed.example_id != found.example_id


@st.composite
def datasets(draw) -> PreferenceDataset:
    timed = draw(st.booleans())
    pairs = []
    for user in range(draw(st.integers(2, 6))):
        for row in range(draw(st.integers(1, 12))):
            pairs.append(
                PreferencePair(
                    user_id=f"u{user}",
                    example_id=f"{user}.{row}",
                    prompt=f"p{draw(st.integers(0, 6))}",
                    chosen=f"c{draw(st.integers(0, 4))}",
                    rejected=f"r{draw(st.integers(0, 4))}",
                    timestamp=f"2024-01-{draw(st.integers(1, 9)):02d}" if timed else None,
                )
            )
    return PreferenceDataset("generated", tuple(pairs))


@settings(max_examples=150, deadline=None)
@given(
    datasets(),
    st.integers(0, 5),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 5),
    st.none() | st.integers(0, 2),
    st.sampled_from(["prompt", "item", "row"]),
    st.integers(0, 99),
)
def test_a_split_never_overlaps(data, support, query, size, valid, disjoint, seed):
    try:
        split = split_users(
            data,
            support=support,
            query=query,
            pairs_per_train_user=size,
            valid_per_train_user=valid,
            disjoint=disjoint,
            seed=seed,
        )
    except SplitError as error:
        assert "generated" in str(error)
        return
    assert Split.from_json(json.loads(json.dumps(split.to_json()))) == split
    assert not set(split.train_users) & set(split.adapt_users)
    lists = [split.train_ids, split.valid_ids, *split.support_ids.values(), *split.query_ids.values()]
    ids = [name for part in lists for name in part]
    assert len(ids) == len(set(ids))
    for user in split.adapt_users:
        mine, theirs = ([data.by_id(name) for name in side[user]] for side in (split.support_ids, split.query_ids))
        assert len(mine) == support
        assert 1 <= len(theirs) <= (query or 99)
        assert {row.user_id for row in mine + theirs} == {user}
        if disjoint == "prompt":
            assert not {prompt_key(row) for row in mine} & {prompt_key(row) for row in theirs}
        if disjoint == "item":
            texts = [{text for row in rows for text in (row.chosen, row.rejected)} for rows in (mine, theirs)]
            assert not texts[0] & texts[1]
        if mine and data.pairs[0].timestamp:
            assert max(row.timestamp for row in mine) <= min(row.timestamp for row in theirs)
    view = split.resolve(data)
    assert len(view.train) == len(split.train_ids)
    if size is not None:
        assert len(view.train) == size * len(split.train_users)
