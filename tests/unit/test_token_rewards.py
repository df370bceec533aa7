"""Log-probabilities of completions under trees, against transformers' own loss, one text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.backbones.hf import Backbone
from rewardgap.rewards import token_rewards
from rewardgap.rewards.token_networks import Reference, TokenNetworks, accumulated
from rewardgap.rewards.token_rewards import Branches, forward_batches, log_probs_at, token_log_probs
from standins import ARCHITECTURES, text_backbone, without_packing

ROWS = [
    Branches((1, 2, 3, 4), ((5, 6, 7, 332), (5, 6, 8, 9, 10, 332))),  # a common beginning
    Branches((11,), ((332,), (12, 332))),  # an empty completion
    Branches((13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24), ((25, 332), (25, 332), (26, 27, 28, 29, 30, 31, 332))),
]


def soft(rows: int, length: int) -> torch.Tensor:
    return torch.randn(rows, length, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain(backbone: Backbone, prompt: tuple[int, ...], ids: tuple[int, ...], vectors: torch.Tensor) -> torch.Tensor:
    """Return (T, V) log-probabilities at each scored token, from transformers' own logits."""
    table = backbone.model.get_input_embeddings()
    whole = torch.cat([vectors, table(torch.tensor([*prompt, *ids]))])[None]
    logits = backbone.model(inputs_embeds=whole, use_cache=False).logits[0]
    return torch.log_softmax(logits[-len(ids) - 1 : -1], -1)


@pytest.mark.parametrize("length", [0, 4])
@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_log_probabilities_are_those_of_single_texts(architecture: str, packs: bool, length: int) -> None:
    backbone = text_backbone(architecture) if packs else without_packing(text_backbone(architecture))
    prompts = soft(len(ROWS), length)
    with torch.no_grad():
        found = token_log_probs(backbone, ROWS, prompts)
        for row, branches in enumerate(ROWS):
            assert len(found[row]) == len(branches.completions)
            for ids, values in zip(branches.completions, found[row], strict=True):
                law = plain(backbone, branches.prompt, ids, prompts[row])
                expected = law[torch.arange(len(ids)), torch.tensor(ids)]
                torch.testing.assert_close(values[:, 0], expected, rtol=0, atol=1e-9)


def test_the_sum_is_minus_the_masked_loss_of_transformers() -> None:
    """Σ_t log π(y_t) = - (mean loss) · T, where the labels mask the prompt: the end token counts, the prompt does not."""
    backbone = text_backbone("qwen2")
    with torch.no_grad():
        found = token_log_probs(backbone, ROWS)
        for branches, row in zip(ROWS, found, strict=True):
            for ids, values in zip(branches.completions, row, strict=True):
                whole = torch.tensor([[*branches.prompt, *ids]])
                labels = whole.clone()
                labels[:, : len(branches.prompt)] = -100
                loss = backbone.model(input_ids=whole, labels=labels).loss
                # transformers forms its loss in float32
                assert float(values.sum()) == pytest.approx(-float(loss) * len(ids), rel=1e-5)


def test_tables_look_up_any_token() -> None:
    backbone = text_backbone()
    tables = tuple(np.arange(3 * len(ids)).reshape(len(ids), 3) * 7 % 339 for ids in ROWS[0].completions)
    row = Branches(ROWS[0].prompt, ROWS[0].completions, tables)
    with torch.no_grad():
        found = token_log_probs(backbone, [ROWS[1], row])[1]
        for ids, table, values in zip(row.completions, tables, found, strict=True):
            law = plain(backbone, row.prompt, ids, torch.zeros(0, 24).double())
            torch.testing.assert_close(values, law.gather(1, torch.from_numpy(table)), rtol=0, atol=1e-9)


