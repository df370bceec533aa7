"""The verbs that measure this program on this machine, and write what they measured as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewardgap.cli.errors import reported
from rewardgap.cli.options import DtypeOption, JsonOption, NumberLists, ThreadsOption, settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone

app = typer.Typer(help="Measure speed and memory: ratios within one run, on any machine.", no_args_is_help=True)

OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write the figures to this JSON file.")]
DataOption = Annotated[str, typer.Option(help="Whose prompts are read: a dataset or file with texts users wrote.")]
DataSetOption = Annotated[list[str] | None, typer.Option("--data-set", help="An option of the loader: task=title.")]


@app.command()
def heads(
    only: Annotated[list[str] | None, typer.Option(help="Only this method; may be given more than once.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Training pairs.")] = 20_000,
    width: Annotated[int, typer.Option(min=1, help="Features.")] = 576,
    users: Annotated[int, typer.Option(min=1, help="Training users; as many new ones are adapted.")] = 500,
    support: Annotated[int, typer.Option(min=0, help="Pairs a new user reveals.")] = 8,
    longer: Annotated[bool, typer.Option(help="Fit again with five times the steps, to see what that gains.")] = True,
    threads: ThreadsOption = 1,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit every head on the same planted features and adapt new users: seconds, memory, and whether the fit is done."""
    with reported(as_json):
        from dataclasses import asdict

        from rewardgap.bench.heads import HeadSizes, measure_heads
        from rewardgap.rewards.catalog import REWARD_MODELS
        from rewardgap.studies.environment import choose_threads
        from rewardgap.studies.progress import Terminal

        threads = choose_threads(threads)
        methods = [
            REWARD_MODELS[name].name for name in only or [card.name for card in REWARD_MODELS if card.family == "head"]
        ]
        sizes = HeadSizes(pairs, width, users, support)
        with Terminal().task("fit and adapt", len(methods)) as task:
            costs = measure_heads(methods, sizes, threads=threads, longer=longer, progress=task)
        found = [{**asdict(cost), "gain_of_longer": cost.gain_of_longer} for cost in costs]
        rows = [
            (
                cost.method,
                f"{cost.fit_seconds:.1f}",
                f"{cost.adapt_milliseconds:.2f}",
                f"{cost.peak_bytes / 2**30:.2f}",
                f"{cost.loss:.4f}",
                f"{100 * cost.gain_of_longer:.2f}" if longer else "—",
                f"{100 * cost.seen:.1f}",
                f"{100 * cost.unseen:.1f}",
            )
            for cost in costs
        ]
        title = ("method", "fit s", "adapt ms/user", "peak GiB", "loss", "5x steps gain %", "seen %", "unseen %")
        _finish({"sizes": asdict(sizes), "threads": threads, "heads": found}, title, rows, output, as_json)


