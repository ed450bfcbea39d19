"""Fennel: balanced parts, few cut edges, no METIS."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distributed_ignn.config import DataConfig, PartitionConfig, SyntheticConfig
from distributed_ignn.graph.data import CSRMatrix, csr_from_edges
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.datasets.synthetic import make_products
from distributed_ignn.graph.partitioning import metis
from distributed_ignn.graph.partitioning.partition import Assignment, assign_parts

needs_pymetis = pytest.mark.skipif(
    not metis.is_installed("pymetis"), reason="pymetis is not installed"
)


def divide(graphs: tuple[CSRMatrix, ...], parts: int, method: str = "fennel") -> Assignment:
    return assign_parts(graphs, parts, PartitionConfig(method=method, objective="cut", order="id"))


def cut(found: Assignment) -> float:
    return found.stats.cut_entries / found.stats.entries


@pytest.fixture(scope="module")
def products() -> tuple[CSRMatrix, ...]:
    return make_products(SyntheticConfig(scale=0.01)).graphs


@needs_pymetis
@pytest.mark.parametrize(("parts", "factor"), [(2, 2.5), (8, 1.6)])
def test_cut_of_nested_communities_is_near_that_of_metis(
    products: tuple[CSRMatrix, ...], parts: int, factor: float
) -> None:
    found = divide(products, parts)
    assert (found.provider, found.objective) == ("fennel", "cut")
    assert cut(found) < factor * cut(divide(products, parts, "metis"))
    assert cut(found) < 0.5 * cut(divide(products, parts, "random"))
    assert found.stats.node_balance < 1.2
    assert found.stats.entry_balance < 1.2
    assert found.stats.empty_parts == 0


@needs_pymetis
@pytest.mark.parametrize("parts", [2, 4])
def test_cut_of_a_real_graph_is_near_that_of_metis(shared_data: Path, parts: int) -> None:
    graphs = load_dataset("acm", shared_data, DataConfig()).graphs
    assert cut(divide(graphs, parts)) < 2.5 * cut(divide(graphs, parts, "metis"))


def test_directed_graphs_are_divided_without_metis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metis, "is_installed", lambda module: False)
    source = torch.arange(199)
    graph = csr_from_edges(source, source + 1, 200, symmetric=False)
    found = divide((graph,), 4)
    assert cut(found) < 0.3
    assert torch.bincount(found.part, minlength=4).max() < 80
    assert torch.equal(found.part, divide((graph,), 4).part)


def test_graphs_without_edges_are_divided_evenly() -> None:
    none = torch.empty(0, dtype=torch.int64)
    found = divide((csr_from_edges(none, none, 40),), 4)
    assert torch.bincount(found.part, minlength=4).tolist() == [10] * 4
