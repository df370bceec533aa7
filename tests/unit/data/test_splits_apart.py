"""Prompts, items and dates kept apart across users: who loses what, and how an impossible request is told."""

from __future__ import annotations

import datetime
import inspect
import os
from pathlib import Path

import pytest
import yaml

from rewardgap.core.errors import ConfigError, SplitError
from rewardgap.core.records import PreferencePair
from rewardgap.data.base import PreferenceDataset
from rewardgap.data.catalog import load_dataset
from rewardgap.data.splits import Split, split_users
from rewardgap.studies.aggregate import proof_of
from rewardgap.studies.spec import SplitSpec, parse_study

PLACES = [os.environ.get("REWARDGAP_DATA"), Path(__file__).parents[4] / "shared" / "data"]
ROOT = next((Path(place) for place in PLACES if place and Path(place).is_dir()), None)


def shared(users=12, rows=40, *, prompts=20, texts=16, day=None) -> PreferenceDataset:
    """Return pairs of which users share prompts and texts; row r of each user is on day r unless `day` says else."""
    return PreferenceDataset(
        "shared",
        tuple(
            PreferencePair(
                user_id=f"u{user:02d}",
                example_id=f"{user}.{row}",
                prompt=f"p{(row + user) % prompts}",
                chosen=f"t{(row * 3 + user) % texts}",
                rejected=f"t{(row * 3 + user + 1 + row % 5) % texts}",
                timestamp=str(datetime.date(2020, 1, 1) + datetime.timedelta(row if day is None else day(user, row))),
            )
            for user in range(users)
            for row in range(rows)
        ),
    )


def learnt(split: Split) -> list[str]:
    return [*split.train_ids, *split.valid_ids, *(name for ids in split.support_ids.values() for name in ids)]


def asked(split: Split) -> list[str]:
    return [name for ids in split.query_ids.values() for name in ids]


def texts(data, names) -> set[str]:
    return {text for name in names for text in (data.by_id(name).chosen, data.by_id(name).rejected)}


def test_prompts_disjoint_across_users():
    data = shared()
    loose = split_users(data, support=4, order="random")
    assert loose.proof()["prompts_across_users"] == 20
    assert "prompts_across_users" not in loose.promises()
    split = split_users(data, support=4, order="random", prompts="disjoint")
    known = {data.by_id(name).prompt for name in learnt(split)}
    queries = {data.by_id(name).prompt for name in asked(split)}
    assert known.isdisjoint(queries)
    assert known | queries == {f"p{number}" for number in range(20)}
    assert split.proof()["prompts_across_users"] == 0
    assert "prompts_across_users" in split.promises()
    assert f"{len(queries)} of the 20 prompts that several users share are for queries only" in split.notes[0]
    # No prompt straddles, so no row is lost to both sides.
    assert split.dropped == {}


def test_items_disjoint_across_users_count_the_pairs_that_straddle():
    data = shared()
    split = split_users(data, support=2, disjoint="item", items="disjoint")

    assert texts(data, learnt(split)).isdisjoint(texts(data, asked(split)))
    for user in split.adapt_users:
        assert texts(data, split.support_ids[user]).isdisjoint(texts(data, split.query_ids[user]))
    assert split.proof()["items_across_users"] == split.proof()["items_within_users"] == 0
    lost = split.dropped["items_on_both_sides"]
    # Of the 16 texts, k are for queries: a pair straddles where exactly one of its two is.
    held = int(split.notes[0].split()[0])
    assert 0 < held < 16
    assert f"{lost} of 480 rows ({lost / 480:.0%}) hold items of both sides and were left out." in split.notes
    more = split_users(data, support=2, disjoint="item", items="disjoint", held_out_fraction=0.1, seed=3)
    assert more.dropped.get("items_on_both_sides", 0) < lost


def test_what_one_user_has_needs_no_side():
    data = PreferenceDataset(
        "own",
        tuple(
            PreferencePair(
                user_id=f"u{user}", example_id=f"{user}.{row}", prompt=f"p{user}.{row}", chosen="a", rejected="b"
            )
            for user in range(6)
            for row in range(12)
        ),
    )
    split = split_users(data, prompts="disjoint", seed=1)
    plain = split_users(data, seed=1)
    assert (split.train_ids, split.support_ids, split.query_ids) == (
        plain.train_ids,
        plain.support_ids,
        plain.query_ids,
    )
    assert split.notes[0].startswith("0 of the 0 prompts that several users share")
    with pytest.raises(SplitError, match="loosen prompts, items, held_out_fraction or cut"):
        split_users(data, items="disjoint")


def test_one_date_for_all():
    data = shared()
    split = split_users(data, support=4, cut="2020-01-25", disjoint="row")
    assert {data.by_id(name).timestamp < "2020-01-25" for name in learnt(split)} == {True}
    assert {data.by_id(name).timestamp >= "2020-01-25" for name in asked(split)} == {True}
    # Days 0 to 23 lie before, 24 to 39 after.
    assert split.proof()["query_rows"] == 4 * 16
    assert "Rows from 2020-01-25 on are for queries only, 192 of 480; those before never are." in split.notes
    assert split == split_users(data, support=4, cut=datetime.date(2020, 1, 25), disjoint="row")
    assert split_users(data, support=4, cut=0.6, disjoint="row").cut == "2020-01-25"
    random = split_users(data, support=4, cut=0.6, disjoint="row", order="random")
    assert random.proof()["rows_across_the_cut"] == random.proof()["queries_before_support"] == 0
    assert random.support_ids != split.support_ids


