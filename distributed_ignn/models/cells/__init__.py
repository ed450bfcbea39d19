"""Cells: ``build_weights`` makes the one that ``model.cell`` names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.cells.base import CellWeights, Norm
from distributed_ignn.models.cells.eignn import EignnWeights
from distributed_ignn.models.cells.ignn import IgnnWeights
from distributed_ignn.models.cells.mignn import MignnWeights
from distributed_ignn.models.constraints import certified_growth
from distributed_ignn.propagation.propagate import Propagation

__all__ = [
    "CELLS",
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
        UserError: see ``fit_to_graph``.
    """
    fit = fit_to_graph(config, shard, propagation, comm, dtype)
    return cell_weights(config, propagation.num_channels, fit)


@dataclass(frozen=True, slots=True)
class GraphFit:
    """What a graph asks of the weights.

    Args:
        growth: rho of the propagated channels, which divides the bound on the weights.
        norm: in which the weights' contraction is certified.
        graph_channels: how many channels, from the first, are the dataset's own graph.
        vector: the w [O] of that norm, float64; None where it has none, or nobody asks for it.
    """

    growth: float
    norm: Norm
    graph_channels: int = 1
    vector: Tensor | None = None


def fit_to_graph(
    config: ModelConfig,
    shard: GraphShard,
    propagation: Propagation,
    comm: Communicator,
    dtype: torch.dtype,
) -> GraphFit:
    """What this graph asks of the weights of ``config``; every rank calls it.

    Raises:
        UserError: a channel that is directed, or normalised by row, and a cell whose proof does
            without neither (on every rank alike).
    """
    cell = CELLS[config.cell]
    symmetric = all(channel.self_adjoint for channel in shard.channels)
    norm = cell.norm if symmetric else cell.directed_norm
    if norm is None:
        raise _needs_symmetry(config.cell, shard)
    if norm == "frobenius":
        return GraphFit(1.0, norm, shard.graph_channels)
    growth, vector = certified_growth(shard, propagation, comm, dtype)
    # B w = (1 - r) A w + r w grows by at most this
    growth = (1.0 - config.residual) * growth + config.residual
    return GraphFit(growth, norm, shard.graph_channels, vector)


def _needs_symmetry(cell: str, shard: GraphShard) -> UserError:
    others = " or ".join(name for name, other in CELLS.items() if other.directed_norm is not None)
    if all(channel.symmetric for channel in shard.channels):
        return UserError(
            f"model.cell = {cell} needs symmetric channels, and model.normalisation = row divides "
            f"rows by their sums; use symmetric, or model.cell = {others}"
        )
    way_out = f"use {others}"
    if shard.graph_channels > 1:
        way_out += ", or data.directions = undirected"
    return UserError(
        f"model.cell = {cell} needs undirected graphs, and a channel of this one is directed; "
        f"{way_out}"
    )


CELLS: dict[str, type[CellWeights]] = {
    "ignn": IgnnWeights,
    "eignn": EignnWeights,
    "mignn": MignnWeights,
}
"""The cells there are, by name; a new one is a file and a line here."""


def cell_weights(config: ModelConfig, channels: int, fit: GraphFit) -> CellWeights:
    """The weights of a cell for C = ``channels``, drawn from torch's generator."""
    weights = CELLS[config.cell](config, channels, fit.growth, fit.graph_channels)
    weights.norm, weights.vector = fit.norm, fit.vector
    return weights
