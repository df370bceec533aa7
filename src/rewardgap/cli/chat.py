"""The verb `chat`: guided text in the terminal as it is written, with what guidance changed."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewardgap.cli.errors import INTERRUPTED, one_line, reported
from rewardgap.cli.options import (
    BackboneOption,
    DtypeOption,
    JsonOption,
    OnLongOption,
    PromptTokensOption,
    SeedOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rewardgap.cli.conversation import Conversation


def chat(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="smollm2-135m, a folder, or a hub id.")],
    prompt: Annotated[str | None, typer.Argument(help="One prompt; asked for in the terminal unless given.")] = None,
    model: Annotated[Path | None, typer.Option(help="Steer by this reward model's folder.")] = None,
    states: Annotated[Path | None, typer.Option(help="User states, as `adapt` wrote them.")] = None,
    user: Annotated[str | None, typer.Option(help="For whom it is written; a cold start unless given.")] = None,
    decoder: Annotated[
        str | None, typer.Option(help="args_greedy with a model, greedy without; see `rewardgap decoders`.")
    ] = None,
    guidance_weight: Annotated[float | None, typer.Option(help="λ, with --model; 1 unless given.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Candidates a step; 10 unless given.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of decoders that draw.")] = None,
    show_alternatives: Annotated[
        bool, typer.Option("--show-alternatives", help="Show what the policy alone would have taken.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Write the unguided completion too.")] = False,
    backbone: BackboneOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated at most.")] = 128,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="End tokens may not come before.")] = 1,
    max_prompt_tokens: PromptTokensOption = None,
    on_long: OnLongOption = "error",
    first_line: Annotated[bool, typer.Option("--first-line", help="Completions are one line.")] = False,
    dtype: DtypeOption = "float32",
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to a policy, steered for a user: tokens appear as they are chosen, those that guidance changed are marked.

    In the terminal /new starts over, /user and /weight change user and λ, an empty line ends. Ctrl-C ends a completion.
    """
    with reported(as_json), tempfile.TemporaryDirectory() as scratch:
        from rewardgap.core.errors import ConfigError

        if model is None and (states is not None or user is not None or plain):
            given = "--states" if states is not None else "--user" if user is not None else "--plain"
            raise ConfigError(f"{given} goes with a reward model; give its folder with --model.")
        from rewardgap.backbones.features import FeatureCache
        from rewardgap.cli.conversation import Conversation
        from rewardgap.cli.stream import Palette
        from rewardgap.policies.base import GenerationSettings
        from rewardgap.rewards.state_files import load_states
        from rewardgap.studies import single
        from rewardgap.studies.environment import choose_threads

        options = {"guidance_weight": guidance_weight, "top_k": top_k, "temperature": temperature}
        name = decoder or ("greedy" if model is None else "args_greedy")
        single.build_decoder(name, **options)
        choose_threads(threads)
        base = single.open_backbone(policy, dtype)
        lengths = GenerationSettings(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            on_long=on_long,
            first_line=first_line,
            seed=seed,
        )
        found = None
        if model is not None:
            fitted = single.open_model(model, backbone, dtype, base)
            fitted.features = FeatureCache(Path(scratch))  # what is said here is kept nowhere
            found = single.States.of(fitted, load_states(states, fitted) if states else {})
        talk = Conversation(base, lengths, name, options, found, user, plain, Palette.of_terminal(show_alternatives))
        talk.check()
        if prompt is None and _is_terminal():
            _listen(talk, _typed(), as_json)
            return
        text = prompt if prompt is not None else sys.stdin.read().strip()
        if not text.strip():
            raise ConfigError("the prompt is empty; give a text.")
        if not talk.answer(text, as_json):
            raise typer.Exit(INTERRUPTED)


def _listen(talk: Conversation, lines: Iterable[str], as_json: bool) -> None:
    """Answer line after line until one is empty; what cannot be answered is said, and the talk goes on."""
    from rewardgap.core.errors import RewardGapError

    for line in lines:
        try:
            if line.startswith("/"):
                talk.command(line.rstrip())
            else:
                talk.answer(line, as_json)
        except RewardGapError as error:
            typer.echo(f"error: {one_line(str(error))}", err=True)


def _typed() -> Iterator[str]:
    """Yield what is typed, until an empty line or the end of input; Ctrl-C while waiting ends the program."""
    if importlib.util.find_spec("readline") is not None:
        importlib.import_module("readline")  # arrow keys and earlier lines
    while True:
        try:
            line = input("> ")
        except EOFError:
            typer.echo()
            return
        if not line.strip():
            return
        yield line


def _is_terminal() -> bool:
    return sys.stdin.isatty()
