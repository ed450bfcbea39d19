"""PyG layers on whole and divided graphs, and what is compared of them.

Rows are put at their global ids, as in ``cases.py``, so that sums over ranks are the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Dropout, Linear, Module, ReLU
from torch.nn.functional import cross_entropy
from torch_geometric.nn import GAT, DeepGCNLayer, GraphSAGE, MessagePassing, Sequential
from torch_geometric.nn import conv as pyg
from torch_geometric.nn.models.basic_gnn import GIN

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.distributed_graph import DistributedGraph
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.explicit.exact import exact
from tests.parity.cases import NODES, assign, make_data

GRAPHS = ("plain", "awkward", "directed")
WEIGHTED_GRAPHS = ("weights", "lopsided")
WIDTH, OUT = 6, 4
F64 = torch.float64


class Gated(MessagePassing):
    """A layer of the user's own, with edge features and a second tensor of nodes."""

    def __init__(self) -> None:
        super().__init__(aggr="softmax")
        self.lin = Linear(WIDTH, OUT)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        return self.propagate(edge_index, x=self.lin(x), gate=x.sin(), edge_attr=edge_attr)

    def message(self, x_j: Tensor, gate_i: Tensor, gate_j: Tensor, edge_attr: Tensor) -> Tensor:
        return x_j * (gate_i * gate_j).sum(-1, keepdim=True).tanh() + edge_attr.sum(-1)[:, None]


class Thrifty(pyg.GCNConv):
    """A layer that extends one of PyG's."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x.tanh(), edge_index)


class Warmed(pyg.GATConv):
    """A layer that extends one of PyG's, whose scores are then fetched by themselves."""

    def forward(self, x: Tensor, edge_index: Tensor, **options: Any) -> Tensor:
        return super().forward(x.tanh(), edge_index, **options)


@dataclass(frozen=True)
class Layer:
    """A layer to compare.

    Args:
        build: makes it.
        hops: exchanges of a forward and of a backward pass.
        extra: what it is called with besides x and edges: "attr", "weight", "x_0".
    """

    build: Callable[[], Any]
    hops: int = 1
    extra: str = ""


def _net(inputs: int = WIDTH) -> Linear:
    return Linear(inputs, OUT)


