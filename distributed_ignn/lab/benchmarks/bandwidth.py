"""The physical limit: how fast this machine copies, and how many bytes a product has to move.

Letters: R rows, C columns and e entries of a sparse matrix, D columns of the dense one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from distributed_ignn.comm.communicator import Communicator

COPY_LIMIT, GATHER_LIMIT = "copy limit", "gather limit"
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}  # far more than any cache holds


@dataclass(frozen=True, slots=True)
class ProductSize:
    """What a sparse product moves.

    Args:
        rows, cols, entries: of the sparse matrix (R, C, e).
        width: D.
        item: bytes of a number of the dense matrices.
    """

    rows: int
    cols: int
    entries: int
    width: int
    item: int = 4

    @property
    def index_bytes(self) -> int:
        """32-bit row starts and columns, no values: the least that describes the matrix."""
        return 4 * (self.rows + 1 + self.entries)

    @property
    def ideal_bytes(self) -> int:
        """Every row of the dense matrix read once, every row of the result written once."""
        return (self.rows + self.cols) * self.width * self.item + self.index_bytes

    @property
    def gathered_bytes(self) -> int:
        """A row read for every entry, as if there were no cache."""
        return (self.rows + self.entries) * self.width * self.item + self.index_bytes


def copy_task(comm: Communicator, size: int | None = None) -> tuple[Callable[[], object], int]:
    """A copy of an array, and the bytes that it reads and writes.

    Args:
        comm: on whose device.
        size: bytes of the array; by default more than any cache holds.
    """
    size = size or _COPY_BYTES[comm.device.type]
    source = torch.ones(size // 4, device=comm.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * size
