"""Checkpoints of the format before this one: a run goes on from them, or says what they lack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.runs.checkpoints.checkpoint import Snapshot
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.training.trainer import Trainer
from tests.training.small_trainers import assert_equal, everything, small_config, small_trainer


def _trained() -> Trainer:
    """Three epochs with a solver phase and an average, so that every part has something to say."""
    trainer = small_trainer(Communicator(), small_config({"train": {"ema": 0.5}}))
    for _ in range(3):
        trainer.train_epoch()
    return trainer


def _old(trainer: Trainer) -> Snapshot:
    """What the release before wrote of a trainer, in its own names."""
    solver = trainer.solver_trainer
    assert solver is not None
    assert trainer.learned is not None
    tally = trainer.guard.tally
    state: dict[str, Any] = {
        "version": 2,
        "epoch": trainer.epoch,
        "best_epoch": trainer.best.epoch,
        "best_val": trainer.best.val_metric,
        "stale_validations": trainer.best.stale,
        "val_metric": trainer.val_metric,
        "average_steps": trainer.average.steps,
        "seconds_total": 1000.0,
        "seconds_solver_training": trainer.stopwatch.solver_training,
        "solver_steps_done": solver.steps_done,
        "solver_ready": trainer.learned.ready,
        "numbers": {
            "lowest_loss": tally.lowest_loss,
            "skips": 0,
            "skipped": 0,
            "rollbacks": 0,
            "lr_scale": 1.0,
            "lr": trainer.config.train.lr,
        },
    }
    return replace(take_snapshot(trainer), state=state)


def test_a_run_goes_on_from_one() -> None:
    first = _trained()
    assert first.average.steps == 3
    resumed = small_trainer(Communicator(), first.config)
    restore(resumed, _old(first))
    assert_equal(everything(resumed), everything(first))
    ours, theirs = take_snapshot(first).state["parts"], take_snapshot(resumed).state["parts"]
    assert theirs.pop("seconds")["total"] > 1000.0
    ours.pop("seconds")
    assert ours["best"].pop("tolerance") is not None  # which such a checkpoint does not know
    assert theirs["best"].pop("tolerance") is None
    assert theirs == ours
    assert resumed.solver_trainer is not None
    assert resumed.solver_trainer.steps_done == 2


@pytest.mark.parametrize("key", ["val_metric", "average_steps", "seconds_total", "numbers"])
def test_what_older_ones_lacked_may_be_missing(key: str) -> None:
    first = _trained()
    whole = _old(first)
    less = {name: value for name, value in whole.state.items() if name != key}
    resumed = small_trainer(Communicator(), first.config)
    restore(resumed, replace(whole, state=less))
    assert resumed.epoch == 3


@pytest.mark.parametrize(
    "key",
    [
        "epoch",
        "best_epoch",
        "best_val",
        "stale_validations",
        "seconds_solver_training",
        "solver_steps_done",
        "solver_ready",
    ],
)
def test_what_is_missing_otherwise_is_named(key: str) -> None:
    first = _trained()
    whole = _old(first)
    less = {name: value for name, value in whole.state.items() if name != key}
    with pytest.raises(UserError, match=f"lacks a part of a run .*{key}.*choose another") as error:
        restore(small_trainer(Communicator(), first.config), replace(whole, state=less))
    assert "\n" not in str(error.value)
