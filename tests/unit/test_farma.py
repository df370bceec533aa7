"""FaRMA: a table read in one pass is what one pass a token says, backups are maxima of constants, users differ."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoregressive import PAIRS, SUPPORT, build, fitted, opposite_users, plain_token_rewards, plain_values, ranked
from rewardgap.backbones.lora import LoraSettings
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import ROOT, build_trie
from rewardgap.core.errors import ConfigError
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.loop import LookAhead, StopRule, decode
from rewardgap.policies.guided import guided
from rewardgap.rewards import value_table
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.catalog import build_head
from rewardgap.rewards.farma import CARD, Farma
from rewardgap.rewards.farma_objective import Continuations, Turns, consistency_losses, preference_losses
from rewardgap.rewards.token_rewards import Branches, read_trees
from rewardgap.rewards.training import Schedule
from rewardgap.rewards.value_model import ValueTableModel
from rewardgap.rewards.value_table import ValueTable
from standins import private_copy, text_backbone

PROMPTS = ["Why?", "what is the name of the river?", "one word"]


@cache
def shared() -> ValueTableModel:
    """Return a fitted model in float64 that no test changes."""
    model = fitted("farma")
    assert isinstance(model, ValueTableModel)
    return model


def untrained(**options: Any) -> ValueTableModel:
    model = reward_model("farma", text_backbone("llama"), lora=LoraSettings(4, 8, 0.0), **options)
    assert isinstance(model, ValueTableModel)
    model.head.build(["u0", "u1"], model.base, seed=0)
    model.networks = model._fresh_networks(0)
    return model


def rows_of(model: ValueTableModel) -> list[Branches]:
    return [model._pair(pair) for pair in PAIRS]


def prompts_of(model: ValueTableModel) -> torch.Tensor:
    return model.head.condition([model.state_of(pair.user_id) for pair in PAIRS]).prompts


# The table.


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_a_table_is_its_formula_and_its_best_the_largest_entry(size: int, rank: int, seed: int) -> None:
    """Against loops over states and tokens; V in chunks of any size, candidates with repetitions."""
    backbone = text_backbone("llama")
    draw = torch.Generator().manual_seed(seed)
    table = ValueTable(rank, 1e-3)
    table.initialise(backbone, 3, draw)
    for name, tensor in table.tensors().items():
        setattr(table, name, torch.randn(tensor.shape, dtype=torch.float64, generator=draw))
    states = torch.randn(size, 24, dtype=torch.float64, generator=draw)
    weight = backbone.model.get_output_embeddings().weight.detach()
    unit = float(weight.square().mean().sqrt())
    naive = torch.zeros(size, backbone.vocabulary, dtype=torch.float64)
    for n, state in enumerate(states):
        feature = table.directions @ state / (float(state.square().mean()) ** 0.5 * 24**0.5)
        for v, row in enumerate(weight):
            naive[n, v] = feature @ (table.prefix_weights + table.token_weights.T @ (row / (24 * unit)))
    features = table.features(states)
    torch.testing.assert_close(features @ table.rows(backbone).T, naive, rtol=0, atol=1e-10)
    tokens = torch.randint(backbone.vocabulary, (size,), generator=draw)
    torch.testing.assert_close(
        table.values(backbone, features, tokens), naive[torch.arange(size), tokens], rtol=0, atol=1e-10
    )
    candidates = torch.randint(backbone.vocabulary, (size, 4), generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(value_table, "TOKENS_AT_ONCE", 1 + seed % 50)
        torch.testing.assert_close(table.best(backbone, features, None), naive.amax(-1), rtol=0, atol=1e-10)
        torch.testing.assert_close(
            table.best(backbone, features, candidates), naive.gather(1, candidates).amax(-1), rtol=0, atol=1e-10
        )


def test_no_gradient_goes_into_the_values_that_follow() -> None:
    """A real table: b moves the value and what it is to meet, and the gradient is of the value alone."""
    model = shared()
    batch, prompts = [Branches((1, 2, 3), ((10, 332),))], torch.zeros(1, 0, 24, dtype=torch.float64)
    looked_at = Continuations(model.base, batch)
    table = ValueTable(4, 1e-3)
    table.initialise(model.base, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        table.token_weights.normal_(generator=torch.Generator().manual_seed(1))
    states = read_trees(model.base, batch, prompts).states
    features = table.features(states).detach()

    def loss() -> torch.Tensor:
        return consistency_losses(table, model.base, looked_at, batch, prompts).sum()

    (slope,) = torch.autograd.grad(loss(), table.prefix_weights)
    values = table.values(model.base, features, torch.tensor([10, 332])).detach()
    gap = float(values[0] - values[1])
    torch.testing.assert_close(slope, 2 * gap * features[0], rtol=0, atol=1e-12)
    with torch.no_grad():
        table.prefix_weights[0] += 1e-6
        above = float(loss())
        table.prefix_weights[0] -= 2e-6
        below = float(loss())
    whole = 2 * gap * float(features[0, 0] - features[1, 0])
    assert (above - below) / 2e-6 == pytest.approx(whole, abs=1e-6)
    assert whole != pytest.approx(float(slope[0]), abs=1e-3)


def test_a_table_begins_at_zero_for_everybody_and_its_losses_where_they_must() -> None:
    model = untrained(num_user_tokens=3)
    for state in (model.adapt([]), model.state_of("u1")):
        assert not model.prefix_rewards("Why?", "the light of winter", state).any()
    rows = rows_of(model)
    prompts = model.head.condition([model.adapt([])] * len(rows)).prompts
    pairs = preference_losses(model.networks, rows, prompts, 0.3)
    torch.testing.assert_close(pairs, torch.full_like(pairs, float(np.log(2))), rtol=0, atol=1e-15)
    assert not consistency_losses(model.head.table, model.backbone, None, rows, prompts).any()


def test_both_parts_of_a_table_move_at_one_pace() -> None:
    """A step of size 1 in every number, with the sign that raises a token, gives comparable rises for any size of W."""
    for factor in (1.0, 37.0):
        backbone = private_copy(text_backbone("llama"))
        weight = backbone.model.get_output_embeddings().weight
        with torch.no_grad():
            weight *= factor
        table = ValueTable(8, 1e-3)
        table.initialise(backbone, 1, torch.Generator().manual_seed(0))
        feature = table.features(torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        size = float(weight.detach().double().square().mean().sqrt())
        rises = (weight.detach().abs().sum(-1) / (24 * size)) * feature.abs().sum()
        assert table._size == pytest.approx(24 * size)
        assert 0.5 < float((rises.median() / feature.abs().sum()).detach()) < 1.2


def test_one_pass_says_what_a_scalar_head_says_in_a_pass_a_token() -> None:
    """k heads made of k columns of the table, each read after a forward of its own, against the guide's one read."""
    model = shared()
    state, prompt = model.adapt(SUPPORT), PROMPTS[1]
    start, network = model.base.encoder.encode_prompt(prompt), model.backbone
    ids = [list(start)]
    session = TrieSession(model.base, 1, 200)
    guide = model.guide(model.base, [prompt], ids, [state], 20)
    guide.start(session.prefill(ids))
    candidates = torch.tensor([[5, 300, 17, 120, 8]])
    before = guide.forwards
    found = guide.candidates(candidates, None)[0]
    assert guide.forwards == before
    table = model.head.table
    weight = network.model.get_output_embeddings().weight.detach()
    vectors = model.head.condition([state]).prompts[0]
    unit = float(weight.square().mean().sqrt())
    for token, value in zip(candidates[0].tolist(), found.tolist(), strict=True):
        head = table.directions.T @ (table.prefix_weights + table.token_weights.T @ weight[token] / (24 * unit))
        embedded = torch.cat([vectors, network.model.get_input_embeddings()(torch.tensor(ids[0]))])[None]
        with torch.no_grad():
            last = network.model(inputs_embeds=embedded, output_hidden_states=True).hidden_states[-1][0, -1]
        scalar = float(head @ last / last.square().mean().sqrt()) / 24**0.5
        assert value == pytest.approx(scalar / model.scale, abs=1e-9)


