"""P-DPO: without users it is DPO, without training it is nothing, and its reward is a policy in disguise."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoregressive import PAIRS, SUPPORT, build, fitted, opposite_users, plain_laws, plain_rewards, ranked
from rewardgap.backbones.lora import LoraSettings, adapter_parameters
from rewardgap.backbones.session import TrieSession
from rewardgap.core.errors import ConfigError
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.numerics.guidance import guided_scores
from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.catalog import REWARD_MODELS, build_head
from rewardgap.rewards.states import UserState
from rewardgap.rewards.token_networks import batch_loss
from standins import text_backbone, tiny_tokenizer

INDEX = torch.tensor([int(pair.user_id[1]) for pair in PAIRS])


@cache
def shared(variant: str) -> AutoregressiveModel:
    return fitted(variant)


def untrained(variant: str, *, shake: bool = False) -> AutoregressiveModel:
    """Return a model as `fit` begins with it, or with adapters and users moved at random."""
    model = build(variant)
    model.head.build(["u0", "u1", "u2"], model.base, seed=0)
    model.networks = model._fresh_networks(0)
    if shake:
        moved = [p for network in model.networks.adapted for p in adapter_parameters(network.model)]
        tensors = model.head.conditioning.tensors()
        with torch.no_grad():
            for number, tensor in enumerate([*moved, *(tensors[name] for name in tensors if name != "vectors")]):
                tensor.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(number))
    return model


def loss_of(model: AutoregressiveModel) -> torch.Tensor:
    return batch_loss(model.head, model.networks, [model._pair(pair) for pair in PAIRS], INDEX)


def dpo_losses(model: AutoregressiveModel, states: list[UserState]) -> list[float]:
    """Return softplus(-Δr) of each pair, from one plain forward a text; rewards not yet divided by any scale."""
    assert model.head.reward_scale == 1.0
    out = []
    for pair, state in zip(PAIRS, states, strict=True):
        margin = sum(plain_rewards(model, state, pair.prompt, pair.chosen)) - sum(
            plain_rewards(model, state, pair.prompt, pair.rejected)
        )
        out.append(math.log1p(math.exp(-margin)))
    return out


def test_without_soft_prompt_and_training_the_reward_is_zero_and_the_loss_log_two() -> None:
    model = untrained("dpo")
    assert float(loss_of(model).detach()) == pytest.approx(math.log(2), abs=1e-12)
    state = model.adapt([])
    assert np.abs(model.prefix_rewards("Why?", "the light of winter", state)).max() < 1e-12
    # A soft prompt changes what the network says before anything is learnt.
    prompted = untrained("p_dpo")
    assert np.abs(prompted.prefix_rewards("Why?", "the light", prompted.adapt([]))[1:]).min() > 1e-4


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_without_users_loss_and_gradient_are_those_of_trl(alpha: float, tmp_path: Path) -> None:
    """α = 1, T_u = 0, one adapter on the same weights: TRL's DPO loss. Without users α has nothing to divide."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    model = untrained("dpo", shake=True)
    model.head.alpha = alpha
    network = model.networks.adapted[0].model
    own = loss_of(model)
    slopes = torch.autograd.grad(own, adapter_parameters(network))
    trainer = DPOTrainer(
        copy.deepcopy(network),
        copy.deepcopy(model.base.model),
        DPOConfig(str(tmp_path), beta=0.1, use_cpu=True, report_to=[], bf16=False, gradient_checkpointing=False),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny_tokenizer(),
    )
    rows = [model._pair(pair) for pair in PAIRS]
    batch = DataCollatorForPreference(pad_token_id=0)(
        [
            {"prompt_ids": list(r.prompt), "chosen_ids": list(r.completions[0]), "rejected_ids": list(r.completions[1])}
            for r in rows
        ]
    )
    trainer.model.eval()
    peer = trainer._compute_loss(trainer.model, batch, False)
    found = torch.autograd.grad(peer, [p for p in trainer.model.parameters() if p.requires_grad])
    # TRL sums its log-probabilities in float32.
    assert float(own.detach()) == pytest.approx(float(peer.detach()), abs=1e-6)
    assert max(float(slope.abs().max()) for slope in slopes) > 0.05
    for one, other in zip(slopes, found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-6)


@pytest.mark.parametrize("variant", ["p_dpo", "p_dpo_individual"])
def test_the_loss_is_alpha_times_the_user_s_and_the_rest_the_generic_user_s(variant: str) -> None:
    model = untrained(variant, shake=True)
    head = model.head
    states = [model.state_of(pair.user_id) for pair in PAIRS]
    own, generic = dpo_losses(model, states), dpo_losses(model, [model.adapt([])] * len(PAIRS))
    offsets = head.conditioning.offsets.detach()[INDEX]
    pull = 1e-3 * float(offsets.square().flatten(1).sum(1).mean())
    for alpha in (1.0, 0.5, 0.2):
        head.alpha = alpha
        expected = alpha * np.mean(own) + (1 - alpha) * np.mean(generic) + pull
        assert float(loss_of(model).detach()) == pytest.approx(expected, abs=1e-9)
    assert abs(np.mean(own) - np.mean(generic)) > 1e-4


