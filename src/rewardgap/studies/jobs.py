"""Jobs: the cells that one worker runs in a row, with what must be over before. The unit that executors schedule.

Numbers are the same whoever runs the jobs. What a network makes of a text depends in its last bits on the texts beside
it, so whatever is kept in a cache is computed by one job, in a batch that the study alone decides, before it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rewardgap.studies import controls, stages
from rewardgap.studies.encoding import encode_pairs, encode_written
from rewardgap.studies.judging import run_judge, run_verdicts
from rewardgap.studies.prefixes import run_prefixes
from rewardgap.studies.shelf import backbone_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.studies.cells import Cell
    from rewardgap.studies.deployments import Deployment
    from rewardgap.studies.plan import Plan
    from rewardgap.studies.spec import JudgeSpec, RewardModelSpec, StudySpec

STAGES: dict[str, Callable[..., None]] = {
    "pairing": stages.run_pairing,
    "data_check": stages.run_data_check,
    "reward_model": stages.run_reward_model,
    "prefixes": run_prefixes,
    "deployment": stages.run_deployment,
    "behaviour": stages.run_behaviour,
    "judgement": stages.run_judgement,
    "judge": run_judge,
    "verdict": run_verdicts,
    "shuffled": controls.run_shuffled,
    "synthetic_text": controls.run_synthetic_text,
    "synthetic_swap": controls.run_synthetic_swap,
}
"""Kind of cell -> what computes it, given the workbench, the cell and the step's arguments."""

PREPARE: dict[str, Callable[..., None]] = {
    "check": stages.check_prompts,
    "encode_pairs": encode_pairs,
    "encode_written": encode_written,
}
"""Kind of job -> what is done before its cells, given the workbench and the job's arguments; it leaves no cell."""

PHASES = ("pairing", "check", "judge", "encode_pairs", "reward_model", "prefixes", "deployment", "behaviour",
          "encode_written", "judgement", "verdict", "shuffled", "synthetic_text", "synthetic_swap")  # fmt: skip
"""Kinds of jobs in the order in which one worker runs them, over all points that share a model."""


class Step(NamedTuple):
    """A cell and the further arguments of its stage."""

    cell: Cell
    rest: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Job:
    """What one worker does in a row.

    Attributes:
        point: number of the study among the points of the folder.
        kind: one of PHASES.
        title: one line for progress.
        steps: cells, in order.
        needs: keys of the jobs that must be over before, finished or failed.
        rest: arguments of what is done before the cells.
        of: cells without which the job has nothing to do; that they failed is said once, with them.
        wants: what is best in memory already.
        encodes: whether it adds to the cache of features.
        is_ahead: whether it only does early, and once, what jobs after it would do; one worker alone leaves it out.
    """

    point: int
    kind: str
    title: str
    steps: tuple[Step, ...] = ()
    needs: tuple[str, ...] = ()
    rest: tuple[Any, ...] = ()
    of: tuple[Cell, ...] = ()
    wants: frozenset[str] = frozenset()
    encodes: bool = False
    is_ahead: bool = False
    name: str = ""

    @property
    def key(self) -> str:
        """Return what names the job in its folder."""
        return f"{self.point}-{self.kind}-{self.name}"


