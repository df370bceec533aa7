"""What a study will take, before it runs: tokens through networks at the rate of this machine, and the largest batch.

    seconds = 2 W (READING · T_read + WRITING · (T_step + A_STEP · S)) / rate

with W weights, T_read tokens that are read in long passes, T_step tokens of S steps of generation, and the rate at
which a short probe multiplies matrices here. An order of magnitude: texts are not written yet, and others may use the
machine.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewardgap.backbones.memory import GIB, SessionPlan, batch_need
from rewardgap.data.base import AuthoredDataset
from rewardgap.studies.executors.base import Schedule
from rewardgap.studies.running import Outcome
from rewardgap.studies.shelf import backbone_keys

if TYPE_CHECKING:
    from rewardgap.studies.cells import Cell
    from rewardgap.studies.deployments import Deployment
    from rewardgap.studies.executors.line import Line
    from rewardgap.studies.plan import Plan
    from rewardgap.studies.spec import RewardModelSpec
    from rewardgap.studies.workbench import Workbench

READING = 1.9
"""benchmarks/results/score.json, 'pair packed': 260 tokens of 134.5 M weights in 0.353 s; the probe says 0.187 s."""
WRITING = 4.0
"""benchmarks/results/decode.json, from 'guided k=10, shared backbone' (11 tokens a step) to 'batch of 8' (88)."""
A_STEP = 22.0
"""Tokens that a step of generation costs beside its own: 'greedy' of the same file, 66 ms for a single one."""
BACKWARD = 3.0
"""Passes that a step of training counts for: one forward, and twice that backward."""
OVERHEAD = 1.0
"""Seconds of a cell without a network."""
MARGIN = 2 * GIB
"""Bytes of a worker beside its cell: libraries, and models of the cell before."""
PROBE_SECONDS = 0.5
SAMPLE = 64


@dataclass(frozen=True)
class Cost:
    """What a cell will take: seconds of one worker, and bytes of memory at the widest moment."""

    seconds: float
    memory: int


def probe() -> float:
    """Return the floating-point operations a second at which matrices of a small model's size are multiplied here."""
    import torch

    left, right = torch.ones(260, 576), torch.ones(576, 1536)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < PROBE_SECONDS:
        at = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - at)
    return 2.0 * 260 * 576 * 1536 / best


