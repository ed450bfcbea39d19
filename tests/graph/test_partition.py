"""Assignments: complete, repeatable, balanced, and much better than chance where METIS decides."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from distributed_ignn.config import PartitionConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import (
    CSRMatrix,
    csr_from_blocks,
    csr_from_edges,
    entry_blocks,
    turned,
)
from distributed_ignn.graph.partitioning import metis
from distributed_ignn.graph.partitioning.link_weights import link_weights
from distributed_ignn.graph.partitioning.partition import assign_clusters, assign_parts

needs_pymetis = pytest.mark.skipif(
    not metis.is_installed("pymetis"), reason="pymetis is not installed"
)


def random_graph(nodes: int, edges: int, *, symmetric: bool = True) -> CSRMatrix:
    ends = torch.randint(0, nodes, (2, edges))
    return csr_from_edges(ends[0], ends[1], nodes, symmetric=symmetric)


def communities(nodes: int = 400, inside: int = 2000, between: int = 40) -> CSRMatrix:
    """Two random communities, whose nodes have shuffled ids, with few edges between them."""
    half = nodes // 2
    a = torch.randint(0, half, (2, inside))
    b = torch.randint(half, nodes, (2, inside))
    link = torch.stack([torch.randint(0, half, (between,)), torch.randint(half, nodes, (between,))])
    shuffled = torch.randperm(nodes)
    source, target = shuffled[torch.cat([a, b, link], 1)]
    return csr_from_edges(source, target, nodes)


def star_and_ring(leaves: int = 300, ring: int = 300) -> CSRMatrix:
    """Twenty hubs that all leaves are linked to, and a ring: very uneven degrees."""
    hub, leaf = torch.meshgrid(torch.arange(20), 20 + torch.arange(leaves), indexing="ij")
    first = 20 + leaves
    around = first + torch.arange(ring)
    source = torch.cat([hub.flatten(), around, torch.tensor([20])])
    target = torch.cat([leaf.flatten(), around.roll(-1), torch.tensor([first])])
    return csr_from_edges(source, target, first + ring)


def config(**settings: Any) -> PartitionConfig:
    return PartitionConfig(**settings)


@pytest.mark.parametrize("method", ["metis", "random", "contiguous"])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_every_node_gets_a_part(method: str, parts: int) -> None:
    if method == "metis":
        pytest.importorskip("pymetis")
    found = assign_parts((random_graph(200, 500),), parts, config(method=method))
    assert found.part.shape == (200,)
    assert found.part.dtype == torch.int64
    assert torch.equal(found.part.unique(), torch.arange(parts))
    assert found.plan.parts == found.parts == parts
    assert found.seconds >= 0


@pytest.mark.parametrize("method", ["metis", "random"])
def test_same_seed_same_parts_and_other_seed_others(method: str) -> None:
    if method == "metis":
        pytest.importorskip("pymetis")
    graph = random_graph(300, 900)
    parts = [assign_parts((graph,), 4, config(method=method, seed=s)).part for s in (0, 0, 1)]
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])


@needs_pymetis
@pytest.mark.parametrize("objective", ["volume", "cut"])
def test_metis_finds_planted_communities(objective: str) -> None:
    graph = communities()
    found = assign_parts((graph,), 2, config(objective=objective))
    chance = assign_parts((graph,), 2, config(method="random"))
    assert (found.provider, found.objective) == ("pymetis", objective)
    assert found.stats.cut_entries <= 2 * 40
    assert found.stats.cut_entries < 0.1 * chance.stats.cut_entries
    assert found.stats.halo_rows < 0.3 * chance.stats.halo_rows


def test_cut_is_what_is_minimised_unless_volume_is_asked_for() -> None:
    pytest.importorskip("pymetis")
    graph = communities()
    assert assign_parts((graph,), 2, config()).objective == "cut"
    assert assign_parts((graph,), 2, config(objective="volume")).objective == "volume"


@needs_pymetis
def test_volume_objective_reads_fewer_halo_rows_than_cut() -> None:
    # Heavy-tailed degrees: a hub has many cut entries, but is sent to each part only once.
    source = (torch.rand(12000) ** 2 * 3000).long()
    target = (source + 30 * torch.randn(12000)).long() % 3000
    graph = csr_from_edges(source, target, 3000)
    volume, cut = (
        assign_parts((graph,), 16, config(objective=objective)).stats
        for objective in ("volume", "cut")
    )
    assert volume.halo_rows < 0.97 * cut.halo_rows
    assert volume.cut_entries > cut.cut_entries


@pytest.mark.parametrize("method", ["metis", "contiguous"])
def test_balance_names_what_is_balanced(method: str) -> None:
    if method == "metis":
        pytest.importorskip("pymetis")
    graph = star_and_ring()
    nodes, edges, both = (
        assign_parts((graph,), 2, config(method=method, balance=balance)).stats
        for balance in ("nodes", "edges", "both")
    )
    assert nodes.node_balance < 1.06 < edges.node_balance
    assert edges.entry_balance < 1.15 < nodes.entry_balance
    assert both.node_balance < edges.node_balance
    assert both.entry_balance < nodes.entry_balance


@needs_pymetis
def test_imbalance_bounds_the_largest_part() -> None:
    graph = random_graph(1000, 3000)
    tight = assign_parts((graph,), 4, config(imbalance=1.001, balance="nodes"))
    loose = assign_parts((graph,), 4, config(imbalance=1.3, balance="nodes"))
    assert tight.stats.node_balance <= 1.004 + 1e-9  # one node more than a quarter
    assert tight.stats.node_balance < loose.stats.node_balance <= 1.3


@needs_pymetis
def test_metis_divides_the_union_of_the_channels() -> None:
    graph = communities()
    ring = csr_from_edges(torch.arange(400), torch.arange(400).roll(1), 400)
    one = assign_parts((graph,), 2, config())
    union = assign_parts((ring, graph), 2, config())
    # The ring alone is cut by halves; only the second channel knows the communities.
    assert union.stats.cut_entries < one.stats.cut_entries + ring.num_entries
    agreement = (union.part == one.part).double().mean()
    assert max(agreement, 1 - agreement) > 0.9


@needs_pymetis
@pytest.mark.parametrize("isolated", [10, 300])
def test_metis_places_isolated_nodes(isolated: int) -> None:
    linked = random_graph(100, 300)
    nodes = 100 + isolated
    graph = CSRMatrix(
        torch.cat([linked.rowptr, torch.full((isolated,), linked.num_entries)]),
        linked.col,
        None,
        nodes,
    )
    found = assign_parts((graph,), 4, config(balance="nodes"))
    assert found.stats.empty_parts == 0
    assert found.stats.node_balance < 1.3


def test_a_graph_without_edges_can_be_divided() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    found = assign_parts((csr_from_edges(empty, empty, 9),), 3, config(method="contiguous"))
    assert found.part.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.stats.entry_balance == 1.0
    assert found.stats.interior_fraction == 1.0


@pytest.mark.parametrize("method", ["random", "contiguous"])
def test_baselines_leave_parts_empty_when_there_are_too_few_nodes(method: str) -> None:
    found = assign_parts((random_graph(3, 4),), 8, config(method=method))
    assert found.stats.empty_parts == 5
    assert found.stats.node_balance == pytest.approx(8 / 3)


def test_directed_graphs_work_without_metis() -> None:
    found = assign_parts((random_graph(50, 99, symmetric=False),), 3, config(method="contiguous"))
    assert found.plan.symmetric == (False,)
    assert found.stats.cut_entries > 0


def test_stats_by_hand() -> None:
    # 0 - 1 - 2 - 3 divided in the middle: one edge is cut, two rows travel, two nodes are interior.
    graph = csr_from_edges(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]), 4)
    stats = assign_parts((graph,), 2, config(method="contiguous")).stats
    assert (stats.nodes, stats.entries, stats.cut_entries) == (4, 6, 2)
    assert (stats.halo_rows, stats.halo_rows_largest, stats.empty_parts) == (2, 1, 0)
    assert (stats.node_balance, stats.entry_balance, stats.interior_fraction) == (1.0, 1.0, 0.5)


def looped() -> CSRMatrix:
    return CSRMatrix(torch.tensor([0, 1, 2]), torch.tensor([0, 0]), None, 2)


def out_of_range() -> CSRMatrix:
    return CSRMatrix(torch.tensor([0, 1, 2]), torch.tensor([1, 7]), None, 2)


def negative() -> CSRMatrix:
    return CSRMatrix(torch.tensor([0, 1, 2]), torch.tensor([-1, 0]), None, 2)


@needs_pymetis
@pytest.mark.parametrize("edge_weights", [False, True])
def test_metis_sees_both_directions_of_a_directed_graph(edge_weights: bool) -> None:
    graph = random_graph(40, 90, symmetric=False)
    if edge_weights:
        graph = replace(graph, value=torch.ones(graph.num_entries))
    settings = config(objective="cut", balance="nodes", edge_weights=edge_weights)
    found = assign_parts((graph, turned(graph)), 3, settings)
    assert found.plan.symmetric == (False, False)
    union = csr_from_blocks(entry_blocks(graph), 40)
    assert torch.equal(assign_parts((graph,), 3, settings).part, found.part)
    if not edge_weights:
        assert torch.equal(assign_parts((union,), 3, settings).part, found.part)


@pytest.mark.parametrize(
    ("graph", "parts", "message"),
    [
        (looped, 2, "links node 0 to itself"),
        (out_of_range, 2, r"names node 7; the ids of its 2 nodes are 0\.\.1"),
        (negative, 2, "names node -1"),
        (lambda: random_graph(3, 9), 4, "parts = 4 exceeds the graph's 3 nodes"),
        (lambda: random_graph(3, 9), 0, "parts = 0"),
    ],
)
def test_what_would_end_metis_is_refused_in_one_line(graph: Any, parts: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        assign_parts((graph(),), parts, config())
    assert "\n" not in str(caught.value)


def test_missing_metis_is_one_line_with_two_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metis, "is_installed", lambda module: False)
    graph = random_graph(9, 20)
    with pytest.raises(UserError, match=r"pip install pymetis .*--partition\.method contiguous"):
        assign_parts((graph,), 2, config())
    with pytest.raises(UserError, match=r"partition\.provider = pyg-lib is not installed"):
        assign_parts((graph,), 2, config(provider="pyg-lib"))
    assert assign_parts((graph,), 1, config()).provider == "contiguous"


@pytest.mark.parametrize(
    ("installed", "settings", "expected"),
    [
        ({"pyg_lib", "pymetis"}, {}, "pyg-lib"),
        ({"pyg_lib", "pymetis"}, {"objective": "volume"}, "pymetis"),
        ({"pyg_lib", "pymetis"}, {"imbalance": 1.01}, "pymetis"),
        ({"pyg_lib", "pymetis"}, {"seed": 3}, "pymetis"),
        ({"pyg_lib", "pymetis"}, {"provider": "pymetis"}, "pymetis"),
        ({"pyg_lib", "pymetis"}, {"provider": "pyg-lib"}, "pyg-lib"),
        ({"pyg_lib"}, {}, "pyg-lib"),
        ({"pymetis"}, {}, "pymetis"),
        ({"pymetis"}, {"objective": "volume"}, "pymetis"),
    ],
)
def test_auto_is_pyg_lib_unless_it_lacks_what_is_asked_for(
    installed: set[str], settings: dict, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metis, "is_installed", installed.__contains__)
    assert metis.choose_provider(config(**settings)) == expected


def test_what_pyg_lib_cannot_follow_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"objective": "volume", "imbalance": 1.2, "seed": 4}
    for key, value in refused.items():
        with pytest.raises(ValidationError, match=f"pyg-lib cannot follow {key} = {value}"):
            config(provider="pyg-lib", **{key: value})
    monkeypatch.setattr(metis, "is_installed", {"pyg_lib"}.__contains__)
    with pytest.raises(
        UserError, match=r"partition\.objective = volume needs pymetis, and pyg-lib"
    ):
        assign_parts((random_graph(9, 20),), 2, config(objective="volume"))


_STAND_IN = """
import numpy, pathlib, torch
from torch import Tensor