def jobs_of(study: StudySpec, plan: Plan, point: int = 0) -> list[Job]:
    """Return the jobs of one point in the order in which one worker runs them."""
    out: list[Job] = []

    def add(kind: str, title: str, needs: Sequence[Job] = (), **more: Any) -> Job:
        steps = more.get("steps", ())
        name = more.pop("name", steps[0].cell.id if steps else "")
        job = Job(point, kind, title, needs=tuple(dict.fromkeys(need.key for need in needs)), name=name, **more)
        out.append(job)
        return job

    first = [add("pairing", plan.pairing.title, steps=(Step(plan.pairing),))] if plan.pairing is not None else []
    checks = (Step(plan.check),) if plan.check is not None else ()
    ready = add("check", "check the prompts and the data", first, steps=checks)
    judges = frozenset(cell.id for _, cell in plan.rewards)
    encoded = [ready]
    if plan.rewards:
        specs = tuple(plan.rewards)
        encoded = [add("encode_pairs", "encode the pairs", [ready], rest=(specs,), encodes=True, is_ahead=True)]
    rewards: dict[str, Job] = {}
    for spec, cell in plan.rewards:
        wants = frozenset({_backbone(study, spec)})
        rewards[cell.id] = add("reward_model", cell.title, encoded, steps=(Step(cell, (spec,)),), wants=wants)
    leaders: dict[str, Job] = {}
    specs_of = {cell.id: spec for spec, cell in plan.rewards}
    for reward, cell in plan.prefixes:
        spec = specs_of[reward.id]
        shared = f"prefixes {_backbone(study, spec)} {spec.mode}"
        before = [rewards[reward.id], *([leaders[shared]] if shared in leaders else [])]
        job = add(
            "prefixes", cell.title, before, steps=(Step(cell, (reward, spec)),), wants=_wants(study, spec, reward)
        )
        leaders.setdefault(shared, job)
    written: dict[str, Job] = {}
    for deployment, cell, steering in plan.written:
        before = [leaders[name] for name in _shares(study, deployment, steering) if name in leaders]
        before += [ready] if steering is None else [rewards[steering.id]]
        job = add(
            "deployment", cell.title, before,
            steps=(Step(cell, (deployment, steering)),),
            wants=_wants(study, deployment.reward_model, steering),
        )  # fmt: skip
        written[cell.id] = job
        for name in _shares(study, deployment, steering):
            if name.startswith("pool ") and name not in leaders:
                leaders["pool"] = job
            leaders.setdefault(name, job)
    by_owner: dict[str, list[Step]] = {}
    owners = {cell.id: cell for _, cell, _ in plan.written}
    for (owner, metric), cell in plan.behaviour.items():
        by_owner.setdefault(owner, []).append(Step(cell, (owners[owner], metric)))
    for owner, steps in by_owner.items():
        title = f"compare what {owners[owner].title} wrote"
        add("behaviour", title, [written[owner]], steps=tuple(steps), of=(owners[owner],), wants=frozenset({"metrics"}))
    by_owner = {}
    for (owner, index), cell in plan.judgements.items():
        spec, judge = plan.rewards[index]
        by_owner.setdefault(owner, []).append(Step(cell, (owners[owner], judge, spec)))
    if by_owner:
        needs, rest = [*rewards.values(), *written.values()], (tuple(owners.values()), tuple(plan.rewards))
        read = add("encode_written", "encode completions for the judges", needs, rest=rest, encodes=True)
        for owner, steps in by_owner.items():
            title = f"judge what {owners[owner].title} wrote"
            add("judgement", title, [read], steps=tuple(steps), of=(owners[owner],), wants=judges)
    asked = {
        cell.id: add("judge", cell.title, [ready], steps=(Step(cell, (asks,)),), wants=_asks(study, asks))
        for asks, cell in plan.judges
    }
    compared: dict[tuple[str, int], list[Step]] = {}
    for (owner, index, _), cell in plan.verdicts.items():
        compared.setdefault((owner, index), []).append(Step(cell, (plan.judges[index][0],)))
    for (owner, index), steps in compared.items():
        asks, judge = plan.judges[index]
        texts = [written[need.id] for step in steps for need in step.cell.needs if need.id in written]
        title = f"{asks.name} judges what {owners[owner].title} wrote"
        of = (owners[owner],)
        add("verdict", title, [asked[judge.id], *texts], steps=tuple(steps), of=of, wants=_asks(study, asks))
    for spec, cell in plan.shuffled:
        step = Step(cell, (spec, study.controls.shuffled_labels))
        add("shuffled", cell.title, encoded, steps=(step,), wants=frozenset({_backbone(study, spec)}))
    if plan.synthetic is not None:
        add("synthetic_text", plan.synthetic.title, [ready], steps=(Step(plan.synthetic),))
    for spec, cell in plan.planted:
        step = Step(cell, (controls.swap_spec(spec),))
        add("synthetic_swap", cell.title, [ready], steps=(step,), wants=frozenset({"synthetic"}))
    return out


