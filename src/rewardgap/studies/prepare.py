"""From authored texts to a preference benchmark in a dataset folder: the pairing stage of a study, made to be kept.

The work is that of a study's pairing cell: fsynced lines in a folder beside the result, so that the same command goes
on after a kill, and the same samples for the same text, seed and policy as in a study.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import AuthoredText, PreferencePair
from rewardgap.core.seeds import child_seed
from rewardgap.core.store import content_hash
from rewardgap.data.base import AuthoredDataset, PreferenceDataset
from rewardgap.data.catalog import DATASETS, SECRET_OPTIONS, load_dataset
from rewardgap.data.folder import FACTS_FILE, load_folder, read_facts, write_folder
from rewardgap.data.hub_card import Background
from rewardgap.data.ordering import in_random_order
from rewardgap.data.partition import Split
from rewardgap.studies.cells import Cell
from rewardgap.studies.environment import environment
from rewardgap.studies.folders import locked
from rewardgap.studies.spec import filled
from rewardgap.studies.splitting import draw_split
from rewardgap.studies.stages import run_pairing
from rewardgap.studies.workbench import Workbench, shown_name, split_hash, split_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewardgap.studies.progress import Progress
    from rewardgap.studies.spec import StudySpec

RECIPES: Mapping[str, str] = {"pref-lamp": "lamp"}
"""Name of a benchmark -> the loader of the texts it is made of."""
MAKING: Mapping[str, str] = {
    "closest": "Both sides were written by a language model: two samples of one policy, of which the one closer to "
    "what the user wrote (ROUGE-1, then ROUGE-L, then character bigrams) is `chosen`. No side is the user's own text, "
    "which is in `reference`; the scores are ROUGE-1 against it.",
    "generated": "`chosen` is the user's own text, `rejected` what a language model wrote for the same prompt without "
    "knowing the user. A ranker that tells people from machines gets these pairs right without knowing any user.",
    "other_user": "`chosen` is the user's own text, `rejected` is in another user's manner: that user's own text for "
    "the same prompt where there is one, else one that a language model wrote with that user's demonstrations. "
    "`chosen` is always written by a person, `rejected` mostly by a machine.",
}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What to prepare.

    Args:
        study: data, pairing rule, policy, lengths, batch size and seed; its split decides for the rule `other_user`
            whose texts may be shown, and nothing for the other rules; the rest of it is not read.
        limit_users: users at most, drawn by the seed.
        rows_per_user: texts a user at most, drawn by the seed.
        licence: what the pairs are published under; the source's own unless given.
    """

    study: StudySpec
    limit_users: int | None = None
    rows_per_user: int | None = None
    licence: str | None = None


class PreparationBench(Workbench):
    """The shared state of a preparation: a study's, on the texts within the limits, with every text paired."""

    def __init__(self, preparation: Preparation, root: Path, progress: Progress) -> None:
        super().__init__(preparation.study, root, progress)
        self.preparation = preparation

    @cached_property
    def source(self) -> AuthoredDataset:
        """Return the texts as they were loaded.

        Raises:
            ConfigError: if the dataset holds no authored texts.
        """
        spec = self.study.data
        found = load_dataset(spec.name, **filled(spec.options))
        if not isinstance(found, AuthoredDataset):
            raise ConfigError(
                f"dataset '{spec.name}' holds no authored texts, so there is nothing to pair; give source texts with "
                "what users wrote, for example --from FILE --set task=title."
            )
        return found

    @cached_property
    def dataset(self) -> AuthoredDataset:
        """Return the texts within the limits; which ones they are does not depend on the order of rows."""
        source, wanted, seed = self.source, self.preparation, self.study.seed
        users = sorted(source.users(), key=lambda user: (child_seed(seed, "prepare", "user", user), user))
        kept = {
            text.example_id
            for user in users[: wanted.limit_users]
            for text in in_random_order(source.of_user(user), seed, user)[: wanted.rows_per_user]
        }
        return replace(source, texts=tuple(text for text in source.texts if text.example_id in kept))

    @cached_property
    def split(self) -> Split:
        """Return which texts are paired, and which of them may be shown to make the alternatives of others.

        For `other_user` a split is drawn: what it gives to train and support may be shown, and what a user is asked
        about (query) is in nobody's alternative. The other rules show nothing: every text is in one list.
        """
        if self.study.pairing.rule == "other_user":
            drawn = draw_split(self.dataset, self.study.split, self.study.seed)
            _check_donors(self.dataset, drawn)
            return drawn
        return Split(
            train_users=self.dataset.users(),
            adapt_users=(),
            train_ids=tuple(sorted(text.example_id for text in self.dataset.texts)),
            valid_ids=(),
            support_ids={},
            query_ids={},
            seed=child_seed(self.study.seed, "split"),
            fingerprint=self.dataset.fingerprint(),
        )


