"""Writes docs/results/benchmarks.md from the figures under benchmarks/results; a test holds that the page is theirs.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results" / "benchmarks.md"
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


def render() -> str:
    parts = {"heads": heads, "train": train}
    measured = [write(read(name)) for name, write in parts.items() if (RESULTS / f"{name}.json").exists()]
    return "\n\n".join([NOTICE, "# Benchmarks", *measured]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
