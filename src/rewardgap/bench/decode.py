"""What guidance costs: seconds a token of every way to decode, in turns, against transformers' own greedy search."""

from __future__ import annotations

import copy
import importlib.util
import statistics
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import siblings
from rewardgap.bench.timing import ratio, seconds
from rewardgap.core.errors import ConfigError
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.loop import LOOK_AHEAD, Decoded, LookAhead, StopRule, decode
from rewardgap.decoding.plain import Greedy
from rewardgap.rewards.guide import BackboneGuide, Guide, PolicyStateGuide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.decoding.base import Decoder

PEERS = Path(__file__).parents[3] / "benchmarks" / "peers.py"
READ = "weights read once"
CHANGED = 0.2
"""The share of tokens that guidance changes at least, on the prompts that are timed."""
WEIGHTS = tuple(0.25 * 2 ** (step / 8) for step in range(29))
"""Of these guidance weights, in units of the reward's spread, the one that changes least beyond that is taken."""


@dataclass(frozen=True)
class DecodeSizes:
    """The size of a measurement.

    Args:
        tokens: new tokens of each text.
        top_k: numbers of candidates.
        rounds: turns that every way takes.
        batch: prompts at a time, where they are decoded together.
        slow_steps: tokens that slow ways are measured over; what they would take for `tokens` is extrapolated.
        seed: decides the direction of the reward.
    """

    tokens: int = 32
    top_k: tuple[int, ...] = (10, 40)
    rounds: int = 5
    batch: int = 8
    slow_steps: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes with which nothing can be measured."""
        if self.tokens < 2 or self.slow_steps < 2 or self.rounds < 1 or self.batch < 1 or min(self.top_k) < 2:
            raise ConfigError("bench decode needs at least 2 tokens, 2 slow steps, 1 round, a batch of 1 and k of 2.")


class Peers(Protocol):
    """The published ways, as `benchmarks/peers.py` has them; each returns the ids it wrote."""

    def args(
        self, policy: Any, rewarder: Any, weight: torch.Tensor, ids: list[int], k: int, strength: float, tokens: int
    ) -> list[int]:
        """Reward-guided search with k cached rows."""
        ...

    def reencode(
        self, policy: Any, rewarder: Any, weight: torch.Tensor, ids: list[int], k: int, strength: float, tokens: int
    ) -> list[int]:
        """Reward-guided search without a cache."""
        ...


class _Direction:
    """A linear reward: the same direction for everybody."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def batch_rewards(self, features: torch.Tensor, states: Sequence[Any]) -> torch.Tensor:
        return features.float() @ self.weight


