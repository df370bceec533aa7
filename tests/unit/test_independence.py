"""Which networks are one: by their weights where these are here, else by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rewardgap.metrics.win_rate import judged_name
from rewardgap.studies.independence import Network, network

BENCH: Any = SimpleNamespace(study=SimpleNamespace(policy="Qwen/Qwen2.5-7B-Instruct@abc"), fingerprint=str)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("a", "1"), ("b", "1"), True),
        (("a", "1"), ("a", "2"), False),
        (("a", None), ("a", "1"), True),
        (("a", None), ("b", "1"), False),
        (("a", None), ("a", None), True),
    ],
)
def test_weights_decide_where_they_are_here(one: Any, other: Any, same: bool) -> None:
    assert Network(*one).is_same(Network(*other)) is Network(*other).is_same(Network(*one)) is same


def test_a_server_is_known_by_the_name_of_its_model_without_its_owner() -> None:
    policy = network(BENCH, None)
    assert policy == ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct@abc")
    for name in ("Qwen/Qwen2.5-7B-Instruct", "somebody/qwen2.5-7b-instruct", "Qwen2.5-7B-Instruct"):
        assert network(BENCH, f"served:http://host:8000/v1#model={name},parallel=3").is_same(policy)
    assert not network(BENCH, "served:http://host:8000/v1#model=Qwen/Qwen2.5-72B-Instruct").is_same(policy)


def test_names_of_win_rates() -> None:
    assert judged_name("g", "g", related=True) == "win_self"
    assert judged_name("g", "j", related=True) == judged_name(None, "j", related=True) == "win_related"
    assert judged_name(None, "j", related=False) == "win_independent"
    assert judged_name(None, "j", related=False, opponent="reference") == "win_independent_over_reference"
