"""Dropout whose masks belong to nodes and epochs, not to ranks.

Every cut of the graph then trains on the same masks, and a resumed run draws the same ones again.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from distributed_ignn.device.block_size import block_entries
from distributed_ignn.graph.hashing import fused_node_mask, keep_mask

_BLOCK_ENTRIES = 1 << 18  # on a CPU: hash in blocks that stay in the cache


class Stream(IntEnum):
    """What is drawn with one seed and step; two of a model in one stream would be the same draw."""

    FEATURES = 1
    OUTPUT = 2
    NODES = 3
    INJECTION = 4
    LOCAL = 5
    KIND = 5  # of an explicit model, which takes no local steps
    PENALTY = 6
    LAYERS = 7


class NodeDropout:
    """Inverted dropout on rows that belong to nodes.

    Args:
        probability: of zeroing an entry, in [0, 1).
        stream: see ``Stream``.
    """

    def __init__(self, probability: float, stream: int) -> None:
        self.probability = probability
        self._stream = stream

    def __call__(self, rows: Tensor, seed: int, step: int | None, nodes: Tensor) -> Tensor:
        """Rows [r, D] of the global ``nodes`` [r], entries dropped; as they are without a step."""
        if step is None or self.probability == 0.0:
            return rows
        return rows * self.mask(seed, step, nodes, rows.shape[1]) * self.scale

    def of_nodes(self, rows: Tensor, seed: int, step: int | None, nodes: Tensor) -> Tensor:
        """As a call, with all entries of a node dropped together."""
        if step is None or self.probability == 0.0:
            return rows
        return rows * self.mask(seed, step, nodes, 1) * self.scale

    def mask(self, seed: int, step: int, nodes: Tensor, width: int) -> Tensor:
        """Boolean [len(nodes), width] for global node ids."""
        key = self._key(seed, step)
        fused = fused_node_mask(key, nodes, width, self.probability)
        if fused is not None:
            return fused
        cols = torch.arange(width, device=nodes.device)[None, :]
        rows = max(1, block_entries(nodes.device, _BLOCK_ENTRIES) // max(width, 1))
        blocks = [
            keep_mask(key, block[:, None], cols, self.probability)
            for block in torch.split(nodes, rows)
        ]
        return torch.cat(blocks) if blocks else nodes.new_empty((0, width), dtype=torch.bool)

    def entry_mask(self, seed: int, step: int, rows: Tensor, cols: Tensor) -> Tensor:
        """Boolean per entry for global row ids and column ids, as ``mask`` would have it there."""
        return keep_mask(self._key(seed, step), rows, cols, self.probability)

    @property
    def scale(self) -> float:
        """What kept entries are multiplied by."""
        return 1.0 / (1.0 - self.probability)

    def _key(self, seed: int, step: int) -> int:
        return (seed * 1_000_003 + step) * 16 + self._stream * 2
