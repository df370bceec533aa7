"""The training loop: a fit that was killed ends with the bits of one that was not."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.core.errors import DataError
from rewardgap.rewards import training
from rewardgap.rewards.training import Schedule, relative_rate, train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS, COLUMNS = 11, 3


class Killed(Exception):
    """Stands for a kill in the middle of a step."""


def problem(kill_at: int | None = None) -> tuple[list[torch.nn.Parameter], Callable[[list[int]], torch.Tensor]]:
    """Return parameters and a loss with dropout, which draws from torch's generator as a network does."""
    data = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    weight, offset = torch.nn.Parameter(torch.zeros(COLUMNS)), torch.nn.Parameter(torch.ones(1))
    calls = itertools.count()

    def loss_of(rows: list[int]) -> torch.Tensor:
        if next(calls) == kill_at:
            raise Killed
        seen = torch.nn.functional.dropout(data[rows], 0.3)
        return (seen @ weight + offset - seen.sum(-1)).square().mean()

    return [weight, offset], loss_of


def run(schedule: Schedule, path: Path | None, kill_at: int | None = None, **options: Any) -> list[torch.Tensor]:
    parameters, loss_of = problem(kill_at)
    groups = [
        {"params": parameters[:1], "lr": 0.1, "weight_decay": 0.01},
        {"params": parameters[1:], "lr": 0.2, "weight_decay": 0.0},
    ]
    losses = train(loss_of, groups, ROWS, schedule, checkpoint=path, **options)
    return [*(parameter.detach() for parameter in parameters), torch.tensor(losses)]


@pytest.mark.parametrize("kills", [(1,), (5,), (14,), (3, 4), (7, 7, 1)])
def test_a_killed_fit_ends_with_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, ...]
) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    schedule = Schedule(epochs=4, batch_size=3, seed=5)
    whole = run(schedule, None)
    path = tmp_path / "checkpoint.safetensors"
    state = torch.random.get_rng_state()
    for kill_at in kills:
        with pytest.raises(Killed):
            run(schedule, path, kill_at)
    reached: list[int] = []
    resumed = run(schedule, path, progress=lambda done, _: reached.append(done))
    assert reached[0] == sum(kills) + 1
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_checkpoint_of_something_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    path = tmp_path / "checkpoint.safetensors"
    schedule = Schedule(epochs=2, batch_size=4, seed=0)
    for other, identity in ((Schedule(2, 4, 1), "a"), (Schedule(3, 4, 0), "a"), (schedule, "b")):
        with pytest.raises(Killed):
            run(other, path, kill_at=3, identity=identity)
        reached: list[int] = []
        run(schedule, path, identity="a", progress=lambda done, _, reached=reached: reached.append(done))
        assert reached[0] == 1
    path.write_bytes(b"torn")
    assert all(
        torch.equal(one, other)
        for one, other in zip(run(schedule, path, identity="a"), run(schedule, None, identity="a"), strict=True)
    )


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_sees_every_example_once(count: int, batch_size: int, epochs: int, seed: int) -> None:
    schedule = Schedule(epochs, batch_size, seed)
    steps = schedule.steps(count)
    assert steps % epochs == 0
    batches = [schedule.batch(count, step) for step in range(steps)]
    for begin in range(0, steps, steps // epochs):
        assert sorted(itertools.chain(*batches[begin : begin + steps // epochs])) == list(range(count))
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_steps_are_those_of_adamw_under_the_stated_rate() -> None:
    """Against torch's own optimiser and scheduler, driven by hand."""
    schedule = Schedule(epochs=2, batch_size=4, seed=2)
    found = run(schedule, None)
    parameters, loss_of = problem()
    optimiser = torch.optim.AdamW(
        [
            {"params": parameters[:1], "lr": 0.1, "weight_decay": 0.01},
            {"params": parameters[1:], "lr": 0.2, "weight_decay": 0.0},
        ]
    )
    steps = schedule.steps(ROWS)
    follow = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: relative_rate(step, steps))
    for step in range(steps):
        torch.manual_seed(training.child_seed(2, "dropout", step) % (1 << 31))
        optimiser.zero_grad()
        loss_of(schedule.batch(ROWS, step)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        follow.step()
    for one, other in zip(found, parameters, strict=False):
        torch.testing.assert_close(one, other.detach(), rtol=1e-6, atol=1e-7)


def test_a_loss_that_is_no_number_is_named() -> None:
    parameters, _ = problem()
    groups = [{"params": parameters, "lr": 0.1, "weight_decay": 0.0}]
    with pytest.raises(DataError, match="training step 1 is nan; lower the learning rate"):
        train(lambda rows: parameters[0].sum() * float("nan"), groups, 3, Schedule(1, 1, 0))


def test_the_rate_warms_up_and_ends_at_a_tenth() -> None:
    rates = [relative_rate(step, 100) for step in range(101)]
    assert rates[:3] == [1 / 3, 2 / 3, 1.0]
    assert rates[3] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert [relative_rate(step, 1) for step in range(2)] == [1.0, pytest.approx(1.0)]
