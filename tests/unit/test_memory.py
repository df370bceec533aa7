"""Memory: what is planned is what is allocated, what does not fit is refused, and what ran out is done in parts."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from rewardgap.backbones import memory
from rewardgap.backbones.features import FeatureCache
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.lean import make_lean, weights_to_prepare
from rewardgap.backbones.lora import LoraSettings
from rewardgap.backbones.memory import SessionPlan, batch_need, check_memory, fewer_rows, free_memory, session_need
from rewardgap.backbones.prepared import PreparedLinear
from rewardgap.backbones.session import TrieSession
from rewardgap.core.errors import ConfigError, OutOfMemoryError
from rewardgap.core.records import PreferencePair
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.plain import Sample
from rewardgap.policies.base import GenerationSettings
from rewardgap.policies.cope import CoPe, CoPeConfig
from rewardgap.policies.guided import Guided, guided
from rewardgap.policies.many import Asked, write_many
from rewardgap.policies.zero_shot import zero_shot
from rewardgap.rewards.build import reward_model
from rewardgap.studies.batches import in_batches
from rewardgap.studies.cells import Cell, CellFolder
from standins import ARCHITECTURES, private_copy, text_backbone, tiny_backbone, tiny_tokenizer

CPU = torch.device("cpu")
PROMPTS = ["Name a colour.", "river", "the stone and the light of winter " * 3, "Why?", "a b c d", "x", "music " * 9]
LENGTHS = GenerationSettings(max_new_tokens=5, seed=3)


def held(session: TrieSession) -> int:
    """Return the bytes of everything that a session keeps between steps."""
    forest = session.forest
    arrays = (forest._tokens, forest._parents, forest._positions, forest._bits)
    layers = session._cache.layers if session._cache is not None else ()
    return sum(array.nbytes for array in arrays) + sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def peak(work: Any) -> int:
    """Return the most bytes of tensors that were there at once, beside those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    del kept
    return int(np.cumsum(changes).max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_session_keeps_is_counted_exactly(architecture: str, dtype: torch.dtype) -> None:
    """tiny llama: 2 · 2 layers · 2 heads · 10 numbers · 8 bytes = 640 bytes a slot, and 24 + ⌈31 / 8⌉ beside them."""
    network = tiny_backbone(architecture, dtype=dtype)
    prompts = [[1, 2, 3], [(7 * i) % 29 for i in range(20)], [5]]
    session = TrieSession(network, 3, 31)
    session.prefill(prompts)
    need = session_need(SessionPlan(network, 20, 11))
    assert 3 * need.cache == held(session)
    if architecture == "llama" and dtype == torch.float64:
        assert need.cache == 31 * (640 + 24 + 4)
        assert need.logits == 2 * 29 * 8


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_widest_moment_lies_between_half_the_plan_and_the_plan(architecture: str, lean: bool) -> None:
    network = private_copy(tiny_backbone(architecture, dtype=torch.float32))
    if lean:
        make_lean(network.model)
    for length in (30, 200):
        need = session_need(SessionPlan(network, length, 20))

        def work(length: int = length) -> Any:
            session = TrieSession(network, 4, length + 20)
            return session, session.prefill([[i % 29 for i in range(length)]] * 4)

        work()  # what is prepared once belongs to no batch
        planned = 4 * (need.cache + need.forward)
        assert planned / 2 <= peak(work) <= planned


def test_logits_are_counted_at_their_widest() -> None:
    states = torch.zeros(64, 24)
    network = text_backbone("llama", dtype=torch.float32)
    assert peak(lambda: network.log_probs(states)) == 64 * session_need(SessionPlan(network, 1, 1)).logits


def test_weights_that_are_yet_to_be_prepared_are_counted() -> None:
    network = private_copy(tiny_backbone(dtype=torch.float32))
    assert weights_to_prepare(network.model) == 0
    make_lean(network.model)
    layers = [module for module in network.model.modules() if isinstance(module, PreparedLinear)]
    if not layers:
        pytest.skip("torch was built without MKL")
    total = sum(layer.weight.numel() for layer in layers) * 4
    assert weights_to_prepare(network.model) == 3 * total
    assert batch_need([SessionPlan(network, 9, 1)] * 2).fixed == 3 * total
    session = TrieSession(network, 1, 40)
    session.prefill([[1] * 40])  # 40 tokens: the size of 64
    assert weights_to_prepare(network.model) == 2 * total
    assert all(layer.num_prepared == 0 for layer in layers)  # used side by side, they are not prepared one by one


PAIRS = [
    PreferencePair(user_id=f"u{n % 3}", example_id=str(n), prompt=f"Why {n % 4}?", chosen=f"red {n}", rejected="blue")
    for n in range(9)
]


@pytest.mark.parametrize("method", ["global_bt", "pal_b", "mpu", "p_dpo"])
@pytest.mark.parametrize("reader", ["policy", "larger", "text"])
def test_a_guide_opens_the_sessions_that_are_planned(method: str, reader: str, tmp_path: Path) -> None:
    policy = text_backbone("llama", dtype=torch.float32)
    network = policy if reader == "policy" else text_backbone("mistral", seed=2, dtype=torch.float32)
    if reader == "text":
        if method == "p_dpo":
            pytest.skip("refuses another tokenizer")
        from standins import as_backbone, tiny_model

        other = tiny_tokenizer(across=True)
        network = as_backbone(tiny_model("llama", vocabulary=len(other), dtype=torch.float32), other)
    options: dict[str, Any] = {"fit_mode": "lora", "user_steps": 1} if method == "mpu" else {}
    fit = {"epochs": 1} if method in ("mpu", "p_dpo") else {}
    model = reward_model(
        method, network, features=FeatureCache(tmp_path), lora=LoraSettings(2, 4, 0.0), **options
    ).fit(PAIRS, **fit)  # fmt: skip
    deployed = guided(policy, model, top_k=4, settings=LENGTHS)
    run = deployed.open(PROMPTS[:3], [model.adapt([])] * 3)
    guide = deployed.guide(run)
    guide.start(run.tips)
    sessions = [run.session, *getattr(guide, "_sessions", [getattr(guide, "_session", None)])]
    opened = [held(session) for session in sessions if session is not None]
    plans = deployed.sessions(PROMPTS[:3], run.prepared)
    assert [3 * session_need(plan).cache for plan in plans] == opened
    assert 3 * batch_need(plans).cache == sum(opened)
    assert len(opened) == {"policy": {"global_bt": 1, "p_dpo": 3}.get(method, 2)}.get(reader, 2 + (method == "p_dpo"))


@settings(max_examples=40)
@given(
    free=st.integers(0, 10**7), batch_size=st.integers(1, 200), rows=st.integers(1, 2), prompt=st.integers(1, 90),
    scored=st.sampled_from([0, 256]),
)  # fmt: skip
def test_the_batch_size_that_is_named_fits_and_no_larger_one(
    free: int, batch_size: int, rows: int, prompt: int, scored: int
) -> None:
    plans = [SessionPlan(tiny_backbone(), prompt, 20, scored=scored), SessionPlan(tiny_backbone("gemma3"), 7, 9)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_memory", lambda device: free)
        try:
            check_memory(plans, batch_size, rows)
        except OutOfMemoryError as error:
            said = str(error)
            assert said.startswith(f"batch_size {batch_size} needs about ")
            assert f"for prompts of up to {prompt} tokens" in said
            named = said.split("batch_size ")[2:]
            assert bool(named) != ("not even one prompt fits" in said)
            fits = int(named[0].removesuffix(" fits.")) if named else 0
            assert fits < batch_size
            if fits:
                check_memory(plans, fits, rows)
            with pytest.raises(OutOfMemoryError):
                check_memory(plans, fits + 1, rows)
        else:
            need = batch_need(plans)
            assert need.fixed + batch_size * rows * need.row <= free


def test_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 3 + 1 + 1 GiB and 1 GiB for all: 8 rows need 41 GiB; of 24, 23 are left, for 4 rows."""
    gib = 2**30
    monkeypatch.setattr(memory, "batch_need", lambda plans: memory.Need(3 * gib, gib, gib, gib))
    monkeypatch.setattr(memory, "free_memory", lambda device: 24 * gib)
    with pytest.raises(OutOfMemoryError) as caught:
        check_memory([SessionPlan(tiny_backbone(), 812, 32)], 8)
    assert str(caught.value) == (
        "batch_size 8 needs about 41.0 GiB for prompts of up to 812 tokens (keys and values 24.0, forward passes 9.0, "
        "logits 8.0), 24.0 GiB are free; batch_size 4 fits."
    )


def test_a_container_has_no_more_than_its_limit_leaves(tmp_path: Path) -> None:
    assert free_memory(CPU, tmp_path) > 0
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1200\n")
    assert free_memory(CPU, tmp_path) == 3800
    (tmp_path / "memory.current").write_text("6000\n")
    assert free_memory(CPU, tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU, tmp_path) > 6000


def test_a_policy_refuses_before_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = zero_shot(text_backbone("llama", dtype=torch.float32), settings=LENGTHS)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1_000_000)
    monkeypatch.setattr(Backbone, "hidden", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(OutOfMemoryError, match=r"batch_size 50 needs .* batch_size \d+ fits"):
        deployed.generate(["river"] * 50)
    with pytest.raises(OutOfMemoryError, match=r"batch_size 40 needs"):
        deployed.generate(["river"] * 50, batch_size=40)


def test_a_prompt_that_takes_two_rows_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = text_backbone("llama", dtype=torch.float32)
    deployed = CoPe(policy, LENGTHS, config=CoPeConfig(sft_steps=1, num_samples=2))
    prepared = [deployed.show("river", None, 50)]
    row = batch_need(deployed.sessions(["river"], prepared)).row
    monkeypatch.setattr(memory, "free_memory", lambda device: 7 * row)
    with pytest.raises(OutOfMemoryError, match=r"batch_size 4 needs .* batch_size 3 fits"):
        deployed.check_batches(["river"] * 9, [None] * 9, 4)
    deployed.check_batches(["river"] * 9, [None] * 9, 3)


def allocator() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


def numpy_error() -> Exception:
    with pytest.raises(MemoryError) as caught:
        np.zeros(1 << 60, np.uint8)
    return caught.value


OUT = [allocator, numpy_error, lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")]


@pytest.mark.parametrize("make", OUT)
def test_running_out_halves_a_batch_and_names_a_single_row(make: Any) -> None:
    assert [fewer_rows(make(), rows) for rows in (9, 8, 3, 2)] == [5, 4, 2, 1]
    with pytest.raises(OutOfMemoryError, match="a single row does not fit into memory: "):
        fewer_rows(make(), 1)
    own = OutOfMemoryError("batch_size 1 needs 5 GiB.")
    with pytest.raises(OutOfMemoryError, match=r"^batch_size 1 needs 5 GiB\.$"):
        fewer_rows(own, 1)
    with pytest.raises(RuntimeError, match="shapes"):
        fewer_rows(RuntimeError("shapes differ"), 8)


class Bench:
    """What `in_batches` asks of a workbench."""

    def __init__(self, root: Path, batch_size: int) -> None:
        self.root, self.said, self.study = root, [], SimpleNamespace(batch_size=batch_size)
        self.progress = self

    def folder(self, cell: Cell) -> CellFolder:
        return CellFolder(self.root, cell)

    def task(self, title: str, total: int) -> Any:
        return nullcontext(lambda done, total: None)

    def say(self, text: str) -> None:
        self.said.append(text)


CELL = Cell("deployment", {"test": 1}, "deploy")


@given(count=st.integers(1, 23), batch_size=st.integers(1, 9), most=st.integers(1, 9), stop=st.integers(0, 30))
@settings(max_examples=15)
def test_records_are_the_same_in_any_parts_and_after_any_interruption(
    count: int, batch_size: int, most: int, stop: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """More than `most` rows do not fit; the first run is ended by Ctrl-C when `stop` rows were asked for."""
    bench: Any = Bench(tmp_path_factory.mktemp("run"), batch_size)
    asked: list[int] = []
    finished: list[list[int]] = []

    def work(batch: Any, stop: int | None = None) -> list[dict[str, Any]]:
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        asked.extend(batch)
        if stop is not None and len(asked) > stop:
            raise KeyboardInterrupt
        finished.append(list(batch))
        return [{"value": 10 * item} for item in batch]

    interrupted = stop < count
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            in_batches(bench, CELL, range(count), lambda batch: work(batch, stop))
        kept = [record["item"] for record in bench.folder(CELL).start()]
        # Every batch before the one in flight is there as a whole.
        assert kept == list(range(len(kept)))
        assert len(kept) % batch_size == 0
        assert sum(map(len, finished)) - len(kept) < batch_size
        asked.clear()
        in_batches(bench, CELL, range(count), work)
        assert asked == list(range(len(kept), count))
    else:
        in_batches(bench, CELL, range(count), work)
    assert [record["value"] for record in bench.folder(CELL).records()] == [10 * item for item in range(count)]
    assert all(len(part) <= most for part in finished)
    assert bool(bench.said) == (min(batch_size, count) > most)
    if bench.said:
        size = min(batch_size, count)
        assert bench.said[0] == f"  deploy: out of memory with {size} at a time; going on with {(size + 1) // 2}."


def test_a_row_that_does_not_fit_alone_is_the_cells_error(tmp_path: Path) -> None:
    def work(batch: Any) -> list[dict[str, Any]]:
        if 5 in batch:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return [{"value": item} for item in batch]

    bench: Any = Bench(tmp_path, 4)
    with pytest.raises(OutOfMemoryError, match="a single row does not fit into memory: DefaultCPUAllocator"):
        in_batches(bench, CELL, range(8), work)
    assert [record["item"] for record in bench.folder(CELL).start()] == [0, 1, 2, 3]


def write(deployed: Any, states: list[Any], batch_size: int, stop_after: int | None = None) -> dict[int, str]:
    """Write a completion for each prompt, and interrupt when so many have ended."""
    written: dict[int, str] = {}

    def done(number: int, prepared: Any, generation: Any) -> None:
        assert number not in written
        written[number] = generation.text
        if len(written) == stop_after:
            raise KeyboardInterrupt

    asked = Asked(PROMPTS, states, [50 + number for number in range(len(PROMPTS))])
    if stop_after is None:
        write_many(deployed, asked, batch_size, done)
    else:
        with pytest.raises(KeyboardInterrupt):
            write_many(deployed, asked, batch_size, done)
    return written


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Guided:
    network = text_backbone("mistral", seed=2)
    model = reward_model("lore", network, rank=2, features=FeatureCache(tmp_path_factory.mktemp("f"))).fit(PAIRS)
    return guided(text_backbone("llama"), model, guidance_weight=3.0, top_k=5, settings=LENGTHS)


@pytest.mark.parametrize("kind", ["sample", "guided", "best_of_n"])
def test_many_prompts_are_written_in_turn_as_alone(kind: str, steered: Guided) -> None:
    states: list[Any] = [None] * len(PROMPTS)
    deployed: Any = zero_shot(text_backbone("llama"), decoder=Sample(1.0), settings=LENGTHS)
    if kind != "sample":
        states = [steered.reward.state_of(f"u{n % 3}") for n in range(len(PROMPTS))]  # type: ignore[attr-defined]
        deployed = steered
    if kind == "best_of_n":
        deployed = Guided(steered.backbone, BestOfN(n=2), LENGTHS, reward=steered.reward)
    seeds = [50 + number for number in range(len(PROMPTS))]
    rows = zip(PROMPTS, states, seeds, strict=True)
    alone = [deployed.open([prompt], [state], [seed]).generate()[0].text for prompt, state, seed in rows]
    for batch_size in (1, 3, 7):
        written = write(deployed, states, batch_size)
        assert [written[number] for number in range(len(PROMPTS))] == alone
    kept = write(deployed, states, 3, stop_after=4)
    assert len(kept) == 4
    assert all(alone[number] == text for number, text in kept.items())
    assert deployed.generate(PROMPTS, states, batch_size=2) == deployed.generate(PROMPTS, states)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        deployed.generate(PROMPTS, states, batch_size=0)


def test_running_out_in_the_middle_keeps_what_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network takes three rows at first and two after some steps; nothing is written twice."""
    deployed = zero_shot(text_backbone("llama"), settings=LENGTHS)
    plain = write(deployed, [None] * 7, 7)
    real, calls = TrieSession.extend, 0

    def short(self: TrieSession, blocks: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if self.rows > (3 if calls < 9 else 2):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, blocks)

    monkeypatch.setattr(TrieSession, "extend", short)
    with pytest.warns(UserWarning) as said:
        assert write(deployed, [None] * 7, 7) == plain
    assert [str(warning.message) for warning in said] == [
        "out of memory with 7 prompts at a time; going on with 4.",
        "out of memory with 4 prompts at a time; going on with 2.",
    ]
    assert calls > 9


def test_a_row_is_told_of_once_it_has_ended() -> None:
    """Rows that end early are told of before the longest has."""
    deployed = zero_shot(text_backbone("llama"), decoder=Sample(1.5), settings=GenerationSettings(max_new_tokens=40))
    order: list[int] = []
    lengths: dict[int, int] = {}

    def done(number: int, prepared: Any, generation: Any) -> None:
        order.append(number)
        lengths[number] = len(generation.ids)

    write_many(deployed, Asked(PROMPTS, [None] * 7, list(range(7))), 7, done)
    assert sorted(order) == list(range(7))
    assert [lengths[number] for number in order] == sorted(lengths.values())
