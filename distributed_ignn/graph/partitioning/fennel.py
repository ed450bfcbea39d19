"""Fennel: division of a graph that METIS has no room for, streaming over its rows.

Fennel (Tsourakakis et al., WSDM 2014) gives a node to the part p that has most of its neighbours,
less what one more node adds to the cost alpha * load_p^1.5; restreaming (Nishimura and Ugander, KDD
2013) repeats that with all other nodes placed. Here whole clusters of label propagation are placed
first, so that the stream sees more than single nodes, and nodes afterwards. Beyond the graph, which
may lie on disk, it needs O(n P) memory. Letters: n nodes, P parts, K clusters.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed_ignn.graph.building import positions
from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.partitioning.clusters import (
    bounded_clusters,
    chain_clusters,
    quotient_graph,
)

#: Clusters a part at least, so that they can be balanced.
_CLUSTERS_PER_PART = 16
_CLUSTER_NODES = 2_000
_CLUSTER_PASSES = 10
_STREAMS = 10
_BLOCKS = 16
_BLOCK_ENTRIES = 4_000_000
_GAMMA = 1.5


def fennel(graph: CSRMatrix, parts: int, weights: Tensor, *, imbalance: float, seed: int) -> Tensor:
    """Part of every node, int64 [n].

    Args:
        graph: adjacency [n, n], directed or not.
        parts: P.
        weights: int64 [n], at least 1; what every part gets an equal share of.
        imbalance: largest part over the mean part; a single heavy cluster may exceed it.
        seed: of the order of the stream.
    """
    weight = weights.numpy().astype(np.float64)
    limit = imbalance * weight.sum() / parts
    nodes = max(min(_CLUSTER_NODES, graph.num_rows // (_CLUSTERS_PER_PART * parts)), 1)
    cluster = bounded_clusters(graph, nodes, passes=_CLUSTER_PASSES, seed=seed)
    part = _place_clusters(graph, cluster, weight, parts, limit)[cluster]
    rng = np.random.default_rng([seed, 8])
    for _ in range(_STREAMS):
        if _restream(graph, part, weight, parts, limit, rng) < graph.num_rows // 1000:
            break
    return torch.from_numpy(part.astype(np.int64))


def _price(load: NDArray[np.float64], links: float, total: float) -> NDArray[np.float64]:
    """What one more unit of weight costs in every part, in links: the derivative of the cost."""
    alpha = np.sqrt(load.size) * links / total**_GAMMA
    return alpha * _GAMMA * load ** (_GAMMA - 1.0)


def _place_clusters(
    graph: CSRMatrix,
    cluster: NDArray[np.int32],
    weight: NDArray[np.float64],
    parts: int,
    limit: float,
) -> NDArray[np.int32]:
    """Part of every cluster, int32 [K]: streamed once along the chain of clusters, then again."""
    count = int(cluster.max()) + 1
    links = quotient_graph(graph, cluster, count)
    links = (links + links.T).tocsr()
    mass = np.bincount(cluster, weight, minlength=count).astype(np.float64)
    order = np.argsort(chain_clusters(graph, cluster))
    part = np.full(count, -1, np.int32)
    load = np.zeros(parts)
    total_links = float(links.sum()) / 2
    for _ in range(_STREAMS):
        moved = 0
        for node in order:
            before = part[node]
            if before >= 0:
                load[before] -= mass[node]
            ends = slice(links.indptr[node], links.indptr[node + 1])
            near = part[links.indices[ends]]
            votes = np.bincount(near[near >= 0], links.data[ends][near >= 0], minlength=parts)
            score = votes - mass[node] * _price(load, total_links, mass.sum())
            fits = load + mass[node] <= limit
            best = int(np.argmax(np.where(fits, score, -np.inf))) if fits.any() else load.argmin()
            part[node] = best
            load[best] += mass[node]
            moved += best != before
        if moved <= count // 100:
            break
    return part


def _restream(
    graph: CSRMatrix,
    part: NDArray[np.int32],
    weight: NDArray[np.float64],
    parts: int,
    limit: float,
    rng: np.random.Generator,
) -> int:
    """Let every node choose again, a block at a time; changes ``part`` and returns the moves."""
    rowptr, col = graph.rowptr.numpy(), graph.col.numpy()
    load: NDArray[np.float64] = np.bincount(part, weight, minlength=parts).astype(np.float64)
    blocks = max(_BLOCKS, graph.num_entries // _BLOCK_ENTRIES + 1)
    moved = 0
    for nodes in np.array_split(rng.permutation(graph.num_rows), blocks):
        count = rowptr[nodes + 1] - rowptr[nodes]
        slot = np.repeat(np.arange(nodes.size) * parts, count)
        slot += part[col[positions(rowptr, nodes)]]
        votes = np.bincount(slot, minlength=nodes.size * parts).reshape(-1, parts)
        score = votes - np.outer(weight[nodes], _price(load, graph.num_entries, weight.sum()))
        wanted = score.argmax(1).astype(np.int32)
        own = part[nodes]
        gain = np.take_along_axis(score, np.stack([wanted, own], 1), 1) @ [1.0, -1.0]
        for p in range(parts):
            coming = np.flatnonzero((wanted == p) & (own != p))
            coming = coming[np.argsort(-gain[coming], kind="stable")]
            coming = coming[load[p] + np.cumsum(weight[nodes[coming]]) <= limit]
            part[nodes[coming]] = p
            moved += coming.size
        load = np.bincount(part, weight, minlength=parts).astype(np.float64)
    return moved
