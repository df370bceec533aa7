"""A study with made-up numbers that the other report tests read, and what they rely on in it."""

import dataclasses

from rewardgap.core.results import (
    BaselineResult,
    ComparisonResult,
    ControlResult,
    CrossoverResult,
    HeterogeneityResult,
    MetaResult,
    RegretResult,
    ResultRow,
    Sample,
    StudyResults,
    SupportResult,
    TauResult,
    deployment_label,
)

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><svg onload=alert(1)>",
    "</title></style><b>bold</b>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }} {% raw %} & &amp; <|im_start|>",
    "[red]rich[/red] \x1b[31mred\x1b[0m \u202egnirts\u202c | a | pipe",
    "Pneumono" + "ultramicroscopicsilicovolcano" * 6 + "coniosis",
    "مرحبا بالعالم، هذا نص من اليمين إلى اليسار",
    "half a pair \ud83d and a null \x00",
)


class Rows:
    """Collects rows of one dataset."""

    def __init__(self, dataset: str, **fixed: object) -> None:
        self.fixed = {"dataset": dataset, "pairing": "closest", "seed": 0, "users": "unseen", "n_users": 24,
                      "n_examples": 144, "policy": "smollm2-135m"} | fixed  # fmt: skip
        self.rows: list[ResultRow] = []

    def add(self, stage: str, value: float | None, half: float | None = None, metric: str = "", **keys: object) -> None:
        low, high = (None, None) if value is None or half is None else (value - half, value + half)
        row = self.fixed | {"stage": stage, "metric": metric, "value": value, "ci_low": low, "ci_high": high} | keys
        self.rows.append(ResultRow(**row))


GUIDED = {"decoder": "args_greedy", "top_k": 10, "fit_mode": "frozen", "reward_backbone": "smollm2-135m",
          "support_size": 8}  # fmt: skip
# seen, unseen accuracy; then by guidance weight: policy accuracy, ROUGE-1, own judge, other judge, seconds
MODELS = {
    "global_bt": (0.684, 0.652, {0.5: (0.561, 0.238, 0.826, 0.571, 1.31), 2.0: (0.583, 0.207, 0.983, 0.549, 1.33)}),
    "lore": (0.731, 0.641, {0.5: (0.556, 0.243, 0.847, 0.583, 1.36), 2.0: (0.572, 0.211, 0.990, 0.532, 1.38)}),
}
# policy accuracy, ROUGE-1, independent judge, seconds
PROMPTED = {
    ("zero_shot", None, None): (0.540, 0.231, None, 0.42),
    ("icl", None, 4): (0.602, 0.272, 0.604, 0.55),
    ("icl_rag", "bm25", 2): (0.611, 0.284, 0.621, 0.49),
    ("icl_rag", "bm25", 4): (0.625, 0.301, 0.634, 0.57),
    ("icl_rag", "bm25", 8): (0.619, 0.296, 0.629, 0.74),
}


def main_rows(dataset: str = "docstrings", models: dict | None = None, **fixed: object) -> list[ResultRow]:
    """Return all five stages of a dataset."""
    rows = Rows(dataset, **fixed)
    models = MODELS if models is None else models
    names = list(models)
    for name, (seen, unseen, weights) in models.items():
        model = {key: GUIDED[key] for key in ("fit_mode", "reward_backbone")} | {"method": name, "policy": None}
        rows.add("rm_accuracy", seen, 0.021, "accuracy", users="seen", n_users=40, n_examples=480, **model)
        for metric, value in (("accuracy", unseen), ("accuracy_micro", unseen + 0.004), ("tie_rate", 0.0)):
            rows.add("rm_accuracy", value, 0.042 if value else None, metric, support_size=8, **model)
        for weight, (policy, rouge, own, other, seconds) in weights.items():
            keys = GUIDED | {"method": name, "guidance_weight": weight}
            for metric, shift in (("rgd_topk", 0), ("mean_rgd_topk", 0.01), ("raw_value", -0.03), ("raw_delta", 0.004),
                                  ("reward_only", unseen - policy), ("mean_base", -0.02)):  # fmt: skip
                rows.add("policy_accuracy", policy + shift, 0.038, metric, **keys)
            rows.add("policy_accuracy", 0.540, 0.040, "base", **keys)
            _behaviour(rows, rouge, keys, missing=3 if weight == 2.0 else 0)
            rows.add("win_rate", own, 0.03 if own < 0.95 else 0.01, "win_self", judge=name, **keys)
            judge = names[(names.index(name) + 1) % len(names)]
            if judge != name:
                rows.add("win_rate", other, 0.061, "win_cross", judge=judge, **keys)
            _cost(rows, seconds, keys, 240.0)
    for (method, retriever, shots), (policy, rouge, other, seconds) in PROMPTED.items():
        keys = {"method": method, "retriever": retriever, "shots": shots, "support_size": 8 if shots else None}
        rows.add("policy_accuracy", policy, 0.039, "rgd_topk", **keys)
        rows.add("policy_accuracy", 0.540, 0.040, "base", **keys)
        _behaviour(rows, rouge, keys)
        if other is not None:
            rows.add("win_rate", other, 0.058, "win_cross", judge="global_bt", **keys)
            rows.add("win_rate", other - 0.02, 0.058, "win_cross", judge="lore", **keys)
        _cost(rows, seconds, keys, 24.0)
    return rows.rows


