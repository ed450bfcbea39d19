"""How the ranks of one attempt find each other, and nobody of an attempt before.

torchrun keeps one store for all attempts of a job (torch 2.13: ``DynamicRendezvousHandler`` makes
it once, and the ranks no longer put the number of the attempt before their keys). Started again, a
rank may read there the address of a rank that is dead, and fail, or wait for whoever has its port
now. The number of the attempt is no help, because each machine's torchrun counts for itself. So the
ranks agree on a prefix of their own: rank 0 names it, every other rank answers under it with a word
of its own, and takes part once rank 0 has repeated that word, which no earlier attempt can have
done.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from distributed_ignn.errors import JobError, UserError

logger = logging.getLogger(__name__)

_LEADER = "ignn/leader"
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0


def agree_on_attempt(store: dist.Store, rank: int, world_size: int, seconds: float) -> str:
    """A prefix for the keys of these ranks, the same on each and new; every rank calls it.

    Args:
        store: where the ranks meet.
        rank, world_size: position of this one.
        seconds: how long to wait for the others.

    Raises:
        JobError: some did not come.
    """
    word = uuid.uuid4().hex
    wait = _Wait(seconds, rank)
    if rank == 0:
        return _lead(store, world_size, word, wait)
    return _follow(store, rank, word, wait)


def _lead(store: dist.Store, world_size: int, name: str, wait: _Wait) -> str:
    store.set(_LEADER, name)
    words: dict[int, str] = {}
    for other in range(1, world_size):
        key = _joined(name, other)
        absent = [r for r in range(other, world_size) if r not in words]
        wait.until(lambda key=key: store.check([key]), absent)  # type: ignore[misc]
        words[other] = store.get(key).decode()
    store.set(_started(name), json.dumps(words))
    return name


def _follow(store: dist.Store, rank: int, word: str, wait: _Wait) -> str:
    found: list[str] = []

    def accepted() -> bool:
        if not store.check([_LEADER]):
            return False
        name = store.get(_LEADER).decode()
        store.set(_joined(name, rank), word)
        if not store.check([_started(name)]):
            return False
        if json.loads(store.get(_started(name))).get(str(rank)) != word:
            return False  # of an attempt before
        found.append(name)
        return True

    wait.until(accepted, [0])
    return found[0]


def _joined(name: str, rank: int) -> str:
    return f"ignn/{name}/joined/{rank}"


def _started(name: str) -> str:
    return f"ignn/{name}/started"


class _Wait:
    """Waits for other ranks, says for whom when it takes long, and gives up."""

    def __init__(self, seconds: float, rank: int) -> None:
        self._rank = rank
        self._seconds = seconds
        self._began = time.monotonic()
        self._said = False

    def until(self, condition: Callable[[], bool], absent: list[int]) -> None:
        while not condition():
            waited = time.monotonic() - self._began
            names = ", ".join(map(str, absent))
            if waited > self._seconds:
                raise JobError(
                    f"rank {self._rank} waited {self._seconds:g} s (comm.timeout_seconds) for "
                    f"rank {names} to start; look there for the reason, and start all ranks again"
                )
            if waited > _PATIENCE_SECONDS and not self._said:
                self._said = True
                logger.warning("waiting for rank %s to start", names)
            time.sleep(_POLL_SECONDS)


def join(rank: int, world_size: int, seconds: float) -> dist.Store:
    """A store of this attempt's own, where MASTER_ADDR and MASTER_PORT say; every rank calls it.

    Args:
        rank, world_size: position of this one.
        seconds: how long to wait for the others.

    Raises:
        UserError: another program has the port, or nobody answers at the address.
        JobError: some did not come.
    """
    timeout = timedelta(seconds=seconds)
    try:
        with _deadline(rank, seconds + _PATIENCE_SECONDS):
            store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    except dist.DistNetworkError as error:
        raise _unreachable(rank, seconds, error) from error
    except dist.DistStoreError as error:  # rank 0 waits for the others where it is the server
        raise JobError(
            f"rank {rank} waited {seconds:g} s (comm.timeout_seconds) for all {world_size} ranks "
            "to start; look at the others for the reason, and start all ranks again"
        ) from error
    name = agree_on_attempt(store, rank, world_size, seconds)
    return dist.PrefixStore(f"ignn/{name}", store)


@contextmanager
def _deadline(rank: int, seconds: float) -> Iterator[None]:
    """End the process where what is inside takes too long and cannot be interrupted.

    torch waits without a limit for a program that accepts a connection and then says nothing.
    """

    def give_up() -> None:
        place = f"MASTER_ADDR = {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        print(
            f"error: {place} does not answer rank {rank} as a store of ranks does, after "
            f"{seconds:g} s; another program may have the port, choose another MASTER_PORT",
            file=sys.stderr,
            flush=True,
        )
        os._exit(JobError.EXIT_CODE)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _unreachable(rank: int, seconds: float, error: dist.DistNetworkError) -> UserError:
    place = f"MASTER_ADDR = {os.environ['MASTER_ADDR']}, MASTER_PORT = {os.environ['MASTER_PORT']}"
    if "EADDRINUSE" in str(error):
        found = UserError(
            f"{place}: the port is in use by another program; choose another MASTER_PORT, the same "
            "for all ranks"
        )
    else:
        found = UserError(
            f"{place}: rank 0 did not answer rank {rank} there within {seconds:g} s "
            "(comm.timeout_seconds); start rank 0 first, or correct the address for all ranks"
        )
    found.teller = "rank"
    return found
