"""The verbs that run studies and read their results: demo, run, report."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.options import JsonOption, ThreadsOption

if TYPE_CHECKING:
    from rewardgap.core.results import StudyResults
    from rewardgap.studies.spec import StudySpec

SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value", help="Change one setting.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Results folder; runs/<name> unless given.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved study and its cells, run nothing.")]


def demo(
    output: OutputOption = None,
    overrides: SetOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    dry_run: DryOption = False,
    print_study: Annotated[bool, typer.Option(help="Print the demo's study file and stop.")] = False,
) -> None:
    """Run the whole chain on the embedded data: minutes on two cores, nothing to download."""
    path = preset("demo")
    if print_study:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    _execute(path, output, overrides, threads, as_json, dry_run, "rewardgap demo")


def run(
    study: Annotated[Path, typer.Argument(help="A study file (YAML).")],
    output: OutputOption = None,
    overrides: SetOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    dry_run: DryOption = False,
) -> None:
    """Run a study; finished cells are kept, and the same command goes on where it was stopped."""
    _execute(study, output, overrides, threads, as_json, dry_run, f"rewardgap run {_shown(study)}")


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A results folder, for example runs/demo.")],
    as_json: JsonOption = False,
    markdown: Annotated[bool, typer.Option(help="Print the study as a Markdown page.")] = False,
    publish: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write PATH.json and PATH.md without prompts, references and generations."),
    ] = None,
) -> None:
    """Write report.html and results.csv of a finished study again, and print the leaderboard; loads no model."""
    with reported(as_json):
        results = _read(run_folder / "results.json")
        _write(results, run_folder)
        if publish is not None:
            _publish(results, publish)
        _show(results, run_folder, as_json, markdown)


def _read(path: Path) -> StudyResults:
    from rewardgap.core.errors import DataError
    from rewardgap.core.results import SCHEMA_VERSION, StudyResults
    from rewardgap.core.store import read_json
    from rewardgap.data.reading import MissingFileError

    if not path.exists():
        raise MissingFileError(f"'{path.parent}' holds no results.json; run the study first.")
    try:
        value = read_json(path)
        version = value.get("schema_version")
        if version == SCHEMA_VERSION:
            return StudyResults.from_json(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' cannot be read as results ({error}); run the study again.") from error
    raise DataError(
        f"'{path}' has schema version {version}, this program reads {SCHEMA_VERSION}; run the study again, or use the "
        "version that wrote it."
    )


def preset(name: str) -> Path:
    """Return the path of a study file that ships with the package."""
    return Path(__file__).parent.parent / "studies" / "presets" / f"{name}.yaml"


def _execute(
    path: Path,
    output: Path | None,
    overrides: list[str] | None,
    threads: int | None,
    as_json: bool,
    dry_run: bool,
    command: str,
) -> None:
    with reported(as_json, resumable=True):
        from rewardgap.core.errors import CellsFailedError
        from rewardgap.studies.spec import load_study

        study = load_study(path, overrides)
        folder = output or Path("runs") / study.name
        command = " ".join([command, *(f"--set {_shown_setting(setting)}" for setting in overrides or [])])
        from rewardgap.studies.aggregate import aggregate
        from rewardgap.studies.environment import choose_threads, threads_of
        from rewardgap.studies.progress import Terminal
        from rewardgap.studies.run import run_study

        progress = Terminal()
        used = choose_threads(threads if threads is not None else threads_of(folder))
        if dry_run:
            _dry_run(study, folder, as_json)
            return
        progress.say(f"{study.name}: results in {folder}, {used} thread{'s' if used > 1 else ''}")
        finished = run_study(study, folder, progress)
        results = _with_signatures(aggregate(finished, command))
        _write(results, folder)
        _show(results, folder, as_json, markdown=False)
        cells, failed = len(finished.plan.cells()), len(finished.failures)
        counts = [f"{finished.computed} of {cells} cells computed"]
        counts += [f"{failed} failed"] if failed else []
        counts += [f"{there} were there"] if (there := cells - finished.computed - failed) else []
        progress.say(f"{', '.join(counts)}. Report: {folder}/report.html")
        if failed:
            first = finished.failures[0]
            raise CellsFailedError(
                f"{failed} of {cells} cells failed, first '{first['title']}': {first['error'].rstrip('.')}. "
                "The others are finished and kept."
            )


def _dry_run(study: StudySpec, folder: Path, as_json: bool) -> None:
    from rewardgap.studies.folders import study_yaml
    from rewardgap.studies.plan import check_names, make_plan
    from rewardgap.studies.progress import Silent
    from rewardgap.studies.workbench import Workbench

    check_names(study)
    bench = Workbench(study, folder, Silent())
    cells = [
        {"id": cell.id, "kind": cell.kind, "title": cell.title, "done": bench.folder(cell).done}
        for cell in make_plan(bench).cells()
    ]
    if as_json:
        typer.echo(json_text({"study": study.model_dump(), "cells": cells}))
        return
    typer.echo(study_yaml(study))
    for cell in cells:
        typer.echo(f"{'done' if cell['done'] else 'to do':6}{cell['title']}")


def _with_signatures(results: StudyResults) -> StudyResults:
    from rewardgap.report.signatures import failure_signatures

    return replace(results, signatures=failure_signatures(results))


def _write(results: StudyResults, folder: Path) -> None:
    from rewardgap.core.store import write_json
    from rewardgap.report import page, tables

    value: dict[str, Any] = results.to_json()
    write_json(folder / "results.json", value)
    tables.write_csv(results, folder / "results.csv")
    page.write(results, folder / "report.html")


def _publish(results: StudyResults, path: Path) -> None:
    """Write what may be shown to anybody: numbers and settings, no text of a user or a policy."""
    from rewardgap.core.store import write_json, write_text
    from rewardgap.report.markdown import study_markdown

    bare = replace(results, samples=[], environment=results.environment | {"first_prompts": {}})
    write_json(path.with_suffix(".json"), bare.to_json())
    write_text(path.with_suffix(".md"), study_markdown(bare).strip() + "\n")


def _show(results: StudyResults, folder: Path, as_json: bool, markdown: bool) -> None:
    if as_json:
        typer.echo(json_text(results.to_json()))
        return
    from rewardgap.report import tables

    if markdown:
        from rewardgap.report.markdown import study_markdown

        typer.echo(study_markdown(results))
        return
    from rich.console import Console

    tables.print_summary(results, Console(file=sys.stdout, highlight=False))


def _shown(path: Path) -> str:
    return path.name if path.is_absolute() else str(path)


def _shown_setting(setting: str) -> str:
    """Return a setting as one types it, without the folders of this machine."""
    key, sign, value = setting.partition("=")
    return shlex.quote(key + sign + (Path(value).name if value.startswith(("/", "~")) else value))