def test_rules_combine():
    data = shared(users=20, rows=60, prompts=40, texts=24)
    split = split_users(
        data, support=1, prompts="disjoint", items="disjoint", cut=0.5, adapt_users=2, train_users=3, valid_fraction=0
    )
    split.check(data)
    assert set(split.promises()) >= {"prompts_across_users", "items_across_users", "copies_across_users"}
    assert all(split.proof()[name] == 0 for name in split.promises())
    assert set(split.dropped) == {"items_on_both_sides", "rules_disagree"}
    assert sum(split.dropped.values()) + len(learnt(split)) + len(asked(split)) <= len(data)


def test_a_smaller_draw_takes_the_same_users_and_rows_first():
    data = shared(users=16)
    rules = {"prompts": "disjoint", "items": "disjoint", "support": 2, "adapt_users": 4, "valid_fraction": 0, "seed": 2}
    large, small = (split_users(data, train_users=number, **rules) for number in (8, 3))
    assert large.train_users[:3] == small.train_users
    assert large.query_ids == small.query_ids
    fewer = split_users(data, **{**rules, "adapt_users": 2})
    assert large.adapt_users[:2] == fewer.adapt_users
    assert fewer.query_ids == {user: large.query_ids[user] for user in fewer.adapt_users}


def test_impossible_requests_have_the_numbers():
    untimed = PreferenceDataset(
        "mixed",
        tuple(
            PreferencePair(
                user_id=f"u{row % 3}",
                example_id=str(row),
                prompt=f"p{row}",
                chosen="a",
                rejected="b",
                timestamp=None if row < 7 else "2020-01-01",
            )
            for row in range(60)
        ),
    )
    with pytest.raises(
        SplitError, match="cut needs a timestamp on every row, but 7 of the 60 rows of 'mixed' have none"
    ):
        split_users(untimed, cut=0.5)
    with pytest.raises(
        SplitError, match=r"leaves 480 of the 480 rows .* after; times run from 2020-01-01 to 2020-02-09"
    ):
        split_users(shared(), cut="2030-01-01")
    with pytest.raises(SplitError, match=r"has 0 among 12 users; .*Rows from 2020-02-09 on are .* only, 12 of 480"):
        split_users(shared(), cut="2020-02-09", query=2)
    with pytest.raises(SplitError, match="1 of the 1 prompts that several users share are for queries only"):
        split_users(shared(prompts=1), prompts="disjoint", disjoint="row", seed=3)
    with pytest.raises(SplitError, match="none shares a prompt or item with a support row"):
        split_users(shared(prompts=1), items="disjoint")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": "disjont"}, "prompts is 'disjont', expected one of shared, disjoint. Did you mean 'disjoint'"),
        ({"items": True}, "items is True"),
        ({"held_out_fraction": 1}, "held_out_fraction is 1, expected a number between 0 and 1"),
        ({"cut": 2021}, "cut is 2021, expected a date such as '2021-01-01'"),
        ({"cut": "yesterday"}, "cut is 'yesterday'"),
        ({"cut": True}, "cut is True"),
        ({"cut": 0.0}, r"cut is 0\.0"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ConfigError, match=words):
        split_users(shared(), **options)


@pytest.mark.skipif(ROOT is None, reason="needs development data: set REWARDGAP_DATA to their folder")
def test_jester_without_a_text_on_both_sides():
    data = load_dataset("jsonl", path=ROOT / "jester" / "preferences.jsonl.gz")
    loose = split_users(data, disjoint="item", support=8, query=4, train_users=40, adapt_users=30)
    known, queries = (texts(data, names(loose)) for names in (learnt, asked))
    assert loose.proof()["items_across_users"] == len(known & queries) > 50
    split = split_users(data, disjoint="item", items="disjoint", support=4, query=4, train_users=40, adapt_users=30)
    assert split.proof()["items_across_users"] == 0
    known, queries = (texts(data, names(split)) for names in (learnt, asked))
    assert known.isdisjoint(queries)
    # The pairs hold 60 of the 100 texts.
    held = int(split.notes[0].split()[0])
    assert split.notes[0].startswith(f"{held} of the 60 items")
    assert len(queries) == held
    straddle = sum((pair.chosen in queries) != (pair.rejected in queries) for pair in data.pairs)
    assert split.dropped["items_on_both_sides"] == straddle == pytest.approx(0.5 * len(data), rel=0.1)


def test_a_study_takes_every_option():
    parameters = inspect.signature(split_users).parameters
    assert set(SplitSpec.model_fields) - {"file", "protocol"} == set(parameters) - {"dataset", "seed"}
    defaults = SplitSpec().model_dump()
    assert defaults == {name: parameters[name].default for name in defaults}
    options = yaml.safe_load("{cut: 2020-01-25, prompts: disjoint, support: 2, disjoint: row}")
    split = split_users(shared(), seed=3, **SplitSpec(**options).model_dump())
    assert (split.cut, split.prompts) == ("2020-01-25", "disjoint")
    assert SplitSpec(cut=0.25).cut == 0.25
    study = {"name": "x", "data": {"name": "docstrings"}, "policy": "p", "deployments": [{"policy": "zero_shot"}]}
    with pytest.raises(ConfigError, match=r"'split.cut' is 2021: expected a date such as '2021-01-01', or the share"):
        parse_study({**study, "split": {"cut": 2021}})


def test_a_report_tells_what_is_ruled_out():
    loose, strict = (proof_of(split_users(shared(), support=4, **options)) for options in ({}, {"prompts": "disjoint"}))
    assert loose["not ruled out"]["prompts across users"] == 20
    assert strict["ruled out"]["prompts across users"] == 0
    assert "prompts across users" not in strict["not ruled out"]
    assert set(strict["ruled out"].values()) == {0}
