"""Propagation: the normalised sparse product over all channels, with one halo exchange.

A_hat = D~^-1/2 (A + I) D~^-1/2 per channel. The rows of a shard split into an owned block, which is
multiplied while the halo is in flight, and a boundary block, which is added when it has arrived:

    y = A_oo x_owned;   y[I:] += A_bh x_halo                     (forward)
    h = A_bh' y[I:] (sent home);   x = A_oo' y;   x += arrived   (transpose)

Letters: O owned nodes, I interior nodes, B boundary nodes, H halo nodes, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator, PendingRows
from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.halo import HaloExchange
from distributed_ignn.graph.shard import ChannelShard, GraphShard
from distributed_ignn.graph.sparse import SparseMatrix


@dataclass(frozen=True, slots=True, eq=False)
class ChannelOperator:
    """The blocks of one channel as matrices ready to multiply, and their transposes."""

    owned: SparseMatrix
    boundary: SparseMatrix
    owned_transpose: SparseMatrix
    boundary_transpose: SparseMatrix

    @classmethod
    def from_shard(
        cls, channel: ChannelShard, dtype: torch.dtype, device: torch.device
    ) -> ChannelOperator:
        """Normalised blocks; the transpose of a symmetric owned block is the block itself."""
        return cls.from_blocks(*normalised_blocks(channel), channel.symmetric, dtype, device)

    @classmethod
    def from_blocks(
        cls,
        owned: CSRMatrix,
        boundary: CSRMatrix,
        symmetric: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> ChannelOperator:
        owned_op = SparseMatrix.from_csr(owned, dtype, device)
        boundary_op = SparseMatrix.from_csr(boundary, dtype, device)
        owned_t = owned_op if symmetric else SparseMatrix.transposed(owned, dtype, device)
        return cls(owned_op, boundary_op, owned_t, SparseMatrix.transposed(boundary, dtype, device))

    def finish(self, product: Tensor, halo: Tensor) -> Tensor:
        """Add the halo's share to ``product`` = A_oo x, in place."""
        if self.boundary.num_entries:
            product[product.shape[0] - self.boundary.num_rows :] += self.boundary @ halo
        return product

    def halo_share(self, y: Tensor) -> Tensor:
        """A_bh' y[I:], the rows [H, D] that belong to other ranks."""
        return self.boundary_transpose @ y[y.shape[0] - self.boundary.num_rows :]


def normalised_blocks(channel: ChannelShard) -> tuple[CSRMatrix, CSRMatrix]:
    """Owned and boundary blocks with the values of A_hat in float64."""
    scale_owned = (channel.degree_owned + 1).to(torch.float64).rsqrt()
    scale_halo = (channel.degree_halo + 1).to(torch.float64).rsqrt()
    interior = channel.owned.num_rows - channel.boundary.num_rows
    return (
        _scaled(channel.owned, scale_owned, scale_owned),
        _scaled(channel.boundary, scale_owned[interior:], scale_halo),
    )


def _scaled(matrix: CSRMatrix, rows: Tensor, cols: Tensor) -> CSRMatrix:
    value = rows[matrix.rows()] * cols[matrix.col]
    return CSRMatrix(matrix.rowptr, matrix.col, value, matrix.num_cols)


class Propagation:
    """All channels of one shard behind one exchange.

    Args:
        shard: this rank's part.
        comm: this rank's communicator.
        dtype: of the matrices' values and of the rows they multiply.
    """

    def __init__(self, shard: GraphShard, comm: Communicator, dtype: torch.dtype) -> None:
        self.halo = HaloExchange.from_shard(shard, comm)
        self.channels = tuple(
            ChannelOperator.from_shard(channel, dtype, comm.device) for channel in shard.channels
        )

    @property
    def num_channels(self) -> int:
        return len(self.channels)

    def apply(self, x: Tensor, rider: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """A_hat_c x for every channel, without gradient.

        Args:
            x: [O, D] owned rows.
            rider: [O, R] further columns that travel in the same exchange, or None.

        Returns:
            One [O, D] product per channel, and the rider's halo rows [H, R] (None without rider).
        """
        pending = self.halo.start(x) if rider is None else self.halo.start(x, rider)
        products = [channel.owned @ x for channel in self.channels]
        arrived = pending.wait()
        halo = arrived if rider is None else arrived[:, : x.shape[1]].contiguous()
        rider_halo = None if rider is None else arrived[:, x.shape[1] :].contiguous()
        for channel, product in zip(self.channels, products, strict=True):
            channel.finish(product, halo)
        return products, rider_halo

    def apply_transpose(self, ys: Sequence[Tensor]) -> Tensor:
        """sum_c A_hat_c' y_c for one [O, D] per channel, without gradient; one exchange."""
        pending = self._send_home(ys)
        x = self.channels[0].owned_transpose @ ys[0]
        for channel, y in zip(self.channels[1:], ys[1:], strict=True):
            x += channel.owned_transpose @ y
        return self.halo.add_home(x, pending.wait())

    def _send_home(self, ys: Sequence[Tensor]) -> PendingRows:
        share = self.channels[0].halo_share(ys[0])
        for channel, y in zip(self.channels[1:], ys[1:], strict=True):
            share += channel.halo_share(y)
        return self.halo.start_transpose(share)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """A_hat_c x for every channel, differentiable in x."""
        result: tuple[Tensor, ...] = _Propagate.apply(x, self)
        return result


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, propagation: Propagation) -> tuple[Tensor, ...]:
        ctx.propagation = propagation
        ctx.set_materialize_grads(True)
        return tuple(propagation.apply(x)[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.propagation.apply_transpose([g.contiguous() for g in grads]), None
