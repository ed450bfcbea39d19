"""A run that pauses goes on to the numbers of one that does not, and reads no test nodes before."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from distributed_ignn.api.finished_run import load
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.runs.predict import load_run, load_run_for
from distributed_ignn.runs.run import Conduct, run_training
from distributed_ignn.training.confirmation import Confirmation
from tests.training.small_trainers import assert_equal

pytestmark = pytest.mark.cheap

EPOCHS = 6


def _run(output: Path, **changes: Any) -> RunConfig:
    values = {
        "dataset": "chains",
        "device": "cpu",
        "output": output,
        "data": {"chains": {"length": 4, "chains_per_class": 8, "features": 3, "noise": 0.5}},
        "model": {"hidden": 4},
        "forward": {"method": "neural", "tolerance": 1e-4},
        "adjoint": {"tolerance": 1e-4},
        "schedule": {"warmup_epochs": 1, "warmup_solver_steps": 2, "model_steps": 2},
        "train": {"epochs": EPOCHS, "threads": 1, "local_steps": 4, "lr": 0.02},
    }
    return RunConfig.model_validate(values | changes)


def _train(run: RunConfig, until: int | None = None) -> dict[str, Any]:
    conduct = Conduct(shows=False, owns_process=False)
    return run_training(run, Communicator(), conduct=conduct, until=until)


def _records(output: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in found]


def test_a_run_may_pause_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    summary = _train(_run(whole))
    measure = Confirmation.measure
    read: list[str] = []

    def noted(self: Confirmation, state: Any, splits: tuple[str, ...]) -> dict[str, float]:
        read.extend(splits)
        return measure(self, state, splits)

    monkeypatch.setattr(Confirmation, "measure", noted)
    first = _train(_run(parts), until=1)
    assert first == {
        "metric": "accuracy",
        "epochs": 1,
        "best_epoch": 1,
        "best_val": _records(whole)[0]["val_metric"],
        "confirmed": True,
        "finished": False,
    }
    again = _run(parts, resume="auto")
    assert _train(again, until=4)["epochs"] == 4
    assert _train(again, until=4)["epochs"] == 4  # has nothing to do
    last = _train(again, until=EPOCHS)
    assert (last["epochs"], last["finished"]) == (EPOCHS, True)
    assert last["best_epoch"] == summary["best_epoch"]
    assert _records(parts) == _records(whole)
    # nothing of the test nodes so far; a call without a pause ends the run
    assert "test" not in read
    assert not (parts / "summary.json").exists()
    ended = _train(again)
    assert "test" in read
    same = ("best_val", "test_at_best_val", "test_last", "epochs", "local_steps")
    assert {k: ended[k] for k in same} == {k: summary[k] for k in same}


def test_a_finished_run_that_goes_on_has_no_summary_until_its_new_end(tmp_path: Path) -> None:
    output = tmp_path / "run"
    _train(_run(output))
    ended = (output / "summary.json").read_bytes()
    again = _run(output, resume="auto")
    _train(again, until=EPOCHS)  # nothing to do, nothing lost
    assert (output / "summary.json").read_bytes() == ended
    longer = again.model_copy(update={"train": again.train.model_copy(update={"epochs": 9})})
    _train(longer, until=EPOCHS + 1)
    with pytest.raises(UserError, match="the run has not come to its end"):
        assert load(output).summary
    _train(longer)
    assert load(output).summary["epochs"] == 9


@pytest.mark.parametrize(("eval_every", "until"), [(1, 1), (4, 2)])
def test_a_paused_run_predicts_with_the_same_weights_on_every_graph(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, eval_every: int, until: int
) -> None:
    """Those of the candidate, and the newest before the first validation."""
    caplog.set_level(logging.WARNING, "distributed_ignn")
    settings = {"epochs": EPOCHS, "threads": 1, "lr": 0.02, "ema": 0.9, "eval_every": eval_every}
    _train(_run(tmp_path, train=settings), until=until)
    own = load_run(tmp_path, Communicator())
    other, _ = load_run_for(tmp_path, "chains", Communicator())
    assert own.best.epoch == other.best.epoch == until
    weights = dict(own.model.state_dict())
    assert_equal(dict(other.model.state_dict()), weights)
    assert_equal(weights, own.average.mean)
    said = [m for m in caplog.messages if f"these are the weights of epoch {until}" in m]
    assert len(said) == (2 if until < eval_every else 0)