def prepare(preparation: Preparation, folder: Path, progress: Progress) -> PreferenceDataset:
    """Pair authored texts and write the pairs as a dataset folder; a folder that is finished is found, not repeated.

    The same preparation gives the same bytes. While it works, `.NAME.partial` beside the folder holds what is done.

    Args:
        preparation: what to prepare.
        folder: the dataset folder to write.
        progress: where progress goes.

    Raises:
        ConfigError: if the data hold no authored texts, the folder holds something else, or another run is at work.
        SplitError: if the rule is `other_user` and no split can be drawn.
        DataError: if no text gave a pair.
    """
    root = folder.parent / f".{folder.name}.partial"
    bench = PreparationBench(preparation, root, progress)
    _refuse_other(folder)
    cell = _cell(bench)
    identity = content_hash([cell.id, preparation.study.name, preparation.licence])
    if (folder / FACTS_FILE).exists():
        if read_facts(folder)["provenance"].get("id") != identity:
            raise ConfigError(
                f"'{folder}' was prepared with other data or settings; choose another folder with --output, "
                "or remove it."
            )
        return load_folder(folder)
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        if not bench.folder(cell).done:
            run_pairing(bench, cell)
        records = bench.folder(cell).records()
        dataset = _dataset(bench, records)
        write_folder(
            dataset,
            folder,
            _background(preparation),
            provenance={"id": identity, **_provenance(bench, records)},
            split=bench.split if preparation.study.pairing.rule == "other_user" else None,
        )
    shutil.rmtree(root, ignore_errors=True)
    return dataset


