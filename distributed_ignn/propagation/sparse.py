"""SparseMatrix: compressed rows ready to multiply dense ones on one device, in blocks of rows.

A product is worked off in blocks so that what follows it (dense product, activation) finds its rows
in the cache, and nothing as large as the state is needed in between. On a GPU one block holds all
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, turned
from distributed_ignn.propagation.entries import Entries, RowProduct
from distributed_ignn.propagation.kernels import EmbeddingBag, choose_kernel, row_product

Sides = tuple[Tensor | None, Tensor | None]
"""What rows and columns are multiplied by; None for ones."""

BLOCK_ROWS = 4096  # of a CPU's block: 2 MiB of float32 at 128 columns
NARROW = 32  # columns whose scaled copy is small beside the entries' values
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class SparseMatrix:
    """A constant matrix [num_rows, num_cols]; not differentiated.

    Args:
        blocks: consecutive rows; those without entries are None.
        bounds: first row of each block, and num_rows.
        parts: the entries of each block, for whoever wants other values on them.
        num_cols, num_entries: size.
        dtype, kernel: of the product.
    """

    blocks: tuple[RowProduct | None, ...]
    bounds: tuple[int, ...]
    parts: tuple[Entries, ...]
    num_cols: int
    num_entries: int
    dtype: torch.dtype
    kernel: str

    @classmethod
    def from_csr(
        cls,
        matrix: CSRMatrix,
        dtype: torch.dtype,
        device: torch.device,
        *,
        scales: Sides | None = None,
        bounds: Sequence[int] | None = None,
        kernel: str = "auto",
    ) -> SparseMatrix:
        """The entries of ``matrix`` (ones if it has no values) on ``device``.

        Args:
            matrix: 32-bit ids and 64-bit offsets suffice for any shard.
            dtype: of values and operands.
            scales: [num_rows] and [num_cols], by which rows and columns are multiplied: as they
                are where the matrix has no values, else multiplied onto those in float64. None
                stands for ones.
            bounds: first row of each block, and num_rows; a sensible choice by default.
            kernel: how to multiply.

        Raises:
            UserError: more columns, or more entries in a block, than 32 bits can count.
        """
        limits = tuple(block_bounds(matrix.num_rows, device) if bounds is None else bounds)
        starts = matrix.rowptr[torch.tensor(limits)].tolist()
        _check_ids(matrix.num_cols, max((b - a for a, b in _pairs(starts)), default=0))
        if scales is not None and matrix.value is not None:
            matrix, scales = _with_scales(matrix, scales, dtype), None
        left, right = (
            None if side is None else side.to(device, dtype) for side in scales or (None, None)
        )
        col = matrix.col.to(device, torch.int32)
        value = None if matrix.value is None else matrix.value.to(device, dtype)
        parts = tuple(
            Entries(
                offsets=(matrix.rowptr[low : high + 1] - begin).to(device, torch.int32),
                col=col[begin:end],
                value=None if value is None else value[begin:end],
                left=None if left is None else left[low:high],
                right=right,
                num_cols=matrix.num_cols,
            )
            for (low, high), (begin, end) in zip(_pairs(limits), _pairs(starts), strict=True)
        )
        return cls._build(parts, limits, matrix, dtype, choose_kernel(kernel, dtype, device))

    @classmethod
    def _build(
        cls,
        parts: tuple[Entries, ...],
        bounds: tuple[int, ...],
        matrix: CSRMatrix,
        dtype: torch.dtype,
        kernel: str,
    ) -> SparseMatrix:
        blocks = tuple(
            row_product(part, kernel, dtype) if part.col.numel() else None for part in parts
        )
        return cls(blocks, bounds, parts, matrix.num_cols, matrix.num_entries, dtype, kernel)

    @classmethod
    def transposed(
        cls,
        matrix: CSRMatrix,
        dtype: torch.dtype,
        device: torch.device,
        *,
        scales: Sides | None = None,
        bounds: Sequence[int] | None = None,
        kernel: str = "auto",
    ) -> SparseMatrix:
        """Like ``from_csr`` for the transpose; ``scales`` are those of ``matrix``."""
        swapped = None if scales is None else (scales[1], scales[0])
        return cls.from_csr(
            turned(matrix), dtype, device, scales=swapped, bounds=bounds, kernel=kernel
        )

    @property
    def num_rows(self) -> int:
        return self.bounds[-1]

    def with_values(self, value: Tensor) -> SparseMatrix:
        """The same pattern with other values [num_entries]."""
        sizes = [part.col.numel() for part in self.parts]
        parts = tuple(
            Entries(part.offsets, part.col, piece, None, None, part.num_cols)
            for part, piece in zip(self.parts, value.split(sizes), strict=True)
        )
        blocks = tuple(
            row_product(part, self.kernel, self.dtype) if part.col.numel() else None
            for part in parts
        )
        return SparseMatrix(
            blocks, self.bounds, parts, self.num_cols, self.num_entries, self.dtype, self.kernel
        )

    def multiply_block(self, number: int, dense: Tensor) -> Tensor:
        """[r, D], the rows of one block of the product with ``dense`` [num_cols, D]."""
        product = self.blocks[number]
        if product is None or dense.shape[1] == 0:
            rows = self.bounds[number + 1] - self.bounds[number]
            return dense.new_zeros(rows, dense.shape[1])
        return product @ dense

    def __matmul__(self, dense: Tensor) -> Tensor:
        """[num_rows, D] = matrix @ [num_cols, D]."""
        right = self._scale_of(dense)
        if right is not None:
            dense = dense * right[:, None]
        if len(self.blocks) == 1:
            return self._block(0, dense, scaled=right is not None)
        result = dense.new_empty(self.num_rows, dense.shape[1])
        for number, (low, high) in enumerate(_pairs(self.bounds)):
            result[low:high] = self._block(number, dense, scaled=right is not None)
        return result

    def _scale_of(self, dense: Tensor) -> Tensor | None:
        """What few columns are multiplied by once, in the place of a value for every entry."""
        bags = any(isinstance(block, EmbeddingBag) for block in self.blocks)
        if not bags or dense.shape[1] > NARROW or self.parts[0].value is not None:
            return None
        return self.parts[0].right

    def _block(self, number: int, dense: Tensor, *, scaled: bool) -> Tensor:
        """As ``multiply_block``; ``scaled``: the columns' scale is in ``dense`` already."""
        product = self.blocks[number]
        if scaled and isinstance(product, EmbeddingBag) and dense.shape[1]:
            return product.of_scaled(dense)
        return self.multiply_block(number, dense)

    def to_dense(self) -> Tensor:
        """Dense copy [num_rows, num_cols]; for tests and small graphs."""
        device = self.parts[0].col.device if self.parts else torch.device("cpu")
        return self @ torch.eye(self.num_cols, dtype=self.dtype, device=device)


