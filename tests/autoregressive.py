"""Autoregressive reward models of the tests, and their rewards from one plain forward a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.lora import LoraSettings
from rewardgap.core.records import Message, PreferencePair
from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.states import UserState
from standins import text_backbone

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "p_dpo": ("p_dpo", {"num_user_tokens": 3}),
    "p_dpo_individual": ("p_dpo", {"form": "individual", "num_user_tokens": 2}),
    "dpo": ("p_dpo", {"num_user_tokens": 0}),
    "genarm": ("genarm", {"num_user_tokens": 3}),
    "genarm_relative": ("genarm", {"relative": True, "num_user_tokens": 2, "prompt_form": "individual"}),
    "genarm_mixture": ("genarm", {"form": "mixture", "num_bases": 2}),
    "genarm_global": ("genarm", {"form": "global"}),
    "farma": ("farma", {"num_user_tokens": 3}),
    "farma_individual": ("farma", {"form": "individual", "num_user_tokens": 2, "backup_top_k": None}),
    "pad": ("pad", {"num_examples": 2, "text_tokens": 150}),
    "pad_same": ("pad", {"num_examples": 2, "text_tokens": 150, "ref": "same", "generic_share": 0.3}),
}
TEXTS = ["red", "red and blue", "the light of winter", "garden", "", "<|im_end|>", "stone stone", "é"]
PAIRS = [
    PreferencePair(
        user_id=f"u{i % 3}", example_id=str(i), prompt=f"Name a colour {i % 4}.", chosen=TEXTS[i % 8],
        rejected=TEXTS[(3 * i + 1) % 8],
    )
    for i in range(12)
    if TEXTS[i % 8] != TEXTS[(3 * i + 1) % 8]
]  # fmt: skip
SUPPORT = [PAIRS[0], PAIRS[5], PAIRS[7]]


def build(variant: str, *, base: Backbone | None = None) -> AutoregressiveModel:
    """Return a model that is not fitted, in float64, with dropout in its settings and few steps of adaptation."""
    method, options = VARIANTS[variant]
    backbone = base if base is not None else text_backbone("llama")
    steps = {} if method == "pad" else {"adapt_steps": 5}
    model = reward_model(method, backbone, lora=LoraSettings(4, 8, 0.2), **steps, **options)
    assert isinstance(model, AutoregressiveModel)
    return model


def fitted(variant: str) -> AutoregressiveModel:
    """Return a model whose adapters and soft prompts have gone far from where they began."""
    return build(variant).fit(PAIRS, seed=1, epochs=2, batch_size=5, learning_rate=2e-2)


def plain_values(head: Any, network: Backbone, vectors: torch.Tensor, start: tuple[int, ...], ids: list[int]) -> Any:
    """Return (T + 1, V) values of every next token along ids, from one unpacked forward, one number at a time."""
    table, weight = head.table, network.model.get_output_embeddings().weight.detach()
    embedded = network.model.get_input_embeddings()(torch.tensor([*start, *ids]))
    whole = torch.cat([vectors.to(embedded), embedded])[None]
    with torch.no_grad():
        output = network.model(inputs_embeds=whole, use_cache=False, output_hidden_states=True)
    states = output.hidden_states[-1][0, len(vectors) + len(start) - 1 :]
    unit, width = float(weight.square().mean().sqrt()), weight.shape[1]
    columns = table.prefix_weights + (weight / (width * unit)) @ table.token_weights
    return torch.stack(
        [columns @ (table.directions @ (state / state.square().mean().sqrt())) / width**0.5 for state in states]
    )


def plain_laws(model: Any, vectors: torch.Tensor, prompt: tuple[int, ...], ids: list[int]) -> torch.Tensor:
    """Return (T + 1, V) next-token log-probabilities along ids, from one unpacked forward; vectors before all tokens."""
    embedded = model.get_input_embeddings()(torch.tensor([*prompt, *ids]))
    with torch.no_grad():
        logits = model(inputs_embeds=torch.cat([vectors.to(embedded), embedded])[None], use_cache=False).logits[0]
    return torch.log_softmax(logits[len(vectors) + len(prompt) - 1 :], -1)


def told_prompt(model: Any, state: UserState, prompt: str) -> tuple[int, ...]:
    """Return the ids of a prompt with the text that a state of PAD holds, as a system turn written out."""
    encoder = model.base.encoder
    text = encoder.decode([index for index in state.values["text"].tolist() if index >= 0])
    return encoder.encode_prompt((Message("system", text), Message("user", prompt)))


def plain_token_rewards(model: AutoregressiveModel, state: UserState, prompt: str, ids: list[int]) -> torch.Tensor:
    """Return (T + 1, V) rewards of every next token along ids after a prompt, in units of the scale."""
    head = model.head
    start = told = model.base.encoder.encode_prompt(prompt)
    if model.method == "pad":
        told = told_prompt(model, state, prompt)
        start = told if head.ref == "same" else start
    vectors, weights = (part[0].detach() for part in head.condition([state]))
    if model.method == "farma":
        laws = plain_values(head, model.networks.adapted[0], vectors, start, ids)
        # What a token adds: its value, less that of the prefix before it; the bare prompt's is 0.
        before = [0.0, *(float(laws[t, token]) for t, token in enumerate(ids))]
        return (laws - torch.tensor(before, dtype=laws.dtype)[:, None]) / head.reward_scale
    laws = sum(
        float(weight) * plain_laws(network.model, vectors, told, ids)
        for weight, network in zip(weights, model.networks.adapted, strict=True)
    )
    if head.relative:
        laws = laws - plain_laws(model.base.model, vectors[:0], start, ids)
    return laws * head.beta / head.reward_scale


def plain_rewards(model: AutoregressiveModel, state: UserState, prompt: str, completion: str) -> list[float]:
    """Return the T rewards of a completion's tokens, its end token the last."""
    encoder = model.base.encoder
    ids = [*encoder.encode_completion(completion, after=prompt), encoder.end_id]
    laws = plain_token_rewards(model, state, prompt, ids[:-1])
    return [float(laws[t, token]) for t, token in enumerate(ids)]


_WORDS = ["river", "garden", "light", "winter", "name", "answer", "model", "user", "text", "word"]


def opposite_users(seed: int, users: int, rows: int, *, first: int = 0) -> dict[str, list[PreferencePair]]:
    """Return users who judge the same pairs of texts on drawn prompts: even ones like "the red", odd ones "of blue"."""
    draw = np.random.default_rng(seed)
    out: dict[str, list[PreferencePair]] = {f"u{first + number}": [] for number in range(users)}
    for row in range(rows):
        prompt, opening = " ".join(draw.choice(_WORDS, 3)), " ".join(draw.choice(_WORDS, 2))
        sides = [f"{opening} the red", f"{opening} of blue"]
        for number, (user, pairs) in enumerate(out.items()):
            chosen, rejected = sides if number % 2 == 0 else sides[::-1]
            pairs.append(
                PreferencePair(
                    user_id=user, example_id=f"{user}-{row}", prompt=prompt, chosen=chosen, rejected=rejected
                )
            )
    return out


def ranked(model: AutoregressiveModel, pairs: list[PreferencePair], state: UserState) -> float:
    """Return the share of pairs that a user's rewards rank as the user did."""
    return float((model.margins(pairs, [state] * len(pairs)) > 0).mean())
