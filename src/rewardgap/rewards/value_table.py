"""A table of values over the vocabulary, of low rank: a prefix's state says what it is worth with each next token.

The shared numbers of a value-table method, read on the hidden states of its network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rewardgap.backbones.hf import Backbone

TOKENS_AT_ONCE = 4096
"""Rows of the output head that are copied at once."""


class ValueTable:
    """The value of a prefix with each next token, read off the prefix's hidden state s (D,).

        V(v | s) = z(s) · (b + Pᵀ w_v),     z(s) = Q s / (rms(s) √D),     w_v = W_v / (D rms(W))

    W_v is the row of token v in the backbone's output head and stays as it is; b (R,) and P (D, R) begin at zero, Q
    (R, D) at standard normal numbers. So every value begins at 0, whoever the user. z·b is what the prefix is worth
    whatever follows, and P tells the tokens apart; the divisors make both move at one pace under Adam, for any D and
    any size of W. A token that no training text holds is worth about what its prefix is, and what is learnt of a token
    carries over to those with like rows. Were the logits themselves the values, or had each token a row of its own,
    the largest of V numbers that nothing has trained would decide every backup.

    The rows b + Pᵀ w_v are (V, R) numbers, 1 / D of a network's logits for R / D of their price: no logit is formed.

    Args:
        rank: R.
        rate: learning rate of b, P and Q.
    """

    def __init__(self, rank: int, rate: float) -> None:
        self.rank, self.rate = rank, rate
        self.prefix_weights = torch.zeros(0)
        self.token_weights = torch.zeros(0)
        self.directions = torch.zeros(0)
        self._size = 1.0

    def initialise(self, backbone: Backbone, num_users: int, generator: torch.Generator) -> None:
        """Create b, P and Q beside a backbone, whatever the number of users; Q alone is drawn."""
        width, weight = backbone.width, _output_rows(backbone)
        total = sum(float(weight[ids].double().square().sum()) for ids in _chunks(torch.arange(len(weight))))
        self._size = width * (total / weight.numel()) ** 0.5
        drawn = torch.randn(self.rank, width, generator=generator, dtype=torch.float64)
        dtype = torch.float64 if backbone.dtype == torch.float64 else torch.float32
        like = torch.zeros(0, dtype=dtype, device=backbone.device)
        self.prefix_weights = like.new_zeros(self.rank).requires_grad_()
        self.token_weights = like.new_zeros(width, self.rank).requires_grad_()
        self.directions = drawn.to(like).requires_grad_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return b (R,), P (D, R) and Q (R, D)."""
        return {
            "prefix_weights": self.prefix_weights,
            "token_weights": self.token_weights,
            "directions": self.directions,
        }

    def parameters(self) -> list[dict[str, Any]]:
        """Return b, P and Q as one group."""
        return [{"params": list(self.tensors().values()), "lr": self.rate}]

    def features(self, states: torch.Tensor) -> torch.Tensor:
        """Return (..., R) features z of (..., D) states, differentiable."""
        own = states.to(self.directions)
        scaled = own / own.square().mean(-1, keepdim=True).sqrt()
        features: torch.Tensor = scaled @ self.directions.T / own.shape[-1] ** 0.5
        return features

    def rows(self, backbone: Backbone, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Return (M, R) rows b + Pᵀ w_v of tokens (M,), differentiable; (V, R) of the whole vocabulary unless given."""
        weight = _output_rows(backbone)
        wanted = torch.arange(len(weight), device=weight.device) if tokens is None else tokens.to(weight.device)
        parts = [weight[ids].to(self.token_weights) @ self.token_weights for ids in _chunks(wanted)]
        return self.prefix_weights + torch.cat(parts) / self._size

    def values(self, backbone: Backbone, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return (M,) values of tokens (M,) after prefixes of features (M, R), differentiable."""
        return (features * self.rows(backbone, tokens)).sum(-1)

    @torch.no_grad()
    def best(self, backbone: Backbone, features: torch.Tensor, candidates: torch.Tensor | None) -> torch.Tensor:
        """Return max_v V(v | s) for features (N, R), without gradient; never (N, V) numbers at once.

        Args:
            backbone: whose output head gives the rows.
            features: (N, R).
            candidates: (N, K) the tokens to look at; None for the whole vocabulary.
        """
        if candidates is not None:
            tokens, places = torch.unique(candidates, return_inverse=True)
            return torch.einsum("nkr,nr->nk", self.rows(backbone, tokens)[places], features).amax(-1)
        best = features.new_full((len(features),), -torch.inf)
        for ids in _chunks(torch.arange(backbone.vocabulary, device=features.device)):
            best = torch.maximum(best, (features @ self.rows(backbone, ids).T).amax(-1))
        return best


def _output_rows(backbone: Backbone) -> torch.Tensor:
    weight: torch.Tensor = backbone.model.get_output_embeddings().weight
    return weight.detach()


def _chunks(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    yield from torch.split(tokens, TOKENS_AT_ONCE)
