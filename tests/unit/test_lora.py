"""Adapters: nothing at first, exactly as large as they should be, and the only thing that training moves."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from rewardgap.backbones.features import PromptLimit
from rewardgap.backbones.lora import (
    LoraSettings,
    adapter_parameters,
    adapter_tensors,
    attach_lora,
    load_adapter,
    stamp,
)
from rewardgap.backbones.session import tree_states
from rewardgap.backbones.trie import Block
from rewardgap.core.errors import DataError, ModelError
from rewardgap.core.records import PreferencePair
from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.rewards.global_bt import GlobalBT
from rewardgap.rewards.joint import fit_joint, pair_states, token_states
from rewardgap.rewards.training import Schedule
from standins import ARCHITECTURES, text_backbone, tiny_backbone, without_packing

if TYPE_CHECKING:
    from rewardgap.backbones.hf import Backbone

TREE = Block((1, 2, 3, 4, 5, 6), (-1, 0, 1, 1, 3, 0))
PAIRS = [
    PreferencePair(user_id=f"u{i % 2}", example_id=str(i), prompt=prompt, chosen=chosen, rejected=rejected)
    for i, (prompt, chosen, rejected) in enumerate(
        [
            ("Name a colour.", "red", "red and blue"),
            ("what is the name of the river?", "the light", "the stone"),
            ("Why?", "", "winter"),
            ("Name a colour.", "blue", "<|im_end|>"),
            ("one word", "garden", "garden of the user"),
        ]
    )
]


def shaken(backbone: Backbone, settings: LoraSettings = LoraSettings(4, 8, 0.0), seed: int = 0) -> Backbone:
    """Return a backbone whose adapter does something."""
    adapted = attach_lora(backbone, settings, seed)
    with torch.no_grad():
        for parameter in adapter_parameters(adapted.model):
            parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return adapted


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_adapter_is_the_backbone(architecture: str) -> None:
    """B = 0: bit for bit the same states, in packed and in plain rows; and the original is untouched."""
    base = tiny_backbone(architecture)
    before = snapshot(base.model)
    adapted = attach_lora(base, LoraSettings(), 0)
    with torch.no_grad():
        assert torch.equal(tree_states(adapted, [TREE]), tree_states(base, [TREE]))
        assert torch.equal(tree_states(without_packing(adapted), [TREE]), tree_states(without_packing(base), [TREE]))
    after = snapshot(base.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert adapted.fingerprint not in ("", base.fingerprint)


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_adapter_has_the_size_peft_says(architecture: str, rank: int) -> None:
    """Against PEFT's own wrapping with `target_modules="all-linear"`, and against the sum of r (in + out)."""
    from peft import LoraConfig, get_peft_model

    base = tiny_backbone(architecture)
    adapted = attach_lora(base, LoraSettings(rank, 16, 0.05), 0)
    own = sum(p.numel() for p in adapter_parameters(adapted.model))
    peer = get_peft_model(
        copy.deepcopy(base.model), LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    assert own == peer.get_nb_trainable_parameters()[0]
    hidden, inner, queries, keys = 24, 36, 40, 20
    layer = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + inner)
    assert own == rank * layer * base.config.num_hidden_layers
    assert all(".lora_" in n for n, p in adapted.model.named_parameters() if p.requires_grad)
    assert {p.dtype for p in adapter_parameters(adapted.model)} <= {torch.float32, torch.float64}


def test_the_update_is_alpha_over_rank_times_b_a() -> None:
    base = tiny_backbone()
    adapted = shaken(base, LoraSettings(4, 12, 0.5))
    layer = adapted.model.model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = x @ (layer.base_layer.weight + 12 / 4 * (b @ a).double()).T
    torch.testing.assert_close(layer(x), expected)  # eval: no dropout


