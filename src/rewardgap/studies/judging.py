"""Judges that only judge: what a study may list under judges, their cells, and the questions they are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rewardgap.backbones.endpoint import ChatEndpoint
from rewardgap.backbones.serving import is_served, parse_served
from rewardgap.core.errors import ConfigError
from rewardgap.core.records import prompt_text
from rewardgap.core.store import content_hash, write_bytes
from rewardgap.policies.asking import Comparison
from rewardgap.policies.catalog import ALL_JUDGES, JUDGES, build_judge
from rewardgap.policies.chat_models import LocalChat
from rewardgap.policies.judge_states import load_judge_states, save_judge_states
from rewardgap.policies.kept import KeptChat
from rewardgap.policies.llm_judge import LlmJudge
from rewardgap.policies.verdicts import Verdict, of_margin
from rewardgap.studies.batches import in_batches
from rewardgap.studies.cells import Cell, from_parquet, to_parquet
from rewardgap.studies.deployments import expand
from rewardgap.studies.methods import config_of
from rewardgap.studies.scores import is_baseline
from rewardgap.studies.spec import filled
from rewardgap.studies.workbench import shown_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rewardgap.core.records import Prompt
    from rewardgap.policies.chat_models import ChatModel
    from rewardgap.policies.judge_states import JudgeState
    from rewardgap.policies.judges import Judge
    from rewardgap.policies.kept import Asked
    from rewardgap.studies.plan import Plan
    from rewardgap.studies.spec import JudgeSpec, StudySpec
    from rewardgap.studies.workbench import Workbench

COMPARISONS_AT_A_TIME = 32
STATES, PROMPTS = "states.json", "prompts"
TRIED = Comparison("Name a colour.", "Blue.", "Green.")
"""What a server is asked first, so that a wrong key or model is known before anything else is computed."""
_SERVER_OPTIONS = ("parallel", "timeout")


class Row(NamedTuple):
    """One comparison of a study: a deployment's text for a prompt of a user, and its opponent's, None without one."""

    user_id: str
    example_id: str
    prompt: Prompt
    one: str
    other: str | None


def check_judges(study: StudySpec) -> None:
    """Refuse what judges cannot be or do, before anything is loaded.

    Raises:
        UnknownNameError: if there is no such judge, naming the nearest.
        ConfigError: if one has no such option, its server is not one that can be asked, two share a name, or there is
            nothing to compare with.
    """
    for model in study.reward_models:
        if model.method in ALL_JUDGES.names() and model.method not in JUDGES.names():
            raise ConfigError(f"{model.method} ranks no pairs, so it is no reward model; list it under judges.")
    taken = {model.name for model in study.reward_models}
    for spec in study.judges:
        config_of(ALL_JUDGES[spec.method], spec.options)
        if spec.name in taken:
            raise ConfigError(f"two judges or reward models are called '{spec.name}'; give each a label of its own.")
        taken.add(spec.name)
        _check_place(study, spec)
        if "zero_shot" in spec.against and not any(map(is_baseline, expand(study))):
            raise ConfigError(
                f"judge '{spec.name}' compares with what zero_shot writes, and deployments has no zero_shot; list it, "
                "or set against: [reference]."
            )


def _check_place(study: StudySpec, spec: JudgeSpec) -> None:
    place = spec.backbone or study.policy
    if not is_served(place):
        return
    given = parse_served(place)
    if given.route != "served":
        raise ConfigError(
            f"judge '{spec.name}': '{shown_name(place)}' runs in another process's memory; start a server and write "
            "served:http://HOST:PORT/v1#model=NAME."
        )
    useless = sorted(set(given.options) - {"model", *_SERVER_OPTIONS})
    if useless and place != study.policy:
        raise ConfigError(
            f"judge '{spec.name}' is asked in words, so {useless[0]}= has no use behind served:; known: model, "
            f"{', '.join(_SERVER_OPTIONS)}."
        )


def plan_judges(
    bench: Workbench, plan: Plan, common: dict[str, Any], needs: tuple[Cell, ...], has_references: bool
) -> None:
    """Add the cells of the judges to a plan whose deployments are laid out.

    Raises:
        ConfigError: if a judge is to compare with what users wrote and the data have none of it.
    """
    baseline = next((cell for deployment, cell, _ in plan.written if is_baseline(deployment)), None)
    for index, spec in enumerate(bench.study.judges):
        if "reference" in spec.against and not has_references:
            raise ConfigError(
                f"judge '{spec.name}' is to compare with what users wrote, and '{bench.dataset.name}' has no texts "
                "written by users; set against: [zero_shot]."
            )
        key = {
            **common,
            "method": spec.method,
            "config": config_of(ALL_JUDGES[spec.method], spec.options),
            "model": _fingerprint(bench, spec),
            "template": bench.settings.prompt_template,
        }
        judge = Cell("judge", key, f"adapt {spec.name}", needs)
        plan.judges.append((spec, judge))
        for _, written, _ in plan.written:
            for opponent in dict.fromkeys(spec.against):
                if opponent == "zero_shot" and written == baseline:
                    continue
                others = (baseline,) if opponent == "zero_shot" and baseline is not None else ()
                title = f"{spec.name} compares {written.title} with {opponent}"
                cell = Cell("verdict", {"against": opponent}, title, (written, *others, judge))
                plan.verdicts[written.id, index, opponent] = cell


class Asking(NamedTuple):
    """A judge and the model that it asks, which knows what it was asked."""

    judge: Judge | LlmJudge
    model: KeptChat

    def verdicts(self, comparisons: Sequence[Comparison], state: JudgeState) -> list[Verdict]:
        """Return what the judge says of comparisons of one user; it asks two questions for each, in order."""
        if isinstance(self.judge, LlmJudge):
            return self.judge.verdicts(comparisons, state)
        return [of_margin(judgement) for judgement in self.judge.compare(comparisons, [state] * len(comparisons))]


def open_judge(bench: Workbench, spec: JudgeSpec) -> Asking:
    """Return a judge of a study, ready to be asked.

    Raises:
        ConfigError: if there is no key for its server.
        ModelError: if its model is not there.
    """
    served = is_served(spec.backbone or bench.study.policy)
    model = KeptChat(_model(bench, spec), keep=served)
    template = bench.settings.prompt_template
    judge: Judge | LlmJudge
    if spec.method in JUDGES.names():
        judge = build_judge(spec.method, model, prompt_template=template, **spec.options)
    else:
        judge = ALL_JUDGES[spec.method].build(model, prompt_template=template, **spec.options)
    judge.seed = bench.fit_seed
    return Asking(judge, model)


def run_judge(bench: Workbench, cell: Cell, spec: JudgeSpec) -> None:
    """Adapt a judge to every adapt user; a record a user. A server is asked one question first."""
    folder = bench.folder(cell)
    folder.clear()
    folder.start()
    judge, model = opened = open_judge(bench, spec)
    if is_served(spec.backbone or bench.study.policy):
        opened.verdicts([TRIED], judge.adapt([]))
    supports = bench.study_pairs().support
    states: dict[str, JudgeState] = {}
    with bench.progress.task(cell.title, len(supports)) as task:
        for user, support in supports.items():
            states[user] = judge.adapt(support)
            task(len(states), len(supports))
    save_judge_states(folder.path / STATES, judge, states)
    _keep_prompts(folder.path, model.log)
    folder.append(
        {"user_id": user, "support": state.num_support, "persona": state.persona.text if state.persona else None}
        for user, state in states.items()
    )
    folder.finish({"facts": _cost(model.log)})


def run_verdicts(bench: Workbench, cell: Cell, spec: JudgeSpec) -> None:
    """Let a judge compare what a deployment wrote with what its opponent wrote; a record a prompt."""
    written, *others, judged_by = cell.needs
    opened, folder = open_judge(bench, spec), bench.folder(cell)
    states = load_judge_states(bench.folder(judged_by).path / STATES, opened.judge)
    items = {item.example_id: item for items in bench.study_pairs().query.values() for item in items}
    against: dict[str, str | None] = {name: item.reference for name, item in items.items()}
    if others:
        against = {record["example_id"]: record["completion"] for record in bench.folder(others[0]).records()}
    rows = [
        Row(r["user_id"], r["example_id"], items[r["example_id"]].prompt, r["completion"], against[r["example_id"]])
        for r in bench.folder(written).records()
    ]
    # Questions about one user share their beginning.
    rows.sort(key=lambda row: (row.user_id, row.example_id))

    def work(batch: Sequence[Row]) -> list[dict[str, Any]]:
        opened.model.log.clear()
        records = judged(opened, batch, states)
        _keep_prompts(folder.path, opened.model.log)
        return records

    in_batches(bench, cell, rows, work, size=COMPARISONS_AT_A_TIME)


def judged(opened: Asking, rows: Sequence[Row], states: Mapping[str, JudgeState]) -> list[dict[str, Any]]:
    """Return a record for each comparison.

    Two texts that are the same tie without being asked about; where there is no opponent, nothing is known.
    """
    found: dict[int, tuple[Verdict, Sequence[Asked]]] = {}
    for user in dict.fromkeys(row.user_id for row in rows):
        own = [(at, row) for at, row in enumerate(rows) if row.user_id == user and row.other not in (None, row.one)]
        begin = len(opened.model.log)
        verdicts = opened.verdicts([Comparison(r.prompt, r.one, r.other or "") for _, r in own], states[user])
        log = opened.model.log[begin:]
        pairs = zip(log[::2], log[1::2], strict=True)
        found |= {at: (verdict, pair) for (at, _), verdict, pair in zip(own, verdicts, pairs, strict=True)}
    return [_record(row, *found.get(at, (_unasked(row), ()))) for at, row in enumerate(rows)]


def _unasked(row: Row) -> Verdict:
    return Verdict(0.5 if row.other == row.one else None, None, None)


def _record(row: Row, verdict: Verdict, asked: Sequence[Asked]) -> dict[str, Any]:
    return {
        "user_id": row.user_id,
        "example_id": row.example_id,
        "value": verdict.value,
        "same": row.other == row.one,
        "answer": verdict.answer,
        "answer_swapped": verdict.swapped,
        "said": verdict.said,
        "said_swapped": verdict.said_swapped,
        "demonstrations": verdict.shown,
        "demonstrations_dropped": verdict.dropped,
        "prompt": asked[0].id if asked else None,
        "prompt_swapped": asked[1].id if asked else None,
        **_cost(asked),
    }


def _cost(asked: Sequence[Asked]) -> dict[str, int | None]:
    """Return what questions cost: tokens as counted when they were asked, None where a server did not count."""
    return {
        "requests": sum(not question.cached for question in asked),
        "cached": sum(question.cached for question in asked),
        "prompt_tokens": _sum([question.prompt_tokens for question in asked]),
        "completion_tokens": _sum([question.completion_tokens for question in asked]),
    }


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _keep_prompts(folder: Path, asked: Sequence[Asked]) -> None:
    """Write the exact text of every question once, in a file named by what it holds."""
    texts = {question.id: question.prompt for question in asked}
    if texts:
        rows = [{"id": name, "text": prompt_text(prompt)} for name, prompt in sorted(texts.items())]
        write_bytes(folder / PROMPTS / f"{content_hash(sorted(texts), 32)}.parquet", to_parquet(rows))


def asked_in(folder: Path) -> dict[str, str]:
    """Return the exact text of every question of a finished cell, by the id that its records give.

    Args:
        folder: the cell's folder.
    """
    files = sorted((folder / PROMPTS).glob("*.parquet"))
    return {row["id"]: row["text"] for file in files for row in from_parquet(file.read_bytes())}


def _model(bench: Workbench, spec: JudgeSpec) -> ChatModel:
    place = spec.backbone or bench.study.policy
    return _endpoint(place, spec) if is_served(place) else LocalChat(bench.backbone(place))


def _endpoint(place: str, spec: JudgeSpec) -> ChatEndpoint:
    given = parse_served(filled(place))
    options = {name: given.options[name] for name in _SERVER_OPTIONS if name in given.options}
    longest = spec.options.get("max_prompt_size")
    if longest is not None:
        options["max_characters"] = longest
    return ChatEndpoint(given.model, given.place, key_variable=spec.key_variable, **options)


def _fingerprint(bench: Workbench, spec: JudgeSpec) -> str:
    """Return what decides a judge's answers, without loading its weights."""
    place = spec.backbone or bench.study.policy
    return _endpoint(place, spec).fingerprint if is_served(place) else bench.fingerprint(place)
