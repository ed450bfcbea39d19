"""Cells: ``build_weights`` makes the one that ``model.cell`` names."""

from __future__ import annotations

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.cells.base import CellWeights
from distributed_ignn.models.cells.eignn import EignnWeights
from distributed_ignn.models.cells.ignn import IgnnWeights
from distributed_ignn.models.cells.mignn import MignnWeights
from distributed_ignn.models.constraints import first_vector, growth_factor
from distributed_ignn.propagation.propagate import Propagation

__all__ = ["CellWeights", "EignnWeights", "IgnnWeights", "MignnWeights", "build_weights"]


def build_weights(
    config: ModelConfig,
    shard: GraphShard,
    propagation: Propagation,
    comm: Communicator,
    dtype: torch.dtype,
) -> CellWeights:
    """The cell's weights, drawn from torch's generator; every rank calls it.

    Raises:
        UserError: mignn on a directed channel (on every rank alike).
    """
    channels = propagation.num_channels
    undirected = all(channel.symmetric for channel in shard.channels)
    if config.cell == "mignn":
        if not undirected:
            raise UserError(
                "model.cell = mignn needs undirected graphs, and a channel of this one is "
                "directed; use ignn or eignn"
            )
        return MignnWeights(config, channels)
    if config.cell == "eignn" and undirected:
        return EignnWeights(config, channels, 1.0)
    growth = growth_factor(propagation, first_vector(shard, comm.device, dtype), comm)
    # B w = (1 - r) A w + r w grows by at most this
    growth = (1.0 - config.residual) * growth + config.residual
    if config.cell == "ignn":
        return IgnnWeights(config, channels, growth)
    weights = EignnWeights(config, channels, growth)
    weights.norm = "rows"
    return weights
