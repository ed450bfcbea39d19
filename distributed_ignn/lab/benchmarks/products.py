"""The local products that are measured against each other, behind one interface.

Each multiplies the rows that a rank has after an exchange, own and halo, and its transpose does the
work of the backward solve. Channel 0 alone.

Letters: O owned nodes, H halo nodes, L = O + H, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.lab.benchmarks.study import Tell
from distributed_ignn.lab.benchmarks.yardstick import (
    PlainLayout,
    plain_matrix,
    torch_csr,
    transposed,
)
from distributed_ignn.propagation.kernels import KERNELS
from distributed_ignn.propagation.operators import BlockBounds, ChannelOperator, ChannelTranspose

PLAIN = "torch CSR int64, ascending ids"


@dataclass(frozen=True, slots=True, eq=False)
class LocalProduct:
    """One way to multiply.

    Args:
        forward: y [O, D] from own rows and halo rows one below the other [L, D].
        transpose: own rows [O, D] and halo rows [H, D] from y [O, D].
        layout: where its rows lie.
    """

    forward: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor], tuple[Tensor, Tensor]]
    layout: PlainLayout


Build = Callable[[GraphShard, Communicator, torch.dtype], LocalProduct]


def _plain(layout_of: Callable[[GraphShard], PlainLayout]) -> Build:
    """torch's own CSR product over all local columns, 64-bit indices."""

    def build(shard: GraphShard, comm: Communicator, dtype: torch.dtype) -> LocalProduct:
        layout, owned = layout_of(shard), shard.num_owned
        whole = plain_matrix(shard.channels[0], layout, dtype)
        matrix, flipped = (torch_csr(m, comm.device) for m in (whole, transposed(whole)))

        def transpose(y: Tensor) -> tuple[Tensor, Tensor]:
            both = flipped @ y
            return both[:owned], both[owned:]

        return LocalProduct(lambda local: matrix @ local, transpose, layout)

    return build


def _blocks(kernel: str) -> Build:
    """The library's own: owned block, then boundary block, as the exchange's arrival allows."""

    def build(shard: GraphShard, comm: Communicator, dtype: torch.dtype) -> LocalProduct:
        channel, owned = shard.channels[0], shard.num_owned
        where, bounds = (dtype, comm.device), BlockBounds.of(channel, comm.device)
        operator = ChannelOperator.from_shard(channel, *where, bounds, kernel)
        same = operator.owned if channel.self_adjoint else None
        flipped = ChannelTranspose.from_shard(channel, same, *where, bounds, kernel)

        def forward(local: Tensor) -> Tensor:
            return operator.finish(operator.owned @ local[:owned], local[owned:])

        def transpose(y: Tensor) -> tuple[Tensor, Tensor]:
            return flipped.owned @ y, flipped.halo_share(y)

        return LocalProduct(forward, transpose, PlainLayout.ours(shard))

    return build


# "triton" multiplies as "triton-product" does; what it adds is not part of a product alone
_KERNELS = tuple(name for name, kernel in KERNELS.items() if not kernel.fuses)

#: By name; the first is the baseline.
PRODUCTS: dict[str, Build] = {
    PLAIN: _plain(PlainLayout.ascending),
    "torch CSR int64, our order": _plain(PlainLayout.ours),
    **{f"blocks, {kernel}": _blocks(kernel) for kernel in _KERNELS},
}


def build_products(
    shard: GraphShard,
    comm: Communicator,
    local: Tensor,
    tell: Tell,
    but: Collection[str] = (),
) -> dict[str, LocalProduct]:
    """Every product that works on this device with rows like ``local`` [L, D].

    Args:
        shard: whose rows they multiply.
        comm: this rank's communicator.
        local: an operand to try them on.
        tell: told which ones do not work here.
        but: names of those that are not to be tried.
    """
    found = {}
    for name, build in PRODUCTS.items():
        if name in but:
            continue
        try:
            product = build(shard, comm, local.dtype)
            product.forward(local)
        except (NotImplementedError, RuntimeError, UserError) as error:
            if name == PLAIN:
                raise
            tell(f"{name} is left out: {str(error).splitlines()[0]}")
            continue
        found[name] = product
    return found
