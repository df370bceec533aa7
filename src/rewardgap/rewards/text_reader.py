"""What a policy has written, as a reward model of another tokenizer reads it: text is what the two have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.traces import NODES_PER_ROW, NodeStates
from rewardgap.backbones.trie import ROOT, Block, build_trie
from rewardgap.core.errors import DataError
from rewardgap.core.records import prompt_to_json
from rewardgap.core.store import content_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.chat import ChatEncoder
    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import Trace
    from rewardgap.backbones.trie import Trie
    from rewardgap.core.records import Prompt

BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""


class TextReader:
    """Reads the policy's tokens behind one prompt with the reward model's tokenizer.

    The whole text is decoded and encoded again: a token more may change how the tokens before it are read. Control
    tokens spell nothing, and special tokens that are spelled out are characters.

    Args:
        policy: the tokenizer of what was written.
        reward: the tokenizer it is to be read with.
        prompt: what the text answers.
    """

    def __init__(self, policy: ChatEncoder, reward: ChatEncoder, prompt: Prompt) -> None:
        self._policy, self._reward, self._prompt = policy, reward, prompt
        self._silent = frozenset(policy.end_ids)

    def read(self, tokens: Sequence[int], before: tuple[int, ...]) -> tuple[int, ...]:
        """Return the reward model's ids of the text so far, or `before` where that ends inside a character.

        Args:
            tokens: the policy's, from the first of the completion on.
            before: ids of the last text that did not.

        Raises:
            DataError: if the reward model's tokenizer can read a part of the text as a control token only.
        """
        text = self._policy.decode([token for token in tokens if token not in self._silent])
        if text.endswith(BROKEN):
            return before
        # The blank that joins a completion to a prompt without a template is the policy's, not the completion's.
        if text.startswith(" ") and self._policy.joined(text[1:], self._prompt) == text:
            text = text[1:]
        return self._reward.encode_completion(text, after=self._prompt)


def check_context(backbone: Backbone, prompt: int, text: int) -> None:
    """Refuse texts that the reward model cannot read to their end.

    Args:
        backbone: the reward model's.
        prompt: tokens of the prompt.
        text: tokens of the longest text behind it.

    Raises:
        DataError: naming both numbers.
    """
    if prompt + text > backbone.context:
        raise DataError(
            f"prompt of {prompt} tokens and text of {text} are longer than the {backbone.context} that the reward "
            f"model {backbone.name} reads; its tokenizer is another than the policy's, and counts otherwise. "
            "Lower max_prompt_tokens or max_new_tokens."
        )


def text_states_key(
    policy: ChatEncoder, backbone: Backbone, prompt: Prompt, prompt_ids: Sequence[int], trace: Trace
) -> str:
    """Return the name of the node states of a trace under a backbone that reads its text, for `TraceCache`."""
    read = [policy.template_hash, list(policy.end_ids), backbone.fingerprint, prompt_to_json(prompt), list(prompt_ids)]
    return content_hash(["text-states/1", *read, trace.tokens.tolist(), trace.candidates.tolist()], 32)


def text_node_states(
    policy: ChatEncoder,
    backbone: Backbone,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[Sequence[int]],
    traces: Sequence[Sequence[Trace]],
) -> list[list[NodeStates]]:
    """Return the hidden states at the nodes of traces whose tokens belong to another tokenizer.

    The state of a prefix or candidate is that at the end of the text it spells; where it ends inside a character, that
    of the last prefix that did not, and of one that ends the text, that of the prefix it closes.

    Args:
        policy: the tokenizer of the traces.
        backbone: the reward model's.
        prompts: B prompts.
        prompt_ids: what the reward model reads for each of them.
        traces: of each row's completions.

    Raises:
        DataError: if a text does not fit the reward model's context.
    """
    rows = [
        _texts(TextReader(policy, backbone.encoder, prompt), row) for prompt, row in zip(prompts, traces, strict=True)
    ]
    for ids, texts in zip(prompt_ids, rows, strict=True):
        check_context(backbone, len(ids), max(map(len, texts), default=0))
    tries = [build_trie(texts) for texts in rows]
    # The texts in whole come first: their nodes stay, and all others hang below them.
    lengths = [len(build_trie(texts[: len(row)]).tokens) for texts, row in zip(rows, traces, strict=True)]
    chunks = [_chunks(trie, length) for trie, length in zip(tries, lengths, strict=True)]
    widest = max(lengths) + max((len(chunk) for row in chunks for chunk in row), default=0)
    session = TrieSession(backbone, len(rows), max(map(len, prompt_ids)) + widest)
    tips, start = session.prefill(prompt_ids), session.forest.length
    # Row 0 is the bare prompt, row 1 + n node n.
    tables = [tips.new_zeros((1 + len(trie.tokens), tips.shape[-1])) for trie in tries]
    for number in range(-1, max(map(len, chunks), default=0)):
        nodes: list[Sequence[int]] = [range(length) for length in lengths]
        if number >= 0:
            nodes = [row[number] if number < len(row) else [] for row in chunks]
        base = session.forest.length
        hung = zip(tries, nodes, session.tips, strict=True)
        states = session.extend([_hang(trie, own, start, tip, base) for trie, own, tip in hung])
        for row, own in enumerate(nodes):
            tables[row][[1 + node for node in own]] = states[row, : len(own)].to(tips)
        if number >= 0:
            session.truncate(base)
    for row, table in enumerate(tables):
        table[0] = tips[row]
    return [_gather(trie, table, row) for trie, table, row in zip(tries, tables, traces, strict=True)]


def _texts(reader: TextReader, traces: Sequence[Trace]) -> list[tuple[int, ...]]:
    """Return the ids of each trace's whole text; then, trace by trace, of T prefixes and of T * K candidates."""
    whole, others = [], []
    for trace in traces:
        prefixes, candidates = _readings(reader, trace)
        whole.append(prefixes[-1])
        others += [*prefixes, *(ids for step in candidates for ids in step)]
    return [*whole, *others]


