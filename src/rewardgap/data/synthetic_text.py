"""A control with a known truth: users with a utility over words, who write exactly what theory says they should.

The base policy π is a fixed bigram model over twelve words. A user's utility of a text is the sum of the words' values,
which come from three latent tastes; the reference is sampled exactly from π(y) exp(u(y)/β) / Z. So an oracle reward,
oracle token values and an oracle judge exist, and every stage of the evaluation has a known answer.

One raw row::

    {"user_id": "s07", "prompt": "river garden", "chosen": "stone light music", "rejected": "paper winter",
     "reference": "light light stone"}
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import PreferencePair
from rewardgap.core.seeds import child_seed
from rewardgap.data.base import DatasetCard, PreferenceDataset
from rewardgap.data.collecting import check_choice, content_id
from rewardgap.numerics.bigram import BigramTable, FloatArray, sample, tilt
from rewardgap.numerics.control_world import WORDS, control_table

Mixture: TypeAlias = Literal["simplex", "signed"]
Label: TypeAlias = Literal["utility", "bradley_terry"]
NUM_TASTES = 3
TIE = 1e-9
MAX_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class SyntheticTextTruth:
    """Everything that is known about the users of `synthetic_text`.

    Args:
        table: the base policy π.
        user_ids: (U,) in order.
        tastes: (3, W) word values of each latent taste, mean 0 and variance 1 over words.
        weights: (U, 3) how much of each taste a user has.
        beta: temperature of the references.
        max_length: most words of a completion; the fewest is 1.
    """

    table: BigramTable
    user_ids: tuple[str, ...]
    tastes: FloatArray
    weights: FloatArray
    beta: float
    max_length: int

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.user_ids)}

    def token_utilities(self, user_id: str) -> FloatArray:
        """Return (V,): the value of each word to a user, then 0 for the end token.

        Raises:
            DataError: if there is no such user.
        """
        if user_id not in self._rows:
            raise DataError(f"synthetic_text has no user '{user_id}'; it has {self.user_ids[0]}..{self.user_ids[-1]}.")
        return np.append(self.weights[self._rows[user_id]] @ self.tastes, 0.0)

    def utility(self, user_id: str, completion: str) -> float:
        """Return u(y) = Σ_t v[y_t]; a word outside the vocabulary is worth 0."""
        values = dict(zip(self.table.words, self.token_utilities(user_id).tolist(), strict=False))
        return float(sum(values.get(word, 0.0) for word in completion.split()))

    @cached_property
    def base_law(self) -> FloatArray:
        """Return (T, V, V): the steps of π."""
        return self.table.law(self.max_length)

    def user_law(self, user_id: str, beta: float | None = None) -> FloatArray:
        """Return (T, V, V): the steps of π exp(u/β) / Z; β is the references' unless given."""
        return tilt(self.base_law, self.token_utilities(user_id), self.beta if beta is None else beta)


def truth(
    seed: int = 0,
    users: int = 48,
    *,
    mixture: Mixture = "simplex",
    agreement: float = 0.0,
    beta: float = 1.0,
    max_length: int = 6,
) -> SyntheticTextTruth:
    """Return the truth behind `load_synthetic_text` with the same options.

    Args:
        seed: decides tastes and users, never the policy; user i is the same whatever the number of users.
        users: how many.
        mixture: "simplex" (weights from a Dirichlet, 0.3 each) or "signed" (a random direction, opposite tastes exist).
        agreement: how alike users' tastes are: 0 for users drawn independently, 1 for one taste of all.
        beta: temperature of the references, above 0; small is eager.
        max_length: most words of a completion.

    Raises:
        ConfigError: if an option is out of range.
    """
    check_choice("mixture", mixture, get_args(Mixture))
    for option, value in (("users", users), ("max_length", max_length), ("beta", beta)):
        if not value > 0:
            raise ConfigError(f"synthetic_text option {option} is {value}, expected a number above 0.")
    _check_share("agreement", agreement, 1.0)
    table = control_table()
    tastes = np.random.default_rng(child_seed(seed, "synthetic_text", "tastes")).standard_normal(
        (NUM_TASTES, len(WORDS))
    )
    # Mean 0 over words, so that a longer text is not better as such.
    tastes = (tastes - tastes.mean(axis=1, keepdims=True)) / tastes.std(axis=1, keepdims=True)
    weights = np.stack([_weights(mixture, child_seed(seed, "synthetic_text", "user", row)) for row in range(users)])
    if agreement:
        shared = _weights(mixture, child_seed(seed, "synthetic_text", "everybody"))
        weights = np.stack([_drawn_together(own, shared, tastes, agreement) for own in weights])
    width = max(2, len(str(users - 1)))
    names = tuple(f"s{row:0{width}d}" for row in range(users))
    return SyntheticTextTruth(table, names, tastes, weights, beta, max_length)


def _weights(mixture: Mixture, seed: int) -> FloatArray:
    """Return (3,): how much of each taste somebody has."""
    rng = np.random.default_rng(seed)
    if mixture == "simplex":
        return rng.dirichlet(np.full(NUM_TASTES, 0.3))
    direction = rng.standard_normal(NUM_TASTES)
    return direction / np.linalg.norm(direction)


