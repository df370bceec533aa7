"""Guidance by the exact token value is the user's law; guidance by the reward of the text so far is not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.load import load_backbone
from rewardgap.core.errors import ConfigError, DataError, ModelError, UnknownNameError
from rewardgap.core.records import PreferencePair
from rewardgap.data.synthetic_text import SyntheticTextTruth, load_synthetic_text, truth
from rewardgap.decoding.args import ArgsStochastic
from rewardgap.metrics.prefix_accuracy import first_right
from rewardgap.numerics.bigram import log_prob
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import Guided, guided
from rewardgap.rewards.known import KnownUser
from rewardgap.rewards.oracles import Oracle, OracleValue, build_oracle
from rewardgap.studies.plan import check_names
from rewardgap.studies.spec import parse_study

BETA, LONGEST = 0.7, 4
PROMPTS = ["river stone", "music light", "summer paper"]


@pytest.fixture(scope="module")
def known() -> SyntheticTextTruth:
    return truth(3, 6, beta=BETA, max_length=LONGEST)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_backbone("synthetic-words", dtype="float64")


def steered(policy: Backbone, oracle: Oracle, user: str | None = None) -> Guided:
    settings = GenerationSettings(max_new_tokens=LONGEST, min_new_tokens=1, first_line=True)
    decoder = ArgsStochastic(1 / BETA, policy.vocabulary)
    return guided(policy, oracle, KnownUser(user) if user else None, decoder=decoder, settings=settings)


def log_law(known: SyntheticTextTruth, user: str, prompt: str, text: str) -> float:
    return log_prob(known.user_law(user), known.table.ids(prompt)[-1], known.table.ids(text))


def test_scores_under_the_token_value_are_those_of_the_users_law(known: SyntheticTextTruth, policy: Backbone) -> None:
    """Nat for nat, up to the float32 weights of the small network."""
    texts = ["river", "stone light", "music music music", "garden paper winter candle", "summer river river stone"]
    for user, prompt in itertools.product(("s00", "s04"), PROMPTS):
        exact = np.array([log_law(known, user, prompt, text) for text in texts])
        scores = steered(policy, OracleValue(known), user).log_score([prompt] * len(texts), texts)
        np.testing.assert_allclose(scores, exact, atol=1e-5)
        so_far = steered(policy, Oracle(known), user).log_score([prompt] * len(texts), texts)
        assert np.abs((so_far - so_far[0]) - (exact - exact[0])).max() > 0.1


def test_margins_of_pairs_are_those_of_the_users_law(known: SyntheticTextTruth, policy: Backbone) -> None:
    """What policy accuracy counts: here its value is the accuracy of the exact law, for every pair."""
    pairs = load_synthetic_text(seed=3, users=6, rows_per_user=8, beta=BETA, max_length=LONGEST).pairs
    states = [KnownUser(pair.user_id) for pair in pairs]

    def margins(oracle: Oracle) -> Any:
        run = steered(policy, oracle)
        prompts = [pair.prompt for pair in pairs]
        sides = [[getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected")]
        chosen, rejected = (run.log_score(prompts, texts, states) for texts in sides)
        return chosen - rejected

    exact = np.array(
        [log_law(known, p.user_id, str(p.prompt), p.chosen) - log_law(known, p.user_id, str(p.prompt), p.rejected)
         for p in pairs]
    )  # fmt: skip
    np.testing.assert_allclose(margins(OracleValue(known)), exact, atol=1e-5)
    assert np.abs(margins(Oracle(known)) - exact).max() > 0.1


def test_all_texts_of_the_world_have_the_mass_one(policy: Backbone) -> None:
    short = truth(1, 2, beta=BETA, max_length=2)
    settings = GenerationSettings(max_new_tokens=2, min_new_tokens=1)
    run = guided(
        policy, OracleValue(short), KnownUser("s01"), decoder=ArgsStochastic(1 / BETA, 13), settings=settings
    )  # fmt: skip
    words = short.table.words
    texts = [" ".join(text) for n in (1, 2) for text in itertools.product(words, repeat=n)]
    assert np.exp(run.log_score(["river stone"] * len(texts), texts)).sum() == pytest.approx(1, abs=1e-5)


def test_samples_follow_the_users_law(policy: Backbone) -> None:
    """First words and lengths of 600 draws; the same test tells the law of the reward so far apart."""
    short = truth(1, 2, beta=BETA, max_length=2)
    law = np.exp(short.user_law("s01"))
    last = short.table.ids("river stone")[-1]
    first = law[0, last, :-1]
    ended = float(first @ law[1, :-1, -1])
    settings = GenerationSettings(max_new_tokens=2, min_new_tokens=1)
    p_values = {}
    for oracle in (OracleValue(short), Oracle(short)):
        run = guided(policy, oracle, decoder=ArgsStochastic(1 / BETA, 13), settings=settings)
        prompts = ["river stone"] * 600
        written = run.open(prompts, [KnownUser("s01")] * 600, list(range(600))).generate()
        texts = [short.table.ids(one.text) for one in written]
        likely = first * 600 >= 5
        counts = np.bincount([text[0] for text in texts], minlength=12)
        seen = np.append(counts[likely], counts[~likely].sum())
        expected = np.append(first[likely], first[~likely].sum()) * 600
        single = sum(len(text) == 1 for text in texts)
        p_values[oracle.name] = min(
            chisquare(seen, expected * seen.sum() / expected.sum()).pvalue,
            chisquare([single, 600 - single], [600 * ended, 600 * (1 - ended)]).pvalue,
        )
    assert p_values["oracle_value"] > 0.005
    assert p_values["oracle_sequence"] < 1e-6


def test_the_value_of_a_prefix_is_the_mean_over_its_endings(known: SyntheticTextTruth) -> None:
    """β log Σ π(rest) exp(u(rest) / β), term by term over every ending of a prefix of two words."""
    oracle, user = OracleValue(known), KnownUser("s02")
    prefix = known.table.ids("music river")
    values = known.token_utilities("s02")
    law = known.base_law[2:]
    total = 0.0
    for length in range(LONGEST - 2 + 1):
        for rest in itertools.product(range(12), repeat=length):
            total += np.exp(log_prob(law, prefix[-1], rest) + values[list(rest)].sum() / BETA)
    expected = values[prefix].sum() + BETA * np.log(total)
    assert oracle.worth(user, "river stone", prefix, ended=False) == pytest.approx(expected, abs=1e-10)
    assert oracle.worth(user, "river stone", prefix, ended=True) == pytest.approx(values[prefix].sum(), abs=1e-12)
    assert oracle.worth(user, "river stone", [], ended=True) == -np.inf
    assert oracle.worth(user, "river stone", [0] * (LONGEST + 1), ended=False) == -np.inf


@pytest.mark.parametrize("name", ["oracle_sequence", "oracle_value"])
def test_oracles_rank_texts_by_the_true_utility(known: SyntheticTextTruth, name: str, tmp_path: Any) -> None:
    pairs = load_synthetic_text(seed=3, users=6, rows_per_user=5, beta=BETA, max_length=LONGEST).pairs
    oracle = build_oracle(name, known).fit(pairs[:10])
    assert oracle.users == ("s00", "s01")
    states = [oracle.adapt([pair]) for pair in pairs]
    utilities = [known.utility(p.user_id, p.chosen) - known.utility(p.user_id, p.rejected) for p in pairs]
    np.testing.assert_allclose(oracle.margins(pairs, states), utilities, atol=1e-12)
    assert (oracle.margins(pairs, states) > 0).all()
    along = oracle.pair_prefixes(pairs[0], states[0])
    assert along.chosen[-1] == pytest.approx(known.utility("s00", pairs[0].chosen))
    assert len(along.chosen) == len(along.chosen_ids) + 1
    assert first_right(along.chosen, along.rejected) <= 1
    path = tmp_path / "states.json"
    oracle.save_states(path, {"s00": states[0]})
    assert oracle.load_states(path) == {"s00": KnownUser("s00")}
    other = build_oracle(name, truth(4, 6, beta=BETA, max_length=LONGEST))
    with pytest.raises(ModelError, match=f"holds no states of this {name}"):
        other.load_states(path)


def test_what_an_oracle_does_not_know(known: SyntheticTextTruth) -> None:
    oracle = build_oracle("oracle_value", known)
    stranger = PreferencePair(user_id="x", example_id="1", prompt="river stone", chosen="river", rejected="stone")
    with pytest.raises(DataError, match="no user 'x'"):
        oracle.fit([stranger])
    with pytest.raises(DataError, match="at least 1 pair"):
        oracle.fit([])
    with pytest.raises(DataError, match="none of the 0 training users"):
        oracle.state_of("s00")
    with pytest.raises(ConfigError, match="oracle_value has no option 'beta'"):
        build_oracle("oracle_value", known, beta=2)
    with pytest.raises(UnknownNameError, match=r"unknown oracle 'oracle_values'\. Did you mean 'oracle_value'"):
        build_oracle("oracle_values", known)


STUDY: dict[str, Any] = {
    "name": "oracles",
    "data": {"name": "synthetic_text", "options": {"max_length": 4}},
    "policy": "synthetic-words",
    "generation": {"min_new_tokens": 1, "max_new_tokens": 4},
    "reward_models": [{"method": "lore"}, {"method": "oracle_value"}],
    "deployments": [{"policy": "zero_shot"}],
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"name": "docstrings"}}, "knows the users of synthetic_text under the policy synthetic-words"),
        ({"policy": "smollm2-135m"}, "knows the users of synthetic_text under the policy synthetic-words"),
        ({"reward_models": [{"method": "oracle_value", "backbone": "smollm2-135m"}]}, "give it no backbone"),
        ({"generation": {"max_new_tokens": 6}}, "'oracle_value' knows texts of 1 to 4 words"),
        ({"generation": {"min_new_tokens": 0, "max_new_tokens": 4}}, "set generation.min_new_tokens to 1"),
        ({"reward_models": [{"method": "oracle_value", "fit_mode": "lora"}]}, "oracle_value is not fitted"),
        ({"reward_models": [{"method": "oracle_value", "options": {"beta": 2}}]}, "has no option 'beta'"),
    ],
)
def test_an_oracle_is_refused_where_the_truth_is_not_known(changes: dict[str, Any], sentence: str) -> None:
    check_names(parse_study(STUDY))
    with pytest.raises(ConfigError, match=sentence):
        check_names(parse_study({**STUDY, **changes}))