def _behaviour(rows: Rows, rouge: float, keys: dict, missing: int = 0) -> None:
    rows.add("behaviour", rouge, 0.026, "rouge1", n_missing=missing, **keys)
    rows.add("behaviour", rouge - 0.021, 0.025, "rougeL", **keys)
    rows.add("behaviour", 0.61 + rouge / 4, 0.009, "bertscore_f1", **keys)
    rows.add("behaviour", 1.31 - rouge, 0.05, "length_ratio", **keys)
    rows.add("behaviour", 0.0, 0.0, "empty_rate", **keys)


def _cost(rows: Rows, seconds: float, keys: dict, forwards: float) -> None:
    for metric, value in (("seconds", seconds), ("tokens", 17.3), ("forwards", forwards)):
        rows.add("cost", value, None, f"{metric}_per_completion", **keys)


def control_rows() -> list[ResultRow]:
    """Return a small control dataset: no demonstrations, no second judge, a value that could not be measured."""
    rows = Rows("synthetic_text", n_users=8, n_examples=48, policy="bigram")
    rows.add("rm_accuracy", 0.94, 0.03, "accuracy", method="oracle", fit_mode="frozen")
    keys = {"method": "oracle", "decoder": "args_greedy", "guidance_weight": 1.0, "top_k": 10, "fit_mode": "frozen"}
    rows.add("policy_accuracy", 0.91, 0.04, "rgd_topk", **keys)
    rows.add("behaviour", 0.52, 0.03, "rouge1", **keys)
    rows.add("behaviour", None, None, "bertscore_f1", n_missing=48, **keys)
    rows.add("win_rate", 0.88, 0.05, "win_self", judge="oracle", **keys)
    rows.add("behaviour", 0.41, 0.03, "rouge1", method="zero_shot")
    return rows.rows


def compared(rows: list[ResultRow], **point: object) -> dict[str, list]:
    """Return comparisons, choices and effects as they could belong to rows: 3 points and more are beyond chance."""
    means = {deployment_label(row): row.value for row in rows if row.metric == "rouge1" and row.value is not None}
    named = {"dataset": rows[0].dataset, "metric": "rouge1"} | point
    best = max(means, key=lambda name: means[name])
    comparisons = []
    for kind, anchor in (("baseline", "zero_shot"), ("best", best)):
        for name, value in means.items():
            gap = value - means[anchor]
            if name != anchor:
                p = 0.001 if abs(gap) >= 0.03 else 0.4
                comparisons.append(
                    ComparisonResult(**named, a=name, b=anchor, b_is=kind, difference=gap, ci_low=gap - 0.02,
                                     ci_high=gap + 0.02, p_value=p / 10, p_holm=p, n_users=24, margin=0.01,
                                     equivalent=False, equivalence_p=0.3, equivalence_low=gap - 0.017,
                                     equivalence_high=gap + 0.017, detectable=0.025)
                )  # fmt: skip
    shares = {name: 0.8 if name == best else 0.2 / (len(means) - 1) for name in means}
    own = RegretResult(**named, stage="rouge1", among="all", chosen=best, best=best, regret=0.0, expected=0.002,
                       ci_low=0.0, ci_high=0.01, out_of_bag=0.0, p_chosen_best=0.8, p_best=shares, n_users=24)  # fmt: skip
    regrets = [own]
    guided = [name for name in means if " · " in name]
    if guided:
        chosen = max((name for name in guided if name.startswith("global_bt")), default=guided[0])
        chosen = min((n for n in guided if n.split(" · ")[0] == chosen.split(" · ")[0]), key=lambda n: -means[n])
        lost = means[best] - means[chosen]
        regrets.append(
            RegretResult(**named, stage="rm_accuracy", among="all", chosen=chosen, best=best, regret=lost,
                         expected=lost - 0.002, ci_low=max(0.0, lost - 0.03), ci_high=lost + 0.03, out_of_bag=lost,
                         p_chosen_best=0.02, p_best=shares, n_users=24)
        )  # fmt: skip
    others = [name for name in means if name != "zero_shot"]
    effects = [
        HeterogeneityResult(**named, deployment=name, baseline="zero_shot", mean=means[name] - means["zero_shot"],
                            between=0.04, noise=0.1, share=0.72, ci_low=0.55, ci_high=0.88, share_measured=0.66,
                            n_users=24, n_examples=144)
        for name in others
    ]  # fmt: skip
    support = [
        SupportResult(**{**named, "support_size": 8}, deployment=name, baseline="zero_shot", wins=15, ties=1, losses=8,
                      difference=0.01, ci_low=-0.01, ci_high=0.03)
        for name in others
    ]  # fmt: skip
    return {"comparisons": comparisons, "regrets": regrets, "heterogeneity": effects, "support": support}


