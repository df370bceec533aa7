"""Options that several verbs share, spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Torch threads; found by a short probe unless given.")]
DataOption = Annotated[str, typer.Option("--data", help="A preference file (JSON lines, plain or .gz), or a dataset.")]
DataSetOption = Annotated[
    list[str] | None, typer.Option("--data-set", metavar="key=value", help="An option of the data's loader.")
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A reward model's folder, as `fit` wrote it.")]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="Where the model's backbone is; by its recorded name unless given.")
]
DtypeOption = Annotated[
    Literal["float32", "float64", "bfloat16", "float16"], typer.Option(help="Number type of the weights.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Decides every draw.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")]
PromptTokensOption = Annotated[int | None, typer.Option(min=1, help="Longest prompt, demonstrations left out.")]
OnLongOption = Annotated[Literal["error", "truncate_prompt"], typer.Option(help="What happens to a longer prompt.")]


def settings(given: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """Return "key=value" settings as a mapping, each value read as YAML.

    Args:
        given: what the option was given, once a setting.
        option: the option's name, for messages.

    Raises:
        ConfigError: if one has no '=', or a value that is not YAML.

    Example:
        >>> settings(["rank=4", "loss_agg=pair"])
        {'rank': 4, 'loss_agg': 'pair'}
    """
    import yaml

    from rewardgap.core.errors import ConfigError

    out: dict[str, Any] = {}
    for text in given or []:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"{option} '{text}' is not of the form key=value.")
        try:
            out[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} '{text}': the value is not YAML.") from error
    return out


class NumberLists(TyperCommand):
    """A command whose repeatable options of numbers take several at once: `--weights 0 0.5 1`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option's name before each further number."""
        lists = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        spread: list[str] = []
        inside = ""
        for word in args:
            if inside and spread[-1] != inside and _is_number(word):
                spread.append(inside)
            elif word in lists:
                inside = word
            elif not _is_number(word):
                inside = ""
            spread.append(word)
        return super().parse_args(ctx, spread)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
