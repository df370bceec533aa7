"""One adapter a user: users do not touch one another, and batches of users equal one user at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewardgap.backbones.features import FeatureCache
from rewardgap.backbones.lora import LoraSettings, adapter_parameters, attach_lora
from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import PreferencePair
from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import guided
from rewardgap.rewards import training
from rewardgap.rewards.build import load_reward_model, reward_model
from rewardgap.rewards.joint import pair_states
from rewardgap.rewards.personal_adapters import PersonalAdapterModel
from rewardgap.rewards.training import Schedule, relative_rate
from standins import text_backbone

WORDS = ["red", "blue", "the light", "winter", "garden of stone", "river"]


def pairs(users: int = 3, rows: int = 4) -> list[PreferencePair]:
    """Odd users want the opposite of even ones, on the same prompts and texts."""
    out = []
    for user in range(users):
        for row in range(rows):
            sides = (WORDS[row % 6], WORDS[(row + 2) % 6])
            chosen, rejected = sides if user % 2 == 0 else sides[::-1]
            out.append(
                PreferencePair(
                    user_id=f"u{user}",
                    example_id=f"{user}-{row}",
                    prompt=f"Why {row}?",
                    chosen=chosen,
                    rejected=rejected,
                )
            )
    return out


def model(folder: Path, dropout: float = 0.0, **options: Any) -> PersonalAdapterModel:
    made = reward_model(
        "mpu",
        text_backbone("llama", dtype=torch.float32),
        fit_mode="lora",
        features=FeatureCache(folder),
        lora=LoraSettings(4, 8, dropout),
        **{"user_steps": 8, **options},
    )
    assert isinstance(made, PersonalAdapterModel)
    return made


def test_users_with_opposite_tastes_are_both_served(tmp_path: Path) -> None:
    """No shared reward can rank both users' pairs: one model a user ranks them all, a global one every second."""
    rows = pairs(users=2)
    own = model(tmp_path, user_steps=40).fit(rows, seed=0, learning_rate=2e-2)
    assert (own.margins(rows, [own.state_of(pair.user_id) for pair in rows]) > 0).all()
    other = {"u0": "u1", "u1": "u0"}
    assert (own.margins(rows, [own.state_of(other[pair.user_id]) for pair in rows]) < 0).all()
    assert own.head.diagnostics["accuracy"] == 1.0


def test_a_users_model_does_not_depend_on_other_users(tmp_path: Path) -> None:
    """Beyond the frame of the features, which is that of all pairs: the same frame gives the same user to the bit."""
    rows = pairs(users=3)
    whole = model(tmp_path, dropout=0.3).fit(rows, seed=4, learning_rate=1e-2)
    alone = [pair for pair in rows if pair.user_id == "u1"]
    assert whole.adapt(alone) == whole.state_of("u1")
    before = whole.fingerprint()
    whole.adapt(rows[:2])
    assert whole.adapt(alone) == whole.state_of("u1") and whole.fingerprint() == before


