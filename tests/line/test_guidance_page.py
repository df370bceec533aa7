"""docs/guidance.md: its tables are the catalogue's, its commands run, and its costs are those that networks count."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import lines, ok, write_rows
from tokenizers import AddedToken

import rewardgap as rg
from rewardgap.backbones.session import TrieSession
from rewardgap.core.records import PreferencePair
from rewardgap.decoding.args import ArgsGreedy, ArgsStochastic
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.blockwise import Blockwise
from rewardgap.decoding.catalog import DECODERS
from rewardgap.decoding.loop import StopRule, decode
from rewardgap.decoding.plain import Greedy
from rewardgap.decoding.transfer_q import TransferQ
from rewardgap.rewards.guide import BackboneGuide, PolicyStateGuide
from rewardgap.studies.deployments import expand
from rewardgap.studies.plan import check_names
from rewardgap.studies.spec import parse_study
from standins import DotHead, as_backbone, tiny_backbone, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guidance.md").read_text(encoding="utf-8")
WORDS = ("river", "stone", "light", "garden", "paper", "winter", "spring", "glass")
LENGTH, K, N, PROMPT = 12, 5, 4, [1, 2, 3]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_tables_are_the_catalogues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("guidance_page")
    assert page.filled(PAGE) == PAGE
    for card in DECODERS:
        assert (f"| [`{card.name}`](" in PAGE) == card.guided


def test_the_commands_run_in_the_order_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the small policy of the tests in the place of SmolLM2, with rows of the shapes that the page shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    shown = [lines(block)[0] for block in blocks("json")]
    assert [set(row) for row in shown] == [{"user_id", "prompt", "chosen", "rejected"}, {"user_id", "prompt"}]
    rows = [
        {"user_id": f"u{user}", "prompt": word, "chosen": "light", "rejected": "stone" if user % 2 else "paper",
         "reference": f"{word} light"}
        for user in range(7)
        for word in WORDS
    ]  # fmt: skip
    write_rows(tmp_path / "prefs.jsonl", rows)
    write_rows(tmp_path / "new_users.jsonl", [{**row, "user_id": "u17"} for row in rows[:3]])
    write_rows(tmp_path / "prompts.jsonl", [{"user_id": user, "prompt": "river"} for user in ("u17", "u99")])
    (study,) = [block for block in blocks("yaml") if "name: titles" in block]
    (tmp_path / "study.yaml").write_text(study.replace("smollm2-135m", "synthetic-words"), encoding="utf-8")
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert all(command.startswith("rewardgap ") for command in commands)
    said = {}
    for command in commands:
        arguments = shlex.split(command.replace("smollm2-135m", "synthetic-words"))[1:]
        said.setdefault(arguments[0], []).append(ok(*arguments, "--threads", 1))
    assert set(said) == {"fit", "adapt", "score", "generate", "chat", "tune", "run"}
    assert [row["user_id"] for row in lines(said["generate"][0].stdout)] == ["u17", "u99"]
    assert "1 of 2 users have no state: cold start" in said["generate"][0].stderr
    assert "without guidance: " in said["chat"][0].stdout
    assert "% changed at λ" in said["chat"][0].stderr
    assert (tmp_path / "runs" / "titles" / "tune.svg").exists()
    assert (tmp_path / "runs" / "titles" / "report.html").exists()
    assert "- {decoder: args_greedy" in said["tune"][0].stdout or "λ = 0" in said["tune"][0].stdout


def test_the_lines_for_a_judge_are_two_deployments() -> None:
    whole, part = map(yaml.safe_load, blocks("yaml"))
    study = parse_study({**whole, **part, "policy": "synthetic-words"})
    check_names(study)
    picked = [(d.reward_model.name if d.reward_model else None, d.options) for d in expand(study)]
    assert picked == [
        ("lore", {"n": 4, "pool_seed": 0}),
        ("icl_judge", {"n": 4, "pool_seed": 0, "tournament": "knockout"}),
    ]


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny network whose tokenizer has the judge's two labels."""
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path))
    labels = [AddedToken(text, normalized=False) for text in ("First", "Second")]
    tokenizer = tiny_tokenizer(extra=labels)
    model = tiny_model("llama", vocabulary=len(tokenizer))
    model.config.max_position_embeddings = 1024
    policy = as_backbone(model, tokenizer)
    pairs = [
        PreferencePair(user_id=f"u{i % 2}", example_id=str(i), prompt=word, chosen=f"{word} light", rejected="stone")
        for i, word in enumerate(WORDS)
    ]
    rm = rg.reward_model("lore", policy, rank=2).fit(pairs)
    known: dict[str, Any] = {"policy": policy, "rm": rm, "support": pairs[:2], "prompts": ["river", "a garden"]}
    written = []
    for block in blocks("python"):
        if "generate" in block:
            for line in block.strip().splitlines():
                if ".generate(" in line:
                    written.append(eval(line, known))
                else:
                    exec(line, known)
    assert len(written) == 3
    assert all(len(texts) == 2 for texts in written)


