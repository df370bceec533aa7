"""Judges that only judge, in a whole study: known rules give known win rates, and a server is asked no more than it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli_study import study_of

from chat_server import ChatServer, Reply, Request, chat_server, completion, labels_reply, read_judge_prompt
from rewardgap.core.results import ResultRow, StudyResults
from rewardgap.metrics.rm_accuracy import pair_accuracy
from rewardgap.policies import kept
from rewardgap.policies.llm_judge import ASKED, FENCE, TASK
from rewardgap.report.markdown import study_markdown
from rewardgap.report.page import render
from rewardgap.stats.bootstrap import clustered_mean
from rewardgap.studies import judging
from rewardgap.studies.aggregate import aggregate
from rewardgap.studies.judging import asked_in
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import Finished, run_study
from rewardgap.studies.spec import parse_study

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUDGE_KEY", KEY)


def data_of(request: Request) -> dict[str, Any]:
    """Return what a question is about; around it there is nothing but the words of every question."""
    (turn,) = request["messages"]
    task, fence, data, asked = turn["content"].split("\n\n")
    assert (turn["role"], task, fence, asked) == ("user", TASK, FENCE, ASKED)
    return json.loads(data)


def longer(request: Request) -> Reply:
    """Prefer the longer text, in characters."""
    data = data_of(request)
    gap = len(data["answer A"]) - len(data["answer B"])
    return completion("A" if gap > 0 else "B" if gap < 0 else "tie")


def study(*judges: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return study_of(
        "synthetic-words",
        reward_models=[{"method": "global_bt"}],
        deployments=[{"policy": "zero_shot"}, {"policy": "icl", "num_demonstrations": 1},
                     {"decoder": "args_greedy", "guidance_weight": 40, "top_k": 6}],
        split={"train_users": 5, "valid_per_train_user": 1, "adapt_users": 3, "support": 4, "query": 3},
        metrics=["rouge1"],
        controls={"shuffled_labels": 0, "swap": False, "synthetic_text": False},
        judges=list(judges),
        **changes,
    )  # fmt: skip


def served(server: ChatServer, **more: Any) -> dict[str, Any]:
    place = f"served:{server.base_url}#model=big-judge"
    return {"method": "llm_judge", "backbone": place, "key_variable": "JUDGE_KEY", **more}


def run(root: Path, value: dict[str, Any]) -> tuple[Finished, StudyResults]:
    done = run_study(parse_study(value), root, Silent())
    return done, aggregate(done, "again")


def written(done: Finished) -> dict[str, dict[str, str]]:
    """Return what each deployment wrote, by name and example."""
    return {
        deployment.name: {r["example_id"]: r["completion"] for r in done.bench.folder(cell).records()}
        for deployment, cell, _ in done.plan.written
    }


def rows_of(results: StudyResults, judge: str, metric: str) -> dict[str, ResultRow]:
    """Return a judge's rows of a metric by the deployment's method or decoder."""
    return {row.decoder or row.method: row for row in results.rows if (row.judge, row.metric) == (judge, metric)}


def test_a_judge_that_prefers_the_longer_text_gives_the_win_rates_of_that_rule(tmp_path: Path) -> None:
    with chat_server(longer) as server:
        done, results = run(tmp_path / "run", study(served(server, label="big", against=["zero_shot", "reference"])))
    assert not done.failures
    texts = written(done)
    items = {item.example_id: item for items in done.bench.study_pairs().query.values() for item in items}
    opponents = {"win_independent": texts["zero_shot"], "win_independent_over_reference":
                 {name: item.reference for name, item in items.items()}}  # fmt: skip
    seen = set()
    for metric, against in opponents.items():
        found = rows_of(results, "big", metric)
        assert set(found) == set(texts) - ({"zero_shot"} if metric == "win_independent" else set())
        for name, row in found.items():
            examples = sorted(texts[name])
            values = pair_accuracy([len(texts[name][e]) - len(against[e]) for e in examples])
            users = [items[e].user_id for e in examples]
            expected = clustered_mean(values, users, done.bench.study.resamples, done.bench.study.seed)
            assert (row.value, row.ci_low, row.ci_high) == (expected.value, expected.low, expected.high)
            assert (row.n_examples, row.n_missing) == (len(examples), 0)
            seen |= set(values)
    assert seen == {0.0, 0.5, 1.0}
    for metric, value in (("orders_disagree", 0.0), ("unread", 0.0)):
        assert {row.value for row in rows_of(results, "big", metric).values()} == {value}
    # A rule that knows no places names each as often as the other.
    assert {row.value for row in rows_of(results, "big", "first_place").values()} <= {0.5, None}


def test_a_judge_that_loves_the_first_place_ties_and_one_that_babbles_is_missing(tmp_path: Path) -> None:
    with chat_server(
        lambda request: completion({"first": "A", "babble": "Both are lovely."}[request["model"]])
    ) as server:
        places = {name: f"served:{server.base_url}#model={name}" for name in ("first", "babble")}
        judges = [{**served(server), "label": name, "backbone": place} for name, place in places.items()]
        done, results = run(tmp_path / "run", study(*judges))
    assert {row.value for row in rows_of(results, "first", "win_independent").values()} == {0.5}
    assert {row.value for row in rows_of(results, "first", "first_place").values()} == {1.0}
    assert {row.value for row in rows_of(results, "first", "orders_disagree").values()} == {1.0}
    (note,) = [note for note in results.notes if note.startswith("Judge first was asked")]
    assert "100.0 % of the answers with a preference name the first place" in note
    texts = written(done)
    lost = 0
    for name, row in rows_of(results, "babble", "win_independent").items():
        same = sum(texts[name][e] == texts["zero_shot"][e] for e in texts[name])
        assert (row.n_examples, row.n_missing) == (same, len(texts[name]) - same)
        assert row.value == (0.5 if same else None)
        lost += row.n_missing
    assert lost > 0
    assert {row.value for row in rows_of(results, "babble", "unread").values()} == {1.0}
    assert any(f"{lost} could not be read and are missing" in note for note in results.notes)


def test_questions_are_asked_once_across_runs_and_counted(tmp_path: Path) -> None:
    with chat_server(longer) as server:
        done, first = run(tmp_path / "one", study(served(server)))
        asked = len(server.requests)
        _, again = run(tmp_path / "two", study(served(server)))
        assert len(server.requests) == asked
    texts = written(done)
    distinct = {
        (name, e) for name in ("icl", "args_greedy") for e in texts[name] if texts[name][e] != texts["zero_shot"][e]
    }
    # Two for each pair of texts that differ, two to see that the server answers; none for equal texts.
    pairs = {(e, texts[name][e]) for name, e in distinct}
    assert asked == 2 * len(pairs) + 2

    def total(results: StudyResults, metric: str) -> float:
        return sum(row.value or 0 for row in rows_of(results, "llm_judge", metric).values())

    assert total(first, "judge_requests") == asked - 2
    assert total(again, "judge_requests") == 0
    assert total(again, "judge_cached") == 2 * len(distinct)
    for results in (first, again):
        assert total(results, "judge_prompt_tokens") == 10 * 2 * len(distinct)
        assert total(results, "judge_completion_tokens") == 2 * 2 * len(distinct)
    for metric in ("win_independent", "orders_disagree", "first_place", "unread"):
        assert rows_of(again, "llm_judge", metric) == rows_of(first, "llm_judge", metric)
    assert any(f"took {asked} requests and {total(first, 'judge_cached'):.0f} answers" in note for note in first.notes)


def test_what_was_asked_can_be_read_and_the_key_cannot(tmp_path: Path) -> None:
    with chat_server(longer) as server:
        done, _ = run(tmp_path / "run", study(served(server, options={"shots": 2})))
        host = server.base_url.split("/")[2]
    sent = {request["messages"][0]["content"] for request in server.requests}
    assert all(request["key"] == f"Bearer {KEY}" for request in server.requests)
    found: dict[str, str] = {}
    for cell in [cell for _, cell in done.plan.judges] + list(done.plan.verdicts.values()):
        folder = done.bench.folder(cell)
        texts = asked_in(folder.path)
        found |= texts
        if cell.kind == "verdict":
            for record in folder.records():
                if record["prompt"] is not None:
                    first, second = (data_of({"messages": [{"role": "user", "content": texts[record[name]]}]})
                                     for name in ("prompt", "prompt_swapped"))  # fmt: skip
                    assert first["answer A"] == second["answer B"] != first["answer B"] == second["answer A"]
                    assert len(first["earlier choices of the user"]) == record["demonstrations"] == 2
    assert set(found.values()) == sent
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        assert KEY.encode() not in content, path
        assert host.encode() not in content, path


def test_a_wrong_key_is_one_sentence_and_no_more_requests(tmp_path: Path) -> None:
    """The server repeats the key that it refuses; what is kept of the error does not."""
    with chat_server(lambda _: Reply({"error": {"message": f"{'x' * 150} no such thing: {KEY}"}}, 401)) as server:
        _, results = run(tmp_path / "run", study(served(server)))
    assert len(server.requests) <= 2
    sentence = results.failures[0]["error"]
    assert "refuses the key in JUDGE_KEY" in sentence
    assert all("needs 'adapt llm_judge', which failed" in failure["error"] for failure in results.failures[1:])
    assert len(results.failures) == 3
    assert not rows_of(results, "llm_judge", "win_independent")
    assert rows_of(results, "global_bt", "win_cross")
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert KEY.encode() not in content and KEY[:9].encode() not in content, path
    assert KEY not in json.dumps(results.to_json())


def test_a_run_that_was_cut_goes_on_and_pays_for_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is busy twice, then refuses for good, and is asked by the next run for what is missing alone."""
    monkeypatch.setattr(judging, "COMPARISONS_AT_A_TIME", 2)
    monkeypatch.setattr(kept, "ASKED_AT_A_TIME", 1)
    answered: list[str] = []
    # Two questions are a look at the server, then come two for each comparison.
    statuses = iter([429, 200, 503, *[200] * 4, 400])

    def answer(request: Request) -> Reply:
        status = next(statuses, 200)
        if status != 200:
            return Reply({"error": {"message": "busy"}}, status)
        answered.append(request["messages"][0]["content"])
        return longer(request)

    with chat_server(answer) as server:
        cut = run_study(parse_study(study(served(server))), tmp_path / "run", Silent())
        assert ["answers 400" in failure["error"] for failure in cut.failures] == [True]
        before = len(answered)
        done, results = run(tmp_path / "run", study(served(server)))
        assert not done.failures
        assert len(set(answered)) == len(answered) > before > 2
        statuses = iter(())
        _, whole = run(tmp_path / "whole", study(served(server)))
    for metric in ("win_independent", "orders_disagree", "first_place", "unread"):
        assert rows_of(results, "llm_judge", metric) == rows_of(whole, "llm_judge", metric)
    for cell in done.plan.verdicts.values():
        folder = done.bench.folder(cell)
        texts = asked_in(folder.path)
        named = {r[name] for r in folder.records() for name in ("prompt", "prompt_swapped") if r[name] is not None}
        assert set(texts) == named


