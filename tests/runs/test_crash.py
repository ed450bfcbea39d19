"""A bug in a run leaves a report: where, with which settings and versions, after which epoch."""

from __future__ import annotations

import _thread
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.runs.output.crash import crash_reports
from distributed_ignn.runs.run import run_training
from distributed_ignn.training.epoch_record import EpochRecord
from tests.training.test_two_ranks import _chains


def _bug(record: EpochRecord, checkpoint: Path | None) -> None:
    if record.epoch == 2:
        raise ZeroDivisionError("a bug")


def test_a_bug_leaves_a_report(tmp_path: Path) -> None:
    config = _chains(tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        run_training(config, Communicator(), _bug)
    (path,) = (tmp_path / "run" / "crash").glob("*/report.json")
    report = json.loads(path.read_bytes())
    own = report["ranks"]["0"]
    assert own["error"] == "ZeroDivisionError: a bug"
    assert own["phase"] == "epoch 2, between epochs"
    assert any("in _bug" in line for line in own["stack"])
    assert report["last_metrics"]["epoch"] == 2
    assert report["config"] == json.loads(config.model_dump_json())
    assert report["versions"].keys() >= {"python", "torch", "numpy"}
    last = (tmp_path / "run" / "logs" / "rank-00000.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["level"] == "critical"


def test_a_mistake_leaves_none(tmp_path: Path) -> None:
    run_training(_chains(tmp_path / "run"), Communicator())
    with pytest.raises(UserError, match="already holds a run"):
        run_training(_chains(tmp_path / "run"), Communicator())
    other = _chains(tmp_path / "run", resume="auto", model={"hidden": 5})
    with pytest.raises(UserError, match="shape"):
        run_training(other, Communicator())
    assert not (tmp_path / "run" / "crash").exists()


def _hang_in_the_adjoint(entered: threading.Event, over: threading.Event) -> None:
    entered.set()
    over.wait(60)


def test_a_report_shows_what_every_thread_was_doing(tmp_path: Path) -> None:
    """As on a GPU, where the adjoint hangs in a thread that torch has started, not Python."""
    comm, entered, over = Communicator(), threading.Event(), threading.Event()
    watchdog: Any = SimpleNamespace(before_exit=[], pulses={})
    comm.watchdog = watchdog
    with crash_reports(_chains(tmp_path / "run"), comm):
        _thread.start_new_thread(_hang_in_the_adjoint, (entered, over))
        assert entered.wait(20)
        (tell,) = watchdog.before_exit
        judge = threading.Thread(target=tell, args=("no answer from rank 1",), name="judges")
        judge.start()
        judge.join()
        over.set()
    (path,) = (tmp_path / "run" / "crash").glob("*/report.json")
    own = json.loads(path.read_bytes())["ranks"]["0"]
    assert own["error"] == "no answer from rank 1"
    assert any("in test_a_report_shows_what" in line for line in own["stack"])
    keys = list(own)
    assert keys.index("stack") < keys.index("other_threads")
    (hanging,) = (
        name
        for name, lines in own["other_threads"].items()
        if any("in _hang_in_the_adjoint" in line for line in lines)
    )
    assert hanging.startswith("of a library")
    assert not any(name.startswith("judges") for name in own["other_threads"])
