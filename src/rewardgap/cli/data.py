"""The verbs about data: list, show, validate; check, prepare and push are in modules of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewardgap.cli import check, prepare
from rewardgap.cli.catalogues import show as show_cards
from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.options import JsonOption, settings

if TYPE_CHECKING:
    from rewardgap.data.base import AuthoredDataset, PreferenceDataset

app = typer.Typer(help="Datasets: what there is, and whether your own can be used.", no_args_is_help=True)
TELLING_OPTIONS = {"task": "authored", "prompt_template": "authored", "delimiter": "csv"}
"""Options of one loader only: whoever sets one has named it."""
app.command("check")(check.check)
app.command("prepare")(prepare.prepare)
app.command("push")(prepare.push)


@app.command("list")
def list_datasets(as_json: JsonOption = False) -> None:
    """List the datasets."""
    with reported(as_json):
        from rewardgap.cli.cards import datasets

        show_cards(datasets(), "dataset", None, as_json)


@app.command("show")
def show_dataset(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A dataset's name.")], as_json: JsonOption = False
) -> None:
    """Print a dataset's whole card."""
    with reported(as_json):
        from rewardgap.cli.cards import datasets

        show_cards(datasets(), "dataset", name, as_json)


@app.command("validate")
def validate(
    target: Annotated[str, typer.Argument(metavar="PATH|NAME", help="A file of your own, or a dataset's name.")],
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value", help="An option of the dataset's loader.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read a dataset whole and say what is in it; the first bad row is named and ends it with exit code 3.

    A file's columns tell whether it holds pairs, ratings, choices, thumbs or, with --set task=... or
    --set prompt_template=..., authored texts; for anything else name the loader and --set path=...
    """
    with reported(as_json):
        data = open_dataset(target, settings(options))
        found = {**data.statistics(), "notes": list(data.notes), "baselines": _baselines(data)}
        if as_json:
            typer.echo(json_text(found))
        else:
            print_statistics(found)


def open_dataset(target: str, options: dict[str, Any]) -> PreferenceDataset | AuthoredDataset:
    """Load a dataset by its name, or a file of one's own.

    Raises:
        ConfigError: if the dataset holds no texts.
    """
    from rewardgap.core.errors import ConfigError
    from rewardgap.data.base import AuthoredDataset, PreferenceDataset
    from rewardgap.data.catalog import DATASETS, load_dataset
    from rewardgap.data.recognising import loader_of

    looks_like_file = "/" in target or "." in target or Path(target).exists()
    if target in DATASETS.names() or not looks_like_file:
        data = load_dataset(target, **options)
    else:
        loader = next((name for option, name in TELLING_OPTIONS.items() if option in options), None)
        data = load_dataset(loader or loader_of(Path(target), options.get("columns")), **{"path": target, **options})
    if not isinstance(data, (PreferenceDataset, AuthoredDataset)):
        raise ConfigError(f"dataset '{target}' holds features, not texts.")
    return data


def _baselines(data: PreferenceDataset | AuthoredDataset) -> list[dict[str, Any]]:
    from rewardgap.data.base import PreferenceDataset
    from rewardgap.data.baselines import RANKERS
    from rewardgap.stats.bootstrap import clustered_mean

    if not isinstance(data, PreferenceDataset):
        return []
    users = [pair.user_id for pair in data.pairs]
    # Whole users, as `data check` draws them: on many rows a draw within users costs more than reading the file.
    found = [(ranker, clustered_mean(ranker(data.pairs), users, within=False)) for ranker in RANKERS]
    return [
        {"name": ranker.name, "summary": ranker.summary, "value": e.value, "ci_low": e.low, "ci_high": e.high}
        for ranker, e in found
    ]


def print_statistics(found: dict[str, Any]) -> None:
    """Print what `validate` found."""
    typer.echo(f"{found['name']}: {found['num_rows']} rows of {found['num_users']} users, all readable")
    dropped = ", ".join(f"{reason} {count}" for reason, count in found["dropped"].items()) or "none"
    lines = [
        ("left out", dropped),
        ("distinct prompts", str(found["num_prompts"])),
        ("with reference", f"{found['share_with_reference']:.0%}"),
        ("with timestamp", f"{found['share_with_timestamp']:.0%}"),
        ("fingerprint", found["fingerprint"][:16]),
    ]
    for label, text in lines:
        typer.echo(f"  {label:17} {text}")
    typer.echo(f"\n  {'':17} {'fewest':>8} {'median':>8} {'most':>8}")
    for key in ("rows_per_user", "prompt_words", "chosen_words", "rejected_words", "reference_words"):
        counts = found.get(key)
        if counts:
            label = key.replace("_", " ")
            typer.echo(f"  {label:17} {counts['min']:>8} {counts['median']:>8} {counts['max']:>8}")
    if found["baselines"]:
        typer.echo("\nWhat ranks these pairs without a model, in points, mean over users:")
    for row in found["baselines"]:
        interval = "" if row["ci_low"] is None else f" ({100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f})"
        typer.echo(f"  {row['name']:17} {100 * row['value']:.1f}{interval}: {row['summary']}")
    if found["num_users"] < 2:
        typer.echo("\nNote: one user only; a study needs training users and adapt users, 2 at least.")
    for note in found["notes"]:
        typer.echo(f"\nNote: {note}")
