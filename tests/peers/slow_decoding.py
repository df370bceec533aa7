"""Reward-guided decoding as one would write it on a first afternoon: no cache, no batch, no packing.

Imports torch and transformers only. Every candidate of every step is a sequence of its own, encoded from its first
token. It is the answer key for the fast loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel


@dataclass
class SlowText:
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    reward: float = 0.0
    changed: int = 0
    margins: list[float] = field(default_factory=list)
    """How far the best score lay ahead of the second, at each step."""


def next_log_probs(model: PreTrainedModel, ids: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return torch.log_softmax(logits.to(torch.float64), 0).tolist()


def last_state(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return output.hidden_states[-1][0, -1]


def model_reward(
    model: PreTrainedModel, prompt: list[int], weight: torch.Tensor, scale: float
) -> Callable[[list[int]], float]:
    """Return tokens -> reward: the dot product of the last state of [prompt, tokens] with `weight`, over `scale`."""
    return lambda tokens: float(last_state(model, prompt + tokens) @ weight) / scale


def slow_decode(
    policy: PreTrainedModel,
    prompt: list[int],
    *,
    k: int | None,
    strength: float,
    reward: Callable[[list[int]], float] | None,
    end: set[int],
    stop: set[int],
    shortest: int,
    longest: int,
    uniforms: list[float] | None = None,
    temperature: float = 1.0,
) -> SlowText:
    """Extend one prompt.

    `k`: None looks at every token. `uniforms`: None takes the best score; else number t in [0, 1) decides step t by
    walking through the candidates' probabilities, most probable candidate of the policy first, or lowest id first
    without a `k`.
    """
    out = SlowText()
    here = reward([]) if reward else 0.0
    for step in range(longest):
        log_probs = next_log_probs(policy, prompt + out.tokens)
        allowed = [t for t in range(len(log_probs)) if step >= shortest or t not in end | stop]
        candidates = allowed if k is None else sorted(allowed, key=lambda t: (-log_probs[t], t))[:k]
        rewards = {}
        for token in candidates:
            rewards[token] = (here if token in end else reward([*out.tokens, token])) if reward else 0.0
        scores = [log_probs[t] + (strength * rewards[t] if strength else 0.0) for t in candidates]
        ordered = sorted(scores, reverse=True)
        out.margins.append(ordered[0] - ordered[1] if len(ordered) > 1 else float("inf"))
        if uniforms is None:
            chosen = candidates[max(range(len(scores)), key=lambda i: (scores[i], -i))]
        else:
            weights = torch.softmax(torch.tensor(scores, dtype=torch.float64) / temperature, 0).tolist()
            chosen, reached = candidates[-1], 0.0
            for token, share in zip(candidates, weights, strict=True):
                reached += share
                if uniforms[step] < reached:
                    chosen = token
                    break
        out.changed += chosen != candidates[0]
        here = rewards[chosen]
        out.reward = here
        if chosen in end:
            out.ended = True
            return out
        out.tokens.append(chosen)
        if chosen in stop:
            out.ended = True
            return out
    return out
