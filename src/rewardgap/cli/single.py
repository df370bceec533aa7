"""The verbs of single stages on one's own data: fit, adapt, score, generate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rewardgap.cli.errors import json_text, reported
from rewardgap.cli.options import (
    BackboneOption,
    DataOption,
    DataSetOption,
    DtypeOption,
    JsonOption,
    LimitOption,
    ModelArgument,
    OnLongOption,
    PromptTokensOption,
    SeedOption,
    ThreadsOption,
    settings,
)

if TYPE_CHECKING:
    from rewardgap.data.base import PreferenceDataset
    from rewardgap.data.prompts import AskedPrompt
    from rewardgap.stats.bootstrap import Estimate
    from rewardgap.studies.single import Scored


def fit(
    data: DataOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model's folder; made, or empty.")],
    method: Annotated[str, typer.Option(help="A reward model, see `rewardgap methods`.")] = "lore",
    backbone: Annotated[
        str, typer.Option(help="smollm2-135m, a folder in the hub's layout, or a hub id.")
    ] = "smollm2-135m",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value", help="A setting of the method.")
    ] = None,
    data_options: DataSetOption = None,
    fit_mode: Annotated[
        Literal["frozen", "lora"] | None,
        typer.Option(help="Frozen features, or with an adapter; the method's own unless given."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the pairs, with an adapter.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pairs a step, with an adapter.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the adapter.")] = None,
    max_prompt_tokens: PromptTokensOption = None,
    on_long: OnLongOption = "error",
    dtype: DtypeOption = "float32",
    seed: SeedOption = 0,
    limit: LimitOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a reward model on all users of a preference file and save it."""
    with reported(as_json):
        from rewardgap.core.errors import ConfigError
        from rewardgap.rewards.catalog import build_head

        options = settings(overrides)
        build_head(method, **options)
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ConfigError(f"'{output}' is there already and not empty; choose another --output.")
        pairs = _pairs(data, data_options)
        from rewardgap.rewards.build import reward_model
        from rewardgap.studies.environment import choose_threads
        from rewardgap.studies.progress import Terminal
        from rewardgap.studies.single import open_backbone

        choose_threads(threads)
        model = reward_model(
            method,
            open_backbone(backbone, dtype),
            fit_mode=fit_mode,
            max_prompt_tokens=max_prompt_tokens,
            on_long=on_long,
            **options,
        )
        with Terminal().task(f"fit {model.name}", 1) as task:
            model.fit(
                pairs.pairs[:limit],
                seed=seed,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                progress=task,
            )
        model.save(output)
        facts: dict[str, Any] = {
            "model": model.name,
            "backbone": model.base.name,
            "users": len(model.head.users),
            "pairs": len(pairs.pairs[:limit]),
            **model.head.diagnostics,
        }
        if as_json:
            typer.echo(json.dumps(facts))
            return
        typer.echo(f"{model.name} on {model.base.name}: {facts['pairs']} pairs of {facts['users']} users")
        for name, value in model.head.diagnostics.items():
            typer.echo(f"  {name:13} {value:.4g}")
        typer.echo(f"saved in {output}")


