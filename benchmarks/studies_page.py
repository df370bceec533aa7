"""Writes tables across studies: docs/results/datasets.md, and those of docs/pairing.md and docs/results/README.md; a
test holds all three.

python benchmarks/studies_page.py

Each study is made by `rewardgap run studies/datasets/NAME.yaml` and published by
`rewardgap report runs/NAME --publish docs/results/datasets/NAME`; likewise studies/pairing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rewardgap.core.results import StudyResults

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
DATASETS = RESULTS / "datasets.md"
PAIRING = ROOT / "docs" / "pairing.md"
CLAIMS = RESULTS / "README.md"
CLAIMS_BEGIN = "<!-- table of all studies -->"
CLAIMS_HEAD = (
    "| study | RM accuracy would deploy | expected cost, ROUGE-1 points "
    "| own judge above other judges, of reward models | in context, against zero-shot: better, worse, not told apart "
    "| guided, against zero-shot: better, worse, not told apart |\n| --- | --- | ---: | ---: | ---: | ---: |"
)
BEGIN, END = "<!-- table of docs/results/pairing -->", "<!-- end of table -->"
NOTICE = (
    "<!-- Written by `python benchmarks/studies_page.py` from docs/results/datasets; change those, not this page. -->"
)
HEAD = (
    "| {first} | adapt users, query pairs | a model that is blind to users | RM accuracy, lowest to highest "
    "| own state minus another's, best reward model | policy accuracy, lowest to highest | base "
    "| ROUGE-1: zero-shot | ICL | ICL-RAG | guided, lowest to highest | τ RM accuracy, policy accuracy "
    "| τ RM accuracy, ROUGE-1 |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def read(folder: str) -> list[dict[str, Any]]:
    files = sorted((RESULTS / folder).glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def points(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    span = "" if row["ci_low"] is None else f" [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
    return f"{100 * row['value']:.1f}{span}"


def tau(found: dict[str, Any] | None) -> str:
    if found is None or found["tau"] is None:
        return "–"
    if found["corrected"] is None:
        return f"not identified (measured {found['tau']:.2f}, p {found['p_value']:.2f})"
    return f"{found['corrected']:.2f} [{found['low']:.2f}, {found['high']:.2f}], p {found['p_value']:.2f}"


class Study:
    """The numbers of one published study that the tables show."""

    def __init__(self, results: dict[str, Any]) -> None:
        # Read and written again, so that results of an older version have the names of today.
        self.results = StudyResults.from_json(results).to_json()
        (self.data,) = self.results["datasets"]

    def rows(self, stage: str, metric: str, **fixed: Any) -> list[dict[str, Any]]:
        return [
            row
            for row in self.results["rows"]
            if row["stage"] == stage
            and row["metric"] == metric
            and row["users"] == "unseen"
            and row["value"] is not None
            and all(row.get(name) == value for name, value in fixed.items())
        ]

    def one(self, stage: str, metric: str, **fixed: Any) -> dict[str, Any] | None:
        found = self.rows(stage, metric, **fixed)
        return found[0] if found else None

    def span(self, stage: str, metric: str, guided: bool) -> str:
        values = [100 * r["value"] for r in self.rows(stage, metric) if bool(r["decoder"]) == guided]
        return f"{min(values):.1f} to {max(values):.1f}" if values else "–"

    def own_minus_other(self) -> str:
        other = {r["method"]: r["value"] for r in self.rows("rm_accuracy", "accuracy_other_state")}
        own = {r["method"]: r["value"] for r in self.rows("rm_accuracy", "accuracy")}
        best = max((m for m in own if m in other and m != "global_bt"), key=lambda m: own[m], default=None)
        return "–" if best is None else f"{100 * (own[best] - other[best]):+.1f} ({best})"

    def blind(self) -> str:
        parts = {part["name"]: part for part in self.data["check"]["parts"]}
        found = next((f for f in parts["rankers"]["figures"] if f["name"] == "user_blind"), None)
        return points(found)

    def tau(self, y: str) -> str:
        found = [
            t
            for t in self.results["taus"]
            if t["x"].startswith("rm_accuracy") and t["y"].startswith(y) and t["tau"] is not None
        ]
        return tau(found[0] if found else None)

    def line(self, first: str) -> str:
        split = self.data["split"]
        shown = [
            first,
            f"{split['adapt users']}, {split['query pairs']}",
            self.blind(),
            self.span("rm_accuracy", "accuracy", guided=False),
            self.own_minus_other(),
            self.span("policy_accuracy", "rgd_topk", guided=True),
            points(self.one("policy_accuracy", "base", method="zero_shot")),
            *(points(self.one("behaviour", "rouge1", method=name)) for name in ("zero_shot", "icl", "icl_rag")),
            self.span("behaviour", "rouge1", guided=True),
            self.tau("policy_accuracy"),
            self.tau("rouge1"),
        ]
        return f"| {' | '.join(shown)} |"


def datasets() -> str:
    studies = read("datasets")
    lines = [
        NOTICE,
        "",
        "# One chain, many datasets",
        "",
        "SmolLM2-135M is the policy, its own hidden states are what seven reward models read (global_bt, mpu, lore, "
        "pref, pal_a, pal_b, vpl), and decoding is guided at λ = 1 among the ten likeliest tokens. Points, with 95 % "
        "intervals over users; τ is Kendall's tau-b over the seven reward models, corrected for the noise of users, "
        "with a permutation p; where these users cannot tell, it is not identified. Datasets without references have "
        "no ROUGE. Each row is `rewardgap run studies/datasets/NAME.yaml`; the link is its whole report.",
        "",
        HEAD.format(first="dataset"),
    ]
    for results in studies:
        lines.append(Study(results).line(f"[{results['name']}](datasets/{results['name']}.md)"))
    return "\n".join([*lines, ""])


def pairing_table() -> str:
    lines = [HEAD.format(first="rule")]
    for results in read("pairing"):
        study = Study(results)
        lines.append(study.line(f"[{study.data['pairing']}](results/pairing/{results['name']}.md)"))
    return "\n".join(lines)


def against_zero_shot(results: dict[str, Any], guided: bool) -> str:
    """Deployments better, worse and not told from zero-shot by ROUGE-1: the interval and Holm's p say so together."""
    counts = {"better": 0, "worse": 0, "neither": 0}
    for found in results["comparisons"]:
        if found["metric"] != "rouge1" or found["b"] != "zero_shot" or found["b_is"] != "baseline":
            continue
        if ("λ=" in found["a"]) != guided or found["difference"] is None:
            continue
        told = found["p_holm"] is not None and found["p_holm"] < 0.05
        counts["neither" if not told else "better" if found["difference"] > 0 else "worse"] += 1
    return ", ".join(map(str, counts.values()))