def test_a_persona_is_written_once_and_judged_by(tmp_path: Path) -> None:
    """A judge with margins over a server: ℓ is the difference of lengths, with a pull of 3 to the first place."""
    written_for: list[str] = []

    def answer(request: Request) -> Reply:
        if "top_logprobs" not in request:
            written_for.append(request["messages"][0]["content"])
            return completion("likes long texts")
        asked = read_judge_prompt(request)
        assert asked.persona in ("", "likes long texts")
        return labels_reply(3.0 + 0.1 * (len(asked.first) - len(asked.second)))

    with chat_server(answer) as server:
        judge = {**served(server), "method": "persona_judge", "options": {"num_personas": 1}}
        done, results = run(tmp_path / "run", study(judge))
    assert not done.failures
    ((_, cell),) = done.plan.judges
    users = done.bench.folder(cell).records()
    assert {record["persona"] for record in users} <= {None, "", "likes long texts"}
    assert len(written_for) == len(set(written_for)) == len(users) == 3
    texts = written(done)
    for name, row in rows_of(results, "persona_judge", "win_independent").items():
        values = pair_accuracy([len(texts[name][e]) - len(texts["zero_shot"][e]) for e in texts[name]])
        assert row.value == pytest.approx(values.mean())
        assert row.n_missing == 0
    # The pull of the first place is there in the answers, and not in the margins.
    assert {row.value for row in rows_of(results, "persona_judge", "first_place").values()} == {1.0}


