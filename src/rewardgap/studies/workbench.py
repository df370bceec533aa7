"""What the cells of a study share: models, data, splits and caches, each loaded when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardgap.backbones.features import PromptLimit
from rewardgap.backbones.serving import is_served, parse_served
from rewardgap.core.records import PreferencePair, Prompt
from rewardgap.core.seeds import child_seed
from rewardgap.core.store import content_hash, write_bytes
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.catalog import POLICIES, build_judge
from rewardgap.policies.chat_models import LocalChat
from rewardgap.policies.guided import Guided
from rewardgap.policies.judged import Judged
from rewardgap.policies.judges import Judge
from rewardgap.policies.zero_shot import zero_shot
from rewardgap.rewards.build import load_reward_model, reward_model
from rewardgap.rewards.model import RewardModel
from rewardgap.rewards.oracles import ORACLES, Oracle, build_oracle
from rewardgap.studies.cells import Cell, CellFolder
from rewardgap.studies.deployments import expand
from rewardgap.studies.methods import load_ranker_states, steers
from rewardgap.studies.oracles import truth_of
from rewardgap.studies.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.data.base import AuthoredDataset, PreferenceDataset
    from rewardgap.data.partition import Split
    from rewardgap.policies.base import AdaptedPolicy
    from rewardgap.policies.cards import PolicyCard
    from rewardgap.rewards.states import UserState
    from rewardgap.studies.deployments import Deployment
    from rewardgap.studies.methods import Ranker
    from rewardgap.studies.progress import Progress
    from rewardgap.studies.spec import RewardModelSpec, StudySpec


@dataclass(frozen=True)
class QueryItem:
    """One prompt a user is judged on; the pair is missing where the pairing rule found none."""

    user_id: str
    example_id: str
    prompt: Prompt
    reference: str | None
    pair: PreferencePair | None


@dataclass(frozen=True)
class StudyPairs:
    """The pairs of a study, dealt out.

    Attributes:
        train: of the training users.
        valid: held out, of the training users.
        support: adapt user -> pairs revealed.
        query: adapt user -> what the user is judged on.
        shown: adapt user -> what a demonstration may show: every support row, those without a pair too.
        dropped: reason -> texts that gave no pair.
        cut: prompts shortened to the limit.
    """

    train: list[PreferencePair]
    valid: list[PreferencePair]
    support: dict[str, list[PreferencePair]]
    query: dict[str, list[QueryItem]]
    shown: dict[str, list[PreferencePair]]
    dropped: dict[str, int]
    cut: int = 0

    @cached_property
    def adapt_users(self) -> list[str]:
        """Return the adapt users, sorted."""
        return sorted(self.query)

    @cached_property
    def query_pairs(self) -> list[PreferencePair]:
        """Return every query pair, by user."""
        return [item.pair for user in self.adapt_users for item in self.query[user] if item.pair is not None]


class Workbench:
    """Shared state of one run.

    Args:
        study: what to run.
        root: the results folder.
        progress: where progress goes.
        shelf: what it shares with other points of the process; its own unless given.
    """

    def __init__(self, study: StudySpec, root: Path, progress: Progress, shelf: Shelf | None = None) -> None:
        self.study, self.root, self.progress = study, root, progress
        self.shelf = shelf if shelf is not None else Shelf()
        self.features, self.traces = self.shelf.features, self.shelf.traces
        self._fitted: dict[str, Ranker] = {}
        self._states: dict[str, Mapping[str, UserState]] = {}
        self.pairs: StudyPairs | None = None

    @cached_property
    def dataset(self) -> PreferenceDataset | AuthoredDataset:
        """Return the study's dataset."""
        return self.shelf.dataset(self.study)

    @cached_property
    def split(self) -> Split:
        """Return who is trained on and who is adapted to."""
        return self.shelf.split(self.study)

    @cached_property
    def policy(self) -> Backbone:
        """Return the policy."""
        return self.backbone(self.study.policy)

    @cached_property
    def settings(self) -> GenerationSettings:
        """Return the lengths and rules that all deployments share."""
        spec = self.study.generation
        return GenerationSettings(
            max_new_tokens=spec.max_new_tokens,
            min_new_tokens=spec.min_new_tokens,
            max_prompt_tokens=spec.max_prompt_tokens,
            context_tokens=spec.context_tokens,
            on_long=spec.on_long,
            first_line=self.dataset.first_line,
            score_top_k=self._top_k(),
            prompt_template=self.dataset.prompt_template,
            seed=self.study.seed,
        )

    def _top_k(self) -> int:
        """Return the candidates that unguided deployments are scored over: those of the first guided one."""
        guided = [deployment.top_k for deployment in expand(self.study) if deployment.top_k is not None]
        return guided[0] if guided else GenerationSettings.score_top_k

    @property
    def limit(self) -> PromptLimit:
        """Return how long a prompt may be."""
        return PromptLimit(self.study.generation.max_prompt_tokens, self.study.generation.on_long)

    def backbone(self, name: str) -> Backbone:
        """Return a backbone by name, loaded once."""
        backbone = self.shelf.backbone(name, self.study)
        backbone.name = shown_name(name)
        return backbone

    def fingerprint(self, name: str | None = None) -> str:
        """Return the fingerprint of a backbone, the policy unless named."""
        return self.shelf.fingerprint(name or self.study.policy, self.study)

    def put_away(self) -> None:
        """Forget every model; what is needed again is loaded again."""
        self._fitted.clear()
        self._states.clear()
        self.__dict__.pop("policy", None)

    def reward_backbone(self, spec: RewardModelSpec) -> Backbone:
        """Return the backbone a reward model reads."""
        return self.backbone(spec.backbone or self.study.policy)

    def study_pairs(self) -> StudyPairs:
        """Return the pairs; they are there once the pairing cell is done."""
        if self.pairs is None:
            raise RuntimeError("pairs are read before the pairing cell is done")
        return self.pairs

    def all_pairs(self) -> list[PreferencePair]:
        """Return every pair of the study: train, valid, support, query."""
        pairs = self.study_pairs()
        support = [pair for rows in pairs.support.values() for pair in rows]
        return [*pairs.train, *pairs.valid, *support, *pairs.query_pairs]

    def folder(self, cell: Cell) -> CellFolder:
        """Return where a cell's artefacts lie."""
        return CellFolder(self.root, cell)

    def new_reward_model(self, spec: RewardModelSpec) -> Ranker:
        """Return a reward model, oracle or judge that is not fitted."""
        if spec.method in ORACLES.names():
            return build_oracle(spec.method, truth_of(self.study.data.options))
        if not steers(spec.method):
            return build_judge(
                spec.method,
                LocalChat(self.reward_backbone(spec)),
                prompt_template=self.settings.prompt_template,
                opponent=zero_shot(self.policy, settings=self.settings),
                **spec.options,
            )
        return reward_model(
            spec.method,
            self.reward_backbone(spec),
            fit_mode=spec.fit_mode,
            max_prompt_tokens=self.limit.max_tokens,
            on_long=self.limit.on_long,
            features=self.features,
            **spec.options,
        )

    def fitted(self, cell: Cell, spec: RewardModelSpec) -> Ranker:
        """Return the reward model or judge that a finished cell left."""
        if cell.id not in self._fitted and spec.mode is None:
            self._fitted[cell.id] = self.new_reward_model(spec).fit(self.study_pairs().train, seed=self.fit_seed)
        elif cell.id not in self._fitted:
            model = load_reward_model(self.folder(cell).path / "model", self.reward_backbone(spec))
            model.features = self.features
            self._fitted[cell.id] = model
        return self._fitted[cell.id]

    def states(self, cell: Cell, spec: RewardModelSpec) -> Mapping[str, UserState]:
        """Return the adapt users' states that a finished cell left."""
        if cell.id not in self._states:
            path = self.folder(cell).path / "states.safetensors"
            self._states[cell.id] = load_ranker_states(path, self.fitted(cell, spec))
        return self._states[cell.id]

    def deployed(
        self, deployment: Deployment, cell: Cell, reward_cell: Cell | None
    ) -> tuple[AdaptedPolicy, Mapping[str, Any]]:
        """Return a deployment and the state of each adapt user."""
        if deployment.reward_model is None:
            card = POLICIES[deployment.name]
            policy = card.build(
                self.policy,
                self.settings,
                self.traces,
                deployment.shots,
                deployment.retriever or card.retriever,
                **deployment.options,
            )
            return policy, self._adapted(policy, card, cell)
        assert reward_cell is not None
        reward = self.fitted(reward_cell, deployment.reward_model)
        if isinstance(reward, Judge):
            judged = Judged(self.policy, deployment.decoder(), self.settings, judge=reward, traces=self.traces)
            return judged, self.states(reward_cell, deployment.reward_model)
        assert isinstance(reward, (RewardModel, Oracle))
        policy = Guided(self.policy, deployment.decoder(), self.settings, reward=reward, traces=self.traces)
        return policy, self.states(reward_cell, deployment.reward_model)

    def _adapted(self, policy: AdaptedPolicy, card: PolicyCard, cell: Cell) -> dict[str, Any]:
        """Return the state of each adapt user; where adapting is work, each is kept in the cell's folder at once."""
        supports = self.study_pairs().shown
        if card.state_format is None:
            return {user: policy.adapt(support) for user, support in supports.items()}
        to_bytes, from_bytes = card.state_format
        states: dict[str, Any] = {}
        with self.progress.task(f"adapt {cell.title}", len(supports)) as task:
            for user, support in supports.items():
                path = self.folder(cell).path / "states" / content_hash(user)
                if not path.exists():
                    write_bytes(path, to_bytes(policy.adapt(support)))
                states[user] = from_bytes(path.read_bytes())
                task(len(states), len(supports))
        return states

    @property
    def fit_seed(self) -> int:
        """Return the seed of every fit."""
        return child_seed(self.study.seed, "fit") % (1 << 31)


