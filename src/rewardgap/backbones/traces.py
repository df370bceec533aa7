"""Traces: everything a policy says about a given completion, and the hidden states at every token it could have taken.

One packed pass over the completion gives the log-probability of each of its tokens and the top-k candidates beside it;
a second packed pass hangs those candidates below their prefixes. Rewards of every method at every guidance weight are
then products with these states, so a trace is computed once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from rewardgap.backbones.trie import ROOT, Block, Trie, build_trie
from rewardgap.core.store import cache_root, content_hash, write_bytes
from rewardgap.numerics.topk import top_candidates

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.session import TrieSession

LOGIT_ROWS = 256
NODES_PER_ROW = 320


@dataclass(frozen=True)
class Trace:
    """A policy's view of one completion of T scored tokens, its end token the last.

    Attributes:
        tokens: (T,) scored token ids.
        log_probs: (T,) log π of each, nats.
        candidates: (T, K) ids of the policy's top k at each position, best first.
        candidate_log_probs: (T, K) their log π.
    """

    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float64]
    candidates: NDArray[np.int64]
    candidate_log_probs: NDArray[np.float64]


@dataclass(frozen=True)
class NodeStates:
    """Hidden states along one completion.

    Attributes:
        prefixes: (T, D) state of the prefix before each scored token; row 0 is the bare prompt.
        candidates: (T, K, D) state of each prefix extended by each candidate; zero where the candidate ends the text.
    """

    prefixes: torch.Tensor
    candidates: torch.Tensor


def policy_traces(
    session: TrieSession, tip_states: torch.Tensor, completions: Sequence[Sequence[Sequence[int]]], end_id: int, k: int
) -> list[list[Trace]]:
    """Return the traces of several completions of each prompt, and leave the session as it was.

    Args:
        session: prefilled with B prompts.
        tip_states: (B, D) states at the prompts' ends.
        completions: for each row, the content ids of its completions; the end token is added here.
        end_id: token that closes a completion.
        k: candidates a position.
    """
    backbone = session.backbone
    tries = [build_trie(row) for row in completions]
    states = _chain_states(session, tip_states, tries)
    out = []
    for row, trie in enumerate(tries):
        fluency, ids, golds = _scored(backbone, states[row], trie, completions[row], end_id, k)
        traces = []
        for number, content in enumerate(completions[row]):
            nodes = np.array([0, *(node + 1 for node in trie.paths[number])])
            traces.append(Trace(np.array([*content, end_id], np.int64), golds[number], ids[nodes], fluency[nodes]))
        out.append(traces)
    return out


def node_states(
    session: TrieSession,
    tip_states: torch.Tensor,
    traces: Sequence[Sequence[Trace]],
    end_ids: Sequence[int],
) -> list[list[NodeStates]]:
    """Return the hidden states at the nodes of traces, and leave the session as it was.

    The session may be the policy's or another backbone's with the same token ids, prefilled with its own prompts.

    Args:
        session: prefilled with B prompts.
        tip_states: (B, D) states at the prompts' ends.
        traces: of each row's completions.
        end_ids: candidates that end the text have no state.
    """
    tries = [build_trie([trace.tokens[:-1].tolist() for trace in row]) for row in traces]
    start = session.forest.length
    chains = _chain_states(session, tip_states, tries, keep=True)
    wanted = [_candidate_nodes(trie, row, end_ids) for trie, row in zip(tries, traces, strict=True)]
    found: list[dict[tuple[int, int], torch.Tensor]] = [{} for _ in wanted]
    base = session.forest.length
    for begin in range(0, max(map(len, wanted), default=0), NODES_PER_ROW):
        chunk = [row[begin : begin + NODES_PER_ROW] for row in wanted]
        blocks = [_hang(nodes, start, session.tips[row]) for row, nodes in enumerate(chunk)]
        states = session.extend(blocks)
        for row, nodes in enumerate(chunk):
            found[row].update({node: states[row, place] for place, node in enumerate(nodes)})
        session.truncate(base)
    session.truncate(start)
    return [
        [_gather(trace, trie.paths[number], chains[row], found[row]) for number, trace in enumerate(traces[row])]
        for row, trie in enumerate(tries)
    ]


def prefix_states(
    session: TrieSession, tip_states: torch.Tensor, traces: Sequence[Sequence[Trace]]
) -> list[list[torch.Tensor]]:
    """Return for each completion (T, D): the state before each scored token; the session is left as it was.

    Args:
        session: prefilled with B prompts.
        tip_states: (B, D) states at the prompts' ends.
        traces: of each row's completions.
    """
    tries = [build_trie([trace.tokens[:-1].tolist() for trace in row]) for row in traces]
    chains = _chain_states(session, tip_states, tries)
    return [
        [chain[[0, *(node + 1 for node in path)]] for path in trie.paths]
        for trie, chain in zip(tries, chains, strict=True)
    ]


def node_room(traces: Sequence[Sequence[Trace]]) -> int:
    """Return the slots that `node_states` needs beside the prompts."""
    chains = max(sum(len(trace.tokens) for trace in row) for row in traces)
    return chains + min(NODES_PER_ROW, max(sum(trace.candidates.size for trace in row) for row in traces))


def _hang(places: Sequence[tuple[int, int]], start: int, tip: int) -> Block:
    parents = tuple(tip if node == ROOT else start + node for node, _ in places)
    return Block(tuple(token for _, token in places), parents)


def _gather(
    trace: Trace, path: Sequence[int], chain: torch.Tensor, found: dict[tuple[int, int], torch.Tensor]
) -> NodeStates:
    before = [ROOT, *path]
    prefixes = chain[[node + 1 for node in before]]
    nothing = torch.zeros_like(chain[0])
    rows = [
        torch.stack([found.get((node, token), nothing) for token in tokens])
        for node, tokens in zip(before, trace.candidates.tolist(), strict=True)
    ]
    return NodeStates(prefixes, torch.stack(rows))


def _chain_states(
    session: TrieSession, tip_states: torch.Tensor, tries: Sequence[Trie], *, keep: bool = False
) -> list[torch.Tensor]:
    """Return for each row (1 + nodes, D): the state at the tip, then at each node."""
    start = session.forest.length
    widest = max(len(trie.tokens) for trie in tries)
    if widest == 0:
        return [tip_states[row : row + 1] for row in range(len(tries))]
    blocks = [trie.block(parent=tip, start=start) for trie, tip in zip(tries, session.tips, strict=True)]
    states = session.extend(blocks)
    if not keep:
        session.truncate(start)
    return [torch.cat([tip_states[row : row + 1], states[row, : len(trie.tokens)]]) for row, trie in enumerate(tries)]


def _scored(
    backbone: Backbone,
    states: torch.Tensor,
    trie: Trie,
    completions: Sequence[Sequence[int]],
    end_id: int,
    k: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[NDArray[np.float64]]]:
    """Return top-k log-probabilities and ids at the tip and every node, and each completion's own log-probabilities."""
    steps: list[list[tuple[int, int]]] = []
    for content, path in zip(completions, trie.paths, strict=True):
        steps.append(list(zip([0, *(node + 1 for node in path)], [*content, end_id], strict=True)))
    golds = [np.zeros(len(steps_of)) for steps_of in steps]
    values, ids = [], []
    with torch.no_grad():
        for begin in range(0, len(states), LOGIT_ROWS):
            log_probs = backbone.log_probs(states[begin : begin + LOGIT_ROWS])
            best, index = top_candidates(log_probs, k)
            values.append(best.double().cpu().numpy())
            ids.append(index.cpu().numpy())
            for number, steps_of in enumerate(steps):
                for place, (node, token) in enumerate(steps_of):
                    if begin <= node < begin + LOGIT_ROWS:
                        golds[number][place] = float(log_probs[node - begin, token])
    return np.concatenate(values), np.concatenate(ids), golds


