"""Loose solves while the loss falls fast; tight ones at the end and where an epoch is chosen."""

from __future__ import annotations

import math
from typing import Any

import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import TrainConfig
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.training.local_plan import LEAST_NODES
from distributed_ignn.training.loose_tolerance import AUTOMATIC, LooseTolerance
from distributed_ignn.training.trainer import Trainer
from tests.training.small_trainers import (
    assert_equal,
    everything,
    numbers,
    small_config,
    small_trainer,
    train,
)

pytestmark = pytest.mark.cheap

EPOCHS = 10


def _following(losses: list[float], **settings: Any) -> LooseTolerance:
    found = LooseTolerance(TrainConfig(epochs=EPOCHS, loose_tolerance=0.05, **settings), 10)
    for loss in losses:
        found.note(loss)
    return found


def test_it_follows_the_fall_of_the_loss() -> None:
    assert _following([]).at(0) == 0.05
    assert _following([1.0, 0.9, 0.8]).at(3) > _following([1.0, 0.99, 0.98]).at(3) > 0.0
    standing = _following([1.0] * 6)
    assert standing.at(6) == pytest.approx(0.1 * 0.5**5)
    assert _following([1.0, 2.0, 4.0]).at(3) == 0.0
    assert math.isfinite(_following([1.0, 0.0, 0.0, 1.0]).at(4))


def test_it_is_tight_in_the_last_fifth_of_the_epochs() -> None:
    found = _following([])
    assert [found.at(epoch) > 0.0 for epoch in range(EPOCHS)] == [True] * 8 + [False] * 2


@pytest.mark.parametrize(
    ("asked", "nodes", "loosest"),
    [
        ("auto", LEAST_NODES - 1, 0.0),
        ("auto", LEAST_NODES, AUTOMATIC),
        (0.0, 10**9, 0.0),
        (0.3, 10, 0.3),
    ],
)
def test_auto_leaves_small_graphs_alone(asked: Any, nodes: int, loosest: float) -> None:
    assert LooseTolerance(TrainConfig(loose_tolerance=asked), nodes).loosest == loosest


def _trainer(loose: float | str) -> Trainer:
    changes: dict[str, dict[str, Any]] = {
        "forward": {"tolerance": 1e-6},
        "adjoint": {"tolerance": 1e-6},
        "train": {"loose_tolerance": loose, "epochs": EPOCHS, "lr": 0.02},
    }
    return small_trainer(Communicator(), small_config(changes))


def test_training_takes_fewer_evaluations_and_chooses_by_tight_ones() -> None:
    loose, tight = _trainer(0.1), _trainer(0.0)
    found, expected = train(loose, EPOCHS), train(tight, EPOCHS)
    for name in ("forward", "adjoint", "validation"):
        counts = [
            sum(getattr(r, f"evaluations_{name}") for r in records) for records in (found, expected)
        ]
        assert counts[0] < counts[1], name
    assert found[0].residual > 1e-3
    assert found[0].converged
    assert found[0].tolerance == 0.1
    assert all(record.tolerance is None for record in expected)
    for record in found[-2:]:
        assert record.residual <= 1e-6
        assert record.residual_adjoint <= 1e-6
        assert record.tolerance is None
    assert loose.best.confirmed
    assert loose.best.tolerance is not None
    assert loose.best.tolerance <= 1e-6
    # what is asked for between epochs is tight, too
    loose.evaluation.at_equilibrium(("val",))
    assert loose.planner.log.residual("evaluate") <= 1e-6


def test_off_nothing_is_kept_of_it_and_a_resumed_run_goes_on_as_it_was() -> None:
    assert "loose" not in _trainer(0.0).parts()
    trainer = _trainer(0.1)
    train(trainer, 3)
    kept = take_snapshot(trainer).apart()
    trainer.implicit.propagation.reset_links()
    resumed = _trainer(0.1)
    restore(resumed, kept)
    assert resumed.loose.at(3) == trainer.loose.at(3) != _trainer(0.1).loose.at(3)
    assert numbers(train(resumed, 1)[0]) == numbers(train(trainer, 1)[0])
    assert_equal(everything(resumed), everything(trainer))
