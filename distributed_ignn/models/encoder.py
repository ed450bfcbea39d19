"""The injection b(X) = X Omega_1 + A_hat X Omega_2 + bias, or an embedding per node.

Letters: O owned nodes, F features, D hidden width, E stored feature entries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distributed_ignn.config import ModelConfig
from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.hashing import hash_uniform
from distributed_ignn.graph.propagate import Propagation
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.sparse import SparseMatrix, sparse_linear, transpose
from distributed_ignn.models.dropout import NodeDropout

_INPUT_STREAM = 1


class FeatureStore:
    """This rank's features on the device, sparse or dense, with their dropout.

    Sparse features stay sparse up to the first dense product; dropping an entry of a sparse row
    zeroes its stored value.
    """

    def __init__(
        self, shard: GraphShard, dtype: torch.dtype, device: torch.device, drop: float, seed: int
    ) -> None:
        self._dropout = NodeDropout(drop, _INPUT_STREAM)
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
        self._flipped = SparseMatrix.transposed(features, dtype, device)
        self._order = transpose(features)[1].to(device)
        self._rows = self._nodes[features.rows().to(device)]
        self._cols = features.col.to(device)

    def linear(self, weight: Tensor, step: int | None) -> Tensor:
        """X @ weight [O, D], differentiable in ``weight``; ``step`` None means no dropout."""
        active = step is not None and self._dropout.probability > 0.0
        if self._dense is not None:
            return (
                self._dropped_dense(step) if active and step is not None else self._dense
            ) @ weight
        if not active or step is None:
            return sparse_linear(self._matrix, self._flipped, weight)
        keep = self._dropout.entry_mask(self._seed, step, self._rows, self._cols)
        value = self._matrix.csr.values() * keep * self._dropout.scale
        return sparse_linear(
            self._matrix.with_values(value), self._flipped.with_values(value[self._order]), weight
        )

    def _dropped_dense(self, step: int) -> Tensor:
        if self._dense is None:
            raise ValueError("the features are sparse")
        mask = self._dropout.mask(self._seed, step, self._nodes, self._dense.shape[1])
        return self._dense * mask * self._dropout.scale


class FeatureEncoder(nn.Module):
    """b(X) from features; either propagation term can be switched off (``injection``)."""

    def __init__(
        self, store: FeatureStore, num_features: int, config: ModelConfig, propagation: Propagation
    ) -> None:
        super().__init__()
        self._store = store
        self._propagation = propagation
        own, spread = config.injection != "propagated", config.injection != "features"
        width = config.hidden
        channels = propagation.num_channels if spread else 0
        self.own = nn.Parameter(_glorot(num_features, width)) if own else None
        self.spread = nn.ParameterList(_glorot(num_features, width) for _ in range(channels))
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias else None

    def forward(self, step: int | None) -> Tensor:
        """b [O, D]; ``step`` seeds the input dropout, None switches it off."""
        own = [] if self.own is None else [self.own]
        weights = torch.cat([*own, *self.spread], dim=1)
        columns = self._store.linear(weights, step).tensor_split(len(own) + len(self.spread), dim=1)
        terms = list(columns[: len(own)])
        if len(self.spread):
            terms += self._propagation(columns[len(own) :])
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total if self.bias is None else total + self.bias


class NodeEmbedding(nn.Module):
    """A learned row per owned node, for graphs without features; each rank holds its own rows.

    Initial values are a hash of (seed, global node id, column), so they do not depend on the cut.
    """

    def __init__(self, shard: GraphShard, config: ModelConfig, seed: int) -> None:
        super().__init__()
        columns = torch.arange(config.hidden)[None, :]
        ids = shard.owned_nodes[:, None]
        # Box-Muller: two uniforms make a standard normal
        radius = torch.sqrt(-2.0 * torch.log1p(-hash_uniform(seed * 2 + 11, ids, columns)))
        angle = 2.0 * math.pi * hash_uniform(seed * 2 + 12, ids, columns)
        start = radius * torch.cos(angle) / math.sqrt(config.hidden)
        self.rows = nn.Parameter(start.to(torch.get_default_dtype()))

    def forward(self, step: int | None) -> Tensor:
        """The embedding [O, D]; there is no input to drop."""
        return self.rows


def _glorot(rows: int, cols: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(rows, cols))
