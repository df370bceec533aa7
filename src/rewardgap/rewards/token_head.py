"""The autoregressive side of `Head`: a reward is a sum of token rewards, from networks that a user steers.

What a head is to features, a `TokenHead` is to networks: it holds the shared and the users' own numbers, the unit of
rewards and the history of the fit; the networks and their adapters are the model's.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch

from rewardgap.core.errors import ConfigError
from rewardgap.rewards.fitted import FACTS, Fitted, users_of
from rewardgap.rewards.fitting import check_positive
from rewardgap.rewards.states import UserState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.rewards.conditioning import Condition, Conditioning, Support
    from rewardgap.rewards.training import FitDefaults


class Part(Protocol):
    """Shared or users' numbers that are fitted beside the networks; a `Conditioning` is one."""

    def initialise(self, backbone: Backbone, num_users: int, generator: torch.Generator) -> None:
        """Create the tensors of `tensors`."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name; each is an attribute of that name."""
        ...

    def parameters(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups."""
        ...


class TokenHead(Fitted):
    """Users, and how their token rewards are made of log-probabilities.

        r_u(x, y) = Σ_t ρ_u(y_t),   ρ_u(v) = β [ Σ_j w_uj log π_j(v | x, e_u, y<t) - log π_ref(v | x, y<t) ]

    The reference is taken off where rewards are `relative`; y ends with its end token. The loss of a pair is

        α softplus(-m_u) + (1 - α) softplus(-m_0) + pull of u to the generic user 0,   m = r(y+) - r(y-)

    Args:
        conditioning: what e_u and w_u are made of.
        beta: β > 0; margins in this unit are Bradley-Terry logits.
        relative: whether log π_ref is taken off.
        alpha: 0 < α ≤ 1, where the conditioning has a generic user; else the loss is the user's alone.

    Attributes:
        defaults: epochs, pairs a step and learning rate of the adapters.

    Raises:
        ConfigError: if a value is out of range.
    """

    defaults: ClassVar[FitDefaults]

    def __init__(self, conditioning: Conditioning, *, beta: float, relative: bool, alpha: float) -> None:
        super().__init__()
        check_positive(self.name, beta=beta, alpha=alpha)
        if alpha > 1:
            raise ConfigError(f"{self.name}: alpha is {alpha!r}; expected a number above 0 and at most 1.")
        if not isinstance(relative, bool):
            raise ConfigError(f"{self.name}: relative is {relative!r}; expected true or false.")
        self.conditioning, self.beta, self.relative, self.alpha = conditioning, beta, relative, alpha

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return what holds tensors: the conditioning, and whatever else a method has."""
        return (self.conditioning,)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of all parts by name."""
        return {name: tensor for part in self.parts for name, tensor in part.tensors().items()}

    def parameters(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups of all parts."""
        return [group for part in self.parts for group in part.parameters()]

    @property
    def mixes_generic(self) -> bool:
        """Return whether the loss has a part of the generic user."""
        return self.alpha < 1 and self.conditioning.mixes_generic

    def build(self, users: Sequence[str], backbone: Backbone, *, seed: int = 0) -> None:
        """Create fresh parameters for these training users beside a backbone."""
        self.begin(users)
        generator = torch.Generator().manual_seed(seed)
        for part in self.parts:
            part.initialise(backbone, len(self.users), generator)

    def margins(self, ratios: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Return the (B,) margins m of (B, J) log-ratios, in logits."""
        return self.beta * (ratios * condition.weights.to(ratios)).sum(-1)

    def finish(self) -> None:
        """Freeze what training left."""
        for part in self.parts:
            for name, tensor in part.tensors().items():
                setattr(part, name, tensor.detach())

    def calibrate(self, margins: torch.Tensor, user_index: torch.Tensor, losses: Sequence[float]) -> None:
        """Set counts, `reward_scale` and `history` from the (N,) training margins and the losses of the steps taken."""
        self.counts = torch.bincount(user_index.cpu(), minlength=len(self.users))
        self.record(margins, losses, True)

    def _own_state(self, row: int) -> UserState:
        return UserState(self.name, self.conditioning.own(row), int(self.counts[row]))

    def adapt(self, support: Support) -> UserState:
        """Return a new user's state; an empty support gives the cold start."""
        values = self.conditioning.adapt(support) if len(support) else self.conditioning.cold_start()
        return UserState(self.name, values, len(support))

    def condition(self, states: Sequence[UserState]) -> Condition:
        """Return what the networks see of B users.

        Raises:
            ConfigError: if a state is another method's, or of another form or size than this model's.
        """
        expected = {name: tuple(value.shape) for name, value in self.conditioning.cold_start().items()}
        for state in states:
            if state.method != self.name:
                raise ConfigError(f"a user state of {state.method!r} was given to {self.name!r}.")
            found = {name: tuple(value.shape) for name, value in state.values.items()}
            if found != expected:
                raise ConfigError(f"{self.name}: a user state holds {found}, expected {expected}; adapt again.")
        return self.conditioning.of_values([state.values for state in states])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return everything but `config()` as tensors; names and history are JSON in bytes."""
        tensors = {"counts": self.counts, **self.tensors()}
        return {FACTS: self.facts()} | {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], backbone: Backbone) -> Self:
        """Take over what `state_dict` gave, for the same backbone.

        Raises:
            ConfigError: if a tensor is missing, is none of this method's, or has another shape.
        """
        names = {FACTS, "counts", *self.tensors()}
        if set(tensors) != names:
            raise ConfigError(f"{self.name}: tensors are {sorted(tensors)}, expected {sorted(names)}.")
        self.build(users_of(tensors[FACTS]), backbone)
        owners: dict[str, Any] = {"counts": self, **{name: part for part in self.parts for name in part.tensors()}}
        for name, present in {"counts": self.counts, **self.tensors()}.items():
            if tensors[name].shape != present.shape:
                raise ConfigError(
                    f"{self.name}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(present.shape)}; "
                    f"the file was written with other settings than {self.config()}, or for another backbone."
                )
            setattr(owners[name], name, tensors[name].detach().to(present).clone())
        self.restore(tensors[FACTS])
        return self
