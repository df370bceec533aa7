"""Products with weights that are kept in the order in which the processor's library reads them.

A guided step sends 10 to 60 tokens through the network at once, and there a plain matrix product spends more time
arranging the weights than multiplying with them. Whether a product uses prepared weights depends on its size alone,
never on what ran before, so that the same text gets the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

SIZES = (16, 32, 64)
"""Tokens for which weights are prepared; a smaller number is filled up with zeros."""
FEWEST = 4
"""Below, weights are used as they are."""
_PREPARED: Any = WeakTensorKeyDictionary()
"""Weights to (state, size -> prepared weights): networks that share weights, as adapted copies do, share these too."""


class PreparedLinear(torch.nn.Linear):
    """A linear layer that keeps its weights prepared for a few numbers of rows; a network's layers are turned into it.

    Source: MKL's packed products (cblas_sgemm_pack, cblas_sgemm_compute), which torch offers as `mkl::_mkl_linear`.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out) of (..., in): that of `torch.nn.Linear`, in float32 to its last digits."""
        rows = input.numel() // self.in_features
        if not FEWEST <= rows <= SIZES[-1] or torch.is_grad_enabled() or input.dtype != torch.float32:
            return super().forward(input)
        size = next(size for size in SIZES if rows <= size)
        flat = input.reshape(rows, self.in_features)
        if rows < size:
            flat = functional.pad(flat, (0, 0, 0, size - rows))
        product: torch.Tensor = torch.ops.mkl._mkl_linear(flat, self._prepared(size), self.weight, self.bias, size)
        return product[:rows].reshape(*input.shape[:-1], self.out_features)

    def _prepared(self, size: int) -> torch.Tensor:
        # Weights that were written to, or put elsewhere, are prepared anew.
        state = (self.weight.data_ptr(), self.weight._version)
        found = _PREPARED.get(self.weight)
        if found is None or found[0] != state:
            found = _PREPARED[self.weight] = (state, {})
        packs: dict[int, torch.Tensor] = found[1]
        if size not in packs:
            packs[size] = torch.ops.mkl._mkl_reorder_linear_weight(self.weight.detach(), size)
        return packs[size]

    @property
    def num_prepared(self) -> int:
        """Return for how many sizes weights are prepared."""
        found = _PREPARED.get(self.weight)
        return 0 if found is None else len(found[1])
