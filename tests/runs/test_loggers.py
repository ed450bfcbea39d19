"""Loggers get every epoch and the summary; another one costs one class and its line in a list."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from distributed_ignn.config import parse_args
from distributed_ignn.errors import UserError
from distributed_ignn.runs.output import loggers
from distributed_ignn.runs.output.loggers import LOGGERS, Backend, Course, check_loggers
from distributed_ignn.runs.output.records import RunRecorder
from tests.runs.test_records import record_of

_SETTINGS: dict[str, Any] = {"seed": 3, "train": {"lr": 0.5, "memory": None}, "output": "runs/a"}
_SUMMARY: dict[str, Any] = {"best_val": 0.75, "test_at_best_val": 0.5, "dataset": "chains"}


class Lines:
    """A logger that keeps one line for each figure."""

    def __init__(self, told: Course) -> None:
        self._file = (told.folder / "lines.txt").open("a", encoding="utf-8")
        self._file.write(f"after {told.epochs_done} {told.settings['train.lr']}\n")

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        self._file.write(f"{epoch} {sorted(figures)[0]} {len(figures)}\n")

    def finish(self, summary: Mapping[str, float]) -> None:
        self._file.write(f"{sorted(summary)}\n")

    def close(self) -> None:
        self._file.close()


class Full:
    """A logger whose disk is full."""

    def __init__(self, told: Course) -> None:
        pass

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        raise OSError(28, "No space left on device")

    def finish(self, summary: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def _recorder(folder: Path, names: str, epochs_done: int = 0) -> RunRecorder:
    return RunRecorder(folder, epochs_done, loggers=names, settings=_SETTINGS)


def test_another_logger_gets_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGERS, "lines", Backend(Lines))
    recorder = _recorder(tmp_path, "tensorboard,lines")
    for epoch in (1, 2):
        recorder.epoch(record_of(epoch))
    recorder.rewind(1)
    recorder.epoch(record_of(2))
    recorder.summary(_SUMMARY)
    recorder.close()
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["after", "0"],
        ["1", "communication/bytes_sent"],
        ["2", "communication/bytes_sent"],
        ["after", "1"],
        ["2", "communication/bytes_sent"],
    ]
    assert lines[-1] == "['best_val', 'test_at_best_val']"
    # what the epoch does not have is not logged
    assert lines[1].split()[2] == str(len([v for v in _figures() if v is not None]))
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) >= 1
    assert recorder.problem is None


def test_a_logger_that_cannot_write_is_a_problem_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGERS, "full", Backend(Full))
    recorder = _recorder(tmp_path, "full")
    recorder.epoch(record_of(1))
    recorder.close()
    assert recorder.problem == f"cannot write to {tmp_path}: No space left on device"


def test_a_logger_of_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", "tests.runs.test_loggers:THEIRS", "distributed_ignn.loggers")
    monkeypatch.setattr(loggers, "entry_points", lambda group: [point])
    try:
        config = parse_args(["--dataset", "chains", "--train.loggers", "tensorboard,theirs"])
        assert config.train.loggers == "tensorboard,theirs"
        assert LOGGERS["theirs"] is THEIRS
    finally:
        LOGGERS.pop("theirs", None)


THEIRS = Backend(Lines)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tensorbord", "train.loggers = 'tensorbord' must be 'tensorboard', 'wandb' or 'mlflow'"),
        ("wandb,wandb", "names one twice"),
    ],
)
def test_names_that_are_none_are_refused(names: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_args(["--dataset", "chains", "--train.loggers", names])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGERS, "far", Backend(Full, needs="not_installed_here"))
    with pytest.raises(UserError, match="not_installed_here is not installed; pip install"):
        check_loggers("tensorboard,far")
    check_loggers("none")


def test_tensorboard_has_groups_and_hyper_parameters(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _whole_run(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()["scalars"]
    assert {"loss/training", "residual/forward", "evaluations/adjoint", "final/best_val"} <= {*tags}
    assert [e.step for e in events.Scalars("loss/training")] == [1, 2]
    written = b"".join(p.read_bytes() for p in tmp_path.glob("events.out.tfevents.*"))
    assert b"_hparams_/session_start_info" in written
    assert b"train.lr" in written


def test_weights_and_biases_keeps_a_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    _whole_run(tmp_path, "wandb")
    number = (tmp_path / "wandb-id").read_text().strip()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith(number)
    (content,) = folder.glob("run-*.wandb")
    wanted = (b"loss/training", b"train.lr", b"test_at_best_val")
    until = time.monotonic() + 30.0  # its service writes on its own
    while not all(word in content.read_bytes() for word in wanted):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_mlflow_keeps_a_file_and_goes_on_in_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recorder = _recorder(tmp_path, "mlflow")
    recorder.epoch(record_of(1, loss=0.5))
    recorder.close()
    again = _recorder(tmp_path, "mlflow", epochs_done=1)
    again.epoch(record_of(2, loss=0.25))
    again.summary(_SUMMARY)
    again.close()
    place = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=place, registry_uri=place)
    number = (tmp_path / "mlflow-run").read_text().strip()
    run = client.get_run(number)
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "seed": "3",
        "train.lr": "0.5",
        "train.memory": "null",
        "output": "runs/a",
    }
    history = client.get_metric_history(number, "loss/training")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.25)]
    assert run.data.metrics["final/best_val"] == 0.75


def test_a_server_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at.all")
    with pytest.raises(UserError, match=r"MLflow cannot begin a run at nowhere://at.all"):
        _recorder(tmp_path, "mlflow")


def _whole_run(folder: Path, names: str) -> None:
    recorder = _recorder(folder, names)
    for epoch in (1, 2):
        recorder.epoch(record_of(epoch))
    recorder.summary(_SUMMARY)
    recorder.close()
    assert recorder.problem is None
    assert json.loads((folder / "summary.json").read_text()) == _SUMMARY


def _figures() -> list[object]:
    record = record_of(1)
    return [getattr(record, name) for name in record.__slots__ if name not in ("epoch", "solves")]