@app.command()
def train(
    backbone: Annotated[str, typer.Option(help="The network: a short name, hub id or folder.")] = "smollm2-135m",
    shape: Annotated[str | None, typer.Option(help="Random weights of this size instead, e.g. qwen2.5-1.5b.")] = None,
    trl: Annotated[bool, typer.Option(help="Let TRL's RewardTrainer take turns on the same ids.")] = True,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 200,
    completion_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each completion.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs a step.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="Steps a turn; the first is not counted.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 3,
    dtype: DtypeOption = "float32",
    device: Annotated[str, typer.Option(help="Where the network runs.")] = "cpu",
    threads: ThreadsOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter with a reward head, pairs packed behind one prompt, in turns with TRL's RewardTrainer."""
    with reported(as_json):
        from dataclasses import asdict

        from rewardgap.bench.train import TrainSizes, measure_training
        from rewardgap.studies.environment import choose_threads
        from rewardgap.studies.progress import Terminal

        threads = choose_threads(threads)
        network = _network(backbone, shape, dtype, device)
        sizes = TrainSizes(prompt_tokens, completion_tokens, batch_size, steps, rounds)
        with Terminal().task(f"train on {network.name}", rounds * (3 if trl else 1)) as task:
            found = measure_training(network, sizes, trl=trl, progress=task)
        rows = []
        for name, speed in found["pairs_per_second"].items():
            against = found.get(f"{name}_over_rewardgap")
            span = f"{against['median']:.2f} ({against['low']:.2f} to {against['high']:.2f})" if against else "1"
            rows.append((name, f"{speed:.3f}", span, f"{found['first_loss'][name]:.6f}"))
        facts = {"backbone": network.name, "sizes": asdict(sizes), "threads": threads, "device": device, **found}
        _finish(facts, ("side", "pairs/s", "time, rewardgap = 1", "first loss"), rows, output, as_json)


@app.command(cls=NumberLists, context_settings={"allow_extra_args": True})
def decode(
    context: typer.Context,
    policy: Annotated[str, typer.Option(help="The policy: a short name, hub id or folder.")] = "smollm2-135m",
    shape: Annotated[str | None, typer.Option(help="Random weights of this size instead, e.g. qwen2.5-7b.")] = None,
    top_k: Annotated[list[int] | None, typer.Option("--k", "--top-k", min=2, help="Candidates: 10 40.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="args, reencode: the published ways, in turns.")] = None,
    data: DataOption = "docstrings",
    data_set: DataSetOption = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Prompts are those of about this length.")] = 200,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens of each text.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time, where they are decoded together.")] = 8,
    dtype: DtypeOption = "float32",
    device: Annotated[str, typer.Option(help="Where the networks run.")] = "cpu",
    threads: ThreadsOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode in every way, in turns: what guidance costs over transformers' own greedy search."""
    with reported(as_json):
        from rewardgap.bench.decode import DecodeSizes, measure_decoding
        from rewardgap.bench.prompts import prompts_of_length
        from rewardgap.cli.data import open_dataset
        from rewardgap.studies.environment import choose_threads
        from rewardgap.studies.progress import Terminal

        output = _named_after(context, output, as_json)
        threads = choose_threads(threads)
        network = _network(policy, shape, dtype, device)
        sizes = DecodeSizes(tokens, tuple(top_k or (10, 40)), rounds, batch_size)
        texts = None if shape else open_dataset(data, settings(data_set, "--data-set"))
        prompts = prompts_of_length(network, prompt_tokens, batch_size, texts)
        with Terminal().task(f"decode with {network.name}", 1) as task:
            found = measure_decoding(network, prompts, sizes, against=against or (), progress=task)
        rows = []
        for name, cost in found["ways"].items():
            against_greedy = found["ratios"].get(f"{name} / transformers greedy")
            rows.append((name, f"{cost['milliseconds_a_token']:.1f}", _span(against_greedy)))
        if (sure := found["certificate"]) is not None:
            apart = f"candidates' rewards lie {sure['spread']:.1f} apart; their norm allows {sure['bound']:.0f}"
            rows.append((apart, "", "none pruned"))
        facts = {"threads": threads, "device": device, "data": "random words" if texts is None else texts.name, **found}
        _finish(facts, ("way", "ms a token", "time, transformers greedy = 1"), rows, output, as_json)


@app.command(context_settings={"allow_extra_args": True})
def score(
    context: typer.Context,
    policy: Annotated[str, typer.Option(help="The network: a short name, hub id or folder.")] = "smollm2-135m",
    shape: Annotated[str | None, typer.Option(help="Random weights of this size instead, e.g. qwen2.5-7b.")] = None,
    data: DataOption = "docstrings",
    data_set: DataSetOption = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="The prompt is one of about this length.")] = 200,
    positions: Annotated[int, typer.Option(min=1, help="Tokens of the text that is scored everywhere.")] = 64,
    top_k: Annotated[int, typer.Option("--k", "--top-k", min=1, help="Candidates at each position.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 5,
    dtype: DtypeOption = "float32",
    device: Annotated[str, typer.Option(help="Where the network runs.")] = "cpu",
    threads: ThreadsOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score pairs, prefixes and candidates packed and one by one, in turns."""
    with reported(as_json):
        from rewardgap.bench.prompts import prompts_of_length
        from rewardgap.bench.score import ScoreSizes, measure_scoring
        from rewardgap.cli.data import open_dataset
        from rewardgap.studies.environment import choose_threads
        from rewardgap.studies.progress import Terminal

        output = _named_after(context, output, as_json)
        threads = choose_threads(threads)
        network = _network(policy, shape, dtype, device)
        sizes = ScoreSizes(positions=positions, top_k=top_k, rounds=rounds)
        texts = None if shape else open_dataset(data, settings(data_set, "--data-set"))
        (prompt,) = prompts_of_length(network, prompt_tokens, 1, texts)
        with Terminal().task(f"score with {network.name}", rounds) as task:
            found = measure_scoring(network, prompt, sizes, progress=task)
        rows = [(name, _span(against)) for name, against in found["ratios"].items()]
        facts = {"threads": threads, "device": device, "data": "random words" if texts is None else texts.name, **found}
        _finish(facts, ("what", "ratio"), rows, output, as_json)


def _named_after(context: typer.Context, output: Path | None, as_json: bool) -> Path | None:
    """Return the file to write: --output, or the one that follows --json.

    Raises:
        ConfigError: if more is there than one file after --json.
    """
    from rewardgap.core.errors import ConfigError

    if len(context.args) > int(as_json and output is None):
        raise ConfigError(f"'{' '.join(context.args)}' is too much; one file to write may follow --json.")
    return Path(context.args[0]) if context.args else output


def _span(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _network(name: str, shape: str | None, dtype: str, device: str) -> Backbone:
    if shape is not None:
        from rewardgap.backbones.shapes import random_backbone

        return random_backbone(shape, dtype=dtype, device=device)
    from rewardgap.backbones.load import load_backbone

    return load_backbone(name, dtype=dtype, device=device)


def _finish(
    found: dict[str, Any], title: tuple[str, ...], rows: Sequence[tuple[str, ...]], output: Path | None, as_json: bool
) -> None:
    from rich.console import Console
    from rich.table import Table

    from rewardgap.core.store import write_text
    from rewardgap.studies.environment import environment

    text = json.dumps({**found, "environment": environment()}, indent=2, ensure_ascii=False) + "\n"
    if output is not None:
        write_text(output, text)
    if as_json:
        typer.echo(text, nl=False)
        return
    table = Table(*title, box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
