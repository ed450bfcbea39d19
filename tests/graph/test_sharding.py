"""Shards are checked against the whole graph: put together again, they must be the same matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges
from distributed_ignn.graph.partitioning.sharding import build_shard, build_shards, plan_shards
from distributed_ignn.graph.shard import ChannelShard, GraphShard

NODES = 40


def random_graph(edges: int, *, symmetric: bool = True, nodes: int = NODES) -> CSRMatrix:
    """Edges among the first 3/4 of the nodes; the others stay isolated."""
    source = torch.randint(0, 3 * nodes // 4, (edges,))
    target = torch.randint(0, 3 * nodes // 4, (edges,))
    return csr_from_edges(source, target, nodes, symmetric=symmetric)


def eighths(graph: CSRMatrix) -> CSRMatrix:
    """``graph`` with random weights whose sums are exact."""
    value = torch.randint(1, 80, (graph.num_entries,)).to(torch.float32) / 8
    return CSRMatrix(graph.rowptr, graph.col, value, graph.num_cols)


def sparse_features(nodes: int = NODES, columns: int = 7) -> CSRMatrix:
    pattern = csr_from_edges(
        torch.randint(0, nodes, (60,)), torch.randint(0, columns, (60,)), nodes, symmetric=False
    )
    return CSRMatrix(pattern.rowptr, pattern.col, torch.rand(pattern.num_entries), columns)


def graph_data(*graphs: CSRMatrix, features: CSRMatrix | Tensor | None = None) -> GraphData:
    nodes = graphs[0].num_rows
    order = torch.randperm(nodes)
    return GraphData(
        name="random",
        graphs=graphs,
        features=features,
        labels=torch.randint(0, 3, (nodes,)),
        num_classes=3,
        task="multiclass",
        train_nodes=order[:10].sort().values,
        val_nodes=order[10:15].sort().values,
        test_nodes=order[15:30].sort().values,
    )


def random_parts(parts: int, nodes: int = NODES) -> Tensor:
    return torch.randint(0, parts, (nodes,))


def cut(data: GraphData, part: Tensor, parts: int) -> list[GraphShard]:
    return list(build_shards(data, part, parts))


def normalised(graph: CSRMatrix) -> Tensor:
    """D~^-1/2 (A + I) D~^-1/2 in float64, from the whole graph."""
    looped = graph.to_dense() + torch.eye(graph.num_rows, dtype=torch.float64)
    scale = looped.sum(1).rsqrt()
    return scale[:, None] * looped * scale[None, :]


def reassembled(shards: list[GraphShard], channel: int) -> Tensor:
    """The same matrix from the shards alone."""
    nodes = shards[0].num_nodes
    whole = torch.full((nodes, nodes), torch.nan, dtype=torch.float64)
    for shard in shards:
        block = shard.channels[channel]
        owned, halo = shard.owned_nodes, shard.halo_nodes
        rows = torch.zeros(shard.num_owned, nodes, dtype=torch.float64)
        rows[:, owned] = block.owned.to_dense()
        rows[shard.num_interior :, halo] = block.boundary.to_dense()
        scale = torch.ones(nodes, dtype=torch.float64)
        scale[owned] = (block.degree_owned + 1).double().rsqrt()
        scale[halo] = (block.degree_halo + 1).double().rsqrt()
        whole[owned] = scale[owned][:, None] * rows * scale[None, :]
    return whole


def exchange(shards: list[GraphShard], values: Tensor) -> list[Tensor]:
    """What every part receives when each sends its rows of ``values`` [n, D] by its own plan."""
    outgoing = [
        torch.split(values[s.owned_nodes][s.send_index], s.send_counts.tolist()) for s in shards
    ]
    return [torch.cat([outgoing[q][s.part] for q in range(s.parts)]) for s in shards]


def is_canonical(matrix: CSRMatrix) -> bool:
    """Columns ascend inside each row, without repeats."""
    same_row = matrix.rows()[1:] == matrix.rows()[:-1]
    return bool((matrix.col.diff()[same_row] > 0).all())


def blocks(shards: list[GraphShard]) -> list[ChannelShard]:
    return [channel for shard in shards for channel in shard.channels]


CASES = {
    "symmetric": lambda: (graph_data(random_graph(80)), random_parts(3), 3),
    "directed": lambda: (graph_data(random_graph(80, symmetric=False)), random_parts(3), 3),
    "two channels": lambda: (
        graph_data(random_graph(50), random_graph(20, symmetric=False)),
        random_parts(4),
        4,
    ),
    "weights": lambda: (
        graph_data(eighths(random_graph(80)), random_graph(20)),
        random_parts(3),
        3,
    ),
    "directed weights": lambda: (
        graph_data(eighths(random_graph(80, symmetric=False))),
        2 * random_parts(2),
        4,
    ),
    "one part": lambda: (graph_data(random_graph(80)), random_parts(1), 1),
    "empty parts": lambda: (graph_data(random_graph(80)), 2 * random_parts(2), 4),
    "no halo": lambda: (
        graph_data(csr_from_edges(torch.arange(0, 40, 2), torch.arange(1, 41, 2), NODES)),
        torch.arange(NODES) // 20,
        2,
    ),
    "no edges": lambda: (graph_data(random_graph(0)), random_parts(3), 3),
    "more parts than nodes": lambda: (
        graph_data(random_graph(6, nodes=4)),
        torch.tensor([6, 0, 3, 3]),
        8,
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[GraphData, list[GraphShard]]:
    data, part, parts = CASES[request.param]()
    return data, cut(data, part, parts)


def test_shards_reassemble_to_the_normalised_matrix(case: tuple) -> None:
    data, shards = case
    for channel, graph in enumerate(data.graphs):
        assert torch.equal(reassembled(shards, channel), normalised(graph))


def test_reassembly_notices_one_wrong_column() -> None:
    data = graph_data(random_graph(80))
    shards = cut(data, random_parts(2), 2)
    shards[0].channels[0].boundary.col[0] += 1
    assert not torch.equal(reassembled(shards, 0), normalised(data.graphs[0]))


def test_every_node_has_one_owner(case: tuple) -> None:
    data, shards = case
    owned = torch.cat([shard.owned_nodes for shard in shards])
    assert torch.equal(owned.sort().values, torch.arange(data.num_nodes))


def test_interior_is_exactly_the_rows_without_remote_columns(case: tuple) -> None:
    data, shards = case
    for shard in shards:
        mine = torch.zeros(data.num_nodes, dtype=torch.bool)
        mine[shard.owned_nodes] = True
        remote = sum(graph.to_dense()[:, ~mine].sum(1) for graph in data.graphs)
        expected = (remote[shard.owned_nodes] == 0).sum()
        assert shard.num_interior == expected
        assert bool((remote[shard.owned_nodes[: shard.num_interior]] == 0).all())


def test_halo_is_what_owned_rows_read_grouped_by_owner(case: tuple) -> None:
    data, shards = case
    owner = torch.empty(data.num_nodes, dtype=torch.int64)
    place = torch.empty(data.num_nodes, dtype=torch.int64)
    for shard in shards:
        owner[shard.owned_nodes] = shard.part
        place[shard.owned_nodes] = torch.arange(shard.num_owned)
    for shard in shards:
        read = sum(graph.to_dense()[shard.owned_nodes].sum(0) for graph in data.graphs)
        expected = ((read > 0) & (owner != shard.part)).nonzero().squeeze(1)
        assert torch.equal(shard.halo_nodes.sort().values, expected)
        rank = owner[shard.halo_nodes] * data.num_nodes + place[shard.halo_nodes]
        assert bool((rank.diff() > 0).all())
        for group in shard.send_index.split(shard.send_counts.tolist()):
            assert bool((group.diff() > 0).all())


def test_exchange_fills_every_halo_with_its_owners_rows(case: tuple) -> None:
    data, shards = case
    values = torch.randn(data.num_nodes, 2, dtype=torch.float64)
    for shard, received in zip(shards, exchange(shards, values), strict=True):
        assert torch.equal(received, values[shard.halo_nodes])
    sent = torch.stack([shard.send_counts for shard in shards])
    assert torch.equal(sent.T, torch.stack([shard.recv_counts for shard in shards]))


def test_exchange_check_notices_swapped_rows() -> None:
    data = graph_data(random_graph(80))
    shards = cut(data, random_parts(2), 2)
    values = torch.randn(NODES, 2, dtype=torch.float64)
    shards[1].send_index[:2] = shards[1].send_index[:2].flip(0)
    assert not torch.equal(exchange(shards, values)[0], values[shards[0].halo_nodes])


def test_blocks_have_ascending_columns_and_whole_degrees(case: tuple) -> None:
    data, shards = case
    for block in blocks(shards):
        assert is_canonical(block.owned)
        assert is_canonical(block.boundary)
    for shard in shards:
        for graph, channel in zip(data.graphs, shard.channels, strict=True):
            for block in (channel.owned, channel.boundary):
                assert (block.value is None) == (graph.value is None)
            degree = graph.to_dense().sum(1).to(channel.degree_owned.dtype)
            assert degree.is_floating_point() == channel.weighted == (graph.value is not None)
            assert torch.equal(channel.degree_owned, degree[shard.owned_nodes])
            assert torch.equal(channel.degree_halo, degree[shard.halo_nodes])


def test_symmetry_is_that_of_the_whole_channel() -> None:
    data = graph_data(random_graph(60), random_graph(60, symmetric=False))
    for shard in cut(data, random_parts(3), 3):
        assert [channel.symmetric for channel in shard.channels] == [True, False]


def test_a_node_can_be_interior_and_still_be_sent() -> None:
    # 0 -> 1 is the only entry: part 0 reads node 1, whose own row reads nothing.
    graph = csr_from_edges(torch.tensor([0]), torch.tensor([1]), 2, symmetric=False)
    reader, owner = cut(graph_data(graph), torch.tensor([0, 1]), 2)
    assert (reader.num_interior, reader.halo_nodes.tolist()) == (0, [1])
    assert (owner.num_interior, owner.num_halo, owner.send_index.tolist()) == (1, 0, [0])


@pytest.mark.parametrize("kind", ["sparse", "dense", "none"])
def test_rows_of_features_labels_and_splits_follow_their_nodes(kind: str) -> None:
    kinds: dict[str, CSRMatrix | Tensor | None] = {
        "sparse": sparse_features(),
        "dense": torch.randn(NODES, 5),
        "none": None,
    }
    features = kinds[kind]
    data = graph_data(random_graph(80), features=features)
    shards = cut(data, random_parts(3), 3)
    for shard in shards:
        assert torch.equal(shard.labels, data.labels[shard.owned_nodes])
        assert shard.num_features == data.num_features
        assert shard.split_sizes == (10, 5, 15)
        if isinstance(features, CSRMatrix):
            assert isinstance(shard.features, CSRMatrix)
            assert torch.equal(shard.features.to_dense(), features.to_dense()[shard.owned_nodes])
        elif features is not None:
            assert isinstance(shard.features, Tensor)
            assert torch.equal(shard.features, features[shard.owned_nodes])
        else:
            assert shard.features is None
    for name in ("train", "val", "test"):
        index = [getattr(shard, f"{name}_index") for shard in shards]
        found = torch.cat([s.owned_nodes[i] for s, i in zip(shards, index, strict=True)])
        assert torch.equal(found.sort().values, getattr(data, f"{name}_nodes"))
        assert all(bool((i.diff() > 0).all()) for i in index)


def test_plan_counts_entries_and_cuts() -> None:
    data = graph_data(random_graph(80), random_graph(30, symmetric=False))
    part = random_parts(3)
    plan = plan_shards(data.graphs, part, 3)
    for p in range(3):
        rows = torch.stack([graph.to_dense()[part == p] for graph in data.graphs])
        assert plan.entries[p].tolist() == rows.sum((1, 2)).long().tolist()
        left = rows[:, :, part != p].sum((1, 2)).long()
        assert plan.cut_entries[p].tolist() == left.tolist()


def test_shards_do_not_share_memory_with_the_plan() -> None:
    data = graph_data(random_graph(80))
    plan = plan_shards(data.graphs, random_parts(3), 3)
    first = build_shard(data, plan, 1)
    first.recv_counts.zero_()
    first.send_counts.zero_()
    assert int(build_shard(data, plan, 1).recv_counts.sum()) > 0
    assert int(build_shard(data, plan, 1).send_counts.sum()) > 0


@pytest.mark.parametrize(
    ("part", "parts", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), 1, "names 5 nodes"),
        (torch.full((NODES,), 2), 2, r"outside 0\.\.1"),
        (torch.full((NODES,), -1), 2, r"outside 0\.\.1"),
        (torch.zeros(NODES, dtype=torch.int32), 1, "must be int64"),
        (torch.zeros(NODES, dtype=torch.int64), 0, "positive"),
    ],
)
def test_a_wrong_assignment_is_refused_at_once(part: Tensor, parts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_shards(graph_data(random_graph(80)), part, parts)


def test_graphs_with_self_loops_are_refused() -> None:
    looped = CSRMatrix(torch.tensor([0, 1, 2]), torch.tensor([0, 0]), None, 2)
    with pytest.raises(ValueError, match="self-loops"):
        plan_shards((looped,), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="no graph"):
        plan_shards((), torch.tensor([0, 1]), 2)