def metis(
    rowptr: Tensor,
    col: Tensor,
    num_partitions: int,
    node_weight: Tensor | None = None,
    edge_weight: Tensor | None = None,
    recursive: bool = False,
) -> Tensor:
    given = {"rowptr": rowptr, "col": col, "node_weight": node_weight, "edge_weight": edge_weight}
    given = {name: value for name, value in given.items() if value is not None}
    assert all(v.dtype == torch.int64 and v.is_contiguous() for v in given.values()), given
    assert recursive is False
    numpy.savez(pathlib.Path(__file__).with_name("given.npz"), **given)
    return torch.arange(rowptr.numel() - 1) % num_partitions GARBAGE
"""


@pytest.fixture
def pyg_lib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A pyg_lib with the signature of the real one, which keeps what it is given; its folder."""
    folder = tmp_path / "pyg_lib"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "partition.py").write_text(_STAND_IN.replace("GARBAGE", ""))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(metis, "is_installed", {"pyg_lib"}.__contains__)
    return folder


def test_pyg_lib_gets_contiguous_int64_arrays_in_a_process_of_its_own(pyg_lib: Path) -> None:
    graph = random_graph(30, 90)
    graph = replace(graph, value=torch.ones(graph.num_entries) * 2.0)
    wish = config(balance="edges", edge_weights=True)
    found = assign_parts((graph,), 3, wish)
    assert (found.provider, found.objective) == ("pyg-lib", "cut")
    assert torch.equal(found.part, torch.arange(30) % 3)
    given = {name: torch.from_numpy(a) for name, a in np.load(pyg_lib / "given.npz").items()}
    union, links = link_weights((graph,))
    expected = {
        "rowptr": union.rowptr,
        "col": union.col.long(),
        "node_weight": graph.rowptr.diff() + 1,
        "edge_weight": links.long(),
    }
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], value) for name, value in expected.items())
    assert "pyg_lib" not in sys.modules


