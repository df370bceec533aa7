"""The study files that ship: each is what its head says, at every point."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rewardgap.policies.catalog import JUDGES
from rewardgap.studies.deployments import expand
from rewardgap.studies.plan import check_names
from rewardgap.studies.points import points
from rewardgap.studies.spec import StudySpec, load_study, parse_study
from rewardgap.studies.workbench import shown_name

STUDIES = Path(__file__).parents[2] / "studies"
PAPER = sorted((STUDIES / "paper").glob("*.yaml"))
ABLATIONS = sorted(STUDIES.glob("ablation_*.yaml"))
METHODS = {"global_bt", "mpu", "lore", "pref", "pal_a", "pal_b", "vpl", "p_dpo", "genarm"}
QWEN = {f"Qwen/Qwen2.5-{size}-Instruct" for size in ("0.5B", "1.5B", "3B", "7B")}
SHOTS = {2, 4, 8, 16, 32}


def head(path: Path) -> str:
    """The comment above the first setting, on one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in comment)


def studies_of(name: str) -> list[StudySpec]:
    return [point.study for point in points(load_study(STUDIES / "paper" / f"{name}.yaml"))]


@pytest.mark.parametrize("path", [*PAPER, *ABLATIONS], ids=lambda path: path.stem)
def test_every_point_is_a_study_and_there_are_as_many_as_the_head_says(path: Path) -> None:
    found = points(load_study(path))
    (stated,) = re.findall(r": (\d+) points\.", head(path))
    assert len(found) == int(stated)
    assert re.search("against", head(path)), "what would count against the claim"
    for point in found:
        check_names(point.study)
        assert expand(point.study)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_studies_of_the_paper_have_its_methods_seeds_and_weights(path: Path) -> None:
    found = [point.study for point in points(load_study(path))]
    assert {study.seed for study in found} == {0, 1, 2}
    assert "2512.23067" in head(path) or path.stem == "finer_scales_qwen3"
    for study in found:
        assert study.dtype == "bfloat16"
        assert study.device == "cuda"
        steering = {d.reward_model.method for d in expand(study) if d.reward_model and d.name == "args_greedy"}
        assert steering == METHODS
        judges = {spec.method for spec in study.reward_models} & set(JUDGES.names())
        assert bool(judges) == (path.stem == "circular")
        assert len({d.guidance_weight for d in expand(study) if d.name == "args_greedy"}) >= 4
        assert all(spec.fit_mode == "lora" for spec in study.reward_models if spec.method == "pref")


@pytest.mark.parametrize("path", [*PAPER, *ABLATIONS], ids=lambda path: path.stem)
def test_the_reader_of_a_support_set_takes_the_largest(path: Path) -> None:
    """VPL refuses more pairs than its context, unless it is told to thin them out; published splits fix no number."""
    for point in points(load_study(path)):
        for spec in (spec for spec in point.study.reward_models if spec.method == "vpl"):
            enough = point.study.split.is_drawn and spec.options.get("context", 8) >= point.study.split.support
            assert enough or spec.options["long_support"] == "thin"


@pytest.mark.parametrize("name", ["correlation", "circular", "icl_vs_rgd", "pref_lamp_behaviour"])
def test_the_four_scales_are_crossed_with_everything_else(name: str) -> None:
    counts = Counter(study.policy for study in studies_of(name))
    assert set(counts) == QWEN
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("name", ["correlation", "circular", "icl_vs_rgd"])
def test_three_datasets(name: str) -> None:
    assert {study.data.name for study in studies_of(name)} == {"tldr", "prism", "folder"}


def test_the_correlation_is_on_the_published_splits() -> None:
    protocols = {study.data.name: study.split.protocol for study in studies_of("correlation")}
    assert protocols == {"tldr": "tldr_lore", "prism": "prism_lore", "folder": None}


@pytest.mark.parametrize(("name", "shots"), [("icl_vs_rgd", SHOTS), ("finer_shots", SHOTS | {1, 3, 6, 12, 24})])
def test_both_sides_have_one_budget(name: str, shots: set[int]) -> None:
    """What is shown in context is what the reward models adapt to, at every point."""
    seen = set()
    for study in studies_of(name):
        shown = {deployment.shots for deployment in expand(study) if deployment.shots is not None}
        assert shown == {study.split.support}
        seen.add(study.split.support)
    assert seen == shots


def test_the_behaviour_table_has_all_shots() -> None:
    for study in studies_of("pref_lamp_behaviour"):
        for name in ("icl", "icl_rag"):
            assert {d.shots for d in expand(study) if d.name == name} == SHOTS