def _candidate_nodes(trie: Trie, traces: Sequence[Trace], end_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return the distinct (prefix node, candidate token) places of a row, end tokens left out."""
    places: dict[tuple[int, int], None] = {}
    for trace, path in zip(traces, trie.paths, strict=True):
        for node, tokens in zip([ROOT, *path], trace.candidates.tolist(), strict=True):
            for token in tokens:
                if token not in end_ids:
                    places[node, token] = None
    return list(places)


class TraceCache:
    """Traces and node states on disk by content, one safetensors file a completion.

    A file holds about T * K * D numbers (0.6 MB for 24 tokens, 10 candidates and 576 features).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._root = folder if folder is not None else cache_root() / "traces"

    @staticmethod
    def key(backbone: Backbone, prompt_ids: Sequence[int], completion_ids: Sequence[int], k: int) -> str:
        """Return the name of a policy trace."""
        return content_hash(["trace/1", backbone.fingerprint, list(prompt_ids), list(completion_ids), k], 32)

    @staticmethod
    def states_key(backbone: Backbone, prompt_ids: Sequence[int], trace: Trace) -> str:
        """Return the name of the node states of a trace under a backbone."""
        return content_hash(
            ["states/1", backbone.fingerprint, list(prompt_ids), trace.tokens.tolist(), trace.candidates.tolist()], 32
        )

    def load_trace(self, key: str) -> Trace | None:
        """Return a stored trace, or None."""
        found = self._load(key)
        if found is None:
            return None
        return Trace(
            found["tokens"].numpy(),
            found["log_probs"].numpy(),
            found["candidates"].numpy(),
            found["candidate_log_probs"].numpy(),
        )

    def save_trace(self, key: str, trace: Trace) -> None:
        """Store a trace."""
        self._save(key, {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in vars(trace).items()})

    def load_states(self, key: str) -> NodeStates | None:
        """Return stored node states, or None."""
        found = self._load(key)
        return None if found is None else NodeStates(found["prefixes"], found["candidates"])

    def save_states(self, key: str, states: NodeStates) -> None:
        """Store node states."""
        self._save(key, {name: value.cpu().contiguous() for name, value in vars(states).items()})

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.safetensors"

    def _load(self, key: str) -> dict[str, torch.Tensor] | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(key)
        try:
            return dict(load_file(path)) if path.exists() else None
        except (SafetensorError, OSError):
            # A damaged file is worth no more than a missing one: it is computed again and replaced.
            return None

    def _save(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save

        write_bytes(self._path(key), save(tensors))
