"""What scoring given texts costs: packed passes against one sequence at a time, in turns."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rewardgap.backbones.session import TrieSession, tree_states
from rewardgap.backbones.traces import NODES_PER_ROW, node_states, policy_traces
from rewardgap.backbones.trie import Block, build_trie, chain
from rewardgap.bench.timing import ratio, seconds
from rewardgap.core.errors import ConfigError
from rewardgap.policies.run import score_completion
from rewardgap.rewards.guide import close_ends

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import Trace
    from rewardgap.rewards.guide import NodeRewards


@dataclass(frozen=True)
class ScoreSizes:
    """The size of a measurement.

    Args:
        completion: tokens of each completion of a pair.
        positions: tokens of the completion that is scored at every position.
        top_k: candidates at each position.
        weights: guidance weights of the grid.
        sample: sequences that a slow way is measured over; what it would take for all is extrapolated.
        rounds: turns that every way takes.
        seed: decides completions and the direction of the reward.
    """

    completion: int = 30
    positions: int = 64
    top_k: int = 10
    weights: int = 8
    sample: int = 4
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes with which nothing can be measured."""
        if min(self.completion, self.positions, self.top_k, self.weights, self.sample, self.rounds) < 1:
            raise ConfigError("bench score needs sizes of at least 1.")


