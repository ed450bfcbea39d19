"""RowExchange: one send and receive plan, by the fastest way there is between its ranks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from distributed_ignn.comm.communicator import Communicator, PendingRows
from distributed_ignn.comm.shared_rows import SharedRows

logger = logging.getLogger(__name__)


class RowExchange:
    """Exchanges rows between the same ranks in the same numbers, again and again.

    Through shared memory where the communicator allows it and there is room for it, else by
    ``all_to_all_single``. Every rank makes it and calls it alike.

    Args:
        comm: this rank's communicator.
        send_counts, recv_counts: rows to and from each rank, world_size entries each.
        lag: how many exchanges may begin before the rows of the first of them are waited for.
    """

    def __init__(
        self,
        comm: Communicator,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        lag: int = 1,
    ) -> None:
        self.comm = comm
        self.send_counts = tuple(send_counts)
        self.recv_counts = tuple(recv_counts)
        self._lag = lag
        self._shared: dict[int, SharedRows | None] = {}

    def start(self, rows: Tensor) -> PendingRows:
        """Begin an exchange of rows [sum(send_counts), D], grouped by receiving rank."""
        shared = self._memory(rows.shape[1] * rows.element_size())
        if shared is None:
            return self.comm.start_exchange(rows, self.send_counts, self.recv_counts)
        return self.comm.start_shared(rows, shared, self.send_counts, self.recv_counts)

    def _memory(self, row_bytes: int) -> SharedRows | None:
        """Mapped at the first exchange of rows of this size, the same one on every rank."""
        if not self.comm.shares_memory or row_bytes == 0:
            return None
        if row_bytes not in self._shared:
            self._shared[row_bytes] = SharedRows.open(
                self.comm, self.send_counts, self.recv_counts, row_bytes, self._lag
            )
            if self._shared[row_bytes] is None and self.comm.is_main:
                logger.warning(
                    "no room for halo rows in shared memory; they go through sockets, which is "
                    "slower (in a container, give /dev/shm more room)"
                )
        return self._shared[row_bytes]
