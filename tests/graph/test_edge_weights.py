"""Weights from a file of one's own to its shards and parts; other graphs stay as they were."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import sparse

from distributed_ignn.config import DataConfig, PartitionConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning import metis
from distributed_ignn.graph.partitioning.link_weights import link_weights
from distributed_ignn.graph.partitioning.partition import assign_clusters, assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shard, build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.storage import manifest as manifests
from distributed_ignn.graph.storage.request import data_settings, partition_request
from distributed_ignn.graph.storage.shard_file import read_shard_file, write_shard_file
from distributed_ignn.graph.storage.shard_store import (
    find_shards,
    prepare_shards,
    read_manifest,
    read_shard,
    write_shards,
)
from tests.graph.test_shard_store import assert_same
from tests.parity.cases import NODES, make_data

# PyTorch Geometric compiles a class on import in a way that newer torch versions deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

N = 5
# 0 - 1 - 2 and 3 - 4, both directions, and a self-loop
EDGES = np.array([[0, 1, 1, 2, 3, 4, 2], [1, 0, 2, 1, 4, 3, 2]])
WEIGHT = np.array([2.0, 2.0, 0.5, 0.5, 3.0, 3.0, 7.0])
CONTIGUOUS = PartitionConfig(method="contiguous")
CUT = PartitionConfig(objective="cut", edge_weights=True)

needs_pymetis = pytest.mark.skipif(
    not metis.is_installed("pymetis"), reason="pymetis is not installed"
)


def _arrays(**changes: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "edge_index": EDGES,
        "x": np.eye(N, dtype=np.float32),
        "y": np.array([0, 1, 2, 1, -1]),
        **{f"{split}_idx": np.array([k]) for k, split in enumerate(("train", "val", "test"))},
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def _load(folder: Path, how: str = "auto", **changes: Any) -> GraphData:
    path = folder / "mine.npz"
    np.savez(path, **_arrays(**changes))
    return load_dataset(str(path), folder, DataConfig.model_validate({"edge_weights": how}))


def _expected(edges: np.ndarray = EDGES, weight: np.ndarray = WEIGHT) -> np.ndarray:
    dense = np.zeros((N, N))
    np.add.at(dense, (edges[1], edges[0]), weight)
    np.fill_diagonal(dense, 0.0)
    return dense


def _dense(data: GraphData) -> np.ndarray:
    return data.graphs[0].to_dense().numpy()


# Files


@pytest.mark.parametrize("key", ["edge_weight", "edge_attr"])
@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_weights_of_an_npz_are_used_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, shape: tuple[int, ...]
) -> None:
    with caplog.at_level(logging.INFO):
        weights: dict[str, Any] = {key: WEIGHT.reshape(shape)}
        data = _load(tmp_path, **weights)
    assert np.array_equal(_dense(data), _expected())
    assert f"edges are weighted by {key} (--data.edge-weights ignore goes without)" in caplog.text
    assert "1 self-loops are left out" in caplog.text
    assert "directed" not in caplog.text


@pytest.mark.parametrize("form", ["data", "dictionary"])
def test_weights_of_a_data_object_are_used(tmp_path: Path, form: str) -> None:
    from torch_geometric.data import Data

    tensors = {k: torch.from_numpy(v) for k, v in _arrays(edge_weight=WEIGHT).items()}
    content = Data(**tensors)
    torch.save(content if form == "data" else content.to_dict(), tmp_path / "mine.pt")
    data = load_dataset(str(tmp_path / "mine.pt"), tmp_path, DataConfig(edge_weights="use"))
    assert np.array_equal(_dense(data), _expected())


def test_a_row_of_compressed_rows_reads_its_columns(tmp_path: Path) -> None:
    """As scipy has it, ``A @ x``; an edge_index is read as PyG's messages go."""
    matrix = sparse.csr_array(_expected())
    matrix.data[0] = 9.0  # from 1 to 0
    parts = {"indptr": matrix.indptr, "indices": matrix.indices, "data": matrix.data}
    data = _load(tmp_path, edge_index=None, **parts)
    assert np.array_equal(_dense(data), matrix.toarray())
    coo = matrix.tocoo()
    again = _load(tmp_path, edge_index=np.stack([coo.col, coo.row]), edge_weight=coo.data)
    assert np.array_equal(_dense(again), matrix.toarray())


def test_values_beside_an_edge_index_are_nobody_s_weights(tmp_path: Path) -> None:
    plain = _load(tmp_path)
    assert _load(tmp_path, data=np.ones((2, 2))).fingerprint() == plain.fingerprint()