def test_families_of_scales_are_apart() -> None:
    families = [
        {shown_name(study.policy).split("/")[-1].split("-")[0] for study in studies_of(name)}
        for name in ("finer_scales", "finer_scales_qwen3")
    ]
    assert families == [{"Qwen2.5"}, {"Qwen3"}]
    assert all(
        len({study.policy for study in studies_of(name)}) == 5 for name in ("finer_scales", "finer_scales_qwen3")
    )


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_ablations_turn_one_dial_and_name_each_value(path: Path) -> None:
    study = load_study(path)
    assert study.policy == "synthetic-words"
    *dials, _ = study.vary
    turned: dict[str, set[str]] = {}
    for point in points(study):
        changed = {key: value for key, value in point.settings.items() if key.split(".")[-1] not in ("seed", "name")}
        turned.setdefault(point.study.data.options.get("name", "synthetic_text"), set()).add(str(changed))
    assert len(turned) == (4 if dials else 1)
    assert all(len(values) == 1 for values in turned.values())


def test_a_seed_of_an_ablation_draws_other_users_too() -> None:
    for path in ABLATIONS:
        for point in points(load_study(path)):
            assert point.study.seed == point.study.data.options["seed"]


def test_ablations_have_every_architecture_of_rewards() -> None:
    """A simplex, an SVD start, ideal points, cosines, a latent, one head a user, and one for all."""
    for path in ABLATIONS:
        methods = {spec.method for spec in load_study(path).reward_models}
        if path.stem != "ablation_oracle":
            assert methods == {"global_bt", "mpu", "lore", "pref", "pal_a", "pal_b", "vpl", "oracle_sequence"}
            steering = {d.reward_model.method for d in expand(load_study(path)) if d.reward_model}
            assert steering == methods - {"oracle_sequence"}, "the truth judges, it does not steer"
        else:
            assert {"oracle_sequence", "oracle_value"} < methods


def test_settings_can_be_changed_from_outside() -> None:
    study = load_study(STUDIES / "paper" / "correlation.yaml", ["dtype=float32", "device=cpu", "batch_size=4"])
    assert {(p.study.dtype, p.study.device, p.study.batch_size) for p in points(study)} == {("float32", "cpu", 4)}
    assert parse_study(study.model_dump()) == study


def test_the_page_of_ablations_holds_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDIES.parent / "benchmarks"))
    page = importlib.import_module("ablations_page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.tables(text) == text
    shown = {name for _, name, _ in page.BLOCK.findall(text)}
    assert shown == {path.stem for path in ABLATIONS} == {path.stem for path in page.KEPT.glob("*.json")}
    for path in ABLATIONS:
        kept = json.loads((page.KEPT / f"{path.stem}.json").read_text(encoding="utf-8"))
        study = load_study(path)
        assert parse_study(kept["study"]).model_dump() == study.model_dump(), "the study file has changed since its run"
        assert {number["seed"] for number in kept["numbers"]} == {0, 1, 2}


def test_a_table_of_an_ablation_is_the_mean_over_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two reward models, two seeds: 60 and 70, 80 and 90 points, in the same order as ROUGE-1 and then the other."""
    monkeypatch.syspath_prepend(str(STUDIES.parent / "benchmarks"))
    page = importlib.import_module("ablations_page")
    blank = {"dataset": "noise_0.1", "decoder": None, "guidance_weight": None, "ci_low": None, "ci_high": None}

    def number(what: str, method: str, seed: int, value: float, decoder: str | None = None) -> dict[str, Any]:
        return blank | {"what": what, "method": method, "seed": seed, "value": value, "decoder": decoder}

    numbers = [number("rouge1", "zero_shot", seed, 0.2) for seed in (0, 1)]
    for method, ranked, written in (("lore", (0.6, 0.7), (0.3, 0.5)), ("pref", (0.8, 0.9), (0.4, 0.4))):
        for seed in (0, 1):
            numbers.append(number("rm_accuracy", method, seed, ranked[seed]))
            for what in ("policy_accuracy", "rouge1", "true_wins"):
                numbers.append(number(what, method, seed, written[seed], "args_greedy"))
    row = page.dial_table(page.Ablation({"numbers": numbers, "taus": []})).splitlines()[-1]
    assert row.startswith(
        "| 0.1 | 65.0 to 85.0 | 40.0 to 40.0 | 20.0 | 40.0 to 40.0 | 40.0 to 40.0 | 0.00 (1.00, −1.00) |"
    )
