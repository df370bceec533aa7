"""How a user steers the networks of an autoregressive reward model: a soft prompt, mixture weights, or not at all.

A network sees of a user only a `Condition`: vectors it reads before the prompt, and how much it counts. What the user
is made of, how it is fitted with everybody else and found from a new user's support, is a `Conditioning`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

import torch

from rewardgap.backbones.soft_prompts import random_embeddings
from rewardgap.numerics.simplex import likeliest_weights, softmax_weights
from rewardgap.rewards.fitting import check_choice, check_count, check_positive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import PreferencePair

PromptForm: TypeAlias = Literal["cluster", "individual"]


class Condition(NamedTuple):
    """What the networks see of B users: soft prompts (B, T_u, D), and weights (B, J) of the J networks."""

    prompts: torch.Tensor
    weights: torch.Tensor


class Support(Protocol):
    """A new user's n support pairs under the fitted networks, whose margins are Bradley-Terry logits."""

    @property
    def records(self) -> Sequence[PreferencePair]:
        """Return the n pairs as texts."""
        ...

    def __len__(self) -> int:
        """Return n."""
        ...

    def margins(self) -> torch.Tensor:
        """Return the (n, J) margins of each network without a soft prompt."""
        ...

    def slope(self, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (n,) margins under a soft prompt (T_u, D), and the gradient (T_u, D) of the mean pair loss."""
        ...


class Conditioning(ABC):
    """What users are made of, shared parts and own ones.

    Attributes:
        num_networks: J.
        num_user_tokens: T_u.
        mixes_generic: whether the generic user is trained beside each user.
    """

    num_networks = 1
    num_user_tokens = 0
    mixes_generic = False

    def initialise(self, backbone: Backbone, num_users: int, generator: torch.Generator) -> None:
        """Create the tensors of `tensors` for U training users."""
        self._like = torch.zeros(0, backbone.width, dtype=_dtype(backbone), device=backbone.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return shared and per-user tensors by name; each is an attribute of that name."""
        return {}

    def parameters(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups."""
        return []

    @abstractmethod
    def of_training(self, user_index: torch.Tensor) -> Condition:
        """Return the differentiable conditions of training users (B,)."""

    def generic(self, count: int) -> Condition:
        """Return the condition of the generic user, `count` times over."""
        return self.of_values([self.cold_start()] * count)

    @abstractmethod
    def of_values(self, values: list[Mapping[str, torch.Tensor]]) -> Condition:
        """Return the conditions of B users' own values."""

    @abstractmethod
    def own(self, row: int) -> dict[str, torch.Tensor]:
        """Return the own values of the training user in that row."""

    @abstractmethod
    def cold_start(self) -> dict[str, torch.Tensor]:
        """Return the values of a user of whom nothing is known."""

    def penalty(self, user_index: torch.Tensor) -> torch.Tensor:
        """Return the pull of the (B,) users of a batch to the generic user, in nats a pair."""
        return self._like.new_zeros(())

    @abstractmethod
    def adapt(self, support: Support) -> dict[str, torch.Tensor]:
        """Return a new user's values from at least one pair; changes nothing, draws nothing."""

    def _no_prompts(self, count: int) -> torch.Tensor:
        return self._like.new_zeros(count, 0, self._like.shape[1])


class Unconditioned(Conditioning):
    """Everybody has the one network as it is."""

    def of_training(self, user_index: torch.Tensor) -> Condition:
        """Return the condition everybody has."""
        return Condition(self._no_prompts(len(user_index)), self._like.new_ones(len(user_index), 1))

    def of_values(self, values: list[Mapping[str, torch.Tensor]]) -> Condition:
        """Return the condition everybody has."""
        return Condition(self._no_prompts(len(values)), self._like.new_ones(len(values), 1))

    def own(self, row: int) -> dict[str, torch.Tensor]:
        """Return nothing."""
        return {}

    def cold_start(self) -> dict[str, torch.Tensor]:
        """Return nothing."""
        return {}

    def adapt(self, support: Support) -> dict[str, torch.Tensor]:
        """Return nothing."""
        return {}


class SoftPromptConditioning(Conditioning):
    """A user is a soft prompt of T_u vectors, an offset from the generic user's.

        individual:  e_u = e_0 + o_u                         o_u (T_u, D)
        cluster:     e_u = Σ_c softmax(ω_u)_c C_c,  e_0 = mean_c C_c        ω_u (M,)

    Offsets start at zero and are pulled there, so that everybody begins as the generic user. A new user's offset
    minimises  mean softplus(-m_i) + l2 ‖o‖²  by full-batch Adam from zero, everything else as it is.

    Args:
        name: the method's, for messages.
        form: "cluster" or "individual".
        num_user_tokens: T_u ≥ 1.
        num_clusters: M, for form "cluster".
        user_l2: l2 > 0, in nats a pair.
        prompt_rate: learning rate of vectors while fitting.
        weight_rate: learning rate of ω, while fitting and adapting.
        adapt_rate: learning rate of a new user's vectors.
        adapt_steps: steps at most.
        adapt_margin: adaptation ends once the mean margin of the support is above it.
    """

    mixes_generic = True

    def __init__(
        self,
        name: str,
        *,
        form: PromptForm,
        num_user_tokens: int,
        num_clusters: int,
        user_l2: float,
        prompt_rate: float,
        weight_rate: float,
        adapt_rate: float,
        adapt_steps: int,
        adapt_margin: float,
    ) -> None:
        check_choice(name, "form", form, ("cluster", "individual"))
        check_count(name, num_user_tokens=num_user_tokens, num_clusters=num_clusters, adapt_steps=adapt_steps)
        check_positive(name, user_l2=user_l2, prompt_rate=prompt_rate, weight_rate=weight_rate)
        check_positive(name, adapt_rate=adapt_rate, adapt_margin=adapt_margin)
        self.form, self.num_user_tokens, self.num_clusters = form, num_user_tokens, num_clusters
        self.user_l2, self.prompt_rate, self.weight_rate = user_l2, prompt_rate, weight_rate
        self.adapt_rate, self.adapt_steps, self.adapt_margin = adapt_rate, adapt_steps, adapt_margin
        self.vectors = torch.zeros(0)
        self.offsets = torch.zeros(0)

    @property
    def _own_name(self) -> str:
        return "logits" if self.form == "cluster" else "offset"

    def initialise(self, backbone: Backbone, num_users: int, generator: torch.Generator) -> None:
        """Draw M soft prompts, or the generic one alone, from the vocabulary's embeddings; offsets are zero."""
        super().initialise(backbone, num_users, generator)
        count, length = self.num_clusters if self.form == "cluster" else 1, self.num_user_tokens
        vectors = random_embeddings(backbone, count * length, generator).to(self._like)
        self.vectors = vectors.reshape(count, length, backbone.width).requires_grad_()
        own = (count,) if self.form == "cluster" else (length, backbone.width)
        self.offsets = self._like.new_zeros(num_users, *own).requires_grad_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the shared vectors (M or 1, T_u, D) and the offsets (U, M) or (U, T_u, D)."""
        return {"vectors": self.vectors, "offsets": self.offsets}

    def parameters(self) -> list[dict[str, Any]]:
        """Return the vectors and the offsets."""
        rate = self.weight_rate if self.form == "cluster" else self.prompt_rate
        return [{"params": [self.vectors], "lr": self.prompt_rate}, {"params": [self.offsets], "lr": rate}]

    def prompts(self, offsets: torch.Tensor) -> torch.Tensor:
        """Return the (B, T_u, D) soft prompts of offsets (B, M) or (B, T_u, D)."""
        if self.form == "individual":
            return self.vectors + offsets
        return torch.einsum("bm,mtd->btd", softmax_weights(offsets), self.vectors)

    def of_training(self, user_index: torch.Tensor) -> Condition:
        """Return the soft prompts of training users."""
        prompts = self.prompts(self.offsets[user_index])
        return Condition(prompts, prompts.new_ones(len(prompts), 1))

    def of_values(self, values: list[Mapping[str, torch.Tensor]]) -> Condition:
        """Return the soft prompts of users."""
        prompts = self.prompts(torch.stack([own[self._own_name].to(self._like) for own in values]))
        return Condition(prompts, prompts.new_ones(len(prompts), 1))

    def own(self, row: int) -> dict[str, torch.Tensor]:
        """Return a training user's offset."""
        return {self._own_name: self.offsets[row]}

    def cold_start(self) -> dict[str, torch.Tensor]:
        """Return no offset: the generic user."""
        return {self._own_name: self.offsets.new_zeros(self.offsets.shape[1:])}

    def penalty(self, user_index: torch.Tensor) -> torch.Tensor:
        """Return l2 times the mean ‖o‖² over a batch's pairs."""
        return self.user_l2 * self.offsets[user_index].square().sum() / len(user_index)

    def adapt(self, support: Support) -> dict[str, torch.Tensor]:
        """Return a new user's offset, from zero by Adam."""
        offset = self.cold_start()[self._own_name].detach().requires_grad_()
        rate = self.weight_rate if self.form == "cluster" else self.adapt_rate
        optimiser = torch.optim.Adam([offset], lr=rate)
        with torch.enable_grad():
            for _ in range(self.adapt_steps):
                prompt = self.prompts(offset[None])[0]
                margins, slope = support.slope(prompt.detach())
                if float(margins.mean()) > self.adapt_margin:
                    break
                pull = self.user_l2 * offset.square().sum()
                (offset.grad,) = torch.autograd.grad((prompt * slope).sum() + pull, offset)
                optimiser.step()
        return {self._own_name: offset.detach()}


class MixtureConditioning(Conditioning):
    """A user is a point on the simplex: how much each of J networks counts.

    A new user's weights solve the strictly convex problem  min_w mean softplus(-M w) + ρ ‖w - w₀‖²  exactly, M the
    margins of the support under each network and w₀ the mean training user, who is the cold start too.

    Args:
        name: the method's, for messages.
        num_networks: J.
        user_l2: pull of a training user's logits to zero, in nats a pair.
        user_ridge: ρ > 0.
        weight_rate: learning rate of the logits.
    """

    def __init__(self, name: str, *, num_networks: int, user_l2: float, user_ridge: float, weight_rate: float) -> None:
        check_count(name, num_bases=num_networks)
        check_positive(name, user_l2=user_l2, user_ridge=user_ridge, weight_rate=weight_rate)
        self.num_networks, self.user_l2, self.user_ridge = num_networks, user_l2, user_ridge
        self.weight_rate = weight_rate
        self.logits = torch.zeros(0, num_networks)

    def initialise(self, backbone: Backbone, num_users: int, generator: torch.Generator) -> None:
        """Draw logits of unit size: users who weigh fresh networks alike would teach them alike."""
        super().initialise(backbone, num_users, generator)
        logits = torch.randn(num_users, self.num_networks, generator=generator, dtype=torch.float64)
        self.logits = logits.to(self._like).requires_grad_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the training users' logits (U, J)."""
        return {"logits": self.logits}

    def parameters(self) -> list[dict[str, Any]]:
        """Return the logits."""
        return [{"params": [self.logits], "lr": self.weight_rate}]

    def of_training(self, user_index: torch.Tensor) -> Condition:
        """Return the weights of training users."""
        return Condition(self._no_prompts(len(user_index)), softmax_weights(self.logits[user_index]))

    def of_values(self, values: list[Mapping[str, torch.Tensor]]) -> Condition:
        """Return the weights of users."""
        return Condition(self._no_prompts(len(values)), torch.stack([own["weights"].to(self._like) for own in values]))

    def own(self, row: int) -> dict[str, torch.Tensor]:
        """Return a training user's weights."""
        return {"weights": softmax_weights(self.logits[row])}

    def cold_start(self) -> dict[str, torch.Tensor]:
        """Return the mean training user's weights."""
        return {"weights": softmax_weights(self.logits.detach()).mean(0)}

    def penalty(self, user_index: torch.Tensor) -> torch.Tensor:
        """Return l2 times the mean ‖ω‖² over a batch's pairs."""
        return self.user_l2 * self.logits[user_index].square().sum() / len(user_index)

    def adapt(self, support: Support) -> dict[str, torch.Tensor]:
        """Return a new user's weights, the one optimum."""
        prior = self.cold_start()["weights"].double().cpu().numpy()
        margins = support.margins().double().cpu().numpy()
        weights = likeliest_weights(margins, prior, self.user_ridge)
        return {"weights": torch.from_numpy(weights).to(self._like)}


def _dtype(backbone: Backbone) -> torch.dtype:
    return torch.float64 if backbone.dtype == torch.float64 else torch.float32
