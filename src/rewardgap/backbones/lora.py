"""LoRA adapters on a copy of a backbone, through PEFT, with the counts checked."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewardgap.backbones.hf import Backbone
from rewardgap.core.errors import ModelError
from rewardgap.core.store import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class LoraSettings:
    """An adapter's shape.

    Args:
        rank: r, of each update.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input while training.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05


def attach_lora(backbone: Backbone, settings: LoraSettings, seed: int) -> Backbone:
    """Return a copy of a backbone with fresh adapters on every linear layer of its decoder; the original is untouched.

    Raises:
        ModelError: if the number of adapted layers or trainable parameters is not what rank and shapes imply.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # Modules are copied and weights are shared: nothing changes a weight, and a model's worth of memory is saved.
    weights = [*backbone.model.parameters(), *backbone.model.buffers()]
    model = copy.deepcopy(backbone.model, memo={id(weight): weight for weight in weights})
    decoder = model.get_decoder()
    linear = {n: m for n, m in decoder.named_modules() if isinstance(m, torch.nn.Linear)}
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(linear),
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, decoder)
    model.eval()  # the new modules, dropout among them, arrive in training mode
    trainable = sum(p.numel() for p in adapter_parameters(model))
    expected = settings.rank * sum(m.in_features + m.out_features for m in linear.values())
    if trainable != expected:
        raise ModelError(
            f"LoRA on {backbone.name} gave {trainable:,} trainable parameters, expected {expected:,} "
            f"({len(linear)} linear layers at rank {settings.rank})."
        )
    adapted = Backbone(backbone.name, "", model, backbone.encoder, backbone.packs, backbone._mask_form)
    stamp(adapted, backbone, settings)
    return adapted


def stamp(adapted: Backbone, base: Backbone, settings: LoraSettings) -> None:
    """Give an adapted backbone the fingerprint of base, shape and adapter weights; call it again after training."""
    digest = hashlib.sha256()
    for name, tensor in sorted(adapter_tensors(adapted.model).items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    adapted.fingerprint = content_hash([base.fingerprint, vars(settings), digest.hexdigest()])


def adapter_parameters(model: Any) -> list[torch.nn.Parameter]:
    """Return the adapter's parameters, the only trainable ones."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adapter_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return the adapter's weights by name."""
    return {
        name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters() if ".lora_" in name
    }


def load_adapter(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy adapter weights into an adapted model.

    Raises:
        ModelError: if names or shapes differ: the adapter was made for another backbone.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    if set(own) != set(tensors):
        raise ModelError(
            f"the adapter has {len(tensors)} tensors and the backbone {len(own)} places for them; "
            "it was made for another backbone."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise ModelError(
                    f"adapter tensor {name} has shape {tuple(tensors[name].shape)}, the backbone needs "
                    f"{tuple(parameter.shape)}; it was made for another backbone."
                )
            parameter.copy_(tensors[name])
