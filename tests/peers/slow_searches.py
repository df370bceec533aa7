"""Searches over pieces longer than a token as one would write them on a first afternoon: no cache, no batch, no packing.

Imports torch and transformers only. Every text is drawn alone, token by token, each token from a forward pass over
everything before it. It is the answer key for the searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from peers.slow_decoding import next_log_probs

Reward = Callable[[list[int]], float]
Numbers = Callable[[int, int], float]
"""(chain, position in the text) -> the random number that decides that token."""


@dataclass
class Rules:
    """What ends a text, and how tokens are drawn.

    `rewards_ends`: whether the reward is a function of the text with its end token, or of what the end token closes.
    """

    end: set[int]
    stop: set[int]
    shortest: int
    longest: int
    temperature: float = 1.0
    top_p: float = 1.0
    rewards_ends: bool = False


@dataclass
class Piece:
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    over: bool = False
    entropies: list[float] = field(default_factory=list)


@dataclass
class Text:
    tokens: list[int]
    ended: bool
    reward: float
    proposed: int = 0
    accepted: int = 0
    changed: int = 0


def allowed(log_probs: list[float], length: int, rules: Rules) -> list[int]:
    closed = rules.end | rules.stop if length < rules.shortest else set()
    return [token for token in range(len(log_probs)) if token not in closed]


def drawn(log_probs: list[float], tokens: list[int], number: float, rules: Rules) -> int:
    """Walk through the tokens that hold `top_p` of the mass, lowest id first, until the number is reached."""
    best = max(log_probs[t] for t in tokens)
    weights = {t: math.exp((log_probs[t] - best) / rules.temperature) for t in tokens}
    whole = sum(weights.values())
    kept, mass = [], 0.0
    for token in sorted(tokens, key=lambda t: (-log_probs[t], t)):
        if mass >= rules.top_p:
            break
        kept.append(token)
        mass += weights[token] / whole
    share, reached = sum(weights[t] for t in kept), 0.0
    for token in sorted(kept):
        reached += weights[token] / share
        if number < reached:
            return token
    return max(kept)


def piece_of(
    policy: PreTrainedModel,
    prompt: list[int],
    before: list[int],
    rules: Rules,
    most: int,
    choose: Callable[[list[float], list[int], int], int],
    first: int | None = None,
    pause: float = math.inf,
    least: int = 1,
) -> Piece:
    """Write behind `before` until the text ends, `most` tokens are there, or the next token is too uncertain."""
    piece = Piece()
    while len(piece.tokens) < most and not piece.over:
        at = len(before) + len(piece.tokens)
        log_probs = next_log_probs(policy, prompt + before + piece.tokens)
        entropy = -sum(math.exp(p) * p for p in log_probs)
        if piece.tokens and len(piece.tokens) >= least and entropy >= pause:
            break
        token = first if first is not None and not piece.tokens else None
        if token is None:
            token = choose(log_probs, allowed(log_probs, at, rules), at)
        piece.tokens.append(token)
        piece.log_prob += log_probs[token]
        piece.entropies.append(entropy)
        piece.over = token in rules.end | rules.stop or at + 1 == rules.longest
    return piece


def rewarded(reward: Reward, tokens: list[int], rules: Rules) -> float:
    return reward(tokens if rules.rewards_ends else [t for t in tokens if t not in rules.end])


def first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


def text_of(tokens: list[int], reward: float, rules: Rules, **counts: int) -> Text:
    content = [t for t in tokens if t not in rules.end]
    return Text(content, tokens[-1] in rules.end | rules.stop, reward, **counts)


def slow_best_of_n(
    policy: PreTrainedModel,
    prompt: list[int],
    reward: Reward,
    rules: Rules,
    numbers: Numbers,
    *,
    n: int,
    strength: float = 1.0,
    log_prob_strength: float = 0.0,
    pick: float | None = None,
) -> Text:
    """`pick`: None takes the best score; else a number in [0, 1) that draws from their softmax."""
    pieces = []
    for chain in range(n):

        def choose(log_probs: list[float], tokens: list[int], at: int, chain: int = chain) -> int:
            return drawn(log_probs, tokens, numbers(chain, at), rules)

        pieces.append(piece_of(policy, prompt, [], rules, rules.longest, choose))
    rewards = [rewarded(reward, piece.tokens, rules) for piece in pieces]
    scores = [
        strength * value + log_prob_strength * piece.log_prob for value, piece in zip(rewards, pieces, strict=True)
    ]
    chosen = first_best(scores)
    if pick is not None:
        reached, chosen = 0.0, n - 1
        for at, share in enumerate(torch.softmax(torch.tensor(scores, dtype=torch.float64), 0).tolist()):
            reached += share
            if pick < reached:
                chosen = at
                break
    return text_of(pieces[chosen].tokens, rewards[chosen], rules, proposed=n, accepted=1)


def slow_blockwise(
    policy: PreTrainedModel, prompt: list[int], reward: Reward, rules: Rules, numbers: Numbers, *, block: int, k: int
) -> Text:
    tokens: list[int] = []
    proposed = accepted = 0
    while True:
        pieces = []
        for chain in range(k):

            def choose(log_probs: list[float], left: list[int], at: int, chain: int = chain) -> int:
                return drawn(log_probs, left, numbers(chain, at), rules)

            pieces.append(piece_of(policy, prompt, tokens, rules, block, choose))
        rewards = [rewarded(reward, tokens + piece.tokens, rules) for piece in pieces]
        chosen = first_best(rewards)
        tokens += pieces[chosen].tokens
        proposed, accepted = proposed + k, accepted + 1
        if pieces[chosen].over:
            return text_of(tokens, rewards[chosen], rules, proposed=proposed, accepted=accepted)


def slow_cards(
    policy: PreTrainedModel,
    prompt: list[int],
    reward: Reward,
    rules: Rules,
    numbers: Numbers,
    coins: Callable[[int], float],
    *,
    target: float,
    entropy: float,
    slack: float,
    alpha: float,
    shortest: int,
    longest: int,
    tries: int,
) -> Text:
    """Number d of `coins` decides proposal d; a rejected proposal's chain is never looked at again."""
    bare, tokens = reward([]), []
    chain = judged = accepted = 0
    while True:
        seen: list[tuple[float, Piece]] = []
        kept: tuple[float, Piece] | None = None
        while kept is None and len(seen) < tries:

            def choose(log_probs: list[float], left: list[int], at: int, chain: int = chain) -> int:
                return drawn(log_probs, left, numbers(chain, at), rules)

            piece = piece_of(policy, prompt, tokens, rules, longest, choose, pause=entropy, least=shortest)
            value = rewarded(reward, tokens + piece.tokens, rules)
            chance = 1.0
            if target != -math.inf:
                low = (1 - alpha) * bare + alpha * target
                bar = low + (target - low) * (len(tokens) + len(piece.tokens)) / rules.longest
                chance = math.exp(min(0.0, (value - bar) / slack))
            if coins(judged) < chance:
                kept, accepted = (value, piece), accepted + 1
            else:
                seen.append((value, piece))
                chain += 1
            judged += 1
        value, piece = kept or seen[first_best([value for value, _ in seen])]
        tokens += piece.tokens
        if piece.over:
            return text_of(tokens, value, rules, proposed=judged, accepted=accepted)


def slow_transfer_q(
    policy: PreTrainedModel, prompt: list[int], reward: Reward, rules: Rules, *, k: int, strength: float, rollout: int
) -> Text:
    def greedy(log_probs: list[float], tokens: list[int], at: int) -> int:
        return min(tokens, key=lambda t: (-log_probs[t], t))

    tokens: list[int] = []
    changed = 0
    while True:
        log_probs = next_log_probs(policy, prompt + tokens)
        candidates = sorted(allowed(log_probs, len(tokens), rules), key=lambda t: (-log_probs[t], t))[:k]
        scores = []
        for first in candidates:
            piece = piece_of(policy, prompt, tokens, rules, 1 + rollout, greedy, first=first)
            scores.append(log_probs[first] + strength * rewarded(reward, tokens + piece.tokens, rules))
        token = candidates[first_best(scores)]
        changed += token != candidates[0]
        tokens.append(token)
        if token in rules.end | rules.stop or len(tokens) == rules.longest:
            return text_of(tokens, rewarded(reward, tokens, rules), rules, changed=changed)
