"""GenARM: a reward for every next token, its limits in decoding, its users, and the length it prefers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from autoregressive import PAIRS, SUPPORT, build, fitted, opposite_users, plain_laws, ranked
from rewardgap.backbones.lora import LoraSettings
from rewardgap.backbones.session import TrieSession
from rewardgap.core.errors import ConfigError
from rewardgap.core.records import PreferencePair
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.numerics.guidance import guided_scores
from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.catalog import build_head
from rewardgap.rewards.states import UserState
from rewardgap.rewards.token_networks import SupportPairs
from standins import text_backbone

PROMPTS = ["Why?", "what is the name of the river?"]


@cache
def shared(variant: str) -> AutoregressiveModel:
    return fitted(variant)


def untrained(variant: str) -> AutoregressiveModel:
    model = build(variant)
    model.head.build(["u0", "u1", "u2"], model.base, seed=0)
    model.networks = model._fresh_networks(0)
    return model


def guided_laws(model: AutoregressiveModel, states: list[UserState], weight: float) -> tuple[torch.Tensor, ...]:
    """Return (B, V) softmax of the guided scores of the first token, and the policy's own law."""
    policy = model.base
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in PROMPTS]
    tips = TrieSession(policy, 2, 100).prefill(ids)
    guide = model.guide(policy, PROMPTS, ids, states, 20)
    guide.start(tips)
    everything = torch.arange(policy.vocabulary).expand(2, -1)
    law = policy.log_probs(tips)
    return torch.log_softmax(guided_scores(law, guide.candidates(everything, None), weight), -1), law


def test_no_weight_is_the_policy_and_an_endless_one_the_reward_model() -> None:
    model = shared("genarm_global")
    states = [model.adapt([])] * 2
    none, law = guided_laws(model, states, 0.0)
    torch.testing.assert_close(none, law, rtol=0, atol=1e-12)
    endless, _ = guided_laws(model, states, 1e9)
    for row, prompt in enumerate(PROMPTS):
        start = model.base.encoder.encode_prompt(prompt)
        own = plain_laws(model.backbone.model, torch.zeros(0, 24), start, [])[-1]
        assert int(endless[row].argmax()) == int(own.argmax())
    assert endless.argmax(-1).tolist() != law.argmax(-1).tolist()


def test_an_untrained_model_sharpens_the_policy() -> None:
    """π_r = π and α = 1: the guided law is π² over its sum, the policy at temperature one half."""
    model = untrained("genarm_global")
    found, law = guided_laws(model, [model.adapt([])] * 2, model.nats_weight)
    torch.testing.assert_close(found, torch.log_softmax(2 * law, -1), rtol=0, atol=1e-9)


def test_two_equal_networks_with_half_the_weight_each_are_one() -> None:
    model = shared("genarm_global")
    twice = build("genarm_mixture")
    twice.head.build(["u0"], twice.base)
    twice.networks = type(model.networks)(model.networks.adapted * 2, None)
    twice.head.reward_scale = model.scale
    for weights in ([0.5, 0.5], [0.2, 0.8]):
        state = UserState("genarm", {"weights": torch.tensor(weights, dtype=torch.float64)}, 0)
        one, _ = guided_laws(model, [model.adapt([])] * 2, 1.3)
        two, _ = guided_laws(twice, [state] * 2, 1.3)
        torch.testing.assert_close(two, one, rtol=0, atol=1e-9)
        rewards = [m.rewards(["Why?"], ["red"], s)[0] for m, s in ((model, model.adapt([])), (twice, state))]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-9)


def test_the_margin_is_beta_times_the_difference_of_masked_losses() -> None:
    """Against transformers' own loss with the prompt masked: r(y+) - r(y-) = β (NLL(y-) - NLL(y+))."""
    model = shared("genarm_global")
    for pair in PAIRS[:4]:
        row = model._pair(pair)
        losses = []
        for ids in row.completions:
            whole = torch.tensor([[*row.prompt, *ids]])
            labels = whole.clone()
            labels[:, : len(row.prompt)] = -100
            with torch.no_grad():
                losses.append(float(model.backbone.model(input_ids=whole, labels=labels).loss) * len(ids))
        margin = float(model.margins([pair], [model.state_of(pair.user_id)])[0])
        # transformers forms its loss in float32
        assert margin * model.scale == pytest.approx(0.1 * (losses[1] - losses[0]), abs=1e-4)


