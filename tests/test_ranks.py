"""The helper that runs ranks: results in order, failures and hangs end quickly and are told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from tests.ranks import run_ranks

# Two processes that import torch need a few seconds; a hang would take the group's whole timeout.
_QUICK_SECONDS = 40


def _report_and_sum(comm: Communicator, offset: int) -> tuple[int, int, str, torch.Tensor]:
    total = comm.sum(torch.tensor([float(comm.rank + offset)]))
    threads = os.environ["OMP_NUM_THREADS"]
    return comm.rank, comm.world_size, threads, torch.full((2,), total.item())


def _second_rank_raises(comm: Communicator) -> None:
    if comm.rank == 1:
        raise ValueError("the marble is lost")
    comm.barrier()


def _second_rank_dies(comm: Communicator, folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    comm.barrier()  # or the other might meet this in its start, and tell of that
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def _return_unpicklable(comm: Communicator) -> object:
    return lambda: comm.rank


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _hang(comm: Communicator, folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


def test_results_arrive_in_rank_order() -> None:
    results = run_ranks(_report_and_sum, 2, 10)
    assert [result[:3] for result in results] == [(0, 2, "1"), (1, 2, "1")]
    for result in results:
        assert torch.equal(result[3], torch.tensor([21.0, 21.0]))


def test_raising_rank_ends_the_run_although_another_waits() -> None:
    start = time.monotonic()
    with pytest.raises(
        AssertionError, match=r"rank 1 raised:(.|\n)*ValueError: the marble is lost"
    ):
        run_ranks(_second_rank_raises, 2, timeout=110)
    assert time.monotonic() - start < _QUICK_SECONDS


def test_dead_rank_ends_the_run_and_leaves_no_process(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"exit codes by rank: \{1: -9\}"):
        run_ranks(_second_rank_dies, 2, str(tmp_path), timeout=110)
    assert time.monotonic() - start < _QUICK_SECONDS
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert pids
    assert not any(map(_is_running, pids))


def test_hanging_ranks_are_killed_at_the_timeout(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"ranks \[0, 1\] did not finish within 8 s"):
        run_ranks(_hang, 2, str(tmp_path), timeout=8)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    assert not any(map(_is_running, pids))


def test_result_that_does_not_pickle_fails_at_once() -> None:
    with pytest.raises(AssertionError, match=r"rank 0 raised:(.|\n)*pickle"):
        run_ranks(_return_unpicklable, 1)
