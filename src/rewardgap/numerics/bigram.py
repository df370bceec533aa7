"""A bigram language model small enough to know everything about: exact probabilities, soft values, exact tilting.

Sequences are words chosen one after another until the end token comes, or until `max_length` words are there (then no
end token is drawn). The first `min_length` steps exclude the end token. With additive utility u(y) = Σ_t v[y_t], the
tilted law π(y) exp(u(y)/β) / Z is again a law of single steps, found by one backward recursion:

    V_β(t, w) = β log Σ_v p_t(v | w) exp((v_v + V_β(t + 1, v)) / β),     V_β(max_length, ·) = V_β(·, end) = 0.

A *law* below is an array (T, V, V): log p_t(next | previous). V counts the words and then the end token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rewardgap.core.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatArray: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BigramTable:
    """Log-probabilities of the next token given the previous one.

    Args:
        words: the vocabulary; the end token comes after them.
        log_probs: (V, V) with V = len(words) + 1; row = previous token, column = next token, nats. The end token's own
            row is never used.

    Raises:
        ShapeError: if the shape is another, or a row does not sum to one.
    """

    words: tuple[str, ...]
    log_probs: FloatArray

    def __post_init__(self) -> None:
        """Check shape and normalisation."""
        size = len(self.words) + 1
        if self.log_probs.shape != (size, size):
            raise ShapeError(f"log_probs has shape {self.log_probs.shape}, expected (V, V) = {(size, size)}.")
        sums = np.exp(self.log_probs).sum(axis=1)
        if not np.allclose(sums, 1.0, rtol=0, atol=1e-9):
            row = int(np.argmax(np.abs(sums - 1.0)))
            raise ShapeError(f"row {row} of log_probs sums to {sums[row]:.6g} in probability, expected 1.")

    @property
    def end(self) -> int:
        """Return the index of the end token."""
        return len(self.words)

    def ids(self, text: str) -> list[int]:
        """Return the indices of words separated by blanks.

        Raises:
            ConfigError: if a word is not in the vocabulary.
        """
        index = {word: number for number, word in enumerate(self.words)}
        unknown = [word for word in text.split() if word not in index]
        if unknown:
            raise ConfigError(f"word '{unknown[0]}' is not among the {len(self.words)} words of this bigram table.")
        return [index[word] for word in text.split()]

    def text(self, ids: Sequence[int]) -> str:
        """Return words joined by single blanks."""
        return " ".join(self.words[number] for number in ids)

    def law(self, max_length: int, min_length: int = 1) -> FloatArray:
        """Return (max_length, V, V): the step log-probabilities, without the end token in the first min_length steps.

        Raises:
            ConfigError: unless 0 <= min_length <= max_length and max_length >= 1.
        """
        if not (0 <= min_length <= max_length and max_length >= 1):
            raise ConfigError(f"lengths are {min_length}..{max_length}, expected 0 <= min_length <= max_length >= 1.")
        law = np.repeat(self.log_probs[None], max_length, axis=0)
        with np.errstate(divide="ignore"):
            law[:min_length, :, self.end] = -np.inf
        law[:min_length] -= log_sum_exp(law[:min_length])[..., None]
        return law

    def sample(self, prompt_last: int, rng: np.random.Generator, max_length: int, min_length: int = 1) -> list[int]:
        """Draw the words of one completion after the prompt's last word."""
        return sample(self.law(max_length, min_length), prompt_last, rng)

    def log_prob(self, prompt_last: int, completion: Sequence[int], max_length: int, min_length: int = 1) -> float:
        """Return the log-probability of a completion's words, the end of the text included."""
        return log_prob(self.law(max_length, min_length), prompt_last, completion)


def bigram_table(
    words: Sequence[str], seed: int, concentration: float = 0.6, end_probability: float = 0.15
) -> BigramTable:
    """Return a random table: Dirichlet rows over words, and a constant probability of the end.

    Args:
        words: the vocabulary.
        seed: decides the table.
        concentration: of the Dirichlet; small values make few words likely after each word.
        end_probability: of the end token after any word, in (0, 1).

    Raises:
        ConfigError: if there are fewer than 2 words, words repeat, or a number is out of range.
    """
    if len(words) < 2 or len(set(words)) < len(words):
        raise ConfigError(f"a bigram table needs at least 2 different words, got {list(words)!r}.")
    if concentration <= 0 or not 0 < end_probability < 1:
        raise ConfigError(
            f"concentration {concentration} must be above 0 and end_probability {end_probability} between 0 and 1."
        )
    size = len(words)
    rng = np.random.default_rng(seed)
    # The floor keeps every word possible, so that no log-probability is infinite.
    rows = 0.98 * rng.dirichlet(np.full(size, concentration), size=size + 1) + 0.02 / size
    probabilities = np.concatenate([(1 - end_probability) * rows, np.full((size + 1, 1), end_probability)], axis=1)
    return BigramTable(tuple(words), np.log(probabilities / probabilities.sum(axis=1, keepdims=True)))


