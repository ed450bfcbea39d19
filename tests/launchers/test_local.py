"""A Python function on local ranks: results in order, failures as exceptions, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.launchers.local import run_local
from distributed_ignn.launchers.local_job import _wait as _wait_for


def _sum(comm: Communicator, offset: int) -> tuple[int, str, torch.Tensor]:
    total = comm.sum(torch.tensor([float(comm.rank + offset)]))
    return comm.rank, os.environ["OMP_NUM_THREADS"], total


def _fail(comm: Communicator, folder: str, how: str) -> None:
    Path(folder, str(os.getpid())).touch()
    if comm.rank == 1:
        if how == "bug":
            raise ValueError("the marble is lost")
        if how == "mistake":
            raise UserError("rows = 0 must be at least 1")
        if how == "stop":
            raise Stopped(signal.SIGTERM, "stopped by SIGTERM")
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()


def _wait(comm: Communicator, folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


def _running(folder: Path) -> list[int]:
    """Ranks that still run, of those that have left their number in ``folder``."""
    pids = [int(path.name) for path in folder.iterdir()]
    assert pids
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_results_arrive_in_the_order_of_ranks_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # of a torchrun around this process
    found = run_local(_sum, 2, 10, threads=2, timeout=100)
    assert [(rank, threads) for rank, threads, _ in found] == [(0, "2"), (1, "2")]
    assert all(torch.equal(total, torch.tensor([21.0])) for _, _, total in found)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("bug", RuntimeError, r"rank 1 of 2 failed:\n(.|\n)*ValueError: the marble is lost"),
        ("mistake", UserError, "^rows = 0 must be at least 1$"),
        ("stop", Stopped, "^stopped by SIGTERM$"),
        ("death", JobError, "^rank 1 of 2 ended by SIGKILL.*memory runs out$"),
    ],
)
def test_what_a_rank_raises_is_raised(
    how: str, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        run_local(_fail, 2, str(tmp_path), how, timeout=100)
    assert _running(tmp_path) == []


def test_the_rank_that_was_killed_is_named_and_not_one_that_noticed_it() -> None:
    commands = ["exit 1", "kill -9 $$"]
    ended = [subprocess.Popen(["/bin/sh", "-c", command]) for command in commands]
    for process in ended:
        process.wait()
    assert str(_wait_for(ended, 10.0)) == "rank 1 of 2 ended by SIGKILL"
    assert str(_wait_for(ended[:1], 10.0)) == "rank 0 of 1 failed with exit code 1"


def test_ranks_that_take_too_long_are_ended(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ranks \[0\] of 1 did not finish within 8 s"):
        run_local(_wait, 1, str(tmp_path), timeout=8)
    assert _running(tmp_path) == []


def test_a_function_of_a_script_is_refused() -> None:
    def here(comm: Communicator) -> None: ...

    here.__module__ = "__main__"
    with pytest.raises(UserError, match="here is defined in a script or notebook"):
        run_local(here, 1)


_SCRIPT = """
import sys
from distributed_ignn.launchers.local import run_local
from tests.launchers.test_local import _sum, _wait
print("once", flush=True)
print([rank for rank, _, _ in run_local(_sum, 2, 0, timeout=60)], flush=True)
run_local(_wait, 2, sys.argv[1])
"""


def test_a_script_without_a_guard_runs_once_and_takes_its_ranks_with_it(tmp_path: Path) -> None:
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(_SCRIPT)
    pids.mkdir()
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, str(script), str(pids)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    ) as caller:
        assert caller.stdout is not None
        assert [caller.stdout.readline() for _ in range(2)] == ["once\n", "[0, 1]\n"]
        deadline = time.monotonic() + 60
        while len(list(pids.iterdir())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        caller.kill()
    while _running(pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
