"""Best-of-N by a judge: the reward models' own pool, a verdict that no place sways, and the cost of asking."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from test_judges import SHOWN, chat_backbone

from rewardgap.backbones.endpoint import LabelScore
from rewardgap.core.errors import ConfigError, NotScorableError
from rewardgap.core.records import Message, PreferencePair
from rewardgap.core.seeds import child_seed
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.plain import Sample
from rewardgap.policies.base import GenerationSettings, complete
from rewardgap.policies.chat_models import LocalChat
from rewardgap.policies.guided import Guided
from rewardgap.policies.icl_judge import IclJudge
from rewardgap.policies.judged import Judged, judged
from rewardgap.policies.zero_shot import ZeroShot
from rewardgap.rewards.guide import PrefixGuide
from standins import text_backbone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import Prompt

PROMPTS = ("what is the river", (Message("system", "Be kind."), Message("user", "a\ncolour")), "winter", "a")
SEEDS = (5, 7, 11, 2**62 + 5)
SETTINGS = GenerationSettings(max_new_tokens=5, min_new_tokens=1)
ASKED = re.compile(r"First: (.*)\nSecond: (.*)\n\nWhich answer does the user prefer", re.DOTALL)


class Taste:
    """A model one can ask, whose taste is known: the log-odds of the first place are a difference of worths, and a bias.

    Args:
        worth: text -> worth, nats.
        bias: how much it is drawn to the first place, nats.
    """

    name = fingerprint = "taste"

    def __init__(self, worth: Callable[[str], float], bias: float = 0.0) -> None:
        self.worth, self.bias = worth, bias
        self.tokens, self.forwards = 0, 0
        self.asked: list[tuple[str, str]] = []

    def room(self, new_tokens: int) -> int:
        return 100_000

    def size(self, prompt: Prompt) -> int:
        return len(str(prompt))

    def label_scores(self, prompts: Sequence[Prompt], labels: tuple[str, str]) -> list[LabelScore]:
        pairs = [match.groups() for prompt in prompts if (match := ASKED.search(str(prompt)))]
        assert len(pairs) == len(prompts)
        self.asked += pairs
        self.forwards += 1
        self.tokens += 10 * len(prompts)
        return [LabelScore(self.worth(first) - self.worth(second) + self.bias, 1.0) for first, second in pairs]


class KnownReward:
    """A reward model that gives a text its worth, of whatever kind it is read."""

    name = "known"

    def __init__(self, backbone: Backbone, worth: Callable[[str], float]) -> None:
        self.encoder, self.worth = backbone.encoder, worth

    def guide(self, policy: Any, prompts: Sequence[Prompt], prompt_ids: Any, states: Any, room: int) -> PrefixGuide:
        def value(_: int, tokens: tuple[int, ...]) -> float:
            return self.worth(complete(self.encoder.decode(tokens), False))

        return PrefixGuide(value, len(prompts))

    def sessions(self, *_: Any) -> list[Any]:
        return []


def worth(text: str) -> float:
    """Return a number that differs from text to text."""
    return float(sum((place + 1) * ord(letter) for place, letter in enumerate(text)) % 9973) / 100


def picked_by_reward(decoder: BestOfN, rows: Sequence[int] = range(4)) -> list[tuple[int, ...]]:
    backbone = text_backbone()
    policy = Guided(backbone, decoder, SETTINGS, reward=KnownReward(backbone, worth), state="anyone")  # type: ignore[arg-type]
    run = policy.open([PROMPTS[row] for row in rows], seeds=[SEEDS[row] for row in rows])
    return [written.ids for written in run.generate()]


def open_judged(decoder: BestOfN, model: Taste | LocalChat, rows: Sequence[int] = range(4), **settings: Any) -> Any:
    judge = IclJudge(model)  # type: ignore[arg-type]
    policy = Judged(text_backbone(), decoder, SETTINGS, judge=judge, state=judge.adapt(SHOWN[:2]), **settings)
    return policy.open([PROMPTS[row] for row in rows], seeds=[SEEDS[row] for row in rows])


@pytest.mark.parametrize("tournament", ["round_robin", "knockout", None])
@pytest.mark.parametrize("pool_seed", [None, 3])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.8}])
def test_a_judge_of_one_taste_with_a_reward_model_picks_the_same_text(
    tournament: Any, pool_seed: int | None, sampling: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the texts are those of best-of-N, and the best of them wins."""
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path))
    given = {**sampling, "pool_seed": pool_seed}
    run = open_judged(BestOfN(6, tournament=tournament, **given), model := Taste(worth))
    written = run.generate()
    assert [text.ids for text in written] == picked_by_reward(BestOfN(6, **given))
    assert len({text.text for text in written}) > 1
    for text in written:
        assert (text.proposed, text.accepted, text.ties) == (6, 1, 0)
        assert text.distinct is not None
        pairs = text.distinct * (text.distinct - 1) // 2
        assert text.questions == pairs if tournament != "knockout" else text.questions <= min(5, pairs)
    questions = sum(text.questions for text in written)
    assert len(model.asked) == 2 * questions
    assert set(model.asked) == {(b, a) for a, b in model.asked}
    assert run.guide_cost == (model.forwards, 20 * questions)
    assert run.tokens == run.session.tokens + 20 * questions
    assert len(list((tmp_path / "pools").rglob("*.safetensors"))) == (0 if pool_seed is None else 4)