def test_an_absolute_reward_falls_with_every_token_and_a_relative_one_need_not() -> None:
    absolute, relative = untrained("genarm_global"), shared("genarm_relative")
    along = absolute.prefix_rewards("Why?", "the light of winter", absolute.adapt([]))
    assert bool((np.diff(along) < 0).all())
    steps = np.diff(relative.prefix_rewards("Why?", "the light of winter", relative.adapt([])))
    assert steps.max() > 0 > steps.min()


def test_a_planted_preference_for_a_token_is_learnt_at_every_position() -> None:
    """Texts that differ in one token somewhere: after training, its log-probability is higher everywhere."""
    backbone = text_backbone("llama", dtype=torch.float32)
    words, draw = [" of", " user", " 2", " 3", " 4", " 5", " 6"], np.random.default_rng(0)  # a token each
    (liked,) = backbone.encoder.encode_text(" the")
    pairs = []
    for number in range(40):
        others = draw.choice(words, 5).tolist()
        place = int(draw.integers(5))
        sides = [[*others[:place], token, *others[place + 1 :]] for token in (" the", " and")]
        pairs.append(
            PreferencePair(
                user_id="u", example_id=str(number), prompt="Why?", chosen="".join(sides[0]), rejected="".join(sides[1])
            )
        )
    model = reward_model("genarm", backbone, form="global", lora=LoraSettings(4, 8, 0.0))
    model.fit(pairs[:32], epochs=10, batch_size=8, learning_rate=1e-2)
    assert model.head.diagnostics["accuracy"] == 1.0
    assert ranked(model, pairs[32:], model.adapt([])) == 1.0
    start = backbone.encoder.encode_prompt("Why?")
    gains = []
    for _ in range(12):
        ids = backbone.encoder.encode_text("".join(draw.choice(words, 5).tolist()))
        before, after = (plain_laws(m, torch.zeros(0, 24), start, ids) for m in (backbone.model, model.backbone.model))
        gains.append((after - before)[:5, liked])
    lowest = torch.stack(gains).amin(0)
    assert lowest.shape == (5,)
    assert float(lowest.min()) > 0.3


def test_users_of_a_mixture_are_on_the_simplex_and_the_cold_start_is_their_mean() -> None:
    model = shared("genarm_mixture")
    rows = torch.stack([model.state_of(user).values["weights"] for user in model.head.users])
    cold, new = (model.adapt(pairs).values["weights"] for pairs in ([], SUPPORT))
    for weights in (*rows, cold, new):
        assert float(weights.min()) >= 0
        assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(cold, rows.mean(0), rtol=0, atol=1e-12)
    assert float((new - cold).abs().max()) > 1e-4


def test_a_new_user_of_a_mixture_is_the_optimum_of_a_convex_problem() -> None:
    """Against scipy on the same margins; and those margins are each network's own."""
    model = shared("genarm_mixture")
    margins = SupportPairs(model.head, model.networks, [model._pair(pair) for pair in SUPPORT]).margins().numpy()
    for vertex in range(2):
        state = UserState("genarm", {"weights": torch.eye(2, dtype=torch.float64)[vertex]}, 0)
        own = model.margins(SUPPORT, [state] * 3) * model.scale
        np.testing.assert_allclose(margins[:, vertex], own, rtol=0, atol=1e-9)
    prior = model.adapt([]).values["weights"].numpy()

    def objective(first: np.ndarray) -> float:
        weights = np.array([first[0], 1 - first[0]])
        return float(np.logaddexp(0, -margins @ weights).mean() + 1e-2 * ((weights - prior) ** 2).sum())

    peer = minimize(objective, [0.5], bounds=[(0, 1)], tol=1e-14)
    found = model.adapt(SUPPORT).values["weights"].numpy()
    assert found[0] == pytest.approx(float(peer.x[0]), abs=1e-4)
    assert objective(found) <= objective(peer.x) + 1e-12