def soft_values(law: FloatArray, utilities: FloatArray, beta: float) -> FloatArray:
    """Return V_β(t, w): the soft value of having emitted t tokens, the last of them w.

    Args:
        law: (T, V, V) step log-probabilities.
        utilities: (V,) utility of each token; the end token's entry is normally 0.
        beta: temperature of the tilt, above 0.

    Returns:
        (T + 1, V) in units of utility; row T and column V - 1 (after the end) are 0. log Z after a prompt that ends
        with w is value[0, w] / beta.

    Raises:
        ShapeError: if utilities has another shape.
        ConfigError: unless beta is above 0.
    """
    steps, size, _ = law.shape
    if utilities.shape != (size,):
        raise ShapeError(
            f"utilities has shape {utilities.shape}, expected (V,) = {(size,)}: words, then the end token."
        )
    if not beta > 0:
        raise ConfigError(f"beta is {beta}, expected a number above 0.")
    values = np.zeros((steps + 1, size))
    for step in range(steps - 1, -1, -1):
        values[step] = beta * log_sum_exp(law[step] + (utilities + values[step + 1]) / beta)
        values[step, -1] = 0.0
    return values


def tilt(law: FloatArray, utilities: FloatArray, beta: float) -> FloatArray:
    """Return the law of π(y) exp(u(y)/β) / Z.

        log p*_t(v | w) = log p_t(v | w) + (v_v + V_β(t + 1, v) - V_β(t, w)) / β

    Args and raises as `soft_values`; returns (T, V, V).
    """
    values = soft_values(law, utilities, beta)
    tilted = law + (utilities + values[1:])[:, None, :] / beta - values[:-1, :, None] / beta
    tilted[:, -1, :] = law[:, -1, :]
    return tilted


def sample(law: FloatArray, prompt_last: int, rng: np.random.Generator) -> list[int]:
    """Draw the words of one completion after a prompt whose last word is `prompt_last`."""
    end = law.shape[1] - 1
    words: list[int] = []
    previous = prompt_last
    for step in law:
        following = int(rng.choice(end + 1, p=_probabilities(step[previous])))
        if following == end:
            break
        words.append(following)
        previous = following
    return words


def log_prob(law: FloatArray, prompt_last: int, completion: Sequence[int]) -> float:
    """Return the log-probability of a completion's words; -inf if the law cannot produce it."""
    steps, size, _ = law.shape
    if len(completion) > steps:
        return float("-inf")
    tokens = list(completion) if len(completion) == steps else [*completion, size - 1]
    contexts = [prompt_last, *completion][: len(tokens)]
    return float(
        sum(law[step, context, token] for step, (context, token) in enumerate(zip(contexts, tokens, strict=True)))
    )


def expected_utility(law: FloatArray, utilities: FloatArray) -> FloatArray:
    """Return (V,): the mean utility of a completion after each possible last word of the prompt.

    Args:
        law: (T, V, V) step log-probabilities.
        utilities: (V,) utility of each token.
    """
    probabilities = np.exp(law)
    rest = np.zeros(law.shape[1])
    for step in probabilities[::-1]:
        rest = step @ (utilities + rest)
        rest[-1] = 0.0
    return rest


def log_sum_exp(values: FloatArray) -> FloatArray:
    """Return log Σ exp over the last axis, safe where entries are -inf."""
    top = values.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total: FloatArray = np.log(np.exp(values - top).sum(axis=-1)) + top[..., 0]
    return total


def _probabilities(log_probs: FloatArray) -> FloatArray:
    # numpy's choice wants a sum of one to 1e-8; a sum of logs drifts by rounding only.
    probabilities = np.exp(log_probs)
    normalised: FloatArray = probabilities / probabilities.sum()
    return normalised