LAYERS: dict[str, Layer] = {
    "GCN": Layer(lambda: pyg.GCNConv(WIDTH, OUT)),
    "GCN improved, cached": Layer(lambda: pyg.GCNConv(WIDTH, OUT, improved=True, cached=True)),
    "GCN weighted": Layer(lambda: pyg.GCNConv(WIDTH, OUT), hops=2, extra="weight"),
    "GCN without loops": Layer(lambda: pyg.GCNConv(WIDTH, OUT, add_self_loops=False)),
    "GCN plain": Layer(lambda: pyg.GCNConv(WIDTH, OUT, normalize=False)),
    "GCN extended": Layer(lambda: Thrifty(WIDTH, OUT)),
    "GAT": Layer(lambda: pyg.GATConv(WIDTH, OUT, heads=3)),
    "GAT mean": Layer(lambda: pyg.GATConv(WIDTH, OUT, heads=2, concat=False, residual=True)),
    "GAT edges": Layer(lambda: pyg.GATConv(WIDTH, OUT, heads=2, edge_dim=2), extra="attr"),
    "GAT two maps": Layer(lambda: pyg.GATConv((WIDTH, WIDTH), OUT, add_self_loops=False)),
    "GAT extended": Layer(lambda: Warmed(WIDTH, OUT), hops=2),
    "GATv2": Layer(lambda: pyg.GATv2Conv(WIDTH, OUT, heads=2)),
    "GATv2 shared": Layer(lambda: pyg.GATv2Conv(WIDTH, OUT, share_weights=True, residual=True)),
    "GATv2 edges": Layer(lambda: pyg.GATv2Conv(WIDTH, OUT, heads=2, edge_dim=2), extra="attr"),
    "SAGE": Layer(lambda: pyg.SAGEConv(WIDTH, OUT)),
    "SAGE max": Layer(lambda: pyg.SAGEConv(WIDTH, OUT, aggr="max", project=True)),
    "SAGE sum": Layer(lambda: pyg.SAGEConv(WIDTH, OUT, aggr="sum", normalize=True)),
    "SAGE many": Layer(lambda: pyg.SAGEConv(WIDTH, OUT, aggr=["mean", "std", "max"])),
    "GIN": Layer(lambda: pyg.GINConv(_net(), train_eps=True)),
    "GINE": Layer(lambda: pyg.GINEConv(_net(), edge_dim=2), extra="attr"),
    "Graph": Layer(lambda: pyg.GraphConv(WIDTH, OUT)),
    "Graph weighted": Layer(lambda: pyg.GraphConv(WIDTH, OUT), extra="weight"),
    "Transformer": Layer(lambda: pyg.TransformerConv(WIDTH, OUT, heads=2, beta=True)),
    "Transformer edges": Layer(lambda: pyg.TransformerConv(WIDTH, OUT, edge_dim=2), extra="attr"),
    "APPNP": Layer(lambda: pyg.APPNP(4, 0.1), hops=4),
    "SGC": Layer(lambda: pyg.SGConv(WIDTH, OUT, K=3), hops=3),
    "GCN2": Layer(lambda: pyg.GCN2Conv(WIDTH, 0.3, 0.5, 2), extra="x_0"),
    "GCN2 two": Layer(lambda: pyg.GCN2Conv(WIDTH, 0.3, shared_weights=False), extra="x_0"),
    "ResGated": Layer(lambda: pyg.ResGatedGraphConv(WIDTH, OUT)),
    "TAG": Layer(lambda: pyg.TAGConv(WIDTH, OUT, K=2), hops=2),
    "SSG": Layer(lambda: pyg.SSGConv(WIDTH, OUT, 0.2, K=2), hops=2),
    "ARMA": Layer(lambda: pyg.ARMAConv(WIDTH, OUT, num_stacks=2, num_layers=2), hops=2),
    "LG": Layer(lambda: pyg.LGConv()),
    "own": Layer(Gated, extra="attr"),
}


def attributes(edges: Tensor) -> Tensor:
    """Features of edges from global ids, [E, 2]."""
    source, target = edges.to(F64)
    return torch.stack([(source + 2 * target).sin(), (3 * source - target).cos()], dim=1)


def weights(edges: Tensor) -> Tensor:
    """Positive weights of edges from global ids, other ones in both directions, [E]."""
    return (attributes(edges)[:, 0] + 1.5).requires_grad_()


def rows(seed: int, width: int = WIDTH) -> Tensor:
    """Rows of all nodes, [n, width]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NODES, width, generator=generator, dtype=F64)


def built(make: Callable[[], Any]) -> Any:
    """A module in float64, the same every time."""
    torch.manual_seed(1)
    return make().double()


def whole_edges(data: GraphData) -> Tensor:
    """Edges from columns to rows, int64 [2, E]: what DistributedGraph says of its order."""
    graph = data.graphs[0]
    return torch.stack([graph.col.long(), graph.rows()])


def run_layer(
    layer: Any, extra: str, x: Tensor, other: Tensor, edges: Tensor, names: Tensor, probe: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Output and gradients of a layer, and its loss; ``names`` are the edges in global ids."""
    x = x.clone().requires_grad_()
    given = _extra(extra, other, names)
    out = layer(x, edge_index=edges, **given)
    loss = (out * probe[:, : out.shape[1]]).sin().sum()
    loss.backward()
    assert x.grad is not None
    found = {"out": out.detach(), "input": x.grad}
    weight = given.get("edge_weight")
    if weight is not None:
        assert weight.grad is not None
        dense = torch.zeros(NODES, NODES, dtype=F64)
        dense[names[0], names[1]] = weight.grad
        found["edges"] = dense
    return found, loss.detach()


