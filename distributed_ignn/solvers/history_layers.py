"""Layers that read a node's history of compressed residuals, each [O, H] from blocks [O, p].

Blocks come newest first, at most M + 1 of them; a missing one counts as zero. Every layer works
node by node, so its result does not depend on how the graph is cut.

Letters: O owned rows, M memory, p compressed width, H hidden width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def padded(blocks: list[Tensor], slots: int) -> list[Tensor]:
    """Blocks [O, p] of a history, newest first, with zeros for those that it has not got yet.

    Raises:
        ValueError: there is none.
    """
    if not blocks:
        raise ValueError("a layer needs at least one compressed residual")
    return [*blocks, *[torch.zeros_like(blocks[0])] * (slots - len(blocks))]


class GraphLayer(nn.Module):
    """relu(own P + (A_s own) Q + c): one layer on the sparsified graph, over the whole history."""

    def __init__(self, slots: int, compress: int, hidden: int) -> None:
        super().__init__()
        self._slots = slots
        self.own = nn.Linear(slots * compress, hidden)
        self.neighbours = nn.Linear(slots * compress, hidden, bias=False)

    def forward(self, own: list[Tensor], neighbours: list[Tensor]) -> Tensor:
        """Node features from own blocks and A_s times them (one fewer)."""
        around = neighbours or [torch.zeros_like(own[0])]
        mixed = self.own(torch.cat(padded(own, self._slots), dim=1))
        mixed = mixed + self.neighbours(torch.cat(padded(around, self._slots), dim=1))
        return torch.relu(mixed)


class DenseLayers(nn.Module):
    """Two dense layers on the concatenated history, no graph."""

    def __init__(self, slots: int, compress: int, hidden: int) -> None:
        super().__init__()
        self._slots = slots
        self.first = nn.Linear(slots * compress, hidden)
        self.second = nn.Linear(hidden, hidden)

    def forward(self, own: list[Tensor], neighbours: list[Tensor]) -> Tensor:
        """Node features from own blocks; ``neighbours`` is empty."""
        features = torch.relu(self.first(torch.cat(padded(own, self._slots), dim=1)))
        return torch.tanh(self.second(features))


class ConvolutionLayers(nn.Module):
    """Causal convolutions of two taps along the history, their gaps doubling (Bai et al. 2018).

    Only the newest position is wanted, so each layer is evaluated at the positions that the next
    one reads: a binary tree over the history, which the zeros before the oldest block fill up.
    """

    def __init__(self, slots: int, compress: int, hidden: int) -> None:
        super().__init__()
        depth = max(1, (slots - 1).bit_length())
        self._leaves = 2**depth
        widths = [compress, *[hidden] * depth]
        self.taps = nn.ModuleList(nn.Linear(2 * width, out) for width, out in pairwise(widths))

    def forward(self, own: list[Tensor], neighbours: list[Tensor]) -> Tensor:
        """Node features from own blocks; ``neighbours`` is empty."""
        blocks = torch.stack(padded(own, self._leaves), dim=1)  # [O, leaves, p]
        for tap in self.taps:
            pairs = blocks.reshape(blocks.shape[0], blocks.shape[1] // 2, 2 * blocks.shape[2])
            blocks = torch.relu(tap(pairs))
        return blocks[:, 0]


class RecurrentLayer(nn.Module):
    """A gated recurrent unit from the oldest block to the newest (Cho et al. 2014)."""

    def __init__(self, slots: int, compress: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(compress, hidden)

    def forward(self, own: list[Tensor], neighbours: list[Tensor]) -> Tensor:
        """Node features from own blocks; ``neighbours`` is empty."""
        features = own[0].new_zeros(own[0].shape[0], self.cell.hidden_size)
        for block in reversed(own):
            features = self.cell(block, features)
        return features
