"""Which pair to ask a new user of VPL about next: the one whose answer tells most about the latent.

interview = LatentInformation(head, left, right, prompts)
answers = ask(interview, oracle, 4)                        # {row of the pool: 1 for the left side, 0 for the right}
state = interview.state(answers)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from rewardgap.core.errors import ConfigError, DataError, ShapeError
from rewardgap.numerics.bradley_terry import win_probability

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rewardgap.rewards.fitting import Features
    from rewardgap.rewards.states import UserState


class SetEncoderHead(Protocol):
    """A head whose users are Gaussian posteriors that an encoder gives for a set of pairs."""

    name: str
    context: int

    def support_pairs(self, chosen: Features, rejected: Features) -> tuple[torch.Tensor, torch.Tensor]:
        """Return checked (n, D) pairs in float64."""
        ...

    def embed(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        """Return (n, L) embeddings of pairs."""
        ...

    def posterior(self, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log variance (..., L) of sets of embeddings (..., n, L)."""
        ...

    def adapt(self, chosen: Features, rejected: Features) -> UserState:
        """Return the state of a user with these pairs."""
        ...

    def rewards_at(self, features: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return (S, n) rewards of (n, D) features at each of (S, L) latents."""
        ...


def log_det_rank_one(diagonal: torch.Tensor, direction: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the log-determinant of a diagonal matrix with a rank-one part, in time linear in L.

        log det(diag(d) + w v vᵀ) = Σ_l log d_l + log(1 + w Σ_l v_l² / d_l)

    Args:
        diagonal: (..., L) positive numbers d.
        direction: (..., L) v.
        weight: (...) w ≥ 0.

    Returns:
        (...) log-determinants.
    """
    return diagonal.log().sum(-1) + torch.log1p(weight * (direction.square() / diagonal).sum(-1))


def information_gain(
    probability: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    second: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return how much an answer with two outcomes tells about z, its marginal taken to be Gaussian.

        gain = ½ log det(p Σ₁ + (1-p) Σ₀ + p(1-p)(μ₁-μ₀)(μ₁-μ₀)ᵀ) - p ½ log det Σ₁ - (1-p) ½ log det Σ₀

    The matrix is the covariance of z before the answer is known: the mean of the covariances and the covariance of the
    means. A Gaussian has the largest entropy of all distributions with its covariance, so this bounds the mutual
    information of the mixture from above; it is never negative.

    Args:
        probability: (...) p of the first outcome.
        first: mean and log variance (..., L) after the first outcome.
        second: mean and log variance (..., L) after the second.

    Returns:
        (...) gains in nats.

    Source: VPL, arXiv 2408.10075: active queries by information gain, here greedily one at a time. Peer:
        WEIRDLabUW/vpl, which scores random sets of queries, weighs answers alike and leaves out how far apart the means
        are.
    """
    (mean1, log_variance1), (mean0, log_variance0) = first, second
    p = probability.unsqueeze(-1)
    covariance = p * log_variance1.exp() + (1 - p) * log_variance0.exp()
    marginal = log_det_rank_one(covariance, mean1 - mean0, probability * (1 - probability))
    return (marginal - (p * log_variance1 + (1 - p) * log_variance0).sum(-1)) / 2


def cubature_points(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return 2L latents whose plain average stands for a Gaussian's: μ ± √L σ_l along each axis l.

    The average is exact for polynomials up to the third degree.

    Args:
        mean: (L,) μ.
        log_variance: (L,) log σ².

    Returns:
        (2L, L) points; μ itself where L is 0.

    Source: the spherical-radial cubature rule, Arasaratnam and Haykin (2009).
    """
    steps = torch.diag((0.5 * log_variance).exp() * len(mean) ** 0.5)
    return torch.cat([mean + steps, mean - steps]) if len(mean) > 0 else mean.unsqueeze(0)


class LatentInformation:
    """Questions chosen for what their answers tell about z, for `active.ask`.

        p_j = E_{z ~ q(z|C)} σ(r(left_j; z) - r(right_j; z)),   gain_j as in `information_gain`

    The chance p of the left side is averaged over the present posterior by cubature: at its mean alone, the decoder is
    as sure of a user of whom nothing is known as of any other. The posterior after either answer is the encoder's for
    the context with that answer in it. Nothing is drawn.

    Args:
        head: a fitted VPL.
        left: (M, D) features of the left sides.
        right: (M, D) features of the right sides.
        prompts: (M,) the prompt of each question, or any name of it.
        chosen: (n, D) features of pairs that are known already; none unless given.
        rejected: (n, D) features of their rejected sides.

    Raises:
        ShapeError: if the lengths differ.
        DataError: if a feature is not finite.
    """

    def __init__(
        self,
        head: SetEncoderHead,
        left: Features,
        right: Features,
        prompts: Sequence[str],
        *,
        chosen: Features | None = None,
        rejected: Features | None = None,
    ) -> None:
        self.head = head
        self.prompts: Sequence[str] = tuple(prompts)
        self.left, self.right = head.support_pairs(left, right)
        if len(self.prompts) != len(self.left):
            raise ShapeError(
                f"prompts has {len(self.prompts)} entries for {len(self.left)} questions; expected one each."
            )
        if (chosen is None) != (rejected is None):
            raise ShapeError("known pairs have only one side; give both chosen and rejected, or neither.")
        nothing = self.left[:0], self.right[:0]
        known = nothing if chosen is None or rejected is None else head.support_pairs(chosen, rejected)
        self.known_chosen, self.known_rejected = known
        self._if_left, self._if_right = head.embed(self.left, self.right), head.embed(self.right, self.left)

    def context(self, answers: Mapping[int, float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (n, D) chosen and rejected sides of the known pairs and of the answers.

        Raises:
            DataError: if an answer is to no question of the pool, or is neither 0 nor 1.
        """
        for row, answer in answers.items():
            if not 0 <= row < len(self.prompts):
                raise DataError(f"an answer is to question {row}; the pool has questions 0 to {len(self.prompts) - 1}.")
            if answer not in (0, 1):
                raise DataError(
                    f"the answer to question {row} is {answer}; {self.head.name} reads which side was chosen, so give "
                    f"1 for the left or 0 for the right one, and leave ties out."
                )
        rows = list(answers)
        won = torch.tensor([answers[row] == 1 for row in rows], dtype=torch.bool).unsqueeze(-1)
        chosen = torch.where(won, self.left[rows], self.right[rows])
        rejected = torch.where(won, self.right[rows], self.left[rows])
        return torch.cat([self.known_chosen, chosen]), torch.cat([self.known_rejected, rejected])

    def gains(self, answers: Mapping[int, float]) -> NDArray[np.float64]:
        """Return (M,) gains in nats of asking each question next.

        Raises:
            ConfigError: if one more answer makes more pairs than the encoder was trained on.
        """
        chosen, rejected = self.context(answers)
        if len(chosen) >= self.head.context:
            raise ConfigError(
                f"{self.head.name}: {len(chosen)} pairs are known and the encoder was trained on at most "
                f"{self.head.context}; ask fewer, or fit with a larger context."
            )
        known = self.head.embed(chosen, rejected)
        points = cubature_points(*self.head.posterior(known))
        with torch.no_grad():
            margins = self.head.rewards_at(self.left, points) - self.head.rewards_at(self.right, points)
        probability = win_probability(margins.double().cpu()).mean(dim=0)
        known = known.expand(len(self.left), -1, -1)
        after = [
            self.head.posterior(torch.cat([known, own.unsqueeze(1)], dim=1)) for own in (self._if_left, self._if_right)
        ]
        gains: NDArray[np.float64] = information_gain(probability, after[0], after[1]).numpy()
        return gains

    def state(self, answers: Mapping[int, float]) -> UserState:
        """Return the user's state given the answers so far."""
        return self.head.adapt(*self.context(answers))