# What costs what


def count(decoder: Any, reads: str) -> tuple[list[int], list[int]]:
    """Return passes and tokens behind the prompt, of the policy and of the reward model's own network."""
    policy, stop = tiny_backbone("llama"), StopRule((), LENGTH)
    room = decoder.room(LENGTH) if hasattr(decoder, "room") else LENGTH + K + 1
    session = TrieSession(policy, 1, len(PROMPT) + room)
    weight, guide = [policy.model.get_input_embeddings().weight[3].detach()], None
    if reads == "policy":
        guide = PolicyStateGuide(DotHead(), weight, 1.0)  # type: ignore[arg-type]
    elif reads == "own":
        guide = BackboneGuide(tiny_backbone("mistral", seed=1), [PROMPT], DotHead(), weight, 1.0, room)  # type: ignore[arg-type]
    tips = session.prefill([PROMPT])
    before = (session.forwards, session.tokens)
    (done,) = decode(session, tips, decoder, stop, guide=guide, seeds=[1], look_ahead=None)
    assert done.steps == LENGTH
    own = [session.forwards - before[0], session.tokens - before[1]]
    return own, [guide.forwards - 1, guide.tokens - len(PROMPT)] if reads == "own" and guide is not None else [0, 0]


def test_costs_are_those_of_the_table() -> None:
    """Each row as the page has it, and beside it what the networks counted."""
    rows = re.findall(r"^\| (.*) \|$", PAGE.partition("## What costs what")[2], re.MULTILINE)
    assert rows[0] == (
        "scheme | passes of the policy | tokens in one | passes of a reward model's own network | tokens in one"
    )
    alone, args, best, block, rolled = (row.split(" | ", 1)[1] for row in rows[2:])
    assert alone == "T - 1 | 1 | |"
    assert count(Greedy(), "none") == ([LENGTH - 1, LENGTH - 1], [0, 0])
    assert args == "T - 1 | 1 | T, or fewer by looking ahead | k"
    for scheme in (ArgsGreedy(1.0, K), ArgsStochastic(1.0, K)):
        assert count(scheme, "own") == ([LENGTH - 1, LENGTH - 1], [LENGTH, LENGTH * K])
        assert count(scheme, "policy") == ([LENGTH, LENGTH * K], [0, 0])
    assert best == "T - 1 | up to N | 1 | up to N T"
    own, guide = count(BestOfN(N), "own")
    assert (own[0], guide[0]) == (LENGTH - 1, 1)
    assert LENGTH - 1 < own[1] <= N * (LENGTH - 1)
    assert LENGTH < guide[1] <= N * LENGTH
    assert block == "T - 1 | up to K | T / M, rounded up | up to K M"
    for length in (3, 5):
        own, guide = count(Blockwise(length, N), "own")
        assert (own[0], guide[0]) == (LENGTH - 1, -(-LENGTH // length))
        assert LENGTH - 1 < own[1] <= N * (LENGTH - 1)
        assert LENGTH < guide[1] <= N * length * guide[0]
    assert rolled == "up to T (1 + R) | up to k | T | up to k (1 + R)"
    own, guide = count(TransferQ(1.0, K, 2), "own")
    assert 2 * LENGTH < own[0] <= 3 * LENGTH
    assert own[1] <= K * own[0]
    assert guide[0] == LENGTH
    assert guide[1] <= LENGTH * K * 3
