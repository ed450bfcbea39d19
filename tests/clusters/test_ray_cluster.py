"""Ray on two machines: a run that loses a process, a machine, gets a notice, and is stopped."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.namespaces import TwoMachines
from tests.clusters.ray_nodes import RayCluster
from tests.clusters.runs import EPOCHS, TRAIN, Program, assert_same, ray_workers, records

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed; pip install 'distributed-ignn[ray]'",
    ),
]


@pytest.fixture(scope="module")
def ray(machines: TwoMachines) -> Iterator[RayCluster]:
    with RayCluster(machines) as cluster:
        cluster.add_node()
        yield cluster


def test_a_run_outlives_its_processes_and_machines(
    machines: TwoMachines, ray: RayCluster, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train = [sys.executable, *TRAIN, "--workers", "2", "--output", str(output)]
    driver = machines.command(0, *train)
    with Program(driver, tmp_path / "first.log", ray.environment) as program:
        program.reach(5, output)
        workers = [ray_workers(machines.processes(end)) for end in range(2)]
        assert [len(found) for found in workers] == [1, 1]
        os.kill(workers[0][0], signal.SIGKILL)
        program.says("resumed after epoch 4")

        program.reach(9, output)
        machines.lose(1)
        ray.add_node()
        program.says("resumed after epoch 8")

        program.reach(11, output)
        os.kill(program.process.pid, signal.SIGTERM)
        assert program.end() == 128 + signal.SIGTERM, program.said()
    said = program.said()
    assert said.count("was lost; Ray starts the workers again ...") == 2
    assert "SIGTERM: finishing this epoch and writing a checkpoint" in said
    stopped = len(records(output))
    assert f"stopped by SIGTERM after epoch {stopped} with a checkpoint" in said
    assert (output / "checkpoints" / f"epoch-{stopped:06d}").is_dir()

    # no checkpoint but the one of the notice and the last
    rarely = ("--resume", "auto", "--train.checkpoint-every", "1000")
    again = machines.command(0, *train, *rarely)
    with Program(again, tmp_path / "second.log", ray.environment) as program:
        program.says(f"resumed after epoch {stopped}")
        ray.announce_loss(120)
        program.says("is about to be taken away; Ray starts the workers again ...")
        machines.lose(1)
        ray.add_node()
        assert program.end() == 0, program.said()
    left = int(program.said().rpartition("resumed after epoch ")[2].split()[0])
    assert stopped < left < EPOCHS
    assert_same(output, undisturbed)


def test_nothing_outlives_a_driver_that_is_killed(
    machines: TwoMachines, ray: RayCluster, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train = [sys.executable, *TRAIN, "--workers", "2", "--output", str(output)]
    with Program(machines.command(0, *train), tmp_path / "log", ray.environment) as program:
        program.reach(2, output)
        program.process.kill()
        program.end()
    deadline = time.monotonic() + 15
    while any(ray_workers(machines.processes(end)) for end in range(2)):
        assert time.monotonic() < deadline, "workers train on without anybody to tell"
        time.sleep(0.1)
