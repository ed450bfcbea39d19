"""HaloExchange: owned rows in, halo rows out, and its transpose.

Letters: O owned nodes, H halo nodes, S rows sent, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator, PendingRows
from distributed_ignn.graph.shard import GraphShard


@dataclass(frozen=True, slots=True, eq=False)
class HaloExchange:
    """The send and receive plan of one shard, bound to a communicator.

    Forward copies owned rows to the ranks that read them. The transpose sends halo rows home and
    adds them into their owners' rows: <Hx, y> = <x, H'y>.
    """

    comm: Communicator
    num_owned: int
    send_index: Tensor
    send_counts: tuple[int, ...]
    recv_counts: tuple[int, ...]

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
        return cls(
            comm,
            shard.num_owned,
            shard.send_index.to(comm.device),
            tuple(shard.send_counts.tolist()),
            tuple(shard.recv_counts.tolist()),
        )

    @property
    def num_halo(self) -> int:
        return sum(self.recv_counts)

    def start(self, *owned: Tensor) -> PendingRows:
        """Send owned rows, one or more [O, D_i]; waiting yields the halo rows [H, sum D_i]."""
        rows = torch.cat([columns.index_select(0, self.send_index) for columns in owned], dim=1)
        return self.comm.start_exchange(rows, self.send_counts, self.recv_counts)

    def start_transpose(self, halo: Tensor) -> PendingRows:
        """Send halo rows [H, D] home; waiting yields rows [S, D] for ``add_home``."""
        return self.comm.start_exchange(halo, self.recv_counts, self.send_counts)

    def add_home(self, owned: Tensor, received: Tensor) -> Tensor:
        """Add rows that came home [S, D] into ``owned`` [O, D], in place."""
        return owned.index_add_(0, self.send_index, received)

    def __call__(self, owned: Tensor) -> Tensor:
        """Halo rows [H, D] of owned rows [O, D], differentiable."""
        result: Tensor = _Exchange.apply(owned, self)
        return result


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, owned: Tensor, halo: HaloExchange) -> Tensor:
        ctx.halo = halo
        return halo.start(owned).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        halo: HaloExchange = ctx.halo
        home = halo.start_transpose(grad.contiguous()).wait()
        owned = grad.new_zeros(halo.num_owned, grad.shape[1])
        return halo.add_home(owned, home), None
