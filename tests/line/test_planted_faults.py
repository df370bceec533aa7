"""Reward models with a planted fault go through a whole study, and the diagnosis names that fault and no other.

The world is the control on synthetic texts, where every user's utility is known, under a policy whose likeliest texts
end, so that there is a length to exaggerate. Nothing is fitted: each reward model is a function of text written down below.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rewardgap.backbones import words
from rewardgap.core.decomposition import QUANTITIES
from rewardgap.core.results import StudyResults
from rewardgap.core.seeds import child_seed
from rewardgap.data import synthetic_text
from rewardgap.numerics.bigram import BigramTable, bigram_table
from rewardgap.numerics.control_world import WORDS
from rewardgap.report.diagnosis import diagnose
from rewardgap.rewards.guide import NodeRewards
from rewardgap.rewards.oracles import ORACLES, ClosingGuide, Oracle
from rewardgap.studies.aggregate import aggregate
from rewardgap.studies.methods import METHODS
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import run_study
from rewardgap.studies.spec import parse_study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rewardgap.core.decomposition import Decomposition
    from rewardgap.data.synthetic_text import SyntheticTextTruth
    from rewardgap.studies.run import Finished

LONGEST = 12
ENDERS = ("stone", "paper", "candle", "copper")
"""Words after which a text mostly ends."""


def noise(user: str, text: str) -> float:
    """A number that has nothing to do with what the user likes, the same whenever the same prefix is asked for."""
    return NormalDist().inv_cdf((child_seed(7, user, text) + 0.5) / 2**63)


class Planted(Oracle):
    """A worth of words in the place of the true utility, whole texts and prefixes alike."""

    def __init__(self, known: SyntheticTextTruth) -> None:
        super().__init__(known)
        self.utility = lambda user, prompt, text: sum(self.values(user)[word] for word in text.split())

    def values(self, user: str) -> dict[str, float]:
        raise NotImplementedError

    def along(self, user: Any, prompt: Any, text: str) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        gained = [self.values(user.user_id)[word] for word in text.split()]
        return tuple(self.known.table.ids(text)), np.append(0.0, np.cumsum(gained))


class TrueUtility(Planted):
    """What the user likes: no fault at all."""

    method = "true_utility"

    def values(self, user: str) -> dict[str, float]:
        return dict(zip(WORDS, self.known.token_utilities(user).tolist(), strict=False))


class OneTaste(Planted):
    """What all users like on average."""

    method = "one_taste"

    def values(self, user: str) -> dict[str, float]:
        return dict(zip(WORDS, (self.known.weights.mean(axis=0) @ self.known.tastes).tolist(), strict=True))


class LongWins(Planted):
    """The more words the better, for everybody."""

    method = "long_wins"

    def values(self, user: str) -> dict[str, float]:
        return dict.fromkeys(WORDS, 1.0)


class NoisyPrefixes(TrueUtility):
    """The true utility of whole texts; of prefixes, noise."""

    method = "noisy_prefixes"

    def along(self, user: Any, prompt: Any, text: str) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        ids, values = super().along(user, prompt, text)
        pieces = text.split()
        cut = [noise(user.user_id, " ".join(pieces[:length])) for length in range(len(pieces))]
        return ids, np.array([*cut, values[-1]])

    def guide(self, policy: Any, prompts: Any, prompt_ids: Any, states: Any, room: int) -> Any:
        return ClosingGuide(lambda row, ids: self.worth(policy.encoder, states[row], ids), len(prompts))

    def node_rewards(
        self, session: Any, tips: Any, prompts: Any, ids: Any, traces: Any, states: Any, cache: Any = None
    ) -> list[list[NodeRewards]]:
        encoder = session.backbone.encoder
        return [[self.nodes(encoder, state, trace) for trace in row] for row, state in zip(traces, states, strict=True)]

    def nodes(self, encoder: Any, state: Any, trace: Any) -> NodeRewards:
        ids = trace.tokens.tolist()
        prefixes = [self.worth(encoder, state, ids[:length]) for length in range(len(ids) + 1)]
        candidates = [
            [self.worth(encoder, state, [*ids[:at], token]) for token in row]
            for at, row in enumerate(trace.candidates.tolist())
        ]
        return NodeRewards(np.array(prefixes), np.array(candidates))

    def worth(self, encoder: Any, state: Any, ids: Any) -> float:
        """The utility where the end token stands behind the text, else noise."""
        if ids and ids[-1] in encoder.end_ids:
            return float(self.utility(state.user_id, "", encoder.decode(ids[:-1])))
        return noise(state.user_id, encoder.decode(ids))


KINDS = (NoisyPrefixes, LongWins, OneTaste, TrueUtility)


def table_that_ends() -> BigramTable:
    """Return a policy whose likeliest text is a few words long, so that there is a length to be exaggerated."""
    drawn = bigram_table(WORDS, 20)
    words = np.exp(drawn.log_probs[:, :-1])
    words /= words.sum(axis=1, keepdims=True)
    ends = np.array([0.6 if word in ENDERS else 0.02 for word in (*WORDS, "<end>")])
    return BigramTable(WORDS, np.log(np.column_stack([(1 - ends)[:, None] * words, ends])))


def planted_study() -> dict[str, Any]:
    return {
        "name": "planted",
        "data": {
            "name": "synthetic_text",
            "options": {"users": 24, "rows_per_user": 12, "max_length": LONGEST, "beta": 0.5},
        },
        "split": {"train_users": 4, "valid_per_train_user": 2, "adapt_users": 20, "support": 2, "query": 8},
        "policy": "synthetic-words",
        "generation": {"max_new_tokens": LONGEST, "min_new_tokens": 1},
        "batch_size": 160,
        "reward_models": [{"method": kind.method} for kind in KINDS],
        "deployments": [
            {"policy": "zero_shot"},
            {"decoder": "args_greedy", "reward_models": ["noisy_prefixes", "one_taste", "true_utility"]},
            {"decoder": "args_greedy", "reward_models": ["long_wins"], "guidance_weight": 3},
            {
                "decoder": "best_of_n",
                "reward_models": ["noisy_prefixes", "true_utility"],
                "options": {"n": 4, "pool_seed": 0},
            },
        ],
        "metrics": ["rouge1"],
        "controls": {"shuffled_labels": 0, "synthetic_text": False},
        "resamples": 500,
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    table = table_that_ends()
    cards = tuple(replace(ORACLES["oracle_sequence"], name=kind.method, build=kind) for kind in KINDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        for module in (words, synthetic_text):
            patch.setattr(module, "control_table", lambda: table)
        for catalogue in (METHODS, ORACLES):
            patch.setitem(catalogue.__dict__, "cards", (*catalogue.cards, *cards))
        done = run_study(parse_study(planted_study()), tmp_path_factory.mktemp("planted"), Silent())
        assert not done.failures, done.failures
        yield done


@pytest.fixture(scope="module")
def results(planted: Finished) -> StudyResults:
    return aggregate(planted, "again")


def find(results: StudyResults, method: str, quantity: str, **names: Any) -> Decomposition:
    (found,) = (
        one
        for one in results.decompositions
        if (one.method, one.quantity) == (method, quantity) and all(getattr(one, k) == v for k, v in names.items())
    )
    return found


def faults(results: StudyResults, method: str) -> list[str]:
    return diagnose([one for one in results.decompositions if one.method == method])


def test_noise_on_prefixes_is_a_prefix_error_and_nothing_else(results: StudyResults) -> None:
    (sentence,) = faults(results, "noisy_prefixes")
    assert sentence.startswith("noisy_prefixes has a prefix error: it ranks whole texts (100.0 [100.0, 100.0]), but")
    # Best-of-N finds what its reward prefers, token guidance does not: the prefix error explains it.
    assert find(results, "noisy_prefixes", "search_reward").ci_low > 0


def test_a_reward_of_length_is_hacking(results: StudyResults) -> None:
    (sentence,) = faults(results, "long_wins")
    assert sentence.startswith("long_wins shows reward hacking: it prefers what it guided to zero-shot in ")


def test_a_taste_of_all_is_not_personal(results: StudyResults) -> None:
    (sentence,) = faults(results, "one_taste")
    assert sentence.startswith("one_taste is not personal: a user's own state ranks 0.0 [0.0, 0.0] points better")


def test_the_true_utility_has_no_fault(results: StudyResults) -> None:
    assert faults(results, "true_utility") == []


def test_prefix_numbers_are_those_of_a_loop_over_the_pairs(planted: Finished, results: StudyResults) -> None:
    known = planted.bench.new_reward_model(planted.plan.rewards[3][0]).known
    for share, method in ((0.25, "true_utility"), (0.5, "noisy_prefixes"), (0.75, "true_utility")):
        hits: dict[str, list[float]] = {}
        for pair in planted.bench.study_pairs().query_pairs:
            sides = [text.split() for text in (pair.chosen, pair.rejected)]
            cuts = [side[: math.ceil(share * len(side))] for side in sides]
            if cuts[0] == cuts[1] or any(cut == side for cut, side in zip(cuts, sides, strict=True)):
                continue
            good, bad = (
                noise(pair.user_id, " ".join(cut)) if method == "noisy_prefixes"
                else sum(known.utility(pair.user_id, word) for word in cut)
                for cut in cuts
            )  # fmt: skip
            hits.setdefault(pair.user_id, []).append((good > bad) + 0.5 * (good == bad))
        expected = float(np.mean([np.mean(own) for own in hits.values()]))
        found = find(results, method, "prefix_accuracy", share=share)
        assert found.value == pytest.approx(expected, abs=1e-12)
        assert found.n_examples == sum(map(len, hits.values()))
        assert found.n_missing == 160 - found.n_examples


def test_steps_agree_with_the_leaderboard(results: StudyResults) -> None:
    rows = {(r.method, r.decoder, r.metric, r.judge): r for r in results.rows if r.users == "unseen"}
    zero = rows["zero_shot", None, "rouge1", None].value
    for method in ("noisy_prefixes", "long_wins", "one_taste", "true_utility"):
        accuracy, swapped = (rows[method, None, name, None] for name in ("accuracy", "accuracy_other_state"))
        ranks = find(results, method, "rm_accuracy")
        assert (ranks.value, ranks.ci_low, ranks.ci_high) == (accuracy.value, accuracy.ci_low, accuracy.ci_high)
        assert find(results, method, "personal_gain").value == pytest.approx(accuracy.value - swapped.value)
        name = next(
            o.deployment for o in results.decompositions if o.method == method and o.quantity == "guidance_gain"
        )
        decoded = {key[2]: row for key, row in rows.items() if key[:2] == (method, "args_greedy") and key[3] is None}
        own = find(results, method, "win_own", deployment=name)
        assert own.value == rows[method, "args_greedy", "win_self", method].value
        others = [r.value for k, r in rows.items() if k[:3] == (method, "args_greedy", "win_cross")]
        assert find(results, method, "win_other", deployment=name).value == pytest.approx(np.mean(others))
        assert find(results, method, "policy_accuracy", deployment=name).value == decoded["rgd_topk"].value
        gained = find(results, method, "behaviour_gain", deployment=name)
        assert gained.value == pytest.approx(decoded["rouge1"].value - zero)
        steps = [find(results, method, "to_half"), find(results, method, "from_half", deployment=name)]
        assert ranks.value + steps[0].value + steps[1].value == pytest.approx(decoded["rgd_topk"].value)


def test_differences_are_those_of_the_texts(planted: Finished, results: StudyResults) -> None:
    """What was written is judged here by hand, with the utility of the truth, and averaged over users."""
    known = planted.bench.new_reward_model(planted.plan.rewards[3][0]).known
    worth: dict[str, dict[str, list[float]]] = {}
    for deployment, cell, reward in planted.plan.written:
        if reward is None or deployment.reward_model.method == "true_utility":
            for record in planted.bench.folder(cell).records():
                own = worth.setdefault(deployment.name, {}).setdefault(record["user_id"], [])
                own.append(known.utility(record["user_id"], record["completion"]))
    means = {name: np.mean([np.mean(own) for own in users.values()]) for name, users in worth.items()}
    steered = "true_utility · args_greedy λ=1 k=10"
    found = find(results, "true_utility", "own_reward", deployment=steered)
    assert found.value == pytest.approx(means["args_greedy"] - means["zero_shot"])
    found = find(results, "true_utility", "search_reward")
    assert found.against == steered
    assert found.value == pytest.approx(means["best_of_n"] - means["args_greedy"])
    # All whole texts are ranked right, so half of the advantage over a coin is a quarter.
    half = find(results, "true_utility", "prefix_accuracy", share=0.5)
    assert find(results, "true_utility", "prefix_kept").value == pytest.approx(half.value - 0.75)
    own, other = (find(results, "long_wins", name).value for name in ("win_own", "win_other"))
    assert find(results, "long_wins", "hacking").value == pytest.approx(own - other)
    assert find(results, "long_wins", "win_kept").value == pytest.approx((other - 0.5) - (own - 0.5) / 2)


def test_what_was_found_survives_its_file(results: StudyResults) -> None:
    again = StudyResults.from_json(json.loads(json.dumps(results.to_json())))
    assert again.decompositions == results.decompositions
    assert {one.quantity for one in results.decompositions} == set(QUANTITIES)
