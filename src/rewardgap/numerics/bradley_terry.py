"""The Bradley-Terry model of a pairwise choice: loss, probability, accuracy, centring.

A margin is `r(x, y+) - r(x, y-)`. Functions return one value a pair; whoever calls them decides how to average.
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from rewardgap.core.errors import DataError, ShapeError


def pair_loss(margins: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each choice.

        loss(m) = -log σ(m) = softplus(-m)

    At m = 0 it is log 2 with slope -1/2; it is finite for every finite margin.

    Args:
        margins: (...) rewards of chosen minus rejected.

    Returns:
        (...) losses in nats.

    Example:
        >>> round(pair_loss(torch.zeros(1)).item(), 6)
        0.693147
    """
    return softplus(-margins)


def win_probability(margins: torch.Tensor) -> torch.Tensor:
    """Return the probability that the chosen side is preferred.

        P(y+ ≻ y-) = σ(m)

    Args:
        margins: (...) rewards of chosen minus rejected.

    Returns:
        (...) probabilities; those of m and -m add up to one.
    """
    return torch.sigmoid(margins)


def ranking_scores(margins: torch.Tensor) -> torch.Tensor:
    """Return whether each pair is ranked as it was chosen, a tie as one half.

        a(m) = 1[m > 0] + 1/2 · 1[m = 0]

    Args:
        margins: (...) rewards of chosen minus rejected.

    Returns:
        (...) values in {0, 1/2, 1}, in the dtype of `margins`.

    Raises:
        DataError: if a margin is NaN; a missing reward is counted by the caller, never ranked.
    """
    if bool(torch.isnan(margins).any()):
        where = int(torch.isnan(margins).flatten().nonzero()[0, 0])
        raise DataError(f"margin {where} is NaN; leave pairs without a reward out and count them as missing.")
    return ((margins > 0).to(margins.dtype) + (margins >= 0).to(margins.dtype)) / 2


def accuracy(margins: torch.Tensor) -> float:
    """Return the share of pairs ranked as they were chosen, ties as one half.

    Args:
        margins: (P,) rewards of chosen minus rejected.

    Raises:
        DataError: if there is no pair, or a margin is NaN.
    """
    if margins.numel() == 0:
        raise DataError("accuracy of no pairs is undefined; expected at least 1 margin, got 0.")
    return float(ranking_scores(margins).double().mean())


def centring_loss(chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor) -> torch.Tensor:
    """Return a term that fixes the offset which the pair loss leaves free.

        c(r+, r-) = (r+ + r-)²

    Args:
        chosen_rewards: (...) rewards of the chosen side.
        rejected_rewards: (...) rewards of the rejected side, of the same shape.

    Returns:
        (...) terms; zero where the two rewards are opposite.

    Raises:
        ShapeError: if the shapes differ.
    """
    if chosen_rewards.shape != rejected_rewards.shape:
        raise ShapeError(
            f"rejected_rewards has shape {tuple(rejected_rewards.shape)}, expected that of chosen_rewards: "
            f"{tuple(chosen_rewards.shape)}."
        )
    return (chosen_rewards + rejected_rewards).square()
