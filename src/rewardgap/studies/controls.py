"""Controls: checks with a known answer, run beside every study."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgap.backbones.load import SYNTHETIC_WORDS, load_backbone
from rewardgap.core.seeds import child_seed
from rewardgap.data.splits import split_pairs
from rewardgap.data.synthetic_text import load_synthetic_text, truth
from rewardgap.decoding.args import ArgsGreedy
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.guided import guided
from rewardgap.policies.zero_shot import zero_shot
from rewardgap.rewards.build import reward_model
from rewardgap.rewards.catalog import REWARD_MODELS, build_head
from rewardgap.rewards.known import KnownReward, KnownUser
from rewardgap.rewards.model import RewardModel

if TYPE_CHECKING:
    from rewardgap.core.records import PreferencePair
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.spec import RewardModelSpec
    from rewardgap.studies.workbench import Workbench

USERS, ROWS = 120, 48
"""Enough for the swap test to see a low-rank method's gain at any seed: it is a tenth of accuracy and more."""
SPLIT: dict[str, Any] = {
    "train_users": 80,
    "pairs_per_train_user": 40,
    "valid_per_train_user": 2,
    "adapt_users": 40,
    "support": 24,
    "query": 20,
}


def swap_spec(spec: RewardModelSpec) -> RewardModelSpec:
    """Return a reward model as the swap test on synthetic texts fits it.

    Heads read frozen states there, however the study fits them: the small network's states hold all there is to know.
    Methods that train a network do so as their cards say: it learns at other rates than a language model.
    """
    control = REWARD_MODELS[spec.method].control
    training = {name: control.get(name) for name in ("epochs", "batch_size", "learning_rate")}
    options = {**spec.options, **control.get("options", {})}
    return spec.model_copy(update={"backbone": None, "fit_mode": None, "options": options, **training})


def run_shuffled(bench: Workbench, cell: Cell, spec: RewardModelSpec, draws: int) -> None:
    """Refit a head on labels that are flipped by a coin, and rank the true query pairs: one half is expected.

    Each draw flips training and support labels afresh. A single fit on shuffled labels is one random direction, which
    ranks all pairs alike well or badly by luck; only the average over draws has a known value.
    """
    folder, pairs = bench.folder(cell), bench.study_pairs()
    folder.clear()
    folder.start()
    model = bench.new_reward_model(spec)
    assert isinstance(model, RewardModel)
    chosen, rejected = model.pair_features(pairs.train)
    supports = {user: model.pair_features(pairs.support[user]) for user in pairs.adapt_users}
    queries = {user: [item.pair for item in pairs.query[user] if item.pair is not None] for user in pairs.adapt_users}
    sides = {user: model.pair_features(rows) for user, rows in queries.items() if rows}
    users = [pair.user_id for pair in pairs.train]
    rows: list[dict[str, Any]] = []
    with bench.progress.task(cell.title, draws) as task:
        for draw in range(draws):
            seed = child_seed(bench.study.seed, "shuffle", draw)
            coin = np.random.Generator(np.random.PCG64(seed))
            head = build_head(spec.method, **spec.options)
            with warnings.catch_warnings():
                # A head that finds nothing in these labels is right, and need not say so twenty times.
                warnings.simplefilter("ignore", UserWarning)
                head.fit(*_flipped(chosen, rejected, coin), users, seed=seed % (1 << 31))
            for user, (good, bad) in sides.items():
                state = head.adapt(*_flipped(*supports[user], coin))
                hits = pair_accuracy(head.rewards(good, state) - head.rewards(bad, state))
                rows += [
                    {"draw": draw, "user_id": user, "example_id": pair.example_id, "correct": float(hit)}
                    for pair, hit in zip(queries[user], hits, strict=True)
                ]
            task(draw + 1, draws)
    folder.append(rows)
    folder.finish()


def run_synthetic_text(bench: Workbench, cell: Cell) -> None:
    """Write with the true reward as a guide and without, where the truth is known, and record the utility of both."""
    folder = bench.folder(cell)
    folder.clear()
    folder.start()
    known = truth(bench.study.seed, USERS)
    _, queries = planted(bench.study.seed)
    policy = load_backbone(SYNTHETIC_WORDS)
    settings = GenerationSettings(max_new_tokens=known.max_length, min_new_tokens=1, seed=bench.study.seed)
    prompts = [pair.prompt for pair in queries]
    oracle = KnownReward(lambda user, prompt, text: known.utility(user, text))
    states = [KnownUser(pair.user_id) for pair in queries]
    steered = guided(policy, oracle, decoder=ArgsGreedy(1.0 / known.beta, policy.vocabulary), settings=settings)
    rows: list[dict[str, Any]] = []
    with bench.progress.task(cell.title, 2) as task:
        for number, (name, texts) in enumerate(
            (
                ("zero_shot", zero_shot(policy, settings=settings).generate(prompts)),
                ("oracle", steered.generate(prompts, states)),
            )
        ):
            rows += [
                {
                    "part": name,
                    "user_id": pair.user_id,
                    "example_id": pair.example_id,
                    "value": known.utility(pair.user_id, text),
                }
                for pair, text in zip(queries, texts, strict=True)
            ]
            task(number + 1, 2)
    folder.append(rows)
    folder.finish()


def run_synthetic_swap(bench: Workbench, cell: Cell, spec: RewardModelSpec) -> None:
    """Fit a method where users are known to differ; rank each user's pairs by the own state and by another user's."""
    folder = bench.folder(cell)
    folder.clear()
    folder.start()
    split, queries = planted(bench.study.seed)
    policy = load_backbone(SYNTHETIC_WORDS)
    features = bench.shelf.control_features
    model = reward_model(spec.method, policy, fit_mode=spec.fit_mode, features=features, **spec.options)
    users = sorted(split.adapt_users)
    supports = [split.support(user) for user in users]
    # All in one go: the same batches whichever method comes first.
    model.warm([*split.train, *(pair for rows in supports for pair in rows), *queries])
    with bench.progress.task(cell.title, 1) as task:
        model.fit(
            split.train,
            seed=child_seed(bench.study.seed, "fit") % (1 << 31),
            epochs=spec.epochs,
            batch_size=spec.batch_size,
            learning_rate=spec.learning_rate,
            progress=task,
        )
    states = dict(zip(users, model.adapt_all(supports), strict=True))
    follower = dict(zip(users, users[1:] + users[:1], strict=True))
    rows: list[dict[str, Any]] = []
    for part, owner in (("own_state", {user: user for user in users}), ("other_state", follower)):
        hits = pair_accuracy(model.margins(queries, [states[owner[pair.user_id]] for pair in queries]))
        rows += [
            {
                "part": part,
                "user_id": pair.user_id,
                "example_id": pair.example_id,
                "value": float(hit),
            }
            for pair, hit in zip(queries, hits, strict=True)
        ]
    folder.append(rows)
    folder.finish()


def planted(seed: int) -> tuple[Any, list[PreferencePair]]:
    """Return the split of the synthetic texts, and the query pairs of all adapt users."""
    data = load_synthetic_text(seed=seed, users=USERS, rows_per_user=ROWS)
    split = split_pairs(data, seed=child_seed(seed, "synthetic_text"), **SPLIT)
    return split, [pair for user in split.adapt_users for pair in split.query(user)]


def _flipped(chosen: Any, rejected: Any, coin: np.random.Generator) -> tuple[Any, Any]:
    flip = (coin.random(len(chosen)) < 0.5)[:, None]
    return np.where(flip, rejected, chosen), np.where(flip, chosen, rejected)
