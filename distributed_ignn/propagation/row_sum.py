"""RowSum: a block of rows of a sparse product that has not been multiplied yet.

Whoever gets it decides: the product alone, or the product and all that follows it in one kernel.

Letters: r rows of the block, m rows and D columns of the operand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from distributed_ignn.comm.clock import Clock
from distributed_ignn.propagation.kernels import KERNELS
from distributed_ignn.propagation.sparse import SparseMatrix
from distributed_ignn.propagation.triton_rows import Tail, TritonRows


@dataclass(frozen=True, slots=True, eq=False)
class RowSum:
    """start + (a block of rows of ``matrix``) @ ``operand``, [r, D].

    Args:
        matrix, block: the rows.
        operand: [m, D].
        start: [r, D], which may be overwritten, or None for zeros.
        clock: counts the time as ``product``.
    """

    matrix: SparseMatrix
    block: int
    operand: Tensor
    start: Tensor | None
    clock: Clock

    def product(self) -> Tensor:
        """The sum, [r, D], which the caller may overwrite."""
        with self.clock.measure("product"):
            if self.start is None:
                return self.matrix.multiply_block(self.block, self.operand)
            if self.matrix.num_entries:
                self.start.add_(self.matrix.multiply_block(self.block, self.operand))
            return self.start

    @property
    def fuses(self) -> bool:
        """Whether ``evaluate`` works for these rows."""
        rows = self.matrix.blocks[self.block]
        return (
            KERNELS[self.matrix.kernel].fuses
            and isinstance(rows, TritonRows)
            and 0 < self.operand.shape[1] <= rows.widest
        )

    def evaluate(self, tail: Tail) -> list[Tensor]:
        """The sum and all that follows it, in one kernel; see ``Tail``, whose start is ours.

        Returns:
            Shares of ||image - own||^2 and ||image||^2 of the rows, for ``total_squares``, which
            takes launches and which not everybody needs.

        Raises:
            ValueError: these rows have no such kernel.
        """
        rows = self.matrix.blocks[self.block]
        if not isinstance(rows, TritonRows):
            raise ValueError(f"the kernel {self.matrix.kernel} cannot go on after a product")
        with self.clock.measure("product"):
            return rows.write(self.operand, replace(tail, start=self.start))
