"""A decoder layer in a third of the calls, for the few tokens of a guided step.

With 10 to 60 tokens a pass, a third of a small network's time goes into calling: seven products, ten small operations
for rotary positions, one mask copied a layer. Here the projections that read the same states are one product, queries
and keys are turned together, and what all layers share is made once a pass. Whether a network's layers can be read this
way is tried at loading, against the layer itself; one that comes out otherwise stays as it is.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from rewardgap.backbones.prepared import FEWEST, SIZES, PreparedLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TOLERANCE = 1e-5
"""Largest difference from the layer itself, as a share of its largest number: float32 adds in another order."""
ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PARTS = ("gate_proj", "up_proj", "down_proj")
_JOINED: Any = WeakTensorKeyDictionary()
"""First weight of a joined product to (state, size -> prepared weights): copies that share weights share these too."""


class LeanLayer:
    """The forward pass of a decoder layer; a layer's class is derived from it."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **rest: Any,
    ) -> torch.Tensor:
        """Return (B, Q, D) of (B, Q, D): that of the layer's own class, in float32 to its last digits."""
        rows, length, width = hidden_states.shape
        if (
            rows * length > SIZES[-1]
            or torch.is_grad_enabled()
            or position_embeddings is None
            or not _takes(attention_mask, length)
            or (hidden_states.dtype, hidden_states.device.type) != (torch.float32, "cpu")
            or not is_plain(self)
        ):
            plain: torch.Tensor = super().forward(  # type: ignore[misc]
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **rest,
            )
            return plain
        assert attention_mask is not None
        children: Any = self._modules  # type: ignore[attr-defined]
        attention, mlp = children["self_attn"], children["mlp"]
        parts, inner = attention._modules, mlp._modules
        head = int(attention.head_dim)
        flat = hidden_states.reshape(rows * length, width)
        joined = _product(
            children["input_layernorm"](flat), (parts["q_proj"], parts["k_proj"], parts["v_proj"]), rows * length
        )
        heads = parts["q_proj"].out_features // head
        groups = parts["k_proj"].out_features // head
        states = joined.view(rows, length, heads + 2 * groups, head)
        turned = _turn(_normed(states[:, :, : heads + groups], parts, heads), position_embeddings)
        key, value = turned[:, :, heads:].transpose(1, 2), states[:, :, heads + groups :].transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, attention.layer_idx)
        share = heads // groups
        query = turned[:, :, :heads].reshape(rows, length, groups, share, head).permute(0, 2, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query.reshape(rows, groups, share * length, head),
            key,
            value,
            attn_mask=_additive(attention_mask, share),
            scale=attention.scaling,
        )
        mixed = mixed.view(rows, groups, share, length, head).permute(0, 3, 1, 2, 4).reshape(rows * length, -1)
        flat = flat + _product(mixed, (parts["o_proj"],), rows * length)
        both = _product(
            children["post_attention_layernorm"](flat), (inner["gate_proj"], inner["up_proj"]), rows * length, cut=False
        )
        half = inner["gate_proj"].out_features
        gated = inner["act_fn"](both[:, :half]).mul_(both[:, half:])
        return (flat + _product(gated, (inner["down_proj"],), rows * length)).view(rows, length, width)


def _takes(mask: torch.Tensor | None, length: int) -> bool:
    return mask is not None and mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[2] == length


def make_lean_layers(model: Any) -> int:
    """Let a network's layers run in fewer calls where they come out the same, and return how many do.

    Args:
        model: a causal language model whose linear layers are prepared, changed in place.
    """
    decoder = model.get_decoder()
    kinds: dict[type, type | None] = {}
    changed = 0
    for layer in getattr(decoder, "layers", ()):
        kind = type(layer)
        if issubclass(kind, LeanLayer) or not is_plain(layer):
            continue
        if kind not in kinds:
            lean = type(kind.__name__, (LeanLayer, kind), {})
            kinds[kind] = lean if _comes_out(layer, lean, decoder) else None
        if kinds[kind] is not None:
            layer.__class__ = kinds[kind]
            changed += 1
    return changed


