"""Keeps what the ablations on planted users found, and writes their tables into docs/studies.md; a test holds both.

python benchmarks/ablations_page.py runs/ablation_noise ...    what finished runs say, as docs/results/ablations/*.json
python benchmarks/ablations_page.py                            the tables again

A run is that of `rewardgap run studies/ablation_NAME.yaml`. Kept are the numbers below of every point: the whole
results of a dozen points are megabytes, and the run can be had again.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from rewardgap.stats import kendall_tau

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "results" / "ablations"
PAGE = ROOT / "docs" / "studies.md"
TRUTH = "oracle_sequence"
STAGES = {
    "rm_accuracy": ("rm_accuracy", "accuracy"),
    "policy_accuracy": ("policy_accuracy", "rgd_topk"),
    "rouge1": ("behaviour", "rouge1"),
    "true_wins": ("win_rate", None),
}
PAIRS = (("rm_accuracy", "policy_accuracy"), ("rm_accuracy", "rouge1"), ("rm_accuracy", "true_wins"))
BLOCK = re.compile(r"(<!-- table of docs/results/ablations/(\w+).json -->\n).*?(<!-- end of table -->)", re.DOTALL)


def kept(results: dict[str, Any]) -> dict[str, Any]:
    """Return what the tables need of a study's results: one entry a number of a deployment or reward model."""
    numbers = []
    for row in results["rows"]:
        name = next((n for n, (stage, metric) in STAGES.items() if _is(row, stage, metric)), None)
        if name is not None:
            columns = ("dataset", "seed", "method", "decoder", "guidance_weight", "value", "ci_low", "ci_high")
            numbers.append({"what": name, **{column: row[column] for column in columns}})
    taus = [
        {key: tau[key] for key in ("dataset", "seed", "x", "y", "decoder", "tau", "p_value", "reason")}
        for tau in results["taus"]
        if tau["x"] == "rm_accuracy"
    ]
    versions = {key: results["environment"].get(key) for key in ("rewardgap", "torch", "python", "machine")}
    shown = {"command": results["command"], "environment": versions, "study": results["study"]}
    return {"name": results["name"], **shown, "numbers": numbers, "taus": taus}


def _is(row: dict[str, Any], stage: str, metric: str | None) -> bool:
    judged = metric is not None or row["judge"] == TRUTH
    return row["stage"] == stage and metric in (None, row["metric"]) and row["users"] == "unseen" and judged


class Ablation:
    """The kept numbers of one study."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.values = list(dict.fromkeys(number["dataset"] for number in found["numbers"]))
        self.seeds = sorted({number["seed"] for number in found["numbers"]})

    def of(self, what: str, **fixed: Any) -> list[dict[str, Any]]:
        return [
            number
            for number in self.found["numbers"]
            if number["what"] == what
            and number["value"] is not None
            and all(number[column] == value for column, value in fixed.items())
        ]

    def mean(self, what: str, **fixed: Any) -> float | None:
        """Return the mean over seeds."""
        found = [number["value"] for number in self.of(what, **fixed)]
        return sum(found) / len(found) if found else None

    def span(self, what: str, value: str, decoder: str | None) -> str:
        """Return the lowest and the highest mean over seeds of a reward model."""
        methods = {number["method"] for number in self.of(what, dataset=value, decoder=decoder)} - {TRUTH}
        means = [self.mean(what, dataset=value, decoder=decoder, method=method) for method in methods]
        return f"{_points(min(m for m in means if m is not None))} to {_points(max(m for m in means if m is not None))}"

    def tau(self, value: str, x: str, y: str) -> str:
        """Return tau-b over reward models: the mean over seeds, and each seed's."""
        found = []
        for seed in self.seeds:
            place = {"dataset": value, "seed": seed}
            across = {number["method"]: number["value"] for number in self.of(y, **place, decoder="args_greedy")}
            ranked = {n["method"]: n["value"] for n in self.of(x, **place) if n["method"] in across}
            found.append(kendall_tau([ranked[m] for m in ranked], [across[m] for m in ranked]))
        return f"{_signed(sum(found) / len(found))} ({', '.join(map(_signed, found))})"

    def identified(self, value: str) -> str:
        """Return on how many seeds the study's own statistics identify tau with policy accuracy, and with ROUGE-1."""
        known = [tau for tau in self.found["taus"] if tau["dataset"] == value]
        counts = [sum(not tau["reason"] for tau in known if tau["y"] == y) for y in ("policy_accuracy", "rouge1")]
        return f"{counts[0]} and {counts[1]} of {len(self.seeds)}"


