"""The stages of a study, one function a kind of cell: models write records here, and nowhere else."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.core.errors import DataError
from rewardgap.core.seeds import child_seed
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.diagnostics.check import check_dataset
from rewardgap.metrics.catalog import METRICS
from rewardgap.policies.zero_shot import zero_shot
from rewardgap.studies.batches import in_batches
from rewardgap.studies.methods import save_ranker_states
from rewardgap.studies.pairing import Pairer
from rewardgap.studies.workbench import split_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.policies.run import Generation, PolicyRun
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.deployments import Deployment
    from rewardgap.studies.spec import RewardModelSpec
    from rewardgap.studies.workbench import QueryItem, Workbench


def check_prompts(bench: Workbench) -> None:
    """Refuse what cannot be run, before anything is computed.

    Raises:
        DataError: if a prompt leaves no room for what is to be written, naming the user, the example, its tokens and
            the limit.
        OutOfMemoryError: if a batch of prompts does not even fit without demonstrations and guidance.
    """
    pairs, encoder, settings = bench.study_pairs(), bench.policy.encoder, bench.settings
    room = bench.policy.context - settings.max_new_tokens
    limit = min(settings.max_prompt_tokens or room, room)
    shown = [(pair.user_id, pair.example_id, pair.prompt) for pair in bench.all_pairs()]
    shown += [(item.user_id, item.example_id, item.prompt) for items in pairs.query.values() for item in items]
    for user, example, prompt in shown:
        try:
            encoder.encode_prompt(prompt, max_tokens=limit, on_long=settings.on_long)
        except DataError as error:
            raise DataError(f"example '{example}' of user '{user}': {error}") from error
    asked = [item.prompt for items in pairs.query.values() for item in items]
    zero_shot(bench.policy, settings=settings).check_batches(asked, [None] * len(asked), bench.study.batch_size)


def run_pairing(bench: Workbench, cell: Cell) -> None:
    """Make the pairs of an authored dataset, a record a text."""
    data = bench.dataset
    assert isinstance(data, AuthoredDataset)
    split = bench.split
    donors: dict[str, list[Any]] = {user: [] for user in (*split.train_users, *split.adapt_users)}
    for i in (*split.train_ids, *(i for ids in split.support_ids.values() for i in ids)):
        text = data.by_id(i)
        donors[text.user_id].append(text)
    pairer = Pairer(data, bench.policy, bench.study.pairing, bench.settings, bench.study.seed, donors)
    encoder = bench.policy.encoder
    texts = sorted(
        (data.by_id(i) for i in split_ids(split)),
        key=lambda t: (len(encoder.encode_text(t.prompt_source)), t.example_id),
    )
    pairer.check_batches(texts, bench.study.batch_size)
    in_batches(bench, cell, texts, pairer.records)


def run_data_check(bench: Workbench, cell: Cell) -> None:
    """Find out what the study's own pairs can show, on its own split; one record, the check as JSON text."""
    folder = bench.folder(cell)
    folder.clear()
    folder.start()
    data = bench.dataset
    pairs = PreferenceDataset(
        data.name, tuple(bench.all_pairs()), dict(data.dropped) | bench.study_pairs().dropped, (), data.first_line
    )
    with bench.progress.task(cell.title, 1) as task:
        found = check_dataset(pairs, bench.split, bench.study.seed)
        task(1, 1)
    folder.append([{"check": json.dumps(found)}])
    folder.finish()


def run_reward_model(bench: Workbench, cell: Cell, spec: RewardModelSpec) -> None:
    """Fit a reward model, adapt it to every adapt user, and record the margins of held-out pairs."""
    folder, pairs = bench.folder(cell), bench.study_pairs()
    checkpoint = folder.path / "checkpoint.safetensors"
    folder.clear(keep=checkpoint.name)
    folder.start()
    model = bench.new_reward_model(spec)
    used = bench.all_pairs()
    with bench.progress.task("encode the pairs", 2 * len(used)) as task:
        model.warm(used, task)
    begin = time.perf_counter()
    with bench.progress.task(cell.title, 1) as task:
        settings: dict[str, Any] = {}
        if spec.mode is not None:
            settings = spec.model_dump(include={"epochs", "batch_size", "learning_rate"}) | {"checkpoint": checkpoint}
        model.fit(pairs.train, seed=bench.fit_seed, progress=task, **settings)
    fitted = time.perf_counter()
    users = pairs.adapt_users
    states = dict(zip(users, model.adapt_all([pairs.support[user] for user in users]), strict=True))
    adapted = time.perf_counter()
    known = set(model.users)
    valid = [pair for pair in pairs.valid if pair.user_id in known]
    rows = _margins("seen", valid, model.margins(valid, [model.state_of(pair.user_id) for pair in valid]))
    query = pairs.query_pairs
    rows += _margins("unseen", query, model.margins(query, [states[pair.user_id] for pair in query]))
    if len(users) > 1:
        follower = dict(zip(users, users[1:] + users[:1], strict=True))
        swapped = model.margins(query, [states[follower[pair.user_id]] for pair in query])
        rows += _margins("other_state", query, swapped)
    folder.append(rows)
    model.save(folder.path / "model")
    save_ranker_states(folder.path / "states.safetensors", model, states)
    facts = {
        "reward_scale": model.scale,
        "diagnostics": model.diagnostics,
        "seconds_fit": fitted - begin,
        "seconds_adapt_per_user": (adapted - fitted) / max(1, len(users)),
        "missing_seen": len(pairs.valid) - len(valid),
    }
    folder.finish({"facts": facts}, scratch=[checkpoint.name])


