"""The command line: one function a verb, each a few lines around the same objects that Python users call."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardgap.cli import bench, catalogues, chat, compare, data, doctor, single, study, tune
from rewardgap.cli.options import NumberLists

app = typer.Typer(
    name="rewardgap",
    help="Measure how far the accuracy of personalised reward models is from the text they make a policy write.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(study.demo)
app.command()(study.run)
app.command()(study.report)
app.command()(compare.compare)
app.command(cls=NumberLists)(tune.tune)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.command()(single.fit)
app.command()(single.adapt)
app.command()(single.score)
app.command()(single.generate)
app.command()(chat.chat)
app.command()(catalogues.methods)
app.command()(catalogues.decoders)
app.command()(catalogues.metrics)
app.command()(catalogues.docs)
app.command()(doctor.doctor)


def _version(show: bool) -> None:
    if show:
        import rewardgap

        typer.echo(rewardgap.__version__)
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Measure how far the ranking accuracy of personalised reward models is from the text they make a policy write."""


def main() -> None:
    """Run the command line."""
    app()
