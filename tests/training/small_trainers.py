"""Small trainers for the tests of this folder, on the graphs of the parity tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.runs.checkpoints.snapshot import take_snapshot
from distributed_ignn.training.epoch_record import EpochRecord
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import assign, config_for, make_data

EPOCHS = 6
SETTINGS: dict[str, Any] = {
    # loose enough that a lost warm start changes the numbers, and two solver phases to train on
    "forward": {"tolerance": 1e-4},
    "adjoint": {"tolerance": 1e-4},
    "solver": {"network": "graph", "sparsifier": "pri"},
    "schedule": {"warmup_epochs": 2, "warmup_solver_steps": 2, "model_steps": 2},
    "train": {"epochs": EPOCHS},
}


def small_config(
    changes: Mapping[str, Mapping[str, Any]] | None = None, dtype: str = "float64"
) -> RunConfig:
    """The parity tests' run with SETTINGS, and then with ``changes`` by section."""
    values = config_for(dtype).model_dump()
    for sections in (SETTINGS, changes or {}):
        for section, keys in sections.items():
            values[section] = values[section] | keys
    return RunConfig.model_validate(values)


def own_shard(comm: Communicator, data: GraphData) -> GraphShard:
    part = assign(data.name, comm.world_size)
    return list(build_shards(data, part, comm.world_size))[comm.rank]


def small_trainer(
    comm: Communicator, config: RunConfig, data: GraphData | str = "plain"
) -> Trainer:
    """A trainer on ``data``, or on the case of that name."""
    whole = make_data(data) if isinstance(data, str) else data
    return Trainer(config, own_shard(comm, whole), comm)


def train(trainer: Trainer, epochs: int) -> list[EpochRecord]:
    return [trainer.train_epoch() for _ in range(epochs)]


def numbers(record: EpochRecord) -> dict[str, Any]:
    """All of a record that a second run must repeat: not the seconds."""
    return {
        name: getattr(record, name) for name in record.__slots__ if not name.endswith("seconds")
    }


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of all tensors that the next epoch depends on: weights, moments, warm starts."""
    snapshot = take_snapshot(trainer)
    return {k: v.clone() for k, v in (snapshot.common | snapshot.rows).items()}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
