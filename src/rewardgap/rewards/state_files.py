"""User states on disk: one safetensors file a reward model, which names the model it belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.store import write_bytes
from rewardgap.rewards.states import states_from_tensors, states_to_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rewardgap.rewards.model import RewardModel
    from rewardgap.rewards.states import UserState


def save_states(path: Path, model: RewardModel, states: Mapping[str, UserState]) -> None:
    """Write states as safetensors, with the model they belong to."""
    from safetensors.torch import save

    tensors, metadata = states_to_tensors(states)
    write_bytes(path, save(tensors, {**metadata, "reward_model": model.fingerprint()}))


def load_states(path: Path, model: RewardModel) -> dict[str, UserState]:
    """Read what `save_states` wrote.

    Raises:
        ModelError: if there is no such file.
        DataError: if it is damaged.
        ConfigError: if the states belong to another reward model.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"states file '{path}' does not exist; `rewardgap adapt` writes one.")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DataError(f"states file '{path}' is damaged ({error}); write it again with `rewardgap adapt`.") from error
    if metadata.get("reward_model", model.fingerprint()) != model.fingerprint():
        raise ConfigError(f"states file '{path}' belongs to another reward model; adapt again with this one.")
    return states_from_tensors(tensors, metadata)