# The losses.


class Given(ValueTable):
    """A table whose values are given, one for each scored token, and so are its best."""

    def __init__(self, values: torch.Tensor, best: torch.Tensor) -> None:
        super().__init__(1, 1.0)
        self.given, self.found = values, best

    def features(self, states: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(states), 1, dtype=torch.float64)

    def values(self, backbone: Any, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.given

    def best(self, backbone: Any, features: torch.Tensor, candidates: Any) -> torch.Tensor:
        return self.found


@given(st.lists(st.integers(-5, 5), min_size=16, max_size=16))
def test_a_backup_is_a_constant_and_ends_have_none(numbers: list[int]) -> None:
    """Closed form of value and gradient on small trees: each value meets the best of its own node.

    Row 0 has the completions a b c E and a d E, row 1 one empty completion and e E. Nodes: x, a, ab, abc, ad; x', e.
    """
    batch = [Branches((1, 2), ((10, 11, 12, 332), (10, 13, 332))), Branches((3,), ((332,), (14, 332)))]
    values = torch.tensor(numbers[:10], dtype=torch.float64, requires_grad=True)
    best = torch.tensor(numbers[9:], dtype=torch.float64)
    va, vb, vc, _, va2, vd, _, _, vf, _ = values.tolist()
    _, a, ab, abc, ad, _, f = best.tolist()
    gaps, last = [va - a, vb - ab, vc - abc, va2 - a, vd - ad], vf - f
    prompts = torch.zeros(2, 0, 24, dtype=torch.float64)
    losses = consistency_losses(Given(values, best), text_backbone("llama"), None, batch, prompts)
    assert losses.tolist() == pytest.approx([sum(gap**2 for gap in gaps) / 5, last**2])
    (slope,) = torch.autograd.grad(losses.sum(), values)
    expected = [2 * gap / 5 for gap in gaps]
    assert slope.tolist() == pytest.approx([*expected[:3], 0, *expected[3:], 0, 0, 2 * last, 0])


def test_values_of_a_tree_become_the_best_that_its_leaves_are_worth() -> None:
    """Two tokens, four leaves of known worth: prefixes take the larger of theirs, not the mean or what came first.

    Each leaf is a row of its own: that it has sisters is known from the texts as a whole.
    """
    model = untrained(num_user_tokens=0)
    worth = {(10, 20): 2.0, (10, 21): -1.0, (11, 20): -2.5, (11, 21): 0.5}
    batch = [Branches((1, 2, 3), ((*leaf, 332),)) for leaf in worth]
    table, network, prompts = model.head.table, model.base, torch.zeros(4, 0, 24, dtype=torch.float64)
    optimiser = torch.optim.Adam(list(table.tensors().values()), 0.1)
    looked_at = Continuations(model.base, batch)
    with torch.no_grad():
        trees = read_trees(network, batch, prompts)
    fading = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, 300)
    for _ in range(300):
        ends = torch.stack([steps.sum() for (steps,) in model.networks.look_up(network, batch, trees)])
        loss = (ends - torch.tensor(list(worth.values()))).square().mean()
        loss = loss + consistency_losses(table, network, looked_at, batch, prompts).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        fading.step()
    for leaf, (steps,) in zip(worth, model.networks.look_up(network, batch, trees), strict=True):
        best = max(value for other, value in worth.items() if other[0] == leaf[0])
        found = steps[:, 0].detach().cumsum(0)
        assert found.tolist() == pytest.approx([best, worth[leaf], worth[leaf]], abs=0.05)


