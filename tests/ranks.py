"""Run a function on several real processes and collect what each returns.

Starting ranks costs seconds, so one call should check many properties. The processes meet through
a file in a fresh folder, never through a fixed port, and talk over gloo.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from distributed_ignn.comm.communicator import Communicator, start_communicator

# Ranks are forked from a process that has imported these and started no thread; otherwise importing
# them costs each rank two seconds.
_PRELOADED = ["torch", "torch.distributed", "distributed_ignn.training.trainer", "pytest"]
_POLL_SECONDS = 0.1
# A rank that fails often takes its neighbours down with it a moment later, and theirs may be the
# first report to arrive; waiting briefly lets the message name all of them.
_GRACE_SECONDS = 0.5
_Report = tuple[int, bool, bytes]


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 60,
    device: torch.device | None = None,
    limit: float | None = None,
    grace: float = _GRACE_SECONDS,
    backend: str = "gloo",
) -> list[Any]:
    """Call ``fn(comm, *args)`` on ``world_size`` ranks.

    Args:
        fn: importable (module-level) function; ``comm`` is the rank's Communicator.
        world_size: number of processes.
        args: passed to every rank; they and the results must pickle.
        timeout: seconds for everything, start included; then all ranks are killed.
        device: of every rank; the CPU by default, one GPU that the ranks share, or ``cuda`` without
            a number, a GPU for each.
        limit: seconds that a rank waits for others in a collective; all of ``timeout`` by default.
        grace: seconds that the other ranks have once one has failed.
        backend: of the process group.

    Returns:
        The results in the order of the ranks.

    Raises:
        AssertionError: a rank raised (its stack trace is the message), died, or the time is up.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    reports: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        init_method = (Path(folder) / "rendezvous").as_uri()
        device = device or torch.device("cpu")
        settings = (world_size, init_method, timeout, limit, device, backend)
        ranks = [
            context.Process(target=_rank_main, args=(rank, *settings, reports, fn, args))
            for rank in range(world_size)
        ]
        try:
            # Set before a rank starts: numerical libraries read it while they are imported.
            with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
                for process in ranks:
                    process.start()
            return _collect(ranks, reports, time.monotonic() + timeout, timeout, grace)
        finally:
            _stop(ranks)


def _rank_main(
    rank: int,
    world_size: int,
    init_method: str,
    timeout: float,
    limit: float | None,
    device: torch.device,
    backend: str,
    reports: Any,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    own = device.type == "cuda" and device.index is None
    try:
        comm = start_communicator(
            rank=rank,
            world_size=world_size,
            local_rank=rank,
            device=torch.device("cuda", rank) if own else device,
            backend=backend,
            init_method=init_method,
            timeout_seconds=timeout,
        )
        if limit is not None:
            _limit(comm, limit)
        # Bytes, because a queue would hand over tensors as memory shared with this process, which
        # ends at once, and because a result that does not pickle must fail here and not later.
        result = pickle.dumps(fn(comm, *args))
        comm.close()
    except BaseException:
        reports.put((rank, False, traceback.format_exc().encode()))
    else:
        reports.put((rank, True, result))


def _limit(comm: Communicator, seconds: float) -> None:
    """Let no collective take longer from now on; starting the ranks may have."""
    comm.barrier()
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))
    comm.timeout_seconds = seconds


def _collect(
    ranks: Sequence[BaseProcess], reports: Any, deadline: float, timeout: float, grace: float
) -> list[Any]:
    """All results, or an AssertionError at the first sign that they will not all come."""
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        waiting = [rank for rank in range(len(ranks)) if rank not in results]
        # Asked before the queue is read: the report of a rank that has ended is already there.
        ended = {rank: ranks[rank].exitcode for rank in waiting if not ranks[rank].is_alive()}
        report = _next_report(reports, _POLL_SECONDS)
        if report is not None:
            rank, succeeded, content = report
            if not succeeded:
                raise AssertionError(_failures(report, reports, grace))
            results[rank] = pickle.loads(content)
        elif ended:
            time.sleep(grace)
            raise AssertionError(f"ranks ended without a result; exit codes by rank: {ended}")
        elif time.monotonic() > deadline:
            raise AssertionError(f"ranks {waiting} did not finish within {timeout} s")
    return [results[rank] for rank in range(len(ranks))]


def _next_report(reports: Any, seconds: float) -> _Report | None:
    try:
        report: _Report = reports.get(timeout=seconds)
    except queue.Empty:
        return None
    return report


def _failures(first: _Report, reports: Any, grace: float) -> str:
    """The stack traces of all ranks that fail within a moment, the first one first."""
    failed = [first]
    while (report := _next_report(reports, grace)) is not None:
        if not report[1]:
            failed.append(report)
    return "\n".join(f"rank {rank} raised:\n{trace.decode()}" for rank, _, trace in failed)


def _stop(ranks: Sequence[BaseProcess]) -> None:
    """End all ranks that still run; a rank inside a collective does not react to SIGTERM."""
    started = [process for process in ranks if process.pid is not None]
    for process in started:
        process.kill()
    for process in started:
        process.join()
