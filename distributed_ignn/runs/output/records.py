"""What a run writes for people and programs: metrics.jsonl, summary.json, and its loggers."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.reading.strict_json import parse_json
from distributed_ignn.runs.output.loggers import Loggers, course
from distributed_ignn.training.epoch_record import EpochRecord

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
_CLOSED = -1


class RunRecorder:
    """Writes the record of one run; only rank 0 has one.

    A line of metrics.jsonl is there whole or not at all, whatever ends the process: it is one
    write, taken back if the disk holds only part of it. A record that cannot be written does not
    raise here, where the other ranks would wait for this one; ``problem`` says so.

    Args:
        folder: output folder of the run.
        loggers: names of those that are told the same (``train.loggers``).
        settings: of the run, for them.
        epochs_done: records after this epoch are dropped from an earlier metrics.jsonl, because a
            resumed run writes them again.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        epochs_done: int = 0,
        *,
        loggers: str = "tensorboard",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        self._names, self._settings = loggers, settings or {}
        self._path = folder / METRICS
        self._file = _CLOSED
        self.problem: str | None = None
        self._open(epochs_done)

    def _open(self, epochs_done: int) -> None:
        kept = [r for r in read_metrics(self._path) if r["epoch"] <= epochs_done]
        atomic_write_text(self._path, "".join(_line(record) for record in kept))
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        told = course(self._folder, epochs_done, self._settings)
        self._loggers = Loggers(self._names, told)

    def rewind(self, epochs_done: int) -> None:
        """Drop the records after this epoch: the run has gone back and writes them again.

        Raises:
            OSError: the folder cannot be written.
        """
        self.close()
        self._open(epochs_done)

    def epoch(self, record: EpochRecord) -> None:
        """Append one epoch."""
        values = record.values()
        try:
            self._append(_line(values).encode())
            figures = {k: v for k, v in values.items() if k != "epoch" and v is not None}
            self._loggers.log(record.epoch, figures)
        except OSError as error:
            self.problem = f"cannot write to {self._folder}: {error.strerror or error}"

    def summary(self, values: dict[str, Any]) -> None:
        """Write summary.json, and tell the loggers of it.

        Raises:
            OSError: it cannot be written.
        """
        finite = {k: _finite(v) for k, v in values.items()}
        atomic_write_json(self._folder / SUMMARY, finite)
        self._loggers.finish(finite)

    def _append(self, line: bytes) -> None:
        before = os.fstat(self._file).st_size
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Flush everything; again, it does nothing."""
        file, self._file = self._file, _CLOSED
        if file != _CLOSED:
            os.close(file)
            self._loggers.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl; a line cut short by a machine's end ends the list."""
    records: list[dict[str, Any]] = []
    if not path.is_file():
        return records
    for line in path.read_bytes().splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            break
        if not isinstance(record, dict) or type(record.get("epoch")) is not int:
            break
        records.append(record)
    return records


def last_record(folder: Path) -> dict[str, Any] | None:
    """Return the newest record of the run in a folder, if it has any that can be read."""
    try:
        records = read_metrics(folder / METRICS)
    except OSError:
        return None
    return records[-1] if records else None


def _line(values: dict[str, Any]) -> str:
    return json.dumps({k: _finite(v) for k, v in values.items()}) + "\n"


def _finite(value: Any) -> Any:
    """Turn what JSON cannot hold, such as NaN, into null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
