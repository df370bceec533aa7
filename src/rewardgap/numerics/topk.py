"""Exactly k candidates a row, ties to the lower token id, so that the same numbers always give the same tokens."""

from __future__ import annotations

import torch


def top_candidates(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best entries of each row, best first, equal scores in the order of their index.

    Args:
        scores: (B, V); -inf marks entries that may not be chosen.
        k: number of candidates; cut to V.

    Returns:
        Values (B, k) and indices (B, k).

    Raises:
        ValueError: if k < 1.
    """
    if k < 1:
        raise ValueError(f"top_k must be at least 1, got {k}.")
    k = min(k, scores.shape[-1])
    values, indices = torch.topk(scores, k, dim=-1)
    lowest = values[:, -1:]
    # torch.topk promises nothing about ties: a tie that crosses the border may have taken a higher id.
    crossed = (scores == lowest).sum(-1) > (values == lowest).sum(-1)
    for row in torch.nonzero(crossed).flatten().tolist():
        order = torch.sort(scores[row], descending=True, stable=True).indices[:k]
        indices[row], values[row] = order, scores[row, order]
    by_id = torch.argsort(indices, dim=-1)
    values, indices = values.gather(-1, by_id), indices.gather(-1, by_id)
    by_value = torch.argsort(values, dim=-1, descending=True, stable=True)
    return values.gather(-1, by_value), indices.gather(-1, by_value)
