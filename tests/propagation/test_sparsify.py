"""The sparsified graph: how much is kept, which entries, the same on any cut; PRI's objective."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.data import GraphData, csr_from_edges
from distributed_ignn.graph.hashing import hash_uniform
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.propagation.halo import HaloExchange
from distributed_ignn.propagation.operators import ChannelOperator
from distributed_ignn.propagation.sparsify import (
    SPARSIFIERS,
    WHOLE,
    Edges,
    Relevance,
    Scope,
    edge_probabilities,
    list_edges,
    sparsify,
)
from tests.parity.cases import CASES, NODES, assign, make_data, weighed
from tests.ranks import run_ranks

METHODS = (*SPARSIFIERS, WHOLE)
BIG = 600


def _shard(data: GraphData) -> GraphShard:
    part = torch.zeros(data.num_nodes, dtype=torch.int64)
    return next(iter(build_shards(data, part, 1)))


def _big_data() -> GraphData:
    """Heavy-tailed: a few nodes have hundreds of neighbours."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(0, BIG, (6000,), generator=generator)
    target = (torch.rand(6000, generator=generator) ** 3 * BIG).long()
    none = torch.zeros(0, dtype=torch.int64)
    return GraphData(
        name="heavy",
        graphs=(csr_from_edges(source, target, BIG),),
        features=torch.zeros(BIG, 1),
        labels=torch.zeros(BIG, dtype=torch.int64),
        num_classes=2,
        task="multiclass",
        train_nodes=none,
        val_nodes=none,
        test_nodes=none,
    )


def _dense(operator: ChannelOperator) -> Tensor:
    return operator.owned.to_dense()


def _without_loops(dense: Tensor) -> Tensor:
    return dense - torch.diag(dense.diagonal())


def _weights(method: str, keep: float) -> tuple[Edges, Tensor]:
    return edge_probabilities(_shard(_big_data()), Communicator(), method, keep)


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("method", METHODS[:3])
def test_the_asked_share_of_edges_is_kept(method: str, keep: float) -> None:
    data = _big_data()
    edges, probability = _weights(method, keep)
    assert float(probability.mean()) == pytest.approx(keep, abs=1e-9)
    assert float(probability.min()) >= 0.0
    assert float(probability.max()) <= 1.0
    kept = sparsify(_shard(data), Communicator(), method, keep, torch.float64)
    pattern = _without_loops(_dense(kept)) > 0
    # each of the E / 2 edges is drawn on its own: five standard deviations at most
    deviation = math.sqrt(keep * (1 - keep) / (edges.own.numel() / 2))
    assert float(pattern.sum()) / edges.own.numel() == pytest.approx(keep, abs=5 * deviation)


@pytest.mark.parametrize("method", METHODS)
def test_both_directions_of_an_edge_are_kept_or_dropped(method: str) -> None:
    kept = _dense(sparsify(_shard(_big_data()), Communicator(), method, 0.3, torch.float64))
    assert torch.allclose(kept, kept.T, rtol=0, atol=1e-15)
    assert int((kept > 0).sum()) > BIG


@pytest.mark.parametrize("method", METHODS)
def test_the_subgraph_is_normalised_by_its_own_degrees(method: str) -> None:
    """A_s = D~^-1/2 (A_kept + I) D~^-1/2, and every kept edge is one of the graph."""
    data = make_data("plain")
    kept = _dense(sparsify(_shard(data), Communicator(), method, 0.5, torch.float64))
    pattern = (kept > 0).double()
    assert torch.equal(pattern.diagonal(), torch.ones(NODES, dtype=torch.float64))
    assert bool((_without_loops(pattern) <= data.graphs[0].to_dense()).all())
    scale = pattern.sum(dim=1).rsqrt()
    assert torch.allclose(kept, scale[:, None] * pattern * scale[None, :], rtol=0, atol=1e-15)


@pytest.mark.parametrize("case", CASES)
def test_none_is_the_whole_normalised_graph(case: str) -> None:
    shard = _shard(make_data(case))
    kept = sparsify(shard, Communicator(), "none", 0.1, torch.float64)
    whole = ChannelOperator.from_shard(shard.channels[0], torch.float64, torch.device("cpu"))
    assert torch.equal(_dense(kept), _dense(whole))


def test_keep_one_keeps_everything() -> None:
    shard = _shard(make_data("plain"))
    whole = ChannelOperator.from_shard(shard.channels[0], torch.float64, torch.device("cpu"))
    for method in METHODS:
        kept = sparsify(shard, Communicator(), method, 1.0, torch.float64)
        assert torch.equal(_dense(kept), _dense(whole)), method


