"""A study that varies is the plain studies at every combination, no more and no fewer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core.errors import ConfigError
from rewardgap.core.results import ResultRow, StudyResults
from rewardgap.studies.folders import study_yaml
from rewardgap.studies.merging import merge
from rewardgap.studies.points import points
from rewardgap.studies.spec import StudySpec, parse_study

BASE: dict[str, Any] = {
    "name": "grid",
    "data": {"name": "synthetic_text"},
    "policy": "synthetic-words",
    "split": {"support": 4},
    "reward_models": [{"method": "lore", "options": {"rank": 2}}],
    "deployments": [{"policy": "zero_shot"}, {"decoder": "args_greedy", "guidance_weight": [0.5, 1.0]}],
}


def grid(*axes: Any) -> StudySpec:
    return parse_study({**BASE, "vary": list(axes)})


def test_without_axes_a_study_is_its_only_point() -> None:
    study = parse_study(BASE)
    (point,) = points(study)
    assert point.study == study
    assert point.title == ""


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True),
)
def test_points_are_the_product_of_the_axes_in_order(
    seeds: list[int], supports: list[int], policies: list[str]
) -> None:
    study = grid({"policy": policies}, {"split.support": supports}, {"seed": seeds})
    found = points(study)
    assert [(p.study.policy, p.study.split.support, p.study.seed) for p in found] == list(
        itertools.product(policies, supports, seeds)
    )
    for point in found:
        by_hand = {**BASE, "policy": point.study.policy, "seed": point.study.seed}
        by_hand["split"] = {"support": point.study.split.support}
        assert point.study.model_dump() == parse_study(by_hand).model_dump()


def test_settings_that_go_together_are_one_axis() -> None:
    study = grid([{"seed": 1, "policy": "a"}, {"seed": 2, "policy": "b"}], {"reward_models.0.options.rank": [2, 3]})
    found = [(p.study.seed, p.study.policy, p.study.reward_models[0].options["rank"]) for p in points(study)]
    assert found == [(1, "a", 2), (1, "a", 3), (2, "b", 2), (2, "b", 3)]
    assert points(study)[0].title == "seed=1, policy=a, reward_models.0.options.rank=2"


def test_a_whole_section_is_replaced() -> None:
    study = grid([{"data": {"name": "docstrings"}, "split": {"file": "split.json"}}])
    (point,) = points(study)
    assert point.study.data.name == "docstrings"
    assert point.study.split.file == "split.json"
    assert not point.study.split.is_drawn


def test_what_was_written_out_has_the_same_points() -> None:
    study = grid({"policy": ["a", "b"]}, [{"seed": 1, "split.support": 2}, {"seed": 2, "split.support": 8}])
    again = parse_study(yaml.safe_load(study_yaml(study)))
    assert [p.study.model_dump() for p in points(again)] == [p.study.model_dump() for p in points(study)]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([{"seed": [1]}, {"seed": [2]}], "'seed' is on two axes"),
        ([{"seed": [1, 1]}], "two points are the same study, seed=1"),
        ([{"sede": [1, 2]}], "unknown key 'sede'. Did you mean 'seed'?"),
        ([{"split.suport": [1]}], "unknown key 'split.suport'"),
        ([{"seed.x": [1]}], "'seed.x' is no setting of the study"),
        ([{"reward_models.7.method": ["pref"]}], "no setting of the study"),
        ([{"name": ["a"]}], "'name' cannot differ"),
        ([{"seed": 3}], "axis 1 is neither"),
        ([{"seed": []}], "axis 1 is neither"),
        ([{"seed": [1]}, [1, 2]], "axis 2 is neither"),
        ([{"seed": [-1]}], "vary, seed=-1"),
    ],
)
def test_what_cannot_be_varied_is_named(axes: list[Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.").replace("?", r"\?")):
        points(grid(*axes))


def test_what_reads_no_support_has_a_line_for_each_support_size() -> None:
    """Zero-shot's query rows are others at every support size; where all points have one size it stays as it is."""

    def part(size: int, seed: int, value: float) -> StudyResults:
        shared = {"dataset": "d", "pairing": None, "policy": "p", "seed": seed, "users": "unseen", "stage": "behaviour",
                  "metric": "rouge1", "n_users": 3, "n_examples": 9}  # fmt: skip
        rows = [
            ResultRow(**shared, method="zero_shot", support_size=None, value=value),
            ResultRow(**shared, method="lore", support_size=size, value=0.5),
        ]
        return StudyResults(name="grid", rows=rows, study={"policy": "p", "data": {"name": "d"}, "seed": seed})

    def sizes(*parts: StudyResults) -> list[tuple[str | None, int | None, float | None]]:
        return [(row.method, row.support_size, row.value) for row in merge(parts, {}, 0).rows]

    alike, other = part(2, 0, 0.25), part(4, 0, 0.25)
    lores = [("lore", 2, 0.5), ("lore", 4, 0.5)]
    assert sorted(sizes(alike, other), key=str) == [*lores, ("zero_shot", 2, 0.25), ("zero_shot", 4, 0.25)]
    assert ("zero_shot", 4, 0.75) in sizes(alike, part(4, 0, 0.75))
    one_size = sizes(part(2, 0, 0.25), part(2, 1, 0.75))
    assert [found for found in one_size if found[0] == "zero_shot"] == [
        ("zero_shot", None, 0.25),
        ("zero_shot", None, 0.75),
    ]
    with pytest.raises(ConfigError, match="two points of the study have a line for behaviour rouge1 of zero_shot on d"):
        merge([part(2, 0, 0.25), part(2, 0, 0.75)], {}, 0)
