"""A training of milliseconds an epoch with every part of a run, for what needs many epochs."""

from __future__ import annotations

from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.training.trainer import Trainer
from tests.training.small_trainers import small_config, small_trainer


def quick_trainer(comm: Communicator, epochs: int, kernel: str = "auto") -> Trainer:
    """On the graph of the parity tests in float32; the solver is trained now and then."""
    loose = {"tolerance": 1e-2}
    changes: dict[str, dict[str, Any]] = {
        "forward": loose,
        "adjoint": loose,
        "schedule": {"model_steps": 25},
        "train": {"epochs": epochs, "kernel": kernel},
    }
    return small_trainer(comm, small_config(changes, "float32"))
