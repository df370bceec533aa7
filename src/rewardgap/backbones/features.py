"""Pooled features of (prompt, completion), computed once whoever asks: a content-addressed cache.

The feature of a completion is the hidden state at its last content token (no end token), so the same head reads every
prefix. An empty completion takes the state at the end of the prompt.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from rewardgap.backbones.session import tree_states
from rewardgap.backbones.trie import Block, build_trie, chain
from rewardgap.core.errors import DataError
from rewardgap.core.records import Prompt, prompt_text, prompt_to_json
from rewardgap.core.store import cache_root, content_hash, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rewardgap.backbones.chat import OnLong
    from rewardgap.backbones.hf import Backbone

POOLING = "last-content-token/1"
NODES_PER_FORWARD = 2048
ITEMS_PER_SHARD = 128
ALONE: Prompt = ()
"""Stands for no prompt at all."""


@dataclass(frozen=True, slots=True)
class Item:
    """One text to encode: a prompt and a completion."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True, slots=True)
class PromptLimit:
    """How long a prompt may be, and what happens to a longer one."""

    max_tokens: int | None = None
    on_long: OnLong = "error"


class FeatureCache:
    """Pooled features on disk, one float32 row a text, shared by every study and method.

    Args:
        folder: where shards lie; None for `<cache>/features`. Shards are safetensors files of about 128 rows, written
            whole or not at all. A shard that cannot be read is reported, removed and computed again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._root = folder if folder is not None else cache_root() / "features"
        self._rows: dict[str, dict[str, NDArray[np.float32]]] = {}
        self._read: set[Path] = set()

    def encode(
        self,
        backbone: Backbone,
        items: Sequence[Item],
        limit: PromptLimit = PromptLimit(),
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Return (N, D) features of N texts; texts that were seen before cost nothing.

        Args:
            backbone: the network.
            items: the texts; repeated ones are encoded once.
            limit: for prompts.
            progress: called with (texts done, texts to compute).
        """
        if not backbone.fingerprint:
            raise ValueError("a backbone without a fingerprint has no place in a cache")
        keys = [_key(item, limit) for item in items]
        known = self._rows.setdefault(backbone.fingerprint, {})
        asked = dict(zip(keys, items, strict=True))
        if any(key not in known for key in asked):
            # Another process may have written them since.
            self._load(backbone)
        if any(key not in known for key in asked):
            self._compute(backbone, asked, limit, progress)
        if not keys:
            return np.zeros((0, backbone.width), np.float32)
        return np.stack([known[key] for key in keys])

    def _compute(
        self,
        backbone: Backbone,
        asked: dict[str, Item],
        limit: PromptLimit,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        known = self._rows[backbone.fingerprint]
        fresh: dict[str, NDArray[np.float32]] = {}
        missing = sum(key not in known for key in asked)
        done = 0
        # Batches are cut from all texts asked for, never from what happens to be missing: the last bits of a state
        # depend on its neighbours, and a killed run that is resumed must find the bits of an uninterrupted one.
        for batch in _batches(backbone, asked, limit):
            wanted = [key for tree in batch for key in tree.ends if key not in known]
            if not wanted:
                continue
            blocks = [tree.block for tree in batch]
            with torch.no_grad():
                states = tree_states(backbone, blocks)
            for row, tree in enumerate(batch):
                for key, node in tree.ends.items():
                    if key not in known:
                        fresh[key] = states[row, node].float().cpu().numpy()
            done += len(wanted)
            if progress is not None:
                progress(done, missing)
            if len(fresh) >= ITEMS_PER_SHARD:
                self._save(backbone, fresh)
                known.update(fresh)
                fresh = {}
        if fresh:
            self._save(backbone, fresh)
            known.update(fresh)

    def _folder(self, backbone: Backbone) -> Path:
        return self._root / f"{backbone.fingerprint}-{content_hash(POOLING, 6)}"

    def _load(self, backbone: Backbone) -> None:
        """Read the shards that were not read yet; a row that is there keeps its bits."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        known, folder = self._rows[backbone.fingerprint], self._folder(backbone)
        for shard in sorted(set(folder.glob("*.safetensors")) - self._read) if folder.is_dir() else []:
            try:
                tensors = load_file(shard)
                names = [bytes(name).hex() for name in tensors["keys"]]
                rows = dict(zip(names, tensors["features"], strict=True))
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                warnings.warn(f"feature shard {shard.name} is damaged and is computed again: {error}", stacklevel=3)
                shard.unlink(missing_ok=True)
                continue
            self._read.add(shard)
            for name, row in rows.items():
                known.setdefault(name, row)

    def _save(self, backbone: Backbone, rows: dict[str, NDArray[np.float32]]) -> None:
        from safetensors.numpy import save

        keys = np.stack([np.frombuffer(bytes.fromhex(key), np.uint8) for key in rows])
        payload = save({"keys": keys, "features": np.stack(list(rows.values()))})
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:16]
        path = self._folder(backbone) / f"{name}-{os.getpid()}.safetensors"
        write_bytes(path, payload)
        self._read.add(path)


@dataclass(frozen=True, slots=True)
class _Tree:
    block: Block
    ends: dict[str, int]


def _key(item: Item, limit: PromptLimit) -> str:
    return content_hash(
        [prompt_to_json(item.prompt), item.completion, limit.max_tokens, limit.on_long if limit.max_tokens else None],
        32,
    )


def _batches(backbone: Backbone, asked: dict[str, Item], limit: PromptLimit) -> Iterable[list[_Tree]]:
    """Group texts by prompt into trees, longest first, so that a batch pads little."""
    by_prompt: dict[Prompt, list[str]] = {}
    for key, item in asked.items():
        by_prompt.setdefault(item.prompt, []).append(key)
    trees: list[_Tree] = []
    for prompt, keys in by_prompt.items():
        ids, tails = encode_texts(backbone, prompt, [asked[key].completion for key in keys], limit)
        trees += _trees(ids, keys, tails)
    trees.sort(key=lambda tree: -len(tree.block.tokens))
    batch: list[_Tree] = []
    for tree in trees:
        if batch and len(batch[0].block.tokens) * (len(batch) + 1) > NODES_PER_FORWARD:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def _trees(ids: tuple[int, ...], keys: Sequence[str], tails: Sequence[tuple[int, ...]]) -> Iterable[_Tree]:
    """Hang the completions of one prompt below it, in several trees where one would be too large for a forward."""
    begin, size = 0, len(ids)
    for end, tail in enumerate([*tails, ()]):
        if end == len(tails) or (end > begin and size + len(tail) > NODES_PER_FORWARD):
            block, ends = prompt_tree(ids, tails[begin:end])
            yield _Tree(block, dict(zip(keys[begin:end], ends, strict=True)))
            begin, size = end, len(ids)
        size += len(tail)


def prompt_tree(ids: Sequence[int], tails: Sequence[Sequence[int]]) -> tuple[Block, list[int]]:
    """Return a tree of one prompt and its completions, and the node at which each text ends."""
    trie = build_trie(tails)
    head, tail = chain(ids, -1, 0), trie.block(parent=len(ids) - 1, start=len(ids))
    ends = [len(ids) + path[-1] if path else len(ids) - 1 for path in trie.paths]
    return Block(head.tokens + tail.tokens, head.parents + tail.parents), ends


def encode_texts(
    backbone: Backbone, prompt: Prompt, completions: Sequence[str], limit: PromptLimit
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the ids of a prompt and of completions of it; `ALONE` is the prompt of a completion that is read alone.

    Raises:
        DataError: if the prompt is too long, or a completion does not fit behind it.
    """
    encoder = backbone.encoder
    if prompt == ALONE:
        ids = encoder.alone_ids
    else:
        ids = encoder.encode_prompt(prompt, max_tokens=limit.max_tokens or backbone.context, on_long=limit.on_long)
    tails = [encoder.encode_completion(text, after=prompt) for text in completions]
    longest = max(map(len, tails), default=0)
    if len(ids) + longest > backbone.context:
        raise DataError(
            f"prompt of {len(ids)} tokens and completion of {longest} are longer than the {backbone.context} that "
            f"{backbone.name} reads: '{prompt_text(prompt)[:60]}'. Lower max_prompt_tokens, or shorten the completion."
        )
    return ids, tails