def test_the_seed_chooses_the_edges() -> None:
    shard = _shard(_big_data())
    first, again, other = (
        _dense(sparsify(shard, Communicator(), "random", 0.3, torch.float64, seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first > 0, other > 0)


def test_degree_prefers_edges_between_nodes_of_low_degree() -> None:
    """The odds of keeping an edge grow with 1 / d_i + 1 / d_j."""
    data = _big_data()
    edges, probability = _weights("degree", 0.3)
    degree = (data.graphs[0].rowptr[1:] - data.graphs[0].rowptr[:-1]).double()
    score = 1 / degree[edges.row] + 1 / degree[edges.col]
    odds = probability / (1 - probability) / score
    assert torch.allclose(odds, odds[0].expand_as(odds), rtol=1e-9)
    assert float(score.max()) > 5 * float(score.min())


def test_degree_prefers_heavy_edges_as_well() -> None:
    data = _weighted_data()
    edges, probability = edge_probabilities(_shard(data), Communicator(), "degree", 0.3)
    degree = data.graphs[0].to_dense().sum(dim=1)
    weight = data.graphs[0].to_dense()[edges.row, edges.col]
    score = weight * (1 / degree[edges.row] + 1 / degree[edges.col])
    odds = probability / (1 - probability) / score
    assert torch.allclose(odds, odds[0].expand_as(odds), rtol=1e-9)


def test_a_subgraph_of_weights_is_normalised_by_its_own() -> None:
    data = _weighted_data()
    whole = data.graphs[0].to_dense()
    kept = _dense(sparsify(_shard(data), Communicator(), "pri", 0.5, torch.float64))
    weights = torch.where(kept > 0, whole + torch.eye(BIG, dtype=torch.float64), 0.0)
    assert BIG < int((weights > 0).sum()) < int((whole > 0).sum())
    scale = weights.sum(dim=1).rsqrt()
    assert torch.allclose(kept, scale[:, None] * weights * scale[None, :], rtol=0, atol=1e-15)


def _weighted_data() -> GraphData:
    data = _big_data()
    return replace(data, graphs=(weighed(data.graphs[0]),))


def _objective(edges: Edges, weight: Tensor, nodes: int, beta: float) -> float:
    """J = S_2(sigma) + beta tr((sigma - rho)^2) / 4 from dense Laplacians of trace one."""

    def normalised(w: Tensor) -> Tensor:
        adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
        adjacency[edges.row, edges.col] = edges.weighed(w)
        laplacian = torch.diag(adjacency.sum(dim=1)) - adjacency
        return laplacian / laplacian.trace()

    sigma, rho = normalised(weight), normalised(torch.ones_like(weight))
    entropy = 1.0 - float((sigma @ sigma).trace())
    difference = sigma - rho
    return entropy + beta * float((difference @ difference).trace()) / 4


@pytest.mark.parametrize("beta", [0.5, 8.0, 100.0])
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.7])
def test_pri_lowers_its_objective_below_uniform_weights(keep: float, beta: float) -> None:
    for data in (make_data("plain"), make_data("awkward"), _big_data(), _weighted_data()):
        edges, weight = edge_probabilities(_shard(data), Communicator(), "pri", keep, beta)
        uniform = torch.full_like(weight, keep)
        assert float(weight.sum()) == pytest.approx(float(uniform.sum()), rel=1e-9)
        found = _objective(edges, weight, data.num_nodes, beta)
        assert found < _objective(edges, uniform, data.num_nodes, beta), data.name


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_pri_is_that_of_its_objective(weighted: bool) -> None:
    """Along a change that leaves the number of kept edges as it is."""
    data = make_data("weights" if weighted else "plain")
    shard, comm = _shard(data), Communicator()
    edges = list_edges(shard)
    relevance = Relevance(Scope(edges, HaloExchange.from_shard(shard, comm), comm), 8.0)
    low, high = torch.minimum(edges.row, edges.col), torch.maximum(edges.row, edges.col)
    share, change = 0.2 + 0.6 * hash_uniform(0, low, high), hash_uniform(1, low, high)
    change -= change.mean()
    gradient = relevance.evaluate(share)[1]
    step = 1e-5
    ends = [_objective(edges, share + sign * step * change, NODES, 8.0) for sign in (1.0, -1.0)]
    assert float(gradient @ change) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_a_graph_without_edges_stays_as_it_is() -> None:
    data = make_data("plain")
    none = torch.zeros(0, dtype=torch.int64)
    empty = GraphData(
        **{
            **{name: getattr(data, name) for name in data.__slots__},
            "graphs": (csr_from_edges(none, none, NODES),),
        }
    )
    for method in METHODS:
        kept = sparsify(_shard(empty), Communicator(), method, 0.3, torch.float64)
        assert torch.equal(_dense(kept), torch.eye(NODES, dtype=torch.float64)), method


def _spread(comm: Communicator) -> dict[str, Tensor]:
    """This rank's rows of every A_s, [n, n] by global ids."""
    found = {}
    for case in ("plain", "awkward", "directed", "weights", "lopsided"):
        data = make_data(case)
        shard = list(build_shards(data, assign(case, comm.world_size), comm.world_size))[comm.rank]
        for method in METHODS:
            kept = sparsify(shard, comm, method, 0.4, torch.float64, seed=2)
            whole = torch.zeros(NODES, NODES, dtype=torch.float64)
            owned, halo = shard.owned_nodes, shard.halo_nodes
            whole[owned[:, None], owned[None, :]] = kept.owned.to_dense()
            boundary = owned[shard.num_interior :]
            if halo.numel() and boundary.numel():
                whole[boundary[:, None], halo[None, :]] = kept.boundary.to_dense()
            found[f"{case} {method}"] = whole
    return found


def test_two_ranks_keep_the_same_edges_as_one() -> None:
    alone = _spread(Communicator())
    first, second = run_ranks(_spread, 2)
    for name, whole in alone.items():
        together = first[name] + second[name]
        assert torch.equal(together > 0, whole > 0), name
        assert torch.allclose(together, whole, rtol=0, atol=1e-15), name
        # a rank alone holds only part of it
        assert not torch.equal(first[name] > 0, whole > 0), name
