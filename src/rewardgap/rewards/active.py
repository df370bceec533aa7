"""Which pair to ask a new user about next, so that few answers tell most.

    interview = DOptimal(head, left, right, prompts)
    answers = ask(interview, oracle, 10)                       # {row of the pool: preference for the left side}
    state = interview.state(answers)

What a question would tell is the method's: an `Interview` gives a gain for each question of its pool, and the rules of
the conversation (no question and no prompt twice, ties to the first) are the same for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from rewardgap.core.errors import DataError, ShapeError
from rewardgap.numerics.logistic import Gaussian, log_det_gains, posterior

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from rewardgap.rewards.fitting import Features
    from rewardgap.rewards.states import UserState


class GaussianUserHead(Protocol):
    """A linear head whose users are weights with a Gaussian prior."""

    def user_prior(self) -> Gaussian:
        """Return the belief about a user without pairs, over (R,) weights."""
        ...

    def user_rows(self, left: Features, right: Features) -> NDArray[np.float64]:
        """Return the (M, R) rows whose product with weights is r(left) - r(right)."""
        ...

    def user_state(self, weights: NDArray[np.float64], num_support: int) -> UserState:
        """Return the state of a user with these (R,) weights."""
        ...


class Interview(Protocol):
    """A pool of questions, and what each would tell about one user.

    A question is a pair of completions of one prompt; an answer is the preference for its left side, from 0 to 1.
    """

    @property
    def prompts(self) -> Sequence[str]:
        """Return the prompt of each of the M questions, or any name of it."""
        ...

    def gains(self, answers: Mapping[int, float]) -> NDArray[np.float64]:
        """Return (M,) gains in nats, given the answers so far by row of the pool."""
        ...

    def state(self, answers: Mapping[int, float]) -> UserState:
        """Return the user's state given the answers so far."""
        ...


class DOptimal:
    """Questions chosen to shrink the volume of what a user's weights may be.

        gain = log(1 + σ'(ŵᵀv) · vᵀ A⁻¹ v),   A = P + Σ_asked σ'(ŵᵀv_s) v_s v_sᵀ

    ŵ and A are fitted again to all answers for every question; nothing is drawn. The first question is the most
    informative under the prior.

    Args:
        head: a fitted head with Gaussian users, for example PReF.
        left: (M, D) features of the left sides.
        right: (M, D) features of the right sides.
        prompts: (M,) the prompt of each question, or any name of it.
        chosen: (n, D) features of pairs that are known already; none unless given.
        rejected: (n, D) features of their rejected sides.

    Raises:
        ShapeError: if the lengths differ.
        DataError: if a feature is not finite.

    Source: D-optimal design for logistic regression, greedily one question at a time; the setting is that of PReF,
        arXiv 2503.06358. Peer: idanshen/PReF_code, which asks for the largest σ'² · vᵀA⁻¹v under a ridge of 1e-3, and
        its first question at random.
    """

    def __init__(
        self,
        head: GaussianUserHead,
        left: Features,
        right: Features,
        prompts: Sequence[str],
        *,
        chosen: Features | None = None,
        rejected: Features | None = None,
    ) -> None:
        self.head = head
        self.rows = head.user_rows(left, right)
        self.prompts: Sequence[str] = tuple(prompts)
        if len(self.prompts) != len(self.rows):
            raise ShapeError(
                f"prompts has {len(self.prompts)} entries for {len(self.rows)} questions; expected one each."
            )
        if (chosen is None) != (rejected is None):
            raise ShapeError("known pairs have only one side; give both chosen and rejected, or neither.")
        self.known = self.rows[:0] if chosen is None or rejected is None else head.user_rows(chosen, rejected)

    def belief(self, answers: Mapping[int, float]) -> Gaussian:
        """Return N(ŵ, A⁻¹), what is known of the user's weights.

        Raises:
            DataError: if an answer is to no question of the pool, or outside [0, 1].
        """
        for row in answers:
            if not 0 <= row < len(self.rows):
                raise DataError(f"an answer is to question {row}; the pool has questions 0 to {len(self.rows) - 1}.")
        rows = np.concatenate([self.known, self.rows[list(answers)]])
        targets = np.concatenate([np.ones(len(self.known)), np.fromiter(answers.values(), dtype=np.float64)])
        return posterior(rows, self.head.user_prior(), targets)

    def gains(self, answers: Mapping[int, float]) -> NDArray[np.float64]:
        """Return (M,) increases of the log-determinant of A, in nats, of asking each question next."""
        return log_det_gains(self.rows, self.belief(answers))

    def state(self, answers: Mapping[int, float]) -> UserState:
        """Return the user's state: what `adapt` gives for the known pairs and the answers."""
        return self.head.user_state(self.belief(answers).mean, len(self.known) + len(answers))


def next_question(interview: Interview, answers: Mapping[int, float]) -> int:
    """Return the row of the pool to ask next: the largest gain among prompts not asked yet, ties to the first row.

    Args:
        interview: the pool, and what its questions would tell.
        answers: the answers so far, by row of the pool.

    Raises:
        DataError: if every prompt was asked, or a gain is not finite.
    """
    asked = {interview.prompts[row] for row in answers}
    gains = np.asarray(interview.gains(answers), dtype=np.float64)
    free = [row for row, prompt in enumerate(interview.prompts) if prompt not in asked]
    if not free:
        raise DataError(
            f"all {len(asked)} prompts of a pool of {len(interview.prompts)} questions were asked; "
            f"ask fewer, or bring more prompts."
        )
    if not np.isfinite(gains[free]).all():
        raise DataError("the gain of a question is not finite; look at the pool's features.")
    return free[int(np.argmax(gains[free]))]


def ask(
    interview: Interview,
    oracle: Callable[[int], float],
    num_questions: int,
    answers: Mapping[int, float] | None = None,
) -> dict[int, float]:
    """Ask questions one after the other, each chosen in the light of all answers before it.

    Args:
        interview: the pool, and what its questions would tell.
        oracle: answers a row of the pool with the preference for its left side: 1, 0, or one half for neither.
        num_questions: how many more to ask.
        answers: of an earlier conversation, which goes on.

    Returns:
        All answers by row of the pool, in the order they were given.

    Raises:
        DataError: if the prompts run out, or an answer is outside [0, 1].
    """
    given = dict(answers or {})
    for _ in range(num_questions):
        row = next_question(interview, given)
        answer = float(oracle(row))
        if not 0 <= answer <= 1:
            raise DataError(f"the answer to question {row} is {answer}; expected a preference from 0 to 1.")
        given[row] = answer
    return given