def circular(results: dict[str, Any]) -> str:
    """Reward models whose own win rate is above that of other judges on the same texts, interval above zero."""
    found = [d for d in results["decompositions"] if d["quantity"] == "hacking" and d["value"] is not None]
    return f"{sum(d['ci_low'] > 0 for d in found)} of {len(found)}"


def claim(results: dict[str, Any], link: str) -> str:
    found = [r for r in results["regrets"] if (r["metric"], r["stage"], r["among"]) == ("rouge1", "rm_accuracy", "all")]
    regret = found[0] if found else None
    if regret is None or regret["expected"] is None:
        chosen, cost = "–", "–"
    else:
        chosen = regret["chosen"]
        cost = f"{100 * regret['expected']:.1f} [{100 * regret['ci_low']:.1f}, {100 * regret['ci_high']:.1f}]"
    shown = [
        f"[{results['name']}]({link})",
        chosen,
        cost,
        circular(results),
        against_zero_shot(results, guided=False),
        against_zero_shot(results, guided=True),
    ]
    return f"| {' | '.join(shown)} |"


def claims_table() -> str:
    """One line for each published study whose users wrote references."""
    lines = [CLAIMS_HEAD]
    for folder in (".", "datasets", "pairing"):
        for raw in read(folder):
            results = StudyResults.from_json(raw).to_json()
            if any(r["metric"] == "rouge1" for r in results["comparisons"]):
                name = raw["name"]
                lines.append(claim(results, f"{name}.md" if folder == "." else f"{folder}/{name}.md"))
    return "\n".join(lines)


def between(page: Path, begin: str, table: str) -> str:
    before, rest = page.read_text(encoding="utf-8").split(begin)
    return f"{before}{begin}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def pairing() -> str:
    return between(PAIRING, BEGIN, pairing_table())


def claims() -> str:
    return between(CLAIMS, CLAIMS_BEGIN, claims_table())


if __name__ == "__main__":
    if read("datasets"):
        DATASETS.write_text(datasets(), encoding="utf-8")
    if PAIRING.exists():
        PAIRING.write_text(pairing(), encoding="utf-8")
    if CLAIMS.exists():
        CLAIMS.write_text(claims(), encoding="utf-8")
