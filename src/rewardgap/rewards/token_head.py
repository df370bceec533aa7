"""The autoregressive side of `Head`: a reward is a sum of token rewards, from networks that a user steers.

What a head is to features, a `TokenHead` is to networks: it holds the shared and the users' own numbers, the unit of
rewards and the history of the fit; the networks and their adapters are the model's.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.numerics.bradley_terry import accuracy, pair_loss
from rewardgap.rewards.fitting import FitHistory, check_positive, thinned
from rewardgap.rewards.states import UserState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.rewards.conditioning import Condition, Conditioning, Support
    from rewardgap.rewards.training import FitDefaults

_FACTS = "facts"


class TokenHead(ABC):
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
        name: the method's name in the catalogue.
        defaults: epochs, pairs a step and learning rate of the adapters.
        users: the training users, sorted.
        counts: (U,) training pairs a user.
        reward_scale: standard deviation of r+ - r- over the training pairs.
        history: what the fit went through.

    Raises:
        ConfigError: if a value is out of range.
    """

    name: ClassVar[str]
    defaults: ClassVar[FitDefaults]

    def __init__(self, conditioning: Conditioning, *, beta: float, relative: bool, alpha: float) -> None:
        check_positive(self.name, beta=beta, alpha=alpha)
        if alpha > 1:
            raise ConfigError(f"{self.name}: alpha is {alpha!r}; expected a number above 0 and at most 1.")
        if not isinstance(relative, bool):
            raise ConfigError(f"{self.name}: relative is {relative!r}; expected true or false.")
        self.conditioning, self.beta, self.relative, self.alpha = conditioning, beta, relative, alpha
        self.users: tuple[str, ...] = ()
        self.counts = torch.zeros(0, dtype=torch.long)
        self.reward_scale = 1.0
        self.history: FitHistory | None = None

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""

    @property
    def mixes_generic(self) -> bool:
        """Return whether the loss has a part of the generic user."""
        return self.alpha < 1 and self.conditioning.mixes_generic

    def build(self, users: Sequence[str], backbone: Backbone, *, seed: int = 0) -> None:
        """Create fresh parameters for these training users beside a backbone."""
        self.users = tuple(users)
        self.counts = torch.zeros(len(self.users), dtype=torch.long)
        self.reward_scale, self.history = 1.0, None
        self.conditioning.initialise(backbone, len(self.users), torch.Generator().manual_seed(seed))

    def losses(self, margins: torch.Tensor, generic: torch.Tensor | None) -> torch.Tensor:
        """Return the (B,) losses of pairs, without the pull.

        Args:
            margins: (B,) of their users.
            generic: (B,) of the generic user; None where it has no part.
        """
        if generic is None:
            return pair_loss(margins)
        return self.alpha * pair_loss(margins) + (1 - self.alpha) * pair_loss(generic)

    def margins(self, ratios: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Return the (B,) margins m of (B, J) log-ratios, in logits."""
        return self.beta * (ratios * condition.weights.to(ratios)).sum(-1)

    def finish(self) -> None:
        """Freeze what training left."""
        for name, tensor in self.conditioning.tensors().items():
            setattr(self.conditioning, name, tensor.detach())

    def calibrate(self, margins: torch.Tensor, user_index: torch.Tensor, losses: Sequence[float]) -> None:
        """Set counts, `reward_scale` and `history` from the (N,) training margins and the losses of the steps taken.

        The scale is std(r+ - r-); where all margins are equal it is their size, and one where all are zero.
        """
        margins = margins.double()
        self.counts = torch.bincount(user_index.cpu(), minlength=len(self.users))
        spread, size = float(margins.std(unbiased=False)), float(margins.abs().mean())
        self.reward_scale = spread if spread > 1e-6 * size else size or 1.0
        self.history = FitHistory(
            thinned(losses), losses[-1], len(losses), True, accuracy(margins), float(margins.mean())
        )

    @property
    def diagnostics(self) -> dict[str, float]:
        """Return loss, accuracy, mean margin and reward scale on the training pairs."""
        if self.history is None:
            raise ConfigError(f"{self.name} has no diagnostics before fit.")
        history = self.history
        return {
            "loss": history.final_loss,
            "accuracy": history.accuracy,
            "margin": history.margin,
            "reward_scale": self.reward_scale,
        }

    def state_of(self, user_id: str) -> UserState:
        """Return a training user's own state.

        Raises:
            DataError: if the user was not among them; nobody is given another user's state.
        """
        if user_id not in self.users:
            near = get_close_matches(str(user_id), self.users, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{self.name}: user {user_id!r} is none of the {len(self.users)} training users.{hint} "
                f"Call adapt on the user's support."
            )
        row = self.users.index(user_id)
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
        facts = {
            "users": self.users,
            "reward_scale": self.reward_scale,
            "history": None if self.history is None else asdict(self.history),
        }
        payload = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        tensors = {"counts": self.counts, **self.conditioning.tensors()}
        return {_FACTS: payload} | {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], backbone: Backbone) -> Self:
        """Take over what `state_dict` gave, for the same backbone.

        Raises:
            ConfigError: if a tensor is missing, is none of this method's, or has another shape.
        """
        names = {_FACTS, "counts", *self.conditioning.tensors()}
        if set(tensors) != names:
            raise ConfigError(f"{self.name}: tensors are {sorted(tensors)}, expected {sorted(names)}.")
        facts = json.loads(tensors[_FACTS].cpu().numpy().tobytes())
        self.build(facts["users"], backbone)
        for name, present in {"counts": self.counts, **self.conditioning.tensors()}.items():
            if tensors[name].shape != present.shape:
                raise ConfigError(
                    f"{self.name}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(present.shape)}; "
                    f"the file was written with other settings than {self.config()}, or for another backbone."
                )
            owner: Any = self if name == "counts" else self.conditioning
            setattr(owner, name, tensors[name].detach().to(present).clone())
        self.reward_scale = facts["reward_scale"]
        past = facts["history"]
        self.history = None if past is None else FitHistory(**{**past, "loss": tuple(past["loss"])})
        return self
