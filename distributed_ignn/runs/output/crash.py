"""Crash reports: what every rank was doing when a run broke off, in one file.

Each rank that still can writes what it knows into ``crash/TIME/``, and then joins what is there
into ``report.json``, so the last one to write leaves the whole. A rank that was killed has no say;
the others say where they saw it last.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from distributed_ignn.cli import LOG_ONLY
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.comm.lost_ranks import explained, table
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import Stopped, UserError
from distributed_ignn.files import atomic_write_json
from distributed_ignn.reading.strict_json import read_json
from distributed_ignn.runs.layout import CRASHES, REPORT
from distributed_ignn.runs.output.records import last_record
from distributed_ignn.runs.spool.run_place import RunPlace

logger = logging.getLogger(__name__)

_LIBRARIES = ("distributed-ignn", "torch", "torch-geometric", "numpy", "ray", "deepspeed")


@contextmanager
def crash_reports(
    config: RunConfig, comm: Communicator, sent_to: RunPlace | None = None
) -> Iterator[None]:
    """Write a report where a run inside breaks off for any reason but a mistake or a signal.

    Every rank enters it. The report is named by the time at which the run started.

    Args:
        config: the run.
        comm: this rank's communicator.
        sent_to: the output, if it is a URL; a rank that gives up the others sends what it knows.

    Raises:
        JobError: other ranks cannot be reached any more.
    """
    started = comm.gather_json(datetime.now(UTC).strftime("%Y%m%d-%H%M%S"))[0]
    folder = config.output / CRASHES / started

    training = threading.get_ident()  # under Ray not the main thread

    def write(error: str, stack: list[str]) -> None:
        logger.critical("%s", error, extra=LOG_ONLY)
        stacks = {"stack": stack, "other_threads": _other_stacks(training)}
        with suppress(OSError, ValueError):  # a full disk may be what the report is about
            _write(folder, config, comm, error, stacks)

    def write_from_watchdog(problem: str) -> None:
        write(problem, _lines(_stack_of(sys._current_frames().get(training))))
        if sent_to is not None:
            sent_to.push_records()

    if comm.watchdog is not None:
        comm.watchdog.before_exit.append(write_from_watchdog)
    try:
        with explained(comm):
            yield
    except (UserError, Stopped):
        raise
    except Exception as error:
        write(f"{type(error).__name__}: {error}", _lines(traceback.format_exception(error)))
        raise
    finally:
        if comm.watchdog is not None:
            comm.watchdog.before_exit.remove(write_from_watchdog)


def _other_stacks(training: int) -> dict[str, list[str]]:
    """What the threads beside ``training`` are doing, by name, without the one that asks.

    The backward pass of a GPU runs in a thread of torch's own, while the one that trains waits.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    left_out = {training, threading.get_ident()}
    return {
        f"{names.get(ident, 'of a library')} ({ident})": _lines(_stack_of(frame))
        for ident, frame in sys._current_frames().items()
        if ident not in left_out
    }


def _stack_of(frame: FrameType | None) -> list[str]:
    return traceback.format_stack(frame) if frame is not None else []


def _lines(stack: list[str]) -> list[str]:
    return [line for entry in stack for line in entry.rstrip().splitlines()]


def _write(
    folder: Path, config: RunConfig, comm: Communicator, error: str, stacks: dict[str, Any]
) -> None:
    """This rank's part, and the whole as far as it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    part = {
        "rank": comm.rank,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "phase": comm.activity.failed_in or str(comm.activity),
        "error": error,
        **stacks,
        "other_ranks": table(comm.watchdog),
    }
    atomic_write_json(folder / f"rank-{comm.rank:05d}.json", part)
    with _locked(folder / ".lock"):
        atomic_write_json(folder / REPORT, _joined(folder, config, comm))


@contextmanager
def _locked(path: Path, seconds: float = 10.0) -> Iterator[None]:
    """Hold a file lock, or go on without it: a stopped rank may be holding it for ever."""
    with path.open("w") as file:
        deadline = time.monotonic() + seconds
        while not _try_lock(file.fileno()) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _joined(folder: Path, config: RunConfig, comm: Communicator) -> dict[str, Any]:
    parts = [read_json(path) for path in sorted(folder.glob("rank-*.json"))]
    ranks: dict[str, Any] = {str(part["rank"]): part for part in parts}
    for rank in map(str, range(comm.world_size)):
        if rank not in ranks:
            seen = [part["other_ranks"][rank] for part in parts if rank in part["other_ranks"]]
            ranks[rank] = {"rank": int(rank), "error": "no report", "last_seen": seen}
    return {
        "world_size": comm.world_size,
        "ranks": ranks,
        "last_metrics": last_record(config.output),
        "versions": _versions(),
        "config": config.model_dump(mode="json"),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