def adapt(
    model: ModelArgument,
    data: DataOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The states' file, for example states.safetensors.")],
    data_options: DataSetOption = None,
    backbone: BackboneOption = None,
    dtype: DtypeOption = "float32",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Adapt a fitted reward model to every user of a preference file; one state a user."""
    with reported(as_json):
        from rewardgap.core.errors import ConfigError

        if output.is_dir():
            raise ConfigError(f"--output '{output}' is a folder; name a file in it, for example states.safetensors.")
        pairs = _pairs(data, data_options)
        from rewardgap.rewards.state_files import save_states
        from rewardgap.studies.environment import choose_threads
        from rewardgap.studies.single import adapt_users, open_model

        choose_threads(threads)
        fitted = open_model(model, backbone, dtype)
        states = adapt_users(fitted, pairs)
        save_states(output, fitted, states)
        support = {user: state.num_support for user, state in states.items()}
        if as_json:
            typer.echo(json_text({"model": fitted.name, "users": support}))
        else:
            typer.echo(f"{len(states)} states of {fitted.name} from {sum(support.values())} pairs, saved in {output}")


def score(
    model: ModelArgument,
    data: DataOption,
    states: Annotated[Path | None, typer.Option(help="User states, as `adapt` wrote them.")] = None,
    data_options: DataSetOption = None,
    backbone: BackboneOption = None,
    dtype: DtypeOption = "float32",
    limit: LimitOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score pairs: a JSON line each on stdout, the accuracy on stderr; with --json one document."""
    with reported(as_json):
        pairs = _pairs(data, data_options)
        from rewardgap.rewards.state_files import load_states
        from rewardgap.studies.environment import choose_threads
        from rewardgap.studies.single import is_personal, open_model, score_pairs

        choose_threads(threads)
        fitted = open_model(model, backbone, dtype)
        scored = score_pairs(fitted, pairs.pairs[:limit], load_states(states, fitted) if states else {})
        if as_json:
            typer.echo(json_text({**_accuracy(scored), "pairs": scored.records}))
            return
        for record in scored.records:
            typer.echo(json_text(record))
        typer.echo(f"accuracy {_points(scored.accuracy)}; {scored.ties} ties, each counted as one half", err=True)
        cold = scored.sources.get("cold_start", 0)
        if cold and is_personal(fitted):
            typer.echo(f"{cold} of {scored.accuracy.n_users} users have no state: cold start.", err=True)


def generate(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="smollm2-135m, a folder, or a hub id.")],
    prompts: Annotated[str, typer.Option(help="JSON lines with user_id and prompt; - for standard input.")],
    model: Annotated[Path | None, typer.Option(help="Steer by this reward model's folder.")] = None,
    states: Annotated[Path | None, typer.Option(help="User states, as `adapt` wrote them.")] = None,
    decoder: Annotated[
        str | None, typer.Option(help="args_greedy with a model, greedy without; see `rewardgap decoders`.")
    ] = None,
    guidance_weight: Annotated[float | None, typer.Option(help="λ, with --model.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Candidates a step.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of decoders that draw.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value", help="An option of the decoder, for example n=8.")
    ] = None,
    demonstrations: Annotated[str | None, typer.Option(help="A preference file to show examples from.")] = None,
    num_demonstrations: Annotated[int | None, typer.Option(min=0, help="Shots; all unless given.")] = None,
    retriever: Annotated[str | None, typer.Option(help="Which: recent unless given, bm25, uniform.")] = None,
    backbone: BackboneOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated at most.")] = 32,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="End tokens may not come before.")] = 1,
    max_prompt_tokens: PromptTokensOption = None,
    on_long: OnLongOption = "error",
    first_line: Annotated[bool, typer.Option("--first-line", help="Completions are one line.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 8,
    dtype: DtypeOption = "float32",
    seed: SeedOption = 0,
    limit: LimitOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a completion for each prompt: zero-shot, steered by a reward model, or with demonstrations."""
    with reported(as_json):
        from rewardgap.core.errors import ConfigError

        if model is not None and demonstrations is not None:
            raise ConfigError("--model and --demonstrations are two deployments; give one of them.")
        if model is None and states is not None:
            raise ConfigError("--states belong to a reward model; give its folder with --model.")
        from rewardgap.policies.base import GenerationSettings
        from rewardgap.rewards.state_files import load_states
        from rewardgap.studies import single
        from rewardgap.studies.environment import choose_threads

        own = {"guidance_weight": guidance_weight, "top_k": top_k, "temperature": temperature}
        given, options = {name for name, value in own.items() if value is not None}, settings(overrides)
        twice = sorted(given & set(options))
        if twice:
            raise ConfigError(f"{twice[0]} is given twice: by its own option, and by --set.")
        rule = single.build_decoder(decoder or ("greedy" if model is None else "args_greedy"), **(own | options))
        asked = _prompts(prompts)[:limit]
        users = single.users_of(asked)
        shown = _pairs(demonstrations, None) if demonstrations else None
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
        if model is not None:
            fitted = single.open_model(model, backbone, dtype, base)
            found = single.States.of(fitted, load_states(states, fitted) if states else {})
            deployed = single.deploy_guided(base, rule, lengths, found, users)
            missing = "no state: cold start" if single.is_personal(fitted) else ""
        else:
            deployed = single.deploy_plain(base, rule, lengths, users, shown, num_demonstrations, retriever)
            missing = "no demonstrations: none shown"
        written: list[dict[str, Any]] = []

        def show(record: dict[str, Any]) -> None:
            written.append(record)
            if not as_json:
                typer.echo(json_text(record))
                sys.stdout.flush()

        def document() -> None:
            facts = {"policy": base.name, "decoder": rule.name, "users": len(users), "users_without": deployed.without}
            finished = len(written) == len(asked)
            typer.echo(json_text({**facts, "finished": finished, "completions": written}))

        try:
            single.write_completions(deployed, asked, batch_size, show)
        except KeyboardInterrupt:
            if as_json:
                document()
            raise
        if deployed.without and missing:
            typer.echo(f"{deployed.without} of {len(users)} users have {missing}.", err=True)
        if as_json:
            document()


def _pairs(data: str, options: list[str] | None) -> PreferenceDataset:
    from rewardgap.cli.data import open_dataset
    from rewardgap.core.errors import ConfigError
    from rewardgap.data.base import PreferenceDataset

    found = open_dataset(data, settings(options, "--data-set"))
    if not isinstance(found, PreferenceDataset):
        raise ConfigError(f"dataset '{data}' holds authored texts; a pairing rule makes pairs of them, in a study.")
    for reason, count in found.dropped.items():
        typer.echo(f"{count} rows left out: {reason}", err=True)
    return found


def _prompts(place: str) -> list[AskedPrompt]:
    from rewardgap.data.prompts import read_prompts
    from rewardgap.data.reading import read_raw_rows, split_rows

    if place == "-":
        return read_prompts(split_rows(sys.stdin.buffer.read(), "standard input"))
    return read_prompts(read_raw_rows(Path(place)))


def _accuracy(scored: Scored) -> dict[str, Any]:
    found = scored.accuracy
    return {
        "accuracy": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "n_users": found.n_users,
        "n_examples": found.n_examples,
        "ties": scored.ties,
        "users_by_state": scored.sources,
    }


def _points(found: Estimate) -> str:
    if found.value is None:
        return "–"
    interval = "" if found.low is None or found.high is None else f" ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{100 * found.value:.1f} points{interval}, {found.n_examples} pairs of {found.n_users} users"
