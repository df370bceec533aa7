"""The cells of a tuning: texts written at one guidance weight for held-out prompts of seen users, and their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rewardgap.backbones.session import tree_states
from rewardgap.backbones.trie import ROOT, Block, build_trie, chain
from rewardgap.core.seeds import child_seed
from rewardgap.metrics.catalog import METRICS
from rewardgap.policies.guided import Guided
from rewardgap.policies.zero_shot import zero_shot
from rewardgap.rewards.model import RewardModel
from rewardgap.rewards.oracles import Oracle
from rewardgap.studies.batches import in_batches
from rewardgap.studies.stages import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import PreferencePair
    from rewardgap.decoding.base import Decoder
    from rewardgap.decoding.loop import StopRule
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.spec import RewardModelSpec
    from rewardgap.studies.workbench import Workbench

POSITIONS = 64
"""Positions whose logits over the vocabulary are there at once."""


def run_tuning(
    bench: Workbench,
    cell: Cell,
    rows: Sequence[PreferencePair],
    reward_cell: Cell,
    spec: RewardModelSpec,
    decoder: Decoder,
) -> None:
    """Write a completion for each row's prompt, steered for its training user."""
    model = bench.fitted(reward_cell, spec)
    assert isinstance(model, (RewardModel, Oracle))
    policy = Guided(bench.policy, decoder, bench.settings, reward=model)

    def work(batch: Sequence[PreferencePair]) -> list[dict[str, Any]]:
        seeds = [child_seed(bench.study.seed, "decode", row.user_id, row.example_id) for row in batch]
        run = policy.open([row.prompt for row in batch], [model.state_of(row.user_id) for row in batch], seeds)
        return [
            {
                "user_id": row.user_id,
                "example_id": row.example_id,
                "completion": written.text,
                "ids": list(written.ids),
                "ended": written.ended,
                "new_tokens": len(written.ids),
                "guidance_ratio": written.guidance_ratio,
                "changed": written.changed,
                "near_ties": written.near_ties,
            }
            for row, written in zip(batch, run.generate(), strict=True)
        ]

    in_batches(bench, cell, rows, work)


def run_fluency_gaps(bench: Workbench, cell: Cell, rows: Sequence[PreferencePair], written: Sequence[Cell]) -> None:
    """Record what each text costs under the policy: a record a row, with a gap for each of the written cells.

    The policy's scores do not depend on the guidance weight, so a prompt is read once for the texts of all weights.
    """
    texts = [{record["example_id"]: record for record in bench.folder(one).records()} for one in written]
    reader = zero_shot(bench.policy, settings=bench.settings)

    def work(batch: Sequence[PreferencePair]) -> list[dict[str, Any]]:
        records = []
        for row in batch:
            found = [(text[row.example_id]["ids"], text[row.example_id]["ended"]) for text in texts]
            ids = reader.show(row.prompt, None, reader.prompt_limit).ids
            gaps = fluency_gaps(bench.policy, ids, found, reader.stop_rule())
            records.append(
                {"user_id": row.user_id, "example_id": row.example_id, "gaps": [number(gap) for gap in gaps]}
            )
        return records

    in_batches(bench, cell, rows, work)


@torch.no_grad()
def fluency_gaps(
    backbone: Backbone, prompt: Sequence[int], texts: Sequence[tuple[Sequence[int], bool]], stop: StopRule
) -> list[float]:
    """Return how far each text stays behind the policy's own choices.

        gap = mean_t( max_v log π(v | x, y<t) - log π(y_t | x, y<t) )

    Zero for what greedy decoding writes; tokens that the stop rule forbids at a step are nobody's choice.

    Args:
        backbone: the policy.
        prompt: the prompt's ids.
        texts: of each text the ids as generated, and whether an end or stop token closed it.
        stop: the rule they were generated under.

    Returns:
        Nats a token, of each text; the end token counts where there is one, and of several the likeliest.
    """
    trie = build_trie([ids for ids, _ in texts])
    head, tail = chain(prompt, ROOT, 0), trie.block(parent=len(prompt) - 1, start=len(prompt))
    states = tree_states(backbone, [Block(head.tokens + tail.tokens, head.parents + tail.parents)])[0]
    out = []
    for (ids, ended), path in zip(texts, trie.paths, strict=True):
        closed = ended and (not ids or ids[-1] not in stop.stop_ids)
        steps = len(ids) + closed
        nodes = [len(prompt) - 1, *(len(prompt) + node for node in path)][:steps]
        total = 0.0
        for begin in range(0, steps, POSITIONS):
            part = range(begin, min(begin + POSITIONS, steps))
            log_probs = backbone.log_probs(states[nodes[part.start : part.stop]]).double()
            early = max(0, min(stop.min_new_tokens, part.stop) - part.start)
            log_probs[:early, stop.closers] = -torch.inf
            taken = [[ids[step]] if step < len(ids) else stop.end_ids for step in part]
            chosen = torch.stack([row[list(tokens)].max() for row, tokens in zip(log_probs, taken, strict=True)])
            total += float((log_probs.max(-1).values - chosen).sum())
        out.append(total / steps)
    return out


def run_reward(
    bench: Workbench,
    cell: Cell,
    rows: Sequence[PreferencePair],
    written: Cell,
    reward_cell: Cell,
    spec: RewardModelSpec,
) -> None:
    """Record the reward of each text for its own training user, under the reward model that steered or another."""
    model = bench.fitted(reward_cell, spec)
    texts = {record["example_id"]: record["completion"] for record in bench.folder(written).records()}
    values = model.rewards(
        [row.prompt for row in rows],
        [texts[row.example_id] for row in rows],
        [model.state_of(row.user_id) for row in rows],
    )
    _keep(bench, cell, rows, values)


def run_metric(bench: Workbench, cell: Cell, rows: Sequence[PreferencePair], written: Cell, name: str) -> None:
    """Record how near each text is to what the user wrote."""
    texts = {record["example_id"]: record["completion"] for record in bench.folder(written).records()}
    metric = METRICS[name].build()
    _keep(bench, cell, rows, metric.score([texts[row.example_id] for row in rows], [row.reference for row in rows]))


def _keep(bench: Workbench, cell: Cell, rows: Sequence[PreferencePair], values: Any) -> None:
    folder = bench.folder(cell)
    folder.clear()
    folder.start()
    folder.append(
        {"user_id": row.user_id, "example_id": row.example_id, "value": number(value)}
        for row, value in zip(rows, values, strict=True)
    )
    folder.finish()