def test_edge_weight_comes_before_edge_attr(tmp_path: Path) -> None:
    data = _load(tmp_path, edge_weight=WEIGHT, edge_attr=np.ones((7, 4)))
    assert np.array_equal(_dense(data), _expected())


def test_a_missing_direction_gets_the_weight_and_two_that_differ_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = EDGES[:, ::2]
    with caplog.at_level(logging.INFO):
        data = _load(tmp_path, edge_index=half, edge_weight=WEIGHT[::2])
    assert np.array_equal(_dense(data), _expected())
    assert "the graph is directed, and the missing directions are added" in caplog.text
    caplog.clear()
    uneven = np.array([2.0, 5.0, 0.5, 0.5, 3.0, 3.0, 7.0])
    with caplog.at_level(logging.INFO):
        data = _load(tmp_path, edge_weight=uneven)
    assert np.array_equal(_dense(data), _expected(weight=uneven))
    assert "two directions of different weight; both are kept" in caplog.text
    assert "missing directions are added" not in caplog.text


def test_zeros_are_no_edges_and_said_to_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weight = np.where(np.arange(7) < 2, 0.0, WEIGHT)
    with caplog.at_level(logging.INFO):
        data = _load(tmp_path, edge_weight=weight)
    assert data.graphs[0].num_entries == 4
    assert "2 edges of weight 0 are left out" in caplog.text


def test_weights_can_be_ignored_whatever_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = _load(tmp_path)
    for weight in (WEIGHT, np.full(7, np.nan), np.ones((7, 3)), np.array(["a"] * 7)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            data = _load(tmp_path, "ignore", edge_weight=weight)
        assert "edge_weight is ignored, every edge weighs 1" in caplog.text
        assert data.fingerprint() == plain.fingerprint()


def test_weights_of_one_are_the_graph_without_weights(tmp_path: Path) -> None:
    assert _load(tmp_path, edge_weight=np.ones(7)).fingerprint() == _load(tmp_path).fingerprint()
    assert _load(tmp_path, "use", edge_weight=np.ones(7)).graphs[0].value is None


def test_weights_that_must_be_there_are_missed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"edge_weights = use and .*mine.npz has no weights"):
        _load(tmp_path, "use")
    with pytest.raises(UserError, match="the edges of chains have no weights"):
        load_dataset("chains", tmp_path, DataConfig(edge_weights="use"))


def test_the_neighbour_channel_has_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **_arrays(edge_weight=WEIGHT, x=np.random.default_rng(0).random((N, 3))))
    data = load_dataset(str(path), tmp_path, DataConfig(knn=2))
    assert [graph.value is None for graph in data.graphs] == [False, True]


# Shards


def _shards(folder: Path, data: GraphData, parts: int = 3) -> list[GraphShard]:
    """As they are read from ``folder``."""
    assignment = assign_parts(data.graphs, parts, CONTIGUOUS)
    write_shards(folder, data, assignment, CONTIGUOUS, settings=data_settings("f", DataConfig()))
    expected = [build_shard(data, assignment.plan, part) for part in range(parts)]
    found = [read_shard(folder, part) for part in range(parts)]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    return found