class Estimate:
    """The costs of a point's cells.

    Args:
        bench: the point's workbench.
        plan: its cells.
        rate: what `probe` found.
    """

    def __init__(self, bench: Workbench, plan: Plan, rate: float) -> None:
        self.bench, self.rate, study = bench, rate, bench.study
        self.prompt, self.completion = _lengths(bench)
        split = bench.split
        self.support = max((len(ids) for ids in split.support_ids.values()), default=0)
        self.train = len(split.train_ids)
        self.query = sum(map(len, split.query_ids.values()))
        self.pairs = self.train + len(split.valid_ids) + sum(map(len, split.support_ids.values())) + self.query
        self.written = study.generation.max_new_tokens
        self.deployments = {cell.id: deployment for deployment, cell, _ in plan.written}
        self.rewards = {cell.id: spec for spec, cell in plan.rewards}
        self._seen: set[str] = set()
        self.costs = {cell.id: self._cost(cell) for cell in plan.cells()}

    def _cost(self, cell: Cell) -> Cost:
        bench, policy = self.bench, self.bench.policy
        if cell.kind == "pairing":
            return self._network(self.pairs * self.prompt, 2 * self.pairs * self.written, self._steps(2 * self.pairs))
        if cell.kind == "reward_model":
            return self._fit(self.rewards[cell.id])
        if cell.kind == "prefixes":
            spec = self.rewards[cell.needs[0].id]
            return self._network(self._once(f"prefixes {spec.backbone} {spec.mode}", cell) * self.query * self._pair)
        if cell.kind == "deployment":
            return self._deployment(self.deployments[cell.id], cell)
        if cell.kind == "judgement":
            spec = self.rewards[cell.needs[1].id]
            if spec.mode != "frozen":
                return self._network(self.query * (self.prompt + self.written))
            # What all deployments wrote is encoded in one go, behind each prompt once, for all who read one backbone.
            prompts = self._once(f"prompts {spec.backbone}", cell) * self.prompt
            texts = self._once(f"written {spec.backbone} {cell.needs[0].id}", cell) * self.written
            return self._network(self.query * (prompts + texts))
        return Cost(OVERHEAD, bench.policy.num_weights * policy.dtype.itemsize)

    @property
    def _pair(self) -> float:
        return self.prompt + 2 * self.completion

    def _once(self, name: str, cell: Cell) -> int:
        """Return 1 for the first cell of a name, whose work the others find, and 0 for these."""
        first = name not in self._seen
        self._seen.add(name)
        return int(first)

    def _steps(self, rows: float) -> float:
        return self.written * -(-rows // self.bench.study.batch_size)

    def _fit(self, spec: RewardModelSpec) -> Cost:
        encoded = 0.0
        if f"pairs {spec.backbone}" not in self._seen and spec.mode is not None:
            self._seen.add(f"pairs {spec.backbone}")
            encoded = self.pairs * self._pair
        if spec.mode != "lora":
            return self._network(encoded)
        from rewardgap.rewards.catalog import build_head

        own = build_head(spec.method, **spec.options).defaults
        epochs = own.filled(spec.epochs, spec.batch_size, spec.learning_rate).epochs
        return self._network(encoded + BACKWARD * epochs * self.train * self._pair + self.pairs * self._pair)

    def _deployment(self, deployment: Deployment, cell: Cell) -> Cost:
        shots = min(deployment.shots or 0, self.support)
        prompt = self.prompt + shots * (self.prompt + self.completion)
        width, samples = 1, 1
        if deployment.reward_model is not None:
            width = 1 + (deployment.top_k or 0)
            samples = int(deployment.options.get("n", 8)) if deployment.name == "best_of_n" else 1
        scored = self.query * (prompt + 2 * self.completion)
        if deployment.reward_model is not None:
            model = deployment.reward_model
            scored = scored * self._once(f"states {model.backbone} {model.mode}", cell) * width
        tokens = self.query * self.written * width * samples
        return self._network(self.query * prompt + scored, tokens, self._steps(self.query * samples), prompt, width)

    def _network(
        self, read: float, stepped: float = 0.0, steps: float = 0.0, prompt: float | None = None, width: int = 1
    ) -> Cost:
        policy, study = self.bench.policy, self.bench.study
        operations = 2.0 * policy.num_weights * (READING * read + WRITING * (stepped + A_STEP * steps))
        room = self.written * width + 2
        plan = SessionPlan(policy, round(self.prompt if prompt is None else prompt), room, width)
        need = batch_need([plan])
        weights = policy.num_weights * policy.dtype.itemsize
        return Cost(OVERHEAD + operations / self.rate, weights + need.fixed + study.batch_size * need.row)


def _lengths(bench: Workbench) -> tuple[float, float]:
    """Return the mean tokens of a prompt and of a completion, over rows at even distances."""
    encoder, data = bench.policy.encoder, bench.dataset
    if isinstance(data, AuthoredDataset):
        texts = data.texts[:: 1 + len(data.texts) // SAMPLE]
        shown: list[tuple[Any, str]] = [(data.prompt(text), text.reference) for text in texts]
    else:
        shown = [(pair.prompt, pair.chosen) for pair in data.pairs[:: 1 + len(data.pairs) // SAMPLE]]
    prompts = [len(encoder.encode_prompt(prompt)) for prompt, _ in shown]
    completions = [len(encoder.encode_completion(text, after=prompt)) for prompt, text in shown]
    longest = bench.study.generation.max_prompt_tokens
    mean = sum(prompts) / max(1, len(prompts))
    return min(mean, longest) if longest is not None else mean, sum(completions) / max(1, len(completions))


def widest(line: Line) -> int:
    """Return the bytes that a worker needs for the largest cell of any point, with libraries and what else it holds."""
    found = MARGIN
    for bench, plan in zip(line.benches, line.plans, strict=True):
        line.shelf.keep(backbone_keys(bench.study))
        costs = Estimate(bench, plan, 1.0).costs.values()
        found = max(found, MARGIN + max((cost.memory for cost in costs), default=0))
        bench.put_away()
    return found


def wall_seconds(line: Line, costs: dict[str, Cost], workers: int) -> float:
    """Return how long a number of workers take for what is left, each job given to the first that is free."""
    schedule = Schedule(line, alone=workers == 1)
    running: list[tuple[float, int, Any]] = []
    now, number = 0.0, 0
    while not schedule.is_over:
        while len(running) < workers and (job := schedule.take()) is not None:
            bench = line.benches[job.point]
            open_cells = [step.cell for step in job.steps if not bench.folder(step.cell).done]
            seconds = sum(costs[cell.id].seconds for cell in open_cells)
            heapq.heappush(running, (now + seconds, number, job))
            number += 1
        now, _, job = heapq.heappop(running)
        schedule.done(job, Outcome())
    return now
