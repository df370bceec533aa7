"""A language model behind an HTTP server that speaks the chat-completions protocol.

It writes, and it says which of two words it would begin an answer with. Nothing else of a model is there: no hidden
states and no token ids.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rewardgap.core.errors import ConfigError, MissingExtraError, ModelError
from rewardgap.core.records import Message, Prompt, prompt_messages
from rewardgap.core.store import content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ALTERNATIVES = 20
"""First tokens asked for with their log-probabilities: the most that the protocol allows."""
NOTHING = -9999.0
"""What servers of this protocol put where a token's log-probability is not known."""
Answer = TypeVar("Answer")


class LabelScore(NamedTuple):
    """How a model would begin its answer to one prompt.

    Attributes:
        difference: log-probability of the first label minus that of the second, nats; equals the difference of logits.
        mass: probability of the two labels together; near 0 the model would not answer with a label at all.
    """

    difference: float
    mass: float


class ChatEndpoint:
    """A model on a server of the chat-completions protocol (OpenAI, vLLM, llama.cpp and others).

    The key is read from OPENAI_API_KEY by the client. Texts of users are sent to `base_url` and nowhere else. Server
    errors, rate limits, timeouts and lost connections are tried again after a wait of half a second that doubles up to
    8 s, or for as long as the server asks (2 minutes at most).

    The same seeds need not give the same texts: that is up to the server.

    Args:
        model: the name the server knows it by; goes into records.
        base_url: where the server is, for example "http://localhost:8000/v1"; goes into no record.
        timeout: seconds until a request is given up.
        max_retries: further tries after the first.
        max_characters: the longest prompt that is sent, in characters: the server's tokenizer is not known here.
        parallel: requests in flight at a time; answers come back in order whatever it is.

    Attributes:
        tokens: tokens the server reports so far, of prompts and answers.
        forwards: requests answered so far.

    Raises:
        ConfigError: if a value is out of range.
        MissingExtraError: at the first request, if the client is not installed.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        timeout: float = 60.0,
        max_retries: int = 4,
        max_characters: int = 24_000,
        parallel: int = 4,
    ) -> None:
        if not model or not base_url:
            raise ConfigError(f"an endpoint needs a model and a base_url, got '{model}' and '{base_url}'.")
        if not 0 < timeout < math.inf:
            raise ConfigError(f"timeout is {timeout}; expected a positive number of seconds.")
        for name, value, fewest in (
            ("max_retries", max_retries, 0),
            ("max_characters", max_characters, 1),
            ("parallel", parallel, 1),
        ):
            if value < fewest:
                raise ConfigError(f"{name} is {value}; expected an integer of at least {fewest}.")
        self.name, self.base_url = model, base_url
        self.timeout, self.max_retries = timeout, max_retries
        self.max_characters, self.parallel = max_characters, parallel
        self.tokens = 0
        self.forwards = 0

    @property
    def fingerprint(self) -> str:
        """Return a hash of server and model name; weights that change behind a name do not show in it."""
        return content_hash(["chat-endpoint/1", self.base_url, self.name])

    def room(self, new_tokens: int) -> int:
        """Return the longest prompt, in characters; what is to be written takes nothing of it."""
        return self.max_characters

    def size(self, prompt: Prompt) -> int:
        """Return the length of a prompt in characters."""
        return sum(len(message.content) for message in prompt_messages(prompt))

    def label_scores(self, prompts: Sequence[Prompt], labels: tuple[str, str]) -> list[LabelScore]:
        """Return how the answers to prompts would begin.

        Tokens that are a label but for blanks around it count as that label.

        Args:
            prompts: N prompts.
            labels: two words.

        Raises:
            ModelError: if the server fails, gives no log-probabilities, or has a label not among the 20 likeliest.
        """
        return self._ask_all([(prompt, labels) for prompt in prompts], self._label_score)

    def write(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[str]:
        """Return an answer to each prompt.

        Args:
            prompts: N prompts.
            max_tokens: tokens at most.
            temperature: of the draws; at 0 the most probable tokens.
            seeds: N seeds of the draws, for servers that honour them.

        Raises:
            ModelError: if the server fails or answers without text.
        """
        seeds = seeds or [0] * len(prompts)
        jobs = [(prompt, max_tokens, temperature, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return self._ask_all(jobs, self._text)

    def _ask_all(self, jobs: Sequence[tuple[Any, ...]], ask: Callable[..., tuple[Answer, int]]) -> list[Answer]:
        if not jobs:
            return []
        client = self._client  # made before there are threads
        with ThreadPoolExecutor(min(self.parallel, len(jobs))) as pool:
            answers = list(pool.map(lambda job: ask(client, *job), jobs))
        self.forwards += len(answers)
        self.tokens += sum(tokens for _, tokens in answers)
        return [answer for answer, _ in answers]

    def _label_score(self, client: Any, prompt: Prompt, labels: tuple[str, str]) -> tuple[LabelScore, int]:
        # The token drawn is not used. At temperature 1 every server's log-probabilities are those of the model.
        choice, tokens = self._complete(
            client, prompt, max_tokens=1, temperature=1.0, logprobs=True, top_logprobs=ALTERNATIVES
        )
        content = getattr(getattr(choice, "logprobs", None), "content", None)
        alternatives = content[0].top_logprobs if content else None
        if not alternatives:
            raise ModelError(
                f"the endpoint of '{self.name}' gives no top_logprobs, and a judge reads nothing else. Use a server "
                "that gives them (vLLM, llama.cpp), or judge with a local backbone."
            )
        found = [_log_sum([a.logprob for a in alternatives if a.token.strip() == label]) for label in labels]
        for label, value in zip(labels, found, strict=True):
            if value is None:
                begin = ", ".join(repr(a.token) for a in alternatives[:3])
                raise ModelError(
                    f"'{self.name}' has '{label}' not among the {len(alternatives)} likeliest first tokens of its "
                    f"answer (they begin with {begin}), so a margin is unknown. Use another model, or other labels."
                )
        first, second = (value for value in found if value is not None)
        return LabelScore(first - second, math.exp(first) + math.exp(second)), tokens

    def _text(self, client: Any, prompt: Prompt, max_tokens: int, temperature: float, seed: int) -> tuple[str, int]:
        choice, tokens = self._complete(
            client, prompt, max_tokens=max_tokens, temperature=temperature, seed=seed % (1 << 31)
        )
        text = getattr(getattr(choice, "message", None), "content", None)
        if not isinstance(text, str):
            raise ModelError(f"the endpoint of '{self.name}' answered without text; use a model that writes text.")
        return text.strip(), tokens

    def _complete(self, client: Any, prompt: Prompt, **settings: Any) -> tuple[Any, int]:
        """Return the first choice of an answer, and the tokens it took."""
        size = self.size(prompt)
        if size > self.max_characters:
            raise ModelError(
                f"a prompt for '{self.name}' has {size} characters, max_characters is {self.max_characters}. "
                "Raise it, or shorten the texts."
            )
        turns = [_turn(message) for message in prompt_messages(prompt)]
        with in_one_sentence(self.name, self.timeout, self.max_retries):
            answer = client.chat.completions.create(model=self.name, messages=turns, **settings)
        choices = getattr(answer, "choices", None)
        if not choices:
            raise ModelError(
                f"the endpoint of '{self.name}' answered without choices, so it is no chat-completions server. "
                "base_url usually ends in /v1."
            )
        return choices[0], int(getattr(getattr(answer, "usage", None), "total_tokens", 0) or 0)

    @cached_property
    def _client(self) -> Any:
        return open_client(self.name, self.base_url, self.timeout, self.max_retries)


def open_client(name: str, base_url: str, timeout: float, max_retries: int) -> Any:
    """Return a client of a server; `name` is the model's, for messages.

    Raises:
        MissingExtraError: if the client is not installed.
        ConfigError: if there is no key in the environment.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError(
            "an endpoint needs the package 'openai', which is not installed. Install rewardgap[endpoint]."
        ) from error
    try:
        return openai.OpenAI(base_url=base_url, timeout=timeout, max_retries=max_retries)
    except openai.OpenAIError as error:
        raise ConfigError(
            f"the endpoint of '{name}' needs a key in the environment variable OPENAI_API_KEY; for a server "
            "that asks for none, set it to any text."
        ) from error


