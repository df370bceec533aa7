"""How a model is asked which of two completions a user prefers: the words of the prompt, both orders, the margin.

Texts of users and datasets are data: a special token written in one reaches the model as its characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import prompt_messages, prompt_text
from rewardgap.policies.base import own_text
from rewardgap.retrieval.catalog import RETRIEVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.policies.chat_models import ChatModel

LABELS = ("First", "Second")
_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


class Comparison(NamedTuple):
    """Two completions of one prompt; the margin is that of `one` over `other`."""

    prompt: Prompt
    one: str
    other: str


def comparison_of(pair: PreferencePair) -> Comparison:
    """Return a pair as a comparison: its margin is that of the chosen completion."""
    return Comparison(pair.prompt, pair.chosen, pair.rejected)


def is_same(left: Comparison, right: Comparison) -> bool:
    """Return whether two comparisons are of the same two completions of one prompt, in either order."""
    return left.prompt == right.prompt and {left.one, left.other} == {right.one, right.other}


class Judgement(NamedTuple):
    """What a model said to both orders of a comparison.

    Attributes:
        forward: ℓ with `one` under the first label, nats.
        backward: ℓ with `one` under the second label, nats.
        mass: probability of the two labels together, the mean of both orders.
        shown: demonstrations in the prompt.
        dropped: demonstrations that were to be shown and did not fit.
    """

    forward: float
    backward: float
    mass: float
    shown: int
    dropped: int

    @property
    def margin(self) -> float:
        """Return ½ (forward - backward), nats: what is left when the pull of a place is taken out."""
        return 0.5 * (self.forward - self.backward)

    @property
    def position_bias(self) -> float:
        """Return ½ (forward + backward), nats: the pull of the first place, whatever stands there."""
        return 0.5 * (self.forward + self.backward)


class PairAsker:
    """Asks a model about pairs, with what a user revealed.

    Args:
        model: who is asked.
        num_demonstrations: at most; None for all that fit.
        retriever: name in the catalogue: which of them, most useful first.
        labels: names of the two places, a token each.
        max_prompt_size: the longest prompt, in the model's unit; what the model allows unless given.
        prompt_template: the instruction around each prompt's own text, left out where prompts are compared.
        seed: for retrievers that draw.

    Raises:
        ConfigError: if a value is out of range.
        UnknownNameError: if there is no such retriever.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        num_demonstrations: int | None = None,
        retriever: str = "recent",
        labels: tuple[str, str] = LABELS,
        max_prompt_size: int | None = None,
        prompt_template: str | None = None,
        seed: int = 0,
    ) -> None:
        if num_demonstrations is not None and num_demonstrations < 0:
            raise ConfigError(f"num_demonstrations must be at least 0, got {num_demonstrations}.")
        if max_prompt_size is not None and max_prompt_size < 1:
            raise ConfigError(f"max_prompt_size must be at least 1, got {max_prompt_size}.")
        words = [label for label in labels if isinstance(label, str) and label.strip() == label != ""]
        if len(labels) != 2 or len(set(words)) != 2:
            raise ConfigError(f"labels are {labels!r}; expected two different words without blanks around them.")
        self.model = model
        self.num_demonstrations = num_demonstrations
        self.retriever = RETRIEVERS[retriever].build()
        self.labels = (words[0], words[1])
        self.max_prompt_size = max_prompt_size
        self.prompt_template = prompt_template
        self.seed = seed

    def ask(
        self, comparisons: Sequence[Comparison], pairs: Sequence[PreferencePair], persona: str = ""
    ) -> list[Judgement]:
        """Ask about comparisons of one user, each in both orders.

        Args:
            comparisons: N prompts with two completions.
            pairs: what the user revealed, oldest first; a comparison never shows itself.
            persona: what is known of the user; left out where empty.

        Raises:
            DataError: if a comparison does not fit even without demonstrations.
        """
        asked = [self.prompts(comparison, pairs, persona) for comparison in comparisons]
        scores = self.model.label_scores([prompt for orders, _, _ in asked for prompt in orders], self.labels)
        return [
            Judgement(forward.difference, backward.difference, 0.5 * (forward.mass + backward.mass), shown, dropped)
            for forward, backward, (_, shown, dropped) in zip(scores[::2], scores[1::2], asked, strict=True)
        ]

    def limit(self, new_tokens: int) -> int:
        """Return the longest prompt, in the model's unit, beside an answer of `new_tokens`."""
        allowed = self.model.room(new_tokens)
        return allowed if self.max_prompt_size is None else min(allowed, self.max_prompt_size)

    def select(self, comparison: Comparison, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
        """Return the pairs to show, most useful first, the comparison itself left out."""
        others = [pair for pair in pairs if not is_same(comparison_of(pair), comparison)]
        texts = [own_text(pair.prompt, self.prompt_template) for pair in others]
        query = own_text(comparison.prompt, self.prompt_template)
        order = self.retriever.order(query, texts, seed=self.seed) if texts else []
        return [others[index] for index in order[: self.num_demonstrations]]

    def words(
        self, prompt: Prompt, first: str, second: str, persona: str, demonstrations: Sequence[PreferencePair]
    ) -> str:
        """Return the words of one question, as one user turn."""
        return judge_prompt(prompt, first, second, persona, demonstrations, self.labels)

    def prompts(
        self, comparison: Comparison, pairs: Sequence[PreferencePair], persona: str = "", new_tokens: int = 1
    ) -> tuple[tuple[Prompt, Prompt], int, int]:
        """Return both orders of a comparison with as many demonstrations as fit, the most useful ones last.

        Args:
            comparison: what is asked about.
            pairs: what the user revealed, oldest first.
            persona: what is known of the user.
            new_tokens: tokens that the answer may take.

        Returns:
            The two prompts, how many demonstrations they show, and how many did not fit.

        Raises:
            DataError: if the comparison does not fit even without demonstrations.
        """
        chosen = self.select(comparison, pairs)

        def orders(shown: int) -> tuple[Prompt, Prompt]:
            prompt, one, other = comparison
            last = chosen[:shown][::-1]
            return self.words(prompt, one, other, persona, last), self.words(prompt, other, one, persona, last)

        limit = self.limit(new_tokens)
        shown = most_that_fit(len(chosen), lambda count: max(map(self.model.size, orders(count))) <= limit)
        if shown is None:
            raise DataError(
                f"a pair to be judged is {max(map(self.model.size, orders(0)))} long in its prompt, {self.model.name} "
                f"takes {limit}: '{prompt_text(comparison.prompt)[:60]}'. Raise max_prompt_size, or leave the pair out."
            )
        return orders(shown), shown, len(chosen) - shown


def most_that_fit(count: int, fits: Callable[[int], bool]) -> int | None:
    """Return the largest number up to `count` that fits; None where even 0 does not. Fewer always take less room.

    Example:
        >>> most_that_fit(9, lambda n: n <= 5)
        5
    """
    if fits(count):
        return count
    if count == 0 or not fits(0):
        return None
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def judge_prompt(
    prompt: Prompt,
    first: str,
    second: str,
    persona: str = "",
    demonstrations: Sequence[PreferencePair] = (),
    labels: tuple[str, str] = LABELS,
) -> str:
    """Return the words that ask which of two completions a user prefers, as one user turn.

    What does not change between queries comes first, so that it is read once.
    """
    a, b = labels
    parts = ["You are shown two answers to a question. Decide which of them one particular user prefers."]
    if persona:
        parts.append(f"What is known about the user: {persona}")
    if demonstrations:
        parts.append("Choices this user made before:")
        parts += [shown_pair(pair.prompt, pair.chosen, pair.rejected) for pair in demonstrations]
        parts.append("The question to decide:")
    parts.append(f"Question: {shown_prompt(prompt)}\n{a}: {first}\n{b}: {second}")
    parts.append(f"Which answer does the user prefer, {a} or {b}? Reply with that one word.")
    return "\n\n".join(parts)


def shown_pair(prompt: Prompt, preferred: str, rejected: str) -> str:
    """Return a pair as an example; one without a rejected text shows what the user wrote, and no choice."""
    text = f"Question: {shown_prompt(prompt)}\nPreferred: {preferred}"
    return f"{text}\nNot preferred: {rejected}" if rejected.strip() else text


def shown_prompt(prompt: Prompt) -> str:
    """Return a prompt as text: one user turn as it is, a conversation with the name of the speaker before each turn."""
    messages = prompt_messages(prompt)
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n".join(f"{_ROLES[message.role]}: {message.content}" for message in messages)
