"""A policy behind an HTTP server that speaks the completions protocol with vLLM's additions.

Ids of a prompt go out as they are (`prompt` may be a list of ids), and every answer must say which ids were read and
written (`return_token_ids`, vLLM 0.10.2 and later), so nothing is lost between two tokenizers. Every sampling setting
is named in every request: a server would else take those it lacks from the model's generation_config.json.

Source: vLLM documentation, "OpenAI-Compatible Server" (docs.vllm.ai/en/stable/serving/openai_compatible_server), its
    lists of sampling and extra parameters of the Completions API and the Chat API; `vllm.SamplingParams` for what they
    mean.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from rewardgap.backbones.endpoint import in_one_sentence, open_client
from rewardgap.backbones.serving import READ, Asked, WriteRule, Written, log_prob
from rewardgap.core.errors import ConfigError, ModelError
from rewardgap.core.records import prompt_messages
from rewardgap.core.store import content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

APIS = ("completions", "chat")
_EXTRA = ("min_tokens", "stop_token_ids", "top_k", "min_p", "repetition_penalty")
_REFUSED = (400, 404, 422)
"""Answers to a request that the server understands and does not grant."""
Job = TypeVar("Job")
Answer = TypeVar("Answer")


class ServerEngine:
    """A model on a server of the completions protocol: `vllm serve`, or another with the same additions.

    The key is read from OPENAI_API_KEY. Prompts are sent to `base_url` and nowhere else. Server errors, rate limits,
    timeouts and lost connections are tried again as `ChatEndpoint` does. A row is a request of its own with a seed of
    its own; that the same seed gives the same text whatever else the server does is up to the server (vLLM: only with
    VLLM_BATCH_INVARIANT=1, see docs.vllm.ai/en/stable/features/batch_invariance).

    Args:
        model: the name the server knows it by; goes into records.
        base_url: where the server is, for example "http://localhost:8000/v1"; goes into no record.
        context: the longest sequence, in tokens; asked of the server unless given.
        api: "completions", or "chat" for servers that offer nothing else: messages are sent, and an answer is refused
            where the server's template does not make of them the ids that are made here. It scores no given texts.
        timeout: seconds until a request is given up.
        max_retries: further tries after the first.
        parallel: requests in flight at a time; answers come back in order whatever it is.

    Raises:
        ConfigError: if a value is out of range, or the server does not say how long a sequence may be.
        MissingExtraError: if the client is not installed.
        ModelError: if the server cannot be reached, or does not serve the model.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        context: int | None = None,
        api: str = "completions",
        timeout: float = 600.0,
        max_retries: int = 4,
        parallel: int = 64,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"the address of a server is '{base_url}'; expected http://HOST:PORT/v1 or https://...")
        if api not in APIS:
            raise ConfigError(f"api is '{api}'; expected one of {', '.join(APIS)}.")
        if not 0 < timeout < math.inf:
            raise ConfigError(f"timeout is {timeout}; expected a positive number of seconds.")
        for option, value, fewest in (("max_retries", max_retries, 0), ("parallel", parallel, 1)):
            if value < fewest:
                raise ConfigError(f"{option} is {value}; expected an integer of at least {fewest}.")
        if context is not None and context < 2:
            raise ConfigError(f"context is {context}; expected a number of tokens, at least 2.")
        self.name, self.base_url, self.api = model, base_url, api
        self.timeout, self.max_retries, self.parallel = timeout, max_retries, parallel
        self._client = open_client(model, base_url, timeout, max_retries)
        card = self._card()
        longest = context or getattr(card, "max_model_len", None)
        if not isinstance(longest, int):
            raise ConfigError(
                f"the server of '{model}' does not say how long a sequence may be (max_model_len); give context=."
            )
        self.context = longest
        self.fingerprint = content_hash(["server/1", base_url, model, api, getattr(card, "root", None)])

    def write(self, asked: Sequence[Asked], rule: WriteRule) -> list[Written]:
        """Return a completion for each, in order.

        Raises:
            ModelError: if the server fails, reads other ids than were sent, or does not say what it wrote.
        """
        return self._each(asked, lambda job: self._write(job, rule))

    def read(self, sequences: Sequence[Sequence[int]], top: int) -> list[list[Mapping[int, float]]]:
        """Return the log-probabilities of the tokens of given sequences (`prompt_logprobs`).

        Raises:
            ModelError: if the server fails, or gives none.
        """
        return self._each(sequences, lambda ids: self._read(ids, top))

    @cached_property
    def cannot_score(self) -> str:
        """Return why given texts cannot be scored; found out by asking once."""
        if self.api == "chat":
            return f"'{self.name}' is asked through the chat API, which reads no given text; leave api=chat out."
        try:
            tables = self._read((0, 0), 1)
        except ModelError as error:
            if getattr(error.__cause__, "status_code", None) in _REFUSED:
                return f"the server of '{self.name}' gives no prompt_logprobs: {error}"
            raise
        return "" if tables else f"the server of '{self.name}' gives no prompt_logprobs; vLLM does."

    def _write(self, asked: Asked, rule: WriteRule) -> Written:
        settings = rule.request(asked.seed)
        extra = {name: settings.pop(name) for name in _EXTRA} | {"return_token_ids": True}
        if self.api == "chat":
            turns = [{"role": turn.role, "content": turn.content} for turn in prompt_messages(asked.prompt)]
            answer = self._asked(
                self._client.chat.completions.create, model=self.name, messages=turns, extra_body=extra, **settings
            )
            choice = self._choice(answer)
            self._check_read(getattr(answer, "prompt_token_ids", None), asked.ids)
        else:
            answer = self._asked(
                self._client.completions.create, model=self.name, prompt=list(asked.ids), extra_body=extra, **settings
            )
            choice = self._choice(answer)
            self._check_read(getattr(choice, "prompt_token_ids", None), asked.ids)
        ids = getattr(choice, "token_ids", None)
        if not isinstance(ids, list) or choice.finish_reason not in ("stop", "length"):
            raise ModelError(
                f"the server of '{self.name}' ended a completion with '{choice.finish_reason}' and "
                f"{'no token_ids' if not isinstance(ids, list) else f'{len(ids)} token_ids'}; see its log."
            )
        return Written(tuple(ids), choice.finish_reason == "stop")

    def _read(self, ids: Sequence[int], top: int) -> list[Mapping[int, float]]:
        settings = READ.request(0)
        extra = {name: settings.pop(name) for name in _EXTRA} | {"return_token_ids": True, "prompt_logprobs": top}
        answer = self._asked(
            self._client.completions.create, model=self.name, prompt=list(ids), extra_body=extra, **settings
        )
        choice = self._choice(answer)
        tables = getattr(choice, "prompt_logprobs", None)
        if tables is None:
            return []
        self._check_read(getattr(choice, "prompt_token_ids", None), ids)
        try:
            return [
                {int(token): log_prob(entry["logprob"], self.name) for token, entry in (table or {}).items()}
                for table in tables
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"the prompt_logprobs of the server of '{self.name}' cannot be read: {error!r}."
            ) from error

    def _check_read(self, read: Any, sent: Sequence[int]) -> None:
        if not isinstance(read, list):
            raise ModelError(
                f"the server of '{self.name}' does not say which token ids it read and wrote (return_token_ids); "
                "use vLLM 0.10.2 or later."
            )
        if read != list(sent):
            place = next(
                (i for i, (a, b) in enumerate(zip(read, sent, strict=False)) if a != b), min(len(read), len(sent))
            )
            why = "its template or tokenizer is another" if self.api == "chat" else "it cut or changed the prompt"
            raise ModelError(
                f"the server of '{self.name}' read {len(read)} tokens where the prompt has {len(sent)}, the first "
                f"other one at {place}: {why}. Give the tokenizer that the server uses."
            )

    def _choice(self, answer: Any) -> Any:
        choices = getattr(answer, "choices", None)
        if not choices:
            raise ModelError(
                f"the server of '{self.name}' answered without choices, so it does not speak the {self.api} protocol. "
                "base_url usually ends in /v1."
            )
        return choices[0]

    def _card(self) -> Any:
        """Return what the server says of the model."""
        cards = getattr(self._asked(self._client.models.list), "data", None) or []
        found = [card for card in cards if card.id == self.name]
        if not found:
            raise ModelError(
                f"the server has no model '{self.name}'; it serves: {', '.join(str(c.id) for c in cards) or 'none'}."
            )
        return found[0]

    def _asked(self, ask: Callable[..., Any], **settings: Any) -> Any:
        with in_one_sentence(self.name, self.timeout, self.max_retries):
            return ask(**settings)

    def _each(self, jobs: Sequence[Job], ask: Callable[[Job], Answer]) -> list[Answer]:
        if not jobs:
            return []
        with ThreadPoolExecutor(min(self.parallel, len(jobs))) as pool:
            return list(pool.map(ask, jobs))
