"""Whole runs with every cell: they learn what takes many hops, and resume bit for bit."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.training.trainer import Trainer
from tests.training.small_trainers import (
    assert_equal,
    everything,
    numbers,
    small_config,
    small_trainer,
    train,
)

CELLS: list[dict[str, Any]] = [
    {"cell": "ignn"},
    {"cell": "eignn"},
    {"cell": "mignn"},
    {"cell": "ignn", "learn_kappa": True},
    {"cell": "ignn", "residual": 0.2},
]


def _chains(model: dict[str, Any]) -> Trainer:
    """Chains of eight nodes of which the first one alone shows the class."""
    tight = {"tolerance": 1e-5, "max_steps": 300}
    config = RunConfig.model_validate(
        {
            "dataset": "chains",
            "data": {"chains": {"length": 8, "chains_per_class": 20}},
            "model": {"hidden": 16, "kappa": 0.98, "dropout": 0.0, "init": "identity"} | model,
            "forward": tight,
            "adjoint": tight,
            "train": {"epochs": 40, "lr": 0.01, "weight_decay": 0.0},
        }
    )
    data = load_dataset("chains", Path(), config.data)
    part = torch.zeros(data.num_nodes, dtype=torch.int64)
    return Trainer(config, next(iter(build_shards(data, part, 1))), Communicator())


@pytest.mark.parametrize("model", CELLS)
def test_a_cell_learns_to_carry_a_class_along_a_chain(model: dict[str, Any]) -> None:
    trainer = _chains(model)
    train(trainer, 40)
    trainer.best.use()
    assert trainer.evaluation.at_equilibrium(("test",))["test"] > 0.95
    at_zero = trainer.evaluation.at_zero(("test",))
    assert at_zero is not None
    assert at_zero["test"] < 0.8


@pytest.mark.parametrize("cell", ["ignn", "eignn", "mignn"])
def test_a_resumed_run_goes_on_bit_for_bit(cell: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "model": {"cell": cell, "learn_kappa": True},
        "train": {"jacobian_weight": 0.1},
    }
    config = small_config(changes)
    first = small_trainer(Communicator(), config, "channels")
    train(first, 3)
    second = small_trainer(Communicator(), config, "channels")
    restore(second, deepcopy(take_snapshot(first)))
    assert second.learned is not None
    assert second.learned.ready
    expected = [numbers(record) for record in train(first, 2)]
    assert [numbers(record) for record in train(second, 2)] == expected
    assert_equal(everything(second), everything(first))


def test_a_checkpoint_of_another_cell_is_one_line() -> None:
    snapshot = take_snapshot(small_trainer(Communicator(), small_config()))
    other = small_trainer(Communicator(), small_config({"model": {"cell": "mignn"}}))
    with pytest.raises(UserError, match=r"model of another shape .*cayley") as error:
        restore(other, snapshot)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ({"cell": "eignn", "constraint": "none"}, r"no effect with model.cell = eignn"),
        ({"learn_kappa": True, "constraint": "none"}, r"model.learn_kappa learns a bound"),
        ({"residual": 1.0}, r"less than 1"),
        ({"cell": "gcn"}, r"'ignn', 'eignn' or 'mignn'"),
    ],
)
def test_settings_that_contradict_are_refused(model: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        RunConfig.model_validate({"dataset": "chains", "model": model})
