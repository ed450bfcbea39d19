"""Commands of docs/ray.md as jobs of a running cluster, and drivers that do not belong there."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs import ROOT, Job, environment, records
from tests.launch.test_ray import TINY, needs_ray

pytestmark = [needs_ray, pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
pytestmark.append(pytest.mark.timeout(500))
RAY = str(Path(sys.executable).with_name("ray"))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in found]


@dataclass(frozen=True)
class Head:
    """A cluster of one machine, beside any other that runs here.

    Args:
        address: for drivers on this machine.
        jobs: for ``ray job``.
        client: for ``ray.init`` from outside.
    """

    address: str
    jobs: str
    client: str

    def submit(self, command: Sequence[str]) -> str:
        """What a job prints, which has to end well."""
        done = subprocess.run(
            [RAY, "job", "submit", "--address", self.jobs, "--", *command],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def refused(self, program: str, arguments: Sequence[str], address: str) -> str:
        """The one line of a driver that ends with code 2."""
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment() | {"RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 2, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in done.stderr
        return lines[0]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Two CPUs; it ends as a whole with the tests."""
    port, jobs, client = _free_ports(3)
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # paths of sockets have to be short
    flags = (
        f"start --head --block --num-cpus 2 --temp-dir {folder}/s --node-ip-address 127.0.0.1 "
        f"--port {port} --dashboard-port {jobs} --ray-client-server-port {client} "
        f"--object-store-memory {2**27} --disable-usage-stats"
    )
    with closing(Job(["env", "-u", "RAY_ADDRESS", RAY, *flags.split()], folder)) as running:
        running.says("Ray runtime started")
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{jobs}", f"ray://127.0.0.1:{client}")
        running.kill_all()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_job_trains_and_another_predicts(head: Head, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "p.parquet"
    train = (sys.executable, str(ROOT / "launch" / "train.py"), *TINY, "--workers", "2")
    shown = head.submit([*train, "--output", str(run)])
    assert shown.count("chains: finished") == 1
    assert len(records(run)) == 4
    predict = (sys.executable, str(ROOT / "launch" / "predict.py"), str(run), "--device", "cpu")
    shown = head.submit([*predict, "--workers", "2", "--out", str(out)])
    assert f"written: {out}" in shown
    assert out.exists()


OTHER = """
import sys, ray
ray.__version__ = "2.99.0"
from distributed_ignn.commands.train import main
sys.exit(main(sys.argv[1:]))
"""
FROM_OUTSIDE = """
import sys, ray
import distributed_ignn as di
ray.init(sys.argv[1], logging_level="ERROR")
try:
    di.make_trainer("chains", workers=2, output=sys.argv[2])
except di.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
"""


def test_drivers_that_do_not_belong_there_are_told_why(head: Head, tmp_path: Path) -> None:
    output = tmp_path / "out"
    line = head.refused(OTHER, [*TINY, "--workers", "2", "--output", str(output)], head.address)
    assert f"RAY_ADDRESS = {head.address} has Ray 2." in line
    assert "and this program Ray 2.99.0" in line
    line = head.refused(FROM_OUTSIDE, [head.client, str(output)], "")
    assert "has reached its Ray cluster from outside" in line
    assert not output.exists()
