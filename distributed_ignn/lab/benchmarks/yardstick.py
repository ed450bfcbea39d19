"""The plain way: what a careful user would write with torch alone, and no more.

index_select of the rows to send, all_to_all_single, concatenation with the own rows, one CSR
product over all local columns (64-bit indices and stored values, torch's default), dense product,
ReLU; nothing overlaps. Rows lie in the order that such a user would have, ascending global ids
inside each part, or in ours, so that it shows what ordering alone gives.

Letters: O owned nodes, H halo nodes, L = O + H, S rows sent, D columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.data import CSRMatrix, csr_from_entries
from distributed_ignn.graph.data import transpose as transpose_pattern
from distributed_ignn.graph.shard import ChannelShard, GraphShard


@dataclass(frozen=True, slots=True, eq=False)
class PlainLayout:
    """Where the plain way keeps a shard's rows.

    Args:
        rows: int64 [O], the owned id of ours that lies in each of its rows.
        halo: int64 [H], likewise of halo ids.
        send: int64 [S], its rows to send, grouped by receiving part.
    """

    rows: Tensor
    halo: Tensor
    send: Tensor

    @classmethod
    def ascending(cls, shard: GraphShard) -> PlainLayout:
        """Ascending global ids; both sides of an exchange sort what they send each other."""
        rows = torch.argsort(shard.owned_nodes)
        halo = _sorted_in_groups(shard.halo_nodes, shard.recv_counts)
        sent = _sorted_in_groups(shard.owned_nodes[shard.send_index.long()], shard.send_counts)
        return cls(rows, halo, _inverse(rows)[shard.send_index.long()[sent]])

    @classmethod
    def ours(cls, shard: GraphShard) -> PlainLayout:
        """The order of the shard itself."""
        rows, halo = torch.arange(shard.num_owned), torch.arange(shard.num_halo)
        return cls(rows, halo, shard.send_index.long())


def _sorted_in_groups(nodes: Tensor, counts: Tensor) -> Tensor:
    """Positions in ``nodes`` in the order of group and global id."""
    group = torch.repeat_interleave(torch.arange(counts.numel()), counts.long())
    order = torch.argsort(nodes.long())
    return order[torch.argsort(group[order], stable=True)]


def _inverse(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel())
    return inverse


def plain_matrix(channel: ChannelShard, layout: PlainLayout, dtype: torch.dtype) -> CSRMatrix:
    """A_hat of all local rows and columns [O, L] with its values."""
    owned, halo = layout.rows.numel(), layout.halo.numel()
    inside, outside = channel.owned, channel.boundary
    degree = torch.cat([channel.degree_owned, channel.degree_halo])
    scale = (degree + 1).to(torch.float64).rsqrt()
    row = torch.cat([inside.rows(), outside.rows() + (owned - outside.num_rows)]).long()
    col = torch.cat([inside.col.long(), outside.col.long() + owned])
    value = scale[row] * scale[col]
    if inside.value is not None and outside.value is not None:
        value = value * torch.cat([inside.value, outside.value])
    value = value.to(dtype)
    place = torch.cat([_inverse(layout.rows), owned + _inverse(layout.halo)])
    return csr_from_entries(place[row], place[col], owned, owned + halo, value)


def torch_csr(matrix: CSRMatrix, device: torch.device) -> Tensor:
    """``matrix``, which must hold values, as torch's CSR tensor with 64-bit indices."""
    if matrix.value is None:
        raise ValueError("a matrix for torch's CSR product holds values")
    with warnings.catch_warnings():
        # torch announces that CSR support is in beta, once per process
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        return torch.sparse_csr_tensor(
            matrix.rowptr.long().to(device),
            matrix.col.long().to(device),
            matrix.value.to(device),
            (matrix.num_rows, matrix.num_cols),
            check_invariants=False,
        )


def transposed(matrix: CSRMatrix) -> CSRMatrix:
    """The transpose with its values."""
    flipped, order = transpose_pattern(matrix)
    if matrix.value is None:
        return flipped
    return CSRMatrix(flipped.rowptr, flipped.col, matrix.value[order], flipped.num_cols)


class PlainExchange:
    """index_select and all_to_all_single of one shard.

    Args:
        shard: this rank's part.
        comm: this rank's communicator.
        layout: where the rows lie.
    """

    def __init__(self, shard: GraphShard, comm: Communicator, layout: PlainLayout) -> None:
        self._comm = comm
        self._send = layout.send.to(comm.device)
        self._counts = shard.send_counts.tolist(), shard.recv_counts.tolist()

    def __call__(self, z: Tensor) -> Tensor:
        """Halo rows [H, D] of rows z [O, D]."""
        return self.send(self.pack(z))

    def pack(self, z: Tensor) -> Tensor:
        """The rows to send [S, D]."""
        return z.index_select(0, self._send)

    def send(self, packed: Tensor) -> Tensor:
        """all_to_all_single, waited for."""
        return self._comm.start_exchange(packed, *self._counts).wait()


class Yardstick:
    """One evaluation of the map the plain way, on one shard.

    Args:
        shard: this rank's part.
        comm: this rank's communicator.
        weights: W_c [D, D], one per channel.
        bias: b [O, D] in our order.
        layout: where it keeps its rows.
    """

    def __init__(
        self,
        shard: GraphShard,
        comm: Communicator,
        weights: Sequence[Tensor],
        bias: Tensor,
        layout: PlainLayout,
    ) -> None:
        self._weights = tuple(weights)
        self._exchange = PlainExchange(shard, comm, layout)
        self.rows = layout.rows.to(comm.device)
        self._bias = bias[self.rows]
        self._matrices = [
            torch_csr(plain_matrix(channel, layout, bias.dtype), comm.device)
            for channel in shard.channels
        ]

    def __call__(self, z: Tensor) -> Tensor:
        """relu(sum_c A_hat_c z W_c + b) for rows z [O, D] in its own order."""
        local = torch.cat([z, self._exchange(z)])
        total = self._bias
        for matrix, weight in zip(self._matrices, self._weights, strict=True):
            total = total + (matrix @ local) @ weight
        return torch.relu(total)
