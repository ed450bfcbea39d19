"""The training command, with this process hurt at a chosen step: what torchrun starts in tests.

``FAULTS`` is a JSON list with one entry per attempt: null, or an object with

    rank     who is hurt
    signal   by what: SIGKILL, SIGSTOP, SIGTERM
    at       ``phase`` (on entering one), ``exchange`` (on waiting for halo rows), ``file`` (before
             something on disk changes)
    phase    which phase; for the others, only inside it
    count    at the how-many-th time
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from distributed_ignn.comm.activity import Activity
from distributed_ignn.comm.communicator import PendingRows
from distributed_ignn.commands.train import main

_CHECKPOINT = "writing a checkpoint"
# everything by which the product changes what is on disk
FILE_STEPS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "replace"),
    (os, "write"),
    (shutil, "rmtree"),
    (Path, "rename"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (Path, "chmod"),
]


class Fault:
    """Hurts this process at a step.

    Args:
        signum: by what.
        count: at the how-many-th call.
    """

    def __init__(self, signum: int, count: int) -> None:
        self._signum = signum
        self._left = count
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._signum)


def before(owner: Any, name: str, action: Callable[[], None]) -> None:
    """Call ``action`` before each call of a function of a module or class."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        action()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def hurt_at_file_steps(fault: Fault, inside: Callable[[], bool] = lambda: True) -> None:
    """Count every change on disk as a step."""
    for owner, name in FILE_STEPS:
        before(owner, name, lambda: fault.step() if inside() else None)


def _arm(entry: dict[str, Any]) -> None:
    fault = Fault(signal.Signals[entry["signal"]], entry.get("count", 1))
    wanted = entry.get("phase")
    here: list[Activity] = []
    original = Activity.phase

    def phase(self: Activity, name: str) -> AbstractContextManager[None]:
        here[:] = [self]
        if entry["at"] == "phase" and name == wanted:
            fault.step()
        return original(self, name)

    Activity.phase = phase  # type: ignore[assignment,method-assign]

    def inside() -> bool:
        if threading.current_thread().name.startswith("checkpoint"):
            return wanted in (None, _CHECKPOINT)  # the epochs may have gone on meanwhile
        return wanted is None or (bool(here) and here[0].current == wanted)

    if entry["at"] == "exchange":
        before(PendingRows, "wait", lambda: fault.step() if inside() else None)
    if entry["at"] == "file":
        hurt_at_file_steps(fault, inside)


if __name__ == "__main__":
    faults = json.loads(os.environ["FAULTS"])
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    chosen = faults[attempt] if attempt < len(faults) else None
    if chosen is not None and chosen["rank"] == int(os.environ.get("RANK", "0")):
        _arm(chosen)
    sys.exit(main(sys.argv[1:]))