def _drawn_together(own: FloatArray, shared: FloatArray, tastes: FloatArray, agreement: float) -> FloatArray:
    """Return (3,): a user's weights moved towards those of everybody, by a share of the way.

    The spread of the word values moves along with them: the mean of two tastes would be weaker than either, and pairs
    would be harder to tell apart for that reason alone.
    """
    moved = (1 - agreement) * own + agreement * shared
    spread = (1 - agreement) * np.std(own @ tastes) + agreement * np.std(shared @ tastes)
    return np.asarray(moved * spread / np.std(moved @ tastes))


def load_synthetic_text(
    *,
    seed: int = 0,
    users: int = 48,
    rows_per_user: int = 24,
    label: Label = "utility",
    mixture: Mixture = "simplex",
    agreement: float = 0.0,
    noise: float = 0.0,
    beta: float = 1.0,
    max_length: int = 6,
    name: str = "synthetic_text",
) -> PreferenceDataset:
    """Draw pairs of π labelled by each user's utility, with references from the user's own law.

    Args:
        seed: decides everything.
        users: how many users.
        rows_per_user: pairs per user, each with another prompt; at most 144.
        label: "utility" (the better one is chosen; ties are drawn again) or "bradley_terry" (with probability σ(Δu)).
        mixture: "simplex" or "signed".
        agreement: how alike users' tastes are, 0 to 1.
        noise: probability that the sides of a pair are exchanged, 0 to 0.5, in every part of a split; nobody who ranks
            by the true utility is right more often than 1 - noise. More noise exchanges the same pairs and others.
        beta: temperature of the references.
        max_length: most words of a completion.
        name: the dataset's name in tables.

    Raises:
        ConfigError: if an option is out of range.
    """
    check_choice("label", label, get_args(Label))
    prompts = len(WORDS) ** 2
    if not 1 <= rows_per_user <= prompts:
        raise ConfigError(f"synthetic_text option rows_per_user is {rows_per_user}, expected 1..{prompts}.")
    _check_share("noise", noise, 0.5)
    known = truth(seed, users, mixture=mixture, agreement=agreement, beta=beta, max_length=max_length)
    pairs = []
    for row, user in enumerate(known.user_ids):
        rng = np.random.default_rng(child_seed(seed, "synthetic_text", "rows", row))
        # Draws of its own, so that the texts are the same at every noise.
        coin = np.random.default_rng(child_seed(seed, "synthetic_text", "noise", row))
        law = known.user_law(user)
        for number in rng.permutation(prompts)[:rows_per_user].tolist():
            prompt = divmod(number, len(WORDS))
            reference = sample(law, prompt[1], rng)
            chosen, rejected = _draw_pair(known, user, prompt[1], label, rng)
            if coin.random() < noise:
                chosen, rejected = rejected, chosen
            pair = PreferencePair(
                user_id=user,
                example_id="",
                prompt=known.table.text(prompt),
                chosen=chosen,
                rejected=rejected,
                reference=known.table.text(reference),
            )
            pairs.append(replace(pair, example_id=content_id(pair)))
    dials = "".join(f", {dial} {value:g}" for dial, value in (("agreement", agreement), ("noise", noise)) if value)
    note = f"Simulated users: utility over {len(WORDS)} words, seed {seed}, beta {beta:g}, labels by {label}{dials}."
    return PreferenceDataset(name, tuple(pairs), notes=(note,), first_line=True)


def _draw_pair(
    known: SyntheticTextTruth, user: str, prompt_last: int, label: Label, rng: np.random.Generator
) -> tuple[str, str]:
    for _ in range(MAX_DRAWS):
        first, second = (known.table.text(sample(known.base_law, prompt_last, rng)) for _ in range(2))
        difference = known.utility(user, first) - known.utility(user, second)
        if abs(difference) <= TIE:
            continue
        probability = float(difference > 0) if label == "utility" else 1 / (1 + np.exp(-difference))
        return (first, second) if rng.random() < probability else (second, first)
    raise ConfigError(f"synthetic_text found no two texts of different utility for user '{user}'; raise max_length.")


def _check_share(option: str, value: float, most: float) -> None:
    if not 0 <= value <= most:
        raise ConfigError(f"synthetic_text option {option} is {value}, expected a number from 0 to {most:g}.")


CARD = DatasetCard(
    name="synthetic_text",
    summary="Control: simulated users with a known utility over words; references sampled from the exact optimum.",
    kind="preference",
    source="generated",
    revision="1",
    licence="Apache-2.0",
    citation="none",
    options={
        "seed": "decides everything (default 0)",
        "users": "how many users (default 48)",
        "rows_per_user": "pairs per user (default 24)",
        "label": "'utility' (no label noise) or 'bradley_terry'",
        "mixture": "'simplex' or 'signed' tastes",
        "agreement": "how alike users' tastes are: 0 drawn independently (default), 1 all the same",
        "noise": "probability that the sides of a pair are exchanged, 0 to 0.5 (default 0)",
        "beta": "temperature of the references (default 1)",
        "max_length": "most words of a completion (default 6)",
        "name": "the dataset's name in tables",
    },
    build=load_synthetic_text,
    notes=("Tastes are three vectors over words; `synthetic_text.truth` returns them.",),
)
