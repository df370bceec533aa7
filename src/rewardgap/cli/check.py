"""The verb `data check`: what a dataset can show, without a language model."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.options import JsonOption, SeedOption, settings


def check(
    target: Annotated[str, typer.Argument(metavar="PATH|NAME", help="A file of your own, or a dataset's name.")],
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value", help="An option of the dataset's loader.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for check.json and the page check.html.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="Ratings the rows do not carry: JSON lines {user_id, ratings: {item: score}}, plain or .gz."),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what a dataset can show: trivial rankers, leakage, agreement, how personal it is, smallest differences.

    Reads the dataset whole, as `validate` does. Figures have an interval over users; sentences say what follows.
    """
    with reported(as_json):
        from rewardgap.cli.data import open_dataset, print_statistics
        from rewardgap.diagnostics.check import check_dataset
        from rewardgap.diagnostics.scores import read_scores

        if output is not None:
            # Before the work: a folder that cannot be made would lose it.
            output.mkdir(parents=True, exist_ok=True)
        known = None if scores is None else read_scores(scores)
        begin = time.monotonic()

        def say(text: str) -> None:
            typer.echo(f"  {time.monotonic() - begin:5.1f} s  {text}", err=True)

        say("reading")
        data = open_dataset(target, settings(options))
        found = check_dataset(data, seed=seed, scores=known, say=say)
        if output is not None:
            _write(found, output, _command(target, options, scores, seed))
        if as_json:
            typer.echo(json_text(found))
            return
        from rich.console import Console

        from rewardgap.report.checks import print_check

        print_statistics({**found["statistics"], "notes": found["notes"], "baselines": []})
        print_check(found, Console(file=sys.stdout, highlight=False))
        if output is not None:
            typer.echo(f"\nPage: {output}/check.html")


def _write(found: dict[str, Any], folder: Path, command: str) -> None:
    from rewardgap.core.store import write_json, write_text
    from rewardgap.report.checks import render

    write_json(folder / "check.json", found)
    write_text(folder / "check.html", render(found, command))


def _command(target: str, options: list[str] | None, scores: Path | None, seed: int) -> str:
    """Return the command as one types it, of every path the last part only, and no secret."""
    from rewardgap.data.catalog import SECRET_OPTIONS

    words = ["rewardgap", "data", "check", Path(target).name if "/" in target else target]
    for option in options or []:
        key, sign, value = option.partition("=")
        value = "..." if key in SECRET_OPTIONS else value
        words += ["--set", key + sign + (Path(value).name if value.startswith(("/", "~")) else value)]
    words += ["--scores", scores.name] if scores is not None else []
    words += ["--seed", str(seed)] if seed else []
    return shlex.join(words)
