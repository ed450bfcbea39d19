"""The matrices of one channel, ready to multiply, and the blocks of rows they come in.

The values of A_hat, which is D~^-1/2 (A + I) D~^-1/2 or D~^-1 (A + I), are not stored where edges
have no weights: rows and columns are scaled where they are multiplied. With weights every entry has
a value of its own.

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
        scales = Scales.of(channel)
        interior = channel.owned.num_rows - channel.boundary.num_rows
        bounds = bounds or BlockBounds.of(channel, device)
        return cls(
            SparseMatrix.from_csr(
                channel.owned,
                dtype,
                device,
                scales=(scales.rows, scales.owned),
                bounds=bounds.owned,
                kernel=kernel,
            ),
            SparseMatrix.from_csr(
                channel.boundary,
                dtype,
                device,
                scales=(scales.rows[interior:], scales.halo),
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
        turned: CSRMatrix | None = None,
    ) -> ChannelTranspose:
        """Transposes of the normalised matrices.

        Args:
            owned: the first of them, where that is at hand.
            turned: the transpose of the entries of the owned block, where that is; so it is where
                they are symmetric.
        """
        scales = Scales.of(channel)
        interior = channel.owned.num_rows - channel.boundary.num_rows
        if owned is None:
            turned = channel.owned if channel.symmetric else turned
            make = SparseMatrix.transposed if turned is None else SparseMatrix.from_csr
            sides = scales.rows, scales.owned
            owned = make(
                turned or channel.owned,
                dtype,
                device,
                scales=sides if turned is None else sides[::-1],
                bounds=bounds.owned,
                kernel=kernel,
            )
        boundary = SparseMatrix.transposed(
            channel.boundary,
            dtype,
            device,
            scales=(scales.rows[interior:], scales.halo),
            kernel=kernel,
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


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """What makes A_hat of the entries of A + I, float64.

    Args:
        rows: [O], by which owned rows are multiplied.
        owned, halo: [O] and [H], by which columns are; None for ones.
    """

    rows: Tensor
    owned: Tensor | None
    halo: Tensor | None

    @classmethod
    def of(cls, channel: ChannelShard) -> Scales:
        """D~^-1/2 on both sides, or D~^-1 of the rows."""
        degree = (channel.degree_owned + 1).to(torch.float64)
        if channel.normalisation == "row":
            return cls(degree.reciprocal(), None, None)
        owned = degree.rsqrt()
        return cls(owned, owned, (channel.degree_halo + 1).to(torch.float64).rsqrt())

    def columns(self) -> Tensor | None:
        """[O + H], of owned and then of halo columns."""
        if self.owned is None or self.halo is None:
            return None
        return torch.cat([self.owned, self.halo])


def perron_vector(
    channel: ChannelShard, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """w [O] with A_hat w = w: sqrt(D~) for a symmetric A_hat, ones where rows sum to 1."""
    degree = (channel.degree_owned + 1).to(device, dtype)
    return torch.ones_like(degree) if channel.normalisation == "row" else degree.sqrt()


def normalised_blocks(channel: ChannelShard) -> tuple[CSRMatrix, CSRMatrix]:
    """Owned and boundary blocks with the values of A_hat in float64."""
    scales = Scales.of(channel)
    interior = channel.owned.num_rows - channel.boundary.num_rows
    return (
        scaled(channel.owned, scales.rows, scales.owned),
        scaled(channel.boundary, scales.rows[interior:], scales.halo),
    )


def square_between_parts(channel: ChannelShard) -> float:
    """Sum of the squares of the boundary block's values."""
    scales, between = Scales.of(channel), channel.boundary
    squares = torch.zeros(between.num_rows, dtype=torch.float64)
    terms = torch.ones(between.num_entries, dtype=torch.float64)
    if scales.halo is not None:
        terms = scales.halo.square()[between.col]
    if between.value is not None:
        terms *= between.value.double().square()
    squares.index_add_(0, between.rows(), terms)
    return float(squares @ scales.rows[scales.rows.numel() - squares.numel() :].square())


def scaled(matrix: CSRMatrix, rows: Tensor, cols: Tensor | None) -> CSRMatrix:
    """``matrix`` with its rows and columns multiplied, in float64; None for columns by ones."""
    value = rows[matrix.rows()]
    if cols is not None:
        value *= cols[matrix.col]
    if matrix.value is not None:
        value *= matrix.value.double()
    return CSRMatrix(matrix.rowptr, matrix.col, value, matrix.num_cols)