def test_a_user_is_trained_as_by_hand(tmp_path: Path) -> None:
    """Against PEFT's layers and torch's optimiser and scheduler, on the same start, order and steps."""
    rows = pairs(users=1, rows=4)
    made = model(tmp_path, user_steps=6, prior_margin=0.7).fit(rows, seed=2, learning_rate=1e-2, batch_size=3)
    head, seed = made.head, training.child_seed(2, "user", "u0") % (1 << 31)
    peer = attach_lora(made.base, made.lora, 0)
    start = made.host.tensors(made.host.fresh(seed))
    with torch.no_grad():
        for name, parameter in peer.model.named_parameters():
            if ".lora_" in name:
                (own,) = (tensor for key, tensor in start.items() if key in name.replace(".default", ""))
                parameter.copy_(own)
    offset = torch.zeros(head.width, requires_grad=True)
    schedule = Schedule(3, 3, seed)
    optimiser = torch.optim.AdamW(
        [
            {"params": adapter_parameters(peer.model), "lr": 1e-2, "weight_decay": 0.01},
            {"params": [offset], "lr": 1e-3, "weight_decay": 0.0},
        ]
    )
    follow = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: relative_rate(step, 6))
    for step in range(6):
        chosen, rejected = pair_states(peer, [rows[row] for row in schedule.batch(4, step)], made.limit)
        margins = ((chosen - rejected) / head.std) @ offset
        loss = pair_loss(margins).mean() + float(head.precision) / 8 * offset.square().sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*adapter_parameters(peer.model), offset], 1.0)
        optimiser.step()
        follow.step()
    state = made.state_of("u0")
    torch.testing.assert_close(state.values["offset"], offset.detach(), rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        chosen, rejected = pair_states(peer, rows, made.limit)
        expected = ((chosen - rejected) / head.std) @ offset / made.scale
    np.testing.assert_allclose(made.margins(rows, [state] * 4), expected.numpy(), rtol=1e-3, atol=1e-4)


def test_the_cold_start_is_what_init_says(tmp_path: Path) -> None:
    rows = pairs(users=2)
    nothing = model(tmp_path).fit(rows, seed=0)
    assert not nothing.margins(rows, [nothing.adapt([])] * len(rows)).any(), "everything ties"
    for init in ("global", "head_only"):
        shared = model(tmp_path, init=init).fit(pairs(users=3), seed=0, epochs=4, learning_rate=1e-2)
        cold = shared.adapt([])
        assert not cold.values["offset"].any()
        found = shared.margins(rows, [cold] * len(rows))
        assert found.std() > 0.05
        everybody = reward_model(
            "global_bt",
            shared.base,
            fit_mode="lora",
            features=FeatureCache(tmp_path),
            lora=LoraSettings(4, 8, 0.0),
        )
        everybody.fit(pairs(users=3), seed=0, epochs=4, learning_rate=1e-2)
        expected = everybody.margins(rows, [everybody.adapt([])] * len(rows)) * everybody.scale
        np.testing.assert_allclose(found * shared.scale, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("init", ["base", "global", "head_only"])
def test_mixed_batches_are_one_user_at_a_time(init: str, tmp_path: Path) -> None:
    """Decoding, rewards along the way and rewards of whole texts, for users of different adapters in one batch."""
    rows = pairs(users=3)
    made = model(tmp_path, init=init).fit(rows, seed=1, epochs=2, learning_rate=2e-2)
    policy = text_backbone("llama", dtype=torch.float32, seed=3)
    states = [made.state_of(user) for user in ("u0", "u1", "u2")]
    prompts = ["Why?", "Name a colour of the garden.", "river"]
    settings = GenerationSettings(max_new_tokens=6)
    steered = guided(policy, made, guidance_weight=3.0, top_k=4, settings=settings)
    texts = steered.generate(prompts, states)
    assert texts == [steered.generate([p], [s])[0] for p, s in zip(prompts, states, strict=True)]
    scores = steered.log_score(prompts, ["red", "blue", "the light"], states)
    alone = [
        steered.log_score([p], [t], [s])[0]
        for p, t, s in zip(prompts, ["red", "blue", "the light"], states, strict=True)
    ]
    np.testing.assert_allclose(scores, alone, atol=1e-4)
    whole = made.rewards(prompts, texts, states)
    for row, (prompt, text, state) in enumerate(zip(prompts, texts, states, strict=True)):
        along = made.prefix_rewards(prompt, text, state)
        assert along[-1] == pytest.approx(whole[row], abs=1e-4)


@pytest.mark.parametrize("init", ["base", "global"])
def test_a_killed_fit_goes_on_where_it_was(init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, path = pairs(users=3), tmp_path / "fit" / "checkpoint.safetensors"
    path.parent.mkdir()
    settings: dict[str, Any] = {"seed": 3, "epochs": 2, "batch_size": 2, "learning_rate": 1e-2}
    whole = model(tmp_path, dropout=0.2, init=init).fit(rows, **settings)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        model(tmp_path, dropout=0.2, init=init).fit(rows, **settings, checkpoint=path, progress=kill)
    steps: list[int] = []
    real = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), real(self, *a, **k))[1])
    resumed = model(tmp_path, dropout=0.2, init=init).fit(rows, **settings, checkpoint=path)
    assert resumed.fingerprint() == whole.fingerprint()
    assert all(resumed.state_of(user) == whole.state_of(user) for user in ("u0", "u1", "u2"))
    assert len(steps) <= 2 * 4 + 2, "two users, and the shared start, were not trained again"
    assert {p.name for p in path.parent.iterdir()} <= {path.name}


def test_users_are_read_from_their_table(tmp_path: Path) -> None:
    rows = pairs(users=3)
    made = model(tmp_path / "f", init="global").fit(rows, seed=1, learning_rate=2e-2)
    made.save(tmp_path / "m")
    again = load_reward_model(tmp_path / "m", made.base)
    assert isinstance(again, PersonalAdapterModel)
    again.features = FeatureCache(tmp_path / "f")
    assert [again.state_of(f"u{n}") for n in range(3)] == [made.state_of(f"u{n}") for n in range(3)]
    assert again.adapt(rows[:3]) == made.adapt(rows[:3])
    assert again.fingerprint() == made.fingerprint()
    with pytest.raises(DataError, match="'u9' is none of the 3 training users"):
        again.state_of("u9")


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    rows = pairs(users=2)
    made = model(tmp_path).fit(rows, seed=0)
    with pytest.raises(ConfigError, match="has no features that users share"):
        made.pair_features(rows)
    frozen = reward_model("mpu", made.base, features=FeatureCache(tmp_path)).fit(rows)
    with pytest.raises(ConfigError, match="without an adapter was given; adapt with fit_mode lora"):
        made.margins(rows[:1], [frozen.state_of("u0")])