def retriever_of(deployment: Deployment) -> str | None:
    """Return the retriever of a deployment, the card's own unless the study names one; None where there is none."""
    if deployment.kind != "policy":
        return None
    return deployment.retriever or POLICIES[deployment.name].retriever


def shown_name(name: str) -> str:
    """Return a model's or a file's name for artefacts: of a path, the last part only; of a served policy, no host."""
    if is_served(name):
        given = parse_served(name)
        return f"{given.route}:{shown_name(given.model)}"
    return (
        Path(name).name
        if "/" in name and (name.startswith(("/", ".", "~", "$", "file:")) or Path(name).exists())
        else name
    )


def deal(split: Split, rows: Sequence[dict[str, Any]]) -> StudyPairs:
    """Deal rows (records of a pairing cell, or of a preference dataset) out as a split says."""
    by_id = {row["example_id"]: row for row in rows}
    dropped: dict[str, int] = {}
    for row in rows:
        if row.get("dropped"):
            dropped[row["dropped"]] = dropped.get(row["dropped"], 0) + 1

    def pairs(ids: Sequence[str]) -> list[PreferencePair]:
        return [pair for pair in (_pair(by_id[i]) for i in ids) if pair is not None]

    query = {
        user: [QueryItem(user, i, _prompt(by_id[i]["prompt"]), by_id[i].get("reference"), _pair(by_id[i])) for i in ids]
        for user, ids in split.query_ids.items()
    }
    return StudyPairs(
        pairs(split.train_ids),
        pairs(split.valid_ids),
        {user: pairs(ids) for user, ids in split.support_ids.items()},
        query,
        {user: [_demonstration(by_id[i]) for i in ids] for user, ids in split.support_ids.items()},
        dropped,
        sum(bool(row.get("prompt_cut")) for row in rows),
    )


