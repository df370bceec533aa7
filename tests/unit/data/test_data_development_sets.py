"""Real files, where they are at hand: every one loads, and splits as it should."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rewardgap.core.errors import DataError
from rewardgap.data.baselines import RANKERS
from rewardgap.data.catalog import load_dataset
from rewardgap.data.splits import split_users

PLACES = [os.environ.get("REWARDGAP_DATA"), Path(__file__).parents[4] / "shared" / "data"]
ROOT = next((Path(place) for place in PLACES if place and Path(place).is_dir()), None)
pytestmark = pytest.mark.skipif(ROOT is None, reason="needs development data: set REWARDGAP_DATA to their folder")

AUTHORED = {
    "git_commit_subjects": ("commit_subject", 195, 11140),
    "huffpost_headlines": ("headline", 88, 8642),
    "aeslc_enron_sent": ("email_subject", 40, 3190),
}
JUDGED = {"ukp_convarg1": (377, 36325), "jester": (300, 12000)}


@pytest.mark.parametrize("name", AUTHORED)
def test_authored_sets(name):
    task, users, rows = AUTHORED[name]
    data = load_dataset("authored", path=ROOT / name / "completions.jsonl.gz", task=task)
    assert (data.name, len(data.users()), len(data) + sum(data.dropped.values())) == (name, users, rows)
    split = split_users(data, train_users=20, adapt_users=10, pairs_per_train_user=12, support=8, query=4)
    split.check(data)


def test_repeated_ids_are_refused_and_content_ids_help():
    path = ROOT / "crowdwsa_translations" / "completions.jsonl.gz"
    with pytest.raises(DataError, match="already names another row"):
        load_dataset("authored", path=path, task="rewording")
    data = load_dataset("authored", path=path, task="rewording", example_ids="content")
    assert len(data.users()) == 54
    split_users(data, support=8).check(data)


@pytest.mark.parametrize("name", JUDGED)
def test_judged_sets(name):
    users, rows = JUDGED[name]
    data = load_dataset("jsonl", path=ROOT / name / "preferences.jsonl.gz")
    assert len(data.users()) == users
    assert len(data) + sum(data.dropped.values()) == rows
    if name == "jester":
        split_users(data, disjoint="item", support=8, query=4).check(data)
    else:
        assert RANKERS["longer"](data.pairs).mean() == pytest.approx(0.695, abs=0.01)
        split_users(data, support=8, query=4, train_users=50).check(data)
