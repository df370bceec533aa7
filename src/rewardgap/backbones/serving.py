"""A policy whose weights are elsewhere: token ids go out, token ids and log-probabilities come back.

Prompts become ids here, by the policy's own tokenizer and template, so what it reads is what a local policy would read.
Its hidden states stay where the weights are: it writes and it scores texts, and everything else needs a local backbone.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.load import SERVED, load_encoder
from rewardgap.backbones.traces import Trace
from rewardgap.core.errors import ConfigError, ModelError
from rewardgap.core.store import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewardgap.backbones.chat import ChatEncoder
    from rewardgap.core.records import Prompt

OPTIONS: dict[str, dict[str, type]] = {
    "served": {"model": str, "tokenizer": str, "context": int, "api": str, "parallel": int, "timeout": float},
    "vllm": {"tokenizer": str, "context": int, "tensor_parallel_size": int, "gpu_memory_utilization": float},
}
"""Route -> what may stand behind the # of its names, as `option=value` with commas between."""
NOTHING = -9999.0
"""What vLLM's server writes in the place of -inf, which JSON has not."""
COOLEST = 0.01
"""vLLM raises lower temperatures to this one."""


class Asked(NamedTuple):
    """One completion that is asked for: the prompt, its ids, and the seed of the draws."""

    prompt: Prompt
    ids: tuple[int, ...]
    seed: int


class WriteRule(NamedTuple):
    """How tokens are chosen and when a completion ends.

    Attributes:
        max_tokens: tokens at most, the closing one included.
        min_tokens: closing tokens may not come before this many.
        stop_ids: tokens that close a completion.
        temperature: of the draw; 0 for the most probable tokens.
        top_k: draw among the k most probable tokens; None for all.
        top_p: draw among the most probable tokens that hold this share of the mass at the temperature.
    """

    max_tokens: int
    min_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def request(self, seed: int) -> dict[str, Any]:
        """Return all settings of one completion, so that no default of a server or a model's repository comes in."""
        return {
            "n": 1,
            "seed": seed % (1 << 31),
            "max_tokens": self.max_tokens,
            "min_tokens": self.min_tokens,
            "stop_token_ids": list(self.stop_ids),
            "temperature": self.temperature,
            "top_k": -1 if self.top_k is None else self.top_k,
            "top_p": self.top_p,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
        }


READ = WriteRule(max_tokens=1, min_tokens=0, stop_ids=(), temperature=1.0)
"""Where only the prompt's log-probabilities matter: one token that nobody reads, at the model's own temperature."""


class Written(NamedTuple):
    """What was written for one prompt: its ids, the closing token among them, and whether there is one."""

    ids: tuple[int, ...]
    closed: bool


class Engine(Protocol):
    """Where the weights are."""

    @property
    def name(self) -> str:
        """Return the name in records."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return a hash of what decides the answers, as far as it can be known from here."""
        ...

    @property
    def context(self) -> int:
        """Return the longest sequence the engine takes, in tokens."""
        ...

    @property
    def cannot_score(self) -> str:
        """Return why given texts cannot be scored; empty where they can."""
        ...

    def write(self, asked: Sequence[Asked], rule: WriteRule) -> list[Written]:
        """Return a completion for each, in order."""
        ...

    def read(self, sequences: Sequence[Sequence[int]], top: int) -> list[list[Mapping[int, float]]]:
        """Return, for each token of each sequence, token id -> log π behind the tokens before it, in nats.

        The token itself is there, and the `top` most probable ones. The first token of a sequence has nothing before
        it, and an empty mapping.
        """
        ...


class ServedBackbone(Backbone):
    """A policy that an engine holds, with the tokenizer it is read by.

    Args:
        engine: where the weights are.
        encoder: of the engine's model.

    Raises:
        ConfigError: where weights or hidden states are asked for.
    """

    def __init__(self, engine: Engine, encoder: ChatEncoder) -> None:
        self.name, self.engine, self.encoder = engine.name, engine, encoder
        self.fingerprint = content_hash(["served/1", engine.fingerprint, encoder.template_hash])
        self.packs = True
        self._mask_form = ""

    # Comparing or printing the fields would ask for the weights.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        """Return the name."""
        return f"ServedBackbone({self.name!r})"

    @property
    def model(self) -> Any:
        """Refuse: there are no weights here."""
        raise ConfigError(
            f"the weights of '{self.name}' are in a serving engine, which gives no hidden states: it can be deployed "
            "as zero_shot, icl and icl_rag. Give a local model for reward-guided decoding, reward models and judges."
        )

    @property
    def vocabulary(self) -> int:
        """Return the number of token ids of the tokenizer."""
        return len(self.encoder.token_ids)

    @property
    def context(self) -> int:
        """Return the longest sequence the engine takes, in tokens."""
        return self.engine.context

    def traces(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], k: int
    ) -> list[list[Trace]]:
        """Return what the policy says about several completions of each prompt.

        Args:
            prompts: B prompts, ids.
            completions: for each prompt, the content ids of its completions; the end token is added here.
            k: candidates a position.

        Raises:
            ModelError: if the engine leaves log-probabilities out.
        """
        end = self.encoder.end_id
        rows = [(prompt, (*content, end)) for prompt, row in zip(prompts, completions, strict=True) for content in row]
        read = self.engine.read([(*prompt, *scored) for prompt, scored in rows], k)
        found = iter(
            [
                _trace(self.name, scored, table[len(prompt) :], k)
                for (prompt, scored), table in zip(rows, read, strict=True)
            ]
        )
        return [[next(found) for _ in row] for row in completions]