@given(seed=st.integers(0, 999), states=st.integers(1, 11), asked=st.integers(1, 30), rows=st.integers(1, 5))
def test_chunks_change_neither_values_nor_gradients(seed: int, states: int, asked: int, rows: int) -> None:
    """Against one log-softmax over everything, for any size of chunk and any order of what is asked."""
    backbone = text_backbone()
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(states, 24, dtype=torch.float64, generator=draw).requires_grad_()
    where = torch.randint(states, (asked,), generator=draw)
    which = torch.randint(backbone.vocabulary, (asked,), generator=draw)
    weights = torch.randn(asked, dtype=torch.float64, generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_rewards, "LOGIT_ROWS", rows)
        found = log_probs_at(backbone, hidden, where, which)
        (slope,) = torch.autograd.grad(found @ weights, hidden)
    expected = backbone.log_probs(hidden)[where, which]
    (peer,) = torch.autograd.grad(expected @ weights, hidden)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(slope, peer, rtol=0, atol=1e-10)


def test_the_logits_of_a_batch_are_never_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = text_backbone()
    seen: list[int] = []
    real = Backbone.logits

    def counted(self: Backbone, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return real(self, hidden)

    monkeypatch.setattr(Backbone, "logits", counted)
    monkeypatch.setattr(token_rewards, "LOGIT_ROWS", 3)
    hidden = torch.zeros(10, 24, dtype=torch.float64, requires_grad=True)
    index = torch.arange(10)
    log_probs_at(backbone, hidden, index, index).sum().backward()
    assert max(seen) == 3
    assert sum(seen) == 20  # once forward, once again for the backward pass


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_every_item_is_in_one_forward_of_the_size_allowed(sizes: list[int], limit: int) -> None:
    batches = forward_batches(sizes, limit)
    assert sorted(item for batch in batches for item in batch) == list(range(len(sizes)))
    assert all(len(batch) == 1 or max(sizes[item] for item in batch) * len(batch) <= limit for batch in batches)


def test_a_sum_of_parts_has_their_value_and_their_gradient() -> None:
    one, two, unused = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([1.0, 2.0], [3.0], [5.0]))
    parts = [lambda: (one**2).sum() * two.sum(), lambda: one.sum(), lambda: (two**3).sum()]
    total = accumulated(parts, [one, two, unused])
    assert float(total.detach()) == 15 + 3 + 27
    slopes = torch.autograd.grad(total, [one, two, unused])
    assert [slope.tolist() for slope in slopes] == [[7.0, 13.0], [32.0], [0.0]]


def test_the_reference_is_computed_once_and_does_not_depend_on_company(monkeypatch: pytest.MonkeyPatch) -> None:
    base = text_backbone(dtype=torch.float32)
    together, alone = Reference(base), Reference(base)
    told: list[tuple[int, int]] = []
    together.warm(ROWS, lambda done, total: told.append((done, total)))
    assert told == [(2, 7), (4, 7), (7, 7)]
    calls: list[int] = []
    real = token_rewards.tree_states
    monkeypatch.setattr(token_rewards, "tree_states", lambda *a: calls.append(1) or real(*a))
    kept = together.tables(ROWS)
    assert not calls
    for row, tables in zip(ROWS, kept, strict=True):
        for one, other in zip(tables, alone.tables([row])[0], strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(calls) == 3


def test_ratios_are_weighted_sums_less_the_reference() -> None:
    """Two networks, which here are two backbones, and a third to measure against."""
    one, two, base = (text_backbone("llama", seed=seed) for seed in (1, 2, 0))
    networks = TokenNetworks((one, two), Reference(base))
    none, weights = torch.zeros(3, 0, 24), torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    found = networks.log_ratios(ROWS, none, weights)
    with torch.no_grad():
        parts = [token_log_probs(network, ROWS) for network in (one, two, base)]
    for row in range(3):
        for number, value in enumerate(found[row]):
            first, second, last = (part[row][number].numpy() for part in parts)
            share = weights[row].numpy()
            np.testing.assert_allclose(value, share[0] * first + share[1] * second - last, rtol=0, atol=1e-9)
    pairs = ROWS[:2]
    ratios = networks.pair_ratios(pairs, none[:2]).numpy()
    for row in range(2):
        for place in range(2):
            signed = [float(part[row][0].sum() - part[row][1].sum()) for part in (parts[place], parts[2])]
            assert ratios[row, place] == pytest.approx(signed[0] - signed[1], abs=1e-9)
