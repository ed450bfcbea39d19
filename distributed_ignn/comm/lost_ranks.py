"""What a rank does about others that are gone: watch for them, name them, and say the way out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from distributed_ignn.comm.activity import Patience
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.comm.processes import Process
from distributed_ignn.comm.watchdog import WAY_OUT, Watchdog
from distributed_ignn.errors import JobError

# gloo raises plain RuntimeErrors; what of them comes from its transport says so.
_GLOO = ("gloo/", "Gloo ")
_LATE = ("Timed out", "timed out", "timeout", "Timeout")
_BROKEN = ("Connection", "Broken pipe", "Read error", "Write error", *_LATE[:2])


def start_watchdog(comm: Communicator, seconds: float) -> Watchdog | None:
    """Watch the other ranks of a job that met through a TCP store; None where there are none.

    Every rank calls it.

    Args:
        comm: this rank's communicator.
        seconds: a rank that has not answered for so long is lost; 0: nobody watches.
    """
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if comm.world_size == 1 or seconds == 0 or not host or not port:
        return None
    # the store may hold the last words of an earlier attempt
    ranks = comm.gather_json([f"{os.getpid()}-{time.time_ns()}", Process.this()])
    attempt = ranks[0][0]
    processes = {rank: Process(*process) for rank, (_, process) in enumerate(ranks)}
    patience = None
    if comm.backend == "nccl":
        patience = Patience(comm.timeout_seconds, lambda: _calls(comm))

    def connect() -> dist.Store:
        store = dist.TCPStore(
            host, int(port), is_master=False, timeout=timedelta(seconds=max(seconds, 30.0))
        )
        return dist.PrefixStore(f"ignn/{attempt}", store)

    watchdog = Watchdog(
        comm.rank,
        comm.world_size,
        comm.activity,
        seconds,
        connect,
        f"{host}:{port}",
        {rank: process for rank, process in processes.items() if rank != comm.rank},
        patience,
    )
    watchdog.start()
    return watchdog


def _calls(comm: Communicator) -> int:
    return comm.traffic.exchanges + comm.traffic.reductions


def is_broken_connection(error: BaseException) -> bool:
    """Say whether an exception of a collective means that another rank is out of reach."""
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError | dist.DistBackendError):
        return True
    text = str(error)
    of_gloo = isinstance(error, RuntimeError) and any(word in text for word in _GLOO)
    return of_gloo and any(word in text for word in _BROKEN)


@contextmanager
def explained(comm: Communicator) -> Iterator[None]:
    """Raise a JobError that names rank and phase where a collective inside lost its others.

    Raises:
        JobError: another rank cannot be reached.
    """
    try:
        yield
    except Exception as error:
        if not is_broken_connection(error):
            raise
        line = _line(comm, error)
        told = comm.watchdog is not None and not comm.watchdog.first_to_tell()
        raise JobError(line, told=told) from error


def _line(comm: Communicator, error: Exception) -> str:
    phase = comm.activity.failed_in or str(comm.activity)
    watchdog = comm.watchdog
    lost = watchdog.lost() if watchdog is not None else []
    if watchdog is not None and lost:
        names = " and ".join(
            f"rank {rank} (last seen in {watchdog.pulses[rank].doing})" for rank in lost
        )
        return f"{names} was lost; rank {comm.rank} was in {phase}; {WAY_OUT}"
    reason = " ".join(str(error).split())[-160:]
    limit = ""
    if any(word in str(error) for word in _LATE):
        limit = (
            f"; where the others are only slower than {comm.timeout_seconds:g} s, raise "
            "comm.timeout_seconds"
        )
    return f"rank {comm.rank} lost the others in {phase} ({reason}){limit}; {WAY_OUT}"


def table(watchdog: Watchdog | None) -> dict[str, Any]:
    """Return what is known of the other ranks, for a report."""
    if watchdog is None:
        return {}
    return {
        str(rank): {"state": pulse.state, "doing": pulse.doing, "beats": pulse.beat}
        for rank, pulse in watchdog.pulses.items()
    }
