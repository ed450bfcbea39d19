"""A heavy-tailed graph with one hub, as graphs of links and of dependencies have them."""

from __future__ import annotations

import numpy as np
import torch

from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges


def hub_graph(nodes: int, hub: int, *, mean_degree: int = 12, seed: int = 0) -> CSRMatrix:
    """Undirected adjacency [n, n]: node 0 has at least ``hub`` neighbours, the others a few.

    One end of every other edge is drawn in proportion to a Pareto weight of exponent 1.3, so that
    there are smaller hubs too.
    """
    rng = np.random.default_rng(seed)
    edges = mean_degree * nodes // 2
    share = np.cumsum(rng.pareto(1.3, nodes) + 1.0)
    drawn = np.searchsorted(share, rng.random(edges) * share[-1])
    spokes = rng.choice(np.arange(1, nodes), hub, replace=False)
    row = np.concatenate([drawn, np.zeros(hub, np.int64)])
    col = np.concatenate([rng.integers(0, nodes, edges), spokes])
    return csr_from_edges(torch.from_numpy(row), torch.from_numpy(col), nodes)


def hub_data(nodes: int, hub: int, *, channels: int = 1, features: int = 8) -> GraphData:
    """The same with features, two classes and splits; further channels are drawn like the first."""
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(nodes)
    return GraphData(
        name="hub",
        graphs=tuple(hub_graph(nodes, hub, seed=seed) for seed in range(channels)),
        features=torch.randn(nodes, features, generator=generator),
        labels=order % 2,
        num_classes=2,
        task="multiclass",
        train_nodes=order[: nodes // 10],
        val_nodes=order[nodes // 10 : nodes // 5],
        test_nodes=order[nodes // 5 :],
    )
