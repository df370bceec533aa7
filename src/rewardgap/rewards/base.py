"""The face of every reward head: fit on pairs, adapt to a user without changing anything, give rewards.

A head turns features of (prompt, completion), however they were made, into one number for one user. Shared parameters
live in the head; what belongs to a user is a `UserState`, a value outside it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, overload

import numpy as np
import torch

from rewardgap.core.errors import ConfigError, DataError, ShapeError
from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.rewards.fitted import FACTS, Fitted, users_of
from rewardgap.rewards.fitting import (
    Features,
    FitTrace,
    LossAggregation,
    Optimiser,
    TrainingPairs,
    column_moments,
    fit_head,
    paired_features,
    training_pairs,
)
from rewardgap.rewards.training import FitDefaults

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from rewardgap.rewards.states import UserState


class TextUtility(Protocol):
    """A reward that is known for texts, as in a dataset whose truth is known; no features, nothing to fit."""

    def __call__(self, user_id: str, prompt: str, completion: str) -> float:
        """Return the user's utility of a completion."""
        ...


def meaning(text: str) -> dict[str, str]:
    """Return the metadata of a field of a method's settings: its meaning, which listings and `--help` show."""
    return {"meaning": text}


@dataclass(frozen=True)
class MethodCard:
    """A method as data: what it is, where it is from, what is done differently here, how to build it.

    `config` is a frozen dataclass of plain fields, each with its `meaning`; `build` makes a head from one.
    `deviations` are whole sentences; an empty tuple is a claim. `personal` says whether users differ, and
    `adapter_per_user` whether with an adapter each user has an own one. `control` are settings of the method
    (`options`) and of its training under which the swap test on synthetic texts is run: the small network there learns
    at other rates than a language model. `version` is part of the identity of what a study fits: raise it when code
    changes the method's numbers.
    """

    name: str
    summary: str
    paper: str
    equation: str
    peer: str
    deviations: tuple[str, ...]
    config: type
    build: Callable[[Any], Head]
    personal: bool
    family: Literal["head", "autoregressive"] = "head"
    adapter_per_user: bool = False
    control: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


