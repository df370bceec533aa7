"""Reward-guided search as published and as one would first write it: what `rewardgap bench decode --against` runs.

Written from the descriptions, with torch and transformers alone. Not part of the package.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def args(
    policy: Any, rewarder: Any, weight: torch.Tensor, ids: list[int], k: int, strength: float, tokens: int
) -> list[int]:
    """ARGS (arXiv 2402.01694): the reward model keeps k cached rows, one a candidate.

    Its prompt is read k times. At each step every row reads its candidate; then the winner's row is copied to all.
    """
    prompt = torch.tensor([ids], device=policy.device)
    read = policy(input_ids=prompt, use_cache=True, logits_to_keep=1)
    decoder = rewarder.get_decoder()
    rows = decoder(input_ids=prompt.expand(k, -1), use_cache=True)
    logits, cache, own = read.logits[:, -1], read.past_key_values, rows.past_key_values
    written: list[int] = []
    for step in range(tokens):
        best = torch.topk(torch.log_softmax(logits.float(), -1)[0], k)
        states = decoder(input_ids=best.indices[:, None], past_key_values=own, use_cache=True).last_hidden_state
        rewards = states[:, 0].float() @ weight
        choice = int((best.values + strength * rewards).argmax())
        written.append(int(best.indices[choice]))
        if step + 1 == tokens:
            break
        own.reorder_cache(torch.full((k,), choice, device=policy.device))
        read = policy(input_ids=best.indices[choice].reshape(1, 1), past_key_values=cache, use_cache=True)
        logits, cache = read.logits[:, -1], read.past_key_values
    return written


@torch.no_grad()
def reencode(
    policy: Any, rewarder: Any, weight: torch.Tensor, ids: list[int], k: int, strength: float, tokens: int
) -> list[int]:
    """No cache: each candidate of each step is a sequence that is read from its first token."""
    written: list[int] = []
    decoder = rewarder.get_decoder()
    for _ in range(tokens):
        prefix = torch.tensor([[*ids, *written]], device=policy.device)
        logits = policy(input_ids=prefix, use_cache=False, logits_to_keep=1).logits[:, -1]
        best = torch.topk(torch.log_softmax(logits.float(), -1)[0], k)
        rows = torch.cat([prefix.expand(k, -1), best.indices[:, None]], 1)
        rewards = decoder(input_ids=rows, use_cache=False).last_hidden_state[:, -1].float() @ weight
        written.append(int(best.indices[int((best.values + strength * rewards).argmax())]))
    return written