def _readings(reader: TextReader, trace: Trace) -> tuple[list[tuple[int, ...]], list[list[tuple[int, ...]]]]:
    """Return the reward model's ids of each of T prefixes, and of each candidate beside them, (T, K)."""
    tokens = trace.tokens.tolist()
    prefixes: list[tuple[int, ...]] = [()]
    for end in range(1, len(tokens)):
        prefixes.append(reader.read(tokens[:end], prefixes[-1]))
    candidates = [
        [reader.read([*tokens[:end], token], prefix) for token in row]
        for end, (prefix, row) in enumerate(zip(prefixes, trace.candidates.tolist(), strict=True))
    ]
    return prefixes, candidates


def _chunks(trie: Trie, begin: int) -> list[list[int]]:
    """Deal the nodes from `begin` on into passes, what hangs together into one."""
    roots: dict[int, int] = {}
    branches: dict[int, list[int]] = {}
    for node in range(begin, len(trie.tokens)):
        roots[node] = roots.get(trie.parents[node], node)
        branches.setdefault(roots[node], []).append(node)
    chunks: list[list[int]] = []
    for branch in branches.values():
        if not chunks or len(chunks[-1]) + len(branch) > NODES_PER_ROW:
            chunks.append([])
        chunks[-1] += branch
    return chunks


def _hang(trie: Trie, nodes: Sequence[int], start: int, tip: int, base: int) -> Block:
    """Return nodes as a block at slot `base`; the slots of those they follow are in it, from `start` on, or the tip."""
    inside = {node: base + place for place, node in enumerate(nodes)}
    parents = (trie.parents[node] for node in nodes)
    slots = (tip if parent == ROOT else inside.get(parent, start + parent) for parent in parents)
    return Block(tuple(trie.tokens[node] for node in nodes), tuple(slots))


def _gather(trie: Trie, table: torch.Tensor, traces: Sequence[Trace]) -> list[NodeStates]:
    """Return a row's states in the order in which its texts were put into the trie."""
    ends = torch.tensor([1 + path[-1] if path else 0 for path in trie.paths], device=table.device)
    out, place = [], len(traces)
    for trace in traces:
        length, width = trace.candidates.shape
        prefixes = table[ends[place : place + length]]
        place += length
        candidates = table[ends[place : place + length * width]].reshape(length, width, -1)
        place += length * width
        out.append(NodeStates(prefixes, candidates))
    return out