def test_the_seed_decides_the_adapter() -> None:
    base = tiny_backbone()
    state = torch.random.get_rng_state()
    one, two, other = (attach_lora(base, LoraSettings(), seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert attach_lora(base, LoraSettings(alpha=32), 1).fingerprint != one.fingerprint


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_tensors_give_the_same_adapter(architecture: str) -> None:
    base = tiny_backbone(architecture)
    adapted = shaken(base)
    settings = LoraSettings(4, 8, 0.0)
    stamp(adapted, base, settings)
    copied = attach_lora(base, settings, 99)
    load_adapter(copied.model, {name: tensor.clone() for name, tensor in adapter_tensors(adapted.model).items()})
    stamp(copied, base, settings)
    with torch.no_grad():
        assert torch.equal(tree_states(copied, [TREE]), tree_states(adapted, [TREE]))
        assert not torch.allclose(tree_states(copied, [TREE]), tree_states(base, [TREE]))
    assert copied.fingerprint == adapted.fingerprint


def test_an_adapter_of_another_backbone_is_refused() -> None:
    tensors = adapter_tensors(attach_lora(tiny_backbone("llama"), LoraSettings(4), 0).model)
    deeper = attach_lora(tiny_backbone("gemma3"), LoraSettings(4), 0)
    with pytest.raises(ModelError, match="made for another backbone"):
        load_adapter(deeper.model, tensors)
    wider = attach_lora(tiny_backbone("llama"), LoraSettings(8), 0)
    before = snapshot(wider.model)
    with pytest.raises(ModelError, match=r"has shape \(4, 24\), the backbone needs \(8, 24\)"):
        load_adapter(wider.model, tensors)
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(wider.model).items())


def test_a_backbone_that_would_train_as_well_is_refused() -> None:
    from standins import private_copy

    base = private_copy(tiny_backbone())
    base.model.model.norm.weight.requires_grad_(True)
    adapted = attach_lora(base, LoraSettings(), 0)
    assert all(".lora_" in n for n, p in adapted.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_packed_pair_loss_and_its_gradient_are_those_of_two_forwards(architecture: str, packs: bool) -> None:
    backbone = shaken(text_backbone(architecture))
    backbone = backbone if packs else without_packing(backbone)
    parameters = adapter_parameters(backbone.model)
    weight = torch.linspace(-1, 1, 24, dtype=torch.float64)
    chosen, rejected = pair_states(backbone, PAIRS, PromptLimit())
    loss = pair_loss((chosen - rejected) @ weight).mean()
    packed = torch.autograd.grad(loss, parameters)
    rewards = []
    for pair in PAIRS:
        prompt = backbone.encoder.encode_prompt(pair.prompt)
        for text in (pair.chosen, pair.rejected):
            ids = torch.tensor([[*prompt, *backbone.encoder.encode_completion(text)]])
            rewards.append(backbone.model.get_decoder()(input_ids=ids).last_hidden_state[0, -1] @ weight)
    margins = torch.stack(rewards[::2]) - torch.stack(rewards[1::2])
    plain_loss = pair_loss(margins).mean()
    plain = torch.autograd.grad(plain_loss, parameters)
    torch.testing.assert_close(loss, plain_loss, rtol=0, atol=1e-9)
    for one, other in zip(packed, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5 if one.dtype == torch.float32 else 1e-8, atol=1e-8)
    assert max(float(g.abs().max()) for g in packed) > 1e-4


def joint(backbone: Backbone, head: Any, **options: Any) -> None:
    moments = np.random.Generator(np.random.PCG64(0)).normal(size=(2, len(PAIRS), 24)).astype(np.float32)
    schedule = Schedule(options.pop("epochs", 2), options.pop("batch_size", 2), options.pop("seed", 3))
    settings = {"learning_rate": 1e-2, **options}
    initial = (moments[0], moments[1])
    fit_joint(
        head,
        backbone,
        PAIRS,
        initial=initial,
        states_of=lambda network, pairs: pair_states(network, pairs, PromptLimit()),
        schedule=schedule,
        **settings,
    )


def test_training_moves_adapter_and_head_and_nothing_else() -> None:
    base = text_backbone(dtype=torch.float32)
    adapted = attach_lora(base, LoraSettings(4, 8, 0.1), 0)
    before, original = snapshot(adapted.model), snapshot(base.model)
    head = GlobalBT()
    joint(adapted, head)
    after = snapshot(adapted.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".lora_" in name for name in moved)
    assert {name for name in before if ".lora_" in name} == moved
    assert all(torch.equal(original[name], tensor) for name, tensor in snapshot(base.model).items())
    assert head.history is not None
    assert len(head.history.loss) == 2 * 3
    assert head.reward_scale > 0
    assert not adapted.model.training


def test_training_lowers_the_loss_it_states() -> None:
    base = text_backbone(dtype=torch.float32)
    adapted, head = attach_lora(base, LoraSettings(4, 8, 0.0), 0), GlobalBT()
    joint(adapted, head, epochs=30, batch_size=5)
    assert head.history is not None
    assert head.history.final_loss < 0.5 * head.history.loss[0]
    assert head.history.accuracy == 1.0


def test_training_is_decided_by_its_seed() -> None:
    base = text_backbone(dtype=torch.float32)
    prints = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(noise)  # the caller's random numbers are neither used nor moved
        state = torch.random.get_rng_state()
        adapted = attach_lora(base, LoraSettings(4, 8, 0.3), 0)
        joint(adapted, GlobalBT(), seed=seed)
        assert torch.equal(state, torch.random.get_rng_state())
        stamp(adapted, base, LoraSettings(4, 8, 0.3))
        prints.append(adapted.fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_pairs_that_do_not_fit_are_named() -> None:
    pair = PreferencePair(user_id="u", example_id="0", prompt="Why?", chosen="0" * 300, rejected="")
    with pytest.raises(DataError, match=r"completion of 300 .*'Why\?'"):
        pair_states(text_backbone(), [pair], PromptLimit())


def test_adapters_share_the_weights_of_their_base() -> None:
    """A study holds many adapted models; each costs its adapter only, and none sees another's."""
    base = text_backbone(dtype=torch.float32)
    own = {parameter.data_ptr() for parameter in base.model.parameters()}
    one, two = shaken(base, seed=0), shaken(base, seed=1)
    for adapted in (one, two):
        plain = [p for name, p in adapted.model.named_parameters() if ".lora_" not in name]
        assert {parameter.data_ptr() for parameter in plain} == own
    assert one.model.model.layers[0] is not two.model.model.layers[0] is not base.model.model.layers[0]
    with torch.no_grad():
        before = tree_states(one, [TREE])
        for parameter in adapter_parameters(two.model):
            parameter.zero_()
        assert torch.equal(tree_states(one, [TREE]), before)
        assert not torch.equal(tree_states(base, [TREE]), before)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_states_of_every_token_are_those_of_separate_rows(architecture: str) -> None:
    """And what counts is what stands from the first difference on."""
    backbone = text_backbone(architecture)
    pairs = [
        *PAIRS,
        PreferencePair(user_id="u", example_id="x", prompt="Why?", chosen="red one two", rejected="red one three"),
    ]
    chosen, rejected, chosen_mask, rejected_mask = token_states(backbone, pairs, PromptLimit())
    for row, pair in enumerate(pairs):
        ids = list(backbone.encoder.encode_prompt(pair.prompt))
        tails = [list(backbone.encoder.encode_completion(text)) for text in (pair.chosen, pair.rejected)]
        same = next((t for t, (a, b) in enumerate(zip(*tails, strict=False)) if a != b), min(map(len, tails)))
        for states, mask, tail in ((chosen, chosen_mask, tails[0]), (rejected, rejected_mask, tails[1])):
            with torch.no_grad():
                plain = backbone.hidden_unpacked([ids + tail])[0][len(ids) - (not tail) :]
            length = max(1, len(tail))
            torch.testing.assert_close(states[row, :length].detach(), plain, rtol=0, atol=1e-9)
            first = min(same, length - 1)
            assert mask[row].tolist() == [first <= t < length for t in range(mask.shape[1])]


def test_a_head_that_reads_tokens_is_trained_on_them() -> None:
    """The last token alone, through the loop of tokens, is the loop of last tokens, to the bit of the loss."""

    class OnTokens(GlobalBT):
        @property
        def reads_tokens(self) -> bool:
            return True

        def token_losses(self, chosen: Any, rejected: Any, chosen_mask: Any, rejected_mask: Any, users: Any) -> Any:
            rows = torch.arange(len(users))
            ends = [mask.shape[1] - 1 - mask.flip(1).int().argmax(1) for mask in (chosen_mask, rejected_mask)]
            return self.losses(chosen[rows, ends[0]], rejected[rows, ends[1]], users)

    base = text_backbone(dtype=torch.float32)
    heads = [GlobalBT(), OnTokens()]
    for head in heads:
        adapted = attach_lora(base, LoraSettings(4, 8, 0.1), 0)
        joint(adapted, head, tokens_of=lambda network, pairs: token_states(network, pairs, PromptLimit()))
    assert heads[0].history is not None and heads[1].history is not None
    np.testing.assert_allclose(heads[0].history.loss, heads[1].history.loss, rtol=1e-5)
    torch.testing.assert_close(heads[0].basis, heads[1].basis, rtol=1e-4, atol=1e-6)