def test_decoding_with_a_mixture_is_decoding_with_the_normalised_product() -> None:
    """log π + α log (Π_j π_j^w / Z): the normaliser is the same for all candidates of a step."""
    model = shared("genarm_mixture")
    state, alpha = model.adapt(SUPPORT), 2.0
    found, law = guided_laws(model, [state] * 2, alpha * model.nats_weight)
    shares = state.values["weights"]
    for row, prompt in enumerate(PROMPTS):
        start = model.base.encoder.encode_prompt(prompt)
        laws = [plain_laws(network.model, torch.zeros(0, 24), start, [])[-1] for network in model.networks.adapted]
        product = torch.log_softmax(sum(float(w) * own for w, own in zip(shares, laws, strict=True)), -1)
        expected = torch.log_softmax(law[row] + alpha * product, -1)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-9)


def test_a_mixture_of_one_is_global() -> None:
    models = []
    for options in ({"form": "mixture", "num_bases": 1}, {"form": "global"}):
        model = reward_model("genarm", text_backbone("llama"), lora=LoraSettings(4, 8, 0.1), **options)
        models.append(model.fit(PAIRS, seed=3, epochs=1, batch_size=4, learning_rate=1e-2))
    one, other = models
    states = [[m.state_of(pair.user_id) for pair in PAIRS] for m in models]
    np.testing.assert_allclose(one.margins(PAIRS, states[0]), other.margins(PAIRS, states[1]), rtol=0, atol=1e-6)
    assert one.adapt(SUPPORT).values["weights"].tolist() == [1.0]


def test_opposite_users_of_a_mixture_get_networks_of_their_own() -> None:
    train, held_out = opposite_users(0, 2, 8), opposite_users(2, 2, 10)
    model = reward_model(
        "genarm", text_backbone("llama", dtype=torch.float32), form="mixture", num_bases=2, relative=True,
        lora=LoraSettings(8, 16, 0.0),
    )  # fmt: skip
    model.fit([p for rows in train.values() for p in rows], epochs=30, batch_size=16, learning_rate=1e-2)
    own = [ranked(model, held_out[user], model.state_of(user)) for user in held_out]
    new = [ranked(model, held_out[user][4:], model.adapt(held_out[user][:4])) for user in held_out]
    swapped = [ranked(model, held_out[user], model.state_of(other)) for user, other in (("u0", "u1"), ("u1", "u0"))]
    assert min(own) >= 0.9
    assert min(new) >= 0.8
    assert max(swapped) <= 0.1


def test_greedy_guidance_over_the_whole_vocabulary_follows_the_product() -> None:
    """A batch with rows that stop apart, token by token against log π + α log π_r."""
    model = shared("genarm")
    policy, alpha = model.base, 1.5
    states = [model.state_of("u0"), model.adapt(SUPPORT)]
    ids = [list(policy.encoder.encode_prompt(prompt)) for prompt in PROMPTS]
    session = TrieSession(policy, 2, 800)
    tips = session.prefill(ids)
    guide = model.guide(policy, PROMPTS, ids, states, 20)
    decoder = ArgsGreedy(alpha * model.nats_weight, policy.vocabulary)
    found = decode(session, tips, decoder, StopRule((), 6, 0, tuple(range(100))), guide=guide)
    vectors = model.head.condition(states).prompts
    for row in range(2):
        path: list[int] = []
        while len(path) < 6 and (not path or path[-1] >= 100):
            law = plain_laws(policy.model, torch.zeros(0, 24), tuple(ids[row]), path)[-1]
            own = plain_laws(model.backbone.model, vectors[row], tuple(ids[row]), path)[-1]
            path.append(int((law + alpha * own).argmax()))
        assert found[row].ids == path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "soft"}, "form is 'soft'"),
        ({"prompt_form": "mean"}, "form is 'mean'"),
        ({"num_bases": 0}, "num_bases is 0"),
        ({"num_user_tokens": 0}, "num_user_tokens is 0"),
        ({"relative": "no"}, "relative is 'no'"),
        ({"user_ridge": 0}, "user_ridge is 0"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_head("genarm", **options)
