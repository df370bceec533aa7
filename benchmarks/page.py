"""Writes docs/results/benchmarks.md and the tables of docs/performance.md from the figures under benchmarks/results.

A test holds that the pages are theirs.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results" / "benchmarks.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
NOTICE = "<!-- Written by `python benchmarks/page.py` from benchmarks/results; change those figures, not this page. -->"


def read(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return value


def machine(found: dict[str, Any]) -> str:
    made = found["environment"]
    return f"{found['threads']} torch thread(s), {made['machine']}, torch {made['torch']}, Python {made['python']}"


def heads(found: dict[str, Any]) -> str:
    sizes = found["sizes"]
    lines = [
        "## Heads on frozen features",
        f"`rewardgap bench heads --output benchmarks/results/heads.json`: {sizes['pairs']:,} pairs of {sizes['users']} "
        f"users, {sizes['width']} features, {sizes['support']} support pairs for each of {sizes['users']} new users; "
        f"each head in a process of its own. {machine(found)}. Seconds are this machine's. "
        "Five times the steps: five times the limit and no tolerance; `pal_a`, `pal_b` and `vpl`, which stop where "
        "held-out pairs are predicted no better, also wait five times as long for that.",
        "",
        "| head | fit, s | adapt, ms a user | peak, GiB | training loss, nats | what 5 times the steps gain, % "
        "| seen users, % | unseen users, % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["heads"]:
        lines.append(
            f"| {row['method']} | {row['fit_seconds']:.1f} | {row['adapt_milliseconds']:.2f} | "
            f"{row['peak_bytes'] / 2**30:.2f} | {row['loss']:.4f} | {100 * row['gain_of_longer']:.2f} | "
            f"{100 * row['seen']:.1f} | {100 * row['unseen']:.1f} |"
        )
    return "\n".join([*lines[:1], "", *lines[1:]])


def train(found: dict[str, Any]) -> str:
    sizes = found["sizes"]
    names = {
        "rewardgap": "rewardgap, packed pairs",
        "trl": "TRL RewardTrainer, set alike",
        "trl_defaults": "TRL RewardTrainer, its own defaults",
    }
    lines = [
        "## Training an adapter with a reward head",
        "",
        f"`rewardgap bench train --rounds {found['sizes']['rounds']} --output benchmarks/results/train.json`: "
        f"{found['backbone']}, LoRA rank 8, prompts of "
        f"{sizes['prompt']} tokens, completions of {sizes['completion']}, {sizes['batch_size']} pairs a step, the same "
        f"ids on all sides, {sizes['rounds']} turns each. Set alike: no checkpointing, no half precision, no dropout. "
        f"{machine(found)}.",
        "",
        "| side | pairs a second | time a pair, rewardgap = 1 | first loss, nats |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, title in names.items():
        if name not in found["pairs_per_second"]:
            continue
        against = found.get(f"{name}_over_rewardgap")
        span = f"{against['median']:.2f} ({against['low']:.2f} to {against['high']:.2f})" if against else "1"
        lines.append(f"| {title} | {found['pairs_per_second'][name]:.3f} | {span} | {found['first_loss'][name]:.6f} |")
    return "\n".join(lines)


def spread(ratio: dict[str, float], places: int = 2) -> str:
    return f"{ratio['median']:.{places}f} ({ratio['low']:.{places}f} to {ratio['high']:.{places}f})"


def readings(found: dict[str, Any], name: str) -> float:
    """Return how often a way must read the policy's weights a step, the reward model's counted in theirs."""
    way, _, how = name.partition(", ")
    if not way.startswith("guided") or how == "shared backbone":
        return 1.0
    k = way.rpartition("=")[2]
    ahead = {"look-ahead": k, "step by step": None}.get(how, f"{k}, {how}")
    passes = 1.0 if ahead is None else 1 / found["look_ahead"][ahead]["tokens_a_pass"]
    return 1 + passes * float(found["reward_share"])


def decode(found: dict[str, Any]) -> str:
    sizes, ways, read_once = found["sizes"], found["ways"], "weights read once"
    slow = {name: way for name, way in ways.items() if way["tokens_measured"] < sizes["tokens"]}
    against = " --against args reencode" if slow else ""
    lines = [
        f"`rewardgap bench decode --k 10 40{against} --rounds {sizes['rounds']} --data authored --data-set path=... "
        "--data-set task=commit_subject --json benchmarks/results/decode.json`: "
        f"{found['policy']} steered by a reward model of its size, prompts of up to {max(sizes['prompt_tokens'])} "
        f"tokens ({found['data']}), {sizes['tokens']} new tokens, {sizes['rounds']} turns each with another prompt. "
        f"{machine(found)}. A token's time leaves the prompt out.",
        "",
        "| way | ms a token | time, transformers' greedy search = 1 | readings of the policy's weights a token "
        "| time, its readings alone = 1 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    once = ways[read_once]["milliseconds_a_token"]
    for name, way in ways.items():
        ratio = found["ratios"].get(f"{name} / transformers greedy")
        if ratio is None:
            continue
        rows = sizes["batch"] if "batch of" in name else 1
        limit = once * readings(found, name)
        each = {key: value / rows for key, value in ratio.items() if key != "rounds"}
        lines.append(
            f"| {name} | {way['milliseconds_a_token'] / rows:.1f} | {spread(each)} | "
            f"{readings(found, name) / rows:.2f} | {way['milliseconds_a_token'] / limit:.2f} |"
        )
    lines += ["", *(f"- k = {k}: {ahead(row)}" for k, row in found["look_ahead"].items())]
    if slow:
        lines += [
            "",
            "Against published ways, with the prompt; theirs is measured over "
            f"{sizes['slow_steps']} tokens and extrapolated to {sizes['tokens']}:",
            "",
            "| way | its time, look-ahead guidance = 1: a text with its prompt | a token |",
            "| --- | ---: | ---: |",
        ]
    for name in slow:
        own = f"{name} / guided k={name.rpartition('=')[2]}, look-ahead"
        text, token = (found["ratios"][f"{own}, {part}"] for part in ("a text with its prompt", "a token"))
        title = {"args": "ARGS as published", "reencode": "every candidate read anew"}[name.partition(" ")[0]]
        lines.append(f"| {title}, {name.partition(' ')[2]} | {spread(text, 1)} | {spread(token, 1)} |")
    return "\n".join(lines)


def ahead(row: dict[str, float]) -> str:
    return (
        f"guidance changed {100 * row['changed']:.0f} % of the tokens; {row['tokens_a_pass']:.2f} tokens for each pass "
        f"of the reward model, {row['drafted_a_token']:.2f} drafted for each that was kept."
    )


def score(found: dict[str, Any]) -> str:
    sizes, ratios, differences = found["sizes"], found["ratios"], found["largest_difference"]
    weights = ratios[f"{sizes['weights']} weights / one"]
    rows = [
        (f"a pair, prompt of {sizes['prompt']} and completions of {sizes['completion']} tokens", "two passes",
         ratios["pair, two passes / packed"], differences["pair"]),
        (f"rewards at {sizes['positions']} prefixes", "one sequence each",
         ratios["prefixes, one by one / packed"], differences["prefixes"]),
        (f"rewards of {sizes['top_k']} candidates at {sizes['positions']} positions", "one sequence each",
         ratios["candidates, one by one / packed"], differences["candidates"]),
    ]  # fmt: skip
    lines = [
        "`rewardgap bench score --data authored --data-set path=... --data-set task=commit_subject --json "
        f"benchmarks/results/score.json`: {found['policy']}, {sizes['rounds']} turns. Slow ways are measured over "
        f"{sizes['sequences_measured']} sequences, evenly spaced, and extrapolated. {machine(found)}.",
        "",
        "| what is scored | against | its time, packed = 1 | largest difference of a reward |",
        "| --- | --- | ---: | ---: |",
        *(f"| {what} | {against} | {spread(ratio)} | {worst:.0e} |" for what, against, ratio, worst in rows),
        "",
        f"{sizes['weights']} guidance weights take {spread(weights)} times the time of one.",
    ]
    return "\n".join(lines)


def tables(page: str) -> str:
    """Return the page with its tables put between their markers."""
    for name, write in {"decode": decode, "score": score}.items():
        before, rest = page.split(f"<!-- {name} -->")
        after = rest.split(f"<!-- end of {name} -->")[1]
        page = f"{before}<!-- {name} -->\n{write(read(name))}\n<!-- end of {name} -->{after}"
    return page


def render() -> str:
    parts = {"heads": heads, "train": train}
    measured = [write(read(name)) for name, write in parts.items() if (RESULTS / f"{name}.json").exists()]
    return "\n\n".join([NOTICE, "# Benchmarks", *measured]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    PERFORMANCE.write_text(tables(PERFORMANCE.read_text(encoding="utf-8")), encoding="utf-8")
