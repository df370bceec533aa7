"""The direction of imports: a room imports from lower floors only, and the catalogue rooms' entries not each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "rewardgap"
FLOORS = {
    "core": 0,
    "numerics": 1,
    "stats": 1,
    "data": 2,
    "backbones": 2,
    "metrics": 2,
    "retrieval": 3,
    "rewards": 3,
    "report": 3,
    "decoding": 4,
    "policies": 5,
    "diagnostics": 4,
    "studies": 6,
    "bench": 7,
    "api": 6,
    "cli": 8,
}
FORBIDDEN = {
    ("report", "backbones"),
    ("report", "data"),
    ("metrics", "backbones"),
    ("metrics", "data"),
    ("studies", "report"),
    ("studies", "cli"),
    ("rewards", "metrics"),
}
HEAVY_HOMES = {
    "transformers": {"backbones", "metrics", "bench"},
    "peft": {"backbones", "bench"},
    "bert_score": set(),
    "datasets": {"data", "bench"},
    "vllm": {"backbones"},
}


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.name == "api.py")


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module a file imports anywhere, inside functions and under TYPE_CHECKING too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in modules()} == set(FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "rewardgap" or len(parts) < 2 or parts[1] not in FLOORS or parts[1] == here:
            continue
        assert FLOORS[parts[1]] < FLOORS[here], f"{path.name} in {here} imports {name} from a floor not below"
        assert (here, parts[1]) not in FORBIDDEN, f"{here} may not import {parts[1]}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imported(path):
        homes = HEAVY_HOMES.get(name.split(".")[0])
        assert homes is None or room(path) in homes, f"{path} imports {name}"


def test_methods_do_not_import_each_other() -> None:
    """Two methods share through base, fitting or numerics, so that a new one is one new file."""
    catalogue = imported(SOURCE / "rewards" / "catalog.py")
    methods = {
        path.stem for path in (SOURCE / "rewards").glob("*.py") if f"rewardgap.rewards.{path.stem}" in catalogue
    } - {"base"}
    assert {"global_bt", "lore"} <= methods
    for method in methods:
        others = {f"rewardgap.rewards.{other}" for other in methods - {method}}
        assert not others & imported(SOURCE / "rewards" / f"{method}.py")


def test_the_rule_sees_a_violation(tmp_path: Path) -> None:
    """The walk finds imports wherever they stand; otherwise the rules above could not fail."""
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from rewardgap.studies import run\n    import peft.utils\n")
    assert {"rewardgap.studies", "rewardgap.studies.run", "peft.utils"} <= imported(file)


def test_modules_stay_small() -> None:
    long = {str(p.relative_to(SOURCE)): n for p in modules() if (n := len(p.read_text().splitlines())) > 480}
    assert not long, f"modules over 480 lines: {long}"
