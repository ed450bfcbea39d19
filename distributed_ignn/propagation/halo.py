"""HaloExchange: owned rows in, halo rows out, and its transpose; HaloLink: the same in few bytes.

Letters: O owned nodes, H halo nodes, S rows sent, D columns, R rider columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.codecs import (
    Bfloat16,
    Picked,
    Quantiser,
    decode_change,
    decode_once,
    encode_change,
    encode_once,
    quantiser,
)
from distributed_ignn.comm.communicator import Communicator, PendingRows
from distributed_ignn.comm.row_exchange import RowArena, RowExchange
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import GraphShard

_SHARED_ROOMS = 2  # of shared memory in each direction: what is sent and what is read
_STALE_LAG = 2  # an exchange is under way while the next one begins


@dataclass(frozen=True, slots=True, eq=False)
class RoundedRows:
    """Rounded rows on their way; ``wait`` hands them over."""

    pending: PendingRows
    coder: Quantiser
    columns: int
    dtype: torch.dtype
    comm: Communicator

    def wait(self) -> Tensor:
        """The rows as the sender rounded them, [sum of receive counts, D]."""
        payload = self.pending.wait()
        with self.comm.clock.measure("unpack"):
            rows = torch.empty(
                payload.shape[0], self.columns, dtype=self.dtype, device=payload.device
            )
            return decode_once(payload, rows, self.coder)


@dataclass(frozen=True, slots=True, eq=False)
class HaloExchange:
    """The send and receive plan of one shard, bound to a communicator.

    Forward copies owned rows to the ranks that read them. The transpose sends halo rows home and
    adds them into their owners' rows: <Hx, y> = <x, H'y>.
    """

    comm: Communicator
    num_owned: int
    send_index: Tensor
    out: RowExchange
    home: RowExchange

    @staticmethod
    def held_bytes(
        sizes: PartSizes, row: int, *, coded: bool, shared: bool, stale: bool = False
    ) -> dict[str, int]:
        """Bytes of rows on their way, by name.

        Args:
            sizes: of the part.
            row: bytes of a row.
            coded: whether links write changes, so that both ends keep what was sent last.
            shared: whether ranks exchange rows through memory that both of them map.
            stale: whether rows may be one evaluation old.
        """
        # forward and adjoint solve have a link each
        rooms = _SHARED_ROOMS * (1 + (2 * _STALE_LAG if stale else 0))
        way = (sizes.sent + sizes.halo) * row
        return {
            "halo buffers": way,  # a copy to send, and what arrives
            "halo codec state": 2 * way if coded else 0,
            "shared halo rows": rooms * way if shared and not coded else 0,
        }

    @classmethod
    def from_shard(cls, shard: GraphShard, comm: Communicator) -> HaloExchange:
        """Plan of ``shard``.

        Raises:
            ValueError: the shard was cut for another number of ranks.
        """
        if (shard.part, shard.parts) != (comm.rank, comm.world_size):
            raise ValueError(
                f"shard {shard.part} of {shard.parts} given to rank {comm.rank} of "
                f"{comm.world_size}"
            )
        send, receive = shard.send_counts.tolist(), shard.recv_counts.tolist()
        return cls(
            comm,
            shard.num_owned,
            shard.send_index.to(comm.device),
            *_both_ways(comm, send, receive, lag=1),
        )

    @property
    def num_halo(self) -> int:
        """H."""
        return sum(self.out.recv_counts)

    @property
    def num_sent(self) -> int:
        """S."""
        return sum(self.out.send_counts)

    def start(self, *owned: Tensor) -> PendingRows:
        """Send owned rows, one or more [O, D_i]; waiting yields the halo rows [H, sum D_i]."""
        if len(owned) == 1:
            return self.out.start(owned[0], self.send_index)
        picked = [columns.index_select(0, self.send_index) for columns in owned]
        return self.out.start(torch.cat(picked, dim=1))

    def start_rounded(self, columns: Tensor, coder: Quantiser) -> RoundedRows:
        """As ``start``, each row rounded by itself: for what guides an iteration, no more."""
        rows = columns.index_select(0, self.send_index)
        return self._send_rounded(rows, coder, self.out)

    def start_rounded_transpose(self, halo: Tensor, coder: Quantiser) -> RoundedRows:
        """As ``start_transpose``, each row rounded by itself; ``halo`` is overwritten."""
        return self._send_rounded(halo, coder, self.home)

    def _send_rounded(self, rows: Tensor, coder: Quantiser, way: RowExchange) -> RoundedRows:
        with self.comm.clock.measure("pack"):
            payload = encode_once(rows, coder)
        pending = way.start(payload)
        return RoundedRows(pending, coder, rows.shape[1], rows.dtype, self.comm)

    def start_transpose(self, halo: Tensor) -> PendingRows:
        """Send halo rows [H, D] home; waiting yields rows [S, D] for ``add_home``."""
        return self.home.start(halo)

    def add_home(self, owned: Tensor, received: Tensor) -> Tensor:
        """Add rows that came home [S, D] into ``owned`` [O, D], in place."""
        return owned.index_add_(0, self.send_index, received)

    def __call__(self, owned: Tensor) -> Tensor:
        """Halo rows [H, D] of owned rows [O, D], differentiable."""
        result: Tensor = _Exchange.apply(owned, self)
        return result


def _both_ways(
    comm: Communicator, send: Sequence[int], receive: Sequence[int], lag: int
) -> tuple[RowExchange, RowExchange]:
    """A plan and its reverse over the same memory."""
    arena = RowArena(comm, send, receive, lag)
    return RowExchange(comm, send, receive, arena), RowExchange(comm, receive, send, arena)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, owned: Tensor, halo: HaloExchange) -> Tensor:
        ctx.halo = halo
        return halo.start(owned.contiguous()).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        result: Tensor = _ExchangeHome.apply(grad, ctx.halo)
        return result, None


class _ExchangeHome(torch.autograd.Function):
    """The transpose, itself differentiable: gradients of gradients cross ranks, too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, halo: HaloExchange) -> Tensor:
        ctx.halo = halo
        home = halo.start_transpose(rows.contiguous()).wait()
        return halo.add_home(rows.new_zeros(halo.num_owned, rows.shape[1]), home)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        result: Tensor = _Exchange.apply(grad, ctx.halo)
        return result, None


