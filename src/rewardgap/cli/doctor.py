"""The verb that looks at the installation: what is there, what is missing, and whether a model can be used."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.options import DtypeOption, JsonOption


def doctor(
    model: Annotated[str | None, typer.Option(help="Load this model and check it too.")] = None,
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, how fast, and what is missing (exit code 4); with --model, whether a model can be used."""
    with reported(as_json):
        from rewardgap.core.errors import ModelError
        from rewardgap.studies.health import check_model, installation, to_json

        findings = installation()
        if model is not None:
            findings += check_model(model, dtype)
        if as_json:
            typer.echo(json_text(to_json(findings)))
        else:
            width = max(len(found.name) for found in findings)
            for found in findings:
                typer.echo(f"{found.verdict:8} {found.name:{width}}  {found.text}")
        missing = [found.name for found in findings if found.verdict == "missing"]
        if missing:
            raise ModelError(f"missing or unfit: {', '.join(missing)}.")
