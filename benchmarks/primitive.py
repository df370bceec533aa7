"""What packing saves, on this machine: ratios within one run, with interleaved repetitions, as JSON.

    python benchmarks/primitive.py --json out.json

- pair: chosen and rejected after one prompt, packed against two rows.
- step: one guided step (k candidates read, winner kept), packed siblings against re-encoding every candidate.
- score: rewards at k candidates beside every token of a completion, packed against one re-encoding a position (its
  k candidates as a batch), on a few positions and extrapolated to all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.session import TrieSession, tree_states
from rewardgap.backbones.traces import node_room, node_states, policy_traces
from rewardgap.backbones.trie import Block, build_trie, chain, siblings
from rewardgap.studies.environment import choose_threads, environment

PROMPT, COMPLETION, POSITIONS = 200, 30, 3


def seconds(work) -> float:
    begin = time.perf_counter()
    with torch.no_grad():
        work()
    return time.perf_counter() - begin


def interleaved(fast, slow, repetitions: int) -> dict[str, float]:
    """Run both in turn and return the ratio slow / fast of each pair of runs."""
    fast(), slow()
    ratios = []
    for _ in range(repetitions):
        quick = seconds(fast)
        ratios.append(seconds(slow) / quick)
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "repetitions": repetitions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="smollm2-135m")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    choose_threads(options.threads)
    backbone = load_backbone(options.policy)
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(100, backbone.vocabulary - 100, (count,), generator=draw).tolist()

    prompt, chosen, rejected = tokens(PROMPT), tokens(COMPLETION), tokens(COMPLETION)
    tail = build_trie([chosen, rejected]).block(parent=PROMPT - 1, start=PROMPT)
    head = chain(prompt, -1, 0)
    packed = Block(head.tokens + tail.tokens, head.parents + tail.parents)
    result = {
        "pair": interleaved(
            lambda: tree_states(backbone, [packed]),
            lambda: backbone.hidden_unpacked([prompt + chosen, prompt + rejected]),
            options.repetitions,
        )
    }

    session = TrieSession(backbone, 1, PROMPT + 64 + options.k)
    session.prefill([prompt])
    length = session.forest.length
    candidates = tokens(options.k)

    def step() -> None:
        session.extend([siblings(candidates, session.tips[0])])
        session.truncate(length)

    result["step"] = interleaved(
        step, lambda: backbone.hidden_unpacked([[*prompt, token] for token in candidates]), options.repetitions
    )

    def score() -> None:
        scored = TrieSession(backbone, 1, PROMPT + COMPLETION * (2 + options.k))
        tips = scored.prefill([prompt])
        traces = policy_traces(scored, tips, [[chosen]], backbone.encoder.end_id, options.k)
        assert node_room(traces)
        node_states(scored, tips, traces, ())

    def some_positions() -> None:
        for place in range(0, COMPLETION, COMPLETION // POSITIONS):
            backbone.hidden_unpacked([[*prompt, *chosen[:place], token] for token in candidates])

    part = interleaved(score, some_positions, options.repetitions)
    scaled = {name: part[name] * COMPLETION / POSITIONS for name in ("median", "low", "high")}
    result["score"] = {**scaled, "repetitions": options.repetitions, "extrapolated_from_positions": POSITIONS}
    sizes = {"prompt": PROMPT, "completion": COMPLETION, "k": options.k, "policy": options.policy}
    report = {"sizes": sizes, "environment": environment(), "times_slower_without_packing": result}
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
