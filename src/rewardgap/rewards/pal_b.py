"""PAL-B: a user's ideal answer to a prompt is a mixture of what a few shared readers of the prompt call for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from math import log
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, overload

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from rewardgap.core.errors import ShapeError
from rewardgap.numerics.simplex import softmax_weights
from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.feature_map import FeatureMap, as_double
from rewardgap.rewards.fitting import Features, LossAggregation, check_count, check_positive
from rewardgap.rewards.pal_parts import (
    MixtureHead,
    PairLoss,
    StartingWeights,
    difference_energy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rewardgap.rewards.states import UserState

MAX_SCALE = 100.0
FIRST_SCALE = 1 / 0.07
_FIRST_SCALE_LOGIT = log(FIRST_SCALE / (MAX_SCALE - FIRST_SCALE))


class PALB(MixtureHead):
    """Ideal answers that depend on the prompt.

        r_u(x, y) = s · cos(f(h_y), a_u(x)),   a_u(x) = Σ_j w_uj g_j(h_x),   w_u = softmax(ω_u),   0 < s < 100
        min_{f, g, ω, s}  Σ_i c_i · loss(r_u(x, y+) - r_u(x, y-)) + priors

    h_y is the state of the completion read alone, h_x that of the prompt. A row of features holds both, one after the
    other, (2 D); or give h_y alone, (D), and h_x as `prompt`. f and the M maps g_j are each A v + W₂ gelu(W₁ v + b₁)
    + b₂. Only directions count: a reward does not depend on the norm of f(h_y). Rewards of users lie within ±s.

    s = 100 σ(θ) has a slope everywhere and cannot pass 100. Every parameter has a Gaussian prior, a share of 1/N of
    which is added to the loss:

        a row of s A / ‖b₂‖ of f has E (aᵀΔ)² = s_m²: one coordinate alone gives a typical pair a margin of about s_m
        a row of s W₂ / ‖b₂‖ of f the same of hidden units
        A s/s₀ ~ N(0, σ²/D) and W₂ s/s₀ ~ N(0, σ²/H) of g, in units of the root mean square of its ‖b₂‖
        W₁ ~ N(0, 2/D),   b₁ ~ N(0, 1),   ω ~ N(0, τ²),   θ ~ N(θ₀, 1) with s₀ = s(θ₀) = 1/0.07

    Weights are compared with the constant part b₂, since a factor common to all three changes no cosine.

    An empty completion has no state of its own, so what an empty prefix is worth is the caller's choice; zero lies in
    the middle of what can be had.

    Args:
        num_prototypes: M.
        map_width, hidden_width: rows of A and of W₁, of f and of every g_j.
        loss: "bt", the likelihood of the choices, which is the paper's two-way cross-entropy; or "hinge".
        prior_margin: s_m. An ideal that may turn with every prompt finds a coordinate for every pair, hence a narrower
            prior than where a user's ideal is one.
        prompt_std: σ: at one, a single coordinate of an ideal answer varies over prompts by as much as all of its
            constant part is long.
        logit_std: τ.
        weight_prior: the weights of a user without pairs, and the centre of a new user's prior: "uniform", or the
            "mean" of the training users' weights.
        held_out, max_steps, patience: the share of the pairs that decides when to stop, the limit on steps, and the
            steps without a lower held-out loss that end the fit, on frozen features; with held_out 0, `patience` steps.
        batch_size: pairs a step, on frozen features.
        loss_agg: "pair" counts every pair alike, "user" every user.

    Raises:
        ConfigError: if a value is out of range.

    Source: PAL, arXiv 2406.08469: model B, whose ideal point is a function of the prompt. Peer:
        RamyaLab/pluralistic-alignment, src/pal_rm_b. What is done differently is listed on `CARD`.
    """

    name: ClassVar[str] = "pal_b"
    view: ClassVar[Literal["joint", "apart"]] = "apart"

    def __init__(
        self,
        *,
        num_prototypes: int = 2,
        map_width: int = 64,
        hidden_width: int = 128,
        loss: PairLoss = "bt",
        prior_margin: float = 1.0,
        prompt_std: float = 0.1,
        logit_std: float = 2.0,
        weight_prior: StartingWeights = "uniform",
        held_out: float = 0.125,
        max_steps: int = 5000,
        patience: int = 300,
        batch_size: int = 512,
        loss_agg: LossAggregation = "pair",
    ) -> None:
        super().__init__(
            num_prototypes=num_prototypes,
            prior_margin=prior_margin,
            logit_std=logit_std,
            loss=loss,
            weight_prior=weight_prior,
            held_out=held_out,
            max_steps=max_steps,
            patience=patience,
            batch_size=batch_size,
            loss_agg=loss_agg,
        )
        check_count(self.name, map_width=map_width, hidden_width=hidden_width)
        check_positive(self.name, prompt_std=prompt_std)
        self.map_width, self.hidden_width, self.prompt_std = map_width, hidden_width, prompt_std
        self.skip_weight, self.bias = torch.zeros(map_width, 0), torch.zeros(map_width)
        self.hidden_weight, self.hidden_bias = torch.zeros(hidden_width, 0), torch.zeros(hidden_width)
        self.out_weight = torch.zeros(map_width, hidden_width)
        self.prompt_skip_weight = torch.zeros(num_prototypes, map_width, 0)
        self.prompt_bias = torch.zeros(num_prototypes, map_width)
        self.prompt_hidden_weight = torch.zeros(num_prototypes, hidden_width, 0)
        self.prompt_hidden_bias = torch.zeros(num_prototypes, hidden_width)
        self.prompt_out_weight = torch.zeros(num_prototypes, map_width, hidden_width)
        self.scale_logit = torch.zeros(())
        self._energy = 1.0

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""
        return {entry.name: getattr(self, entry.name) for entry in fields(PALBConfig)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the logits (U, M), the tensors of f, those of the M maps of prompts, and θ."""
        names = ("skip_weight", "hidden_weight", "hidden_bias", "out_weight", "bias")
        return {
            "logits": self.logits,
            "scale_logit": self.scale_logit,
            **{name: getattr(self, name) for name in names},
            **{f"prompt_{name}": getattr(self, f"prompt_{name}") for name in names},
        }

    def initialise(self, generator: torch.Generator) -> None:
        """Draw maps whose constant parts have norm one and whose others are small.

        Raises:
            ShapeError: if the number of columns is odd, so that they cannot be two states of one width.
        """
        if self.width % 2:
            raise ShapeError(
                f"{self.name} reads the states of completion and prompt side by side, so the number of columns must be "
                f"even, got {self.width}. Give the prompts' features as prompt=."
            )

        def draw(*shape: int, std: float) -> torch.Tensor:
            values = std * torch.randn(*shape, generator=generator, dtype=torch.float64)
            return values.to(self.dtype).requires_grad_()

        self.initialise_logits(generator)
        half, rows, hidden, several = self.width // 2, self.map_width, self.hidden_width, (self.num_prototypes,)
        for name, lead, size in (("", (), 0.03), ("prompt_", several, 0.3)):
            setattr(self, f"{name}skip_weight", draw(*lead, rows, half, std=size * (half * rows) ** -0.5))
            setattr(self, f"{name}hidden_weight", draw(*lead, hidden, half, std=(2 / half) ** 0.5))
            setattr(self, f"{name}hidden_bias", draw(*lead, hidden, std=0.0))
            setattr(self, f"{name}out_weight", draw(*lead, rows, hidden, std=size * (hidden * rows) ** -0.5))
            setattr(self, f"{name}bias", draw(*lead, rows, std=rows**-0.5))
        self.scale_logit = torch.full((), _FIRST_SCALE_LOGIT, dtype=self.dtype, requires_grad=True)

    def observe(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> None:
        """Take moments, and turn f so that the constant part of each g_j calls for what one cluster of users chose."""
        super().observe(chosen, rejected, user_index)
        half = self.width // 2
        with torch.no_grad():
            differences = (self.standardise(chosen) - self.standardise(rejected))[:, :half]
            self._energy = difference_energy(differences)
            centres = self.start_from_clusters(differences, user_index).to(self.mean)
            wanted = self.prompt_bias.T @ centres
            ideal = self._weights_of(user_index) @ self.prompt_bias
            margins = FIRST_SCALE * ((differences @ wanted.T) * ideal).sum(dim=-1)
            spread = float(margins.double().square().mean().sqrt())
            if spread > 0:
                self.skip_weight.add_(wanted * (self.prior_margin / spread))

    def shared_groups(self) -> list[dict[str, Any]]:
        """Return the maps, and θ."""
        maps = [tensor for name, tensor in self.tensors().items() if name not in ("logits", "scale_logit")]
        return [{"params": maps, "lr": 1e-3}, {"params": [self.scale_logit], "lr": 1e-2}]

    def penalty(self) -> torch.Tensor:
        """Return the priors, in nats a pair."""
        total = self.logits_penalty() + (self.scale_logit - _FIRST_SCALE_LOGIT) ** 2
        outer = self.item_map.outer_cost(self._energy, self.prior_margin)
        total = total + outer * self.scale**2 / self.bias.square().sum() + self.item_map.inner_cost()
        constant = self.prompt_bias.square().sum(dim=-1).mean()
        outer = self.prompt_map.outer_cost(self.width / 2, self.prompt_std)
        total = total + outer * (self.scale / FIRST_SCALE) ** 2 / constant + self.prompt_map.inner_cost()
        return total / (2 * max(1, int(self.counts.sum())))

    @property
    def scale(self) -> torch.Tensor:
        """Return s."""
        return MAX_SCALE * torch.sigmoid(self.scale_logit)

    @property
    def reward_span(self) -> float:
        """Return 2 s: a cosine lies within ±1."""
        return 2 * float(as_double(self.scale))

    @property
    def item_map(self) -> FeatureMap:
        """Return f."""
        hidden = (self.hidden_weight, self.hidden_bias, self.out_weight)
        return FeatureMap(self.skip_weight, hidden, self.bias, "gelu")

    @property
    def prompt_map(self) -> FeatureMap:
        """Return all g_j as one map of a leading (M,)."""
        hidden = (self.prompt_hidden_weight, self.prompt_hidden_bias, self.prompt_out_weight)
        return FeatureMap(self.prompt_skip_weight, hidden, self.prompt_bias, "gelu")

    def fit(
        self,
        chosen: Features,
        rejected: Features,
        user: Sequence[str],
        *,
        seed: int = 0,
        prompt: Features | None = None,
    ) -> Self:
        """Fit shared parameters and the states of the training users.

        Args:
            chosen: (N, 2 D) features, completion first; or (N, D) of the completion alone, with `prompt`.
            rejected: of the same shape.
            user: (N,) user ids.
            seed: decides the initialisation and the order of pairs.
            prompt: (N, D) features of the prompts.

        Raises:
            DataError: if there is no pair, a feature is not finite, or a user id is no string.
            ShapeError: if the shapes disagree.
        """
        return super().fit(beside(chosen, prompt), beside(rejected, prompt), user, seed=seed)

    def adapt(self, chosen: Features, rejected: Features, *, prompt: Features | None = None) -> UserState:
        """Return a new user's weights; arguments as in `fit`, with n = 0 for the cold start."""
        return super().adapt(beside(chosen, prompt), beside(rejected, prompt))

    @overload
    def rewards(self, features: torch.Tensor, state: UserState, *, prompt: Features | None = None) -> torch.Tensor: ...
    @overload
    def rewards(self, features: NDArray[Any], state: UserState, *, prompt: Features | None = None) -> NDArray[Any]: ...
    def rewards(self, features: Features, state: UserState, *, prompt: Features | None = None) -> Features:
        """Return rewards of one user, not divided by the scale; a numpy array for a numpy array.

        Args:
            features: (..., 2 D), or (..., D) with `prompt`.
            state: of a training user or from `adapt`.
            prompt: (..., D), or (D,) for one prompt.

        Returns:
            (...) rewards.

        Raises:
            ShapeError: if the shapes disagree.
            ConfigError: if the state is another method's, or nothing was fitted.
        """
        return super().rewards(beside(features, prompt), state)

    def train_rewards(self, features: torch.Tensor, user_index: torch.Tensor) -> torch.Tensor:
        """Return the (N,) rewards of (N, 2 D) features for training users (N,)."""
        items, prompts = self._halves(features)
        return self._rewards(items, self._ideal(prompts, self._weights_of(user_index)))

    def losses(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> torch.Tensor:
        """Return the (N,) losses of (N, 2 D) pairs of training users; a prompt that both sides share is read once."""
        left, prompts = self._halves(chosen)
        right, others = self._halves(rejected)
        if not torch.equal(prompts, others):
            return super().losses(chosen, rejected, user_index)
        ideal = self._ideal(prompts, self._weights_of(user_index))
        return self.losses_of(self._rewards(left, ideal) - self._rewards(right, ideal))

    def support_margins(self, chosen: torch.Tensor, rejected: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the (S, n) margins of n support pairs, in float64, as a function of (S, M) weights."""
        item_map, prompt_map, scale = self.item_map.double(), self.prompt_map.double(), float(as_double(self.scale))
        mean, std, half = as_double(self.mean), as_double(self.std), self.width // 2
        (left, prompts), (right, others) = (
            (rows[:, :half], rows[:, half:]) for rows in ((chosen - mean) / std, (rejected - mean) / std)
        )
        items = item_map(left), item_map(right)
        wanted = [prompt_map(prompts)]
        wanted.append(wanted[0] if torch.equal(prompts, others) else prompt_map(others))

        def margins(weights: torch.Tensor) -> torch.Tensor:
            near, far = (
                cosine_similarity(torch.tensordot(weights, images, dims=1), side, dim=-1)
                for side, images in zip(items, wanted, strict=True)
            )
            return scale * (near - far)

        return margins

    def batch_rewards(self, features: torch.Tensor, states: Sequence[UserState]) -> torch.Tensor:
        """Return (B, ...) rewards of (B, ..., 2 D) features, one user a leading row."""
        features = self.check_use(features, states)
        rows = features.reshape(len(states), -1, self.width)
        weights = torch.stack([state.values["weights"] for state in states]).to(self.mean)
        items, prompts = self._halves(rows.flatten(0, 1))
        ideal = self._ideal(prompts, weights.repeat_interleave(rows.shape[1], dim=0))
        return self._rewards(items, ideal).reshape(features.shape[:-1])

    def _halves(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, half = self.standardise(features), self.width // 2
        return rows[..., :half], rows[..., half:]

    def _weights_of(self, user_index: torch.Tensor) -> torch.Tensor:
        return softmax_weights(self.logits[user_index])

    def _ideal(self, prompts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nm,mnd->nd", weights, self.prompt_map(prompts))

    def _rewards(self, items: torch.Tensor, ideal: torch.Tensor) -> torch.Tensor:
        return self.scale * cosine_similarity(self.item_map(items), ideal, dim=-1)


@overload
def beside(features: torch.Tensor, prompt: Features | None) -> torch.Tensor: ...
@overload
def beside(features: NDArray[Any], prompt: Features | None) -> NDArray[Any]: ...
def beside(features: Features, prompt: Features | None) -> Features:
    """Return (..., 2 D) features with those of the prompt, (..., D) or (D,), after those of the completion.

    Raises:
        ShapeError: if the prompts' features are not as wide, or not as many.
    """
    if prompt is None or 0 in np.shape(features):
        return features
    shape, given = tuple(np.shape(features)), tuple(np.shape(prompt))
    if given not in (shape, shape[-1:]):
        raise ShapeError(f"prompt has shape {given}, expected that of the features, {shape}, or {shape[-1:]}.")
    if isinstance(features, torch.Tensor):
        extra = torch.as_tensor(prompt).to(features.device).expand(shape)
        return torch.cat([features, extra], dim=-1)
    return np.concatenate([np.asarray(features), np.broadcast_to(np.asarray(prompt), shape)], axis=-1)


@dataclass(frozen=True)
class PALBConfig:
    """Settings of `PALB`."""

    num_prototypes: int = field(default=2, metadata=meaning("number of shared maps from prompts to ideal answers"))
    map_width: int = field(default=64, metadata=meaning("coordinates in which answers and ideals are compared"))
    hidden_width: int = field(default=128, metadata=meaning("hidden units of every map"))
    loss: PairLoss = field(default="bt", metadata=meaning("'bt', the likelihood of the choices, or 'hinge'"))
    prior_margin: float = field(
        default=1.0,
        metadata=meaning("standard deviation of a typical pair's margin under the prior of one coordinate of the map"),
    )
    prompt_std: float = field(
        default=0.1,
        metadata=meaning(
            "prior spread of one coordinate of an ideal answer over prompts, in norms of its constant part"
        ),
    )
    logit_std: float = field(default=2.0, metadata=meaning("standard deviation of a user's logits under their prior"))
    weight_prior: StartingWeights = field(
        default="uniform", metadata=meaning("weights of a user without pairs: 'uniform', or the 'mean' training user's")
    )
    held_out: float = field(
        default=0.125, metadata=meaning("share of the pairs that decides when to stop on frozen features; 0 for none")
    )
    max_steps: int = field(default=5000, metadata=meaning("limit on the steps on frozen features"))
    patience: int = field(default=300, metadata=meaning("steps without a lower held-out loss that end the fit"))
    batch_size: int = field(default=512, metadata=meaning("pairs a step on frozen features"))
    loss_agg: LossAggregation = field(
        default="pair", metadata=meaning("'pair' counts every pair alike, 'user' every user")
    )


CARD = MethodCard(
    name="pal_b",
    summary="A user's ideal answer to a prompt is a mixture of a few shared maps of the prompt.",
    paper="PAL: Pluralistic Alignment Framework for Learning from Heterogeneous Preferences, arXiv 2406.08469",
    equation="r_u(x, y) = s cos(f(h(y)), Σ_j wᵤⱼ g_j(h(x))), wᵤ on the simplex;  min  mean_i -log σ(Δr_u) + priors",
    peer="RamyaLab/pluralistic-alignment src/pal_rm_b",
    deviations=(
        "Features are standardised by the training mean and standard deviation.",
        "Every position of a completion is compared with the ideal of the prompt's last token, where the peer pairs "
        "position t of the completion with position t of the prompt.",
        "Maps have a linear part beside the two-layer one, and all parameters have Gaussian priors in units that no "
        "common factor changes; the peer has a weight decay on two-layer maps.",
        "The factor s is bounded by a sigmoid, where the peer clamps it, so that beyond the bound it has no gradient.",
        "Maps and logits start from clusters of the training users, where the peer starts at random.",
        "A new user's weights are taken to the optimum of the training objective, from the best of a lattice of "
        "starts, where the peer takes Adam steps from a random start.",
    ),
    config=PALBConfig,
    build=lambda config: PALB(**asdict(config)),
    personal=True,
    family="head",
    version=3,
)
