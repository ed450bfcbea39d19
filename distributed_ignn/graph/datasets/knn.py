"""Cosine k-nearest-neighbour graph of the features, the second propagation channel.

Computed in blocks of rows, so that memory stays bounded; time grows with n squared, hence the
limit on n. Letters: n nodes, F features, k neighbours.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges

logger = logging.getLogger(__name__)

MAX_NODES = 200_000
_BLOCK_BYTES = 64 * 2**20


def add_knn_channel(data: GraphData, k: int) -> GraphData:
    """``data`` with the cosine k-nearest-neighbour graph of its features as one more channel.

    Raises:
        UserError: no features, k outside 1..n-1, or more than MAX_NODES nodes.
    """
    if data.features is None:
        raise UserError(
            f"data.knn = {k} links nodes of like features, and {data.name} has no features; set "
            "data.knn to 0, or choose another model.kind if it is amgcn, which needs them"
        )
    if data.num_nodes > MAX_NODES:
        raise UserError(
            f"data.knn: {data.num_nodes:,} nodes are too many for the exact neighbour search (at "
            f"most {MAX_NODES:,}); set data.knn to 0"
        )
    logger.info("searching %d nearest neighbours of %d nodes", k, data.num_nodes)
    graph = cosine_knn(data.features, k)
    return dataclasses.replace(data, graphs=(*data.graphs, graph))


def cosine_knn(features: CSRMatrix | Tensor, k: int) -> CSRMatrix:
    """Each node linked with its ``k`` most similar others; symmetric [n, n], no self-loops.

    Nodes whose features are all zero choose nobody, and nobody is chosen at a similarity of 0 or
    less, so a node may have fewer than k neighbours. Ties go to the smaller id.

    Raises:
        UserError: k outside 1..n-1.
    """
    unit = _unit_rows(features)
    n = unit.shape[0]
    if not 1 <= k < n:
        raise UserError(
            f"data.knn: {k} neighbours are not possible among {n} nodes; use 1..{n - 1}"
        )
    transposed = unit.T.tocsr() if sp.issparse(unit) else unit.T
    step = max(1, _BLOCK_BYTES // (8 * n))
    sources, targets = [], []
    for start in range(0, n, step):
        block = unit[start : start + step] @ transposed
        similar = block.toarray() if sp.issparse(block) else block
        rows, neighbours = _best(similar, k, start)
        sources.append(rows)
        targets.append(neighbours)
    source = torch.from_numpy(np.concatenate(sources))
    return csr_from_edges(source, torch.from_numpy(np.concatenate(targets)), n)


def _best(similar: np.ndarray, k: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    rows, n = np.arange(similar.shape[0]), similar.shape[1]
    # Rounding makes equal similarities differ in the last bits, and ties would then depend on the
    # block size: rank by six decimals first and by id second.
    rank = np.rint(similar * 1e6).astype(np.int64)
    rank[rows, start + rows] = -(10**7)
    rank = rank * n - np.arange(n)
    best = np.argpartition(rank, n - k, axis=1)[:, n - k :]
    chosen = np.take_along_axis(rank, best, axis=1) > 0
    return (start + rows).repeat(chosen.sum(1)), best[chosen]


def _unit_rows(features: CSRMatrix | Tensor) -> Any:
    if isinstance(features, Tensor):
        return torch.nn.functional.normalize(features.float(), dim=1).numpy()
    value = torch.ones(features.num_entries) if features.value is None else features.value.float()
    shape = (features.num_rows, features.num_cols)
    matrix = sp.csr_array((value.numpy(), features.col.numpy(), features.rowptr.numpy()), shape)
    norm = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sp.diags_array(1.0 / np.maximum(norm, np.finfo(np.float32).tiny)) @ matrix
