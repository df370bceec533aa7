"""The verb `tune`: which guidance weight to use, found on users that nobody is judged on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.options import JsonOption, ThreadsOption
from rewardgap.cli.study import OutputOption, SetOption

if TYPE_CHECKING:
    from collections.abc import Mapping


def tune(
    study: Annotated[Path, typer.Argument(help="A study file (YAML).")],
    weights: Annotated[
        list[float] | None, typer.Option(help="Values of λ to try, 0 always among them; 0.25 0.5 1 2 4 unless given.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="Which one steers, by label or method; the study's first unless given.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Another one, which rewards the texts; the study's first other unless given.")
    ] = None,
    decoder: Annotated[str, typer.Option(help="A guided one; see `rewardgap decoders`.")] = "args_greedy",
    top_k: Annotated[int | None, typer.Option(min=1, help="Candidates a step; the decoder's own unless given.")] = None,
    metric: Annotated[str, typer.Option(help="Chooses, where users wrote references; see `rewardgap metrics`.")] = (
        "rouge1"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Held-out rows at most, drawn.")] = None,
    output: OutputOption = None,
    overrides: SetOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the guidance weight on held-out prompts of the training users, and draw reward against behaviour.

    Writes tune.json, tune.csv and tune.svg into the study's folder, where a run finds the same fits; finished weights
    are kept, and the same command goes on where it was stopped. No adapt user's query is read by the choice.
    """
    with reported(as_json, resumable=True):
        from rewardgap.studies.spec import load_study
        from rewardgap.studies.tuning_settings import WEIGHTS, TuningSettings

        settings = TuningSettings(
            weights=tuple(weights) if weights else WEIGHTS,
            reward_model=reward_model,
            judge=judge,
            decoder=decoder,
            top_k=top_k,
            metric=metric,
            limit=limit,
        )
        loaded = load_study(study, overrides)
        folder = output or Path("runs") / loaded.name
        from rewardgap.studies.environment import choose_threads, threads_of
        from rewardgap.studies.progress import Terminal
        from rewardgap.studies.tuning import tune as run_tuning

        choose_threads(threads if threads is not None else threads_of(folder))
        found = run_tuning(loaded, settings, folder, Terminal())
        _write(found, folder)
        if as_json:
            typer.echo(json_text(found))
            return
        from rich.console import Console

        from rewardgap.report.tuning import print_tuning

        print_tuning(found, Console(file=sys.stdout, highlight=False))
        typer.echo(f"\nCurve: {folder}/tune.svg")


def _write(found: Mapping[str, Any], folder: Path) -> None:
    from rewardgap.core.store import write_json, write_text
    from rewardgap.report.tuning import csv_text, goodhart

    write_json(folder / "tune.json", found)
    write_text(folder / "tune.csv", csv_text(found))
    write_text(folder / "tune.svg", goodhart(found))
