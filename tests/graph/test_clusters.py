"""Clusters of bounded size: what they find, and the order of rows that follows from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distributed_ignn.config import PartitionConfig
from distributed_ignn.graph.data import CSRMatrix, csr_from_edges
from distributed_ignn.graph.partitioning import clusters
from distributed_ignn.graph.partitioning.clusters import (
    bounded_clusters,
    chain_clusters,
    locality_rank,
)
from distributed_ignn.graph.partitioning.partition import assign_parts

GROUPS, SIZE = 12, 20


def chain_of_groups() -> tuple[CSRMatrix, np.ndarray]:
    """Dense groups in a row, each linked with the next by two edges, and the ids shuffled."""
    rng = np.random.default_rng(0)
    place = rng.permutation(GROUPS * SIZE)
    first = np.repeat(np.arange(GROUPS) * SIZE, 120)
    low = first + rng.integers(0, SIZE, first.size)
    high = first + rng.integers(0, SIZE, first.size)
    bridge = np.repeat(np.arange(GROUPS - 1) * SIZE, 2)
    low = np.concatenate([low, bridge + rng.integers(0, SIZE, bridge.size)])
    high = np.concatenate([high, bridge + SIZE + rng.integers(0, SIZE, bridge.size)])
    source, target = (torch.from_numpy(place[side]) for side in (low, high))
    group = np.empty(GROUPS * SIZE, np.int64)
    group[place] = np.arange(GROUPS * SIZE) // SIZE
    return csr_from_edges(source, target, GROUPS * SIZE), group


def test_clusters_are_the_groups() -> None:
    graph, group = chain_of_groups()
    found = bounded_clusters(graph, 2 * SIZE, passes=20, seed=0)
    assert found.dtype == np.int32
    inside = found[graph.rows().numpy()] == found[graph.col.numpy()]
    assert inside.mean() > 0.9
    # few clusters, and hardly any that mixes distant groups
    assert found.max() + 1 <= GROUPS + 4
    for label in range(found.max() + 1):
        assert np.ptp(group[found == label]) <= 2


@pytest.mark.parametrize("limit", [1, 3, SIZE])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_cluster_is_larger_than_allowed(limit: int, seed: int) -> None:
    graph, _ = chain_of_groups()
    found = bounded_clusters(graph, limit, passes=10, seed=seed)
    sizes = np.bincount(found)
    assert sizes.min() >= 1
    assert sizes.max() <= limit
    assert np.array_equal(found, bounded_clusters(graph, limit, passes=10, seed=seed))


def test_nodes_without_edges_stay_alone() -> None:
    none = torch.empty(0, dtype=torch.int64)
    graph = csr_from_edges(none, none, 5)
    assert np.array_equal(bounded_clusters(graph, 3, passes=2, seed=0), np.arange(5))
    assert np.array_equal(np.sort(locality_rank(graph)), np.arange(5))
    assert locality_rank(csr_from_edges(none, none, 0)).size == 0


def test_linked_clusters_are_neighbours_in_the_chain() -> None:
    graph, group = chain_of_groups()
    rank = chain_clusters(graph, group.astype(np.int32))
    assert np.abs(np.diff(rank)).tolist() == [1] * (GROUPS - 1)


def test_locality_shortens_the_way_to_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_CLUSTER_NODES", SIZE)
    graph, _ = chain_of_groups()

    def mean_distance(order: str) -> float:
        plan = assign_parts((graph,), 1, PartitionConfig(method="contiguous", order=order)).plan
        place = torch.empty(graph.num_rows)
        place[plan.owned_nodes[0]] = torch.arange(graph.num_rows, dtype=torch.float32)
        return float((place[graph.rows()] - place[graph.col]).abs().mean())

    assert mean_distance("locality") < 0.3 * mean_distance("id")


def test_order_by_id_is_ascending_in_each_group() -> None:
    graph, _ = chain_of_groups()
    plan = assign_parts((graph,), 3, PartitionConfig(method="random", order="id")).plan
    for nodes, interior in zip(plan.owned_nodes, plan.num_interior, strict=True):
        for group in nodes.tensor_split([interior]):
            assert bool((group.diff() > 0).all())
