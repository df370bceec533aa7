"""The verbs that list what there is: methods, decoders, metrics, and docs, which writes the same as pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.options import JsonOption

if TYPE_CHECKING:
    from rewardgap.cli.cards import CardView

NameArgument = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this entry's whole card.")]

PAGES = (
    ("methods.md", "methods", "Methods", "Reward models, judges, and deployments that need neither."),
    ("decoders.md", "decoders", "Decoders", "How the next token is chosen; guided ones take a reward model."),
    ("metrics.md", "metrics", "Metrics", "What is measured at each stage. A missing score is missing, never zero."),
    ("datasets.md", "datasets", "Datasets", "What a study can read, your own data among them."),
    ("retrievers.md", "retrievers", "Retrievers", "Which demonstrations an in-context deployment shows."),
)


def methods(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """List the reward models, the judges and the deployments without either, or print one card."""
    with reported(as_json):
        from rewardgap.cli.cards import methods

        show(methods(), "method", name, as_json)


def decoders(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """List the decoders, or print one card."""
    with reported(as_json):
        from rewardgap.cli.cards import decoders

        show(decoders(), "decoder", name, as_json)


def metrics(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """List the metrics, or print one card."""
    with reported(as_json):
        from rewardgap.cli.cards import metrics

        show(metrics(), "metric", name, as_json)


def docs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the pages go, for example docs/catalogue.")],
    as_json: JsonOption = False,
) -> None:
    """Write the catalogues as Markdown pages, made from the cards; the same cards give the same bytes."""
    with reported(as_json):
        from rewardgap.cli import cards, pages
        from rewardgap.core.store import write_text

        listed = [(file, title, getattr(cards, kind)()) for file, kind, title, _ in PAGES]
        for (file, title, views), (_, _, _, opening) in zip(listed, PAGES, strict=True):
            write_text(folder / file, pages.page(title, opening, views))
        write_text(folder / "README.md", pages.index(listed))
        written = ["README.md", *(file for file, _, _ in listed)]
        typer.echo(json.dumps({"written": written}) if as_json else f"{len(written)} pages in {folder}")


def show(views: list[CardView], kind: str, name: str | None, as_json: bool) -> None:
    """Print a table of cards, or the whole card of one name."""
    from rewardgap.cli.cards import named

    if name is None:
        if as_json:
            typer.echo(json_text([view.to_json() for view in views]))
        else:
            _print_table(views)
        return
    view = named(views, kind, name)
    if as_json:
        typer.echo(json_text(view.to_json()))
    else:
        _print_card(view)


def _print_table(views: list[CardView]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = list(views[0].columns) if views else []
    for column in ("name", *columns):
        table.add_column(column, no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for view in views:
        table.add_row(view.name, *(view.columns[column] for column in columns), view.summary)
    Console(file=sys.stdout, highlight=False, markup=False).print(table)


def _print_card(view: CardView) -> None:
    typer.echo(f"{view.name}: {view.summary}\n")
    labels = {**view.columns, **{label.lower(): text for label, text in view.facts.items()}}
    width = max(map(len, labels))
    for label, text in labels.items():
        typer.echo(f"  {label:{width}}  {text}")
    if view.settings:
        typer.echo("\nSettings")
        width = max(len(entry.name) for entry in view.settings)
        for entry in view.settings:
            typer.echo(f"  {entry.name:{width}}  {entry.meaning} (default: {entry.default})")
    if view.deviations is not None:
        typer.echo("\nDifferences from the source" + ("" if view.deviations else ": none"))
        for sentence in view.deviations:
            typer.echo(f"  - {sentence}")
    for sentence in view.notes:
        typer.echo(f"\nNote: {sentence}")
