"""Contrastive decoding: among the tokens an adapted policy finds plausible, the one it wants most beyond its base.

Adapted policy and base read along the same texts as the two halves of one batch, so that one forward a step serves
both. What comes before the text, and through which adapter it is read, may differ between the halves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from rewardgap.backbones.traces import Trace
from rewardgap.backbones.trie import build_trie
from rewardgap.core.errors import ConfigError
from rewardgap.numerics.topk import top_candidates
from rewardgap.rewards.guide import NodeRewards
from rewardgap.rewards.vocabulary_guide import Along, LogProbRewards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.session import TrieSession
    from rewardgap.backbones.trie import Trie

POSITIONS = 64
"""Positions whose logits over the vocabulary are there at once, of both halves, while completions are scored."""


@dataclass(frozen=True)
class Contrast:
    """Takes the plausible token with the highest contrast, from a batch whose second half reads along as the base.

        argmax of log π_u(v) - α log π_0(v)                   over v with π_u(v) ≥ plausibility · max π_u
        argmax of log π_u(v) + α (log π_u(v) - log π_0(v))    where `relative`, over the same v

    Rows come in two halves of equal size, the adapted policy's π_u and then the base's π_0 on the same texts. Both rows
    of a text get the same token, so they read, end and leave the batch together. Tokens that the stop rule forbids are
    no candidates of either. Equal contrasts go to the higher π_u, then to the lower id.

    Args:
        alpha: α ≥ 0. At 0 the tokens are those of the adapted policy alone.
        plausibility: in (0, 1]; at 1 the tokens are those of the adapted policy alone.
        relative: what α counts is how much more probable a token is to π_u than to π_0, not how improbable to π_0.

    Raises:
        ConfigError: if a value is out of range.

    Source: CoPe, arXiv 2506.12109: decoding by the implicit user reward, under the plausibility constraint of
        contrastive decoding, arXiv 2210.15097. Peer: cleverscent/CoPe, which gives implausible tokens a probability of
        1e-8 in the place of none. The relative form is context-aware decoding, arXiv 2305.14739.
    """

    alpha: float = 0.1
    plausibility: float = 0.1
    relative: bool = False
    name: str = "contrast"
    top_k: ClassVar[int | None] = None
    draws: ClassVar[bool] = False
    temperature: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 <= self.alpha < math.inf:
            raise ConfigError(f"alpha must be a finite number of at least 0, got {self.alpha}.")
        if not 0 < self.plausibility <= 1:
            raise ConfigError(f"plausibility must be above 0 and at most 1, got {self.plausibility}.")

    @property
    def guidance_weight(self) -> float:
        """Return α, the weight of `reward` against log π_u."""
        return self.alpha

    def reward(self, own: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return what a token with these log-probabilities under π_u and π_0 is worth, in nats."""
        return own - base if self.relative else -base

    def terms(self, own: Along, base: Along) -> tuple[tuple[float, Along], ...]:
        """Return the same as a sum of log-probabilities, for rewards of every token."""
        return ((1.0, own), (-1.0, base)) if self.relative else ((-1.0, base),)

    def plausible(self, own: torch.Tensor) -> torch.Tensor:
        """Return which of (..., V) tokens are plausible under π_u, given its log-probabilities."""
        return own >= own.max(-1, keepdim=True).values + math.log(self.plausibility)

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Return the chosen token of each row of (2B, V) log-probabilities: B choices, twice."""
        own, base = scores.chunk(2)
        contrast = torch.where(self.plausible(own), own + self.alpha * self.reward(own, base), -torch.inf)
        best = own.masked_fill(contrast < contrast.max(-1, keepdim=True).values, -torch.inf)
        choice = (best == best.max(-1, keepdim=True).values).to(torch.uint8).argmax(-1)
        return torch.cat([choice, choice])


def contrast_traces(
    session: TrieSession,
    tip_states: torch.Tensor,
    completions: Sequence[Sequence[Sequence[int]]],
    end_id: int,
    rule: Contrast,
) -> list[list[tuple[Trace, NodeRewards]]]:
    """Return what the rule says along given completions, and leave the session as it was.

    A trace holds log π_u of the scored tokens and of every plausible token; the rewards beside it are running sums of
    the rule's, so that log π_u + α (R_t - R_{t-1}) is the contrast. Positions have as many plausible tokens as they
    have: the columns left over hold id -1 and log-probability -inf.

    Args:
        session: prefilled with 2B prompts, two halves as in `Contrast`.
        tip_states: (2B, D) states at the prompts' ends.
        completions: for each of the B prompts, the content ids of its completions; the end token is added here.
        end_id: token that closes a completion.
        rule: decides what is plausible.
    """
    tries = [build_trie(row) for row in completions]
    states = _chain_states(session, tip_states, [*tries, *tries])
    out = []
    for row, trie in enumerate(tries):
        traces = []
        for content, path in zip(completions[row], trie.paths, strict=True):
            nodes = [0, *(node + 1 for node in path)]
            own, base = states[row, nodes], states[len(tries) + row, nodes]
            traces.append(_trace(session.backbone, own, base, [*content, end_id], rule))
        out.append(traces)
    return out


def _chain_states(session: TrieSession, tip_states: torch.Tensor, tries: Sequence[Trie]) -> torch.Tensor:
    """Return (2B, 1 + nodes, D): the state at the tip, then at each node."""
    start = session.forest.length
    blocks = [trie.block(parent=tip, start=start) for trie, tip in zip(tries, session.tips, strict=True)]
    if not any(block.tokens for block in blocks):
        return tip_states[:, None]
    states = session.extend(blocks)
    session.truncate(start)
    return torch.cat([tip_states[:, None], states], 1)


@torch.no_grad()
def _trace(
    backbone: Backbone, own_states: torch.Tensor, base_states: torch.Tensor, tokens: Sequence[int], rule: Contrast
) -> tuple[Trace, NodeRewards]:
    """Return the trace of one completion of T scored tokens from (T, D) states of both halves."""
    scored = torch.tensor(tokens, device=own_states.device)[:, None]
    golds, gains, ids, values, gained = [], [], [], [], []
    for begin in range(0, len(tokens), POSITIONS):
        part = slice(begin, begin + POSITIONS)
        own, base = (backbone.log_probs(states[part]).double() for states in (own_states, base_states))
        plausible = rule.plausible(own)
        best, index = top_candidates(own, int(plausible.sum(-1).max()))
        kept = plausible.gather(-1, index)
        golds.append(own.gather(-1, scored[part]))
        gains.append(rule.reward(golds[-1], base.gather(-1, scored[part])))
        ids.append(index.masked_fill(~kept, -1))
        values.append(best.masked_fill(~kept, -torch.inf))
        gained.append(rule.reward(best, base.gather(-1, index)).masked_fill(~kept, 0.0))
    width = max(part.shape[-1] for part in ids)
    candidates, candidate_log_probs, candidate_gains = (
        np.concatenate([_widened(part, width, filler) for part in parts])
        for parts, filler in ((ids, -1), (values, -np.inf), (gained, 0.0))
    )
    prefixes = np.concatenate([[0.0], np.cumsum(torch.cat(gains).flatten().cpu().numpy())])
    trace = Trace(np.array(tokens, np.int64), torch.cat(golds).flatten().cpu().numpy(), candidates, candidate_log_probs)
    own_along, base_along = (Along(backbone, states) for states in (own_states, base_states))
    whole = LogProbRewards(own_along, rule.terms(own_along, base_along))
    return trace, NodeRewards(prefixes, prefixes[:-1, None] + candidate_gains, whole)


def _widened(values: torch.Tensor, width: int, filler: float) -> NDArray[Any]:
    array = values.cpu().numpy()
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=filler)
