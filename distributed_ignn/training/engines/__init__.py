"""Engines: who holds the optimiser and takes its step."""

from __future__ import annotations

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.training.engines.torch import Engine, TorchEngine


def start_engine(model: NodeModel, config: RunConfig, comm: Communicator) -> Engine:
    """The engine that a run names; every rank calls it.

    Raises:
        UserError: DeepSpeed cannot be used here (on every rank).
    """
    if config.engine == "torch":
        return TorchEngine(model, config.train, comm)
    from distributed_ignn.training.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(model, config, comm)
