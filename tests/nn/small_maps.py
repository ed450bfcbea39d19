"""Maps, graphs and unrolled references that the layers are held against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

NODES, WIDTH = 30, 6


class Mixed(nn.Module):
    """tanh(z W) / 2 + x, a contraction in z; W [D, D] has a spectral norm of at most 1."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        drawn = torch.randn(width, width)
        self.weight = nn.Parameter(drawn / torch.linalg.matrix_norm(drawn, ord=2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight) / 2 + x


def edges(nodes: int = NODES, count: int = 90) -> Tensor:
    """Directed edges [2, E] without repeats or self-loops."""
    pairs = torch.unique(torch.randint(nodes, (2, count)), dim=1)
    return pairs[:, pairs[0] != pairs[1]]


def both_ways(pairs: Tensor) -> Tensor:
    """Every edge in both directions, once."""
    return torch.unique(torch.cat([pairs, pairs.flip(0)], dim=1), dim=1)


def unrolled(step: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """The plain loop, differentiated step by step."""
    z = start
    for _ in range(steps):
        z = step(z)
    return z
