"""A small dense map with everything that the learned solver may ask of one."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_ignn.solvers.base import Evaluation

NODES, WIDTH = 30, 6


def ring_graph() -> Tensor:
    """Mean over a node and its two neighbours, [NODES, NODES]."""
    ring = torch.roll(torch.eye(NODES, dtype=torch.float64), 1, 0)
    return (ring + ring.T + torch.eye(NODES, dtype=torch.float64)) / 3


class DenseMap:
    """phi(sum_c A_c z W_c + b) on two graphs, with ``thin`` as A_s.

    Args:
        bound: of the summed columns of |W_1| + |W_2|.
        linear: phi is the identity instead of ReLU.
    """

    def __init__(self, bound: float = 0.9, linear: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        far = torch.roll(torch.eye(NODES, dtype=torch.float64), 7, 0)
        self.graphs = [ring_graph(), (far + far.T) / 2]
        self.thin = torch.eye(NODES, dtype=torch.float64) / 2
        stacked = torch.randn(2 * WIDTH, WIDTH, generator=generator, dtype=torch.float64)
        stacked = bound * stacked / stacked.abs().sum(dim=0)
        self.weights: tuple[Tensor, ...] = tuple(stacked.chunk(2))
        self.offset = torch.randn(NODES, WIDTH, generator=generator, dtype=torch.float64)
        self.linear = linear
        self.products = 0

    def activate(self, x: Tensor) -> Tensor:
        return x if self.linear else torch.relu(x)

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        pairs = zip(self.graphs, self.weights, strict=True)
        total = self.offset + sum(graph @ z @ weight for graph, weight in pairs)
        return Evaluation(z, self.activate(total))

    def gate(self, values: Tensor, image: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
        return values if self.linear else values * (image > 0)

    def propagate(self, columns: Tensor, sparsified: bool) -> list[Tensor]:
        self.products += 1
        return [graph @ columns for graph in ([self.thin] if sparsified else self.graphs)]
