"""Kill -9 at random moments, the same command again, and every trial is finished exactly once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LR = "model.optimizer.init_args.lr"
GRID = f"--grid.{LR}=[0.01, 0.003, 0.001, 0.0003]"
KEYS = 4
DEADLINE_S = 240

pytestmark = pytest.mark.slow


def start(config, out, *options):
    command = [sys.executable, "-m", "mlprank", "tune", f"--config={config}", f"--tune.out={out}", GRID, *options]
    log = (Path(out).parent / "log.txt").open("ab")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def records(out):
    return {path.parent.name: path.read_bytes() for path in Path(out).glob("trials/*/result.json")}


def outcomes(out):
    found = {key: json.loads(data) for key, data in records(out).items()}
    return {key: (record["status"], record["best_epoch"], record["history"]) for key, record in found.items()}


def finish(config, out, *options):
    process = start(config, out, *options)
    try:
        assert process.wait(timeout=DEADLINE_S) == 0, (Path(out).parent / "log.txt").read_text()[-2000:]
    finally:
        end(process)


def end(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition, process):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, "the search ended before it was killed"
        time.sleep(0.05)


@pytest.mark.parametrize("engine", ["batched", "local"])
def test_a_killed_driver_loses_and_repeats_nothing(config, tmp_path, engine):
    out = tmp_path / "killed"
    options = (f"--tune.engine={engine}", "--tune.checkpoint_minutes=0", "--trainer.max_epochs=150")
    kept = {}
    moment = random.Random(time.time_ns())
    for _ in range(2):
        process = start(config, out, *options)
        begun = out / "stacks" if engine == "batched" else out / "trials"
        wait_for(lambda begun=begun: begun.is_dir() and any(begun.iterdir()), process)
        time.sleep(moment.uniform(0, 3))
        end(process)
        assert all(records(out)[key] == data for key, data in kept.items())
        kept = records(out)
    finish(config, out, *options)
    final = records(out)
    assert len(final) == KEYS
    assert all(final[key] == data for key, data in kept.items())
    assert not list(out.glob("**/.*"))
    finish(config, tmp_path / "whole", *options)
    assert outcomes(out) == outcomes(tmp_path / "whole")


@pytest.mark.parametrize("engine", ["batched", "local"])
def test_an_interrupted_search_says_how_to_go_on(config, tmp_path, engine):
    out = tmp_path / "interrupted"
    process = start(config, out, f"--tune.engine={engine}", "--tune.checkpoint_minutes=0", "--trainer.max_epochs=2000")
    try:
        begun = out / "stacks" if engine == "batched" else out / "trials"
        wait_for(lambda: begun.is_dir() and any(begun.glob("*/*.ckpt")), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=DEADLINE_S) == 130
    finally:
        end(process)
    assert "of 4 trials are done; the same command goes on" in (tmp_path / "log.txt").read_text()


def workers_of(out):
    """Return the processes that hold a trial's lock: Ray's workers."""
    found = set()
    for lock in Path(out).glob("trials/*/lock.holder"):
        text = lock.read_text().strip()
        if text and Path(f"/proc/{text}").is_dir():
            found.add(int(text))
    return found


RAY = ("--tune.engine=ray", "--tune.trials_per_stack=1", "--trainer.max_epochs=60")


@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_a_killed_worker_or_driver_of_ray_loses_and_repeats_nothing(config, tmp_path, victim):
    pytest.importorskip("ray")
    out = tmp_path / "killed"
    process = start(config, out, *RAY)
    try:
        wait_for(lambda: workers_of(out), process)
        time.sleep(random.Random(time.time_ns()).uniform(0, 2))
        kept = records(out)
        if victim == "worker":
            for worker in sorted(workers_of(out))[:1]:
                os.kill(worker, signal.SIGKILL)
            assert process.wait(timeout=DEADLINE_S) == 0, (tmp_path / "log.txt").read_text()[-2000:]
        else:
            process.kill()
            process.wait()
    finally:
        end(process)
    if victim == "driver":
        finish(config, out, *RAY)
    final = records(out)
    assert len(final) == KEYS
    assert all(final[key] == data for key, data in kept.items())
    assert {json.loads(data)["status"] for data in final.values()} == {"done"}


def test_a_killed_node_of_ray_loses_and_repeats_nothing(config, tmp_path):
    pytest.importorskip("ray")
    from mlprank.grids.ray import prepare_environment

    prepare_environment("cluster")
    from ray.cluster_utils import Cluster

    out = tmp_path / "killed"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    process = None
    try:
        node = cluster.add_node(num_cpus=1)
        process = start(config, out, *RAY, f"--tune.address={cluster.address}")
        wait_for(lambda: len(workers_of(out)) == 2, process)
        kept = records(out)
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(timeout=DEADLINE_S) == 0, (tmp_path / "log.txt").read_text()[-2000:]
    finally:
        if process is not None:
            end(process)
        cluster.shutdown()
    final = records(out)
    assert len(final) == KEYS
    assert all(final[key] == data for key, data in kept.items())


def test_a_search_without_an_address_leaves_another_cluster_alone(config, tmp_path):
    pytest.importorskip("ray")
    from mlprank.grids.ray import prepare_environment

    prepare_environment("cluster")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 7, "include_dashboard": False})
    try:
        finish(config, tmp_path / "own", *RAY)
    finally:
        cluster.shutdown()
    assert len(records(tmp_path / "own")) == KEYS
    assert "on 7 places" not in (tmp_path / "log.txt").read_text()