def _with_scales(matrix: CSRMatrix, scales: Sides, dtype: torch.dtype) -> CSRMatrix:
    """Values times the scales of their row and column, a block of rows at a time."""
    left, right = scales
    value = torch.empty(matrix.num_entries, dtype=dtype)
    if matrix.value is not None:
        for first in range(0, matrix.num_rows, BLOCK_ROWS):
            offsets = matrix.rowptr[first : first + BLOCK_ROWS + 1]
            part = slice(int(offsets[0]), int(offsets[-1]))
            # the scales first: the product of a symmetric pair is then the same to the last bit
            factor = torch.ones((), dtype=torch.float64)
            if left is not None:
                factor = left[first : first + BLOCK_ROWS].repeat_interleave(offsets.diff())
            if right is not None:
                factor = factor * right[matrix.col[part]]
            value[part] = factor * matrix.value[part].double()
    return CSRMatrix(matrix.rowptr, matrix.col, value, matrix.num_cols)


def block_bounds(rows: int, device: torch.device, first: int = 0) -> list[int]:
    """First row of each block of ``rows`` rows, and the end, all shifted by ``first``.

    On a CPU a block stays in the cache; on a GPU each block costs a launch, so there is one.
    """
    step = BLOCK_ROWS if device.type == "cpu" else max(rows, 1)
    return [*range(first, first + rows, step), first + rows]


def _pairs(values: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(values))


def _check_ids(columns: int, entries: int) -> None:
    if columns > _INT32_MAX:
        raise UserError(
            f"{columns} nodes in one part exceed the {_INT32_MAX} that 32-bit ids can name; divide "
            "the graph into more parts"
        )
    if entries > _INT32_MAX:
        raise UserError(
            f"{entries} edges in one block of a part exceed the {_INT32_MAX} that 32-bit offsets "
            "can count; divide the graph into more parts"
        )


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, matrix: SparseMatrix, flipped: SparseMatrix) -> Tensor:
        ctx.flipped = flipped
        return matrix @ weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.flipped @ grad.contiguous(), None, None


def sparse_linear(matrix: SparseMatrix, flipped: SparseMatrix, weight: Tensor) -> Tensor:
    """matrix @ weight, differentiable in ``weight``; ``flipped`` is the transpose of ``matrix``."""
    result: Tensor = _SparseLinear.apply(weight, matrix, flipped)
    return result