def test_garbage_from_pyg_lib_is_noticed(pyg_lib: Path) -> None:
    (pyg_lib / "partition.py").write_text(_STAND_IN.replace("GARBAGE", "+ 9"))
    problem = r"METIS of pyg-lib failed .*names parts that there are not.*provider pymetis"
    with pytest.raises(UserError, match=problem):
        assign_parts((random_graph(30, 90),), 3, config())


@needs_pymetis
def test_metis_and_this_process_draw_from_different_generators() -> None:
    """METIS uses the C library's generator; sharing it, threads would change the partition."""
    libc = ctypes.CDLL(None)
    source = torch.arange(99)
    graphs = (csr_from_edges(source, source + 1, 100),)
    libc.srand(7)
    undisturbed = libc.rand()
    libc.srand(7)
    assign_parts(graphs, 4, PartitionConfig())
    assert libc.rand() == undisturbed


@needs_pymetis
def test_a_failing_metis_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('no memory')")
    monkeypatch.setattr(metis, "_SCRIPT", script)
    source = torch.arange(9)
    graphs = (csr_from_edges(source, source + 1, 10),)
    with pytest.raises(UserError, match=r"METIS of pymetis failed with exit code 1 \(no memory\)"):
        assign_parts(graphs, 2, PartitionConfig())


