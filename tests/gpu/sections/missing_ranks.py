"""One rank is killed, and one raises: the others have to end soon, with a line and a code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from distributed_ignn.errors import JobError, UserError
from tests.gpu.lone_rank import HANG_SECONDS, RAISED
from tests.gpu.setting import Budget, Setting
from tests.gpu.verdicts import Check, at_most, holds

_SECONDS = HANG_SECONDS + 15.0  # until the last survivor has ended
_POLL_SECONDS = 0.1


def look(budget: Budget) -> Iterator[Check]:
    """On two ranks, or one for every GPU; the last one is hurt."""
    ranks = max(budget.setting.worlds())
    for what in ("killed", "raising"):
        with ExitStack() as stack:
            job = _Job(budget.setting, ranks, 0 if what == "killed" else 3, stack)
            if what == "killed":
                job.until(partial(_all_say, job, "epoch 3"), budget.left())
                job.processes[-1].send_signal(signal.SIGKILL)
            job.until(partial(_last_has_ended, job), budget.left())
            started = time.monotonic()
            job.until(partial(_all_have_ended, job), budget.left())
            seconds = time.monotonic() - started
            yield from _checks(f"one of {ranks} ranks {what}", job, seconds, what == "killed")


def _all_say(job: _Job, text: str) -> bool:
    return all(text in said for said in job.texts())


def _last_has_ended(job: _Job) -> bool:
    return job.codes()[-1] is not None


def _all_have_ended(job: _Job) -> bool:
    return None not in job.codes()


def _checks(name: str, job: _Job, seconds: float, killed: bool) -> Iterator[Check]:
    codes, texts = job.codes(), job.texts()
    last = len(codes) - 1
    yield at_most(f"{name}: seconds until the others end", seconds, _SECONDS, "s")
    expected = [JobError.EXIT_CODE] * last
    yield holds(f"{name}: exit codes of the others", codes[:last] == expected, f"{codes}")
    lines = [line for line in "".join(texts).splitlines() if line.startswith("error: ")]
    # without a line of ours, what the first survivor ended with tells why
    said = (lines or [f"nothing was said; it ended with {_last_line(texts[0])}"])[0][:240]
    yield holds(f"{name}: said in one line", len(lines) == 1, said)
    if killed:
        yield holds(f"{name}: the line names it", f"error: rank {last}" in said)
    else:  # one that raises is named by its own stack trace
        yield holds(f"{name}: its own reason", RAISED in texts[last] and codes[last] == 1)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1]


class _Job:
    """Ranks that nobody watches over, so that how each of them ends can be seen.

    Args:
        setting: where they run.
        ranks: how many.
        fails_in: the epoch in which the last one raises; 0 for never.
        stack: ends them all when it closes.
    """

    def __init__(self, setting: Setting, ranks: int, fails_in: int, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ranks-")))
        self._logs = [folder / f"{rank}.log" for rank in range(ranks)]
        self.processes: list[subprocess.Popen[bytes]] = []
        stack.callback(self._end)
        port = _free_port()
        for rank, path in enumerate(self._logs):
            number = fails_in if rank == ranks - 1 else 0
            with path.open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.gpu.lone_rank", setting.device, f"{number}"],
                        env=os.environ | _place(rank, ranks, port),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )

    def texts(self) -> list[str]:
        """What each rank has printed."""
        return [path.read_text(errors="replace") for path in self._logs]

    def codes(self) -> list[int | None]:
        """Exit code of each rank; None while it runs."""
        return [process.poll() for process in self.processes]

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for something.

        Raises:
            UserError: it did not happen in time.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                words = [text.splitlines()[-1:] for text in self.texts()]
                raise UserError(f"ranks still run after {seconds:.0f} s; last lines: {words}")
            time.sleep(_POLL_SECONDS)

    def _end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _place(rank: int, ranks: int, port: int) -> dict[str, str]:
    """torchrun's environment."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {key: str(value) for key, value in numbers.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