@pytest.mark.parametrize("top_k", [0, 3, None])
def test_padding_changes_no_loss(top_k: int | None) -> None:
    """Rows of different lengths in one batch, against each by itself; values and gradients."""
    model = shared()
    rows, prompts = rows_of(model), prompts_of(model).detach()
    looked_at = None if top_k is None else Continuations(model.base, rows, top_k)
    table, network = model.head.table, model.backbone
    assert len({row.size for row in rows}) > 3
    for losses_of in (
        lambda batch, soft: consistency_losses(table, network, looked_at, batch, soft),
        lambda batch, soft: preference_losses(model.networks, batch, soft, 0.01),
    ):
        leaf = prompts.clone().requires_grad_()
        together = losses_of(rows, leaf)
        (slope,) = torch.autograd.grad(together.sum(), leaf)
        for place, row in enumerate(rows):
            own = prompts[place : place + 1].clone().requires_grad_()
            alone = losses_of([row], own)
            (part,) = torch.autograd.grad(alone.sum(), own)
            torch.testing.assert_close(together[place], alone[0], rtol=0, atol=1e-10)
            torch.testing.assert_close(slope[place], part[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [0, 3])
def test_backups_look_at_what_texts_go_on_with_and_at_the_likely(count: int) -> None:
    """Against plain forwards and loops over all texts: the backbone's own law picks, the table's values decide."""
    model = shared()
    rows, soft = rows_of(model), prompts_of(model).detach()
    found = consistency_losses(model.head.table, model.backbone, Continuations(model.base, rows, count), rows, soft)
    from_elsewhere = 0
    for place, row in enumerate(rows):
        gaps = []
        for ids in row.completions:
            values = plain_values(model.head, model.backbone, soft[place], row.prompt, list(ids[:-1]))
            with torch.no_grad():
                laws = model.base.model(torch.tensor([[*row.prompt, *ids[:-1]]])).logits[0, len(row.prompt) - 1 :]
            for t in range(len(ids) - 1):
                texts = [text for other in rows if other.prompt == row.prompt for text in other.completions]
                seen = {text[t + 1] for text in texts if text[: t + 1] == ids[: t + 1]}
                own = {text[t + 1] for text in row.completions if text[: t + 1] == ids[: t + 1]}
                from_elsewhere += len(seen - own)
                best = max(float(values[t + 1, v]) for v in {*seen, *laws[t + 1].topk(count).indices.tolist()})
                gaps.append((float(values[t, ids[t]]) - best) ** 2)
        assert float(found[place].detach()) == pytest.approx(np.mean(gaps) if gaps else 0.0, abs=1e-9)
    assert from_elsewhere, "no text shares a beginning with another pair's, so nothing was tested"


def test_a_pull_keeps_the_level_that_pairs_leave_open() -> None:
    """The loss in closed form, from the rewards of both sides."""
    model = shared()
    rows, prompts = rows_of(model), prompts_of(model).detach()
    states = [model.state_of(pair.user_id) for pair in PAIRS]
    sides = [
        model.rewards([p.prompt for p in PAIRS], [getattr(p, side) for p in PAIRS], states) * model.scale
        for side in ("chosen", "rejected")
    ]
    found = preference_losses(model.networks, rows, prompts, 0.2)
    expected = np.logaddexp(0, sides[1] - sides[0]) + 0.2 * (sides[0] + sides[1]) ** 2
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-9)