def dial_table(found: Ablation) -> str:
    """Return what follows from turning a dial, a row a value."""
    lines = [
        "| value | RM accuracy, lowest to highest | policy accuracy | ROUGE-1: zero-shot | guided | preferred to "
        "zero-shot by the true utility | τ RM accuracy, policy accuracy | τ RM accuracy, ROUGE-1 "
        "| τ RM accuracy, true preference | seeds on which the first two τ are identified |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for value in found.values:
        shown = [
            f"{float(value.rpartition('_')[2]):g}",
            found.span("rm_accuracy", value, None),
            found.span("policy_accuracy", value, "args_greedy"),
            _points(found.mean("rouge1", dataset=value, method="zero_shot")),
            found.span("rouge1", value, "args_greedy"),
            found.span("true_wins", value, "args_greedy"),
            *(found.tau(value, x, y) for x, y in PAIRS),
            found.identified(value),
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def oracle_table(found: Ablation) -> str:
    """Return policy accuracy and behaviour of the oracles and of fitted models, a row a reward model and weight."""
    methods = list(dict.fromkeys(number["method"] for number in found.of("rm_accuracy")))
    weights = sorted({number["guidance_weight"] for number in found.of("rouge1", decoder="args_greedy")})
    lines = [
        "| reward model | λ | RM accuracy | policy accuracy | ROUGE-1, drawn | ROUGE-1, greedy "
        "| preferred by the true utility, drawn | greedy |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| none (zero-shot) | – | – | {_points(found.mean('policy_accuracy', method='zero_shot'))} | – "
        f"| {_points(found.mean('rouge1', method='zero_shot'))} | – | – |",
    ]
    for method in methods:
        for weight in weights:
            at = {"method": method, "guidance_weight": weight}
            drawn, greedy = ({**at, "decoder": f"args_{how}"} for how in ("stochastic", "greedy"))
            shown = [
                method,
                f"{weight:g}",
                _points(found.mean("rm_accuracy", method=method)),
                _points(found.mean("policy_accuracy", **drawn)),
                *(_points(found.mean("rouge1", **place)) for place in (drawn, greedy)),
                *(_points(found.mean("true_wins", **place)) for place in (drawn, greedy)),
            ]
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def oracle_sentence(found: Ablation) -> str:
    """Return what the two oracles say together, with each seed's difference in brackets."""

    def drawn(what: str, kind: str, weight: float, seed: int) -> float:
        (number,) = found.of(
            what, seed=seed, method=f"oracle_{kind}", decoder="args_stochastic", guidance_weight=weight
        )
        return 100 * float(number["value"])

    def gain(what: str, weight: float) -> str:
        pairs = [[drawn(what, kind, weight, seed) for kind in ("value", "sequence")] for seed in found.seeds]
        gains = [value - sequence for value, sequence in pairs]
        shown = f"{sum(gains) / len(gains):+.1f} ({', '.join(f'{one:+.1f}' for one in gains)})"
        return shown.replace("-", "−")

    law = {"method": "oracle_value", "decoder": "args_stochastic", "guidance_weight": 1.0}
    return (
        "At λ = 1 drawn decoding under `oracle_value` is the user's own law. As a reward model it ranks every pair "
        f"right, as a policy {_points(found.mean('policy_accuracy', **law))} in a hundred, and it writes at "
        f"{_points(found.mean('rouge1', **law))} ROUGE-1. Factorisation costs what `oracle_value` is ahead of "
        "`oracle_sequence`, in points, the mean over seeds and each seed: in policy accuracy "
        f"{gain('policy_accuracy', 1.0)} at λ = 1 and {gain('policy_accuracy', 4.0)} at λ = 4, in ROUGE-1 of drawn "
        f"texts {gain('rouge1', 1.0)} and {gain('rouge1', 4.0)}."
    )


def table(name: str) -> str:
    """Return an ablation's table, and what follows from it in numbers."""
    found = Ablation(json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8")))
    if name == "ablation_oracle":
        return f"{oracle_table(found)}\n\n{oracle_sentence(found)}"
    return dial_table(found)


def tables(page: str) -> str:
    """Return the page with every table that its JSON gives."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", page)


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


if __name__ == "__main__":
    for run in map(Path, sys.argv[1:]):
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        KEPT.mkdir(parents=True, exist_ok=True)
        text = json.dumps(kept(results), indent=1, sort_keys=True)
        (KEPT / f"{results['name']}.json").write_text(text + "\n", encoding="utf-8")
    if PAGE.exists():
        PAGE.write_text(tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