def joined_to_prepare(model: Any) -> tuple[set[Any], int]:
    """Return the linear layers that are used side by side, and the bytes their prepared weights will still take."""
    joined: set[Any] = set()
    missing = 0
    for layer in getattr(model.get_decoder(), "layers", ()):
        if isinstance(layer, LeanLayer) and is_plain(layer):
            parts = [*_together(layer)]
            joined.update(part for group in parts for part in group)
            for group in parts:
                found = _JOINED.get(group[0].weight)
                known = 0 if found is None else len(found[1])
                missing += (len(SIZES) - known) * sum(part.weight.numel() * 4 for part in group)
    return joined, missing


def is_plain(layer: Any) -> bool:
    """Say whether a layer has the parts that are read here, none of them replaced, adapted or watched by a hook."""
    children = layer._modules
    attention, mlp = children.get("self_attn"), children.get("mlp")
    if attention is None or mlp is None or "input_layernorm" not in children or "act_fn" not in mlp._modules:
        return False
    for owner, names in ((attention, ATTENTION_PARTS), (mlp, MLP_PARTS)):
        parts = owner._modules
        if owner._forward_hooks or owner._forward_pre_hooks:
            return False
        for name in names:
            part = parts.get(name)
            if type(part) is not PreparedLinear or part._forward_hooks or part._forward_pre_hooks:
                return False
    return True


def _together(layer: Any) -> Iterator[tuple[PreparedLinear, ...]]:
    """Yield the linear layers of a decoder layer that read the same states."""
    attention, mlp = layer.self_attn, layer.mlp
    yield attention.q_proj, attention.k_proj, attention.v_proj
    yield (attention.o_proj,)
    yield mlp.gate_proj, mlp.up_proj
    yield (mlp.down_proj,)


def _comes_out(layer: Any, lean: type, decoder: Any) -> bool:
    """Try a layer in its own class and in another one, on packed tokens; say whether the results are the same."""
    length, own = 6, type(layer)
    generator = torch.Generator().manual_seed(0)
    try:
        states = torch.randn(2, length, layer.self_attn.q_proj.in_features, generator=generator)
        positions = torch.tensor([[0, 1, 2, 3, 3, 3], [0, 1, 2, 3, 4, 5]])
        seen = torch.ones(length, length, dtype=torch.bool).tril().expand(2, 1, length, length).clone()
        seen[0, 0, 4, 3] = seen[0, 0, 5, 3] = seen[0, 0, 5, 4] = False
        angles = decoder.rotary_emb(states, positions)
        given = {"attention_mask": seen, "position_ids": positions, "position_embeddings": angles}
        # With gradients nothing is prepared: the trial leaves no memory behind.
        with torch.enable_grad():
            expected = layer(states, **given)
        layer.__class__ = lean
        with torch.no_grad():
            found = layer(states, **given)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    finally:
        layer.__class__ = own
        for group in _together(layer):
            _JOINED.pop(group[0].weight, None)
    if not isinstance(expected, torch.Tensor) or expected.shape != found.shape:
        return False
    return float((found - expected.detach()).abs().max()) <= TOLERANCE * float(expected.detach().abs().max())


def _product(states: torch.Tensor, layers: Sequence[Any], rows: int, *, cut: bool = True) -> torch.Tensor:
    """Return (rows, sum of outputs) of (rows or more, in): several linear layers on the same states, side by side.

    Args:
        states: filled up with rows of zeros to one of the prepared sizes, unless they are already; below the fewest
            rows that are worth it, weights are used as they are.
        layers: prepared linear layers with one input width.
        rows: how many rows count.
        cut: leave the rows that were filled up away.
    """
    if rows < FEWEST:
        return torch.cat([functional.linear(states, layer.weight, layer.bias) for layer in layers], dim=-1)
    size = next(size for size in SIZES if rows <= size)
    if len(states) < size:
        states = functional.pad(states, (0, 0, 0, size - len(states)))
    packed, shape, bias = _prepared(layers, size)
    out: torch.Tensor = torch.ops.mkl._mkl_linear(states, packed, shape, bias, size)
    return out[:rows] if cut and rows < size else out