def test_judges_and_reward_models_choose_from_one_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second draws nothing; the texts asked about are those that lie in the pool."""
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path))
    expected = picked_by_reward(BestOfN(5, pool_seed=0))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    run = open_judged(BestOfN(5, pool_seed=0), Taste(worth))
    prompt_tokens = run.session.tokens
    assert [text.ids for text in run.generate()] == expected
    assert run.session.tokens == prompt_tokens
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == files


@pytest.mark.parametrize("rows", [[2], [3, 0], [1, 1, 2]])
def test_a_rows_winner_does_not_depend_on_its_batch(rows: list[int]) -> None:
    alone = [open_judged(BestOfN(6), Taste(worth), [row]).generate()[0] for row in rows]
    assert open_judged(BestOfN(6), Taste(worth), rows).generate() == alone


@pytest.mark.parametrize("tournament", ["round_robin", "knockout"])
def test_a_judge_that_always_says_first_ties_every_pair(tournament: Any) -> None:
    """The place wins nothing: each text is first once. What is left is the tie, and of a tie the first drawn."""
    written = open_judged(BestOfN(6, tournament=tournament), Taste(lambda _: 0.0, bias=5.0)).generate()
    assert all(text.ties == text.questions == text.near_ties > 0 for text in written)
    first = ZeroShot(text_backbone(), Sample(), SETTINGS).open(PROMPTS, seeds=SEEDS).generate()
    assert [text.ids for text in written] == [text.ids for text in first]
    # A pull of the place that drowns the taste in every single answer changes no winner.
    drawn = open_judged(BestOfN(6, tournament=tournament), Taste(worth, bias=1e4)).generate()
    assert [text.ids for text in drawn] == picked_by_reward(BestOfN(6))


def test_the_winner_of_a_real_judge_is_that_of_its_margins() -> None:
    """A tiny network judges; the tournament is that of the margins that it ranks pairs by."""
    backbone = chat_backbone()
    judge = IclJudge(LocalChat(backbone))
    state = judge.adapt(SHOWN[:2])
    policy = judged(backbone, judge, state, n=4, settings=SETTINGS)
    run = policy.open(["Why?"], seeds=[3])
    (found,) = run.generate()
    assert run.guide_cost[0] > 0
    streams = [open_one(backbone, j) for j in range(4)]
    pairs = [
        PreferencePair(user_id="u", example_id=f"{i}-{j}", prompt="Why?", chosen=a, rejected=b)
        for i, a in enumerate(streams)
        for j, b in enumerate(streams)
    ]
    wins = judge.margins(pairs, [state] * 16).reshape(4, 4)
    wins[np.equal.outer(streams, streams)] = 0.0
    points = ((wins > 0) + 0.5 * (wins == 0)).sum(1)
    assert found.text == streams[int(points.argmax())]
    assert len(set(streams)) > 2


def open_one(backbone: Backbone, stream: int) -> str:
    """Return text number `stream` of the row with seed 3, sampled by itself."""
    seed = child_seed(3, "chain", stream) if stream else 3
    return ZeroShot(backbone, Sample(), SETTINGS).open(["Why?"], seeds=[seed]).generate()[0].text


def test_a_text_that_is_alone_wins_without_a_question() -> None:
    run = open_judged(BestOfN(1), model := Taste(worth))
    assert [(text.questions, text.ties, text.proposed) for text in run.generate()] == [(0, 0, 1)] * 4
    assert model.asked == []


def test_a_watcher_sees_the_winner_token_by_token() -> None:
    seen: list[tuple[int, int]] = []
    written = open_judged(BestOfN(3), Taste(worth)).generate(watch=lambda row, done: seen.append((row, done.steps)))
    lengths = [len(text.ids) + int(text.ended and len(text.ids) < 5) for text in written]
    assert seen == [(row, step + 1) for row, length in enumerate(lengths) for step in range(length)]


def test_given_texts_have_no_score() -> None:
    run = open_judged(BestOfN(2), Taste(worth))
    assert not run.policy.scorable
    with pytest.raises(NotScorableError, match="icl_judge rewards no token, so there is no policy accuracy"):
        run.scores([["red"]] * 4)


def test_what_does_not_go_with_who_picks_is_one_sentence() -> None:
    backbone, judge = text_backbone(), IclJudge(Taste(worth))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'args_greedy' needs rewards, and icl_judge compares whole texts; use best"):
        Judged(backbone, ArgsGreedy(), judge=judge)
    for option, value in (("soft", True), ("log_prob_weight", 0.5), ("guidance_weight", -1.0)):
        with pytest.raises(ConfigError, match=f"best_of_n: {option} weighs rewards, and a judge has none"):
            Judged(backbone, BestOfN(4, **{option: value}), judge=judge)
    with pytest.raises(ConfigError, match="tournament 'knockout' is how a judge picks"):
        Guided(backbone, BestOfN(4, tournament="knockout"), reward=KnownReward(backbone, worth))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tournament is 'league'; known: round_robin, knockout"):
        judged(backbone, judge, tournament="league")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a state of its own, got a NoneType"):
        judged(backbone, judge, n=3, settings=SETTINGS).generate(["Why?"])
