"""Features of a rank's nodes on its device, sparse or dense, with their dropout."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from distributed_ignn.graph.data import CSRMatrix, transpose
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.models.dropout import NodeDropout, Stream
from distributed_ignn.models.terms import sum_of_products
from distributed_ignn.propagation.propagate import INDEX_BYTES
from distributed_ignn.propagation.sparse import SparseMatrix, sparse_linear


class FeatureRows(Protocol):
    """Who has features of its nodes; a shard does."""

    @property
    def features(self) -> CSRMatrix | Tensor | None:
        """[O, F]."""
        ...

    @property
    def owned_nodes(self) -> Tensor:
        """Global ids, int64 [O]."""
        ...

    @property
    def name(self) -> str:
        """Of the whole dataset, for messages."""
        ...


class FeatureStore:
    """This rank's features on the device, sparse or dense, with their dropout.

    Sparse features stay sparse up to the first dense product; dropping an entry of a sparse row
    zeroes its stored value.

    Args:
        shard: whose features are kept, or whoever else has some.
        dtype, device: of the stored values.
        drop: probability of dropping an entry, in [0, 1).
        seed: of the masks.
        node_drop: probability of dropping all entries of a node (GRAND's DropNode, Feng et al.
            2020, section 3.1), in [0, 1).

    Raises:
        ValueError: the dataset has no features.
    """

    def __init__(
        self,
        shard: FeatureRows,
        dtype: torch.dtype,
        device: torch.device,
        drop: float,
        seed: int,
        node_drop: float = 0.0,
    ) -> None:
        self._dropout = NodeDropout(drop, Stream.FEATURES)
        self._node_dropout = NodeDropout(node_drop, Stream.NODES)
        self._seed = seed
        self._nodes = shard.owned_nodes.to(device)
        self._dense: Tensor | None = None
        if isinstance(shard.features, CSRMatrix):
            self._load_sparse(shard.features, dtype, device)
        elif shard.features is not None:
            self._dense = shard.features.to(device, dtype)
        else:
            raise ValueError(f"dataset {shard.name} has no features; use NodeEmbedding")

    def _load_sparse(self, features: CSRMatrix, dtype: torch.dtype, device: torch.device) -> None:
        self._matrix = SparseMatrix.from_csr(features, dtype, device)
        flipped, order = transpose(features)
        there = None if features.value is None else features.value[order]
        flipped = replace(flipped, value=there)
        self._flipped = SparseMatrix.from_csr(flipped, dtype, device)
        value = torch.ones(features.num_entries) if features.value is None else features.value
        self._values = value.to(device, dtype)
        self._order = order.to(device)
        self._owned_rows = features.rows().to(device)
        self._rows = self._nodes[self._owned_rows]
        self._cols = features.col.to(device)

    @staticmethod
    def held_bytes(sizes: PartSizes, item: int, on_gpu: bool) -> int:
        """Bytes of what is made of X beside the shard's own array."""
        entries = sizes.feature_entries
        if entries is None:
            return sizes.owned * sizes.features * item if item == 8 or on_gpu else 0
        # both directions, the order of the transposed entries, their rows, nodes and columns
        return entries * (2 * (INDEX_BYTES + item) + 4 * 8)

    @property
    def stored(self) -> Tensor:
        """X [O, F], or its stored entries [E], without dropout."""
        return self._values if self._dense is None else self._dense

    @property
    def dense(self) -> Tensor | None:
        """X [O, F] without dropout; None where it is sparse."""
        return self._dense

    def linear(self, weight: Tensor, step: int | None) -> Tensor:
        """X @ weight [O, D], differentiable; ``step`` None means no dropout.

        In ``weight`` always, in X where it is dense and asks for a gradient.
        """
        if self._dense is not None:
            dropped = self._dropped_dense(self._dense, step)
            if dropped.requires_grad:
                return dropped @ weight
            return sum_of_products([dropped], [weight], None)
        value = self._dropped_entries(step)
        if value is None:
            return sparse_linear(self._matrix, self._flipped, weight)
        return sparse_linear(
            self._matrix.with_values(value), self._flipped.with_values(value[self._order]), weight
        )

    def _dropped_entries(self, step: int | None) -> Tensor | None:
        """The stored entries [E] as training sees them, or None where nothing is dropped."""
        entries, nodes = self._dropout, self._node_dropout
        if step is None or entries.probability == nodes.probability == 0.0:
            return None
        value = self._values
        if entries.probability > 0.0:
            keep = entries.entry_mask(self._seed, step, self._rows, self._cols)
            value = value * keep * entries.scale
        if nodes.probability > 0.0:
            value = value * self._kept_nodes(step)[self._owned_rows] * nodes.scale
        return value

    def _kept_nodes(self, step: int) -> Tensor:
        """Boolean per owned row [O]."""
        return self._node_dropout.mask(self._seed, step, self._nodes, 1)[:, 0]

    def _dropped_dense(self, features: Tensor, step: int | None) -> Tensor:
        features = self._dropout(features, self._seed, step, self._nodes)
        return self._node_dropout.of_nodes(features, self._seed, step, self._nodes)
