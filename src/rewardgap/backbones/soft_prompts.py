"""Soft prompts: vectors in the place of token embeddings, written as token ids beyond the vocabulary.

A backbone made by `with_soft_prompts` reads the ids from V on as given vectors, and every other id as ever. So trees,
sessions, caches and rows that do not pack carry soft prompts without knowing of them, and each row has its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch

from rewardgap.backbones.hf import Backbone
from rewardgap.core.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.chat import ChatEncoder


@dataclass
class SoftBackbone(Backbone):
    """A backbone that knows N vectors beside its vocabulary.

    Attributes:
        vectors: (N, D) what the ids E, ..., E + N - 1 are read as, E rows of the embedding table; gradients reach them.
    """

    vectors: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0), repr=False)

    def inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the (B, Q, D) embeddings of (B, Q) ids."""
        first = num_embeddings(self)
        soft = ids >= first
        embedded = self.model.get_input_embeddings()(ids.masked_fill(soft, 0))
        return {"inputs_embeds": embedded.index_put((soft,), self.vectors.to(embedded)[ids[soft] - first])}


def num_embeddings(backbone: Backbone) -> int:
    """Return E, the rows of the embedding table: ids from there on mean no token."""
    return int(backbone.model.get_input_embeddings().weight.shape[0])


def with_soft_prompts(backbone: Backbone, prompts: torch.Tensor) -> Backbone:
    """Return the same network with a soft prompt for each of B rows, to be named by `soft_ids`.

    It has no fingerprint: what it reads is a user's own, so nothing read from it belongs into a shared cache.

    Args:
        backbone: the network; its weights are shared.
        prompts: (B, T, D) vectors, in the units of the decoder's embeddings; T = 0 gives the backbone itself.

    Raises:
        ShapeError: if the vectors are not as wide as the network's.
    """
    if prompts.ndim != 3 or prompts.shape[-1] != backbone.width:
        raise ShapeError(
            f"soft prompts have shape {tuple(prompts.shape)}, expected (B, T, D) with D = {backbone.width}, the width "
            f"of {backbone.name}."
        )
    if prompts.shape[1] == 0:
        return backbone
    own = {entry.name: getattr(backbone, entry.name) for entry in fields(Backbone)} | {"fingerprint": ""}
    return SoftBackbone(**own, vectors=prompts.reshape(-1, prompts.shape[-1]))


def soft_ids(backbone: Backbone, row: int, length: int) -> tuple[int, ...]:
    """Return the ids of a row's soft prompt of `length` vectors."""
    begin = num_embeddings(backbone) + row * length
    return tuple(range(begin, begin + length))


def put_first(encoder: ChatEncoder, prompt: Sequence[int], soft: Sequence[int]) -> tuple[int, ...]:
    """Return a prompt's ids with a soft prompt after the beginning-of-text token, at the start where there is none.

    A beginning-of-text token that comes again in the prompt opens turns (`<|im_start|>` in some templates): the soft
    prompt then goes before it, not between it and the name of its role.
    """
    begin = encoder.tokenizer.bos_token_id
    opened = int(bool(prompt) and prompt[0] == begin and list(prompt).count(begin) == 1)
    return (*prompt[:opened], *soft, *prompt[opened:])


def random_embeddings(backbone: Backbone, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return (count, D) embeddings of tokens drawn from the vocabulary, in float32 or wider: a soft prompt's start."""
    ids = torch.randint(min(backbone.vocabulary, num_embeddings(backbone)), (count,), generator=generator)
    with torch.no_grad():
        rows: torch.Tensor = backbone.model.get_input_embeddings()(ids.to(backbone.device))
    return rows if rows.dtype == torch.float64 else rows.float()
