"""A language model behind an HTTP server that speaks the chat-completions protocol.

It writes, and it says which of two words it would begin an answer with. Nothing else of a model is there: no hidden
states and no token ids.
"""

from __future__ import annotations

import math
import os
import traceback
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
KEY_VARIABLE = "OPENAI_API_KEY"
SECRET = 8
"""A key of fewer characters is none: servers that ask for no key are given any text, which may stand in a sentence."""
Reply = TypeVar("Reply", "LabelScore", "Answer")


class LabelScore(NamedTuple):
    """How a model would begin its answer to one prompt.

    Attributes:
        difference: log-probability of the first label minus that of the second, nats; equals the difference of logits.
        mass: probability of the two labels together; near 0 the model would not answer with a label at all.
        prompt_tokens: tokens of the prompt, None where they are not known.
        completion_tokens: tokens of the answer, likewise.
    """

    difference: float
    mass: float
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Answer(NamedTuple):
    """What a model wrote to one prompt.

    Attributes:
        text: without blanks around it; None where the model wrote no text.
        prompt_tokens: tokens of the prompt, None where they are not known.
        completion_tokens: tokens of the answer, likewise.
    """

    text: str | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ChatEndpoint:
    """A model on a server of the chat-completions protocol (OpenAI, vLLM, llama.cpp and others).

    The key is read from the environment and written nowhere. Texts of users are sent to `base_url` and nowhere else.
    Server errors, rate limits, timeouts and lost connections are tried again after a wait of half a second that doubles
    up to 8 s, or for as long as the server asks (2 minutes at most).

    The same seeds need not give the same texts: that is up to the server.

    Args:
        model: the name the server knows it by; goes into records.
        base_url: where the server is, for example "http://localhost:8000/v1"; goes into no record.
        timeout: seconds until a request is given up.
        max_retries: further tries after the first.
        max_characters: the longest prompt that is sent, in characters: the server's tokenizer is not known here.
        parallel: requests in flight at a time; answers come back in order whatever it is.
        key_variable: environment variable that holds the key.

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
        key_variable: str = KEY_VARIABLE,
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
        self.key_variable = key_variable
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
        """Return the text of an answer to each prompt; the arguments are those of `answer`.

        Raises:
            ModelError: if the server fails or answers without text.
        """
        return texts(self.name, self.answer(prompts, max_tokens=max_tokens, temperature=temperature, seeds=seeds))

    def answer(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[Answer]:
        """Return an answer to each prompt.

        Args:
            prompts: N prompts.
            max_tokens: tokens at most.
            temperature: of the draws; at 0 the most probable tokens.
            seeds: N seeds of the draws, for servers that honour them.

        Raises:
            ModelError: if the server fails.
        """
        seeds = seeds or [0] * len(prompts)
        jobs = [(prompt, max_tokens, temperature, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return self._ask_all(jobs, self._answer)

    def _ask_all(self, jobs: Sequence[tuple[Any, ...]], ask: Callable[..., Reply]) -> list[Reply]:
        if not jobs:
            return []
        client = self._client  # made before there are threads
        with ThreadPoolExecutor(min(self.parallel, len(jobs))) as pool:
            answers = list(pool.map(lambda job: ask(client, *job), jobs))
        self.forwards += len(answers)
        self.tokens += sum((answer.prompt_tokens or 0) + (answer.completion_tokens or 0) for answer in answers)
        return answers

    def _label_score(self, client: Any, prompt: Prompt, labels: tuple[str, str]) -> LabelScore:
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
        return LabelScore(first - second, math.exp(first) + math.exp(second), *tokens)

    def _answer(self, client: Any, prompt: Prompt, max_tokens: int, temperature: float, seed: int) -> Answer:
        choice, tokens = self._complete(
            client, prompt, max_tokens=max_tokens, temperature=temperature, seed=seed % (1 << 31)
        )
        text = getattr(getattr(choice, "message", None), "content", None)
        return Answer(text.strip() if isinstance(text, str) else None, *tokens)

    def _complete(self, client: Any, prompt: Prompt, **settings: Any) -> tuple[Any, tuple[int | None, int | None]]:
        """Return the first choice of an answer, and the tokens of prompt and answer, None where they are not told."""
        size = self.size(prompt)
        if size > self.max_characters:
            raise ModelError(
                f"a prompt for '{self.name}' has {size} characters, max_characters is {self.max_characters}. "
                "Raise it, or shorten the texts."
            )
        turns = [_turn(message) for message in prompt_messages(prompt)]
        with in_one_sentence(self.name, self.timeout, self.max_retries, self.key_variable):
            answer = client.chat.completions.create(model=self.name, messages=turns, **settings)
        choices = getattr(answer, "choices", None)
        if not choices:
            raise ModelError(
                f"the endpoint of '{self.name}' answered without choices, so it is no chat-completions server. "
                "base_url usually ends in /v1."
            )
        usage = getattr(answer, "usage", None)
        counts = [getattr(usage, f"{part}_tokens", None) for part in ("prompt", "completion")]
        prompt_tokens, completion_tokens = (int(count) if isinstance(count, int) else None for count in counts)
        return choices[0], (prompt_tokens, completion_tokens)

    @cached_property
    def _client(self) -> Any:
        return open_client(self.name, self.base_url, self.timeout, self.max_retries, self.key_variable)


def texts(name: str, answers: Sequence[Answer]) -> list[str]:
    """Return the texts of answers of a model.

    Raises:
        ModelError: if an answer has none.
    """
    found = [answer.text for answer in answers if answer.text is not None]
    if len(found) < len(answers):
        raise ModelError(f"the endpoint of '{name}' answered without text; use a model that writes text.")
    return found


def open_client(name: str, base_url: str, timeout: float, max_retries: int, key_variable: str = KEY_VARIABLE) -> Any:
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
    key = os.environ.get(key_variable)
    if not key:
        raise ConfigError(
            f"the endpoint of '{name}' needs a key in the environment variable {key_variable}; for a server "
            "that asks for none, set it to any text."
        )
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise ConfigError(
            f"the key in the environment variable {key_variable} has a blank or line break around it, or a character "
            "that no request can carry; set it again."
        )
    return openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=max_retries)


@contextmanager
def in_one_sentence(name: str, timeout: float, max_retries: int, key_variable: str = KEY_VARIABLE) -> Iterator[None]:
    """Turn what a client raises into one sentence without the server's address and without the key.

    Raises:
        ModelError: if the server fails, refuses, or cannot be reached.
    """
    import openai

    tries = f"{max_retries + 1} {'try' if max_retries == 0 else 'tries'}"
    try:
        yield
    except (openai.OpenAIError, ValueError) as error:
        key = os.environ.get(key_variable, "")
        secret = key if len(key) >= SECRET else None
        reason = _reason(error, secret)
        if isinstance(error, openai.APITimeoutError):
            sentence = (
                f"the endpoint of '{name}' gave no answer within {timeout:g} s ({tries}). "
                "Raise timeout, or see whether the server is overloaded."
            )
        elif isinstance(error, openai.AuthenticationError):
            sentence = f"the endpoint of '{name}' refuses the key in {key_variable}: {reason}."
        elif isinstance(error, openai.NotFoundError):
            sentence = (
                f"the endpoint of '{name}' answers 404 ({reason}): it has no such model, or base_url is another place. "
                "Ask it for its models at base_url/models; base_url usually ends in /v1."
            )
        elif isinstance(error, openai.APIStatusError):
            sentence = (
                f"the endpoint of '{name}' answers {error.status_code} ({reason}). "
                f"It was asked up to {max_retries + 1} times; see the server's log."
            )
        elif isinstance(error, openai.APIConnectionError):
            sentence = f"the endpoint of '{name}' cannot be reached ({tries}). Is the server running at base_url?"
        else:
            sentence = f"the answer of the endpoint of '{name}' cannot be read: {reason}."
        # Some servers repeat the key they refuse, and what led to an error is kept in artefacts beside it.
        told = secret is not None and secret in "".join(traceback.format_exception(error))
        raise ModelError(sentence) from (None if told else error)


def _turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _log_sum(values: Sequence[float]) -> float | None:
    """Return log Σ exp of the values that say something; None of none."""
    finite = [value for value in values if NOTHING < value < math.inf]
    if not finite:
        return None
    top = max(finite)
    return top + math.log(sum(math.exp(value - top) for value in finite))


def _reason(error: Exception, secret: str | None = None) -> str:
    """Return one line of what a server or client said, without the secret."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("error")
    if isinstance(body, dict):
        body = body.get("message")
    text = " ".join(str(body or error).split()).rstrip(".")
    if secret is not None:
        text = text.replace(secret, "***")
    return text if len(text) <= 160 else f"{text[:159]}…"