def _trace(name: str, tokens: Sequence[int], tables: Sequence[Mapping[int, float]], k: int) -> Trace:
    best = [sorted(table.items(), key=lambda entry: (-entry[1], entry[0]))[:k] for table in tables]
    short = [
        len(row) for row, table, token in zip(best, tables, tokens, strict=True) if len(row) < k or token not in table
    ]
    if short:
        raise ModelError(
            f"the engine of '{name}' gives {short[0]} log-probabilities for a token of a given text, where its own and "
            f"those of the {k} most probable ones were asked for; look at --max-logprobs and --logprobs-mode of vLLM."
        )
    return Trace(
        np.array(tokens, np.int64),
        np.array([table[token] for table, token in zip(tables, tokens, strict=True)], np.float64),
        np.array([[token for token, _ in row] for row in best], np.int64),
        np.array([[value for _, value in row] for row in best], np.float64),
    )


def log_prob(value: Any, name: str) -> float:
    """Return a log-probability as an engine gives it; the engine's stand-in for -inf becomes -inf.

    Raises:
        ModelError: if it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value < np.inf:
        raise ModelError(f"the engine of '{name}' gives {value!r} for a log-probability; see its log for its numerics.")
    return -np.inf if value <= NOTHING else float(value)


class ServedName(NamedTuple):
    """A name of a served policy, taken apart.

    Attributes:
        route: "served", a server of the completions protocol; "vllm", vLLM in this process.
        place: base URL of the server; hub id or folder of the model.
        options: what stands behind the #.
    """

    route: Literal["served", "vllm"]
    place: str
    options: dict[str, Any]

    @property
    def model(self) -> str:
        """Return the name of the model, without the place where it runs."""
        return str(self.options.get("model", self.place))


def is_served(name: str) -> bool:
    """Say whether a name is that of a served policy."""
    return name.startswith(SERVED)


def parse_served(name: str) -> ServedName:
    """Take apart `served:URL#model=NAME,...` or `vllm:MODEL#...`.

    Raises:
        ConfigError: if a part is missing or unknown, or a value is of another type.
    """
    route, _, rest = name.partition(":")
    place, _, tail = rest.partition("#")
    known = OPTIONS[route]
    options: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        option, sign, text = part.partition("=")
        if option not in known or not sign or not text:
            near = get_close_matches(option, known, n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}='?" if near and near[0] != option else ""
            raise ConfigError(
                f"policy '{name}': '{part}' is no option of {route}:.{hint} Write option=value with commas between; "
                f"known: {', '.join(known)}."
            )
        try:
            options[option] = known[option](text)
        except ValueError:
            raise ConfigError(f"policy '{name}': {option} is '{text}'; expected a number.") from None
    if not place or (route == "served" and "model" not in options):
        form = "http://HOST:PORT/v1#model=NAME,tokenizer=FOLDER" if route == "served" else "MODEL#context=8192"
        raise ConfigError(f"policy '{name}' is not complete; write {route}:{form}.")
    return ServedName("served" if route == "served" else "vllm", place, options)


def load_served(name: str, dtype: str = "float32") -> ServedBackbone:
    """Open a served policy: connect to its server, or load it with vLLM, and load its tokenizer.

    Args:
        name: `served:URL#model=NAME,...` or `vllm:MODEL#...`.
        dtype: number type of a policy that vLLM loads; a server has its own.

    Raises:
        ConfigError: if the name is wrong, or there is no key for the server.
        MissingExtraError: if the client or vLLM is not installed.
        ModelError: if the server or model cannot be reached, or the tokenizer is not there.
    """
    from rewardgap.backbones.serving_http import ServerEngine
    from rewardgap.backbones.serving_vllm import InProcessEngine

    given = parse_served(name)
    options = dict(given.options)
    tokenizer = options.pop("tokenizer", given.model)
    try:
        encoder = load_encoder(tokenizer)
    except ModelError as error:
        raise ModelError(
            f"{error} A served policy reads by a tokenizer that is here: say where with tokenizer=."
        ) from error
    if given.route == "vllm":
        return ServedBackbone(InProcessEngine(given.place, tokenizer=tokenizer, dtype=dtype, **options), encoder)
    return ServedBackbone(ServerEngine(options.pop("model"), given.place, **options), encoder)