@pytest.mark.parametrize("variant", ["p_dpo", "p_dpo_individual"])
def test_a_user_without_offset_is_the_generic_user(variant: str) -> None:
    model = untrained(variant)
    prompts = model.head.condition([model.state_of("u0"), model.adapt([])]).prompts
    assert torch.equal(prompts[0], prompts[1])
    torch.testing.assert_close(prompts[0], model.head.conditioning.generic(1).prompts[0], rtol=0, atol=1e-12)
    losses = []
    for alpha in (1.0, 0.5):
        model.head.alpha = alpha
        losses.append(float(loss_of(model).detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    vectors = model.head.conditioning.vectors
    torch.testing.assert_close(prompts[0], vectors.mean(0), rtol=0, atol=1e-12)


def test_cluster_prompts_lie_in_the_hull_of_the_clusters() -> None:
    model = shared("p_dpo")
    clusters = model.head.conditioning.vectors
    prompts = model.head.condition([model.state_of("u0"), model.adapt(SUPPORT)]).prompts
    assert bool((prompts >= clusters.amin(0) - 1e-12).all() and (prompts <= clusters.amax(0) + 1e-12).all())
    logits = model.state_of("u0").values["logits"]
    expected = sum(float(w) * c for w, c in zip(torch.softmax(logits, 0), clusters, strict=True))
    torch.testing.assert_close(prompts[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["p_dpo", "p_dpo_individual", "dpo", "genarm_relative"])
def test_guidance_in_nats_is_the_fitted_policy_itself(variant: str) -> None:
    """log π_ref + (s/β) · r/s = log π_θ(. | user): step by step, and the greedy path of a batch of users."""
    model = shared(variant)
    policy = model.base
    states = [model.state_of("u0"), model.adapt(SUPPORT), model.adapt([])]
    prompts = ["Why?", "what is the name of the river?", "one word"]
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in prompts]
    session = TrieSession(policy, 3, 400)
    tips = session.prefill(ids)
    guide = model.guide(policy, prompts, ids, states, 20)
    everything = torch.arange(policy.vocabulary).expand(3, -1)
    guide.start(tips)
    scores = guided_scores(policy.log_probs(tips), guide.candidates(everything, None), model.nats_weight)
    vectors = model.head.condition(states).prompts
    network = model.networks.adapted[0].model
    for row in range(3):
        law = plain_laws(network, vectors[row], tuple(ids[row]), [])[-1]
        torch.testing.assert_close(scores[row], law, rtol=0, atol=1e-9)
    guide = model.guide(policy, prompts, ids, states, 400)
    decoder = ArgsGreedy(model.nats_weight, policy.vocabulary)
    found = decode(session, tips, decoder, StopRule((), 8), guide=guide)
    for row in range(3):
        path: list[int] = []
        for _ in range(8):
            path.append(int(plain_laws(network, vectors[row], tuple(ids[row]), path)[-1].argmax()))
        assert found[row].ids == path


@pytest.mark.parametrize("variant", ["p_dpo", "p_dpo_individual"])
def test_adapting_is_adam_on_the_support_s_loss(variant: str) -> None:
    """Against torch's Adam driven through plain forwards, one text at a time."""
    model = shared(variant)
    conditioning, head = model.head.conditioning, model.head
    network, name = model.networks.adapted[0].model, next(iter(model.adapt([]).values))
    offset = torch.zeros_like(conditioning.offsets[0]).requires_grad_()
    optimiser = torch.optim.Adam([offset], lr=5e-2 if variant == "p_dpo" else 1e-2)
    rows = [model._pair(pair) for pair in SUPPORT]
    table = network.get_input_embeddings()

    def total(prompt: torch.Tensor, start: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
        out = torch.zeros(()).double()
        for vectors, net, sign in ((prompt, network, 1.0), (prompt[:0], model.base.model, -1.0)):
            embedded = torch.cat([vectors, table(torch.tensor([*start, *ids[:-1]]))])[None]
            laws = torch.log_softmax(net(inputs_embeds=embedded, use_cache=False).logits[0, -len(ids) :], -1)
            out = out + sign * laws[torch.arange(len(ids)), torch.tensor(ids)].sum()
        return out

    for _ in range(conditioning.adapt_steps):
        prompt = conditioning.prompts(offset[None])[0]
        margins = [
            head.beta * (total(prompt, row.prompt, row.completions[0]) - total(prompt, row.prompt, row.completions[1]))
            for row in rows
        ]
        loss = torch.nn.functional.softplus(-torch.stack(margins)).mean() + 1e-3 * offset.square().sum()
        (offset.grad,) = torch.autograd.grad(loss, offset)
        optimiser.step()
    found = model.adapt(SUPPORT).values[name]
    assert float(found.abs().max()) > 0.01
    torch.testing.assert_close(found, offset.detach(), rtol=0, atol=1e-6)


def test_adapting_ends_once_the_support_is_ranked_with_the_margin_asked_for() -> None:
    model = copy.copy(shared("p_dpo"))
    model.head = copy.copy(model.head)

    def reached(steps: int, margin: float) -> float:
        model.head.conditioning = copy.copy(shared("p_dpo").head.conditioning)
        model.head.conditioning.adapt_steps, model.head.conditioning.adapt_margin = steps, margin
        state = model.adapt(SUPPORT[:1])
        return float(model.margins(SUPPORT[:1], [state])[0]) * model.scale

    cold = float(model.margins(SUPPORT[:1], [model.adapt([])])[0]) * model.scale
    goal = cold + 0.05
    assert reached(1, goal) < goal < reached(25, goal)
    assert reached(25, goal) == reached(30, goal)  # further steps are not taken
    assert reached(25, 50.0) > reached(25, goal)
    assert reached(25, cold - 0.1) == pytest.approx(cold, abs=1e-12)


def test_a_strong_pull_leaves_a_new_user_generic() -> None:
    loose, tight = (copy.copy(shared("p_dpo_individual")) for _ in range(2))
    tight.head = copy.copy(tight.head)
    tight.head.conditioning = copy.copy(tight.head.conditioning)
    tight.head.conditioning.user_l2 = 1e4
    sizes = [float(model.adapt(SUPPORT).values["offset"].norm()) for model in (loose, tight)]
    assert sizes[1] < 0.5 * sizes[0]


def test_opposite_users_on_the_same_pairs_get_margins_of_both_signs() -> None:
    train, held_out = opposite_users(0, 2, 8), opposite_users(2, 2, 10)
    model = reward_model(
        "p_dpo", text_backbone("llama", dtype=torch.float32), num_user_tokens=3, lora=LoraSettings(8, 16, 0.0)
    )
    model.fit([p for rows in train.values() for p in rows], epochs=40, batch_size=16, learning_rate=1e-2)
    assert isinstance(model, AutoregressiveModel)
    assert model.head.diagnostics["accuracy"] == 1.0
    own = [ranked(model, held_out[user], model.state_of(user)) for user in held_out]
    swapped = [ranked(model, held_out[user], model.state_of(other)) for user, other in (("u0", "u1"), ("u1", "u0"))]
    assert min(own) >= 0.9
    assert max(swapped) <= 0.1


def same(one: AutoregressiveModel, other: AutoregressiveModel) -> None:
    np.testing.assert_array_equal(one.head.history.loss, other.head.history.loss)
    for user in one.head.users:
        mine, theirs = one.state_of(user), other.state_of(user)
        assert all(torch.equal(value, theirs.values[name]) for name, value in mine.values.items())
        margins = [m.margins(PAIRS, [state] * len(PAIRS)) for m, state in ((one, mine), (other, theirs))]
        np.testing.assert_array_equal(*margins)


@pytest.mark.parametrize(
    ("options", "peer"),
    [
        ({"num_user_tokens": 2}, {"num_user_tokens": 2}),
        ({"num_user_tokens": 2, "form": "individual"}, {"num_user_tokens": 2, "prompt_form": "individual"}),
        ({"num_user_tokens": 0}, {"form": "global"}),
    ],
)
def test_a_relative_genarm_is_p_dpo_to_the_bit(options: dict[str, Any], peer: dict[str, Any]) -> None:
    models = []
    for method, own in (("p_dpo", options), ("genarm", {**peer, "relative": True})):
        model = reward_model(method, text_backbone("llama"), lora=LoraSettings(4, 8, 0.1), **own)
        models.append(model.fit(PAIRS, seed=3, epochs=1, batch_size=4, learning_rate=1e-2))
    same(*models)


def test_defaults_of_card_and_head_are_one() -> None:
    for name in ("p_dpo", "genarm"):
        card = REWARD_MODELS[name]
        config = card.config()
        built: Any = card.build(config)
        assert built.config() == {field: getattr(config, field) for field in config.__dataclass_fields__}
        assert type(built)().config() == built.config()
        changed = replace(config, beta=0.3, num_clusters=7)
        assert card.build(changed).config()["num_clusters"] == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "clusters"}, "form is 'clusters'"),
        ({"num_user_tokens": -1}, "num_user_tokens is -1"),
        ({"num_user_tokens": True}, "num_user_tokens is True"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": 1.5}, "alpha is 1.5; expected a number above 0 and at most 1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"adapt_steps": 0}, "adapt_steps is 0"),
        ({"user_l2": -1}, "user_l2 is -1"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_head("p_dpo", **options)