def _extra(extra: str, other: Tensor, names: Tensor) -> dict[str, Tensor]:
    """What a layer is called with besides x and edges."""
    if extra == "attr":
        return {"edge_attr": attributes(names)}
    if extra == "weight":
        return {"edge_weight": weights(names)}
    return {"x_0": other} if extra == "x_0" else {}


def on_whole(graph: str, name: str) -> dict[str, Tensor]:
    """What PyG gives in one process."""
    edges = whole_edges(make_data(graph))
    layer = built(LAYERS[name].build)
    found, loss = run_layer(
        layer, LAYERS[name].extra, rows(1), rows(2), edges, edges, rows(3, 2 * WIDTH)
    )
    return found | {"loss": loss} | _gradients(layer)


def divided(graph: str, comm: Communicator) -> DistributedGraph:
    """This rank's part of a case."""
    part = assign(graph, comm.world_size)
    shard = list(build_shards(make_data(graph), part, comm.world_size))[comm.rank]
    return DistributedGraph(shard, comm, F64)


def on_parts(comm: Communicator, graphs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a rank gives of every layer, as the sum over ranks, and how much it has sent."""
    reports = {}
    for name in graphs:
        graph = divided(name, comm)
        for kind, layer in LAYERS.items():
            reports[f"{name}/{kind}"] = on_part(graph, layer)
        reports[f"{name}/training"] = _trained(graph)
        x, layer = graph.rows(rows(1)), exact(built(lambda: pyg.GATConv(WIDTH, OUT)), graph)
        found = curvature(layer, x, graph.edge_index)
        reports[f"{name}/curvature"] = {"found": graph.gather(found)}
    for name in WEIGHTED_GRAPHS:
        reports[name] = _weighted(divided(name, comm))
    return reports


def on_part(graph: DistributedGraph, layer: Layer) -> dict[str, Any]:
    """What a rank gives of a layer, as the sum over ranks."""
    module = exact(built(layer.build), graph)
    x, other, probe = (graph.rows(rows(1)), graph.rows(rows(2)), graph.rows(rows(3, 2 * WIDTH)))
    args = (layer.extra, x, other, graph.edge_index, graph.global_edge_index, probe)
    with torch.no_grad():  # degrees are fetched once
        module(x, edge_index=graph.edge_index, **_extra(layer.extra, other, graph.edge_index))
    before = graph.comm.traffic.snapshot()
    found, loss = run_layer(module, *args)
    sent = graph.comm.traffic.since(before)
    graph.sum_gradients(module)
    for key in ("out", "input"):
        found[key] = graph.gather(found[key])
    if "edges" in found:
        found["edges"] = graph.comm.sum(found["edges"])
    return found | {"loss": graph.sum(loss), "exchanges": sent.exchanges} | _gradients(module)


#: Layers that read the weights of the graph's edges, which they find where no edges are given.
WEIGHTED: dict[str, Callable[[], Any]] = {
    "GCN": lambda: pyg.GCNConv(WIDTH, OUT),
    "Graph": lambda: pyg.GraphConv(WIDTH, OUT),
    "APPNP": lambda: pyg.APPNP(3, 0.2),
    "own": lambda: torch.nn.Sequential(Linear(WIDTH, WIDTH), Heeding()),
}


class Heeding(pyg.GCNConv):
    """A layer of the user's own that reads weights."""

    def __init__(self) -> None:
        super().__init__(WIDTH, OUT, bias=False)


def weighted_whole(graph: str) -> dict[str, Tensor]:
    """Layers on the weights of the graph and, without, on its last channel, by PyG alone."""
    data, found = make_data(graph), {}
    weight = data.graphs[0].value
    assert weight is not None
    last = data.graphs[-1]
    for name, make in WEIGHTED.items():
        if name == "own":
            first, second = built(make)
            found[name] = second(first(rows(1)), whole_edges(data), weight.double()).detach()
        else:
            found[name] = built(make)(rows(1), whole_edges(data), weight.double()).detach()
    edges = torch.stack([last.col.long(), last.rows()])
    value = None if last.value is None else last.value.double()
    found["last"] = built(WEIGHTED["GCN"])(rows(1), edges, value).detach()
    return found


def _weighted(graph: DistributedGraph) -> dict[str, Tensor]:
    """The same on a part."""
    x = graph.rows(rows(1))
    found = {name: exact(built(make), graph)(x) for name, make in WEIGHTED.items()}
    layer = exact(built(WEIGHTED["GCN"]), graph)
    found["last"] = layer(x, graph.edge_indices[-1], graph.part.edge_weights[-1])
    return {name: graph.gather(out) for name, out in found.items()}


def curvature(layer: Any, x: Tensor, edges: Tensor) -> Tensor:
    """Gradient of the square of a gradient, [O, WIDTH]."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer(x, edges).sin().sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(slope.square().sum(), x)
    return found


def _gradients(module: Module) -> dict[str, Tensor]:
    return {
        f"gradient {name}": parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def models(drop: float) -> dict[str, Callable[[], Module]]:
    """Whole models, with batch normalisation of nodes and of edges."""
    common = {"in_channels": WIDTH, "hidden_channels": 8, "out_channels": 3, "norm": "batch_norm"}

    def edge_net() -> Module:
        return torch.nn.Sequential(Linear(2 * WIDTH, 3), BatchNorm1d(3, momentum=None), ReLU())

    return {
        "GAT": lambda: GAT(num_layers=2, heads=2, jk="cat", **common),
        "SAGE": lambda: GraphSAGE(num_layers=3, **common),
        "GIN": lambda: GIN(num_layers=2, **common),
        "Edge": lambda: pyg.EdgeConv(edge_net()),
        "Sequential": lambda: Sequential(
            "x, edge_index",
            [
                (pyg.SAGEConv(WIDTH, 8), "x, edge_index -> x"),
                BatchNorm1d(8, track_running_stats=False),
                Dropout(drop),
                (DeepGCNLayer(pyg.GENConv(8, 8), BatchNorm1d(8), ReLU()), "x, edge_index -> x"),
                Linear(8, 3),
            ],
        ),
    }


def train_whole(graph: str) -> dict[str, list[float]]:
    """Losses of training without dropout in one process, by plain PyG."""
    data = make_data(graph)
    edges, found = whole_edges(data), {}
    for name, make in models(0.0).items():
        model, losses = built(make), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            out = model(rows(1), edges)
            loss = cross_entropy(out[data.train_nodes], data.labels[data.train_nodes])
            penalty = 0.1 * sum(p.square().sum() for p in model.parameters())
            (loss + penalty).backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        model.eval()
        losses.append(float(model(rows(1), edges).detach().sum()))
        found[name] = losses
    return found


def _trained(graph: DistributedGraph) -> dict[str, list[float]]:
    """The same on a part, and with dropout, whose masks do not depend on the parts."""
    found = {}
    for drop in (0.0, 0.5):
        for name, make in models(drop).items():
            if drop and name != "Sequential":
                continue
            model, losses = exact(built(make), graph, seed=3), []
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            index, x = graph.train_index, graph.rows(rows(1))
            for _ in range(4):
                optimizer.zero_grad()
                out = model(x, graph.edge_index)
                loss = graph.mean(cross_entropy(out[index], graph.y[index], reduction="none"))
                penalty = 0.1 * sum(p.square().sum() for p in model.parameters())
                (loss + graph.once(torch.as_tensor(penalty))).backward()
                graph.sum_gradients(model)
                optimizer.step()
                losses.append(float(loss.detach()))
            model.eval()
            with torch.no_grad():
                losses.append(float(graph.sum(model(x, graph.edge_index).sum())))
            found[name + (" dropout" if drop else "")] = losses
    return found