def test_judges_that_share_a_network_or_are_the_guide_are_named_so(tmp_path: Path) -> None:
    """The policy's own network is related; the judge that picked the text is circular; a name of a server counts too."""
    labels = {"labels": ["river", "stone"]}
    with chat_server(longer) as server:
        same = f"served:{server.base_url}#model=somebody/Synthetic-Words"
        value = study(
            {"method": "icl_judge", "label": "own", "options": labels},
            {"method": "icl_judge", "label": "other", "options": {**labels, "num_demonstrations": 0}},
            {**served(server), "backbone": same, "label": "same name"},
            served(server, label="far"),
        )
        value["reward_models"].append({"method": "icl_judge", "label": "picker", "options": labels})
        value["deployments"].append({"decoder": "best_of_n", "reward_models": ["picker"], "options": {"n": 2}})
        done = run_study(parse_study(value), tmp_path / "run", Silent())
    assert not done.failures, done.failures
    results = aggregate(done, "again")
    names = {
        judge: {row.decoder or row.method: row.metric for row in results.rows
                if row.judge == judge and row.metric.startswith("win_")}
        for judge in ("own", "other", "same name", "far")
    }  # fmt: skip
    picked = "best_of_n n=2"
    related = {"icl": "win_related", "args_greedy": "win_related", picked: "win_related"}
    assert names == {
        "own": {**related, picked: "win_self"},
        "other": related,
        "same name": related,
        "far": dict.fromkeys(related, "win_independent"),
    }
    for page in (study_markdown(results), render(results)):
        assert "Judges that only judge" in page
        for standing in ("independent", "related: the network of the policy or of the guide", "circular: it picked"):
            assert standing in page
    told = [note for note in results.notes if "is the policy's own network" in note]
    assert [note.split()[1] for note in told] == ["own", "other", "same"]
    assert sum("Cohen's kappa" in note and note.startswith("Judges ") for note in results.notes) == 6
    # Two judges of one rule agree on every pair of texts that differ, and those alone were judged.
    texts = written(done)
    judged = sum(texts[name][e] != texts["zero_shot"][e] for name in texts for e in texts[name])
    (note,) = [note for note in results.notes if note.startswith("Judges same name and far ")]
    assert f"agree on {judged} of {judged} comparisons, Cohen's kappa 1.00 [1.00, 1.00]" in note


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"judges": [{"method": "llm_juge"}]}, "unknown judge 'llm_juge'. Did you mean 'llm_judge'?"),
        ({"judges": [{"method": "llm_judge", "options": {"shot": 2}}]}, "no option 'shot'. Did you mean 'shots'?"),
        ({"judges": [{"method": "llm_judge", "options": {"shots": -1}}]}, "shots is -1"),
        ({"judges": [{"method": "llm_judge"}, {"method": "llm_judge"}]}, "are called 'llm_judge'"),
        ({"judges": [{"method": "llm_judge", "label": "global_bt"}]}, "are called 'global_bt'"),
        ({"judges": [{"method": "llm_judge"}], "deployments": [{"policy": "icl"}]}, "deployments has no zero_shot"),
        ({"judges": [{"method": "llm_judge", "backbone": "vllm:some/model"}]}, "start a server and write served:"),
        (
            {"judges": [{"method": "llm_judge", "backbone": "served:http://a/v1#model=m,context=9"}]},
            "context= has no use",
        ),
        ({"reward_models": [{"method": "llm_judge"}]}, "llm_judge ranks no pairs"),
        ({"judges": [{"method": "llm_judge", "against": ["icl"]}]}, "'judges.0.against.0' is 'icl'"),
    ],
)
def test_what_a_judge_cannot_be_is_said_before_anything_runs(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    from rewardgap.core.errors import RewardGapError

    with pytest.raises(RewardGapError) as found:
        run_study(parse_study({**study(), **change}), tmp_path / "run", Silent())
    assert sentence in str(found.value)
    assert not list((tmp_path / "run").glob("cells/*"))


def test_a_key_in_the_place_of_its_variable_is_refused_and_not_repeated() -> None:
    from rewardgap.core.errors import ConfigError

    with pytest.raises(ConfigError) as found:
        parse_study(study({"method": "llm_judge", "key_variable": KEY}))
    assert "judges.0.key_variable" in str(found.value)
    assert KEY not in str(found.value)
