"""The log of each rank: one JSON object per line, with time, level, rank, epoch and phase."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from distributed_ignn.comm.activity import Activity
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.runs.layout import LOGS

_LIBRARY = logging.getLogger("distributed_ignn")


class _Lines(logging.Formatter):
    """A record as one JSON object."""

    def __init__(self, rank: int, activity: Activity) -> None:
        super().__init__()
        self._rank = rank
        self._activity = activity

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "rank": self._rank,
            "pid": os.getpid(),
            "epoch": self._activity.epoch,
            "phase": self._activity.current,
            "origin": record.name.removeprefix(f"{_LIBRARY.name}."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class _File(logging.FileHandler):
    """A log that cannot be written (full disk) must not end a run, nor fill its screen."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        return


class _Others(logging.Handler):
    """Hands on to the program's own loggers what they would get without this file, and no more."""

    def emit(self, record: logging.LogRecord) -> None:
        root = logging.getLogger()
        if root.handlers:  # without any, logging would print it
            root.callHandlers(record)


def log_path(output: Path, rank: int) -> Path:
    """Where a rank of the run in ``output`` logs."""
    return output / LOGS / f"rank-{rank:05d}.jsonl"


@contextmanager
def rank_log(output: Path, comm: Communicator, level: str) -> Iterator[None]:
    """Log what this library says on this rank, appended to what earlier attempts have said.

    Every rank enters it.

    Args:
        output: folder of the run.
        comm: this rank's communicator.
        level: debug, info, warning or error; lower ones are left out.

    Raises:
        UserError: the file of some rank cannot be opened (on every rank).
    """
    path = log_path(output, comm.rank)

    def opened() -> _File:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _File(path, encoding="utf-8")

    handler = comm.together(opened, doing=f"write to {path}")
    handler.setFormatter(_Lines(comm.rank, comm.activity))
    handler.setLevel(level.upper())
    before, propagates = _LIBRARY.level, _LIBRARY.propagate
    others = _Others(_LIBRARY.getEffectiveLevel() if propagates else logging.CRITICAL + 1)
    _LIBRARY.setLevel(min(handler.level, _LIBRARY.getEffectiveLevel()))
    _LIBRARY.propagate = False
    _LIBRARY.addHandler(handler)
    _LIBRARY.addHandler(others)
    try:
        yield
    finally:
        _LIBRARY.removeHandler(others)
        _LIBRARY.removeHandler(handler)
        _LIBRARY.setLevel(before)
        _LIBRARY.propagate = propagates
        with suppress(OSError):  # a full disk, see _File
            handler.close()