@pytest.mark.parametrize("case", ["weights", "lopsided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_shards_survive_the_disk(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    data = make_data(case)
    graph = data.graphs[0]
    assert graph.value is not None
    data = replace(data, graphs=(replace(graph, value=graph.value.to(dtype)), *data.graphs[1:]))
    for shard in _shards(tmp_path / "shards", data):
        channel = shard.channels[0]
        assert channel.owned.value is not None
        assert channel.boundary.value is not None
        assert channel.owned.value.dtype == channel.boundary.value.dtype == dtype
        assert channel.degree_owned.dtype == channel.degree_halo.dtype == torch.float64
        degree = data.graphs[0].row_sums()
        assert torch.equal(channel.degree_owned, degree[shard.owned_nodes])
        assert torch.equal(channel.degree_halo, degree[shard.halo_nodes])
        assert channel.symmetric == (case == "weights")
        assert [other.weighted for other in shard.channels[1:]] == [False] * (len(data.graphs) - 1)


def test_an_empty_part_of_a_weighted_graph_survives_the_disk(tmp_path: Path) -> None:
    shards = _shards(tmp_path / "shards", make_data("weights"), NODES + 3)
    assert any(shard.num_owned == 0 for shard in shards)


def test_only_weighted_shards_differ_from_the_form_before(tmp_path: Path) -> None:
    for case, weighted in (("plain", False), ("weights", True)):
        folder = tmp_path / case
        _shards(folder, make_data(case))
        content = json.loads((folder / manifests.MANIFEST).read_text())
        assert content["version"] == (3 if weighted else 2)
        assert ("weighted" in content["whole"]) == weighted
        assert ({"weight", "cut_weight"} <= content["statistics"].keys()) == weighted
        assert "edge_weights" not in content["settings"] | content["request"]
        with safe_open(folder / manifests.part_name(0, 3), "pt") as opened:
            assert ("weighted" in json.loads(opened.metadata()["shard"])) == weighted
            names = list(opened.keys())
        assert ("channel0.owned.value" in names) == weighted
        assert ("channel0.boundary.value" in names) == weighted
        assert "channel1.owned.value" not in names
    assert read_manifest(tmp_path / "weights").whole.weighted == (True, False)
    assert read_manifest(tmp_path / "plain").whole.weighted == ()


@pytest.mark.parametrize(("case", "version"), [("weights", 2), ("plain", 3)])
def test_a_version_that_does_not_fit_the_weights_is_refused(
    tmp_path: Path, case: str, version: int
) -> None:
    _shards(tmp_path / "shards", make_data(case))
    path = tmp_path / "shards" / manifests.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    with pytest.raises(UserError, match=r"is damaged.*with or without weights") as caught:
        read_manifest(tmp_path / "shards")
    assert "\n" not in str(caught.value)


def test_other_weights_are_other_shards(tmp_path: Path) -> None:
    """A run that is given other weights must not train on the shards of the first ones."""
    data = make_data("weights")
    graph = data.graphs[0]
    assert graph.value is not None
    moved = graph.value.clone()
    moved[3] = torch.nextafter(moved[3], torch.tensor(9.0).double())
    others = [
        data,
        replace(data, graphs=(graph.pattern(), data.graphs[1])),
        replace(data, graphs=(replace(graph, value=moved), data.graphs[1])),
    ]
    settings = data_settings("f", DataConfig())
    folders = {
        prepare_shards(lambda d=other: d, tmp_path, 2, CONTIGUOUS, settings)[0]  # type: ignore[misc]
        for other in others
    }
    assert len(folders) == 3


def test_shards_that_ignored_weights_are_not_taken_for_others(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    ignored = data_settings("f", DataConfig(edge_weights="ignore"))
    used = data_settings("f", DataConfig())
    assert used == data_settings("f", DataConfig(edge_weights="use"))
    data = make_data("plain")
    assignment = assign_parts(data.graphs, 2, CONTIGUOUS)
    write_shards(folder, data, assignment, CONTIGUOUS, settings=ignored)
    assert find_shards(folder, 2, CONTIGUOUS, ignored) is not None
    with pytest.raises(UserError, match=r"data\.edge_weights = ignore, not auto"):
        find_shards(folder, 2, CONTIGUOUS, used)


def test_shards_cut_by_weights_are_not_taken_for_others(tmp_path: Path) -> None:
    plain = PartitionConfig(objective="cut")
    assert partition_request(CUT) == partition_request(plain) | {"edge_weights": True}
    data = make_data("weights")
    assignment = assign_parts(data.graphs, 2, CONTIGUOUS)
    write_shards(tmp_path / "shards", data, assignment, plain)
    with pytest.raises(UserError, match=r"partition\.edge_weights = False, not True"):
        find_shards(tmp_path / "shards", 2, CUT, {})


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("one block", "weights are those of both blocks or of none"),
        ("negative", "weights are finite numbers above 0"),
        ("nan", "weights are finite numbers above 0"),
        ("integers", "weights are finite numbers above 0"),
        ("degrees", "degrees are sums of weights"),
        ("short", r"owned block is \[O, O\]"),
    ],
)
def test_a_shard_of_no_weights_is_refused(name: str, rule: str) -> None:
    data = make_data("weights")
    shard = next(iter(build_shards(data, torch.arange(NODES) % 2, 2)))
    channel = shard.channels[0]
    owned, value = channel.owned, channel.owned.value
    assert value is not None
    bad = value.clone()
    bad[4] = {"negative": -1.0, "nan": torch.nan}.get(name, 1.0)
    changes: dict[str, dict[str, Any]] = {
        "one block": {"boundary": channel.boundary.pattern()},
        "negative": {"owned": replace(owned, value=bad)},
        "nan": {"owned": replace(owned, value=bad)},
        "integers": {"owned": replace(owned, value=value.long())},
        "degrees": {"degree_halo": channel.degree_halo.long()},
        "short": {"owned": replace(owned, value=value[1:])},
    }
    with pytest.raises(ValueError, match=rule):
        replace(shard, channels=(replace(channel, **changes[name]), *shard.channels[1:]))


def test_a_file_that_lost_its_weights_is_damaged(tmp_path: Path) -> None:
    data = make_data("weights")
    shard = next(iter(build_shards(data, torch.arange(NODES) % 2, 2)))
    write_shard_file(tmp_path / "part", shard)
    content = (tmp_path / "part").read_bytes()
    spoilt = content.replace(b'\\"weighted\\": [true, false]', b'\\"weighted\\": [true,  true]')
    assert spoilt != content
    (tmp_path / "part").write_bytes(spoilt)
    with pytest.raises(ValueError, match="its weights are not those"):
        read_shard_file(tmp_path / "part")


# Division


def _ladder(nodes: int = 40) -> CSRMatrix:
    """A ring of light and heavy edges in turn: METIS can cut light ones alone."""
    source = torch.arange(nodes)
    weight = torch.where(source % 2 == 0, 50.0, 0.5)
    return csr_from_edges(source, (source + 1) % nodes, nodes, weight)


@needs_pymetis
@pytest.mark.parametrize("parts", [2, 4])
def test_metis_cuts_light_edges_where_it_is_asked_to(parts: int) -> None:
    found = assign_parts((_ladder(),), parts, CUT)
    cut = found.part[torch.arange(40)] != found.part[(torch.arange(40) + 1) % 40]
    assert int(cut.sum()) == parts
    assert not bool(cut[::2].any())
    assert (found.stats.weight, found.stats.cut_weight) == (2 * 20 * 50.5, 2 * parts * 0.5)


@needs_pymetis
def test_two_directions_of_different_weight_are_divided() -> None:
    data = make_data("lopsided")
    for config in (CUT, PartitionConfig()):
        found = assign_parts(data.graphs, 3, config)
        assert found.plan.symmetric == (False,)
        assert found.part.unique().numel() == 3
    with pytest.raises(UserError, match="needs undirected graphs and channel 0 is directed"):
        assign_clusters(data.graphs, PartitionConfig(clusters=4))


def test_links_are_symmetric_integers_in_proportion() -> None:
    union, links = link_weights(make_data("weights").graphs)
    assert links.dtype == torch.int32
    assert int(links.min()) >= 1
    total = torch.stack([graph.to_dense() for graph in make_data("weights").graphs]).sum(0)
    whole = replace(union, value=links).to_dense()
    assert torch.equal(whole, whole.T)
    assert torch.equal(whole > 0, total > 0)
    kept = whole > 20
    ratio = whole[kept] / total[kept]
    assert float(ratio.max() / ratio.min()) < 1.1


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_links_do_not_depend_on_the_unit_of_the_weights(factor: float) -> None:
    graph = _ladder()
    assert graph.value is not None
    scaled = replace(graph, value=graph.value.double() * factor)
    near = (link_weights((scaled,))[1] - link_weights((graph,))[1]).abs()
    assert int(near.max()) <= 1


def test_one_enormous_weight_leaves_the_others_apart() -> None:
    graph = _ladder()
    assert graph.value is not None
    value = graph.value.double()
    value[:2] = 1e30
    _, links = link_weights((replace(graph, value=value),))
    assert links.double().quantile(0.85) >= 50 * links.double().quantile(0.1)
    assert int(links.long().sum()) < 2**31


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "volume"}, "objective = volume, which counts rows and not edges"),
        ({"objective": "cut", "method": "fennel"}, "method = fennel, only METIS reads weights"),
    ],
)
def test_weights_that_nobody_would_read_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PartitionConfig.model_validate({"edge_weights": True} | settings)


@needs_pymetis
def test_a_graph_without_weights_is_not_cut_by_them() -> None:
    with pytest.raises(UserError, match=r"partition\.edge_weights = true needs weights of edges"):
        assign_parts((_ladder().pattern(),), 2, CUT)


@pytest.mark.parametrize("method", ["fennel", "contiguous", "random"])
def test_other_methods_divide_weighted_graphs_as_if_they_had_none(method: str) -> None:
    config = PartitionConfig.model_validate({"method": method})
    graph = make_data("weights").graphs[0]
    weighted, plain = (assign_parts((g,), 3, config) for g in (graph, graph.pattern()))
    assert torch.equal(weighted.part, plain.part)
    assert weighted.stats.weight is not None
    assert plain.stats.weight is None
