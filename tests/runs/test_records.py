"""metrics.jsonl and summary.json: valid whatever interrupts them."""

from __future__ import annotations

import errno
import json
from dataclasses import fields
from pathlib import Path

import pytest

from distributed_ignn.runs.output import records
from distributed_ignn.runs.output.records import RunRecorder, read_metrics
from distributed_ignn.training.epoch_record import EpochRecord


def record_of(epoch: int, loss: float = 0.5) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        loss=loss,
        train_metric=0.25,
        val_metric=None,
        seconds=0.1,
        evaluations_forward=3,
        evaluations_adjoint=4,
        evaluations_validation=5,
        residual=1e-5,
        residual_adjoint=float("nan"),
        bytes_sent=100,
        exchanges=12,
        solver_steps=0,
        solver_loss=None,
        solver_seconds=0.0,
    )


def _write(folder: Path, epochs: range, done: int = 0) -> None:
    recorder = RunRecorder(folder, done)
    for epoch in epochs:
        recorder.epoch(record_of(epoch, loss=epoch + done / 100))
    recorder.close()


def test_one_object_per_epoch_without_nan(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    written = [field.name for field in fields(EpochRecord) if field.name != "solves"]
    assert all(list(record) == written for record in records)
    assert records[0]["residual_adjoint"] is None
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_a_resumed_run_replaces_the_epochs_that_it_repeats(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 6))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 6, "lo')
    assert [record["epoch"] for record in read_metrics(path)] == [1, 2, 3, 4, 5]
    _write(tmp_path, range(4, 7), done=3)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in records] == [1, 2, 3, 4.03, 5.03, 6.03]


def test_summary_holds_null_for_what_is_not_finite(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.summary({"best_val": float("inf"), "epochs": 3})
    recorder.close()
    assert json.loads((tmp_path / "summary.json").read_text()) == {"best_val": None, "epochs": 3}


def test_no_file_is_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_records_that_cannot_be_written_anew_are_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that was closed may by then be that of somebody else's file."""
    recorder = RunRecorder(tmp_path)

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "atomic_write_text", full)
    with pytest.raises(OSError, match="No space left"):
        recorder.rewind(0)
    recorder.close()
