"""The lean forward is the plain one: the same products, the same attention, whatever ran before."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgap.backbones.lean import JoinedNorm, grouped_attention, make_lean
from rewardgap.backbones.lean_layer import LeanLayer, is_plain, joined_to_prepare
from rewardgap.backbones.prepared import FEWEST, SIZES, PreparedLinear
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import siblings
from standins import ARCHITECTURES, as_backbone, tiny_model

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="prepared products are MKL's")


def layer(inputs: int = 24, outputs: int = 30, bias: bool = True, seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    made = torch.nn.Linear(inputs, outputs, bias).requires_grad_(False)
    made.__class__ = PreparedLinear
    return made


@needs_mkl
@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), inputs=st.integers(1, 40), outputs=st.integers(1, 40),
    bias=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_prepared_product_is_the_plain_one(shape, inputs, outputs, bias, seed) -> None:
    made = layer(inputs, outputs, bias, seed)
    rows = torch.randn(*shape, inputs)
    plain = torch.nn.functional.linear(rows, made.weight, made.bias)
    with torch.no_grad():
        found = made(rows)
        assert found.shape == plain.shape
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        assert torch.equal(made(rows), found)


@needs_mkl
def test_prepared_sizes_are_used_and_others_are_not() -> None:
    made = layer()
    with torch.no_grad():
        for rows in (1, FEWEST - 1, SIZES[-1] + 1):
            made(torch.randn(rows, 24))
        assert made.num_prepared == 0
        for rows in (FEWEST, SIZES[0], SIZES[0] + 1, SIZES[-1]):
            made(torch.randn(rows, 24))
    assert made.num_prepared == len(SIZES)
    made(torch.randn(10, 24, dtype=torch.float32))  # with gradients wanted: the plain product
    double = layer().double()
    with torch.no_grad():
        assert double(torch.randn(10, 24, dtype=torch.float64)).dtype == torch.float64
    assert double.num_prepared == 0


@needs_mkl
def test_a_row_gets_the_same_bits_in_every_company_and_whatever_ran_before() -> None:
    fresh, used = layer(64, 96), layer(64, 96)
    rows = torch.randn(16, 64)
    with torch.no_grad():
        for count in (30, 5, 64, 11):
            used(torch.randn(count, 64))
        whole = fresh(rows)
        for count in range(FEWEST, 17):
            assert torch.equal(used(rows[:count]), whole[:count])


@needs_mkl
def test_weights_that_change_are_prepared_anew() -> None:
    made, rows = layer(), torch.randn(10, 24)
    with torch.no_grad():
        made(rows)
        made.weight.mul_(2.0)
        torch.testing.assert_close(made(rows), torch.nn.functional.linear(rows, made.weight, made.bias))
        made.weight = torch.nn.Parameter(torch.randn(30, 24), requires_grad=False)
        torch.testing.assert_close(made(rows), torch.nn.functional.linear(rows, made.weight, made.bias))
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert other.num_prepared == 0
            assert torch.equal(other(rows), made(rows))


@needs_mkl
def test_networks_that_share_weights_share_what_was_prepared() -> None:
    """Each adapted copy of a backbone would else keep its own: several times the network, for every reward model."""
    made, rows = layer(), torch.randn(10, 24)
    other = copy.deepcopy(made, memo={id(made.weight): made.weight})
    with torch.no_grad():
        made(rows)
        assert other._prepared(SIZES[0]) is made._prepared(SIZES[0])
        weights = weakref.ref(made.weight)
        del made, other
    gc.collect()
    assert weights() is None


def test_gradients_flow_through_a_prepared_layer() -> None:
    made, plain = layer(), torch.nn.Linear(24, 30)
    plain.load_state_dict(made.state_dict())
    rows = torch.randn(10, 24, requires_grad=True)
    (own,) = torch.autograd.grad(made(rows).square().sum(), rows)
    (other,) = torch.autograd.grad(plain(rows).square().sum(), rows)
    torch.testing.assert_close(own, other, rtol=0, atol=0)


def states(model, tokens: list[list[int]], tails: list[list[int]]) -> torch.Tensor:
    session = TrieSession(as_backbone(model), len(tokens), 80)
    session.prefill(tokens)
    return session.extend([siblings(tail, tip) for tail, tip in zip(tails, session.tips, strict=True)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=10)
@given(data=st.data())
def test_a_lean_network_is_the_network(architecture: str, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.lists(st.integers(0, 28), min_size=1, max_size=40), min_size=1, max_size=3))
    tails = [data.draw(st.lists(st.integers(0, 28), min_size=1, max_size=7)) for _ in tokens]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        plain = tiny_model(architecture, dtype=dtype)
        lean = copy.deepcopy(plain)
        make_lean(lean)
        assert lean.config.get_text_config()._attn_implementation != plain.config._attn_implementation
        for row, tail in enumerate(tails):
            own, other = states(lean, tokens, tails), states(plain, tokens, tails)
            torch.testing.assert_close(own[row, : len(tail)], other[row, : len(tail)], rtol=tolerance, atol=tolerance)
        ids, seen = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[1, 1, 1, 0]])
        with torch.no_grad():  # masks of two dimensions, as transformers builds on by itself
            own, other = (m(input_ids=ids, attention_mask=seen).logits[:, :3] for m in (lean, plain))
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)


def test_only_float32_on_a_cpu_is_prepared_and_names_stay() -> None:
    for dtype, expected in ((torch.float32, torch.backends.mkl.is_available()), (torch.float64, False)):
        model = tiny_model("llama", dtype=dtype)
        before = list(model.state_dict())
        make_lean(model)
        assert any(isinstance(module, PreparedLinear) for module in model.modules()) == expected
        assert list(model.state_dict()) == before
        assert type(model.get_output_embeddings()) is torch.nn.Linear


def test_memory_decides_whether_weights_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewardgap.backbones.lean._memory", lambda: 1000)
    model = tiny_model("llama", dtype=torch.float32)
    make_lean(model)
    assert not any(isinstance(module, PreparedLinear) for module in model.modules())


def lean_model(architecture: str = "llama", **shape) -> torch.nn.Module:
    model = tiny_model(architecture, dtype=torch.float32, **shape)
    make_lean(model)
    return model


@needs_mkl
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_take_fewer_calls_where_they_come_out_the_same(architecture: str) -> None:
    """Gemma's layers have norms of their own around both halves: read like the others they come out otherwise."""
    layers = lean_model(architecture).get_decoder().layers
    assert {isinstance(layer, LeanLayer) for layer in layers} == {architecture != "gemma3"}


