"""Directions of edges: one undirected channel, or in- and out-neighbours as two."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import DataConfig, PartitionConfig, RunConfig
from distributed_ignn.distributed_graph import DistributedGraph
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import graph_in_memory, load_dataset
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.storage.manifest import MANIFEST, part_name
from distributed_ignn.graph.storage.request import data_settings
from distributed_ignn.graph.storage.shard_store import (
    find_shards,
    read_manifest,
    read_shard,
    whole_graph,
    write_shards,
)
from distributed_ignn.propagation.propagate import Propagation
from distributed_ignn.runs.memory.budget import budget

N = 6
EDGES = np.array([[0, 1, 1, 2, 3, 4, 4], [1, 0, 2, 3, 4, 3, 4]])  # one loop; two have no way back
CONTIGUOUS = PartitionConfig(method="contiguous")


def _fields(**changes: Any) -> dict[str, Any]:
    split = {"train_idx": [0, 1], "val_idx": [2], "test_idx": [3]}
    return {
        "edge_index": EDGES,
        "x": np.eye(N, 3, dtype=np.float32),
        "y": np.array([0, 1, 0, 1, 0, 1]),
        **{name: np.array(nodes) for name, nodes in split.items()},
        **changes,
    }


def _load(directions: str, **changes: Any) -> GraphData:
    settings = DataConfig.model_validate({"directions": directions})
    return graph_in_memory(_fields(**changes), settings)


def _dense(edges: np.ndarray, weight: np.ndarray | None = None) -> torch.Tensor:
    """Row i: whom node i reads, as messages of PyG go from ``edges[0]`` to ``edges[1]``."""
    found = torch.zeros(N, N, dtype=torch.float64)
    for k, (source, target) in enumerate(edges.T):
        found[target, source] = (1.0 if weight is None else weight[k]) * (source != target)
    return found


@pytest.mark.parametrize("weighted", [False, True])
def test_both_are_the_edges_and_the_edges_turned_round(weighted: bool) -> None:
    weight = np.arange(2.0, 2.0 + EDGES.shape[1]) if weighted else None
    data = _load("both", **({"edge_weight": weight} if weighted else {}))
    assert data.graph_channels == 2
    into, out = (graph.to_dense() for graph in data.graphs)
    assert torch.equal(into, _dense(EDGES, weight))
    assert torch.equal(out, into.T)
    assert data.num_undirected_edges == 4


def test_undirected_is_what_it_was() -> None:
    plain = graph_in_memory(_fields(), DataConfig())
    assert plain.fingerprint() == _load("undirected").fingerprint()
    assert plain.fingerprint() != _load("both").fingerprint()
    (graph,), expected = plain.graphs, _dense(EDGES) + _dense(EDGES[::-1])
    assert torch.equal(graph.to_dense(), expected.clamp_max(1.0))


def test_a_neighbour_graph_comes_after_both() -> None:
    data = graph_in_memory(_fields(), DataConfig(directions="both", knn=1))
    assert (data.graph_channels, len(data.graphs)) == (2, 3)


@pytest.mark.parametrize(
    ("extra", "channels", "said"),
    [
        (0, 2, "33.3 % of the edges have no way back; data.directions = auto: in- and out"),
        (40, 1, "4.3 % of the edges have no way back; data.directions = auto: every edge counts"),
    ],
)
def test_auto_asks_how_many_edges_have_no_way_back(
    extra: int, channels: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of six edges, or of 46 with a clique that has both directions of its own."""
    nodes = np.arange(7)
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    clique = np.stack([first.ravel(), second.ravel()])[:, first.ravel() != second.ravel()] + N
    pairs = clique[:, clique[0] < clique[1]][:, : extra // 2]
    extra_edges = np.concatenate([pairs, pairs[::-1]], axis=1)[:, :extra]
    total = N + 7
    grown = {
        "edge_index": np.concatenate([EDGES, extra_edges], axis=1),
        "x": np.ones((total, 2), np.float32),
        "y": np.arange(total) % 2,
    }
    with caplog.at_level(logging.INFO):
        data = _load("auto", **grown)
    assert (data.graph_channels, len(data.graphs)) == (channels, channels)
    assert said in caplog.text
    same = np.concatenate([EDGES, EDGES[::-1]], axis=1)
    assert _load("auto", edge_index=same).graph_channels == 1
    # a list that names each undirected edge once, its ends in one order
    for once in (np.sort(EDGES, axis=0), np.sort(EDGES, axis=0)[::-1].copy()):
        assert _load("auto", edge_index=once).graph_channels == 1
        assert _load("both", edge_index=once).graph_channels == 2


def test_named_datasets_are_undirected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.directions = both: chains is read as an undirected"):
        load_dataset("chains", tmp_path, DataConfig(directions="both"))
    assert load_dataset("chains", tmp_path, DataConfig(directions="auto")).graph_channels == 1


def test_shards_keep_the_directions(tmp_path: Path) -> None:
    data = _load("both")
    settings = data_settings("f", DataConfig(directions="both"))
    folder = tmp_path / "shards"
    assignment = assign_parts(data.graphs, 2, CONTIGUOUS)
    write_shards(folder, data, assignment, CONTIGUOUS, settings=settings)
    assert read_manifest(folder).whole.graph_channels == 2
    assert all(read_shard(folder, part).graph_channels == 2 for part in range(2))
    merged = whole_graph(folder, read_manifest(folder))
    assert merged.fingerprint() == data.fingerprint()
    plain = data_settings("f", DataConfig())
    assert find_shards(folder, 2, CONTIGUOUS, settings) is not None
    with pytest.raises(UserError, match=r"data\.directions = both, not undirected"):
        find_shards(folder, 2, CONTIGUOUS, plain)


def test_shards_of_undirected_graphs_are_written_as_before(tmp_path: Path) -> None:
    data, settings = _load("undirected"), data_settings("f", DataConfig())
    assignment = assign_parts(data.graphs, 2, CONTIGUOUS)
    write_shards(tmp_path / "s", data, assignment, CONTIGUOUS, settings=settings)
    content = json.loads((tmp_path / "s" / MANIFEST).read_text())
    assert "directions" not in content["settings"]
    assert "graph_channels" not in content["whole"]
    with safe_open(tmp_path / "s" / part_name(0, 2), "pt") as opened:
        assert "graph_channels" not in json.loads(opened.metadata()["shard"])


def test_a_divided_graph_has_both_lists_of_edges() -> None:
    with pytest.warns(UserWarning, match="graph is directed, and the missing directions are added"):
        DistributedGraph.divide(_fields()).close()
    with DistributedGraph.divide(_fields(), directions="both") as graph:
        into, out = graph.edge_indices
        nodes = graph.owned_nodes
        order = [sorted(map(tuple, nodes[index].T.tolist())) for index in (into, out.flip(0))]
    expected = sorted({(int(s), int(t)) for s, t in EDGES.T if s != t})
    assert order == [expected, expected]


def test_a_channel_normalised_by_row_shares_its_columns_with_its_transpose() -> None:
    """Of symmetric entries; the bytes that are held say so."""
    data = graph_in_memory(_fields(), DataConfig())
    (shard,) = build_shards(data, torch.zeros(N, dtype=torch.int64), 1)
    shard = shard.normalised("row")
    propagation = Propagation(shard, Communicator(), torch.float32)
    there, back = propagation.channels[0].owned, propagation._transposes[0].owned
    assert there.parts[0].col.data_ptr() == back.parts[0].col.data_ptr()
    assert torch.equal(there.to_dense().T, back.to_dense())
    sizes = PartSizes.from_shard(shard)

    def graph_bytes(normalisation: str, dtype: str) -> int:
        sections = {"model": {"normalisation": normalisation}, "train": {"dtype": dtype}}
        config = RunConfig.model_validate({"dataset": "chains", "device": "cpu"} | sections)
        return budget(sizes, config)["graph"]

    row, plain = (graph_bytes(how, "float32") for how in ("row", "symmetric"))
    assert row - plain == 4 * N  # one more list of offsets
    row, plain = (graph_bytes(how, "float64") for how in ("row", "symmetric"))
    assert row - plain == 4 * N + 8 * sizes.owned_entries


@pytest.mark.parametrize(
    ("data", "model", "said"),
    [
        ({"directions": "both"}, {}, r"data.directions = both .*use --model.cell ignn or eignn"),
        ({}, {"normalisation": "row"}, r"model.normalisation = row .*--model.cell ignn or eignn"),
    ],
)
def test_a_cell_that_needs_symmetry_is_refused_before_anything_is_read(
    data: dict[str, str], model: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        RunConfig.model_validate(
            {"dataset": "chains", "data": data, "model": {"cell": "mignn", **model}}
        )
