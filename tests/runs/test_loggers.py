"""Another logger costs one class and its name in one list; every epoch comes to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from distributed_ignn.runs.output import loggers
from distributed_ignn.runs.output.records import RunRecorder
from tests.runs.test_records import record_of


class Lines:
    """A logger that keeps one line for each figure."""

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self._file = (folder / "lines.txt").open("a", encoding="utf-8")
        self._file.write(f"after {epochs_done}\n")

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        self._file.write(f"{epoch} {sorted(figures)[0]} {len(figures)}\n")

    def close(self) -> None:
        self._file.close()


class Full:
    """A logger whose disk is full."""

    def __init__(self, folder: Path, epochs_done: int) -> None:
        pass

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        pass


def test_another_logger_gets_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "LOGGERS", [*loggers.LOGGERS, Lines])
    recorder = RunRecorder(tmp_path)
    for epoch in (1, 2):
        recorder.epoch(record_of(epoch))
    recorder.rewind(1)
    recorder.epoch(record_of(2))
    recorder.close()
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["after", "0"],
        ["1", "bytes_sent"],
        ["2", "bytes_sent"],
        ["after", "1"],
        ["2", "bytes_sent"],
    ]
    # what the epoch does not have is not logged
    assert lines[1].split()[2] == str(len([v for v in _figures() if v is not None]))
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) >= 1
    assert recorder.problem is None


def test_a_logger_that_cannot_write_is_a_problem_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "LOGGERS", [Full])
    recorder = RunRecorder(tmp_path)
    recorder.epoch(record_of(1))
    recorder.close()
    assert recorder.problem == f"cannot write to {tmp_path}: No space left on device"


def _figures() -> list[object]:
    record = record_of(1)
    return [getattr(record, name) for name in record.__slots__ if name not in ("epoch", "solves")]