@contextmanager
def in_one_sentence(name: str, timeout: float, max_retries: int) -> Iterator[None]:
    """Turn what a client raises into one sentence without the server's address.

    Raises:
        ModelError: if the server fails, refuses, or cannot be reached.
    """
    import openai

    tries = f"{max_retries + 1} {'try' if max_retries == 0 else 'tries'}"
    try:
        yield
    except openai.APITimeoutError as error:
        raise ModelError(
            f"the endpoint of '{name}' gave no answer within {timeout:g} s ({tries}). "
            "Raise timeout, or see whether the server is overloaded."
        ) from error
    except openai.AuthenticationError as error:
        raise ModelError(f"the endpoint of '{name}' refuses the key in OPENAI_API_KEY: {_reason(error)}.") from error
    except openai.APIStatusError as error:
        raise ModelError(
            f"the endpoint of '{name}' answers {error.status_code} ({_reason(error)}). "
            f"It was asked up to {max_retries + 1} times; see the server's log."
        ) from error
    except openai.APIConnectionError as error:
        raise ModelError(
            f"the endpoint of '{name}' cannot be reached ({tries}). Is the server running at base_url?"
        ) from error
    except (openai.OpenAIError, ValueError) as error:
        raise ModelError(f"the answer of the endpoint of '{name}' cannot be read: {_reason(error)}.") from error


def _turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _log_sum(values: Sequence[float]) -> float | None:
    """Return log Σ exp of the values that say something; None of none."""
    finite = [value for value in values if NOTHING < value < math.inf]
    if not finite:
        return None
    top = max(finite)
    return top + math.log(sum(math.exp(value - top) for value in finite))


def _reason(error: Exception) -> str:
    """Return one line of what a server or client said."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("error")
    if isinstance(body, dict):
        body = body.get("message")
    text = " ".join(str(body or error).split()).rstrip(".")
    return text if len(text) <= 160 else f"{text[:159]}…"
