"""States on disk: read a row at a time, equal to what was written, and only with the model they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.rewards.state_files import StateTable, load_states, save_states
from rewardgap.rewards.states import UserState, state_from_bytes, state_to_bytes


class Model:
    """What a states file asks of a reward model."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fingerprint(self) -> str:
        return self.name


def states(number: int) -> dict[str, UserState]:
    draw = torch.Generator().manual_seed(number)
    return {
        f"user {row}": UserState(
            "m", {"offset": torch.randn(3, generator=draw), "adapter": torch.randn(50, generator=draw)}, row
        )
        for row in range(number)
    }


def test_rows_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written, model = tmp_path / "s.safetensors", states(9), Model("a")
    save_states(path, model, written)  # type: ignore[arg-type]
    table = StateTable(path, capacity=2)
    assert list(table) == list(written) and len(table) == 9 and table.reward_model == "a"
    assert not table._kept
    assert dict(table) == written
    assert table == written
    assert set(table._kept) == {"user 7", "user 8"}
    seen = table["user 7"]
    assert table["user 7"] is seen
    table["user 0"]
    assert set(table._kept) == {"user 7", "user 0"}, "the one used least recently leaves"
    with pytest.raises(KeyError):
        table["nobody"]


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(1, 4))
def test_any_order_of_reads_gives_what_was_written(reads: list[int], capacity: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path, written = Path(folder) / "s", states(7)
        save_states(path, Model("a"), written)  # type: ignore[arg-type]
        table = StateTable(path, capacity)
        for read in reads:
            assert table[f"user {read}"] == written[f"user {read}"]
            assert len(table._kept) <= capacity


def test_no_states_are_a_table_too(tmp_path: Path) -> None:
    save_states(tmp_path / "s", Model("a"), {})  # type: ignore[arg-type]
    assert dict(StateTable(tmp_path / "s")) == {}


def test_states_of_another_model_are_refused(tmp_path: Path) -> None:
    save_states(tmp_path / "s", Model("a"), states(2))  # type: ignore[arg-type]
    found: Any = load_states(tmp_path / "s", Model("a"))  # type: ignore[arg-type]
    assert found == states(2)
    with pytest.raises(ConfigError, match="belongs to another reward model"):
        load_states(tmp_path / "s", Model("b"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:40]),
        lambda p: p.write_bytes(b""),
        lambda p: save_file({"num_support": torch.zeros(2)}, p),
        lambda p: save_file({"num_support": torch.zeros(2)}, p, {"users": "[1", "method": "m"}),
        lambda p: save_file({"num_support": torch.zeros(2)}, p, {"users": '["a"]', "method": "m"}),
        lambda p: save_file({"num_support": torch.zeros(2)}, p, {"users": '["a", "a"]', "method": "m"}),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "s"
    save_states(path, Model("a"), states(3))  # type: ignore[arg-type]
    damage(path)
    with pytest.raises(DataError, match=r"is damaged .*; write it again with `rewardgap adapt`"):
        StateTable(path)
    with pytest.raises(ModelError, match="does not exist; `rewardgap adapt` writes one"):
        StateTable(tmp_path / "none")


def test_one_state_is_bytes_and_back() -> None:
    for state in (*states(3).values(), UserState("m", {}, 4)):
        assert state_from_bytes(state_to_bytes(state)) == state
    whole = state_to_bytes(states(1)["user 0"])
    for damaged in (b"", whole[:20], whole[:-4], b"\0" * 40):
        with pytest.raises(DataError, match="the state of a user is damaged"):
            state_from_bytes(damaged)
