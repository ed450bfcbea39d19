"""The coarse level: the graph of METIS clusters, on which information jumps.

Two-level multigrid by aggregation (Vanek et al. 1996, without smoothing): P [n, N] has in row i one
entry w_i / ||w over its cluster||, with w the Perron vector of A_hat (sqrt(D~), or ones where rows
are divided by their sums), so P has orthonormal columns and the slowest mode of A_hat is in its
range. The coarse operators are
P' B_c P with B_c = (1 - r) A_c + r I, what a cell with residual share r propagates with. They are
small, so every rank holds all of them and solves on them alike, without exchange; only the
restriction P' y is summed over ranks.

Letters: n nodes, O owned nodes, N clusters, p columns, c channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.data import csr_from_entries
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.propagation.halo import HaloExchange
from distributed_ignn.propagation.operators import normalised_blocks, perron_vector
from distributed_ignn.propagation.sparse import SparseMatrix


@dataclass(frozen=True, slots=True, eq=False)
class CoarseLevel:
    """P and P' B_c P of one graph.

    Args:
        comm: sums restrictions.
        cluster: int64 [O], cluster of each owned node.
        weight: [O], the node's entry of P.
        operators: [N, N] per channel, float64 on the CPU, the same on every rank.
    """

    comm: Communicator
    cluster: Tensor
    weight: Tensor
    operators: tuple[SparseMatrix, ...]

    @classmethod
    def from_shard(
        cls, shard: GraphShard, comm: Communicator, dtype: torch.dtype, residual: float = 0.0
    ) -> CoarseLevel:
        """The coarse level of the shard's clusters; every rank calls it.

        Args:
            shard: with clusters.
            comm: this rank's communicator.
            dtype: of the state.
            residual: r.

        Raises:
            ValueError: the shard has none.
        """
        if shard.clusters is None:
            raise ValueError("the shard has no clusters")
        highest = shard.clusters.max() if shard.num_owned else torch.tensor(-1)
        count = int(comm.max(highest.double().reshape(1))) + 1
        weight = _perron_entries(shard, shard.clusters, comm, count)
        exchange = HaloExchange.from_shard(shard, comm)
        rows = torch.stack([shard.clusters.double(), weight], dim=1).to(comm.device)
        halo = exchange.start(rows).wait().cpu()
        cluster = torch.cat([shard.clusters, halo[:, 0].long()])
        entry = torch.cat([weight, halo[:, 1]])
        operators = tuple(
            _coarse_operator(shard, channel, cluster, entry, comm, count, residual)
            for channel in range(len(shard.channels))
        )
        return cls(comm, shard.clusters.to(comm.device), weight.to(comm.device, dtype), operators)

    def restrict(self, y: Tensor) -> Tensor:
        """P' y, float64 [N, p] on the CPU and the same on every rank; one reduction."""
        clusters = self.operators[0].num_rows
        total = y.new_zeros(clusters, y.shape[1], dtype=torch.float64)
        total.index_add_(0, self.cluster, (y * self.weight[:, None]).double())
        return self.comm.sum(total.cpu())

    def prolong(self, coarse: Tensor) -> Tensor:
        """P coarse [O, p], without communication."""
        rows = coarse.to(self.weight).index_select(0, self.cluster)
        return rows * self.weight[:, None]


def _perron_entries(
    shard: GraphShard, cluster: Tensor, comm: Communicator, clusters: int
) -> Tensor:
    """float64 [O]: the Perron vector over its norm within the cluster."""
    weight = perron_vector(shard.channels[0], torch.float64)
    squares = torch.zeros(clusters, dtype=torch.float64)
    norms = comm.sum(squares.index_add_(0, cluster, weight.square())).sqrt()
    return weight / norms[cluster]


def _coarse_operator(
    shard: GraphShard,
    channel: int,
    cluster: Tensor,
    entry: Tensor,
    comm: Communicator,
    clusters: int,
    residual: float,
) -> SparseMatrix:
    """P' B_c P from this rank's rows, summed over ranks.

    Args:
        cluster, entry: of the owned nodes and then of the halo nodes, [O + H].
    """
    owned, boundary = normalised_blocks(shard.channels[channel])
    total = torch.zeros(clusters * clusters, dtype=torch.float64)
    for block, first_row, first_col in (
        (owned, 0, 0),
        (boundary, shard.num_interior, shard.num_owned),
    ):
        row, col = block.rows() + first_row, block.col + first_col
        if block.value is None:
            raise ValueError("normalised blocks carry values")
        total.index_add_(
            0, cluster[row] * clusters + cluster[col], entry[row] * block.value * entry[col]
        )
    dense = comm.sum(total).mul_(1.0 - residual)
    dense[:: clusters + 1] += residual
    where = dense.nonzero()[:, 0]
    entries = csr_from_entries(
        where // clusters, where % clusters, clusters, clusters, dense[where]
    )
    return SparseMatrix.from_csr(entries, torch.float64, torch.device("cpu"))