class Head(Fitted):
    """A reward head: shared parameters over features, fitted on pairs of many users.

    On frozen features, `fit` does everything. A loop that trains a backbone as well does the same steps itself:

        build → observe → (losses + penalty, step over parameters)* → finish → calibrate

    Attributes:
        view: what a row of features is of: "joint", the prompt with the completion, or "apart", the state of the
            completion read alone followed by that of the prompt, in one row of twice the width.
        adapts_on_base: whether a support set is read on the frozen backbone, where an adapter is trained as well.
        defaults: epochs, pairs a step and learning rate of the adapter, where a backbone is trained as well.
        width: D, the number of features.
        mean, std: (D,) moments of the training features; rewards are read on standardised features.
    """

    view: ClassVar[Literal["joint", "apart"]] = "joint"
    adapts_on_base: ClassVar[bool] = False
    defaults: ClassVar[FitDefaults] = FitDefaults(epochs=1, batch_size=8, learning_rate=1e-4)
    optimiser: Optimiser = "lbfgs"
    max_steps: int = 1000
    tolerance: float = 1e-7
    learning_rate: float = 5e-2
    loss_agg: LossAggregation = "pair"

    def __init__(self) -> None:
        super().__init__()
        self.width = 0
        self.mean = torch.zeros(0)
        self.std = torch.ones(0)

    @property
    def reward_span(self) -> float:
        """Return the largest difference that two rewards of a user can have, before scaling; inf without a bound."""
        return math.inf

    # What a method writes.

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the method's own tensors by name, shared and per training user; each is an attribute of that name."""

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Create the method's tensors for `width` and `users`, in the dtype of `mean`."""

    @abstractmethod
    def parameters(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups, shared before per-user.

        A group has `params`, and `lr`, which suits training together with a backbone; `unit` as in `minimise_lbfgs`.
        """

    @abstractmethod
    def train_rewards(self, features: torch.Tensor, user_index: torch.Tensor) -> torch.Tensor:
        """Return the (N,) differentiable rewards of (N, D) features for training users (N,)."""

    @abstractmethod
    def adapt(self, chosen: Features, rejected: Features) -> UserState:
        """Return a new user's state from (n, D) support pairs; changes nothing, draws nothing; n = 0 is allowed."""

    @abstractmethod
    def batch_rewards(self, features: torch.Tensor, states: Sequence[UserState]) -> torch.Tensor:
        """Return (B, ...) rewards of (B, ..., D) features, one user a leading row."""

    def penalty(self) -> torch.Tensor:
        """Return the regulariser, in nats a pair."""
        return self.mean.new_zeros(())

    def finish(self) -> None:
        """Freeze what training left: called once after the last step."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor.detach())

    @property
    def reads_tokens(self) -> bool:
        """Say whether training together with a backbone reads every token of a completion; then see `token_losses`."""
        return False

    def token_losses(
        self,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        chosen_mask: torch.Tensor,
        rejected_mask: torch.Tensor,
        user_index: torch.Tensor,
    ) -> torch.Tensor:
        """Return the (N,) losses of pairs of training users from the features of every token, (N, T, D) and (N, T', D).

        Raises:
            NotImplementedError: unless the method has `reads_tokens`.
        """
        raise NotImplementedError(f"{self.name} reads the last token alone")

    def losses(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> torch.Tensor:
        """Return the (N,) losses of (N, D) pairs of training users, differentiable in features and parameters."""
        return pair_loss(self.train_rewards(chosen, user_index) - self.train_rewards(rejected, user_index))

    def bind_losses(
        self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        """Return `losses` of fixed pairs as a function of the parameters, with what never changes computed once."""
        return lambda: self.losses(chosen, rejected, user_index)

    def lengthen(self, factor: int) -> None:
        """Let the fit search `factor` times as long: to see whether it was done."""
        self.max_steps, self.tolerance = factor * self.max_steps, 0.0

    def solve(self, pairs: TrainingPairs) -> FitTrace:
        """Find the parameters of a built head on frozen features; a method with a way of its own overrides it."""
        return fit_head(self, pairs)

    # What all methods share.

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype rewards are computed in."""
        return self.mean.dtype

    def build(
        self,
        width: int,
        users: Sequence[str],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Create fresh parameters for D = `width` features and these training users."""
        if width < 1 or not users:
            raise DataError(f"{self.name}: expected at least 1 feature and 1 user, got {width} and {len(users)}.")
        self.begin(users)
        self.width = width
        self.mean, self.std = torch.zeros(width, dtype=dtype), torch.ones(width, dtype=dtype)
        self.initialise(torch.Generator().manual_seed(seed))
        self.to(device=device)

    def observe(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> None:
        """Take the moments of the (N, D) training features, and the number of pairs of each user."""
        mean, std = column_moments(chosen, rejected)
        self.mean, self.std = mean.to(self.mean), std.to(self.std)
        self.counts = torch.bincount(user_index.cpu(), minlength=len(self.users))

    def fit(self, chosen: Features, rejected: Features, user: Sequence[str], *, seed: int = 0) -> Self:
        """Fit shared parameters and the states of the training users.

        Args:
            chosen: (N, D) features of the chosen completions; float64 features give a float64 head, others float32.
            rejected: (N, D) features of the rejected completions.
            user: (N,) user ids.
            seed: decides the initialisation; nothing else is drawn.

        Returns:
            The head itself, with `history` and `reward_scale` set.

        Raises:
            DataError: if there is no pair, a feature is not finite, or a user id is no string.
            ShapeError: if the shapes disagree.
        """
        pairs = training_pairs(chosen, rejected, user)
        self.build(
            pairs.chosen.shape[1],
            pairs.users,
            seed=seed,
            dtype=self.fit_dtype(pairs.chosen.dtype),
            device=pairs.chosen.device,
        )
        self.observe(pairs.chosen, pairs.rejected, pairs.user_index)
        trace = self.solve(pairs)
        self.finish()
        self.to(dtype=pairs.chosen.dtype)
        self.calibrate(pairs.chosen, pairs.rejected, pairs.user_index, trace.losses, trace.converged)
        return self

    def fit_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype that parameters have while `fit` works on features of `dtype`."""
        return dtype

    def calibrate(
        self,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        user_index: torch.Tensor,
        losses: Sequence[float],
        converged: bool,
    ) -> None:
        """Set `reward_scale` and `history` from the training pairs and the losses of the steps taken."""
        with torch.no_grad():
            margins = self.train_rewards(chosen, user_index) - self.train_rewards(rejected, user_index)
        self.record(margins, losses, converged)

    @overload
    def rewards(self, features: torch.Tensor, state: UserState) -> torch.Tensor: ...
    @overload
    def rewards(self, features: NDArray[Any], state: UserState) -> NDArray[Any]: ...
    def rewards(self, features: Features, state: UserState) -> Features:
        """Return rewards of one user, not divided by the scale; a numpy array for a numpy array.

        Args:
            features: (..., D).
            state: of a training user or from `adapt`.

        Returns:
            (...) rewards.

        Raises:
            ShapeError: if the last axis is not D.
            ConfigError: if the state is another method's, or nothing was fitted.
        """
        if isinstance(features, torch.Tensor):
            return self.batch_rewards(features.unsqueeze(0), [state]).squeeze(0)
        with torch.no_grad():
            return self.rewards(torch.as_tensor(np.asarray(features)), state).numpy()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return everything but `config()` as tensors; names and history are JSON in bytes."""
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self._all_tensors().items()}
        return {FACTS: self.facts(), **own}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Take over what `state_dict` gave.

        Raises:
            ConfigError: if a tensor is missing, or is none of this method's.
        """
        expected = {FACTS, *self._all_tensors()}
        if set(tensors) != expected:
            raise ConfigError(f"{self.name}: tensors are {sorted(tensors)}, expected {sorted(expected)}.")
        self.build(len(tensors["mean"]), users_of(tensors[FACTS]), dtype=tensors["mean"].dtype)
        for name, present in self._all_tensors().items():
            if tensors[name].shape != present.shape:
                raise ConfigError(
                    f"{self.name}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(present.shape)}; "
                    f"the file was written with other settings than {self.config()}."
                )
            setattr(self, name, tensors[name].detach().clone())
        self.restore(tensors[FACTS])
        return self

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the tensors to a device or, the floating ones, to a dtype."""
        for name, tensor in self._all_tensors().items():
            kind = dtype if tensor.is_floating_point() else None
            if name != "counts":
                moved = tensor.detach().to(device=device, dtype=kind)
                setattr(self, name, moved.requires_grad_(tensor.requires_grad))
        return self

    def _all_tensors(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "std": self.std, "counts": self.counts, **self.tensors()}

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """Return (h - mean) / std in the head's dtype, on its device."""
        return (features.to(self.mean) - self.mean) / self.std

    def check_use(self, features: torch.Tensor, states: Sequence[UserState]) -> torch.Tensor:
        """Return features ready for `batch_rewards`, or raise what is wrong with them or the states."""
        if self.width == 0:
            raise ConfigError(f"{self.name} is not fitted; call fit or load_state_dict before asking for rewards.")
        if features.shape[-1] != self.width:
            raise ShapeError(f"features have {features.shape[-1]} columns, expected D = {self.width} as in training.")
        if len(states) != len(features):
            raise ShapeError(f"got {len(states)} user states for {len(features)} leading rows of features.")
        for state in states:
            if state.method != self.name:
                raise ConfigError(f"a user state of {state.method!r} was given to {self.name!r}.")
        return features.to(device=self.mean.device, dtype=self.dtype)

    def support_pairs(self, chosen: Features, rejected: Features) -> tuple[torch.Tensor, torch.Tensor]:
        """Return checked (n, D) support pairs in float64 on the CPU; n = 0 may come in any empty shape."""
        if self.width == 0:
            raise ConfigError(f"{self.name} is not fitted; call fit or load_state_dict before adapt.")
        if 0 in np.shape(chosen) and 0 in np.shape(rejected):
            empty = torch.zeros(0, self.width, dtype=torch.float64)
            return empty, empty
        left, right = paired_features(chosen, rejected)
        if left.shape[1] != self.width:
            raise ShapeError(f"support has shape {tuple(left.shape)}, expected (n, D) with D = {self.width}.")
        return left.double().cpu(), right.double().cpu()
