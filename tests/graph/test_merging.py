"""Shards put together again are the graph they were cut from, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.partitioning.merging import merge_shards
from distributed_ignn.graph.partitioning.sharding import build_shards
from tests.parity.cases import CASES, NODES, assign, make_data


def _merged(data: GraphData, parts: int) -> GraphData:
    return merge_shards(list(build_shards(data, assign(data.name, parts), parts)))


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_merging_is_the_inverse_of_cutting(case: str, parts: int) -> None:
    data = make_data(case)
    merged = _merged(data, parts)
    assert merged.fingerprint() == data.fingerprint()
    assert merged.name == data.name
    assert merged.num_features == data.num_features
    if data.clusters is None:
        assert merged.clusters is None
    else:
        assert merged.clusters is not None
        assert torch.equal(merged.clusters, data.clusters)


def test_several_labels_a_node_and_features_without_values_survive() -> None:
    data = make_data("awkward")
    assert isinstance(data.features, CSRMatrix)
    changed = replace(
        data,
        labels=(torch.rand(NODES, 3) > 0.5).float(),
        task="multilabel",
        features=replace(data.features, value=None),
    )
    merged = _merged(changed, 4)
    assert merged.fingerprint() == changed.fingerprint() != data.fingerprint()
    assert isinstance(merged.features, CSRMatrix)
    assert merged.features.value is None


def test_a_lost_edge_is_noticed() -> None:
    """The comparison above sees a single missing entry."""
    data = make_data("plain")
    graph = data.graphs[0]
    row = graph.rows()
    keep = torch.ones(graph.num_entries, dtype=torch.bool)
    keep[7] = False
    rowptr = torch.zeros_like(graph.rowptr)
    torch.cumsum(torch.bincount(row[keep], minlength=NODES), 0, out=rowptr[1:])
    smaller = replace(data, graphs=(CSRMatrix(rowptr, graph.col[keep], None, NODES),))
    assert _merged(smaller, 2).fingerprint() != data.fingerprint()
