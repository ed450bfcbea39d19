"""Rows of all ranks in the order of the graph's nodes, a block at a time.

A table of n x C numbers may be larger than what one machine has, or one GPU (76 GB for the logits
of ogbn-papers100M), while every rank holds its own part of it. Only one block is ever whole.

Letters: n nodes, O owned nodes, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator

BLOCK_ENTRIES = 2**22
"""Numbers in a block, 16 MiB of float32."""

_ALIGNMENT = 64  # rows


class NodeRows:
    """The rows of all ranks; every rank makes it and asks for the same blocks in the same order.

    Args:
        rows: [O, C], of this rank, wherever they are.
        nodes: int64 [O], the nodes that they belong to.
        num_nodes: n.
        comm: this rank's communicator.
        entries: numbers in a block, about; at least 64 rows.
    """

    def __init__(
        self,
        rows: Tensor,
        nodes: Tensor,
        num_nodes: int,
        comm: Communicator,
        entries: int = BLOCK_ENTRIES,
    ) -> None:
        self.comm = comm
        self._rows = rows.detach()
        self._nodes, self._order = nodes.cpu().sort()
        self.num_nodes = num_nodes
        # whole turns of a CPU's vector loops: where a block ends changes no bit of what comes of it
        self.step = max(1, entries // max(1, rows.shape[1]) // _ALIGNMENT) * _ALIGNMENT

    @classmethod
    def of_one(cls, rows: Tensor, entries: int = BLOCK_ENTRIES) -> NodeRows:
        """A table [n, C] that is at hand."""
        count = rows.shape[0]
        return cls(rows, torch.arange(count), count, Communicator(), entries)

    @property
    def num_columns(self) -> int:
        """C."""
        return self._rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self._rows.dtype

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """The first node of each block, and its rows on the CPU, on every rank."""
        for first in range(0, self.num_nodes, self.step):
            yield first, self._block(first, min(first + self.step, self.num_nodes))

    def _block(self, first: int, last: int) -> Tensor:
        ends = torch.tensor([first, last])
        begin, end = torch.searchsorted(self._nodes, ends).tolist()
        own = self._rows[self._order[begin:end].to(self._rows.device)]
        block = self._rows.new_zeros((last - first, self.num_columns), device="cpu")
        block[self._nodes[begin:end] - first] = own.cpu()
        return self.comm.sum(block)

    def whole(self) -> Tensor:
        """The table [n, C] on the CPU of every rank."""
        whole = self._rows.new_empty((self.num_nodes, self.num_columns), device="cpu")
        for first, block in self:
            whole[first : first + block.shape[0]] = block
        return whole
