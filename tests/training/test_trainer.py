"""Epochs of one process: what they read, when they stop, what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.training.plans import ADJOINT, EVALUATE, TRAIN
from distributed_ignn.training.state import State
from tests.parity.cases import CLASSES, make_data
from tests.training.small_trainers import (
    assert_equal,
    everything,
    numbers,
    small_config,
    small_trainer,
    train,
)


def test_test_labels_change_nothing_before_the_end() -> None:
    data = make_data("plain")
    labels = data.labels.clone()
    labels[data.test_nodes] = (labels[data.test_nodes] + 1) % CLASSES
    runs = []
    for twin in (data, replace(data, labels=labels)):
        trainer = small_trainer(Communicator(), small_config(), twin)
        records = [numbers(record) for record in train(trainer, 4)]
        runs.append((records, everything(trainer), trainer.evaluation.at_equilibrium(("test",))))
    assert runs[0][0] == runs[1][0]
    assert_equal(runs[0][1], runs[1][1])
    # the labels did change
    assert runs[0][2] != runs[1][2]


@pytest.mark.parametrize("split", ["train_nodes", "val_nodes"])
def test_labels_of_the_other_splits_are_read(split: str) -> None:
    """The comparison above can fail."""
    data = make_data("plain")
    labels = data.labels.clone()
    nodes = getattr(data, split)
    labels[nodes] = (labels[nodes] + 1) % CLASSES
    runs = []
    for twin in (data, replace(data, labels=labels)):
        trainer = small_trainer(Communicator(), small_config(), twin)
        runs.append([numbers(record) for record in train(trainer, 2)])
    assert runs[0] != runs[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_one_line(value: float) -> None:
    trainer = small_trainer(Communicator(), small_config())
    with torch.no_grad():
        trainer.implicit.head.bias[0] = value
    with pytest.raises(
        UserError,
        match=r"epoch 1: the training loss is nan: NaN or Inf in weights head.bias on rank 0",
    ) as error:
        trainer.train_epoch()
    assert "\n" not in str(error.value)


def test_patience_ends_the_run_and_the_best_weights_return() -> None:
    config = small_config({"train": {"lr": 1e-9, "patience": 2, "epochs": 20}})
    trainer = small_trainer(Communicator(), config)
    epochs: list[int] = []
    trainer.fit(lambda record: epochs.append(record.epoch))
    assert epochs == [1, 2, 3]
    assert trainer.finished
    assert trainer.best.epoch == 1
    assert trainer.best.weights is not None
    trainer.best.use()
    assert_equal(dict(trainer.model.state_dict()), trainer.best.weights)


def test_epochs_without_validation_report_none_but_the_last_always_validates() -> None:
    config = small_config({"train": {"eval_every": 2, "epochs": 5}})
    trainer = small_trainer(Communicator(), config)
    records = train(trainer, 5)
    assert [r.val_metric is None for r in records] == [True, False, True, False, False]
    assert [r.evaluations_validation > 0 for r in records] == [False, True, False, True, True]
    assert all(r.evaluations_forward > 0 and r.evaluations_adjoint > 0 for r in records)


def test_the_learned_solver_takes_over_after_its_first_phase() -> None:
    trainer = small_trainer(Communicator(), small_config())
    kinds = []
    for _ in range(3):
        kinds.append(type(trainer.planner.train().solver))
        trainer.train_epoch()
    assert kinds == [Anderson, Anderson, Anderson]
    assert type(trainer.planner.train().solver) is NeuralSolver
    assert type(trainer.planner.adjoint().solver) is NeuralSolver


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, {TRAIN, EVALUATE, ADJOINT}),
        ({"model": {"input_dropout": 0.0}}, {EVALUATE, ADJOINT}),
        ({"forward": {"warm_start": False}}, {ADJOINT}),
        ({"forward": {"warm_start": False}, "adjoint": {"warm_start": False}}, set()),
    ],
)
def test_warm_starts_are_kept_as_asked(changes: dict[str, Any], kept: set[str]) -> None:
    trainer = small_trainer(Communicator(), small_config(changes))
    train(trainer, 2)
    assert set(trainer.planner.states) == kept


def test_warm_starts_save_evaluations() -> None:
    counts = []
    for warm in (True, False):
        changes: dict[str, dict[str, Any]] = {
            "model": {"input_dropout": 0.0, "dropout": 0.0},
            "forward": {"warm_start": warm, "method": "anderson", "tolerance": 1e-6},
            "adjoint": {"warm_start": warm},
            "train": {"lr": 1e-4},
        }
        trainer = small_trainer(Communicator(), small_config(changes))
        last = train(trainer, 4)[-1]
        counts.append((last.evaluations_forward, last.evaluations_adjoint))
    # the validation before the step has already found the point
    assert counts[0][0] == 1
    assert counts[1][0] > 4
    assert counts[0][1] < counts[1][1]


@pytest.mark.parametrize("method", ["anderson", "picard", "broyden", "neural"])
def test_a_model_whose_relus_have_died_is_trained_on(method: str) -> None:
    """Z* is zero then, and 0 = 0 is an equilibrium; warm starts are not zero yet."""
    config = small_config({"forward": {"method": method}, "adjoint": {"method": "auto"}})
    trainer = small_trainer(Communicator(), config)
    train(trainer, 1)
    for parameter in trainer.implicit.encoder.parameters():
        parameter.data.fill_(-10.0)  # features are not negative
    (record,) = train(trainer, 1)
    assert record.converged
    assert record.converged_forward
    assert record.residual == 0.0
    assert record.loss == pytest.approx(record.loss)
    assert not record.skipped


def test_an_embedding_is_not_dropped_and_starts_from_the_validation() -> None:
    """So dropout of features costs no solve and no state on a graph that has none."""
    found = []
    for dropped in ({}, {"input_dropout": 0.5, "node_dropout": 0.5, "injection_layers": 2}):
        config = small_config({"model": dropped, "forward": {"method": "anderson"}})
        trainer = small_trainer(Communicator(), config, "embedding")
        records = [numbers(record) for record in train(trainer, 3)]
        found.append((records, everything(trainer)))
        assert sorted(trainer.planner.states) == [ADJOINT, EVALUATE]
        assert [record["evaluations_forward"] for record in records[1:]] == [1, 1]
    assert found[0][0] == found[1][0]
    assert_equal(found[0][1], found[1][1])


def test_a_state_that_no_solve_starts_from_is_not_taken_from_a_checkpoint() -> None:
    planner = small_trainer(Communicator(), small_config(), "embedding").planner
    rows = torch.ones(2, 3)
    planner.load_state(State(rows={TRAIN: rows, EVALUATE: rows, ADJOINT: rows}))
    assert sorted(planner.states) == [ADJOINT, EVALUATE]