@dataclass(frozen=True, slots=True)
class _Flight:
    """An exchange under way: where the rider's share of a row begins, and how to read the rest."""

    pending: PendingRows
    width: int
    columns: int
    dtype: torch.dtype
    coder: Quantiser | None


Landed = tuple[Tensor, Tensor | None]
"""Halo rows [H, D] (or rows that came home [S, D]) and the rider's halo rows [H, R], or None."""


_FIRST = Bfloat16()


class HaloLink:
    """One direction of the exchange inside an iteration: rows of a point that slowly settles.

    With a change-encoding codec both sides keep what the receivers hold, also from one solve to the
    next: a solve begins close to where the last one ended. The very first rows are written in
    bfloat16, since there is nothing yet that they could be close to.

    With stale rows every evaluation but the first uses those that the one before it sent, so that
    an exchange has a whole evaluation's time; after ``settle`` they are fresh.

    Every rank must call it alike.

    Args:
        exchange: the plan.
        codec: how rows are written.
        transposed: whether halo rows go home instead of owned rows going out.
        stale: whether rows may be one evaluation old.
    """

    def __init__(
        self, exchange: HaloExchange, codec: str, *, transposed: bool, stale: bool
    ) -> None:
        self._exchange = exchange
        self._coder = quantiser(codec)
        self._transposed = transposed
        ways = exchange.out, exchange.home
        if stale:
            counts = exchange.out.send_counts, exchange.out.recv_counts
            ways = _both_ways(exchange.comm, *counts, lag=_STALE_LAG)
        self._way = ways[int(transposed)]
        self._stale = stale
        self._settled = not stale
        self._in_flight: deque[_Flight] = deque()
        self._last: Landed | None = None
        self._sent: Tensor | None = None
        self._held: Tensor | None = None
        self.error_square = torch.zeros(1, dtype=torch.float64, device=exchange.comm.device)

    def begin(self) -> None:
        """A new solve: nothing is in flight, and rows may be stale again."""
        while self._in_flight:
            self._land()
        self._last = None
        self._settled = not self._stale

    def settle(self) -> bool:
        """From the next evaluation on, use fresh rows; False if that is so already."""
        was, self._settled = self._settled, True
        return not was

    def reset(self) -> None:
        """Forget what the receivers hold: the next rows are encoded from zero."""
        self.begin()
        self._sent = self._held = None

    def send(self, rows: Tensor, rider: Tensor | None = None) -> None:
        """Start an exchange.

        Args:
            rows: owned rows [O, D], or halo rows [H, D] if transposed.
            rider: further columns [O, R] that travel along as they are.
        """
        clock, index = self._exchange.comm.clock, self._exchange.send_index
        coder = self._coder_for(rows)
        width, columns = rows.shape[1], rows.shape[1]
        with clock.measure("pack"):
            if coder is None and rider is None:
                # read before the link's next exchange, which is when a sender may write again
                picks = None if self._transposed else index
                pending = self._way.start(rows, picks, borrow=True)
            else:
                payload = self._encode(rows, coder)
                width = payload.shape[1]
                if rider is not None:
                    extra = rider.index_select(0, index).view(payload.dtype)
                    payload = torch.cat([payload, extra], dim=1)
                pending = self._way.start(payload)
        self._in_flight.append(_Flight(pending, width, columns, rows.dtype, coder))

    def _coder_for(self, rows: Tensor) -> Quantiser | None:
        """How the next rows are written; makes room for what the receivers hold."""
        if self._coder is None or (self._sent is not None and self._sent.shape[1] == rows.shape[1]):
            return self._coder
        count = self._exchange.num_halo if self._transposed else self._exchange.num_sent
        self._sent = rows.new_zeros(count, rows.shape[1])
        return _FIRST

    def _encode(self, rows: Tensor, coder: Quantiser | None) -> Tensor:
        """What is sent of ``rows``: themselves, or the bytes of their change."""
        index = self._exchange.send_index
        if coder is None or self._sent is None:
            return rows if self._transposed else rows.index_select(0, index)
        picked = Picked(rows, None if self._transposed else index)
        payload, self.error_square = encode_change(picked, self._sent, coder)
        return payload

    def arrived(self) -> bool:
        """Whether ``wait`` would return at once, as far as this rank can tell."""
        fresh = self._settled or self._last is None
        due = list(self._in_flight)[: None if fresh else -1]
        return all(flight.pending.arrived() for flight in due)

    def wait(self) -> Landed:
        """The rows that this evaluation uses, to be read before the next ``wait`` and no later."""
        keep = 0 if self._settled or self._last is None else 1
        while len(self._in_flight) > keep:
            self._last = self._land()
        if self._last is None:
            raise RuntimeError("rows are waited for that nobody has sent")
        return self._last

    def _land(self) -> Landed:
        """Receive the oldest rows in flight."""
        flight = self._in_flight.popleft()
        arrived = flight.pending.wait()
        rows, rider = arrived, None
        if arrived.shape[1] > flight.width:
            rows = arrived[:, : flight.width].contiguous()
            # a slice of one row counts as contiguous where it lies, between bytes of any number
            copied = arrived[:, flight.width :].clone(memory_format=torch.contiguous_format)
            rider = copied.view(flight.dtype)
        if flight.coder is None:
            return rows, rider
        if self._held is None or self._held.shape[1] != flight.columns:
            self._held = arrived.new_zeros(arrived.shape[0], flight.columns, dtype=flight.dtype)
        with self._exchange.comm.clock.measure("unpack"):
            decode_change(rows, self._held, flight.coder)
        return self._held, rider