class _Texts:
    """One prompt, two completions and one long one, read in every way."""

    def __init__(self, backbone: Backbone, prompt: Sequence[int], sizes: ScoreSizes) -> None:
        self.backbone, self.prompt, self.sizes = backbone, list(prompt), sizes
        draw = torch.Generator().manual_seed(sizes.seed)
        known = min(backbone.vocabulary, 1000)

        def text(length: int) -> list[int]:
            return torch.randint(3, known, (length,), generator=draw).tolist()

        self.pair = [text(sizes.completion), text(sizes.completion)]
        self.long = text(sizes.positions - 1)
        self.weight = (torch.randn(backbone.width, generator=draw) / backbone.width**0.5).to(backbone.device)

    @torch.no_grad()
    def packed_pair(self) -> torch.Tensor:
        trie = build_trie(self.pair)
        tail = trie.block(parent=len(self.prompt) - 1, start=len(self.prompt))
        head = chain(self.prompt, -1, 0)
        states = tree_states(self.backbone, [Block(head.tokens + tail.tokens, head.parents + tail.parents)])
        ends = [len(self.prompt) + path[-1] for path in trie.paths]
        rewards: torch.Tensor = states[0, ends].float() @ self.weight
        return rewards

    @torch.no_grad()
    def two_passes(self) -> torch.Tensor:
        rows = [self.alone([*self.prompt, *tail]) for tail in self.pair]
        return torch.stack(rows)

    @torch.no_grad()
    def alone(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the reward of one sequence, read from its first token."""
        reward: torch.Tensor = self.backbone.hidden_unpacked([ids])[0][-1].float() @ self.weight
        return reward

    @torch.no_grad()
    def prefixes(self) -> torch.Tensor:
        """Return the reward at every prefix, in one pass."""
        states = tree_states(self.backbone, [chain([*self.prompt, *self.long], -1, 0)])
        rewards: torch.Tensor = states[0, len(self.prompt) - 1 :].float() @ self.weight
        return rewards

    def along(self) -> tuple[Trace, NodeRewards]:
        """Return the policy's trace and the rewards of all prefixes and candidates."""
        session = TrieSession(self.backbone, 1, len(self.prompt) + 2 * self.sizes.positions + NODES_PER_ROW)
        tips = session.prefill([self.prompt])
        ends = self.backbone.encoder.end_ids or (self.backbone.encoder.end_id,)
        ((trace,),) = policy_traces(session, tips, [[self.long]], ends[0], self.sizes.top_k)
        ((nodes,),) = node_states(session, tips, [[trace]], ends)
        before = (nodes.prefixes.float() @ self.weight).double().cpu().numpy()
        beside = (nodes.candidates.float() @ self.weight).double().cpu().numpy()
        return trace, close_ends(trace, before, beside, ends)


def measure_scoring(
    backbone: Backbone,
    prompt: Sequence[int],
    sizes: ScoreSizes = ScoreSizes(),
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score in turns and return milliseconds and ratios, with the largest difference of the rewards beside them.

    Args:
        backbone: policy and reward model in one.
        prompt: ids of the prompt.
        sizes: of the measurement.
        progress: called with (rounds done, rounds in all).
    """
    texts = _Texts(backbone, prompt, sizes)
    trace, rewards = texts.along()
    grid = np.linspace(0.5, 4.0, sizes.weights)
    whole = [*texts.prompt, *texts.long]
    tails = [[*whole[: len(texts.prompt) + place], int(trace.candidates[place, 0])] for place in _spaced(sizes)]
    heads = [whole[: len(texts.prompt) + place] for place in _spaced(sizes)]
    spent: dict[str, list[float]] = {}

    def turn(name: str, work: Callable[[], Any], times: float = 1.0) -> None:
        spent.setdefault(name, []).append(times * seconds(work))

    def weights(count: int) -> list[float]:
        own, along = texts.along()
        return [score_completion(own, along, float(value)).variants["rgd_topk"] for value in grid[:count]]

    several = sizes.positions / len(heads)
    for done in range(sizes.rounds):
        turn("pair packed", texts.packed_pair)
        turn("pair in two passes", texts.two_passes)
        turn("all prefixes packed", texts.prefixes)
        turn("all prefixes one by one", lambda: [texts.alone(ids) for ids in heads], several)
        turn("all candidates packed", texts.along)
        turn("all candidates one by one", lambda: [texts.alone(ids) for ids in tails], several * sizes.top_k)
        turn("one guidance weight", lambda: weights(1))
        turn(f"{sizes.weights} guidance weights", lambda: weights(sizes.weights))
        if progress is not None:
            progress(done + 1, sizes.rounds)
    return {
        "policy": backbone.name,
        "sizes": asdict(sizes) | {"prompt": len(texts.prompt), "sequences_measured": len(heads)},
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in spent.items()},
        "ratios": {
            "pair, two passes / packed": ratio(spent["pair in two passes"], spent["pair packed"]),
            "prefixes, one by one / packed": ratio(spent["all prefixes one by one"], spent["all prefixes packed"]),
            "candidates, one by one / packed": ratio(
                spent["all candidates one by one"], spent["all candidates packed"]
            ),
            f"{sizes.weights} weights / one": ratio(
                spent[f"{sizes.weights} guidance weights"], spent["one guidance weight"]
            ),
        },
        "largest_difference": _differences(texts, rewards, heads, tails),
    }


def _spaced(sizes: ScoreSizes) -> list[int]:
    """Return positions from the first to the last, evenly apart: their mean length is that of all."""
    return sorted({round(place) for place in np.linspace(0, sizes.positions - 1, sizes.sample)})


def _differences(
    texts: _Texts, rewards: NodeRewards, heads: Sequence[Sequence[int]], tails: Sequence[Sequence[int]]
) -> dict[str, float]:
    def worst(one: NDArray[Any], other: Sequence[torch.Tensor]) -> float:
        return float(np.abs(one - torch.stack(list(other)).double().cpu().numpy()).max())

    packed = texts.packed_pair().double().cpu().numpy()
    places = _spaced(texts.sizes)
    ends = set(texts.backbone.encoder.end_ids)
    inside = [at for at, ids in enumerate(tails) if ids[-1] not in ends]
    return {
        "pair": worst(packed, list(texts.two_passes())),
        "prefixes": worst(texts.prefixes().double().cpu().numpy()[places], [texts.alone(ids) for ids in heads]),
        "candidates": worst(
            rewards.candidates[[places[at] for at in inside], 0], [texts.alone(tails[at]) for at in inside]
        ),
    }
