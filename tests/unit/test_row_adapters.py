"""Adapters a row: a mixed batch equals one user at a time, and an adapter equals PEFT's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.lora import LoraSettings, attach_lora, load_adapter
from rewardgap.backbones.row_adapters import AdapterHost
from rewardgap.backbones.session import TrieSession, tree_states
from rewardgap.backbones.trie import Block, siblings
from rewardgap.core.errors import ModelError, ShapeError
from standins import ARCHITECTURES, tiny_backbone, without_packing

SHAPE = LoraSettings(rank=3, alpha=6, dropout=0.0)
TREES = [
    Block((1, 2, 3, 4, 5, 6), (-1, 0, 1, 1, 3, 0)),
    Block((7, 8, 9), (-1, 0, 0)),
    Block((3, 1, 4, 1, 5), (-1, 0, 1, 2, 3)),
]


def shaken(host: AdapterHost, rows: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(rows, host.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_adapter_changes_nothing(architecture: str) -> None:
    base = tiny_backbone(architecture)
    host = AdapterHost(base, SHAPE)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    fresh = torch.stack([host.fresh(0), host.fresh(1), host.fresh(0)])
    assert torch.equal(fresh[0], fresh[2]) and not torch.equal(fresh[0], fresh[1])
    with torch.no_grad():
        assert torch.equal(tree_states(host.rows(fresh), TREES), tree_states(base, TREES))
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_is_peft_s(architecture: str) -> None:
    """The same factors through PEFT's own layers: same size, same states, packed and in plain rows."""
    base = tiny_backbone(architecture)
    host = AdapterHost(base, SHAPE)
    adapter = shaken(host, 1)
    peer = attach_lora(base, SHAPE, 0)
    named = {name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): tensor
             for name, tensor in host.tensors(adapter[0]).items()}  # fmt: skip
    prefix = next(n for n, _ in peer.model.named_parameters() if ".lora_A" in n)
    prefix = prefix[: prefix.index("layers.")]
    load_adapter(peer.model, {prefix + name[name.index("layers.") :]: tensor for name, tensor in named.items()})
    assert host.size == sum(p.numel() for n, p in peer.model.named_parameters() if ".lora_" in n)
    with torch.no_grad():
        found = tree_states(host.rows(adapter), TREES)
        torch.testing.assert_close(found, tree_states(peer, TREES), rtol=1e-5, atol=1e-6)
        for one, other in zip(host.rows(adapter).hidden_unpacked([[1, 2, 3], [4, 5]]),
                              peer.hidden_unpacked([[1, 2, 3], [4, 5]]), strict=True):  # fmt: skip
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, tree_states(base, TREES), atol=1e-2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_mixed_batch_is_one_user_at_a_time(architecture: str) -> None:
    host = AdapterHost(tiny_backbone(architecture), SHAPE)
    adapters = shaken(host, 3)
    with torch.no_grad():
        mixed = tree_states(host.rows(adapters), TREES)
        for row, tree in enumerate(TREES):
            alone = tree_states(host.rows(adapters[row : row + 1]), [tree])[0]
            torch.testing.assert_close(mixed[row, : len(tree.tokens)], alone, rtol=0, atol=1e-9)


def test_a_session_keeps_rows_and_adapters_together() -> None:
    """Rows leave a batch in the middle of decoding: the others go on with their own adapters."""
    host = AdapterHost(tiny_backbone(), SHAPE)
    adapters, prompts = shaken(host, 3), [[1, 2, 3], [4, 5], [6, 7, 8, 9]]

    def decode(rows: list[int], leave: list[int] | None) -> torch.Tensor:
        session = TrieSession(host.rows(adapters[rows]), len(rows), 12)
        session.prefill([prompts[row] for row in rows])
        session.extend([siblings((1, 2), tip) for tip in session.tips])
        session.keep([1] * len(rows), 2)
        if leave is not None:
            session.select(leave)
        return session.extend([siblings((3,), tip) for tip in session.tips])[:, 0]

    left = decode([0, 1, 2], [2, 0])
    torch.testing.assert_close(left, torch.cat([decode([2], None), decode([0], None)]), rtol=0, atol=1e-9)


def test_gradients_reach_one_users_adapter_only() -> None:
    host = AdapterHost(tiny_backbone(), SHAPE)
    adapters = shaken(host, 3).requires_grad_()
    tree_states(host.rows(adapters), TREES)[1, :3].square().sum().backward()
    assert adapters.grad is not None
    assert [bool(row.abs().max() > 1e-6) for row in adapters.grad] == [False, True, False]
    shared = shaken(host, 1).requires_grad_()
    (whole,) = torch.autograd.grad(tree_states(host.rows(shared), TREES).square().sum(), [shared])
    spread = shared.detach().expand(3, -1).clone().requires_grad_()
    (parts,) = torch.autograd.grad(tree_states(host.rows(spread), TREES).square().sum(), [spread])
    torch.testing.assert_close(whole[0], parts.sum(0), rtol=1e-9, atol=1e-9)
    assert not any(p.grad is not None for p in host.base.model.parameters())


def test_dropout_is_drawn_in_training_only() -> None:
    host = AdapterHost(tiny_backbone(), LoraSettings(3, 6, 0.5))
    rows: Backbone = host.rows(shaken(host, 1))
    with torch.no_grad():
        still = [tree_states(rows, TREES) for _ in range(2)]
        host.model.train()
        torch.manual_seed(0)
        moved = tree_states(rows, TREES)
        host.model.eval()
    assert torch.equal(still[0], still[1]) and not torch.allclose(still[0], moved)


def test_what_does_not_fit_is_named() -> None:
    host = AdapterHost(tiny_backbone(), SHAPE)
    with pytest.raises(ShapeError, match=rf"expected \(rows, {host.size}\) .* another backbone or rank"):
        host.rows(torch.zeros(1, 5))
    with pytest.raises(ShapeError, match="adapters of 2 rows met inputs"):
        tree_states(host.rows(shaken(host, 2)), TREES)
    with pytest.raises(ModelError, match="does not take packed masks"):
        AdapterHost(without_packing(tiny_backbone()), SHAPE)


def test_the_fingerprint_sees_base_shape_and_adapter() -> None:
    base: Any = tiny_backbone()
    host = AdapterHost(base, SHAPE)
    one, two = shaken(host, 2)
    other = AdapterHost(base, LoraSettings(3, 12, 0.0))
    prints = {host.fingerprint(one), host.fingerprint(two), other.fingerprint(one), base.fingerprint}
    assert len(prints) == 4
    assert host.rows(one[None]).fingerprint == ""