def run_deployment(bench: Workbench, cell: Cell, deployment: Deployment, reward_cell: Cell | None) -> None:
    """Let a deployment score every query pair and write a completion for every query prompt."""
    policy, states = bench.deployed(deployment, cell, reward_cell)
    encoder = bench.policy.encoder
    items = [item for user in bench.study_pairs().adapt_users for item in bench.study_pairs().query[user]]
    items.sort(key=lambda item: (len(encoder.encode_prompt(item.prompt)), item.user_id, item.example_id))

    def both_sides(batch: Sequence[QueryItem]) -> list[list[str]]:
        return [[item.pair.chosen, item.pair.rejected] if item.pair and policy.scorable else [] for item in batch]

    def work(batch: Sequence[QueryItem]) -> list[dict[str, Any]]:
        completions = both_sides(batch)
        seeds = [child_seed(bench.study.seed, "decode", item.user_id, item.example_id) for item in batch]
        begin = time.perf_counter()
        run = policy.open([item.prompt for item in batch], [states[item.user_id] for item in batch], seeds, completions)
        seconds = time.perf_counter() - begin
        forwards, tokens = run.forwards, run.tokens
        scores = run.scores(completions) if policy.scorable else [[] for _ in batch]
        forwards, tokens, begin = forwards - run.forwards, tokens - run.tokens, time.perf_counter()
        written = run.generate()
        seconds += time.perf_counter() - begin
        cost = _shared_cost(run, seconds, forwards, tokens, len(batch))
        return [
            {
                "user_id": item.user_id,
                "example_id": item.example_id,
                "completion": generation.text,
                "ended": generation.ended,
                "new_tokens": len(generation.ids),
                "demonstrations": prepared.shown,
                "demonstrations_dropped": prepared.dropped,
                "guidance_ratio": generation.guidance_ratio,
                "changed": generation.changed,
                "near_ties": generation.near_ties,
                "guide_passes": generation.guide_passes,
                "pruned": generation.pruned,
                **_pieces(generation),
                **cost,
                **_scores(row),
            }
            for item, generation, prepared, row in zip(batch, written, run.prepared, scores, strict=True)
        ]

    users = [states[item.user_id] for item in items]
    policy.check_batches([item.prompt for item in items], users, bench.study.batch_size, both_sides(items))
    first = policy.open([items[0].prompt], [states[items[0].user_id]]).prepared[0]
    facts = {"first_prompt": policy.backbone.encoder.render(first.prompt)}
    if not policy.scorable:
        facts["not_scorable"] = policy.not_scorable
    in_batches(bench, cell, items, work, facts)


def run_behaviour(bench: Workbench, cell: Cell, written: Cell, metric_name: str) -> None:
    """Compare what a deployment wrote with what the users wrote."""
    folder = bench.folder(cell)
    folder.clear()
    folder.start()
    references = {item.example_id: item.reference for items in bench.study_pairs().query.values() for item in items}
    records = bench.folder(written).records()
    metric = METRICS[metric_name].build()
    values = metric.score([r["completion"] for r in records], [references[r["example_id"]] for r in records])
    folder.append(
        {"user_id": r["user_id"], "example_id": r["example_id"], "value": number(value)}
        for r, value in zip(records, values, strict=True)
    )
    folder.finish({"facts": {"signature": metric.signature}})


def run_judgement(bench: Workbench, cell: Cell, written: Cell, judge: Cell, spec: RewardModelSpec) -> None:
    """Let a reward model judge what a deployment wrote, each completion for its own user."""
    folder = bench.folder(cell)
    folder.clear()
    folder.start()
    model, states = bench.fitted(judge, spec), bench.states(judge, spec)
    prompts = {item.example_id: item.prompt for items in bench.study_pairs().query.values() for item in items}
    records = bench.folder(written).records()
    values = model.rewards(
        [prompts[r["example_id"]] for r in records],
        [r["completion"] for r in records],
        [states[r["user_id"]] for r in records],
    )
    folder.append(
        {"user_id": r["user_id"], "example_id": r["example_id"], "value": number(value)}
        for r, value in zip(records, values, strict=True)
    )
    folder.finish()


def _margins(part: str, pairs: Sequence[Any], margins: Any) -> list[dict[str, Any]]:
    return [
        {"part": part, "user_id": pair.user_id, "example_id": pair.example_id, "margin": number(margin)}
        for pair, margin in zip(pairs, margins, strict=True)
    ]


def _scores(row: Sequence[Any]) -> dict[str, Any]:
    if not row:
        return {}
    out: dict[str, Any] = {}
    for side, scores in zip(("chosen", "rejected"), row, strict=True):
        out[f"coverage_{side}"] = number(scores.coverage)
        out |= {f"{side}_{name}": number(value) for name, value in scores.variants.items()}
    return out


def _pieces(generation: Generation) -> dict[str, int | None]:
    """Return what a search over pieces says of itself; nothing where single tokens are chosen."""
    if generation.proposed is None:
        return {}
    pieces = {name: getattr(generation, name) for name in ("proposed", "distinct", "accepted")}
    asked = {} if generation.questions is None else {"questions": generation.questions, "ties": generation.ties}
    return pieces | asked


def _shared_cost(run: PolicyRun, seconds: float, forwards: int, tokens: int, rows: int) -> dict[str, float]:
    """Return each row's share of the batch; scoring given completions is not part of a deployment's cost."""
    return {
        "seconds": seconds / rows,
        "forwards": (run.forwards + forwards) / rows,
        "network_tokens": (run.tokens + tokens) / rows,
    }


def number(value: Any) -> float | None:
    """Return a float for JSON; NaN and infinities are missing."""
    value = float(value)
    return value if np.isfinite(value) else None
