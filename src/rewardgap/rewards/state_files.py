"""User states on disk: one safetensors file a reward model, which names the model it belongs to."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.store import write_bytes
from rewardgap.rewards.states import COUNT, VALUE, UserState, states_to_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from rewardgap.rewards.model import RewardModel

STATES_IN_MEMORY = 256


def save_states(path: Path, model: RewardModel, states: Mapping[str, UserState]) -> None:
    """Write states as safetensors, with the model they belong to."""
    from safetensors.torch import save

    tensors, metadata = states_to_tensors(states)
    write_bytes(path, save(tensors, {**metadata, "reward_model": model.fingerprint()}))


def load_states(path: Path, model: RewardModel) -> StateTable:
    """Open what `save_states` wrote.

    Raises:
        ModelError: if there is no such file.
        DataError: if it is damaged.
        ConfigError: if the states belong to another reward model.
    """
    table = StateTable(path)
    if table.reward_model not in (None, model.fingerprint()):
        raise ConfigError(f"states file '{path}' belongs to another reward model; adapt again with this one.")
    return table


class StateTable(Mapping[str, UserState]):
    """The states of a file by user id, each row read when it is asked for; the last ones used stay in memory.

    A state may be an adapter of millions of numbers: a thousand users are a file, not a process.

    Args:
        path: what `save_states` wrote.
        capacity: states kept in memory.

    Attributes:
        reward_model: fingerprint of the model that the states belong to.

    Raises:
        ModelError: if there is no such file.
        DataError: if it is damaged.
    """

    def __init__(self, path: Path, capacity: int = STATES_IN_MEMORY) -> None:
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise ModelError(f"states file '{path}' does not exist; `rewardgap adapt` writes one.")
        self._path, self._capacity = path, capacity
        self._kept: OrderedDict[str, UserState] = OrderedDict()
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = dict(file.metadata() or {})
                rows = {name: file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118
                self._counts = file.get_tensor(COUNT).tolist() if COUNT in rows else []
            users, self._method = json.loads(metadata["users"]), metadata["method"]
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise DataError(
                f"states file '{path}' is damaged ({error}); write it again with `rewardgap adapt`."
            ) from error
        self._rows = {user: row for row, user in enumerate(users)}
        self._names = [name for name in rows if name.startswith(VALUE)]
        if len(self._rows) != len(users) or set(rows.values()) != {len(users)}:
            raise DataError(
                f"states file '{path}' is damaged ({len(users)} user ids and rows {rows}); write it again with "
                "`rewardgap adapt`."
            )
        self.reward_model = metadata.get("reward_model")

    def __getitem__(self, user_id: str) -> UserState:
        """Return a user's state."""
        from safetensors import safe_open

        if user_id in self._kept:
            self._kept.move_to_end(user_id)
            return self._kept[user_id]
        row = self._rows[user_id]
        with safe_open(str(self._path), framework="pt") as file:
            values = {name.removeprefix(VALUE): file.get_slice(name)[row : row + 1][0] for name in self._names}
        state = UserState(self._method, values, int(self._counts[row]))
        self._kept[user_id] = state
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return state

    def __iter__(self) -> Iterator[str]:
        """Iterate over the user ids in the order of the rows."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self._rows)