class Bench:
    """Policy, reward model and prompts of one measurement.

    Args:
        policy: the policy; the reward model is a copy of it with weights of its own, and a linear head.
        prompts: token ids, as many as a batch.
        sizes: of the measurement.
    """

    def __init__(self, policy: Backbone, prompts: Sequence[Sequence[int]], sizes: DecodeSizes) -> None:
        self.policy, self.prompts, self.sizes = policy, [list(ids) for ids in prompts], sizes
        self.turn = 0
        model = copy.deepcopy(policy.model)
        self.rewarder = replace(policy, name="reward model", fingerprint="copy", model=model)
        draw = torch.Generator().manual_seed(sizes.seed)
        self.weight = torch.randn(policy.width, generator=draw).to(policy.device)
        self.weight /= self._spread()
        self.strength = self._strength()

    def guided(
        self, tokens: int, k: int, *, rows: int = 1, shared: bool = False, ahead: LookAhead | None = LOOK_AHEAD,
        strength: float | None = None,
    ) -> list[Decoded]:  # fmt: skip
        """Decode `rows` prompts under guidance."""
        prompts, head = self.asked(rows), _Direction(self.weight)
        users: list[Any] = [None] * rows
        guide: Guide
        if shared:
            guide = PolicyStateGuide(head, users, 1.0)  # type: ignore[arg-type]
        else:
            room = tokens + k * LOOK_AHEAD.most
            guide = BackboneGuide(self.rewarder, prompts, head, users, 1.0, room)  # type: ignore[arg-type]
        rule = ArgsGreedy(self.strength if strength is None else strength, k)
        return self._decode(rule, tokens, k, rows, guide, ahead)

    def plain(self, tokens: int) -> list[Decoded]:
        """Decode a prompt greedily."""
        return self._decode(Greedy(), tokens, 1, 1, None, None)

    def transformers(self, tokens: int) -> list[int]:
        """Decode a prompt with transformers' own greedy search, as it comes."""
        from transformers import GenerationConfig

        ids = torch.tensor(self.asked(1), device=self.policy.device)
        config = GenerationConfig(do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
        full = self.peer.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        out: list[int] = full[0, ids.shape[1] :].tolist()
        return out

    def read_weights(self, tokens: int) -> float:
        """Read the policy's weights as often as greedy search must: what no way to decode can be faster than."""
        total = 0.0
        for _ in range(tokens):
            total += float(torch.stack([part.sum() for part in self.policy.model.parameters()]).sum())
        return total

    @property
    def reward_share(self) -> float:
        """Return the share of the weights that the reward model reads: its embeddings and output head are not."""
        model = self.policy.model
        tables = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
        inner = sum(int(part.numel()) for part in model.parameters() if id(part) not in tables)
        outer = int(model.get_output_embeddings().weight.numel())
        return inner / (inner + outer)

    def published(self, tokens: int, way: str, k: int, peers: Peers) -> list[int]:
        """Decode a prompt in a published way."""
        work = {"args": peers.args, "reencode": peers.reencode}[way]
        return work(self.peer, self.rewarder.model, self.weight, self.asked(1)[0], k, self.strength, tokens)

    def asked(self, rows: int) -> list[list[int]]:
        """Return the prompts of this turn, each prompt first in a turn of its own."""
        begin = self.turn % len(self.prompts)
        return (self.prompts[begin:] + self.prompts[:begin])[:rows]

    @property
    def peer(self) -> Any:
        """Return the policy as transformers loads it: its own attention, plain linear layers."""
        if not hasattr(self, "_peer"):
            config = type(self.policy.model.config).from_dict(self.policy.model.config.to_dict())
            self._peer = type(self.policy.model)._from_config(config, dtype=self.policy.dtype)
            self._peer.load_state_dict(self.policy.model.state_dict())
            self._peer.to(self.policy.device).eval()
        return self._peer

    def _decode(
        self, rule: Decoder, tokens: int, width: int, rows: int, guide: Guide | None, ahead: LookAhead | None
    ) -> list[Decoded]:
        prompts = self.asked(rows)
        session = TrieSession(self.policy, rows, max(map(len, prompts)) + tokens + width + 1)
        tips = session.prefill(prompts)
        return decode(session, tips, rule, StopRule((), tokens), guide=guide, look_ahead=ahead)

    @torch.no_grad()
    def certificate(self) -> dict[str, float] | None:
        """Return what is certain about differences of the linear reward, beside what they are.

            |wᵀh - wᵀh'| ≤ 2 √D ‖γ ∘ w‖   for h = γ ∘ x / rms(x)

        `bound` is the right side, `spread` the largest difference among ten candidates, the mean over prompts. A
        candidate cannot win, and need not be rewarded, only where its log π lies λ times the bound behind. None where
        hidden states do not come out of such a norm.
        """
        norm = getattr(self.rewarder.model.get_decoder(), "norm", None)
        if norm is None or "RMSNorm" not in type(norm).__name__:
            return None
        equal = torch.full((1, self.policy.width), 1e3, device=self.policy.device, dtype=self.policy.dtype)
        bound = 2 * self.policy.width**0.5 * float((norm(equal)[0].float() * self.weight).norm())
        rewards = self._candidate_rewards()
        return {"bound": bound, "spread": float((rewards.amax(-1) - rewards.amin(-1)).mean())}

    def _candidate_rewards(self) -> torch.Tensor:
        """Return (B, 10) rewards of the policy's best first tokens, in the direction's present length."""
        session = TrieSession(self.policy, len(self.prompts), max(map(len, self.prompts)) + 20)
        tips = session.prefill(self.prompts)
        best = torch.topk(self.policy.log_probs(tips), 10, dim=-1).indices.tolist()
        states = session.extend([siblings(ids, tip) for ids, tip in zip(best, session.tips, strict=True)])
        return states.float() @ self.weight

    def _spread(self) -> float:
        """Return the spread of the bare direction among the candidates of the prompts, in which λ is counted."""
        return float(self._candidate_rewards().std(-1).mean())

    def _strength(self) -> float:
        """Return the λ of `WEIGHTS` that changes the smallest share of tokens that is not below `CHANGED`.

        Raises:
            ConfigError: if none changes so many.
        """
        shares = {}
        for weight in WEIGHTS:
            timed = min(self.sizes.rounds, len(self.prompts))
            done = self.guided(self.sizes.tokens, self.sizes.top_k[0], rows=timed, strength=weight)
            shares[weight] = sum(row.changed for row in done) / sum(row.steps for row in done)
        enough = [weight for weight, share in shares.items() if share >= CHANGED]
        if not enough:
            raise ConfigError(
                f"no guidance weight up to {WEIGHTS[-1]} changes a fifth of the tokens; give other prompts."
            )
        return min(enough, key=lambda weight: (shares[weight], weight))


def load_peers() -> Peers:
    """Return the published ways, which are part of the checkout and not of the package.

    Raises:
        ConfigError: if this is no checkout.
    """
    if not PEERS.is_file():
        raise ConfigError("--against needs a checkout of rewardgap: benchmarks/peers.py is not part of the package.")
    spec = importlib.util.spec_from_file_location("rewardgap_peers", PEERS)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module  # type: ignore[no-any-return]


def measure_decoding(
    policy: Backbone,
    prompts: Sequence[Sequence[int]],
    sizes: DecodeSizes = DecodeSizes(),
    *,
    against: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Decode in turns and return milliseconds a token, and their ratios to transformers' own greedy search.

    A token's time is (t(n) - t(1)) / (n - 1) of texts of n and of one token, so that reading the prompt is not in it.
    Each round begins with another prompt, the same for all ways; slow ways write fewer tokens of it.

    Args:
        policy: the policy.
        prompts: ids of at least as many prompts as a batch has.
        sizes: of the measurement.
        against: published ways to take part, "args" and "reencode".
        progress: called with (turns done, turns in all).

    Raises:
        ConfigError: if there are too few prompts, or a published way is unknown or not there.
    """
    if len(prompts) < sizes.batch:
        raise ConfigError(f"{len(prompts)} prompts for a batch of {sizes.batch}; give more, or a smaller --batch-size.")
    unknown = [name for name in against if name not in ("args", "reencode")]
    if unknown:
        raise ConfigError(f"--against knows args and reencode, not '{unknown[0]}'.")
    peers = load_peers() if against else None
    bench = Bench(policy, prompts[: sizes.batch], sizes)
    ways, slow = _ways(bench, peers, against)
    turns, done = sizes.rounds * (len(ways) + len(slow)), 0
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in (*ways, *slow)}

    def turn(name: str, way: Callable[[int], Any], tokens: int) -> None:
        nonlocal done
        spent[name].append((seconds(lambda: way(1)), seconds(lambda: way(tokens))))
        done += 1
        if progress is not None:
            progress(done, turns)

    for way in (*ways.values(), *slow.values()):
        way(2)
    for number in range(sizes.rounds):
        bench.turn = number
        for name, way in ways.items():
            turn(name, way, sizes.tokens)
        for name, way in slow.items():
            turn(name, way, sizes.slow_steps)
    return {
        "policy": policy.name,
        "sizes": asdict(sizes) | {"prompt_tokens": [len(ids) for ids in bench.prompts]},
        "guidance_weight": bench.strength,
        "reward_share": bench.reward_share,
        "ways": {name: _cost(spent[name], sizes, name in slow) for name in spent},
        "ratios": _ratios(spent, sizes, slow),
        "certificate": bench.certificate(),
        "look_ahead": {
            **{str(k): _accepted(bench, k) for k in sizes.top_k},
            f"{sizes.top_k[0]}, batch of {sizes.batch}": _accepted(bench, sizes.top_k[0], sizes.batch),
        },
    }


def _ways(
    bench: Bench, peers: Peers | None, against: Sequence[str]
) -> tuple[dict[str, Callable[[int], Any]], dict[str, Callable[[int], Any]]]:
    sizes = bench.sizes
    ways: dict[str, Callable[[int], Any]] = {
        READ: bench.read_weights,
        "transformers greedy": bench.transformers,
        "greedy": bench.plain,
    }
    slow: dict[str, Callable[[int], Any]] = {}
    for k in sizes.top_k:
        ways[f"guided k={k}, step by step"] = partial(bench.guided, k=k, ahead=None)
        ways[f"guided k={k}, look-ahead"] = partial(bench.guided, k=k)
        ways[f"guided k={k}, shared backbone"] = partial(bench.guided, k=k, shared=True)
    first = sizes.top_k[0]
    ways[f"guided k={first}, batch of {sizes.batch}"] = partial(bench.guided, k=first, rows=sizes.batch)
    for name in against:
        assert peers is not None
        for k in sizes.top_k:
            slow[f"{name} k={k}"] = partial(bench.published, way=name, k=k, peers=peers)
    return ways, slow


def _cost(spent: Sequence[tuple[float, float]], sizes: DecodeSizes, slow: bool) -> dict[str, Any]:
    tokens = sizes.slow_steps if slow else sizes.tokens
    first = statistics.median(one for one, _ in spent)
    step = statistics.median((many - one) / (tokens - 1) for one, many in spent)
    return {
        "milliseconds_a_token": 1000 * step,
        "milliseconds_to_the_first": 1000 * first,
        "milliseconds_of_a_text": 1000 * (first + step * (sizes.tokens - 1)),
        "tokens_measured": tokens,
        "rounds": len(spent),
    }


def _ratios(
    spent: dict[str, list[tuple[float, float]]], sizes: DecodeSizes, slow: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the time of each way over that of its yardstick, round by round."""

    def steps(name: str) -> list[float]:
        tokens = sizes.slow_steps if name in slow else sizes.tokens
        return [(many - one) / (tokens - 1) for one, many in spent[name]]

    def texts(name: str) -> list[float]:
        return [one + step * (sizes.tokens - 1) for (one, _), step in zip(spent[name], steps(name), strict=True)]

    base = steps("transformers greedy")
    out = {f"{name} / transformers greedy": ratio(steps(name), base) for name in spent if name not in slow}
    first, batch = sizes.top_k[0], f"guided k={sizes.top_k[0]}, batch of {sizes.batch}"
    alone = f"guided k={first}, look-ahead"
    out[f"tokens a second, batch of {sizes.batch} / batch of 1"] = ratio(
        [sizes.batch * value for value in steps(alone)], steps(batch)
    )
    for name in slow:
        own = f"guided k={name.rpartition('=')[2]}, look-ahead"
        out[f"{name} / {own}, a text with its prompt"] = ratio(texts(name), texts(own))
        out[f"{name} / {own}, a token"] = ratio(steps(name), steps(own))
    return out


def _accepted(bench: Bench, k: int, rows: int = 1) -> dict[str, float]:
    """Return what guidance changed and what look-ahead saved, over the texts that were timed."""
    done: list[Decoded] = []
    for number in range(bench.sizes.rounds):
        bench.turn = number
        done += bench.guided(bench.sizes.tokens, k, rows=rows)
    steps = sum(row.steps for row in done)
    return {
        "changed": sum(row.changed for row in done) / steps,
        "tokens_a_pass": steps / sum(row.guide_passes for row in done),
        "drafted_a_token": sum(row.drafted for row in done) / steps,
    }
