"""Workers in processes of their own and on nodes of a cluster: the numbers of one, though some are lost on the way."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from rewardgap.core.errors import ConfigError
from rewardgap.studies import journal
from rewardgap.studies.executors.local import Local
from rewardgap.studies.executors.ray import Ray
from rewardgap.studies.run import Finished, run_study
from several import STUDY, Said, records, run, study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (make test-all)")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("alone") / "run", patch)


def test_two_workers_have_the_numbers_of_one_though_one_is_killed(
    alone: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that begins the first reward model is killed there; its job is tried again by another."""
    root, said, victims = tmp_path / "run", Said(), []

    def kill() -> None:
        while not victims:
            begun = [line for line in journal.read(root) if line["kind"] == "reward_model"]
            victims.extend(line["process"] for line in begun if line["event"] == "start")
            time.sleep(0.002)
        os.kill(victims[0], signal.SIGKILL)

    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    finished = run_study(study(), root, said, Local(2, 1))
    thread.join()
    assert not finished.failures
    assert records(finished) == records(alone)
    workers = {line["process"] for line in journal.read(root)}
    assert os.getpid() not in workers
    assert len(workers) in (2, 3)
    assert any("was killed by SIGKILL; trying it again (1 of 2)" in line for line in said.lines)


def test_ctrl_c_ends_run_and_workers_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(STUDY))
    command = [sys.executable, "-c", "from rewardgap.cli.app import main; main()", "run", str(path), "-o", str(out)]
    command += ["--threads", "1", "--jobs", "2"]
    environment = {**os.environ, "REWARDGAP_CACHE": str(tmp_path / "cache")}
    # In the background of a shell interrupts are ignored, and a program inherits that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as one:
        while one.poll() is None and not any(line["event"] == "end" for line in journal.read(out)):
            time.sleep(0.02)
        one.send_signal(signal.SIGINT)
        assert one.stderr is not None
        said = one.stderr.read()
    assert one.returncode == 130, said
    assert "the same command goes on from there" in said
    for process in {line["process"] for line in journal.read(out)}:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    kept = len(list(out.glob("cells/*/DONE")))
    assert kept
    assert not (out / "results.csv").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{kept} were there" in " ".join(again.stderr.split())


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes on this machine, each a raylet with processes and an object store of its own."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("REWARDGAP_CACHE", str(tmp_path / "cache"))
    store = 100 * 2**20
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=store)
        yield made
    finally:
        made.shutdown()


@needs_ray
def test_three_nodes_have_the_numbers_of_one_process_though_a_node_is_killed(
    alone: Finished, tmp_path: Path, cluster: Any
) -> None:
    """The node on which a deployment begins, if it is not the head, is killed at once with all its processes."""
    root, said = tmp_path / "run", Said()
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in list(cluster.worker_nodes)}
    killed: list[str] = []

    def kill() -> None:
        while not killed:
            for line in journal.read(root):
                if line["event"] != "start" or line["kind"] not in (
                    "reward_model",
                    "prefixes",
                    "deployment",
                    "judgement",
                ):
                    continue
                try:
                    parents = {parent.pid for parent in psutil.Process(line["process"]).parents()}
                except psutil.NoSuchProcess:
                    continue
                ended = {other["cell"] for other in journal.read(root) if other["event"] == "end"}
                for pid in parents & set(raylets):
                    if not killed and line["cell"] not in ended:
                        killed.append(line["cell"])
                        cluster.remove_node(raylets[pid], allow_graceful=False)
            time.sleep(0.002)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    finished = run_study(study(), root, said, Ray(1, cluster.address))
    assert killed, "no cell began on a node that could be killed"
    thread.join()
    assert not finished.failures
    assert records(finished) == records(alone)
    assert any("was lost" in line and "trying it again (1 of 2)" in line for line in said.lines), said.lines
    starts = [line["cell"] for line in journal.read(root) if line["event"] == "start"]
    assert starts.count(killed[0]) == 2
    assert len(starts) == len(set(starts)) + 1


@needs_ray
def test_a_node_that_does_not_see_the_results_is_named(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of the run is elsewhere on the nodes: what the run passes on is a name that they resolve otherwise."""
    from rewardgap.studies.executors import ray

    monkeypatch.setattr(ray, "write_text", lambda path, text: None)
    with pytest.raises(ConfigError, match=r"node .* \(.*\) does not see '.*run', where this run puts its files"):
        run_study(study(), tmp_path / "run", Said(), Ray(1, cluster.address))
    assert not list((tmp_path / "run").rglob("DONE"))


@needs_ray
def test_an_address_where_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    with pytest.raises(ConfigError, match="no Ray cluster answers at"):
        run(tmp_path / "run", monkeypatch, Ray(1, "127.0.0.1:1"))


@needs_ray
def test_a_job_that_fits_on_no_node_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for a larger node."""
    with pytest.raises(ConfigError, match=r"no node has what a job asks for: 4096 CPUs \(--threads\), 2\.\d GiB"):
        run(tmp_path / "run", monkeypatch, Ray(4096))
