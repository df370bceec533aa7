"""Pools of samples on disk by content: what a policy writes for a prompt is drawn once for all who choose from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rewardgap.core.store import cache_root, content_hash, write_bytes
from rewardgap.decoding.chains import Chain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rewardgap.decoding.outcome import StopRule


class PoolCache:
    """Samples of prompts, one safetensors file a prompt. A larger pool begins with the smaller one.

    Args:
        folder: where they are; `pools` in the cache unless given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._root = folder if folder is not None else cache_root() / "pools"

    @staticmethod
    def key(
        fingerprint: str, prompt_ids: Sequence[int], stop: StopRule, temperature: float, top_p: float, seed: int
    ) -> str:
        """Return the name of a pool: everything its samples depend on, but not their number."""
        rule = [list(stop.end_ids), list(stop.stop_ids), stop.max_new_tokens, stop.min_new_tokens]
        return content_hash(["pool/1", fingerprint, list(prompt_ids), rule, temperature, top_p, seed], 32)

    def load(self, key: str) -> list[Chain]:
        """Return the samples that are there, none for a file that is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(key)
        try:
            found = load_file(path) if path.exists() else None
        except (SafetensorError, OSError):
            # A damaged file is worth no more than a missing one: it is drawn again and replaced.
            found = None
        if found is None:
            return []
        rows = zip(*(found[name].tolist() for name in ("tokens", "lengths", "log_probs", "closed")), strict=True)
        return [Chain(row[:length], [], log_prob, bool(closed), True) for row, length, log_prob, closed in rows]

    def save(self, key: str, chains: Sequence[Chain]) -> None:
        """Store the samples of a prompt, all of whole texts."""
        from safetensors.torch import save

        width = max(len(chain.tokens) for chain in chains)
        tensors = {
            "tokens": torch.tensor([[*chain.tokens, *[-1] * (width - len(chain.tokens))] for chain in chains]),
            "lengths": torch.tensor([len(chain.tokens) for chain in chains]),
            "log_probs": torch.tensor([chain.log_prob for chain in chains], dtype=torch.float64),
            "closed": torch.tensor([chain.closed for chain in chains]),
        }
        write_bytes(self._path(key), save(tensors))

    def filled(
        self, keys: Sequence[str], n: int, draw: Callable[[list[range]], Sequence[Sequence[Chain]]]
    ) -> tuple[list[list[Chain]], list[int]]:
        """Return the first n samples of each pool, those that were missing drawn and kept.

        Args:
            keys: name of each row's pool; rows of one pool draw it once.
            n: samples.
            draw: given the numbers of the samples that each row is to draw, returns them.

        Returns:
            The samples of each row, and how many tokens were drawn for it now.
        """
        pools = {key: self.load(key) for key in keys}
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        missing = [range(len(pools[key]), n) if first[key] == row else range(0) for row, key in enumerate(keys)]
        drafted = [0] * len(keys)
        if any(missing):
            for row, (key, fresh) in enumerate(zip(keys, draw(missing), strict=True)):
                if fresh:
                    drafted[row] = sum(len(chain.tokens) for chain in fresh)
                    pools[key] = [*pools[key], *fresh]
                    self.save(key, pools[key])
        copies = [[Chain(c.tokens, [], c.log_prob, c.closed, True) for c in pools[key][:n]] for key in keys]
        return copies, drafted

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.safetensors"
