"""Texts about users: what a user's pairs say, in words that a language model reads in its prompt.

A text is made by rule, without a second model: the same pairs give the same text. It is kept as token ids, and what is
read is what they spell; a special token written in it is characters, as everywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn, TypeAlias

import numpy as np

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import Message, Prompt, prompt_messages, prompt_text, prompt_to_json
from rewardgap.core.seeds import child_seed
from rewardgap.core.store import content_hash
from rewardgap.data.ordering import time_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.chat import ChatEncoder
    from rewardgap.core.records import PreferencePair

TextKind: TypeAlias = Literal["examples", "written", "profile"]
TextTurn: TypeAlias = Literal["system", "user"]
KINDS: tuple[TextKind, ...] = ("examples", "written", "profile")
TURNS: tuple[TextTurn, ...] = ("system", "user")
INSTRUCTION = "Write what this user would prefer."
NOTHING_KNOWN = f"{INSTRUCTION} Nothing is known about the user."
HEADINGS: dict[TextKind, str] = {
    "examples": "Choices the user made:",
    "written": "Texts the user wrote:",
    "profile": "About the user:",
}
LEAST_PART = 8
"""Tokens below which no part of a text is cut; an example is left out instead."""


def with_text(prompt: Prompt, text: str, turn: TextTurn) -> Prompt:
    """Return a prompt that tells of its user: in the system turn, before what stands there, or in the first user turn.

    An empty text leaves the prompt as it is.

    Raises:
        DataError: if the text has no turn to stand in.
    """
    if not text:
        return prompt
    messages = prompt_messages(prompt)
    if turn == "system" and not (messages and messages[0].role == "system"):
        return (Message("system", text), *messages)
    place = next((n for n, message in enumerate(messages) if message.role == turn), None)
    if place is None:
        raise DataError("a text about the user needs a user turn to stand in, and the prompt has none; give it one.")
    opened = Message(turn, f"{text}\n\n{messages[place].content}")
    return (*messages[:place], opened, *messages[place + 1 :])


class UserText(NamedTuple):
    """A text about a user.

    Attributes:
        ids: its tokens.
        shown: how many of the user's pairs it is made of; 0 for the generic text.
        is_cut: whether a part of it lacks its beginning or its end.
    """

    ids: tuple[int, ...]
    shown: int = 0
    is_cut: bool = False


class _Part(NamedTuple):
    """A piece of a text: a label that stays, and tokens that may be cut, from the left or from the right."""

    label: str
    ids: list[int]
    keeps_end: bool = False


@dataclass(frozen=True)
class TextWriter:
    """Writes texts about users, each of at most `text_tokens` tokens.

        examples:  prompt, chosen and rejected of up to `num_examples` pairs
        written:   what the user wrote in up to `num_examples` pairs, what the user chose where the data have no text
        profile:   what the pairs hold of the user in `meta[profile_key]`

    Pairs are taken newest first where all have a time, else in an order that a hash of their texts decides, so the
    order they are given in means nothing; they are shown the other way round. Where a text is too long, its longest
    parts are cut to one length, the largest that fits: prompts lose their beginning, all others their end, and "…"
    stands for what is missing. Parts that would have to be shorter than 8 tokens are not cut further: fewer pairs are
    shown.

    Args:
        name: the method's, for messages.
        encoder: of the model that reads the texts.
        kind: what a text is made of.
        num_examples: pairs shown at most.
        text_tokens: tokens of a text at most.
        profile_key: where pairs hold a profile.

    Raises:
        ConfigError: if not even the generic text fits.
    """

    name: str
    encoder: ChatEncoder
    kind: TextKind
    num_examples: int
    text_tokens: int
    profile_key: str

    def __post_init__(self) -> None:
        """Refuse a budget that the instruction alone exceeds."""
        if len(self.generic.ids) > self.text_tokens:
            raise ConfigError(
                f"{self.name}: text_tokens is {self.text_tokens}, and the instruction alone takes "
                f"{len(self.generic.ids)}; raise text_tokens."
            )

    @cached_property
    def generic(self) -> UserText:
        """Return the text about a user of whom nothing is known."""
        return UserText(tuple(self._read(NOTHING_KNOWN)))

    def text(self, ids: Sequence[int]) -> str:
        """Return what the ids of a text spell."""
        return self.encoder.decode(ids)

    def write(self, pairs: Sequence[PreferencePair]) -> UserText:
        """Return the text about the user who revealed these pairs; the generic one where they tell nothing.

        Raises:
            DataError: if a profile is asked for, and a pair has none or pairs of the user have different ones.
            ConfigError: if the budget holds not even one example.
        """
        if not pairs:
            return self.generic
        if self.kind == "profile":
            profile = self._profile(pairs)
            if not profile:
                return self.generic
            fitted = self._fitted([_Part("", self.encoder.encode_text(profile))], len(pairs))
            return fitted if fitted is not None else self._refuse()
        newest = in_order(pairs)[::-1]
        for shown in range(min(len(newest), self.num_examples), 0, -1):
            parts = [part for pair in newest[:shown][::-1] for part in self._example(pair)]
            fitted = self._fitted(parts, shown)
            if fitted is not None:
                return fitted
        return self._refuse()

    def training_texts(self, pairs: Sequence[PreferencePair], seed: int) -> list[UserText]:
        """Return a text for each training pair that tells of its user and not of the pair.

        It is made of 1 to `num_examples` other pairs of the user, as many as a draw says, drawn among those of which
        none has a prompt, a completion or a conversation in common with the pair (`tells_of`); where there is none it
        is the generic text. A profile is the user's own. The draw of a pair depends on seed, user, texts of the pair
        and texts of the user's other pairs alone.
        """
        own: dict[str, list[PreferencePair]] = defaultdict(list)
        for pair in pairs:
            own[pair.user_id].append(pair)
        if self.kind == "profile":
            profiles = {user: self.write(rows) for user, rows in own.items()}
            return [profiles[pair.user_id] for pair in pairs]
        pools = {user: in_order(rows) for user, rows in own.items()}
        texts = []
        for pair in pairs:
            pool = pools[pair.user_id]
            draw = np.random.Generator(np.random.PCG64(child_seed(seed, "text", pair.user_id, _hash(pair))))
            most = 1 + int(draw.integers(self.num_examples))
            others = (pool[place] for place in draw.permutation(len(pool)).tolist())
            texts.append(self.write(list(islice((o for o in others if not tells_of(o, pair)), most))))
        return texts

    def _example(self, pair: PreferencePair) -> list[_Part]:
        encode = self.encoder.encode_text
        if self.kind == "written":
            return [_Part("", encode(pair.demonstration))]
        return [
            _Part("Asked: ", encode(prompt_text(pair.prompt)), keeps_end=True),
            _Part("Chosen: ", encode(pair.chosen)),
            _Part("Not chosen: ", encode(pair.rejected)),
        ]

    def _profile(self, pairs: Sequence[PreferencePair]) -> str:
        found = {pair.example_id: pair.meta.get(self.profile_key) for pair in pairs}
        for example, profile in found.items():
            if not isinstance(profile, str):
                raise DataError(
                    f"{self.name}: pair '{example}' of user '{pairs[0].user_id}' has no text in "
                    f"meta['{self.profile_key}']; load the data with it (prism: demographics=true), or take text: "
                    "examples."
                )
        if len(set(found.values())) > 1:
            raise DataError(
                f"{self.name}: pairs of user '{pairs[0].user_id}' have {len(set(found.values()))} different texts in "
                f"meta['{self.profile_key}'], expected one a user."
            )
        return str(next(iter(found.values()))).strip()

    def _fitted(self, parts: Sequence[_Part], shown: int) -> UserText | None:
        """Return the text of parts, each cut to the largest common length that fits; None if 8 tokens are too many."""
        longest = max(len(part.ids) for part in parts)

        def ids(length: int) -> list[int]:
            return self._read(self._joined(parts, length))

        def is_long(length: int) -> bool:
            return len(ids(length)) > self.text_tokens

        if not is_long(longest):
            return UserText(tuple(ids(longest)), shown)
        if longest <= LEAST_PART or is_long(LEAST_PART):
            return None
        # Every step of the search that moves its lower end has seen a length that fits.
        lengths = range(LEAST_PART + 1, longest)
        length = LEAST_PART + bisect_left(lengths, True, key=is_long)
        return UserText(tuple(ids(length)), shown, True)

    def _joined(self, parts: Sequence[_Part], length: int) -> str:
        lines: list[str] = []
        for number, part in enumerate(parts):
            # The parts of an example stand on lines of their own, with a blank line before the next example.
            if self.kind != "examples" or number % 3 == 0:
                lines.append("")
            lines.append(part.label + self._cut(part, length))
        return "\n".join([f"{INSTRUCTION} {HEADINGS[self.kind]}", *lines])

    def _cut(self, part: _Part, length: int) -> str:
        if len(part.ids) <= length:
            return self.encoder.decode(part.ids)
        # A cut inside a character leaves bytes that are no text.
        if part.keeps_end:
            return "…" + self.encoder.decode(part.ids[-length:]).lstrip("\ufffd")
        return self.encoder.decode(part.ids[:length]).rstrip("\ufffd") + "…"

    def _read(self, text: str) -> list[int]:
        """Return the ids of a text that spell all that is kept of it: some tokenizers cannot write every text."""
        ids = self.encoder.encode_text(text)
        spelt = self.encoder.decode(ids)
        return ids if spelt == text else self.encoder.encode_text(spelt)

    def _refuse(self) -> NoReturn:
        raise ConfigError(
            f"{self.name}: text_tokens is {self.text_tokens}, which does not hold {LEAST_PART} tokens of each part of "
            f"one text of the kind '{self.kind}'; raise text_tokens."
        )


def in_order(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return pairs oldest first where all have a time; equal times, and all others, go by a hash of their texts."""
    times = [time_of(pair) for pair in pairs]
    timed = None not in times
    keys = [(time if timed and time is not None else 0.0, _hash(pair)) for time, pair in zip(times, pairs, strict=True)]
    return [pairs[place] for place in sorted(range(len(pairs)), key=keys.__getitem__)]


def tells_of(one: PreferencePair, other: PreferencePair) -> bool:
    """Return whether one pair, shown beside the other, could tell something of the other's choice.

    So it is where both have a completion or a text of the user in common, the same question, or prompts of which one
    goes on where the other ends: the turns of one conversation hold what was chosen before.
    """
    texts, others = ({pair.chosen, pair.rejected, pair.reference} - {None} for pair in (one, other))
    if texts & others or prompt_text(one.prompt) == prompt_text(other.prompt):
        return True
    shorter, longer = sorted((prompt_messages(one.prompt), prompt_messages(other.prompt)), key=len)
    return longer[: len(shorter)] == shorter


def _hash(pair: PreferencePair) -> str:
    return content_hash([prompt_to_json(pair.prompt), pair.chosen, pair.rejected, pair.reference])
