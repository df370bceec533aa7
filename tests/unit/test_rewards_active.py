"""Questions to a new user: the greedy rule, what an interview may not do, and what it gains over asking at random."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewardgap.core.errors import DataError, ShapeError
from rewardgap.rewards.active import DOptimal, ask, next_question
from rewardgap.rewards.heads import MPU, PReF
from worlds import planted_world


def identity_head(rank, ridge):
    """Return a PReF head whose base rewards are the features themselves, and whose users are N(0, I/ridge)."""
    head = PReF(rank=rank)
    head.build(rank, ["nobody"], dtype=torch.float64)
    head.basis = torch.eye(rank, dtype=torch.float64)
    head.weights = torch.zeros(1, rank, dtype=torch.float64)
    head.precision = ridge * torch.eye(rank, dtype=torch.float64)
    return head


def interview_of(rows, prompts=None, ridge=0.1):
    rows = np.asarray(rows, dtype=np.float64)
    return DOptimal(
        identity_head(rows.shape[1], ridge),
        rows,
        np.zeros_like(rows),
        [f"p{row}" for row in range(len(rows))] if prompts is None else prompts,
    )


class AtRandom:
    """The same user model, asked anything."""

    def __init__(self, interview, seed):
        self.interview, self.rng = interview, np.random.default_rng(seed)
        self.prompts = interview.prompts

    def gains(self, answers):
        return self.rng.random(len(self.prompts))

    def state(self, answers):
        return self.interview.state(answers)


def test_each_question_raises_the_log_determinant_most():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 4)) * [2, 1, 0.5, 0.3]
    truth, interview, answers = rng.normal(size=4), interview_of(rows), {}
    for _ in range(8):
        belief = interview.belief(answers)
        values = []
        for row in rows:
            variance = 1 / ((1 + np.exp(row @ belief.mean)) * (1 + np.exp(-(row @ belief.mean))))
            values.append(np.linalg.slogdet(belief.precision + variance * np.outer(row, row))[1])
        free = [row for row in range(30) if row not in answers]
        best = free[int(np.argmax(np.array(values)[free]))]
        assert next_question(interview, answers) == best
        answers[best] = float(rows[best] @ truth > 0)


def test_ten_answers_asked_well_are_worth_more_than_at_random():
    # 400 pairs whose base rewards spread by (2, 1.5, 1, .6, .4, .3); users of length 3 who choose with noise.
    gained = []
    for run in range(24):
        rng = np.random.default_rng(run)
        truth = rng.normal(size=6)
        truth *= 3 / np.linalg.norm(truth)
        rows = rng.normal(size=(400, 6)) * [2, 1.5, 1, 0.6, 0.4, 0.3]
        luck = rng.random(400)
        well = interview_of(rows)

        def oracle(row, rows=rows, truth=truth, luck=luck):
            return float(luck[row] < 1 / (1 + np.exp(-rows[row] @ truth)))

        cosines = []
        for interview in (well, AtRandom(well, run)):
            answers = {}
            for more in (10, 10):
                answers = ask(interview, oracle, more, answers)
                weights = interview.state(answers).values["weights"].numpy()
                cosines.append(weights @ truth / (3 * np.linalg.norm(weights)))
        gained.append([cosines[0] - cosines[2], cosines[1] - cosines[3], cosines[1]])
    after_ten, after_twenty, reached = np.mean(gained, axis=0)
    error = np.std(gained, axis=0, ddof=1) / np.sqrt(len(gained))
    assert reached > 0.83
    assert after_ten - 2 * error[0] > 0.02
    assert after_twenty - 2 * error[1] > 0.04


def test_the_state_is_what_adapt_gives_for_the_answers():
    world = planted_world("sphere", 3, num_seen=10, num_unseen=2, train=15, support=8, test=12, width=6)
    pool, support = world.test[world.unseen[0]], world.support[world.unseen[0]]
    for head in (PReF(rank=2), MPU(), MPU(init="global")):
        head.fit(world.train.chosen, world.train.rejected, world.user)
        interview = DOptimal(
            head, pool.chosen, pool.rejected, list("abcdefghijkl"), chosen=support.chosen, rejected=support.rejected
        )
        answers = ask(interview, lambda row: float(row % 2), 5)
        rows = list(answers)
        first = (np.array(rows) % 2 == 1)[:, None]
        expected = head.adapt(
            np.concatenate([support.chosen, np.where(first, pool.chosen[rows], pool.rejected[rows])]),
            np.concatenate([support.rejected, np.where(first, pool.rejected[rows], pool.chosen[rows])]),
        )
        state = interview.state(answers)
        assert state.num_support == expected.num_support == 13
        torch.testing.assert_close(state.values, expected.values, atol=1e-9, rtol=0)
        assert DOptimal(head, pool.chosen, pool.rejected, list("abcdefghijkl")).state({}) == head.adapt([], [])


def test_nothing_is_drawn_and_the_order_of_answers_means_nothing():
    rows = np.random.default_rng(0).normal(size=(20, 3))
    conversations = [ask(interview_of(rows), lambda row: float(row % 3 == 0), 6) for _ in range(2)]
    assert list(conversations[0].items()) == list(conversations[1].items())
    backwards = dict(reversed(conversations[0].items()))
    interview = interview_of(rows)
    torch.testing.assert_close(
        interview.state(conversations[0]).values, interview.state(backwards).values, atol=1e-10, rtol=0
    )
    np.testing.assert_allclose(interview.gains(conversations[0]), interview.gains(backwards), atol=1e-10)
    # Going on is the same as never having stopped.
    part = ask(interview, lambda row: float(row % 3 == 0), 4)
    assert ask(interview, lambda row: float(row % 3 == 0), 2, part) == conversations[0]
    assert len(part) == 4


def test_no_prompt_is_asked_twice_and_ties_go_to_the_first():
    rows = np.array([[3.0, 0], [2.9, 0], [0, 1.0], [0, 1.0], [0.1, 0]])
    interview = interview_of(rows, ["a", "a", "b", "c", "c"])
    assert list(ask(interview, lambda row: 0.5, 3)) == [0, 2, 3]
    with pytest.raises(DataError, match="all 3 prompts of a pool of 5 questions were asked"):
        ask(interview, lambda row: 0.5, 4)


def test_a_question_that_is_answered_is_worth_less_when_asked_again():
    interview = interview_of([[1.0, 0.0], [0.0, 0.8]])
    before = interview.gains({})
    for answer in (0.0, 0.5, 1.0):
        after = interview.gains({0: answer})
        assert after[0] < before[0]
        assert after[1] == pytest.approx(before[1])


def test_misuse_is_one_sentence():
    interview = interview_of(np.eye(3))
    with pytest.raises(DataError, match="the answer to question 0 is 2"):
        ask(interview, lambda row: 2.0, 1)
    with pytest.raises(DataError, match="the answer to question 0 is nan"):
        ask(interview, lambda row: float("nan"), 1)
    for row in (3, -1):
        with pytest.raises(DataError, match=f"an answer is to question {row}; the pool has questions 0 to 2"):
            interview.gains({row: 1.0})
    with pytest.raises(ShapeError, match="prompts has 2 entries for 3 questions"):
        interview_of(np.eye(3), ["a", "b"])
    with pytest.raises(ShapeError, match="both chosen and rejected, or neither"):
        DOptimal(identity_head(2, 1.0), np.eye(2), np.eye(2), ["a", "b"], chosen=np.eye(2))

    class Broken:
        prompts = ("a", "b")

        def gains(self, answers):
            return np.array([1.0, np.nan])

    with pytest.raises(DataError, match="gain of a question is not finite"):
        next_question(Broken(), {})
    assert next_question(Broken(), {1: 0.5}) == 0