def test_losses_take_turns_over_the_same_batches() -> None:
    turns, plain = Turns(3, 4, 7), Schedule(3, 4, 7)
    assert turns.steps(10) == plain.steps(10) == 9
    for step in range(9):
        rows = turns.batch(10, step)
        assert [row % 10 for row in rows] == plain.batch(10, step)
        assert {row // 10 for row in rows} == {step % 2}


# Users, texts, decoding.


def test_a_planted_preference_is_learned_and_the_own_state_beats_anothers() -> None:
    """Users who judge the same texts in opposite ways; on other prompts, by whole texts."""
    seen, test = opposite_users(0, 2, 8), opposite_users(2, 2, 10)
    new = opposite_users(1, 2, 10, first=10)
    model = reward_model(
        "farma",
        text_backbone("llama", dtype=torch.float32),
        num_user_tokens=3,
        adapt_steps=25,
        lora=LoraSettings(8, 16, 0.0),
    )
    model.fit([pair for pairs in seen.values() for pair in pairs], epochs=40, batch_size=16, learning_rate=1e-2)
    assert model.diagnostics["accuracy"] == 1.0
    assert [ranked(model, test[user], model.state_of(user)) for user in test] == [1.0, 1.0]
    assert [ranked(model, test[user], model.state_of(other)) for user, other in (("u0", "u1"), ("u1", "u0"))] == [0, 0]
    assert np.mean([ranked(model, rows[4:], model.adapt(rows[:4])) for rows in new.values()]) >= 0.75
    assert np.mean([ranked(model, rows[4:], model.adapt([])) for rows in new.values()]) == 0.5


def test_trees_of_rewards_are_rewards_of_prefixes() -> None:
    """What look-ahead asks: nodes at all depths, after steps have been taken, against a full re-encode of each."""
    model = shared()
    states = [model.state_of("u1"), model.adapt(SUPPORT), model.adapt([])]
    ids = [list(model.base.encoder.encode_prompt(prompt)) for prompt in PROMPTS]
    guide = model.guide(model.base, PROMPTS, ids, states, 60)
    guide.start(TrieSession(model.base, 3, 200).prefill(ids))
    tries = [build_trie([[5, 6, 7], [5, 8], [9]]), build_trie([[9]]), build_trie([[7, 7, 7, 7]])]
    paths: list[list[int]] = [[], [], []]
    for kept in ([[0, 1], [], [0]], [[], [0], [0, 1, 2]]):
        rewards = guide.tree(tries, None)
        for row, trie in enumerate(tries):
            ends: list[list[int]] = []
            for node, (token, parent) in enumerate(zip(trie.tokens, trie.parents, strict=True)):
                ends.append([*(paths[row] if parent == ROOT else ends[parent]), token])
                laws = plain_token_rewards(model, states[row], PROMPTS[row], ends[-1])
                total = sum(float(laws[t, v]) for t, v in enumerate(ends[-1]))
                assert float(rewards[row, node]) == pytest.approx(total, abs=1e-9)
            if kept[row]:
                paths[row] = ends[kept[row][-1]]
        guide.commit(kept)


def test_look_ahead_writes_what_single_steps_write() -> None:
    model, policy = shared(), text_backbone("llama")
    states = [model.state_of("u1"), model.adapt(SUPPORT), model.adapt([])]
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in PROMPTS]
    found = []
    for ahead in (None, LookAhead(fixed=3)):
        session = TrieSession(policy, 3, 800)
        tips = session.prefill(ids)
        guide = model.guide(policy, PROMPTS, ids, states, 120)
        rule = StopRule(tuple(range(90)), 8, 1)
        found.append(decode(session, tips, ArgsGreedy(3.0, 5), rule, guide=guide, look_ahead=ahead))
    for one, other in zip(*found, strict=True):
        assert one.ids == other.ids
        assert one.reward == pytest.approx(other.reward, abs=1e-9)


