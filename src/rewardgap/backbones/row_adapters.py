"""An adapter a row: a batch in which every user's row runs through that user's own LoRA.

One network, its weights shared with the base; beside each linear layer of the decoder the factors of the rows' users
are applied as two batched products. Rows of different users are decoded in one batch, and an adapter is a vector.
"""

from __future__ import annotations

import copy
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rewardgap.backbones.hf import Backbone
from rewardgap.core.errors import ModelError, ShapeError
from rewardgap.core.store import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rewardgap.backbones.lora import LoraSettings
    from rewardgap.backbones.trie import Appended


class RowLinear(torch.nn.Module):
    """A frozen linear layer, with an update of its own for each row of the batch.

        y_b = W x_b + (alpha / rank) · B_b A_b dropout(x_b)

    Args:
        base: the frozen layer.
        scale: alpha / rank.
        dropout: on the update's input while training.
    """

    def __init__(self, base: torch.nn.Linear, scale: float, dropout: float) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        self.factors: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (B, Q, out) of (B, Q, in)."""
        out: torch.Tensor = self.base(inputs)
        if self.factors is None:
            return out
        down, up = self.factors
        if inputs.ndim != 3 or len(down) not in (1, len(inputs)):
            raise ShapeError(f"adapters of {len(down)} rows met inputs of shape {tuple(inputs.shape)}.")
        seen = torch.nn.functional.dropout(inputs, self.dropout, self.training).to(down.dtype)
        return out + (self.scale * (seen @ down.transpose(1, 2)) @ up.transpose(1, 2)).to(out.dtype)


@dataclass(frozen=True)
class Place:
    """Where a layer's factors lie in an adapter's vector: A (rank, in) from `begin`, then B (out, rank)."""

    name: str
    begin: int
    inputs: int
    outputs: int


class AdapterHost:
    """A network that takes an adapter a row.

    Args:
        base: the frozen backbone; its weights are shared, and it stays as it is.
        settings: the adapters' shape.

    Attributes:
        size: P, the numbers of one adapter; an adapter is a (P,) vector in float32 or wider.

    Raises:
        ModelError: if the backbone cannot pack: there every path is a row, and a row's user would be lost.
    """

    def __init__(self, base: Backbone, settings: LoraSettings) -> None:
        if not base.packs:
            raise ModelError(f"{base.name} does not take packed masks; adapters of many users in one batch need them.")
        self.base, self.settings = base, settings
        weights = [*base.model.parameters(), *base.model.buffers()]
        self.model = copy.deepcopy(base.model, memo={id(weight): weight for weight in weights})
        decoder = self.model.get_decoder()
        linear = {name: m for name, m in sorted(decoder.named_modules()) if isinstance(m, torch.nn.Linear)}
        self.layers: list[RowLinear] = []
        self.places: list[Place] = []
        begin = 0
        for name, module in linear.items():
            layer = RowLinear(module, settings.alpha / settings.rank, settings.dropout)
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, layer)
            self.layers.append(layer)
            self.places.append(Place(name, begin, module.in_features, module.out_features))
            begin += settings.rank * (module.in_features + module.out_features)
        self.size = begin
        self.model.eval()

    def fresh(self, seed: int) -> torch.Tensor:
        """Return a (P,) adapter that does nothing yet: A uniform as PEFT draws it, B zero.

        A ~ U(-1/√in, 1/√in)
        """
        generator = torch.Generator().manual_seed(seed)
        vector = torch.zeros(self.size)
        for place in self.places:
            end = place.begin + self.settings.rank * place.inputs
            drawn = torch.rand(self.settings.rank * place.inputs, generator=generator)
            vector[place.begin : end] = (2 * drawn - 1) / place.inputs**0.5
        return vector

    def tensors(self, adapter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return an adapter's factors under the names that PEFT gives them."""
        named = {}
        for place, (down, up) in zip(self.places, self._factors(adapter.unsqueeze(0)), strict=True):
            named[f"{place.name}.lora_A.weight"], named[f"{place.name}.lora_B.weight"] = down[0], up[0]
        return named

    def vector(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the (P,) adapter of factors as PEFT names them, whatever stands before a layer's name and between.

        Raises:
            ModelError: if a factor is missing or of another shape: it was made for another backbone or rank.
        """
        out = torch.zeros(self.size)
        for place, (down, up) in zip(self.places, self._factors(out[None]), strict=True):
            for part, target in (("lora_A", down[0]), ("lora_B", up[0])):
                ending = f"{place.name}.{part}."
                found = [tensor for name, tensor in tensors.items() if ending in f"{name}."]
                if len(found) != 1 or found[0].shape != target.shape:
                    raise ModelError(f"the adapter has no {ending[:-1]} of shape {tuple(target.shape)}.")
                target.copy_(found[0])
        return out

    def rows(self, adapters: torch.Tensor) -> RowBackbone:
        """Return the network as rows with these adapters see it; (B, P), or (1, P) for any number of rows alike.

        Raises:
            ShapeError: if the adapters are of another shape.
        """
        if adapters.ndim != 2 or adapters.shape[1] != self.size:
            raise ShapeError(
                f"adapters have shape {tuple(adapters.shape)}, expected (rows, {self.size}) for {self.base.name} at "
                f"rank {self.settings.rank}; they were made for another backbone or rank."
            )
        own = {name: getattr(self.base, name) for name in ("name", "encoder", "packs", "_mask_form")}
        return RowBackbone(fingerprint="", model=self.model, **own, host=self, adapters=adapters)

    def fingerprint(self, adapter: torch.Tensor) -> str:
        """Return the fingerprint of the backbone under one adapter (P,), for cache keys."""
        digest = hashlib.sha256(adapter.detach().float().cpu().numpy().tobytes()).hexdigest()
        return content_hash([self.base.fingerprint, vars(self.settings), digest])

    @contextmanager
    def using(self, adapters: torch.Tensor) -> Iterator[None]:
        """Let the rows of the forward passes inside run through these adapters."""
        for layer, factors in zip(self.layers, self._factors(adapters), strict=True):
            layer.factors = factors
        try:
            yield
        finally:
            for layer in self.layers:
                layer.factors = None

    def _factors(self, adapters: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rank = self.settings.rank
        for place in self.places:
            middle = place.begin + rank * place.inputs
            down = adapters[:, place.begin : middle].reshape(-1, rank, place.inputs)
            up = adapters[:, middle : middle + rank * place.outputs].reshape(-1, place.outputs, rank)
            yield down, up


@dataclass
class RowBackbone(Backbone):
    """A backbone whose rows run through adapters of their own; it has no fingerprint, for its rows differ.

    Attributes:
        host: the network.
        adapters: (B, P), one a row, or (1, P) for any number of rows alike.
    """

    host: Any = None
    adapters: Any = None

    def hidden(self, appended: Appended, cache: Any = None) -> torch.Tensor:
        """Return the hidden states of appended nodes, each row's through its own adapter."""
        with self.host.using(self.adapters):
            return super().hidden(appended, cache)

    def hidden_unpacked(self, paths: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return the hidden states of whole sequences, one a row."""
        with self.host.using(self.adapters):
            return super().hidden_unpacked(paths)

    def of_rows(self, rows: Sequence[int]) -> RowBackbone:
        """Return the backbone of these rows."""
        if len(self.adapters) == 1:
            return self
        return replace(self, adapters=self.adapters[list(rows)])

    def with_rows(self, rows: int, other: Backbone, more: int) -> RowBackbone:
        """Return the backbone of the rows of two batches."""
        assert isinstance(other, RowBackbone)
        both = (self.adapters.expand(rows, -1), other.adapters.expand(more, -1))
        return replace(self, adapters=torch.cat(both))