def source_of(name: str, source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `data` part of a study for the texts of a benchmark.

    Args:
        name: the benchmark; a recipe's name decides the loader.
        source: a dataset's name, or a file or folder of authored texts.
        options: of the loader.

    Raises:
        UnknownNameError: if the recipe's loader is not in the catalogue.
    """
    if source in DATASETS.names():
        return {"name": source, "options": dict(options)}
    loader = DATASETS[RECIPES.get(name, "authored")]
    found = {"path": source, **options}
    task = re.search(r"LaMP[_-](\d)", shown_name(source.rstrip("/")))
    if name in RECIPES and task and "task" in loader.options:
        found = {"task": int(task[1]), **found}
    return {"name": loader.name, "options": found}


def _refuse_other(folder: Path) -> None:
    if folder.exists() and not (folder / FACTS_FILE).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"'{folder}' exists and is no dataset folder; choose another folder with --output.")


def _check_donors(dataset: AuthoredDataset, split: Split) -> None:
    """Refuse a split with fewer than two users whose texts may be shown: an alternative needs another user's."""
    shown = [*split.train_ids, *(name for ids in split.support_ids.values() for name in ids)]
    donors = {dataset.by_id(name).user_id for name in shown}
    if len(donors) < 2:
        raise ConfigError(
            f"the rule 'other_user' needs at least 2 users with texts that may be shown, the split has {len(donors)}; "
            "raise split.support or split.train_users."
        )


def _cell(bench: PreparationBench) -> Cell:
    import torch

    study = bench.study
    key = {
        "seed": study.seed,
        "split": split_hash(bench.split),
        "data": bench.dataset.fingerprint(),
        **study.pairing.model_dump(),
        "lengths": study.generation.model_dump() | {"first_line": bench.dataset.first_line},
        "template": bench.dataset.prompt_template,
        "policy": bench.policy.fingerprint,
        "batch_size": study.batch_size,
        "device": study.device,
        # Another number of threads adds in another order, and a draw may fall otherwise.
        "threads": torch.get_num_threads(),
    }
    return Cell("pairing", key, f"pair the texts ({study.pairing.rule})")


def _dataset(bench: PreparationBench, records: list[dict[str, Any]]) -> PreferenceDataset:
    """Return the pairs in the order of the texts, and count what is not there by reason."""
    by_id = {record["example_id"]: record for record in records}
    dropped = dict(bench.source.dropped)
    outside = "in no list of the split"
    pairs = []
    for text in bench.dataset.texts:
        record = by_id.get(text.example_id)
        reason = outside if record is None else record["dropped"]
        if record is None or reason is not None:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            pairs.append(_pair(text, record))
    if not pairs:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        raise DataError(f"none of the {len(bench.dataset)} texts gave a pair ({reasons}); try another rule or policy.")
    cut = sum(record["prompt_cut"] for record in records)
    notes = [*bench.source.notes, f"Pairs were made by the rule '{bench.study.pairing.rule}'."]
    if cut:
        notes.append(f"{cut} prompts were shortened at a word to fit the policy.")
    if bench.study.pairing.rule == "other_user":
        notes.append(
            "The texts in train and support of split.json were shown to make other users' rejected sides: a study on "
            "these pairs should name that file (split: {file: FOLDER/split.json}), so that none of them is a query."
        )
    return PreferenceDataset(
        bench.study.name,
        tuple(pairs),
        dict(sorted(dropped.items())),
        tuple(notes),
        bench.dataset.first_line,
        bench.dataset.prompt_template,
        bench.study.pairing.rule,
    )


def _pair(text: AuthoredText, record: dict[str, Any]) -> PreferencePair:
    return PreferencePair(
        user_id=text.user_id,
        example_id=text.example_id,
        prompt=record["prompt"],
        chosen=record["chosen"],
        rejected=record["rejected"],
        reference=text.reference,
        timestamp=text.timestamp,
        chosen_score=record["chosen_score"],
        rejected_score=record["rejected_score"],
        meta=text.meta,
    )


def _background(preparation: Preparation) -> Background:
    study = preparation.study
    card, rule = DATASETS[study.data.name], study.pairing.rule
    policy = f"The policy is {shown_name(study.policy)}, the seed {study.seed}."
    return Background(
        licence=preparation.licence or card.licence,
        source=card.source,
        citation=card.citation,
        making=(MAKING[rule], policy),
        tags=(f"pairing-{rule.replace('_', '-')}",),
    )


def _provenance(bench: PreparationBench, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how the pairs were made; no date, no host, and of every path the last part only."""
    study, wanted, source = bench.study, bench.preparation, bench.source
    made: dict[str, Any] = {
        "source": {
            "dataset": source.name,
            "loader": study.data.name,
            "options": _publishable(study.data.options),
            "licence": DATASETS[study.data.name].licence,
            "fingerprint": source.fingerprint(),
            "num_users": len(source.users()),
            "num_rows": len(source),
        },
        "limits": {"users": wanted.limit_users, "rows_per_user": wanted.rows_per_user},
        "texts": {"fingerprint": bench.dataset.fingerprint(), "num_rows": len(bench.dataset)},
        "pairing": study.pairing.model_dump(),
        "policy": {"name": shown_name(study.policy), "fingerprint": bench.policy.fingerprint, "dtype": study.dtype},
        "generation": study.generation.model_dump() | {"first_line": bench.dataset.first_line},
        "seed": study.seed,
        "batch_size": study.batch_size,
        "device": study.device,
        "prompts_cut": sum(record["prompt_cut"] for record in records),
        "packages": environment(),
    }
    if study.pairing.rule == "other_user":
        split = bench.split
        made["split"] = {**study.split.model_dump(), "rows": len(split_ids(split)), "proof": split.proof()}
    return made


def _publishable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a loader's options without secrets, and of every path its last part: no folder of a machine is named."""

    def shown(key: str, value: Any) -> Any:
        if key in SECRET_OPTIONS:
            return "not kept"
        if isinstance(value, list):
            return [shown(key, part) for part in value]
        is_path = isinstance(value, str) and (key == "path" or value.startswith(("/", "~")))
        return Path(value).name if is_path else value

    return {key: shown(key, value) for key, value in options.items()}
