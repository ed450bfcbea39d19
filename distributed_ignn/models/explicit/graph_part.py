"""GraphPart: one part of a graph as layers see it, and the rows that they need from others.

Local ids 0..O-1 name the nodes of this part and O..O+H-1 the remote nodes that they read.
Letters: O owned nodes, H halo nodes, E edges into owned nodes, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.collectives import all_reduce_sum
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import ChannelShard, GraphShard
from distributed_ignn.propagation.halo import HaloExchange


@dataclass(frozen=True, slots=True, eq=False)
class GraphPart:
    """What a layer may ask of a divided graph; every rank must ask alike.

    Args:
        owned_nodes: int64 [O], global ids.
        num_halo: H.
        edge_indices: per channel, int64 [2, E] of local ids: sources, of which those from O on are
            halo nodes, and targets, which are owned. All edges into owned nodes, no self-loops.
        edge_weights: per channel, [E] or None.
        fetch: halo rows [H, D] of owned rows [O, D], differentiable; an exchange between ranks.
        total: the sum of a tensor over all parts, differentiable; a reduction between ranks.
        norms: what ``gcn_norm`` has found for the graph's own edges.
        sums: products with these edges, made when a layer first needs them.
        orders: of edges whose messages are made block by block, the last used first.
        edges_at_once: how many at most, in a rehearsal; None for what is best.
    """

    owned_nodes: Tensor
    num_halo: int
    edge_indices: tuple[Tensor, ...]
    edge_weights: tuple[Tensor | None, ...]
    fetch: Callable[[Tensor], Tensor]
    total: Callable[[Tensor], Tensor]
    norms: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    sums: dict[Any, Any] = field(default_factory=dict)
    orders: list[Any] = field(default_factory=list)
    edges_at_once: int | None = None

    @classmethod
    def of(cls, shard: GraphShard, comm: Communicator, dtype: torch.dtype) -> GraphPart:
        """Of a rank's shard, on its device, with weights of a floating type."""
        edges = [_edges(channel) for channel in shard.channels]
        halo = HaloExchange.from_shard(shard, comm)
        return cls(
            shard.owned_nodes.to(comm.device),
            shard.num_halo,
            tuple(index.to(comm.device) for index, _ in edges),
            tuple(None if w is None else w.to(comm.device, dtype) for _, w in edges),
            halo,
            lambda tensor: all_reduce_sum(tensor, comm),
        )

    @property
    def num_owned(self) -> int:
        """O."""
        return self.owned_nodes.numel()

    def channel(self, edge_index: Any) -> int | None:
        """Which of the graph's own edges these are; None for any others."""
        own = self.edge_indices
        return next((c for c, index in enumerate(own) if index is edge_index), None)

    def with_halo(self, tensors: Sequence[Tensor], dim: int, what: str) -> list[Tensor]:
        """Every tensor with the halo's rows after its own; one exchange for all of a type.

        Args:
            tensors: of O rows along ``dim``.
            dim: which dimension counts nodes.
            what: who asks, for the message.

        Raises:
            UserError: a tensor has other rows.
        """
        for tensor in tensors:
            self.check_rows(tensor, dim, what)
        moved = [tensor.movedim(dim, 0) for tensor in tensors]
        halos: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            chosen = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            columns = [_as_columns(moved[i]) for i in chosen]
            sent = torch.cat(columns, dim=1) if columns[1:] else columns[0]
            arrived = self.fetch(sent).split([c.shape[1] for c in columns], 1)
            halos |= dict(zip(chosen, arrived, strict=True))
        return [
            torch.cat([rows, halos[i].reshape(self.num_halo, *rows.shape[1:])]).movedim(0, dim)
            for i, rows in enumerate(moved)
        ]

    def check_rows(self, tensor: Tensor, dim: int, what: str) -> None:
        """One row for every owned node.

        Raises:
            UserError: there are more or fewer.
        """
        if tensor.shape[dim] != self.num_owned:
            raise UserError(
                f"{what} was given {tensor.shape[dim]} rows and this rank owns {self.num_owned} "
                "nodes; give it rows of graph.owned_nodes, as graph.x and graph.rows(whole) are"
            )


def _as_columns(rows: Tensor) -> Tensor:
    """[O, D], also where O is 0."""
    return rows.flatten(1) if rows.dim() > 1 else rows.unsqueeze(1)


def _edges(channel: ChannelShard) -> tuple[Tensor, Tensor | None]:
    """Edges from columns to rows, int64 [2, E], without self-loops, and their weights."""
    owned, boundary = channel.owned, channel.boundary
    first = owned.num_rows - boundary.num_rows
    target, source = owned.rows(), owned.col.to(torch.int64)
    edge = target != source
    remote = torch.stack([boundary.col.to(torch.int64) + owned.num_rows, boundary.rows() + first])
    index = torch.cat([torch.stack([source[edge], target[edge]]), remote], dim=1)
    if owned.value is None or boundary.value is None:
        return index, None
    return index, torch.cat([owned.value[edge], boundary.value])
