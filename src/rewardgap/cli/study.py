"""The verbs that run studies and read their results: demo, run, report."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rewardgap.cli.dry_run import dry_run as show_dry_run
from rewardgap.cli.dry_run import memory_gib
from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.executors import (
    HERE,
    AddressOption,
    ExecutorOption,
    JobsOption,
    SlurmOption,
    WorkerOption,
    Working,
    slurm_script,
)
from rewardgap.cli.options import JsonOption, ThreadsOption

if TYPE_CHECKING:
    from rewardgap.core.results import StudyResults

SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value", help="Change one setting.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Results folder; runs/<name> unless given.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="FILE", help="Data of your own in place of the study's: pairs, ratings, texts, ..."),
]
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
    from rewardgap.studies.presets import preset_path

    path = preset_path("demo")
    if print_study:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    _execute(path, output, overrides, threads, as_json, dry_run, "rewardgap demo")


def run(
    study: Annotated[Path, typer.Argument(help="A study file (YAML), or preset:NAME with --data FILE.")],
    output: OutputOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
    threads: ThreadsOption = None,
    jobs: JobsOption = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    worker: WorkerOption = None,
    as_json: JsonOption = False,
    dry_run: DryOption = False,
    print_slurm: SlurmOption = False,
) -> None:
    """Run a study; finished cells are kept, and the same command goes on where it was stopped."""
    working = Working(jobs, executor, address, worker, print_slurm)
    command = " ".join([f"rewardgap run {_shown(study)}", *([f"--data {shlex.quote(_shown(data))}"] if data else [])])
    _execute(study, output, overrides, threads, as_json, dry_run, command, working, data)


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A results folder, for example runs/demo.")],
    as_json: JsonOption = False,
    form: Annotated[
        Literal["md", "latex", "csv", "json"] | None,
        typer.Option("--format", help="Print all: a Markdown page, booktabs tables, a row a number, or JSON."),
    ] = None,
    publish: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write PATH.json and PATH.md without prompts, references and generations."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write every chart as SVG and PDF, one and two columns of a paper wide."),
    ] = None,
) -> None:
    """Write report.html and results.csv of a finished study again, and print the leaderboard; loads no model."""
    with reported(as_json):
        results = _read(run_folder / "results.json")
        _write(results, run_folder)
        if publish is not None:
            _publish(results, publish)
        if figures is not None:
            from rewardgap.report.plots import write_figures

            written = write_figures(results, figures)
            typer.echo(f"{len(written)} files in {figures}", err=True)
        _show(results, "json" if as_json else form)


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


def _execute(
    path: Path,
    output: Path | None,
    overrides: list[str] | None,
    threads: int | None,
    as_json: bool,
    dry_run: bool,
    command: str,
    working: Working = HERE,
    data: Path | None = None,
) -> None:
    with reported(as_json, resumable=True):
        from rewardgap.core.errors import CellsFailedError
        from rewardgap.studies.presets import find_study

        working.check()
        study = find_study(str(path), data, overrides or [])
        folder = output or Path("runs") / study.name
        command = " ".join([command, *(f"--set {_shown_setting(setting)}" for setting in overrides or [])])
        from rewardgap.studies.environment import choose_threads, threads_of
        from rewardgap.studies.points import points
        from rewardgap.studies.progress import Terminal
        from rewardgap.studies.results import study_results
        from rewardgap.studies.run import run_points
        from rewardgap.studies.running import writable
        from rewardgap.studies.user_means import FILE_NAME

        progress = Terminal()
        plain = [point.study for point in points(study)]
        used = choose_threads(working.threads(threads, threads_of(folder)))
        if dry_run:
            show_dry_run(plain, study, folder, working, used, as_json)
            return
        if working.print_slurm:
            gib, members = memory_gib(plain, folder), working.jobs or 1
            settings = [word for setting in overrides or [] for word in ("--set", setting)]
            own = ["--data", str(data)] if data else []
            typed = shlex.join(["rewardgap", "run", str(path), *own, *settings])
            typer.echo(slurm_script(study.name, typed, folder, members, used, gib), nl=False)
            return
        progress.say(f"{study.name}: results in {folder}, {used} thread{'s' if used > 1 else ''}")
        finished = run_points(plain, folder, progress, working.made(used), study)
        if working.worker is not None:
            progress.say(f"nothing is left to do here; `rewardgap run {_shown(path)}` writes the report.")
            return
        summed, means = study_results(finished, study, command)
        results = _with_signatures(summed)
        with writable(folder):
            means.write(folder / FILE_NAME)
            _write(results, folder)
        _show(results, "json" if as_json else None)
        failures = [failure for point in finished for failure in point.failures]
        cells = len({cell.id for point in finished for cell in point.plan.cells()})
        computed, failed = sum(point.computed for point in finished), len(failures)
        counts = [f"{computed} of {cells} cells computed"]
        counts += [f"{failed} failed"] if failed else []
        counts += [f"{there} were there"] if (there := cells - computed - failed) else []
        progress.say(f"{', '.join(counts)}. Report: {folder}/report.html")
        if failed:
            first = failures[0]
            raise CellsFailedError(
                f"{failed} of {cells} cells failed, first '{first['title']}': {first['error'].rstrip('.')}. "
                "The others are finished and kept."
            )


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


def _show(results: StudyResults, form: str | None) -> None:
    """Print results whole in a form for other programs, or what a reader at a terminal wants to know."""
    if form == "json":
        typer.echo(json_text(results.to_json()))
        return
    if form is not None:
        typer.echo(_whole(results, form), nl=False)
        return
    from rich.console import Console

    from rewardgap.report import tables

    tables.print_summary(results, Console(file=sys.stdout, highlight=False))


def _whole(results: StudyResults, form: str) -> str:
    from rewardgap.report import tables
    from rewardgap.report.latex import study_latex
    from rewardgap.report.markdown import study_markdown

    return {"md": study_markdown, "latex": study_latex, "csv": tables.csv_text}[form](results)


def _shown(path: Path) -> str:
    return path.name if path.is_absolute() else str(path)


def _shown_setting(setting: str) -> str:
    """Return a setting as one types it, without the folders of this machine."""
    key, sign, value = setting.partition("=")
    return shlex.quote(key + sign + (Path(value).name if value.startswith(("/", "~")) else value))
