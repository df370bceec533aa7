"""The verbs that make a dataset folder and publish it: data prepare, data push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.options import DtypeOption, JsonOption, SeedOption, settings

if TYPE_CHECKING:
    from rewardgap.data.base import PreferenceDataset
    from rewardgap.data.push import Publication
    from rewardgap.studies.spec import StudySpec

SECTIONS = ("generation", "pairing", "split")
"""Parts of a study file that a preparation has too."""


def prepare(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The benchmark's name; pref-lamp is made of a LaMP folder.")
    ],
    source: Annotated[str, typer.Option("--from", metavar="PATH|DATASET", help="What users wrote: a file or dataset.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The dataset folder to write.")],
    rule: Annotated[
        Literal["closest", "generated", "other_user"], typer.Option(help="How a text becomes a pair.")
    ] = "closest",
    policy: Annotated[
        str, typer.Option(help="Writes the alternatives: smollm2-135m, a folder in the hub's layout, or a hub id.")
    ] = "smollm2-135m",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="key=value",
            help="An option of the texts' loader (task=title), or with a dot a setting as study files have it "
            "(generation.max_new_tokens=24, pairing.temperature=0.7, split.support=8).",
        ),
    ] = None,
    limit_users: Annotated[int | None, typer.Option(min=1, help="Users at most, drawn.")] = None,
    rows_per_user: Annotated[int | None, typer.Option(min=1, help="Texts a user at most, drawn.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="What the pairs are published under, for example cc-by-4.0; the source's own.")
    ] = None,
    seed: SeedOption = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at a time.")] = 8,
    dtype: DtypeOption = "float32",
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    threads: Annotated[
        int, typer.Option(min=1, help="Torch threads; the same number gives the same folder, bit for bit.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Make preference pairs of what users wrote, and save them as a dataset folder.

    The same command goes on where it was stopped, and gives the same folder.
    """
    with reported(as_json, resumable=True):
        study = _study(name, source, rule, policy, settings(overrides), seed, batch_size, dtype, device)
        from rewardgap.studies.environment import choose_threads
        from rewardgap.studies.prepare import Preparation, prepare
        from rewardgap.studies.progress import Terminal

        choose_threads(threads)
        preparation = Preparation(study=study, limit_users=limit_users, rows_per_user=rows_per_user, licence=licence)
        _show(prepare(preparation, output, Terminal()), output, as_json)


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A dataset folder, as `data prepare` wrote it.")],
    repo: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="The dataset on the hub; made where it is not there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Visible to its owner only.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print files, card and what speaks against it; send nothing.")
    ] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Push although something speaks against it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a dataset folder on the hub, unless something speaks against it: no licence, addresses, names."""
    with reported(as_json, resumable=True):
        from rewardgap.data.push import publication, push

        if dry_run:
            found = publication(folder)
            if as_json:
                typer.echo(json_text({"repo": repo, **found.to_json()}))
            else:
                _print_publication(found, repo)
            return
        address = push(folder, repo, private=private, anyway=anyway)
        typer.echo(json.dumps({"repo": repo, "address": address}) if as_json else f"pushed to {address}")


def _study(
    name: str,
    source: str,
    rule: str,
    policy: str,
    options: dict[str, Any],
    seed: int,
    batch_size: int,
    dtype: str,
    device: str,
) -> StudySpec:
    """Return the study whose pairing stage is asked for.

    Raises:
        ConfigError: if a setting is unknown or wrong.
    """
    from rewardgap.core.errors import ConfigError
    from rewardgap.studies.prepare import source_of
    from rewardgap.studies.spec import parse_study

    parts: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    of_loader = {}
    for key, value in options.items():
        section, dot, field = key.partition(".")
        if not dot:
            of_loader[key] = value
        elif section in parts:
            parts[section][field] = value
        else:
            raise ConfigError(f"--set '{key}': there is no part '{section}'; known are {', '.join(SECTIONS)}.")
    if "rule" in parts["pairing"]:
        raise ConfigError("--set 'pairing.rule' is what --rule is for; leave it out.")
    value = {
        "name": name,
        "seed": seed,
        "data": source_of(name, source, of_loader),
        **parts,
        "pairing": {"rule": rule, **parts["pairing"]},
        "policy": policy,
        "dtype": dtype,
        "device": device,
        "batch_size": batch_size,
        "deployments": [{"policy": "zero_shot"}],
    }
    return parse_study(value, "data prepare")


def _show(data: PreferenceDataset, folder: Path, as_json: bool) -> None:
    if as_json:
        found = {
            "folder": str(folder),
            "name": data.name,
            "num_users": len(data.users()),
            "num_rows": len(data),
            "fingerprint": data.fingerprint(),
            "dropped": dict(data.dropped),
            "notes": list(data.notes),
        }
        typer.echo(json_text(found))
        return
    dropped = ", ".join(f"{reason} {count}" for reason, count in data.dropped.items()) or "none"
    typer.echo(f"{data.name}: {len(data)} pairs of {len(data.users())} users in {folder}")
    typer.echo(f"  left out     {dropped}")
    typer.echo(f"  fingerprint  {data.fingerprint()[:16]}")
    for note in data.notes:
        typer.echo(f"\nNote: {note}")


def _print_publication(found: Publication, repo: str) -> None:
    typer.echo(f"{found.name} would go to {repo}; nothing is sent")
    width = max(map(len, found.files))
    for path, size in found.files.items():
        typer.echo(f"  {path:{width}}  {size:>12,} bytes")
    typer.echo("\n" + "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in found.card))
    if not found.findings:
        typer.echo("Nothing speaks against it.")
    for finding in found.findings:
        typer.echo(f"{finding.kind}: {finding.sentence}")
