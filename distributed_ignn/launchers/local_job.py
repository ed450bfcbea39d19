"""Starts the ranks of one job itself, waits for them, and never leaves one behind.

Ranks get torchrun's environment (RANK, WORLD_SIZE, MASTER_ADDR, ...) and run the same command.
Without a network between them they meet on this machine; with one, the first half runs at its first
end and the second half at the other, each as a machine of its own.

torch's own ``elastic_launch`` was tried (torch 2.13). It starts two ranks as fast, 1.3 s, but it
knows no time limit, puts nothing before the command of a rank (a network namespace is entered that
way), waits up to 30 s for a rank that sits in a collective, keeps its signal handlers, writes stack
traces to the screen whatever they mean, and runs a caller's script a second time in every rank
unless it has a ``__main__`` guard, which no notebook and few scripts have.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Protocol

from distributed_ignn.errors import Stopped, UserError

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 2.0  # after the first failure, so that its own words are the ones to be shown
_PORT = 29500  # in a fresh namespace every port is free


class Network(Protocol):
    """Two ends on this machine with a network between them; ranks run at both."""

    @property
    def address(self) -> str:
        """Of the first end, where ranks meet."""

    @property
    def interface(self) -> str:
        """Network card of either end."""

    def command(self, end: int) -> list[str]:
        """What to put before a command so that it runs at the first (0) or second (1) end."""


class RanksFailed(UserError):  # noqa: N818 - what happened, not another kind of mistake
    """Ranks failed, or the time was up.

    Args:
        message: one line for the user.
        codes: exit codes of the ranks that failed, by rank; negative for signals.
    """

    def __init__(self, message: str, codes: Mapping[int, int]) -> None:
        super().__init__(message)
        self.codes = codes


@dataclass(frozen=True, slots=True)
class Job:
    """What to run.

    Args:
        command: of every rank.
        ranks: how many.
        timeout: seconds for everything; then all ranks are killed; infinity for no limit.
        threads: CPU threads of each rank's libraries.
        show: let the ranks write to this process's own output instead of keeping it.
        extra: variables of the ranks' environment to set besides.
    """

    command: tuple[str, ...]
    ranks: int
    timeout: float
    threads: int = 1
    show: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)


def run_job(job: Job, network: Network | None = None) -> None:
    """Run a job to its end.

    Raises:
        RanksFailed: a rank failed (its last words are in the line), or the time is up. Every rank
            has ended by then, as it has after any other exception.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="job-")))
        places = _places(job.ranks, network)
        port = _free_port() if network is None else _PORT
        running: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, running)
        for rank, place in enumerate(places):
            log: IO[bytes] | None = None
            if not job.show:
                log = stack.enter_context((folder / f"{rank}.log").open("wb"))
            before = () if network is None else network.command(place.end)
            running.append(
                subprocess.Popen(
                    [*before, *job.command],
                    env=_inherited() | _environment(rank, place, job, port, network),
                    stdout=log,
                    stderr=None if log is None else subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # so that whatever a rank starts ends with it
                )
            )
        failed = _wait(running, job.timeout)
        _end(running)
        if failed is not None:
            raise RanksFailed(f"{failed}{_last_words(folder, job)}", failed.codes)


@dataclass(frozen=True, slots=True)
class _Place:
    end: int
    local_rank: int
    local_world_size: int


def _places(ranks: int, network: Network | None) -> list[_Place]:
    if network is None:
        return [_Place(0, rank, ranks) for rank in range(ranks)]
    first = (ranks + 1) // 2
    return [
        _Place(0, rank, first) if rank < first else _Place(1, rank - first, ranks - first)
        for rank in range(ranks)
    ]


def _inherited() -> dict[str, str]:
    """This process's environment without what torchrun means for its own ranks."""
    return {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC_")}


def _environment(
    rank: int, place: _Place, job: Job, port: int, network: Network | None
) -> dict[str, str]:
    values = {
        "RANK": rank,
        "WORLD_SIZE": job.ranks,
        "LOCAL_RANK": place.local_rank,
        "LOCAL_WORLD_SIZE": place.local_world_size,
        "MASTER_ADDR": "127.0.0.1" if network is None else network.address,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": job.threads,
    }
    if network is not None:
        values["GLOO_SOCKET_IFNAME"] = network.interface
    return {key: str(value) for key, value in values.items()} | dict(job.extra)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(running: Sequence[subprocess.Popen[bytes]], timeout: float) -> RanksFailed | None:
    """None once all ranks have ended well, else what went wrong."""
    deadline = time.monotonic() + timeout
    while True:
        codes = [process.poll() for process in running]
        bad = {rank: code for rank, code in enumerate(codes) if code}
        if bad:
            _wait_briefly(running)
            # who was killed is the cause where others have noticed it in the meantime
            rank, code = min(bad.items(), key=lambda each: (each[1] > 0, each[0]))
            how = f"failed with exit code {code}" if code > 0 else f"ended by {Stopped.name(-code)}"
            return RanksFailed(f"rank {rank} of {len(codes)} {how}", bad)
        if all(code == 0 for code in codes):
            return None
        if time.monotonic() > deadline:
            late = [rank for rank, code in enumerate(codes) if code is None]
            return RanksFailed(
                f"ranks {late} of {len(codes)} did not finish within {timeout:g} s", {}
            )
        time.sleep(_POLL_SECONDS)


def _wait_briefly(running: Sequence[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < until and any(process.poll() is None for process in running):
        time.sleep(_POLL_SECONDS)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill what still runs; a rank inside a collective does not react to less."""
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    for process in running:
        process.wait()


def _last_words(folder: Path, job: Job) -> str:
    """The first line that names an error, or else the last line of all."""
    logs = [(folder / f"{rank}.log") for rank in range(job.ranks)]
    lines = [line for log in logs if log.exists() for line in _lines(log)]
    telling = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    chosen = telling[:1] or lines[-1:]
    return f": {chosen[0].removeprefix('error: ')}" if chosen else ""


def _lines(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()]


@contextmanager
def killable() -> Iterator[list[int]]:
    """Let SIGTERM end this process as Ctrl-C does, so that everything is cleared away.

    What it yields then holds the signal's number.
    """
    found: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        found.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever owns that one decides
        yield found
        return
    try:
        yield found
    finally:
        signal.signal(signal.SIGTERM, before)