def line(points: Sequence[tuple[StudySpec, Plan]]) -> list[Job]:
    """Return the jobs of all points, in the order in which one worker runs them; needs come before what needs them.

    Points that share a model go through their phases side by side: all pairs are encoded before any written text. Of
    cells that two points share, the first point has the job.
    """
    groups = _groups([study for study, _ in points])
    jobs = [job for number, (study, plan) in enumerate(points) for job in jobs_of(study, plan, number)]
    jobs.sort(key=lambda job: (groups[job.point], PHASES.index(job.kind)))
    owner: dict[str, str] = {}
    out: list[Job] = []
    last_encoder: str | None = None
    for job in jobs:
        shared = [owner[step.cell.id] for step in job.steps if step.cell.id in owner]
        steps = tuple(step for step in job.steps if step.cell.id not in owner)
        chained = [last_encoder] if job.encodes and last_encoder is not None else []
        job = replace(job, steps=steps, needs=tuple(dict.fromkeys([*job.needs, *shared, *chained])))
        owner |= {step.cell.id: job.key for step in steps}
        last_encoder = job.key if job.encodes else last_encoder
        out.append(job)
    return out


def _groups(studies: Sequence[StudySpec]) -> list[int]:
    """Return for each study the number of the first one that it shares a model with, through others too."""
    found: dict[str, int] = {}
    out: list[int] = []
    for number, study in enumerate(studies):
        keys = backbone_keys(study)
        group = min((found[key] for key in keys if key in found), default=number)
        joined = {found[key] for key in keys if key in found}
        found = {key: group if of in joined else of for key, of in found.items()} | dict.fromkeys(keys, group)
        out = [group if of in joined else of for of in out] + [group]
    return out


def _backbone(study: StudySpec, spec: RewardModelSpec) -> str:
    return spec.backbone or study.policy


def _asks(study: StudySpec, spec: JudgeSpec) -> frozenset[str]:
    return frozenset({spec.backbone or study.policy})


def _wants(study: StudySpec, spec: RewardModelSpec | None, cell: Cell | None) -> frozenset[str]:
    if spec is None or cell is None:
        return frozenset({study.policy})
    return frozenset({study.policy, _backbone(study, spec), cell.id})


def _shares(study: StudySpec, deployment: Deployment, reward: Cell | None) -> list[str]:
    """Return names of what a deployment computes and others find in a cache; the first of a name goes before the rest.

    Traces of the policy on plain prompts; states under a frozen backbone, or under a reward model's own adapter; pools
    of samples, which grow: each size of pool waits for the size before it.
    """
    model = deployment.reward_model
    if model is None or reward is None:
        return ["traces"] if deployment.name == "zero_shot" else []
    names = ["traces", f"states {_backbone(study, model)} {model.mode}", f"states {reward.id}"]
    if deployment.name == "best_of_n":
        names += ["pool", f"pool {deployment.decoder_name}"]
    return names


def left(jobs: Sequence[Job], finished: Callable[[Cell], bool]) -> list[Job]:
    """Return the jobs with something to do: cells of their own that are not finished, or cells that they are for."""
    wanted: dict[int, set[str]] = {}
    for job in jobs:
        if not all(finished(step.cell) for step in job.steps):
            wanted.setdefault(job.point, set()).add(job.kind)
    serves = {"check": set(PHASES), "encode_pairs": {"reward_model", "shuffled"}, "encode_written": {"judgement"}}
    return [
        job
        for job in jobs
        if not all(finished(step.cell) for step in job.steps)
        or serves.get(job.kind, set()) & wanted.get(job.point, set())
    ]
