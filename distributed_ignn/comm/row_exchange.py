"""RowExchange: one send and receive plan, by the fastest way there is between its ranks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from distributed_ignn.comm.communicator import Communicator, PendingRows
from distributed_ignn.comm.shared_rows import SharedRows

logger = logging.getLogger(__name__)

_ALIGNMENT = 16  # so that rooms begin where any number format may


class RowArena:
    """Holds shared memory for a plan and its reverse, where the communicator allows it.

    Mapped at the first exchange, and again for longer rows; every rank meets the same sizes.

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
        self._comm = comm
        self._most = [max(pair) for pair in zip(send_counts, recv_counts, strict=True)]
        self._lag = lag
        self._row_bytes = 0
        self._shared: SharedRows | None = None
        self._usable = comm.shares_memory

    def memory(self, row_bytes: int) -> SharedRows | None:
        """Return the memory for rows of a size; None where they have to go another way."""
        if self._usable and row_bytes > self._row_bytes:
            sizes = [-(-count * row_bytes // _ALIGNMENT) * _ALIGNMENT for count in self._most]
            self._row_bytes = row_bytes
            before = self._comm.traffic
            self._comm.traffic = before.snapshot()  # agreeing on files is no message of the run
            self._shared = SharedRows.open(self._comm, sizes, 2 * self._lag)
            self._comm.traffic = before
            self._usable = self._shared is not None
            if not self._usable and self._comm.is_main:
                logger.warning(
                    "no room for halo rows in shared memory; they go through sockets, which is "
                    "slower (in a container, give /dev/shm more room)"
                )
        return self._shared if row_bytes else None


class RowExchange:
    """Exchanges rows between the same ranks in the same numbers, again and again.

    Every rank makes it and calls it alike.

    Args:
        comm: this rank's communicator.
        send_counts, recv_counts: rows to and from each rank, world_size entries each.
        arena: shared memory of this plan, or of its reverse.
    """

    def __init__(
        self,
        comm: Communicator,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        arena: RowArena,
    ) -> None:
        self.comm = comm
        self.send_counts = tuple(send_counts)
        self.recv_counts = tuple(recv_counts)
        self._arena = arena

    def start(
        self, rows: Tensor, index: Tensor | None = None, *, borrow: bool = False
    ) -> PendingRows:
        """Begin an exchange of rows grouped by receiving rank.

        Args:
            rows: [sum(send_counts), D], or [O, D] with ``index``.
            index: int64 [sum(send_counts)], which rows to send; all by default.
            borrow: whether the rows may be handed over in shared memory, to be read before the
                next exchange begins.
        """
        shared = self._arena.memory(rows.shape[1] * rows.element_size())
        if shared is None:
            picked = rows if index is None else rows.index_select(0, index)
            return self.comm.start_exchange(picked, self.send_counts, self.recv_counts)
        return self._start_shared(rows, shared, index, borrow)

    def _start_shared(
        self, rows: Tensor, shared: SharedRows, index: Tensor | None, borrow: bool
    ) -> PendingRows:
        """Begin the exchange through shared memory, see ``Communicator.start_exchange``."""
        comm, width, turn = self.comm, rows.shape[1], shared.next_turn()
        comm.traffic.exchanges += 1
        comm.traffic.exchange_bytes += sum(self.send_counts) * width * rows.element_size()
        if index is None:
            shared.write(turn, rows, self.send_counts)
        else:
            shared.gather(turn, rows, index, self.send_counts)
        told = comm.start_signal()  # that the rows are there
        borrowed = shared.borrow(turn, width, rows.dtype, self.recv_counts) if borrow else None
        if borrowed is not None:
            return PendingRows(borrowed, told, comm.device, rows, comm.clock)
        received = rows.new_empty(sum(self.recv_counts), width)

        def fetch() -> None:
            shared.read(turn, received, self.recv_counts)

        return PendingRows(received, told, comm.device, rows, comm.clock, fetch)