@needs_mkl
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "gemma3"])
@settings(max_examples=15)
@given(data=st.data())
def test_a_lean_layer_is_the_layer(architecture: str, data: st.DataObject) -> None:
    """With keys and values kept, trees of several rows, and any number of tokens."""
    tokens = data.draw(st.lists(st.lists(st.integers(0, 28), min_size=1, max_size=30), min_size=1, max_size=3))
    tails = [data.draw(st.lists(st.integers(0, 28), min_size=1, max_size=25)) for _ in tokens]
    lean = lean_model(architecture)
    for layer in lean.get_decoder().layers:
        for name, weight in layer.named_parameters():
            if "bias" in name or "norm" in name:
                weight.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    plain = copy.deepcopy(lean)
    for layer in plain.get_decoder().layers:
        layer.__class__ = type(layer).__mro__[2]
        assert not isinstance(layer, LeanLayer)
    own, other = states(lean, tokens, tails), states(plain, tokens, tails)
    for row, tail in enumerate(tails):
        torch.testing.assert_close(own[row, : len(tail)], other[row, : len(tail)], rtol=1e-4, atol=1e-4)


@needs_mkl
def test_a_layer_that_was_adapted_or_is_watched_runs_as_it_is() -> None:
    model = lean_model()
    first, second = model.get_decoder().layers
    assert is_plain(first)
    seen = []
    handle = first.self_attn.o_proj.register_forward_hook(lambda *_: seen.append(1))
    assert not is_plain(first)
    states(model, [[1, 2, 3, 4]], [[5, 6, 7, 8]])
    assert seen
    handle.remove()
    assert is_plain(first)
    before = states(model, [[1, 2, 3, 4]], [[5, 6, 7, 8]])

    class Doubled(torch.nn.Module):
        def __init__(self, base: torch.nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * self.base(inputs)

    second.mlp.down_proj = Doubled(second.mlp.down_proj)
    assert not is_plain(second)
    assert not torch.allclose(states(model, [[1, 2, 3, 4]], [[5, 6, 7, 8]]), before)
    with torch.no_grad():
        second.mlp.down_proj.base.weight.div_(2)
    torch.testing.assert_close(states(model, [[1, 2, 3, 4]], [[5, 6, 7, 8]]), before, rtol=1e-4, atol=1e-4)


@needs_mkl
def test_joined_weights_that_change_are_prepared_anew_and_go_with_the_network() -> None:
    model = lean_model()
    layer = model.get_decoder().layers[0]
    before = states(model, [[1, 2, 3, 4]], [[5, 6, 7, 8]])
    with torch.no_grad():
        layer.self_attn.v_proj.weight.mul_(3.0)
    after = states(model, [[1, 2, 3, 4]], [[5, 6, 7, 8]])
    assert not torch.allclose(before, after, atol=1e-3)
    fresh = tiny_model("llama", dtype=torch.float32)
    with torch.no_grad():
        fresh.get_decoder().layers[0].self_attn.v_proj.weight.mul_(3.0)
    torch.testing.assert_close(after, states(fresh, [[1, 2, 3, 4]], [[5, 6, 7, 8]]), rtol=1e-4, atol=1e-4)
    weights = weakref.ref(layer.self_attn.q_proj.weight)
    assert joined_to_prepare(model)[1] > 0
    del model, layer
    gc.collect()
    assert weights() is None


def test_gradients_flow_through_a_lean_layer() -> None:
    lean, plain = lean_model(), tiny_model("llama", dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    for model in (lean, plain):
        model.requires_grad_(True)
        model(input_ids=ids).logits.square().sum().backward()
    for (name, own), (_, other) in zip(lean.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, msg=name, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_grouped_attention_is_attention_with_copied_heads(heads: int, masked: bool) -> None:
    class Layer:
        num_key_value_groups = heads // 2
        is_causal = True

    torch.manual_seed(3)
    query, key, value = torch.randn(2, heads, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = (torch.rand(2, 1, 5, 9) < 0.6) | torch.eye(5, 9, dtype=torch.bool) if masked else None
    copied = [part.repeat_interleave(heads // 2, 1) for part in (key, value)]
    weights = query @ copied[0].transpose(2, 3) * 0.3
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf)
    else:
        weights = weights.masked_fill(~torch.ones(5, 9, dtype=torch.bool).tril(), -torch.inf)
    expected = (torch.softmax(weights, -1) @ copied[1]).transpose(1, 2)
    with torch.no_grad():
        own, nothing = grouped_attention(Layer(), query, key, value, mask, scaling=0.3)
    assert nothing is None
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_joined_norms_are_the_layers_own_to_the_bit(architecture: str) -> None:
    plain = tiny_model(architecture).float()
    lean = copy.deepcopy(plain)
    make_lean(lean)
    found = {name: module for name, module in lean.named_modules() if isinstance(module, JoinedNorm)}
    own = dict(plain.named_modules())
    # Gemma scales by 1 + weight, which is not the same call.
    assert bool(found) == (architecture != "gemma3")
    rows = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)) * 30
    for name, module in found.items():
        with torch.no_grad():
            module.weight.normal_()
            own[name].weight.copy_(module.weight)
            part = rows[..., : len(module.weight)]
            assert torch.equal(module(part), own[name](part))
        assert torch.equal(module(part), own[name](part))  # with gradients wanted
        assert isinstance(module, type(own[name]))


def test_a_norm_of_another_kind_is_left_alone() -> None:
    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + 2e-6) * self.weight

    model = tiny_model("llama").float()
    model.get_decoder().norm = Shifted()
    make_lean(model)
    assert type(model.get_decoder().norm) is Shifted
