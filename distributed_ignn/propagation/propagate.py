"""Propagation: the normalised sparse product over all channels, with one halo exchange.

A_hat = D~^-1/2 (A + I) D~^-1/2 or D~^-1 (A + I) per channel; its values are not stored, rows and
columns are scaled where they are multiplied. The rows of a shard split into A_oo, which is
multiplied while the halo is in flight, and A_bh, which is added when it has arrived:

    y = A_oo x_owned;   y[I:] += A_bh x_halo                     (forward)
    h = A_bh' y[I:] (sent home);   x = A_oo' y;   x += arrived   (transpose)

Products are worked off in blocks of rows, interior blocks first, and handed to ``finish`` one block
at a time.

Letters: O owned nodes, I interior nodes, B boundary nodes, H halo nodes, S rows sent, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distributed_ignn.comm.codecs import quantiser
from distributed_ignn.comm.communicator import Communicator, PendingRows
from distributed_ignn.graph.data import csr_from_entries
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import GraphShard, Normalisation
from distributed_ignn.propagation.halo import HaloExchange, HaloLink, RoundedRows
from distributed_ignn.propagation.kernels import KERNELS, choose_kernel
from distributed_ignn.propagation.operators import (
    BlockBounds,
    ChannelOperator,
    ChannelTranspose,
    square_between_parts,
)
from distributed_ignn.propagation.row_sum import RowSum
from distributed_ignn.propagation.sparse import SparseMatrix

Finish = Callable[[slice, list[Tensor]], None]
"""Takes a block of owned rows and, per channel, their products [r, D], which it may overwrite."""

FinishSums = Callable[[slice, list[RowSum]], None]
"""Takes a block of owned rows and, per channel, their products before they are multiplied."""


@dataclass(frozen=True, slots=True)
class PropagationOptions:
    """How products and exchanges are carried out; the results agree.

    Args:
        kernel: see ``choose_kernel``.
        codec: how halo rows are written inside iterations.
        stale: whether iterations may use halo rows that are one evaluation old.
    """

    kernel: str = "auto"
    codec: str = "fp32"
    stale: bool = False


EXACT = PropagationOptions()
INDEX_BYTES = 4  # of a column number and of a row's start in a block


def choose_codec(name: str, comm: Communicator) -> str:
    """Resolve ``auto`` by what measured best: bytes count between machines, packing within one.

    On GPUs neither links nor the codec's kernels have been measured: rows as they are.
    """
    if name != "auto":
        return name
    return "int4" if comm.spans_machines and comm.device.type != "cuda" else "fp32"


class Propagation:
    """All channels of one shard behind one exchange.

    Args:
        shard: this rank's part, whose channels say how they are normalised.
        comm: this rank's communicator.
        dtype: of the rows that are multiplied.
        options: how that is done.

    Attributes:
        graph_channels: how many channels, from the first, are the dataset's own graph.
        keeps_ones: whether every A_hat_c 1 = 1, because all rows are divided by their sums.
    """

    def __init__(
        self,
        shard: GraphShard,
        comm: Communicator,
        dtype: torch.dtype,
        options: PropagationOptions = EXACT,
    ) -> None:
        self.halo = HaloExchange.from_shard(shard, comm)
        self.blocks = BlockBounds.of(shard.channels[0], comm.device)
        self.graph_channels = shard.graph_channels
        self.keeps_ones = all(channel.normalisation == "row" for channel in shard.channels)
        self._clock = comm.clock
        where = dtype, comm.device
        self.channels = tuple(
            ChannelOperator.from_shard(channel, *where, self.blocks, options.kernel)
            for channel in shard.channels
        )
        self._transposes = tuple(
            ChannelTranspose.from_shard(
                channel,
                op.owned if channel.self_adjoint else None,
                *where,
                self.blocks,
                options.kernel,
                shard.turned(number),
            )
            for number, (channel, op) in enumerate(zip(shard.channels, self.channels, strict=True))
        )
        self._home = _home_matrix(shard, dtype, comm.device, self.blocks, options.kernel)
        link = HaloLink(self.halo, options.codec, transposed=False, stale=options.stale)
        back = HaloLink(self.halo, options.codec, transposed=True, stale=options.stale)
        self.link, self.link_home = link, back
        self._coder = quantiser(options.codec)
        self._squares = [
            square_between_parts(channel) if self.rounds else 0.0 for channel in shard.channels
        ]

    @staticmethod
    def held_bytes(
        sizes: PartSizes,
        kernel: str,
        dtype: torch.dtype,
        device: torch.device,
        normalisation: Normalisation = "symmetric",
    ) -> int:
        """Bytes of both directions of the blocks, beside the ids that are used in place.

        The transposed boundary block and the rows that come home have ids of their own, and so has
        a transposed owned block that is not at hand; one that is, with other scales, has values of
        its own. Most kernels store values, and all of them do where edges have weights. A GPU has
        copies of the ids, and a block that is there again with other scales has one of its own.
        """
        at_hand = sizes.symmetric or sizes.graph_channels > 1
        turned = sizes.boundary_entries + (0 if at_hand else sizes.owned_entries)
        turned += sizes.sent
        same = sizes.symmetric and normalisation == "symmetric"
        offsets = (2 if same else 3) * sizes.owned + 2 * sizes.boundary + sizes.halo
        scales = (sizes.owned + sizes.halo) * dtype.itemsize
        found = turned * INDEX_BYTES + sizes.channels * (offsets * INDEX_BYTES + scales)
        again = sizes.owned_entries if at_hand and not same else 0
        forward = sizes.owned_entries + sizes.boundary_entries + again
        if device.type != "cpu":
            found += forward * INDEX_BYTES
        if sizes.weighted or KERNELS[choose_kernel(kernel, dtype, device)].stores_values:
            found += (forward + turned) * dtype.itemsize
        return found

    @property
    def num_channels(self) -> int:
        return len(self.channels)

    @property
    def rounds(self) -> bool:
        """Whether halo rows are rounded inside iterations."""
        return self._coder is not None

    @cached_property
    def rounding_gains(self) -> tuple[float, ...]:
        """Per channel, how much of the halo rows' rounding error a product shows, root mean square.

        With A the entries between parts, E the errors of the S copies of rows that are sent, and
        errors of different rows independent: ||A E||^2 = ||A||_F^2 / S ||E||^2 on average. One
        reduction, once.
        """
        parts = [*self._squares, float(self.halo.num_sent)]
        sums = self.halo.comm.sum(torch.tensor(parts, dtype=torch.float64))
        return tuple((float(square) / max(float(sums[-1]), 1.0)) ** 0.5 for square in sums[:-1])

    def reset_links(self) -> None:
        """Forget what change-encoding has sent; every rank calls it at the same point.

        A run that is resumed from a checkpoint then goes on like one that was not interrupted.
        """
        self.link.reset()
        self.link_home.reset()

    @contextmanager
    def exact_rows(self) -> Iterator[None]:
        """Let iterations inside exchange halo rows as they are, whatever the options say.

        What the links know of the rows that were sent before is the same afterwards, so solves
        inside leave those outside as they would have been. Every rank enters it together.
        """
        kept = self.link, self._coder
        self.link.begin()  # nothing of another solve is on its way
        self.link = HaloLink(self.halo, EXACT.codec, transposed=False, stale=EXACT.stale)
        self._coder = None
        try:
            yield
        finally:
            self.link, self._coder = kept

    def iterate_sums(
        self, x: Tensor, finish: FinishSums, rider: Tensor | None = None
    ) -> Tensor | None:
        """A_hat_c x inside an iteration, block by block; one exchange through the forward link.

        Args:
            x: [O, D] owned rows.
            finish: told every block once, interior ones first; it multiplies, so that it may go on
                in the same kernel.
            rider: [O, R] further columns that travel in the same exchange, or None.

        Returns:
            The rider's halo rows [H, R] (None without rider).
        """
        self.link.send(x, rider)
        for block in range(self.blocks.interior):
            finish(self.blocks.rows(block), [self._sum(c.owned, block, x) for c in self.channels])
        # rows that wait for the halo: what there is of them while it is on its way
        early: list[list[Tensor]] = []
        boundary = len(self.blocks) - self.blocks.interior
        while len(early) < boundary and not self.link.arrived():
            early.append(self._owned_products(self.blocks.interior + len(early), x))
        halo, rider_halo = self.link.wait()
        early.reverse()
        for number in range(boundary):
            block = self.blocks.interior + number
            starts = early.pop() if early else self._owned_products(block, x)
            pairs = zip(self.channels, starts, strict=True)
            sums = [self._sum(c.boundary, number, halo, start) for c, start in pairs]
            finish(self.blocks.rows(block), sums)
        return None if rider is None else rider_halo

    def _sum(
        self, matrix: SparseMatrix, block: int, operand: Tensor, start: Tensor | None = None
    ) -> RowSum:
        return RowSum(matrix, block, operand, start, self._clock)

    def _owned_products(self, block: int, x: Tensor) -> list[Tensor]:
        return _multiply([self._sum(channel.owned, block, x) for channel in self.channels])

    def iterate_home(self, ys: Sequence[Tensor], finish: Finish) -> None:
        """sum_c A_hat_c' y_c inside an iteration, block by block; one exchange through its link.

        Args:
            ys: one [O, D] per channel.
            finish: told every block once, with one product.
        """
        with self._clock.measure("product"):
            share = self._share(ys)
        self.link_home.send(share)
        waiting = [
            block for block in range(len(self.blocks)) if self._home.blocks[block] is not None
        ]
        for block in range(len(self.blocks)):
            if self._home.blocks[block] is None:
                finish(self.blocks.rows(block), [self._total(block, ys)])
        early: list[Tensor] = []
        while len(early) < len(waiting) and not self.link_home.arrived():
            early.append(self._total(waiting[len(early)], ys))
        home, _ = self.link_home.wait()
        early.reverse()
        for block in waiting:
            total = early.pop() if early else self._total(block, ys)
            with self._clock.measure("product"):
                total += self._home.multiply_block(block, home)
            finish(self.blocks.rows(block), [total])

    def _share(self, ys: Sequence[Tensor]) -> Tensor:
        """sum_c A_bh_c' y_c [H, D]."""
        share = self._transposes[0].halo_share(ys[0])
        for transpose, y in zip(self._transposes[1:], ys[1:], strict=True):
            share += transpose.halo_share(y)
        return share

    def _total(self, block: int, ys: Sequence[Tensor]) -> Tensor:
        """sum_c A_oo_c' y_c, the rows of a block."""
        with self._clock.measure("product"):
            total = self._transposes[0].owned.multiply_block(block, ys[0])
            for transpose, y in zip(self._transposes[1:], ys[1:], strict=True):
                total += transpose.owned.multiply_block(block, y)
            return total

    def apply(self, x: Tensor) -> list[Tensor]:
        """A_hat_c x [O, D] for every channel, without gradient; one exact exchange."""
        pending = self.halo.start(x)
        products = [channel.owned @ x for channel in self.channels]
        halo = pending.wait()
        return [c.finish(p, halo) for c, p in zip(self.channels, products, strict=True)]

    def hop(self, columns: Tensor, operator: ChannelOperator | None = None) -> list[Tensor]:
        """A_hat_c columns [O, p] for every channel, or ``operator`` columns alone.

        For columns that guide an iteration: one exchange, rounded where the links' rows are.
        """
        channels = self.channels if operator is None else (operator,)
        if self._coder is None:
            pending: PendingRows | RoundedRows = self.halo.start(columns)
        else:
            pending = self.halo.start_rounded(columns, self._coder)
        products = [channel.owned @ columns for channel in channels]
        halo = pending.wait()
        return [c.finish(p, halo) for c, p in zip(channels, products, strict=True)]

    def hop_home(self, columns: Tensor) -> list[Tensor]:
        """A_hat_c' columns [O, p] for every channel, as ``hop``."""
        widths = [columns.shape[1]] * self.num_channels
        share = torch.cat([t.halo_share(columns) for t in self._transposes], dim=1)
        if self._coder is None:
            pending: PendingRows | RoundedRows = self.halo.start_transpose(share)
        else:
            pending = self.halo.start_rounded_transpose(share, self._coder)
        products = [transpose.owned @ columns for transpose in self._transposes]
        home = pending.wait().split(widths, dim=1)
        return [self._add_home(p, h) for p, h in zip(products, home, strict=True)]

    def _add_home(self, owned: Tensor, home: Tensor) -> Tensor:
        """Add rows that came home [S, D] into ``owned`` [O, D], in place."""
        home = home.contiguous()
        for block, product in enumerate(self._home.blocks):
            if product is not None:
                owned[self.blocks.rows(block)] += self._home.multiply_block(block, home)
        return owned

    def __call__(self, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A_hat_c x_c for every channel, differentiable in every x_c [O, D_c].

        One exchange carries the columns of all channels, and one in the backward pass.
        """
        result: tuple[Tensor, ...] = _Propagate.apply(self, *xs)
        return result

    def _each(self, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        pending = self.halo.start(*xs)
        products = [channel.owned @ x for channel, x in zip(self.channels, xs, strict=True)]
        arrived = _split_like(pending.wait(), xs)
        return tuple(map(ChannelOperator.finish, self.channels, products, arrived))

    def _each_transpose(self, ys: Sequence[Tensor]) -> tuple[Tensor, ...]:
        pairs = list(zip(self._transposes, ys, strict=True))
        shares = [transpose.halo_share(y) for transpose, y in pairs]
        pending = self.halo.start_transpose(torch.cat(shares, dim=1))
        products = [transpose.owned @ y for transpose, y in pairs]
        return tuple(map(self._add_home, products, _split_like(pending.wait(), ys)))


def _home_matrix(
    shard: GraphShard, dtype: torch.dtype, device: torch.device, blocks: BlockBounds, kernel: str
) -> SparseMatrix:
    """[O, S] of ones: adds rows that come home to their owners' rows, in a fixed order."""
    sent = shard.send_index.numel()
    pattern = csr_from_entries(
        shard.send_index.to(torch.int64), torch.arange(sent), shard.num_owned, max(sent, 1)
    )
    return SparseMatrix.from_csr(pattern, dtype, device, bounds=blocks.owned, kernel=kernel)


def _multiply(sums: Sequence[RowSum]) -> list[Tensor]:
    return [each.product() for each in sums]


def _split_like(rows: Tensor, columns: Sequence[Tensor]) -> list[Tensor]:
    widths = [block.shape[1] for block in columns]
    return [block.contiguous() for block in rows.split(widths, dim=1)]


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, propagation: Propagation, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.propagation = propagation
        ctx.set_materialize_grads(True)
        return propagation._each([x.contiguous() for x in xs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.propagation._each_transpose([g.contiguous() for g in grads])
