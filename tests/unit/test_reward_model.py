"""The reward model of texts: prefixes, pairs, users and files agree with plain forwards of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from rewardgap.backbones.features import FeatureCache
from rewardgap.backbones.load import load_backbone
from rewardgap.backbones.lora import LoraSettings, adapter_parameters, attach_lora
from rewardgap.core.errors import ConfigError, DataError, ModelError, UnknownNameError
from rewardgap.core.records import PreferencePair
from rewardgap.rewards.apart import ApartModel
from rewardgap.rewards.build import load_reward_model, reward_model
from rewardgap.rewards.catalog import REWARD_MODELS
from rewardgap.rewards.guide import BackboneGuide, PolicyStateGuide
from rewardgap.rewards.model import RewardModel
from rewardgap.rewards.personal_adapters import PersonalAdapterModel
from standins import save_hub_folder, text_backbone, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from rewardgap.rewards.states import UserState

METHODS = [card.name for card in REWARD_MODELS if card.family == "head"]
TEXTS = ["red", "red and blue", "the light of winter", "garden", "", "<|im_end|>", "stone stone", "é"]
PAIRS = [
    PreferencePair(
        user_id=f"u{i % 3}", example_id=str(i), prompt=f"Name a colour {i % 4}.", chosen=TEXTS[i % 8],
        rejected=TEXTS[(3 * i + 1) % 8],
    )
    for i in range(24)
    if TEXTS[i % 8] != TEXTS[(3 * i + 1) % 8]
]  # fmt: skip
SUPPORT = [PAIRS[0], PAIRS[5], PAIRS[9]]


def fitted(method: str, fit_mode: str, folder: Path, architecture: str = "mistral") -> RewardModel:
    """Return a model whose adapter, if there is one, does something, dropout included in its settings."""
    model = reward_model(
        method, text_backbone(architecture, dtype=torch.float32), fit_mode=fit_mode, features=FeatureCache(folder),  # type: ignore[arg-type]
        lora=LoraSettings(4, 8, 0.2),
    )  # fmt: skip
    if fit_mode == "frozen":
        return model.fit(PAIRS, seed=1)
    return model.fit(PAIRS, seed=1, epochs=2, batch_size=5, learning_rate=2e-2)


def plain_reward(model: RewardModel, prompt: str, tokens: tuple[int, ...], state: UserState) -> float:
    ids = [*model.backbone.encoder.encode_prompt(prompt), *tokens]
    network = model.backbone
    if isinstance(model, PersonalAdapterModel):
        network = attach_lora(model.base, model.lora, 0)
        named = model.host.tensors(state.values["adapter"])
        with torch.no_grad():
            for name, parameter in network.model.named_parameters():
                if ".lora_" in name:
                    (own,) = (t for n, t in named.items() if n in name.replace(".default", ""))
                    parameter.copy_(own)
    with torch.no_grad():
        hidden = network.model.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        if isinstance(model, ApartModel):
            decoder, encoder = network.model.get_decoder(), model.backbone.encoder
            alone = torch.tensor([[*encoder.alone_ids, *tokens]])
            asked = torch.tensor([list(encoder.encode_prompt(prompt))])
            parts = [decoder(input_ids=part).last_hidden_state[0, -1] for part in (alone, asked)]
            hidden = torch.cat(parts)
        return float(model.head.rewards(hidden, state)) / model.scale


@pytest.mark.parametrize("fit_mode", ["frozen", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_prefix_rewards_are_those_of_separate_forwards(method: str, fit_mode: str, tmp_path: Path) -> None:
    """Index 0 is the bare prompt, index T the whole completion, and each is a forward of its own prefix."""
    model = fitted(method, fit_mode, tmp_path)
    for state in (model.state_of("u1"), model.adapt(SUPPORT), model.adapt([])):
        for text in ("the light of winter", "red <|im_end|> blue", ""):
            tokens = model.backbone.encoder.encode_completion(text)
            along = model.prefix_rewards("Name a colour.", text, state)
            assert along.shape == (len(tokens) + 1,)
            expected = [plain_reward(model, "Name a colour.", tokens[:t], state) for t in range(len(tokens) + 1)]
            np.testing.assert_allclose(along, expected, rtol=0, atol=1e-4)
            assert along[-1] == pytest.approx(model.rewards(["Name a colour."], [text], state)[0], abs=1e-4)


@pytest.mark.parametrize("fit_mode", ["frozen", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_margins_rewards_and_batches_agree(method: str, fit_mode: str, tmp_path: Path) -> None:
    model = fitted(method, fit_mode, tmp_path)
    states = [model.state_of(pair.user_id) for pair in PAIRS]
    prompts = [pair.prompt for pair in PAIRS]
    chosen = model.rewards(prompts, [p.chosen for p in PAIRS], states)
    rejected = model.rewards(prompts, [p.rejected for p in PAIRS], states)
    np.testing.assert_allclose(model.margins(PAIRS, states), chosen - rejected, rtol=1e-5, atol=1e-4)
    one_by_one = [model.rewards([p.prompt], [p.chosen], s)[0] for p, s in zip(PAIRS, states, strict=True)]
    np.testing.assert_allclose(chosen, one_by_one, rtol=1e-5, atol=1e-4)
    assert np.std(chosen - rejected) == pytest.approx(1.0, rel=1e-3)  # the unit of rewards
    assert model.rewards([], [], []).shape == (0,)


@pytest.mark.parametrize("fit_mode", ["frozen", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_saved_models_come_back(method: str, fit_mode: str, tmp_path: Path) -> None:
    """Among them an adapter with dropout, which must be off in a model that was read and never trained."""
    model = fitted(method, fit_mode, tmp_path / "features")
    model.save(tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    own = isinstance(model, PersonalAdapterModel)
    weights = {"users.safetensors" if own else "adapter.safetensors"} if fit_mode == "lora" else set()
    assert files == {"model.json", "head.safetensors"} | weights
    again = load_reward_model(tmp_path / "model", model.base)
    again.features = FeatureCache(tmp_path / "other")
    assert again.fingerprint() == model.fingerprint()
    assert again.backbone.fingerprint == model.backbone.fingerprint
    for state in (model.state_of("u2"), model.adapt(SUPPORT)):
        texts = ["red", "the light", ""]
        np.testing.assert_allclose(
            again.rewards(["Why?"] * 3, texts, state), model.rewards(["Why?"] * 3, texts, state), atol=1e-6
        )
    # Another cache reads the support in other company: its last bits may differ, and with them the state's.
    one, other = again.adapt(SUPPORT), model.adapt(SUPPORT)
    assert one.num_support == other.num_support
    for name, value in other.values.items():
        torch.testing.assert_close(one.values[name], value, rtol=1e-4, atol=1e-5)


def test_adapting_changes_nothing_and_forgets_order_of_users(tmp_path: Path) -> None:
    model = fitted("lore", "lora", tmp_path)
    before = model.fingerprint()
    weights = [p.clone() for p in model.backbone.model.parameters()]
    one, two = model.adapt_all([SUPPORT, PAIRS[10:14]])
    assert model.adapt_all([PAIRS[10:14], SUPPORT]) == [two, one]
    assert model.adapt(SUPPORT) == one
    assert model.fingerprint() == before
    assert all(torch.equal(a, b) for a, b in zip(weights, model.backbone.model.parameters(), strict=True))


def test_fitting_again_starts_again(tmp_path: Path) -> None:
    model = fitted("global_bt", "lora", tmp_path)
    first = model.fingerprint()
    model.fit(PAIRS, seed=1, epochs=2, batch_size=5, learning_rate=2e-2)
    assert model.fingerprint() == first
    assert len(adapter_parameters(model.backbone.model)) == 2 * 7 * 2
    model.fit(PAIRS, seed=2, epochs=2, batch_size=5, learning_rate=2e-2)
    assert model.fingerprint() != first


def test_the_guide_reads_the_policys_states_only_where_they_are_its_own(tmp_path: Path) -> None:
    frozen, lora = fitted("global_bt", "frozen", tmp_path), fitted("global_bt", "lora", tmp_path)
    policy = frozen.base
    prompts = ["Why?"]
    ids = [policy.encoder.encode_prompt("Why?")]
    states = [frozen.adapt([])]
    assert isinstance(frozen.guide(policy, prompts, ids, states, 8), PolicyStateGuide)
    assert isinstance(frozen.guide(policy, prompts, [(1, *ids[0])], states, 8), BackboneGuide)  # demonstrations
    assert isinstance(lora.guide(policy, prompts, ids, states, 8), BackboneGuide)
    assert isinstance(frozen.guide(text_backbone("llama", dtype=torch.float32), prompts, ids, states, 8), BackboneGuide)


def test_a_model_belongs_to_its_backbone(tmp_path: Path) -> None:
    model = fitted("global_bt", "frozen", tmp_path / "features")
    model.save(tmp_path / "model")
    with pytest.raises(ModelError, match="was fitted on tiny"):
        load_reward_model(tmp_path / "model", text_backbone("llama", dtype=torch.float32))
    with pytest.raises(ModelError, match=r"model\.json is missing"):
        load_reward_model(tmp_path)


def test_a_backbone_is_loaded_by_its_recorded_name(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    folder = save_hub_folder(
        tmp_path / "hub", tiny_model("llama", vocabulary=len(tokenizer), dtype=torch.float32), tokenizer
    )
    model = reward_model("global_bt", load_backbone(str(folder)), features=FeatureCache(tmp_path / "f")).fit(PAIRS)
    model.save(tmp_path / "model")
    again = load_reward_model(tmp_path / "model")
    assert again.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}'])
def test_a_damaged_model_is_one_sentence(content: str, tmp_path: Path) -> None:
    model = fitted("global_bt", "frozen", tmp_path / "features")
    model.save(tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.json"):
        load_reward_model(tmp_path / "model", model.base)


@pytest.mark.parametrize("name", ["head.safetensors", "adapter.safetensors"])
def test_a_damaged_tensor_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    model = fitted("global_bt", "lora", tmp_path / "features")
    model.save(tmp_path / "model")
    whole = (tmp_path / "model" / name).read_bytes()
    for payload in (whole[: len(whole) // 2], b"", None):
        (tmp_path / "model" / name).unlink()
        if payload is not None:
            (tmp_path / "model" / name).write_bytes(payload)
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            load_reward_model(tmp_path / "model", model.base)
        (tmp_path / "model" / name).write_bytes(whole)


def test_mistakes_are_named(tmp_path: Path) -> None:
    backbone = text_backbone()
    with pytest.raises(UnknownNameError, match="Did you mean 'lore'"):
        reward_model("lor", backbone)
    with pytest.raises(ConfigError, match="unknown fit_mode 'full'"):
        reward_model("lore", backbone, fit_mode="full")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least 1 pair"):
        reward_model("lore", backbone, features=FeatureCache(tmp_path)).fit([])


@pytest.mark.parametrize(("method", "mode"), [("lore", "frozen"), ("mpu", "lora"), ("p_dpo", "lora")])
def test_pairs_that_say_nothing_or_two_things_are_named(method: str, mode: str, tmp_path: Path) -> None:
    model = reward_model(
        method, text_backbone("llama"), fit_mode=mode, features=FeatureCache(tmp_path), lora=LoraSettings(2, 4, 0.0)  # type: ignore[arg-type]
    )  # fmt: skip
    same = PreferencePair(user_id="u1", example_id="x", prompt="Why?", chosen="red", rejected="red")
    with pytest.raises(DataError, match="example 'x' of user 'u1' are the same text, which is no preference; drop"):
        model.fit([*PAIRS[:4], same])
    one = PreferencePair(user_id="u1", example_id="y", prompt="Why?", chosen="red", rejected="blue")
    other = PreferencePair(user_id="u1", example_id="z", prompt="Why?", chosen="blue", rejected="red")
    with pytest.warns(UserWarning, match="1 training pairs contradict an earlier one .* 'y' and 'z' of user 'u1'"):
        model.fit([*PAIRS[:4], one, other])
    assert np.isfinite(model.margins([one], [model.state_of("u1")])).all()


@pytest.mark.parametrize("mode", ["frozen", "lora"])
def test_a_set_encoder_reads_new_users_on_the_backbone_it_was_trained_on(mode: str, tmp_path: Path) -> None:
    """A training user's own pairs, given as a support set, are that user."""
    model = fitted("vpl", mode, tmp_path)
    own = [pair for pair in PAIRS if pair.user_id == "u1"]
    assert len(own) <= 8
    torch.testing.assert_close(
        model.adapt(own).values["mean"], model.state_of("u1").values["mean"], rtol=1e-4, atol=1e-5
    )
