"""Answers of models on disk by content: the same question is asked once, in whatever study it comes up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rewardgap.backbones.endpoint import Answer, LabelScore, texts
from rewardgap.core.records import prompt_to_json
from rewardgap.core.store import cache_root, content_hash, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rewardgap.core.records import Prompt
    from rewardgap.policies.chat_models import ChatModel

ASKED_AT_A_TIME = 64
"""A failure between two requests loses at most so many answers."""


class Asked(NamedTuple):
    """One question.

    Attributes:
        id: hash of the prompt.
        prompt: its exact text.
        prompt_tokens: tokens of the prompt when it was asked, None where the server does not say.
        completion_tokens: tokens of the answer, likewise.
        cached: whether no request was made for it now.
    """

    id: str
    prompt: Prompt
    prompt_tokens: int | None
    completion_tokens: int | None
    cached: bool


class KeptChat:
    """A model whose answers are kept on disk, and that knows what it was asked; otherwise the model itself.

    An answer is found again under the model's fingerprint, the prompt and every setting. Users' texts are not written.

    Args:
        model: who is asked.
        folder: where the answers are; `answers` in the cache unless given.
        keep: False for a local model, whose answers a cell keeps: in the last bits they depend on the questions beside
            them, and must not depend on what other studies asked.

    Attributes:
        log: every question so far, in order.
    """

    def __init__(self, model: ChatModel, folder: Path | None = None, *, keep: bool = True) -> None:
        self.model, self.keep = model, keep
        self.log: list[Asked] = []
        self._root = folder if folder is not None else cache_root() / "answers"

    @property
    def name(self) -> str:
        """Return the model's name."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """Return the model's fingerprint."""
        return self.model.fingerprint

    @property
    def tokens(self) -> int:
        """Return the tokens that went through the model so far."""
        return self.model.tokens

    @property
    def forwards(self) -> int:
        """Return the model's forward passes, or requests, so far."""
        return self.model.forwards

    def room(self, new_tokens: int) -> int:
        """Return the longest prompt that leaves room for an answer."""
        return self.model.room(new_tokens)

    def size(self, prompt: Prompt) -> int:
        """Return the length of a prompt."""
        return self.model.size(prompt)

    def label_scores(self, prompts: Sequence[Prompt], labels: tuple[str, str]) -> list[LabelScore]:
        """Return how the answers to prompts would begin; the errors are the model's."""

        def ask(rows: Sequence[int]) -> list[LabelScore]:
            return self.model.label_scores([prompts[row] for row in rows], labels)

        found = self._answered(prompts, [["labels", *labels]] * len(prompts), ask, LabelScore)
        return [LabelScore(**value) for value in found]

    def write(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[str]:
        """Return the text of an answer to each prompt; the errors are the model's."""
        return texts(self.name, self.answer(prompts, max_tokens=max_tokens, temperature=temperature, seeds=seeds))

    def answer(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[Answer]:
        """Return an answer to each prompt; the errors are the model's."""
        settings = [["text", max_tokens, temperature, *seeds[row : row + 1]] for row in range(len(prompts))]

        def ask(rows: Sequence[int]) -> list[Answer]:
            own = [seeds[row] for row in rows] if seeds else ()
            asked = [prompts[row] for row in rows]
            return self.model.answer(asked, max_tokens=max_tokens, temperature=temperature, seeds=own)

        return [Answer(**value) for value in self._answered(prompts, settings, ask, Answer)]

    def _answered(
        self,
        prompts: Sequence[Prompt],
        settings: Sequence[list[Any]],
        ask: Callable[[Sequence[int]], Sequence[Any]],
        kind: type[LabelScore] | type[Answer],
    ) -> list[dict[str, Any]]:
        """Return the answers as mappings; those that are not there are asked for, each once, and kept at once."""
        asked = [prompt_to_json(prompt) for prompt in prompts]
        keys = [
            content_hash(["answer/1", self.fingerprint, prompt, own], 32)
            for prompt, own in zip(asked, settings, strict=True)
        ]
        found = {key: value for key in dict.fromkeys(keys) if (value := self._load(key, kind)) is not None}
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        missing = [row for row, key in enumerate(keys) if key not in found and first[key] == row]
        for begin in range(0, len(missing), ASKED_AT_A_TIME):
            rows = missing[begin : begin + ASKED_AT_A_TIME]
            for row, answer in zip(rows, ask(rows), strict=True):
                found[keys[row]] = answer._asdict()
                if self.keep:
                    write_json(self._path(keys[row]), found[keys[row]])
        fresh = set(missing)
        self.log += [
            Asked(
                content_hash(asked[row], 32),
                prompts[row],
                found[key]["prompt_tokens"],
                found[key]["completion_tokens"],
                row not in fresh,
            )
            for row, key in enumerate(keys)
        ]
        return [found[key] for key in keys]

    def _load(self, key: str, kind: type[LabelScore] | type[Answer]) -> dict[str, Any] | None:
        if not self.keep:
            return None
        try:
            value = read_json(self._path(key))
        except (FileNotFoundError, ValueError):
            # A damaged file is worth no more than a missing one: its question is asked again.
            return None
        return value if isinstance(value, dict) and set(value) == set(kind._fields) else None

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.json"