def study(hostile: bool = True) -> StudyResults:
    """Return a finished study; with `hostile`, every free text carries markup, control characters or worse."""
    bad = HOSTILE if hostile else ("a plain text",) * len(HOSTILE)
    rows = main_rows() + control_rows()
    if hostile:
        extra = Rows("docstrings")
        extra.add(
            "behaviour", 0.19, 0.03, "rouge1", method=bad[0], decoder=bad[1], guidance_weight=1.0, fit_mode=bad[2]
        )
        extra.add("rm_accuracy", 0.55, 0.05, "accuracy", method=bad[0], fit_mode=bad[2])
        extra.add("win_rate", 0.5, 0.05, "win_cross", method=bad[7], decoder=bad[8], judge=bad[4])
        rows += extra.rows
    extra_rows = [row for row in rows if row.dataset == "docstrings"]
    labels = ("zero_shot", "icl_rag 4", "lore · args_greedy λ=2 k=10")
    written = (
        ("Return the path of the file, or None when it cannot be found.", "This function is used to find a file.",
         "Return the path of a file.", "Find the path path path of the file system file."),
        ("Iterate over the words of a text.", "A function that iterates.", "Iterate over the words.", ""),
        ("Make a deep copy of the tree.", "This is the tree.", "Make a copy of the tree.", bad[1]),
    )  # fmt: skip
    samples = [
        Sample(dataset="docstrings", user_id=user if i else bad[0], example_id=f"{i}-{j}",
               prompt=f"Write the first line of the docstring.\n\ndef find(path, *, {bad[3 * i + j + 1]}):\n    ...",
               reference=reference if (i, j) != (1, 2) else None,
               generations=dict(zip(labels, texts, strict=True)))
        for i, user in enumerate(("numpy", "jinja2", bad[8]))
        for j, (reference, *texts) in enumerate(written)
    ]  # fmt: skip
    return StudyResults(
        name=f"demo {bad[1]}" if hostile else "demo",
        rows=rows,
        **compared(extra_rows),
        taus=[
            TauResult(dataset="docstrings", x="rm_accuracy", y="policy_accuracy", decoder=bad[0], n_models=2,
                      reason="not identified: 2 reward models; a rank correlation needs 6"),
            TauResult(dataset="docstrings", x="rm_accuracy", y="rouge1", decoder="args_greedy λ=1 k=10", n_models=9,
                      n_users=24, n_ties_x=1, tau=-0.31, naive_low=-0.62, naive_high=0.08, p_value=0.25,
                      corrected=-0.44, low=-0.83, high=0.12, population=-0.4, population_low=-0.9,
                      population_high=0.2, spearman=-0.4, spearman_p=0.3, leave_one_out_low=-0.5,
                      leave_one_out_high=-0.2, reliability_x=0.91, reliability_y=0.84, undefined_resamples=4),
            TauResult(dataset="docstrings", x="win_self", y="rouge1", decoder="args_greedy λ=1 k=10", n_models=9,
                      n_users=24, tau=0.2, naive_low=-0.3, naive_high=0.5, p_value=0.5, reliability_x=0.4,
                      reliability_y=0.84, reason="not identified: split-half reliability 0.40 is below 0.8: more "
                      "users, or methods further apart, are needed"),
        ],
        crossovers=[
            CrossoverResult(dataset="docstrings", metric="rouge1", axis="shots", first="icl_rag",
                            second="lore · args_greedy λ=0.5 k=10", places=[2.0, 8.0], differences=[-0.1, 0.1],
                            where="inside", at=4.0, ci_low=None, ci_high=6.5, low_where="below", high_where="inside",
                            n_users=24),
        ],
        meta=[MetaResult(dataset="docstrings, synthetic_text", x="rm_accuracy", y="rouge1", n_taus=3, n_left_out=1,
                         tau=0.21, ci_low=-0.3, ci_high=0.6, predicted_low=-0.7, predicted_high=0.8, between=0.2,
                         i_squared=0.35, q=3.1)],
        controls=[
            ControlResult(name="shuffled labels", dataset="docstrings", method="lore", value=0.507, ci_low=0.462,
                          ci_high=0.551, expectation="50 within the interval", passed=True,
                          sentence="A reward model fitted to shuffled labels ranks like a coin."),
            ControlResult(name="oracle guidance", dataset="synthetic_text", method="oracle", value=0.11, ci_low=0.062,
                          ci_high=0.158, expectation="interval above 0", passed=True,
                          sentence="Guided by the true utility, the policy writes better than zero-shot."),
            ControlResult(name="user swap", dataset="docstrings", method="lore", value=0.004, ci_low=-0.017,
                          ci_high=0.026, expectation="interval above 0", passed=False,
                          sentence=f"Another user's state does as well as one's own. {bad[4]}"),
            ControlResult(name="not run", dataset="docstrings", method=None, value=None, ci_low=None, ci_high=None,
                          expectation="none", passed=None, sentence="Needs more users."),
        ],
        baselines=[
            BaselineResult(dataset="docstrings", pairing="closest", name=name, summary=summary, value=value,
                           ci_low=value - 0.04, ci_high=value + 0.04, n_users=24, n_examples=144)
            for name, summary, value in (
                ("longer wins", "Prefers the longer completion.", 0.447),
                ("human or machine", "Prefers what a person wrote; " + bad[5], 0.5),
                ("base policy", "Prefers what the policy finds more likely.", 0.54),
            )
        ],
        samples=samples,
        notes=[f"2 prompts were cut to 96 tokens. {bad[6]}"],
        datasets=[
            {"name": "docstrings", "users": 64, "pairs": 768, "words": {"prompt": {"median": 41.0, "p90": 88.5},
             "reference": {"median": 9.0}}, "licence": "as the libraries", bad[3]: bad[2]},
            {"name": "synthetic_text", "users": 16, "known_utility": True, "sizes": [4, 8]},
        ],
        failures=[{"cell": "3fa9c01b", "deployment": bad[0], "error": f"ModelError: no memory {bad[2]}\n  at step 3"}],
        command="rewardgap run studies/demo.yaml --set seed=0 " + bad[0],
        study={"name": bad[1], "dataset": {"name": "docstrings", "pairing": "closest"}, "shots": [2, 4, 8],
               "guidance_weights": [0.5, 2.0], "note": bad[2]},
        environment={"python": "3.11.2", "packages": {"torch": "2.13.0", "transformers": "5.20.1"}, "cores": 2,
                     "device": bad[4]},
    )  # fmt: skip


def planted(count: int = 12) -> StudyResults:
    """Return a study of many reward models at three seeds, as a crowded figure and a long table need."""
    models = {
        f"model_{i}": (0.6 + i / 100, 0.55 + (i * 7 % count) / 80,
                       {w: (0.5 + (i * 5 % count) / 90 + w / 50, 0.2 + (i * 3 % count) / 120, 0.9, 0.5, 1.0)
                        for w in (0.5, 1.0, 2.0)})
        for i in range(count)
    }  # fmt: skip
    rows = []
    for seed in (0, 1, 2):
        rows += [
            dataclasses.replace(row, value=None if row.value is None else row.value + seed / 1000)
            for row in main_rows("large", models, seed=seed)
        ]
    return StudyResults(name="many models", rows=rows)


def test_the_study_has_unique_keys_and_survives_json() -> None:
    for results in (study(), planted()):
        keys = [row.key() for row in results.rows]
        assert len(set(keys)) == len(keys)
        assert StudyResults.from_json(results.to_json()) == results
