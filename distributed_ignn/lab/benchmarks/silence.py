"""A communicator whose exchanges bring zeros at once: the same work without the waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator, PendingRows


class SilentCommunicator(Communicator):
    """Takes the place of ``comm`` in whatever is to be timed without its exchanges.

    Reductions are answered by this rank alone. What an evaluation returns is wrong, and what it
    takes is right: packing, products and additions are done, on rows of zeros.
    """

    def __init__(self, comm: Communicator) -> None:
        super().__init__(
            comm.rank, comm.world_size, comm.local_rank, comm.device, shares_memory=False
        )
        self._zeros: dict[tuple[int, ...], Tensor] = {}

    def start_exchange(
        self, rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> PendingRows:
        """Rows of zeros [sum(recv_counts), D], made once."""
        shape = (sum(recv_counts), rows.shape[1])
        zeros = self._zeros.get(shape)
        if zeros is None or zeros.dtype is not rows.dtype:
            zeros = self._zeros[shape] = torch.zeros(shape, dtype=rows.dtype, device=self.device)
        return PendingRows(zeros, None, self.device, rows, self.clock)

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` itself."""
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """``tensor`` itself."""
        return tensor
