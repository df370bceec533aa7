"""Studies and `generate` where memory is short, or where Ctrl-C comes: finished rows are kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from command import call, lines, ok, refused, write_rows

from rewardgap.backbones import memory
from rewardgap.backbones.session import TrieSession
from rewardgap.core.errors import OutOfMemoryError
from rewardgap.policies.base import AdaptedPolicy
from rewardgap.studies.progress import Silent
from rewardgap.studies.run import Finished, run_study
from rewardgap.studies.spec import parse_study

if TYPE_CHECKING:
    from pathlib import Path

STUDY: dict[str, Any] = {
    "name": "short",
    "data": {"name": "synthetic_text", "options": {"users": 5, "rows_per_user": 7}},
    "split": {"train_users": 3, "valid_per_train_user": 1, "adapt_users": 2, "support": 3, "query": 4},
    "policy": "synthetic-words",
    "generation": {"max_new_tokens": 4},
    "batch_size": 5,
    "reward_models": [{"method": "global_bt"}],
    "deployments": [{"policy": "zero_shot"}, {"decoder": "args_greedy", "top_k": 3}],
    "metrics": ["rouge1"],
    "controls": {"shuffled_labels": 0, "swap": False, "synthetic_text": False},
    "resamples": 50,
}
ONE = ("--threads", 1)


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))


def run(root: Path, said: Said | None = None) -> Finished:
    return run_study(parse_study(STUDY), root, said or Said())


def records(finished: Finished) -> list[list[dict[str, Any]]]:
    return [finished.bench.folder(cell).records() for _, cell, _ in finished.plan.written]


def short_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every session of more rows run out of memory."""
    real = TrieSession.extend

    def extend(self: TrieSession, blocks: Any) -> torch.Tensor:
        if self.rows > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, blocks)

    monkeypatch.setattr(TrieSession, "extend", extend)


def test_a_study_that_runs_out_of_memory_has_the_records_of_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = records(run(tmp_path / "plain"))
    with monkeypatch.context() as patch:
        patch.setenv("REWARDGAP_CACHE", str(tmp_path / "another"))
        short_of(2, patch)
        said = Said()
        finished = run(tmp_path / "short", said)
    assert not finished.failures
    assert [line for line in said.lines if line.startswith("  zero_shot:")] == [
        "  zero_shot: out of memory with 5 at a time; going on with 3.",
        "  zero_shot: out of memory with 3 at a time; going on with 2.",
    ]
    for rows, others in zip(plain, records(finished), strict=True):
        assert len(rows) == 8
        for row, other in zip(rows, others, strict=True):
            assert row.keys() == other.keys()
            for name in row.keys() - {"seconds", "forwards", "network_tokens"}:
                same = pytest.approx(row[name], abs=1e-5) if isinstance(row[name], float) else row[name]
                assert other[name] == same


def test_a_row_too_many_is_a_sentence_and_the_other_cells_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrieSession.extend

    def extend(self: TrieSession, blocks: Any) -> torch.Tensor:
        if any(len(block.tokens) == 3 for block in blocks) and self.rows:  # the candidates of a guided step
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        return real(self, blocks)

    monkeypatch.setattr(TrieSession, "extend", extend)
    failures = run(tmp_path / "short").failures
    assert [failure["title"] for failure in failures] == ["global_bt · args_greedy λ=1 k=3"]
    assert failures[0]["error"].startswith("a single row does not fit into memory: ")


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_memory", lambda device: 3 * 10**5)
        with pytest.raises(OutOfMemoryError, match=r"batch_size 5 needs about .* GiB are free; batch_size [1-4] fits"):
            run(tmp_path / "short")
    assert not list((tmp_path / "short").rglob("DONE"))
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(STUDY))
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**3)
    sentence = refused(4, "run", study, "--output", tmp_path / "short", *ONE)
    assert "not even one prompt fits" in sentence


def prompts(folder: Path) -> Path:
    texts = ["garden river", "stone", "light music paper", "winter", "forest garden", "river", "music"]
    return write_rows(folder / "prompts.jsonl", [{"user_id": "u", "prompt": text} for text in texts])


@pytest.mark.parametrize("ended", [1, 2, 4, 6])
def test_what_generate_has_finished_is_printed_before_it_leaves(
    ended: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes while the row after `ended` others is finished, whichever these are."""
    arguments = ("generate", "synthetic-words", "--prompts", prompts(tmp_path), "--max-new-tokens", 6, *ONE)
    drawn = (*arguments, "--decoder", "sample", "--batch-size", 3)
    whole = lines(ok(*drawn).stdout)
    assert json.loads(ok(*drawn, "--json").stdout)["finished"] is True
    assert lines(ok(*drawn[:-1], 7).stdout) == whole
    real, calls = AdaptedPolicy.finish, 0

    def finish(self: AdaptedPolicy, decoded: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > ended:
            raise KeyboardInterrupt
        return real(self, decoded)

    monkeypatch.setattr(AdaptedPolicy, "finish", finish)
    result = call(*drawn)
    assert result.exit_code == 130
    assert "interrupted." in result.stderr
    kept = lines(result.stdout)
    assert len(kept) == ended
    places = [whole.index(row) for row in kept]
    assert places == sorted(places)
    calls = 0
    result = call(*drawn, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["finished"], document["completions"]) == (130, False, kept)