@needs_pymetis
@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ("SIGBUS", r"could not read its files in /\S+, whose disk may be full; .* TMPDIR"),
        ("SIGKILL", r"exit code -9 \(ended by the system, .* memory was full\); try .*fennel"),
    ],
)
def test_what_ends_metis_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str, message: str
) -> None:
    script = tmp_path / "ends.py"
    script.write_text(f"import os, signal; os.kill(os.getpid(), signal.{ends})")
    monkeypatch.setattr(metis, "_SCRIPT", script)
    with pytest.raises(UserError, match=message):
        assign_parts((path_graph(10),), 2, PartitionConfig())


@needs_pymetis
def test_a_full_disk_is_said_before_metis_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graphs = (path_graph(10),)  # 11 offsets, 18 entries of 32 bits, weights and parts of 10 nodes
    with monkeypatch.context() as patch:
        usage = type("Usage", (), {"free": 463})()
        patch.setattr(metis.shutil, "disk_usage", lambda _: usage)
        message = f"METIS needs 464 bytes in {tmp_path} for a while, and 463 are left; .* TMPDIR"
        with pytest.raises(UserError, match=message):
            assign_parts(graphs, 2, PartitionConfig())

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(metis.np, "save", full)
    with pytest.raises(UserError, match=rf"in {tmp_path} \(No space left on device\); .* TMPDIR"):
        assign_parts(graphs, 2, PartitionConfig())
    assert os.listdir(tmp_path) == []


def path_graph(nodes: int, *, symmetric: bool = True) -> CSRMatrix:
    source = torch.arange(nodes - 1)
    return csr_from_edges(source, source + 1, nodes, symmetric=symmetric)


@needs_pymetis
@pytest.mark.parametrize("settings", [{}, {"method": "contiguous"}, {"balance": "edges"}])
def test_clusters_are_connected_pieces_of_equal_size(settings: dict[str, Any]) -> None:
    """Whatever the settings of the parts, which have other aims."""
    graph = path_graph(120)
    found = assign_clusters((graph,), config(clusters=10, **settings))
    assert found.dtype == torch.int64
    sizes = torch.bincount(found, minlength=10)
    assert sizes.numel() == 10
    assert 9 <= int(sizes.min()) <= int(sizes.max()) <= 15
    cut = found[graph.rows()] != found[graph.col]
    assert int(cut.sum()) <= 2 * 14
    assert torch.equal(found, assign_clusters((graph,), config(clusters=10)))


@pytest.mark.parametrize(
    ("graphs", "message"),
    [
        ((path_graph(9),), r"partition.clusters = 10 exceeds the graph's 9 nodes"),
        (
            (path_graph(30), path_graph(30, symmetric=False)),
            r"partition.clusters = 10 needs undirected graphs and channel 1 is directed",
        ),
        (
            (csr_from_edges(torch.tensor([0]), torch.tensor([0]), 30),),
            r"partition.clusters = 10 needs a graph with edges; set it to 0",
        ),
    ],
    ids=["nodes", "directed", "edges"],
)
def test_clusters_that_cannot_be_are_refused_in_one_line(
    graphs: tuple[CSRMatrix, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        assign_clusters(graphs, config(clusters=10))
    assert "\n" not in str(caught.value)
