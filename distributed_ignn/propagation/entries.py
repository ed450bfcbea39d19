"""Rows of a sparse matrix as the kernels take them, and what a kernel makes of them.

Letters: r rows of the block, e its entries, m columns of the matrix, D columns of the
dense operand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Holds a block of rows of a sparse matrix: diag(left) P diag(right), or explicit values.

    Args:
        offsets: int32 [r + 1], from 0: where each row's entries begin.
        col: int32 [e].
        value: floating [e], or None.
        left, right: floating [r], [m], or None for ones.
        num_cols: m.
    """

    offsets: Tensor
    col: Tensor
    value: Tensor | None
    left: Tensor | None
    right: Tensor | None
    num_cols: int

    def values(self) -> Tensor | None:
        """Return the values without ``left``, [e]; None where they are ones."""
        if self.value is not None or self.right is None:
            return self.value
        return self.right.index_select(0, self.col)


class RowProduct(Protocol):
    """Multiplies a block of sparse rows with dense ones."""

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product [r, D] with ``dense`` [m, D]."""
        ...
