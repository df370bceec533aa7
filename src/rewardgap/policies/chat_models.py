"""What a judge and a writer of personas need of a language model, and a local backbone with that face.

A judge asks many prompts that begin alike: instruction, persona and demonstrations of a user stand before every query,
and both orders of a pair share all but their end. A local backbone reads the common beginning once and hangs the rest
below it as a packed tree, so a further query costs little more than its own tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from rewardgap.backbones.endpoint import Answer, LabelScore, texts
from rewardgap.backbones.features import NODES_PER_FORWARD
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.session import TrieSession
from rewardgap.backbones.trie import build_trie
from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.records import prompt_text
from rewardgap.core.store import content_hash
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.decoding.plain import Greedy, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.records import Prompt

ROWS_PER_BATCH = 8
LOGIT_ROWS = 64


class ChatModel(Protocol):
    """A model one can ask: a `LocalChat`, or a `ChatEndpoint`."""

    @property
    def tokens(self) -> int:
        """Return the tokens sent through the network so far."""
        ...

    @property
    def forwards(self) -> int:
        """Return the forward passes, or requests, so far."""
        ...

    @property
    def name(self) -> str:
        """Return the name in records."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return a hash of what decides its answers."""
        ...

    def room(self, new_tokens: int) -> int:
        """Return the longest prompt that leaves room for an answer, in the unit of `size`."""
        ...

    def size(self, prompt: Prompt) -> int:
        """Return the length of a prompt: tokens of a local backbone, characters of an endpoint."""
        ...

    def label_scores(self, prompts: Sequence[Prompt], labels: tuple[str, str]) -> list[LabelScore]:
        """Return how the answers to prompts would begin: with the first label rather than the second."""
        ...

    def write(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[str]:
        """Return the text of an answer to each prompt; at temperature 0 of the most probable tokens."""
        ...

    def answer(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[Answer]:
        """Return an answer to each prompt, with the tokens it took."""
        ...


class LocalChat:
    """A local backbone as a model one can ask.

    Args:
        backbone: the network; its chat template is used.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.tokens = 0
        self.forwards = 0

    @property
    def name(self) -> str:
        """Return the backbone's name."""
        return self.backbone.name

    @property
    def fingerprint(self) -> str:
        """Return a hash of weights and template."""
        return content_hash(["local-chat/1", self.backbone.fingerprint])

    def room(self, new_tokens: int) -> int:
        """Return the longest prompt in tokens, beside `new_tokens` that are to be written.

        Raises:
            ConfigError: if the context leaves no room for a prompt.
        """
        left = self.backbone.context - new_tokens
        if left < 1:
            raise ConfigError(
                f"{new_tokens} new tokens leave no room for a prompt: {self.name} reads {self.backbone.context} tokens."
            )
        return left

    def size(self, prompt: Prompt) -> int:
        """Return the length of a prompt in tokens, the template's among them."""
        return len(self.backbone.encoder.encode_prompt(prompt))

    def label_scores(self, prompts: Sequence[Prompt], labels: tuple[str, str]) -> list[LabelScore]:
        """Return how the answers to prompts would begin.

            difference = logit(first label) - logit(second label)  at the first token of the answer

        Args:
            prompts: N prompts; what all of them begin with is read once.
            labels: two words, each of one token.

        Raises:
            ModelError: if a label is not one token of its own, or a logit is not finite.
            DataError: if a prompt does not fit the context.
        """
        asked = [self._prompt_ids(prompt, 0) for prompt in prompts]
        pairs = {ids: self._label_ids(prompt, labels) for ids, prompt in zip(asked, prompts, strict=True)}
        distinct = list(pairs)
        states = self._end_states(distinct)
        found: dict[tuple[int, ...], LabelScore] = {}
        for begin in range(0, len(distinct), LOGIT_ROWS):
            with torch.no_grad():
                logits = self.backbone.logits(torch.stack(states[begin : begin + LOGIT_ROWS])).double()
            for ids, row in zip(distinct[begin : begin + LOGIT_ROWS], logits, strict=True):
                pair = row[list(pairs[ids])]
                if not bool(torch.isfinite(pair).all()):
                    raise ModelError(f"{self.name} has logits {pair.tolist()} for {labels}; check weights and dtype.")
                mass = float((pair - torch.logsumexp(row, -1)).exp().sum())
                found[ids] = LabelScore(float(pair[0] - pair[1]), mass, len(ids), 1)
        return [found[ids] for ids in asked]

    def write(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[str]:
        """Return the text of an answer to each prompt; arguments and errors are those of `answer`."""
        return texts(self.name, self.answer(prompts, max_tokens=max_tokens, temperature=temperature, seeds=seeds))

    def answer(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[Answer]:
        """Return an answer to each prompt, without blanks around it.

        Its tokens are those of the prompt as if it were read alone, and those written.

        Args:
            prompts: N prompts; equal ones are read once.
            max_tokens: tokens at most.
            temperature: of the draws; at 0 the most probable tokens.
            seeds: N seeds of the draws; an answer depends on its own seed alone.

        Raises:
            ConfigError: if the temperature is negative, or draws have no seeds.
            DataError: if a prompt and its answer do not fit the context.
        """
        if not temperature >= 0 or (temperature > 0 and len(seeds) != len(prompts)):
            raise ConfigError(
                f"{len(prompts)} texts at temperature {temperature} with {len(seeds)} seeds; give one each."
            )
        written: list[Answer] = []
        for begin in range(0, len(prompts), ROWS_PER_BATCH):
            batch = prompts[begin : begin + ROWS_PER_BATCH]
            written += self._write_batch(batch, max_tokens, temperature, seeds[begin : begin + ROWS_PER_BATCH])
        return written

    def _write_batch(
        self, prompts: Sequence[Prompt], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Answer]:
        encoder = self.backbone.encoder
        distinct = list(dict.fromkeys(prompts))
        ids = [self._prompt_ids(prompt, max_tokens) for prompt in distinct]
        session = TrieSession(self.backbone, len(distinct), max(map(len, ids)) + max_tokens + 1)
        tips = session.prefill(ids)
        rows = [distinct.index(prompt) for prompt in prompts]
        session.select(rows)
        decoded = decode(
            session,
            tips[rows],
            Sample(temperature) if temperature > 0 else Greedy(),
            StopRule(encoder.end_ids, max_tokens),
            seeds=seeds if temperature > 0 else (),
        )
        self._count(session)
        return [
            Answer(encoder.decode(written.ids).strip(), len(ids[row]), len(written.ids))
            for row, written in zip(rows, decoded, strict=True)
        ]

    def _end_states(self, sequences: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """Return the (D,) hidden state at the last token of each sequence; common beginnings are read once."""
        if not sequences:
            return []
        # The last token of the shortest stays outside, so that every sequence ends below the shared beginning.
        shared = min(_common(sequences), min(map(len, sequences)) - 1)
        tails = [sequence[shared:] for sequence in sequences]
        chunks = _chunks(tails)
        widest = max(sum(map(len, chunk)) for chunk in chunks)
        session = TrieSession(self.backbone, 1, shared + widest)
        if shared:
            session.prefill([sequences[0][:shared]])
        out = []
        for chunk in chunks:
            start = session.forest.length
            trie = build_trie(chunk)
            states = session.extend([trie.block(parent=session.tips[0], start=start)])[0]
            out += [states[path[-1]] for path in trie.paths]
            session.truncate(start)
        self._count(session)
        return out

    def _prompt_ids(self, prompt: Prompt, new_tokens: int) -> tuple[int, ...]:
        ids = self.backbone.encoder.encode_prompt(prompt)
        limit = self.room(new_tokens)
        if len(ids) > limit:
            raise DataError(
                f"a prompt of {len(ids)} tokens is longer than the {limit} that {self.name} has room for: "
                f"'{prompt_text(prompt)[-60:]}'. Shorten the texts, or use a model with a longer context."
            )
        return ids

    def _label_ids(self, prompt: Prompt, labels: tuple[str, str]) -> tuple[int, int]:
        encoder = self.backbone.encoder
        ids = [encoder.encode_completion(label, after=prompt) for label in labels]
        for label, found in zip(labels, ids, strict=True):
            if len(found) != 1:
                raise ModelError(
                    f"label '{label}' is {len(found)} tokens of {self.name}, and a judge reads the first token of an "
                    "answer. Give two labels that are one token each, for example labels: [A, B]."
                )
        if ids[0] == ids[1]:
            raise ModelError(f"labels '{labels[0]}' and '{labels[1]}' are one token of {self.name}; give two others.")
        return ids[0][0], ids[1][0]

    def _count(self, session: TrieSession) -> None:
        self.tokens += session.tokens
        self.forwards += session.forwards


def chat_with(model: ChatModel | Backbone) -> ChatModel:
    """Return a model one can ask: a backbone is given that face, anything else has it."""
    return LocalChat(model) if isinstance(model, Backbone) else model


def _common(sequences: Sequence[tuple[int, ...]]) -> int:
    """Return the length of the beginning that all sequences share."""
    low, high = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _chunks(tails: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Cut sequences, in order, into groups that each make one forward pass."""
    chunks: list[list[Sequence[int]]] = []
    size = 0
    for tail in tails:
        if not chunks or size + len(tail) > NODES_PER_FORWARD:
            chunks.append([])
            size = 0
        chunks[-1].append(tail)
        size += len(tail)
    return chunks
