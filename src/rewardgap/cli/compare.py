"""The verb `compare`: two finished runs side by side, with a gate for continuous integration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.options import JsonOption, SeedOption

if TYPE_CHECKING:
    from rewardgap.studies.comparing import Compared, RunComparison

HEADLINES = ("rouge1", "rgd_topk", "accuracy", "win_cross")
"""Metrics that are shown unless others are asked for; all are in the JSON."""


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The results folder to compare with.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The results folder that is new.")],
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this metric; may be given again.")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Leave with code 6 where a difference B - A meets it, such as 'rouge1.low < -0.01'.",
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs deployment by deployment, on the users that both have; loads no model."""
    with reported(as_json):
        from rewardgap.core.errors import GateError
        from rewardgap.studies.comparing import Gate, compare_runs

        gates = [Gate.parse(text) for text in fail_if or ()]
        named = list(dict.fromkeys([*(metrics or ()), *(gate.metric for gate in gates)])) if metrics else None
        found = compare_runs(run_a, run_b, metrics=named, seed=seed)
        met = [(gate, sentence) for gate in gates for sentence in gate.failures(found)]
        if as_json:
            failed = [{"condition": gate.text, "line": sentence} for gate, sentence in met]
            typer.echo(json_text(found.to_json() | {"failed": failed}))
            raise typer.Exit(GateError.exit_code if met else 0)
        _print(found, metrics)
        if met:
            sentences = "; ".join(f"{sentence}, and '{gate.text}' fails" for gate, sentence in met)
            raise GateError(f"{sentences}.")


def _print(found: RunComparison, metrics: list[str] | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    for title, pairs in (("The studies differ in", found.settings), ("They were run with", found.versions)):
        if pairs:
            console.print(f"{title}:")
            for name, one, other in pairs:
                console.print(Text(f"  {name}: {_shown(one)} -> {_shown(other)}"))
    if found.ignored:
        console.print(f"Lines are matched without {', '.join(found.ignored)}, in which the runs differ as a whole.")
    lines = [line for line in found.lines if metrics or line.metric in HEADLINES]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("metric", "deployment or reward model"):
        table.add_column(heading)
    for heading in ("A", "B", "B - A", "95 % interval", "p (Holm)", "users"):
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(f"{line.metric} ({line.users})", Text(line.label), *_numbers(line))
    console.print(table)
    for title, names in (("A alone has", found.only_a), ("B alone has", found.only_b)):
        if names:
            console.print(Text(f"{title} {len(names)} lines, first: {names[0]}"))
    hidden = len(found.lines) - len(lines)
    if hidden:
        console.print(f"{hidden} lines of other metrics: --json, or --metric NAME.")


def _numbers(line: Compared) -> tuple[str, ...]:
    if line.difference is None:
        return ("", "", "", str(line.reason), "", "0")
    interval = "" if line.low is None or line.high is None else f"{line.low:+.4f} to {line.high:+.4f}"
    p = "" if line.p_holm is None else f"{line.p_holm:.3f}"
    return (f"{line.a:.4f}", f"{line.b:.4f}", f"{line.difference:+.4f}", interval, p, str(line.n_users))


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)
