"""Cells: ``build_weights`` makes the one that ``model.cell`` names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.cells.base import CellWeights, Norm
from distributed_ignn.models.cells.eignn import EignnWeights
from distributed_ignn.models.cells.ignn import IgnnWeights
from distributed_ignn.models.cells.mignn import MignnWeights
from distributed_ignn.models.constraints import first_vector, growth_factor
from distributed_ignn.propagation.propagate import Propagation

__all__ = [
    "CellWeights",
    "EignnWeights",
    "GraphFit",
    "IgnnWeights",
    "MignnWeights",
    "build_weights",
    "cell_weights",
    "fit_to_graph",
]


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
    fit = fit_to_graph(config, shard, propagation, comm, dtype)
    return cell_weights(config, propagation.num_channels, fit)


@dataclass(frozen=True, slots=True)
class GraphFit:
    """What a graph asks of the weights.

    Args:
        growth: rho of the propagated channels, which divides the bound on the weights.
        norm: in which the weights' contraction is certified.
    """

    growth: float
    norm: Norm


def fit_to_graph(
    config: ModelConfig,
    shard: GraphShard,
    propagation: Propagation,
    comm: Communicator,
    dtype: torch.dtype,
) -> GraphFit:
    """What this graph asks of the weights of ``config``; every rank calls it.

    Raises:
        UserError: mignn on a directed channel (on every rank alike).
    """
    undirected = all(channel.symmetric for channel in shard.channels)
    if config.cell == "mignn" and not undirected:
        raise UserError(
            "model.cell = mignn needs undirected graphs, and a channel of this one is "
            "directed; use ignn or eignn"
        )
    if config.cell != "ignn" and undirected:
        return GraphFit(1.0, "frobenius")
    growth = growth_factor(propagation, first_vector(shard, comm.device, dtype), comm)
    # B w = (1 - r) A w + r w grows by at most this
    growth = (1.0 - config.residual) * growth + config.residual
    return GraphFit(growth, "max" if config.cell == "ignn" else "rows")


_CELLS: dict[str, Callable[[ModelConfig, int, float], CellWeights]] = {
    "ignn": IgnnWeights,
    "eignn": EignnWeights,
    "mignn": MignnWeights,
}


def cell_weights(config: ModelConfig, channels: int, fit: GraphFit) -> CellWeights:
    """The weights of a cell for C = ``channels``, drawn from torch's generator."""
    weights = _CELLS[config.cell](config, channels, fit.growth)
    weights.norm = fit.norm
    return weights
