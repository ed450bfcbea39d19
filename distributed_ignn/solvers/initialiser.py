"""The initialiser: the equilibrium of the compressed map, and what training adds to it.

    Y_0 = phi(b) U,   Y_{t+1} = Y_0 + sum_c A_c Y_t (U' W_c U)
    h(b) = phi(b + sum_c A_c Y_T U' W_c + [A_c Y_T, A_c Y_{T-1}, ...] B)

The first sum is the map applied to the compressed state after T hops; it follows the weights
without training. B is learned: the least-squares fit of what is missing to Z*'s pre-activation.
It belongs to the frame U_0 of the weights it was fitted with, so the columns are turned into that
frame before they meet B. A hop exchanges p columns where an evaluation exchanges D.

Letters: O owned rows, D columns, p compressed width, C channels, T hops, q columns that B reads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distributed_ignn.solvers.blocks import assemble, project
from distributed_ignn.solvers.dense import affine
from distributed_ignn.solvers.estimator import StructuredMap
from distributed_ignn.solvers.reduced import BasisCache, ReducedBasis, hop

_KEPT_HOPS = 2  # the newest hops, which B reads


class Initialiser(nn.Module):
    """h: from the injection b to a starting point.

    Args:
        width: D.
        cache: gives the basis of the map's weights, and p.
        hops: T; 0 reads no neighbours.
        channels: C.
    """

    def __init__(self, width: int, cache: BasisCache, hops: int, channels: int) -> None:
        super().__init__()
        rank = min(cache.rank, width)
        self.hops = hops
        self._cache = cache
        blocks = channels * min(hops, _KEPT_HOPS) if hops else 1
        self.readout = nn.Parameter(torch.zeros(blocks * rank, width), requires_grad=False)
        self.frame = nn.Parameter(torch.eye(width, rank), requires_grad=False)

    def basis(self, fixed_point_map: StructuredMap) -> ReducedBasis:
        """The basis of the map's weights."""
        return self._cache.get(fixed_point_map.weights)

    def forward(
        self,
        fixed_point_map: StructuredMap,
        injection: Tensor,
        activate: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Z0 [O, D] from b [O, D]; ``hops`` exchanges of p columns."""
        basis = self.basis(fixed_point_map)
        columns = self.columns(fixed_point_map, basis, injection, activate)
        turn = basis.frame.T @ self.frame
        learned = torch.cat([turn @ rows for rows in self.readout.split(basis.rank)])

        def rows(part: slice) -> Tensor:
            own = [block[part] for block in columns]
            return activate(self._pre_activation(basis, injection[part], own, learned))

        return assemble(rows, injection)

    def columns(
        self,
        fixed_point_map: StructuredMap,
        basis: ReducedBasis,
        injection: Tensor,
        activate: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """The blocks that B reads, newest hop first, [O, p] each."""
        first = project(lambda part: activate(injection[part]), basis.frame, injection)
        if self.hops == 0:
            return [first]
        found: list[Tensor] = []
        current = first
        for number in range(self.hops):
            products = fixed_point_map.propagate(current, False)
            found = [*products, *found]
            if number + 1 < self.hops:
                current = hop(first, products, basis.inner)
        return found[: _KEPT_HOPS * len(basis.inner)]

    def untrained(self, basis: ReducedBasis, injection: Tensor, columns: list[Tensor]) -> Tensor:
        """The pre-activation without B, [O, D]."""
        nothing = injection.new_zeros(len(columns) * basis.rank, injection.shape[1])
        return self._pre_activation(basis, injection, columns, nothing)

    def _pre_activation(
        self, basis: ReducedBasis, injection: Tensor, columns: list[Tensor], learned: Tensor
    ) -> Tensor:
        """b + columns (U' W_c for the newest hop, plus ``learned``), [O, D]."""
        matrix = learned.clone()
        if self.hops:
            reached = basis.lifted[:, 0].flatten(0, 1)
            matrix[: reached.shape[0]] += reached
        return affine(torch.cat(columns, dim=1), matrix, injection)
