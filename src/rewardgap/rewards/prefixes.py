"""Values of every prefix of both sides of a pair, from one packed pass: the prompt and what the sides share once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from rewardgap.backbones.session import tree_states
from rewardgap.backbones.traces import NodeStates
from rewardgap.backbones.trie import Block, build_trie, chain
from rewardgap.core.store import content_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import TraceCache


class PairPrefixes(NamedTuple):
    """What a reward model says along both sides of a pair, in units of the reward scale.

    Attributes:
        chosen_ids: (T,) tokens of the chosen completion, its end token among them where it has a reward of its own.
        rejected_ids: (T',) the same of the rejected one.
        chosen: (T + 1,) value of each prefix of the chosen completion; index 0 is the bare prompt, the last the reward.
        rejected: (T' + 1,) the same of the rejected one.
    """

    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen: NDArray[np.float64]
    rejected: NDArray[np.float64]


@torch.no_grad()
def states_along(
    backbone: Backbone, ids: Sequence[int], tails: Sequence[Sequence[int]], cache: TraceCache | None = None
) -> list[torch.Tensor]:
    """Return the states of every prefix of completions of one prompt, (T + 1, D) each; row 0 is the bare prompt's.

    Args:
        backbone: the network.
        ids: of the prompt.
        tails: (T,) ids of each completion.
        cache: where states are kept. The name of an entry holds all completions of the pass, since the last bits of a
            state depend on what was read beside it.
    """
    key = ["prefixes/1", backbone.fingerprint, list(ids), [list(tail) for tail in tails]]
    names = [content_hash([*key, side], 32) for side in range(len(tails))]
    kept = [cache.load_states(name) if cache is not None else None for name in names]
    found = [states.prefixes for states in kept if states is not None]
    if len(found) == len(tails):
        return found
    trie = build_trie(tails)
    head, tail = chain(ids, -1, 0), trie.block(parent=len(ids) - 1, start=len(ids))
    states = tree_states(backbone, [Block(head.tokens + tail.tokens, head.parents + tail.parents)])[0].cpu()
    found = [states[[len(ids) - 1, *(len(ids) + node for node in path)]] for path in trie.paths]
    for name, along in zip(names, found, strict=True):
        if cache is not None:
            cache.save_states(name, NodeStates(along, along.new_zeros(len(along), 0, along.shape[1])))
    return found
