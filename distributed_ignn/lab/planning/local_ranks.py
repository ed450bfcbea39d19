"""Ranks as processes of this machine, started for a measurement and gone after it."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from distributed_ignn.comm.communicator import Communicator, start_communicator
from distributed_ignn.errors import UserError

_POLL_SECONDS = 0.2


def on_local_ranks(
    action: Callable[..., Any], ranks: int, *args: Any, timeout: float = 1800.0
) -> list[Any]:
    """What ``action(comm, *args)`` returns on each of ``ranks`` gloo ranks with one thread each.

    Args:
        action: importable; arguments and results must pickle.
        ranks: processes to start, also for a single one, so that its memory is its own.
        args: the same for every rank.
        timeout: seconds for everything.

    Raises:
        UserError: a rank failed or the time is up.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
        processes = [
            context.Process(
                target=_rank, args=(rank, ranks, meeting, timeout, pipes[rank][1], action, args)
            )
            for rank in range(ranks)
        ]
        before = os.environ.get("OMP_NUM_THREADS")
        # read by numerical libraries while a rank imports them
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            for process in processes:
                process.start()
            for _, end in pipes:
                end.close()
            return _collect([begin for begin, _ in pipes], time.monotonic() + timeout)
        finally:
            _restore("OMP_NUM_THREADS", before)
            _stop(processes)


def _rank(
    rank: int,
    ranks: int,
    meeting: str,
    timeout: float,
    pipe: Connection,
    action: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        if ranks == 1:
            comm = Communicator()
        else:
            comm = start_communicator(
                rank=rank,
                world_size=ranks,
                local_rank=rank,
                device=torch.device("cpu"),
                backend="gloo",
                init_method=meeting,
                timeout_seconds=timeout,
            )
        result = action(comm, *args)
        comm.close()
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
    else:
        pipe.send((True, result))


def _collect(pipes: Sequence[Connection], deadline: float) -> list[Any]:
    results: list[Any] = []
    for rank, pipe in enumerate(pipes):
        while not pipe.poll(_POLL_SECONDS):
            if time.monotonic() > deadline:
                raise UserError(f"rank {rank} of a measurement did not finish in time")
        try:
            succeeded, content = pipe.recv()
        except EOFError as error:
            raise UserError(
                f"rank {rank} of a measurement ended without a result, as when memory runs out"
            ) from error
        if not succeeded:
            raise UserError(f"rank {rank} of a measurement failed: {content}")
        results.append(content)
    return results


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _stop(processes: Sequence[BaseProcess]) -> None:
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
            process.join()
