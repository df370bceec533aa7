"""Writing a persona: a model says in a few sentences what a user likes, and held-out pairs choose among its draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.seeds import child_seed
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.policies.asking import comparison_of, is_same, most_that_fit, shown_pair
from rewardgap.policies.judge_states import Persona, TriedPersona
from rewardgap.rewards.base import meaning
from rewardgap.rewards.fitting import check_count, check_positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.records import PreferencePair
    from rewardgap.policies.asking import Comparison, PairAsker

DEMONSTRATIONS = 4
DEVIATIONS = (
    "The persona is written straight from the labelled pairs; the peer first collects reasoning traces whose verdict "
    "was right and writes from those.",
    "The instruction to the writer is fixed; the peer optimises it on training users.",
    "Candidates are draws of a persona for fixed demonstrations; the peer searches over sets of demonstrations.",
    "The newer 30 % of the support chooses among the draws, and the empty persona competes; ties count one half and go "
    "to the larger mean margin.",
    "A verdict is the difference of two logits, averaged over both orders; the peer lets the model reason and write a "
    "word.",
)


@dataclass(frozen=True)
class PersonaSettings:
    """How personas are written and chosen.

    Raises:
        ConfigError: if a value is out of range.
    """

    num_personas: int = field(default=3, metadata=meaning("personas drawn for a user; the empty one competes too"))
    persona_tokens: int = field(default=96, metadata=meaning("tokens of a persona, at most"))
    temperature: float = field(default=0.7, metadata=meaning("of the draws, above 0"))
    write_share: float = field(
        default=0.7, metadata=meaning("share of the support, the older part, that personas are written from")
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_count("persona", num_personas=self.num_personas, persona_tokens=self.persona_tokens)
        check_positive("persona", temperature=self.temperature)
        if not 0 < self.write_share < 1:
            raise ConfigError(f"persona: write_share is {self.write_share}; expected a share between 0 and 1.")


class PersonaWriter:
    """Writes personas from the older part of a support set and keeps the one that judges the newer part best.

    A persona is judged by the accuracy of a judge that has it in its prompt, behind pairs of the older part; then by
    the mean margin; then the earlier one wins. The empty persona stands first, so one that helps with nothing is not
    kept. With one pair, nothing is held out: a single draw is taken, unverified; so too where the newer part holds no
    pair with a choice that the older part does not hold already. With no pair, the persona is empty.

    Args:
        asker: who writes and judges; its demonstrations are those of the verification.
        settings: numbers and shares.
        seed: of the draws, which depend on it and the user id alone.
        shows_references: write from what users wrote rather than from what they chose, where the data have it.
    """

    def __init__(
        self, asker: PairAsker, settings: PersonaSettings, *, seed: int = 0, shows_references: bool = False
    ) -> None:
        self.asker, self.settings = asker, settings
        self.seed, self.shows_references = seed, shows_references

    def write(self, support: Sequence[PreferencePair]) -> Persona:
        """Return the persona of a user who revealed these pairs, oldest first; changes nothing.

        Raises:
            DataError: if not even one pair fits the writer's context.
        """
        if not support:
            return Persona()
        cut = self._cut(len(support))
        source = support[:cut]
        # A pair without a rejected text tells what the user wrote, and no choice that a judge could find. A copy of a
        # pair that the persona is written from would verify nothing.
        known = [comparison_of(pair) for pair in source]
        choices = [comparison_of(pair) for pair in support[cut:] if pair.rejected.strip()]
        held_out = [choice for choice in choices if not any(is_same(choice, other) for other in known)]
        prompt, used = self._prompt(source)
        draws = self.settings.num_personas if held_out else 1
        seeds = [child_seed(self.seed, "persona", support[0].user_id, draw) for draw in range(draws)]
        texts = self.asker.model.write(
            [prompt] * draws,
            max_tokens=self.settings.persona_tokens,
            temperature=self.settings.temperature,
            seeds=seeds,
        )
        candidates = ["", *(" ".join(text.split()) for text in texts)]
        if held_out:
            tried = tuple(self._try(text, source, held_out) for text in candidates)
            winner = max(range(len(tried)), key=lambda i: (*_score(tried[i]), -i))
        else:
            tried, winner = tuple(TriedPersona(text) for text in candidates), 1
        return Persona(tried, winner, used, len(held_out), len(source) - used)

    def _cut(self, count: int) -> int:
        """Return how many pairs are written from: the share, rounded down, but at least one."""
        return max(1, math.floor(self.settings.write_share * count + 1e-9))

    def _prompt(self, source: Sequence[PreferencePair]) -> tuple[str, int]:
        """Return the words that ask for a persona, and how many of the newest pairs they show."""
        model = self.asker.model
        room = self.asker.limit(self.settings.persona_tokens)

        def words(count: int) -> str:
            shown = source[len(source) - count :]
            return persona_prompt([self._example(pair) for pair in shown])

        used = most_that_fit(len(source), lambda count: model.size(words(count)) <= room)
        if not used:
            pair = source[-1]
            raise DataError(
                f"no pair of user '{pair.user_id}' fits the prompt that asks {model.name} for a persona: example "
                f"'{pair.example_id}' takes {model.size(words(1))} of {room}. Use a model with a longer context."
            )
        return words(used), used

    def _example(self, pair: PreferencePair) -> str:
        return shown_pair(pair.prompt, pair.demonstration if self.shows_references else pair.chosen, pair.rejected)

    def _try(self, text: str, source: Sequence[PreferencePair], held_out: Sequence[Comparison]) -> TriedPersona:
        margins = [judgement.margin for judgement in self.asker.ask(held_out, source, text)]
        return TriedPersona(text, float(pair_accuracy(margins).mean()), float(np.mean(margins)))


def _score(tried: TriedPersona) -> tuple[float, float]:
    assert tried.accuracy is not None
    assert tried.margin is not None
    return tried.accuracy, tried.margin


def persona_prompt(examples: Sequence[str]) -> str:
    """Return the words that ask for a persona, as one user turn."""
    return "\n\n".join(
        [
            "Here are answers to questions, with what one particular user preferred.",
            *examples,
            "Describe in two or three sentences what this user likes and dislikes in an answer: its length, tone, form "
            "and content. Do not repeat the examples.",
        ]
    )
