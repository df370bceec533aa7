"""Workers of a Ray cluster: jobs are tasks, and what they share lies in the results folder and in the cache.

Both must be on storage that every node sees; that is made sure of before the first job.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardgap.backbones.memory import GIB
from rewardgap.core.errors import ConfigError, MissingExtraError
from rewardgap.core.store import cache_root, write_text
from rewardgap.studies.estimate import widest
from rewardgap.studies.executors.base import Schedule
from rewardgap.studies.executors.worker import Worker, orders, outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rewardgap.studies.executors.line import Line
    from rewardgap.studies.jobs import Job

PASSED_ON = ("REWARDGAP_CACHE", "REWARDGAP_DATA", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")
"""Settings of the environment that workers take over from the run."""
LOOK_AGAIN = 10.0
"""Seconds after which the size of the cluster is looked at again."""
_WORKERS: dict[str, Worker] = {}


class Ray:
    """Runs jobs as tasks of a Ray cluster. A job whose worker or node is lost is tried again.

    Args:
        threads: torch threads, and CPUs, of each task.
        address: of a running cluster; None starts Ray on this machine.
        workers: tasks at a time at most; as many as there are CPUs for unless given.
    """

    shares_folder = False

    def __init__(self, threads: int, address: str | None = None, workers: int | None = None) -> None:
        self.threads, self.address, self.workers = threads, address, workers

    def run(self, line: Line) -> None:
        """Run every job with something left to do.

        Raises:
            MissingExtraError: if Ray is not installed.
            ConfigError: if the cluster cannot be reached, a node does not see the results folder or the cache, or no
                node is large enough for a job.
        """
        schedule = Schedule(line)
        if schedule.is_over:
            return
        memory = widest(line)
        line.shelf.keep(())
        with self._cluster() as ray:
            self._check_nodes(ray, line)
            self._work(ray, line, schedule, memory)

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError(
                "--executor ray needs Ray; install it with: pip install 'rewardgap[ray]'."
            ) from error
        own = not ray.is_initialized()
        if own:
            options: dict[str, Any] = {"address": self.address or "local", "logging_level": "ERROR"}
            options["log_to_driver"] = False
            if self.address is None:
                options["include_dashboard"] = False
                if self.workers is not None:
                    options["num_cpus"] = self.workers * self.threads
            try:
                _knock(self.address)
                ray.init(**options)
            except (OSError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"no Ray cluster answers at '{self.address or 'this machine'}': {_first_line(error)}. Start one "
                    "with `ray start --head`, or leave --address out."
                ) from error
        try:
            yield ray
        finally:
            if own:
                ray.shutdown()

    def _environment(self) -> dict[str, Any]:
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        # Ray sets it to the CPUs of a task, and NumPy would add in another order than in this process.
        passed["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))
        return {"env_vars": {**passed, "TOKENIZERS_PARALLELISM": "false"}}

    def _check_nodes(self, ray: Any, line: Line) -> None:
        """Let every node read what this process wrote into the results folder and the cache."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        import rewardgap

        token = secrets.token_hex(8)
        places = [(line.root / f".token-{token}").resolve(), (cache_root() / f".token-{token}").resolve()]
        probe = ray.remote(num_cpus=0, max_retries=0, runtime_env=self._environment())(_seen)
        try:
            for place in places:
                write_text(place, token)
            nodes = [node for node in ray.nodes() if node["Alive"]]
            asked = [
                probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                    [str(place) for place in places], token, str(Path.cwd())
                )
                for node in nodes
            ]
            for node, answer in zip(nodes, asked, strict=True):
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                try:
                    version, missing = ray.get(answer)
                except ray.exceptions.RayTaskError as error:
                    raise ConfigError(f"node {name} cannot run rewardgap: {_first_line(error.cause)}.") from error
                if missing:
                    raise ConfigError(
                        f"node {name} does not see '{Path(missing).parent}', where this run puts its files. Give "
                        "--output, REWARDGAP_CACHE and the working folder on storage that every node sees."
                    )
                if version != rewardgap.__version__:
                    raise ConfigError(
                        f"node {name} has rewardgap {version}, this run is {rewardgap.__version__}; install the same."
                    )
        finally:
            for place in places:
                place.unlink(missing_ok=True)

    def _needs(self, ray: Any, line: Line, memory: int) -> dict[str, Any]:
        """Return what a job asks of a node, made sure that one has it: Ray would wait for such a node for ever."""
        on_gpu = any(study.device.startswith("cuda") for study in line.studies)
        asked = {"CPU": self.threads, "memory": memory, **({"GPU": 1} if on_gpu else {})}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            raise ConfigError(
                f"no node has what a job asks for: {self.threads} CPUs (--threads), {memory / GIB:.1f} GiB of memory"
                f"{' and a GPU' if on_gpu else ''}. Add such a node, or take fewer threads, a smaller batch_size or a "
                "smaller policy."
            )
        return {"num_cpus": self.threads, "memory": memory, **({"num_gpus": 1} if on_gpu else {})}

    def _work(self, ray: Any, line: Line, schedule: Schedule, memory: int) -> None:
        told = orders(line, self.threads) | {"root": str(line.root.resolve()), "folder": str(Path.cwd())}
        needs = self._needs(ray, line, memory) | {"max_retries": 0, "runtime_env": self._environment()}
        task = ray.remote(**needs)(_run)
        shared = ray.put(told)
        running: dict[Any, Job] = {}
        try:
            while not schedule.is_over:
                while len(running) < self._room(ray) and (job := schedule.take()) is not None:
                    running[task.options(name=job.title[:60]).remote([shared], job.key)] = job
                over, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_AGAIN)
                for reference in over:
                    job = running.pop(reference)
                    try:
                        said, value = ray.get(reference)
                    except ray.exceptions.RayTaskError:
                        raise
                    except ray.exceptions.RayError as error:
                        line.progress.say(schedule.lost(job, f"was lost ({_first_line(error)})"))
                        continue
                    for text in said:
                        line.progress.say(text)
                    schedule.done(job, outcome_of(value))
        finally:
            for reference in running:
                ray.cancel(reference, force=False)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=LOOK_AGAIN)

    def _room(self, ray: Any) -> int:
        """Return how many tasks make sense at a time: those that the cluster's CPUs have room for, one at least."""
        room = sum(int(node["Resources"].get("CPU", 0)) // self.threads for node in ray.nodes() if node["Alive"])
        return max(1, min(room, self.workers) if self.workers is not None else room)


def _knock(address: str | None) -> None:
    """Make sure that somebody answers at an address; Ray itself waits for minutes."""
    host, sign, port = (address or "").removeprefix("ray://").rpartition(":")
    if sign and port.isdigit():
        with socket.create_connection((host, int(port)), timeout=LOOK_AGAIN):
            pass


def _seen(places: list[str], token: str, folder: str) -> tuple[str, str | None]:
    """Return the version of this package on a node, and the first place that cannot be read there."""
    import rewardgap

    missing = [place for place in places if not Path(place).exists() or Path(place).read_text() != token]
    missing += [] if Path(folder).is_dir() else [f"{folder}/."]
    return rewardgap.__version__, missing[0] if missing else None


def _run(shared: list[Any], key: str) -> tuple[list[str], dict[str, Any]]:
    """Run a job on a node, and return its lines of progress and its outcome; the worker is kept for the next job."""
    import ray

    said: list[str] = []
    name = shared[0].hex()
    if name not in _WORKERS:
        _WORKERS.clear()
        told = ray.get(shared[0])
        os.chdir(told["folder"])
        _WORKERS[name] = Worker(told, lambda text: None)
    worker = _WORKERS[name]
    worker.say = said.append
    return said, worker.run(key)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
