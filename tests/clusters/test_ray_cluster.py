"""Ray on two machines: a run that loses a process, a machine, gets a notice, and is stopped."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.clusters.namespaces import TwoMachines
from tests.clusters.ray_nodes import RayCluster
from tests.clusters.small_run import COMMAND, EPOCHS, assert_same
from tests.jobs import Job, ranks, records

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
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
    train = [sys.executable, *COMMAND, "--workers", "2", "--output", str(output)]
    driver = machines.command(0, *train)
    with closing(Job(driver, tmp_path, ray.environment)) as job:
        job.reach(5, output)
        workers = [ranks(machines.processes(end)) for end in range(2)]
        assert [len(found) for found in workers] == [1, 1]
        os.kill(workers[0][0], signal.SIGKILL)
        job.says("resumed after epoch 4")

        job.reach(9, output)
        machines.lose(1)
        ray.add_node()
        job.says("resumed after epoch 8")

        job.reach(11, output)
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.wait(120) == 128 + signal.SIGTERM, job.text
    said = job.text
    # "rank 1 was lost", or "rank 1 lost the others", where those who knew more were lost too
    assert len(re.findall(r"\nrank \d .*lost.*; Ray starts the workers again", said)) == 2
    assert "SIGTERM: finishing this epoch and writing a checkpoint" in said
    stopped = len(records(output))
    assert f"stopped by SIGTERM after epoch {stopped} with a checkpoint" in said
    assert (output / "checkpoints" / f"epoch-{stopped:06d}").is_dir()

    # no checkpoint but the one of the notice and the last
    rarely = ("--resume", "auto", "--train.checkpoint-every", "1000")
    again = machines.command(0, *train, *rarely)
    with closing(Job(again, tmp_path, ray.environment)) as job:
        job.says(f"resumed after epoch {stopped}")
        # the run must not be over before Ray has passed the notice on
        paused = ranks(machines.processes(0))[0]
        os.kill(paused, signal.SIGSTOP)
        ray.announce_loss(120)
        time.sleep(3)
        os.kill(paused, signal.SIGCONT)
        job.says("is about to be taken away; Ray starts the workers again ...")
        machines.lose(1)
        ray.add_node()
        assert job.wait(120) == 0, job.text
    left = int(job.text.rpartition("resumed after epoch ")[2].split()[0])
    assert stopped < left < EPOCHS
    assert_same(output, undisturbed)


def _error(job: Job) -> str:
    """The one line that says how it ended; Ray's own processes may have the last word."""
    (line,) = [line for line in job.text.splitlines() if line.startswith("error: ")]
    return line


def test_nothing_outlives_a_driver_that_is_killed(
    machines: TwoMachines, ray: RayCluster, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train = [sys.executable, *COMMAND, "--workers", "2", "--output", str(output)]
    with closing(Job(machines.command(0, *train), tmp_path, ray.environment)) as job:
        job.reach(2, output)
        job.process.kill()
        job.wait(120)
    deadline = time.monotonic() + 15
    while any(ranks(machines.processes(end)) for end in range(2)):
        assert time.monotonic() < deadline, "workers train on without anybody to tell"
        time.sleep(0.1)


def test_waiting_for_a_machine_has_an_end(
    machines: TwoMachines, ray: RayCluster, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train = [sys.executable, *COMMAND, "--workers", "2", "--output", str(output)]
    driver = machines.command(0, *train, "--restart-wait-seconds", "25")
    with closing(Job(driver, tmp_path, ray.environment)) as job:
        job.reach(5, output)
        machines.lose(1)
        code = job.wait(120)
    ray.add_node()  # for the other tests
    assert code == 75, job.text
    assert "waiting for 2 CPUs of the Ray cluster" in job.text
    line = _error(job)
    assert re.match(r"error: rank \d .*lost.*, and then for 25 s \(restart_wait_seconds\) ", line)
    assert line.endswith("with --resume auto")


def test_restarts_come_to_an_end(machines: TwoMachines, ray: RayCluster, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train = [sys.executable, *COMMAND, "--workers", "2", "--output", str(output)]
    driver = machines.command(0, *train, "--restarts", "0")
    with closing(Job(driver, tmp_path, ray.environment)) as job:
        job.reach(5, output)
        os.kill(ranks(machines.processes(1))[0], signal.SIGKILL)
        assert job.wait(120) == 75, job.text
    line = _error(job)
    assert line.startswith("error: rank ")
    assert "after 0 restarts (restarts = 0)" in line


def test_a_rank_that_hangs_is_named_and_started_again(
    machines: TwoMachines, ray: RayCluster, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train = [sys.executable, *COMMAND, "--workers", "2", "--output", str(output)]
    driver = machines.command(0, *train, "--comm.hang-seconds", "8")
    with closing(Job(driver, tmp_path, ray.environment)) as job:
        job.reach(5, output)
        os.kill(ranks(machines.processes(1))[0], signal.SIGSTOP)
        assert job.wait(120) == 0, job.text
    # Ray chooses which machine has rank 0, whose silence is that of the store which it keeps
    assert re.search(
        r"no answer for 8 s from (rank 1 |\S+, where rank 0 keeps the ranks)", job.text
    )
    assert_same(output, undisturbed)
