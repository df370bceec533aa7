"""What belongs to a user, as a value: named vectors, and tables of many users for a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewardgap.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class UserState:
    """Everything that belongs to one user: a few named vectors, and the number of pairs they were made from.

    Two states are equal where method, count and every number are. A user with no pairs has a state too: the cold start.
    """

    method: str
    values: Mapping[str, torch.Tensor]
    num_support: int

    def __post_init__(self) -> None:
        """Take copies, so that no later change of a tensor reaches the state."""
        object.__setattr__(self, "values", {k: v.detach().cpu().clone() for k, v in self.values.items()})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the vectors as numpy arrays."""
        return {name: value.numpy().copy() for name, value in self.values.items()}

    def __eq__(self, other: object) -> bool:
        """Compare by content, to the bit."""
        if not isinstance(other, UserState):
            return NotImplemented
        if (self.method, self.num_support, set(self.values)) != (other.method, other.num_support, set(other.values)):
            return False
        return all(
            value.dtype == other.values[name].dtype and torch.equal(value, other.values[name])
            for name, value in self.values.items()
        )

    def __hash__(self) -> int:
        """Hash by what equality needs first."""
        return hash((self.method, self.num_support, *sorted(self.values)))


COUNT, VALUE = "num_support", "values."


def states_to_tensors(states: Mapping[str, UserState]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Turn states of one method into what a safetensors file holds: a matrix a named vector, one row a user.

    Args:
        states: user id to state, in the order of the rows.

    Returns:
        Tensors, and string metadata with the method and the user ids as JSON.

    Raises:
        DataError: if the states are of different methods or shapes; the message names the user.
    """
    table = list(states.items())
    tensors = {COUNT: torch.tensor([state.num_support for _, state in table], dtype=torch.int64)}
    first = table[0][1] if table else UserState("", {}, 0)
    like = {name: (value.shape, value.dtype) for name, value in first.values.items()}
    for user, state in table:
        here = {name: (value.shape, value.dtype) for name, value in state.values.items()}
        if state.method != first.method or here != like:
            raise DataError(
                f"state of user {user!r} is of {state.method!r} with {sorted(state.values)}; expected the method and "
                f"shapes of the first user's, {first.method!r} with {sorted(first.values)}."
            )
    for name in first.values:
        tensors[VALUE + name] = torch.stack([state.values[name] for _, state in table])
    return tensors, {"method": first.method, "users": json.dumps([user for user, _ in table])}


def state_to_bytes(state: UserState) -> bytes:
    """Return one state as a safetensors file's content."""
    from safetensors.torch import save

    tensors, metadata = states_to_tensors({"": state})
    payload: bytes = save(tensors, metadata)
    return payload


def state_from_bytes(payload: bytes) -> UserState:
    """Read what `state_to_bytes` gave.

    Raises:
        DataError: if it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        size = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + size]).get("__metadata__", {})
        return states_from_tensors(load(payload), metadata)[""]
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"the state of a user is damaged ({error}); adapt again.") from error


def states_from_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, UserState]:
    """Read what `states_to_tensors` gave.

    Raises:
        DataError: if names, rows and ids do not belong together.
    """
    if "users" not in metadata or "method" not in metadata or COUNT not in tensors:
        raise DataError(f"no table of user states: expected metadata 'method' and 'users' and a tensor '{COUNT}'.")
    users = json.loads(metadata["users"])
    rows = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(users)) != len(users) or set(rows.values()) != {len(users)}:
        raise DataError(f"the table of user states has {len(users)} user ids and rows {rows}; expected one row an id.")
    vectors = {name.removeprefix(VALUE): tensor for name, tensor in tensors.items() if name.startswith(VALUE)}
    counts = tensors[COUNT].tolist()
    return {
        user: UserState(metadata["method"], {name: vectors[name][row] for name in vectors}, int(counts[row]))
        for row, user in enumerate(users)
    }