def test_normalisers_over_the_whole_vocabulary_are_those_of_all_the_numbers() -> None:
    model, policy = shared(), text_backbone("llama")
    state, text, weight = model.adapt(SUPPORT), "red stone", 1.7
    steered = guided(policy, model, state, guidance_weight=weight, top_k=4)
    found = steered.open([PROMPTS[0]], completions=[[text]]).scores([[text]])[0][0]
    gold = [*policy.encoder.encode_completion(text), policy.encoder.end_id]
    start = list(policy.encoder.encode_prompt(PROMPTS[0]))
    with torch.no_grad():
        laws = torch.log_softmax(policy.model(torch.tensor([start + gold[:-1]])).logits[0, len(start) - 1 :], -1)
    scores = laws + weight * plain_token_rewards(model, state, PROMPTS[0], gold[:-1])
    expected = sum(float(row[token] - row.logsumexp(-1)) for row, token in zip(scores, gold, strict=True))
    assert found.variants["rgd_full"] == pytest.approx(expected, abs=1e-9)


def test_the_pass_forms_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole texts, prefixes and steps of decoding read the table alone, whatever the vocabulary's size."""
    model = shared()
    state = model.adapt(SUPPORT)

    def never(*_: Any) -> torch.Tensor:
        raise AssertionError("logits were formed")

    ids = [list(model.base.encoder.encode_prompt("Why?"))]
    tips = TrieSession(model.base, 1, 100).prefill(ids)
    monkeypatch.setattr(type(model.base), "logits", never)
    assert len(model.prefix_rewards("Why?", "red", state)) > 2
    guide = model.guide(model.base, ["Why?"], ids, [state], 20)
    guide.start(tips)
    guide.candidates(torch.tensor([[4, 5]]), None)
    guide.keep([0], [4])
    guide.candidates(torch.tensor([[4, 5]]), None)


def test_defaults_of_card_and_head_are_one() -> None:
    built = CARD.build(CARD.config())
    assert built.config() == Farma().config() == asdict(CARD.config())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "soft"}, "form is 'soft'"),
        ({"num_user_tokens": -1}, "num_user_tokens is -1"),
        ({"table_rank": 0}, "table_rank is 0"),
        ({"table_rate": 0}, "table_rate is 0"),
        ({"centre_weight": -1.0}, "centre_weight is -1.0"),
        ({"consistency_weight": 0}, "consistency_weight is 0"),
        ({"backup_top_k": -1}, "backup_top_k is -1; expected an integer of at least 0, or null for all"),
        ({"backup_top_k": True}, "backup_top_k is True"),
        ({"alpha": 1.5}, "alpha is 1.5"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_head("farma", **options)


def test_more_likely_tokens_than_there_are_is_named() -> None:
    model = reward_model("farma", text_backbone("llama"), backup_top_k=400)
    with pytest.raises(ConfigError, match=r"backup_top_k is 400, and tiny has 339 tokens; lower it, or give null"):
        model.fit(PAIRS, epochs=1)


def test_files_of_another_rank_are_refused(tmp_path: Any) -> None:
    model = shared()
    other = build("farma")
    other.head = build_head("farma", num_user_tokens=3, table_rank=5)
    with pytest.raises(ConfigError, match=r"prefix_weights has shape \(32,\), expected \(5,\)"):
        other.head.load_state_dict(model.head.state_dict(), other.base)