def split_ids(split: Split) -> list[str]:
    """Return every example id of a split, in order."""
    sides = [split.train_ids, split.valid_ids, *split.support_ids.values(), *split.query_ids.values()]
    return [i for side in sides for i in side]


def split_hash(split: Split) -> str:
    """Return a hash of a split."""
    return content_hash(split.to_json())


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    from rewardgap.core.records import Message

    return tuple(Message(turn["role"], turn["content"]) for turn in value)


def _demonstration(row: dict[str, Any]) -> PreferencePair:
    """Return the pair of a row; of a text without a pair, what the user wrote: in context needs no alternative."""
    pair = _pair(row) or _pair({**row, "dropped": None, "chosen": row["reference"], "rejected": ""})
    assert pair is not None
    return pair


def _pair(row: dict[str, Any]) -> PreferencePair | None:
    if row.get("dropped"):
        return None
    return PreferencePair(
        user_id=row["user_id"],
        example_id=row["example_id"],
        prompt=_prompt(row["prompt"]),
        chosen=row["chosen"],
        rejected=row["rejected"],
        reference=row.get("reference"),
        timestamp=row.get("timestamp"),
        chosen_score=row.get("chosen_score"),
        rejected_score=row.get("rejected_score"),
        meta=row.get("meta") or {},
    )