def _prepared(layers: Sequence[Any], size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    weights = [layer._parameters["weight"] for layer in layers]
    biases = [layer._parameters["bias"] for layer in layers]
    # Weights that were written to, or put elsewhere, are prepared anew.
    state = [(tensor.data_ptr(), tensor._version) for tensor in (*weights, *biases) if tensor is not None]
    found = _JOINED.get(weights[0])
    if found is None or found[0] != state:
        found = _JOINED[weights[0]] = (state, {}, _side_by_side(biases, weights))
    packs: dict[int, torch.Tensor] = found[1]
    if size not in packs:
        whole = weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
        packs[size] = torch.ops.mkl._mkl_reorder_linear_weight(whole, size)
    shape, bias = found[2]
    return packs[size], shape, bias


def _side_by_side(
    biases: Sequence[torch.Tensor | None], weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the shape of the joined weights, as a tensor that takes no memory, and the joined biases."""
    outputs = sum(len(weight) for weight in weights)
    shape = weights[0].detach().new_zeros(1, 1).expand(outputs, weights[0].shape[1])
    if all(bias is None for bias in biases):
        return shape, None
    filled = [
        weight.detach().new_zeros(len(weight)) if bias is None else bias.detach()
        for bias, weight in zip(biases, weights, strict=True)
    ]
    return shape, torch.cat(filled)


def _normed(states: torch.Tensor, parts: Any, heads: int) -> torch.Tensor:
    """Return queries and keys (B, Q, heads, d) after the norms that some networks have before the rotation."""
    if "q_norm" not in parts and "k_norm" not in parts:
        return states
    same: Callable[[torch.Tensor], torch.Tensor] = torch.nn.Identity()
    query, key = parts.get("q_norm", same)(states[:, :, :heads]), parts.get("k_norm", same)(states[:, :, heads:])
    return torch.cat((query, key), dim=2)


class _LastOf:
    """What was made of the last tensor seen: all layers of a pass are given the same mask and the same angles."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.held: tuple[Any, Any, Any] = (lambda: None, None, None)

    def __call__(self, tensor: torch.Tensor, *rest: Any) -> Any:
        seen, known, made = self.held
        if seen() is not tensor or known != rest:
            made = self.make(tensor, *rest)
            self.held = (weakref.ref(tensor), rest, made)
        return made


def _signed(sine: torch.Tensor) -> torch.Tensor:
    """Return (B, Q, 1, d): the sines, those of the first half with a minus."""
    half = sine.shape[-1] // 2
    return torch.cat((-sine[..., :half], sine[..., half:]), dim=-1).unsqueeze(2)


def _bias(mask: torch.Tensor, share: int) -> torch.Tensor:
    """Return (B, 1, share * Q, S): 0 where a query sees a key and -inf elsewhere, the queries of each head in turn."""
    rows, _, length, slots = mask.shape
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    return mask[:, :, None].expand(-1, -1, share, -1, -1).reshape(rows, 1, share * length, slots)


_signed_of, _additive = _LastOf(_signed), _LastOf(_bias)


def _turn(states: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return (B, Q, heads, d) with rotary positions; cosine and sine are (B, Q, d).

    Source: Su et al. 2021, arXiv 2104.09864, with halves in place of neighbours: x cos + (-x₂, x₁) sin.
    """
    cosine, sine = angles
    half = states.shape[-1] // 2
    exchanged = torch.cat((states[..., half:], states[..., :half]), dim=-1)
    return (states * cosine.unsqueeze(2)).addcmul_(exchanged, _signed_of(sine))
