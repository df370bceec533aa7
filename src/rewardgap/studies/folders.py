"""Results folders: whose they are, who is at work in them, and the study as it stands there."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from rewardgap.backbones.serving import is_served
from rewardgap.core.errors import ConfigError
from rewardgap.core.store import write_text
from rewardgap.studies.workbench import shown_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rewardgap.studies.spec import StudySpec


def refuse_strangers(root: Path) -> None:
    """Refuse a folder that holds something else than a study; what a killed write left does not count."""
    found = list(root.iterdir()) if root.is_dir() else []
    if any(not child.name.startswith(".") for child in found) and not (root / "study.yaml").exists():
        raise ConfigError(f"folder '{root}' is not empty and holds no study. Choose another folder with --output.")
    root.mkdir(parents=True, exist_ok=True)


def claim(study: StudySpec, root: Path) -> None:
    """Write the resolved study, unless the folder holds another one: another name, other data or another policy.

    Raises:
        ConfigError: if it does.
    """
    path = root / "study.yaml"
    text = study_yaml(study)
    if path.exists():
        held, own = _held(path), yaml.safe_load(text)
        # A start that failed before its first cell holds nothing that other data or another policy could mix with.
        parts = ("name", "data", "policy") if any(root.glob("cells/*/DONE")) else ("name",)
        differs = next((part for part in parts if held.get(part) != own[part]), None)
        if differs is not None:
            other = f"not of '{study.name}'" if differs == "name" else f"on another {differs}"
            raise ConfigError(
                f"folder '{root}' holds the results of study '{held['name']}', {other}. "
                "Choose another folder with --output."
            )
    write_text(path, text)


def _held(path: Path) -> dict[str, Any]:
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {**held, "name": str(held["name"])}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"'{path}' is no resolved study, so whose results these are is not known. "
            "Choose another folder with --output."
        ) from error


def study_yaml(study: StudySpec) -> str:
    """Return a study with every default written out, and of every path its last part only."""

    def masked(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: masked(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [masked(item, key) for item in value]
        if not isinstance(value, str):
            return value
        is_place = value.startswith(("/", "~")) or (key in ("policy", "backbone") and is_served(value))
        return shown_name(value) if is_place else value

    return yaml.safe_dump(masked(study.model_dump()), sort_keys=False, allow_unicode=True)


@contextmanager
def locked(root: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep a run's folder for this process, or for all those that share it.

    Raises:
        ConfigError: if another process has it.
    """
    with (root / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run is at work in '{root}'. Wait for it, or choose another --output.") from None
        yield


@contextmanager
def held(root: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a named thing of a results folder, a cell or a job, against every other process; yield whether it is held.

    The lock goes with the process, however that ends.

    Args:
        root: the results folder.
        name: what is held.
        wait: for the one who has it.
    """
    path = root / ".locks" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
