"""The matrices of one channel, ready to multiply, and the blocks of rows they come in.

The values of A_hat = D~^-1/2 (A + I) D~^-1/2 are not stored where edges have no weights: rows and
columns are scaled where they are multiplied. With weights every entry has a value of its own.

Letters: O owned nodes, I interior nodes, B boundary nodes, H halo nodes, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.shard import ChannelShard
from distributed_ignn.propagation.sparse import SparseMatrix, block_bounds


@dataclass(frozen=True, slots=True, eq=False)
class ChannelOperator:
    """A_oo and A_bh of one channel, ready to multiply."""

    owned: SparseMatrix
    boundary: SparseMatrix

    @classmethod
    def from_shard(
        cls,
        channel: ChannelShard,
        dtype: torch.dtype,
        device: torch.device,
        bounds: BlockBounds | None = None,
        kernel: str = "auto",
    ) -> ChannelOperator:
        """The normalised matrices of ``channel``."""
        owned, halo = _scales(channel)
        interior = channel.owned.num_rows - channel.boundary.num_rows
        bounds = bounds or BlockBounds.of(channel, device)
        return cls(
            SparseMatrix.from_csr(
                channel.owned,
                dtype,
                device,
                scales=(owned, owned),
                bounds=bounds.owned,
                kernel=kernel,
            ),
            SparseMatrix.from_csr(
                channel.boundary,
                dtype,
                device,
                scales=(owned[interior:], halo),
                bounds=bounds.boundary,
                kernel=kernel,
            ),
        )

    def finish(self, product: Tensor, halo: Tensor) -> Tensor:
        """Add the halo's share to ``product`` = A_oo x, in place."""
        if self.boundary.num_entries:
            product[product.shape[0] - self.boundary.num_rows :] += self.boundary @ halo
        return product


@dataclass(frozen=True, slots=True, eq=False)
class ChannelTranspose:
    """A_oo' and A_bh' of one channel, ready to multiply."""

    owned: SparseMatrix
    boundary: SparseMatrix

    @classmethod
    def from_shard(
        cls,
        channel: ChannelShard,
        owned: SparseMatrix | None,
        dtype: torch.dtype,
        device: torch.device,
        bounds: BlockBounds,
        kernel: str,
    ) -> ChannelTranspose:
        """Transposes of the normalised matrices; ``owned`` is the first where that is symmetric."""
        scale, halo = _scales(channel)
        interior = channel.owned.num_rows - channel.boundary.num_rows
        if owned is None:
            owned = SparseMatrix.transposed(
                channel.owned,
                dtype,
                device,
                scales=(scale, scale),
                bounds=bounds.owned,
                kernel=kernel,
            )
        boundary = SparseMatrix.transposed(
            channel.boundary, dtype, device, scales=(scale[interior:], halo), kernel=kernel
        )
        return cls(owned, boundary)

    def halo_share(self, y: Tensor) -> Tensor:
        """A_bh' y[I:], the rows [H, D] that belong to other ranks."""
        return self.boundary @ y[y.shape[0] - self.boundary.num_cols :]


@dataclass(frozen=True, slots=True)
class BlockBounds:
    """The blocks of the owned rows, of which none crosses from interior to boundary.

    Args:
        owned: first row of each block, and O.
        interior: number of blocks of interior rows.
    """

    owned: tuple[int, ...]
    interior: int

    @classmethod
    def of(cls, channel: ChannelShard, device: torch.device) -> BlockBounds:
        """The blocks of a shard that holds ``channel``."""
        rows = channel.boundary.num_rows
        interior = channel.owned.num_rows - rows
        first = block_bounds(interior, device)[:-1]
        return cls((*first, *block_bounds(rows, device, interior)), len(first))

    @property
    def boundary(self) -> tuple[int, ...]:
        """The blocks of the boundary rows, counted from the first of them."""
        shift = self.owned[self.interior]
        return tuple(bound - shift for bound in self.owned[self.interior :])

    def rows(self, block: int) -> slice:
        """Owned rows of a block."""
        return slice(self.owned[block], self.owned[block + 1])

    def __len__(self) -> int:
        return len(self.owned) - 1


def _scales(channel: ChannelShard) -> tuple[Tensor, Tensor]:
    """D~^-1/2 of owned and halo nodes, float64."""
    owned = (channel.degree_owned + 1).to(torch.float64).rsqrt()
    return owned, (channel.degree_halo + 1).to(torch.float64).rsqrt()


def normalised_blocks(channel: ChannelShard) -> tuple[CSRMatrix, CSRMatrix]:
    """Owned and boundary blocks with the values of A_hat in float64."""
    scale_owned, scale_halo = _scales(channel)
    interior = channel.owned.num_rows - channel.boundary.num_rows
    return (
        _scaled(channel.owned, scale_owned, scale_owned),
        _scaled(channel.boundary, scale_owned[interior:], scale_halo),
    )


def square_between_parts(channel: ChannelShard) -> float:
    """Sum of the squares of the boundary block's values."""
    owned, halo = _scales(channel)
    squares = torch.zeros(channel.boundary.num_rows, dtype=torch.float64)
    rows = channel.boundary.rows()
    terms = halo.square()[channel.boundary.col]
    if channel.boundary.value is not None:
        terms *= channel.boundary.value.double().square()
    squares.index_add_(0, rows, terms)
    return float(squares @ owned[owned.numel() - squares.numel() :].square())


def _scaled(matrix: CSRMatrix, rows: Tensor, cols: Tensor) -> CSRMatrix:
    value = rows[matrix.rows()] * cols[matrix.col]
    if matrix.value is not None:
        value *= matrix.value.double()
    return CSRMatrix(matrix.rowptr, matrix.col, value, matrix.num_cols)
