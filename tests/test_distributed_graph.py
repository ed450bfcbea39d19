"""DistributedGraph: opened, divided, summed and gathered, alone and on two ranks."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GATConv
from torch_geometric.utils import coalesce, remove_self_loops, to_undirected

import distributed_ignn as di
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import PartitionConfig
from distributed_ignn.distributed_graph import DistributedGraph
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.storage.shard_store import write_shards
from tests.parity.cases import FEATURES, NODES, make_data
from tests.parity.explicit_cases import divided, rows
from tests.ranks import run_ranks

_SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in two parts of a graph with sparse features."""
    folder = tmp_path_factory.mktemp("shards") / "two"
    data = make_data("plain")
    config = PartitionConfig()
    write_shards(folder, data, assign_parts(data.graphs, 2, config), config)
    return folder


def _seen(graph: DistributedGraph) -> dict[str, Any]:
    """What every cut has to agree on."""
    assert graph.train_index.numel() == 0 or int(graph.train_index.max()) < graph.num_owned
    marks = torch.zeros(graph.num_owned, 3, dtype=torch.bool)
    for column, index in enumerate((graph.train_index, graph.val_index, graph.test_index)):
        marks[index, column] = True
    edges = torch.zeros(NODES, NODES)
    edges[graph.global_edge_index[1], graph.global_edge_index[0]] = 1.0
    owned = torch.arange(graph.num_owned)
    values = graph.rows(rows(1))[owned % 3 == 0]
    return {
        "x": graph.gather(graph.x),
        "y": graph.gather(graph.y),
        "splits": graph.gather(marks),
        "edges": graph.comm.sum(edges),
        "nodes": graph.gather(graph.owned_nodes),
        "sum": graph.sum(graph.rows(rows(1)).sum(0)),
        "count": graph.sum(torch.tensor(float(values.shape[0]))),
        "sizes": (graph.num_nodes, graph.num_features, graph.num_classes),
    }


def _on_rank(comm: Communicator, folder: Path) -> dict[str, Any]:
    data = make_data("plain")
    other = replace(data, labels=data.labels.roll(comm.rank))
    with pytest.raises(UserError, match="ranks 0 and 1 hold different graphs"):
        DistributedGraph.divide(other)
    with pytest.raises(UserError, match="holds no shards"):  # one rank's trouble is that of all
        DistributedGraph.open(folder if comm.rank else folder / "none")
    found = {}
    for name, graph in {
        "opened": DistributedGraph.open(folder, dtype=torch.float64),
        "divided": DistributedGraph.divide(make_data("plain"), dtype=torch.float64),
        "random": DistributedGraph.divide(
            make_data("plain"),
            partition=PartitionConfig(method="random"),
            dtype=torch.float64,
        ),
    }.items():
        assert (graph.rank, graph.world_size) == (comm.rank, 2)
        found[name] = _seen(graph)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        di.nn.exact(GATConv(FEATURES, 2, dropout=0.6), graph)
    lines = [str(each.message).partition(":")[0] for each in told]
    assert lines == ["GATConv.dropout = 0.6"][comm.rank :]
    assert all(each.filename == __file__ for each in told)
    return found | {"shares": _shares(DistributedGraph.open(folder))}


def _shares(graph: DistributedGraph) -> dict[str, Any]:
    """A loss with rows on rank 0 alone, a penalty, and a parameter that nobody uses."""
    weight, unused, lone = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    values = weight[0] * torch.arange(4.0)[: 4 if graph.rank == 0 else 0]
    loss = graph.mean(values) + graph.once(weight.square().sum())
    if graph.rank == graph.world_size - 1:
        loss = loss + 0.0 * lone.sum()
    loss.backward()
    graph.sum_gradients([weight, unused, lone])
    return {"loss": float(loss.detach()), "grads": [weight.grad, unused.grad, lone.grad]}


def test_two_ranks_hold_the_graph_between_them(folder: Path) -> None:
    data = make_data("plain")
    assert isinstance(data.features, CSRMatrix)
    whole: dict[str, Tensor] = {
        "x": data.features.to_dense(),
        "y": data.labels,
        "edges": data.graphs[0].to_dense(torch.float32),
        "nodes": torch.arange(NODES),
        "sum": rows(1).sum(0),
    }
    alone = _seen(DistributedGraph.open(folder, dtype=torch.float64))  # merged
    ranks = run_ranks(_on_rank, 2, folder, timeout=90)
    for report in [{"alone": alone}, *ranks]:
        for name in set(report) - {"shares"}:
            for key, value in whole.items():
                torch.testing.assert_close(report[name][key], value, rtol=1e-12, atol=1e-12)
            assert torch.equal(report[name]["splits"], alone["splits"])
            assert report[name]["sizes"] == (NODES, FEATURES, 3)
    assert alone["splits"].sum(0).tolist() == [20, 20, 20]
    one = _shares(DistributedGraph.open(folder))
    assert one["loss"] == pytest.approx(1.5 + 2.0)
    for report in ranks:
        assert report["shares"]["loss"] == pytest.approx(one["loss"])
        weight, unused, lone = report["shares"]["grads"]
        torch.testing.assert_close(weight, one["grads"][0])
        assert unused is None
        assert lone.tolist() == [0.0, 0.0]


def test_a_graph_in_memory_is_divided() -> None:
    edges = torch.randint(0, 40, (2, 120), generator=torch.Generator().manual_seed(0))
    edges = coalesce(to_undirected(remove_self_loops(edges)[0]))
    masks = {f"{name}_mask": torch.arange(40) % 3 == i for i, name in enumerate(_SPLITS)}
    x = rows(1)[:40]
    data = Data(x=x.float(), edge_index=edges, y=torch.arange(40) % 4, **masks)
    layer = GATConv(x.shape[1], 3).double()
    expected = layer(data.x.double(), edges)
    with di.DistributedGraph.divide(data, dtype=torch.float64) as graph:
        found = graph.gather(di.nn.exact(layer, graph)(graph.x, graph.edge_index))
        assert graph.gather(graph.y).tolist() == data.y.tolist()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match="data is a list"):
        di.DistributedGraph.divide([1, 2])


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no shards"):
        DistributedGraph.open(tmp_path)
    graph = divided("embedding", Communicator())
    with pytest.raises(UserError, match="has no features"):
        _ = graph.x
    with pytest.raises(UserError, match="59 rows given, the graph has 60 nodes"):
        graph.rows(torch.zeros(59, 2))
    with pytest.raises(UserError, match="gather was given 59 rows"):
        graph.gather(torch.zeros(59, 2))
    with pytest.raises(UserError, match="a mean of no values on any rank"):
        graph.mean(torch.zeros(0))


def test_parts_that_differ_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[str] = []  # of the graph, then of its parts

    def gathered(_: Communicator, value: Any) -> list[Any]:
        if not isinstance(value, str):
            return [value]
        digests.append(value)
        return [value, value if len(digests) == 1 else "another"]

    monkeypatch.setattr(Communicator, "gather_json", gathered)
    with pytest.raises(UserError, match="with ignn partition, and open the shards"):
        DistributedGraph.divide(make_data("plain"))


def test_it_is_left_at_the_end_of_a_block(folder: Path) -> None:
    with DistributedGraph.open(folder, device="cpu") as graph:
        assert str(graph) == repr(graph)
        assert graph.x.dtype is torch.get_default_dtype()
        assert graph.device.type == "cpu"
