"""Explicit kinds against PyG on the whole graph, and against dense formulas of their papers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric import nn as pyg

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.explicit.graph_part import GraphPart
from distributed_ignn.models.kinds import KINDS, ExplicitModel
from distributed_ignn.models.kinds.demonet import DegreeHash
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import CLASSES, FEATURES, NODES, make_data
from tests.parity.kind_cases import kind_config, kind_trainer

GRAPH = "channels"


def _whole(case: str = GRAPH) -> tuple[Tensor, Tensor]:
    """X and the edges of the first channel."""
    data = make_data(case)
    features = data.features
    assert isinstance(features, CSRMatrix)
    graph = data.graphs[0]
    return features.to_dense(torch.float64), torch.stack([graph.col.long(), graph.rows()])


def _built(kind: str) -> tuple[Trainer, Tensor]:
    """A trainer in one process, whose rows are in another order, and its logits in graph order."""
    trainer = kind_trainer(Communicator(), f"{GRAPH}/{kind}")
    trainer.train_epoch()
    trainer.model.eval()
    rows = trainer.model.read_out(trainer.model.solve(trainer.planner.evaluate()).image)
    logits = torch.empty_like(rows)
    logits[trainer.shard.owned_nodes] = rows
    return trainer, logits


def _layer(made: Any, state: dict[str, Tensor], prefix: str, **maps: Tensor) -> Any:
    """A plain PyG layer with the weights under ``prefix``, and others by name."""
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)} | maps
    made.double().load_state_dict(own)
    return made


def _gcn(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    first = {"lin.weight": w["first.weight"].T}
    x = torch.relu(_layer(pyg.GCNConv(12, 8), w, "layers.0.", **first)(x, edges))
    return _layer(pyg.GCNConv(8, 3), w, "layers.1.")(x, edges)


def _gat(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    first = {"lin.weight": w["first.weight"].T}
    x = functional.elu(_layer(pyg.GATConv(12, 3, 3), w, "layers.0.", **first)(x, edges))
    second = _layer(pyg.GATConv(9, 3, 3, concat=False), w, "layers.1.")
    return second(x, edges)


def _sgc(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    lin = {"lin.weight": w["first.weight"].T, "lin.bias": w["bias"]}
    return _layer(pyg.SGConv(12, 3, 2), {}, "", **lin)(x, edges)


def _appnp(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    hidden = torch.relu(x @ w["first.weight"] + w["first.bias"])
    logits = hidden @ w["second.weight"].T + w["second.bias"]
    return pyg.APPNP(2, 0.1)(logits, edges)


def _jknet(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    states, first = [], {"lin.weight": w["first.weight"].T}
    for number, made in enumerate((pyg.GCNConv(12, 8), pyg.GCNConv(8, 8), pyg.GCNConv(8, 8))):
        layer = _layer(made, w, f"layers.{number}.", **(first if number == 0 else {}))
        x = torch.relu(layer(x, edges))
        states.append(x)
    return torch.cat(states, dim=1) @ w["head.weight"].T + w["head.bias"]


def _gcnii(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    start = x = torch.relu(x @ w["first.weight"] + w["first.bias"])
    for number in range(4):
        layer = _layer(pyg.GCN2Conv(8, 0.1, 0.5, number + 1), w, f"layers.{number}.")
        x = torch.relu(layer(x, start, edges))
    return x @ w["head.weight"].T + w["head.bias"]


def _graphsage(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    first = {
        "lin_l.weight": w["neighbours.weight"].T,
        "lin_l.bias": w["own.bias"],
        "lin_r.weight": w["own.weight"].T,
    }
    x = torch.relu(_layer(pyg.SAGEConv(12, 8), {}, "", **first)(x, edges))
    return _layer(pyg.SAGEConv(8, 3), w, "layers.1.")(x, edges)


def _mlp(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    hidden = torch.relu(x @ w["first.weight"] + w["first.bias"])
    return hidden @ w["layers.0.weight"].T + w["layers.0.bias"]


def _dense(edges: Tensor) -> Tensor:
    """A_hat [n, n]."""
    adjacency = torch.eye(NODES, dtype=torch.float64)
    adjacency[edges[1], edges[0]] = 1.0
    scale = adjacency.sum(dim=1).rsqrt()
    return adjacency * scale[:, None] * scale[None, :]


def _acmgcn(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    """Equations 4 to 6 of the ACM paper, a node and a layer at a time."""
    a_hat, maps = _dense(edges), [w["first.weight"], w["maps.0.weight"].T]
    filters = a_hat, torch.eye(NODES, dtype=torch.float64) - a_hat, torch.eye(NODES).double()
    for layer, theta in enumerate(maps):
        parts = [torch.relu(f @ x @ t) for f, t in zip(filters, theta.chunk(3, dim=1), strict=True)]
        score, mix = w[f"mixing.{layer}.score"], w[f"mixing.{layer}.mix"]
        scores = [torch.sigmoid(h @ score[c]) for c, h in enumerate(parts)]
        shares = torch.softmax(torch.stack(scores, dim=1) @ mix / 3, dim=1)
        x = sum(
            (shares[:, c, None] * h for c, h in enumerate(parts)), start=torch.zeros_like(parts[0])
        )
    return x @ w["head.weight"].T + w["head.bias"]


def _demonet(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    """Node by node, with its degree's hash as a matrix."""
    neighbours = [edges[0][edges[1] == node] for node in range(NODES)]
    x = torch.relu(x @ w["first.weight"] + w["first.bias"])
    identity = torch.eye(8, dtype=torch.float64)
    for layer in range(2):
        rows = []
        for node, near in enumerate(neighbours):
            degree = torch.full((8,), len(near))
            phi = DegreeHash(degree, 8, 7)(identity)
            mean = x[near].mean(dim=0) if len(near) else torch.zeros(8, dtype=torch.float64)
            own = w[f"own.{layer}.weight"] @ x[node] + w[f"own.{layer}.bias"]
            around = w[f"near.{layer}.weight"] @ (mean @ phi) + w[f"near.{layer}.bias"]
            rows.append(torch.relu(torch.cat([own, around])))
        x = torch.stack(rows)
    return x @ w["head.weight"].T + w["head.bias"]


def _amgcn(w: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    other = make_data(GRAPH).graphs[1]
    graphs = _dense(edges), _dense(torch.stack([other.col.long(), other.rows()]))
    first = w["first.weight"].chunk(3, dim=1)

    def embedded(graph: int, name: str, column: int) -> Tensor:
        hidden = torch.relu(graphs[graph] @ x @ first[column] + w["bias"][0, column])
        return graphs[graph] @ hidden @ w[f"{name}.0.weight"].T + w["bias"][1, column]

    common = (embedded(0, "common", 1) + embedded(1, "common", 1)) / 2
    parts = [embedded(0, "topology", 0), common, embedded(1, "features", 2)]
    scores = [
        torch.tanh(z @ w[f"attention.maps.{i}.weight"].T + w[f"attention.maps.{i}.bias"])
        @ w["attention.query.weight"].T
        for i, z in enumerate(parts)
    ]
    shares = torch.softmax(torch.cat(scores, dim=1), dim=1)
    mixed = torch.stack(parts, dim=2) @ shares[:, :, None]
    return mixed[:, :, 0] @ w["head.weight"].T + w["head.bias"]


_BY_HAND: dict[str, Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]] = {
    "gcn": _gcn,
    "gat": _gat,
    "sgc": _sgc,
    "appnp": _appnp,
    "jknet": _jknet,
    "gcnii": _gcnii,
    "graphsage": _graphsage,
    "mlp": _mlp,
    "acmgcn": _acmgcn,
    "demonet": _demonet,
    "amgcn": _amgcn,
}


@pytest.mark.parametrize("kind", list(_BY_HAND))
def test_logits_are_those_of_plain_layers_on_the_whole_graph(kind: str) -> None:
    trainer, logits = _built(kind)
    weights = {k: v.detach() for k, v in trainer.model.state_dict().items()}
    with torch.no_grad():
        expected = _BY_HAND[kind](weights, *_whole())
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert float(logits.detach().std()) > 1e-3


def _on(data: GraphData, kind: str, **explicit: Any) -> ExplicitModel:
    """A model of a graph in one process."""
    config = kind_config(kind)
    config = config.model_copy(update={"explicit": config.explicit.model_copy(update=explicit)})
    (shard,) = build_shards(data, torch.zeros(NODES, dtype=torch.int64), 1)
    model = Trainer(config, shard, Communicator()).model
    assert isinstance(model, ExplicitModel)
    return model


def _times(data: GraphData, change: Callable[[Tensor], Tensor | None]) -> GraphData:
    """The graph with other weights of its edges."""
    graph, *others = data.graphs
    assert graph.value is not None
    return replace(data, graphs=(replace(graph, value=change(graph.value)), *others))


@torch.no_grad()
def _logits(model: ExplicitModel) -> Tensor:
    return model.read_out(model(None))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_reads_the_weights_that_it_says_it_reads(kind: str) -> None:
    weighted = make_data("weights")
    found = _logits(_on(weighted, kind))
    without = _logits(_on(_times(weighted, lambda _: None), kind))
    assert torch.equal(found, without) is not KINDS[kind].reads_weights
    ones = _logits(_on(_times(weighted, torch.ones_like), kind))
    torch.testing.assert_close(ones, without, rtol=0, atol=1e-12)


def test_the_mean_of_demonet_is_one_whatever_the_scale_of_the_weights() -> None:
    weighted = make_data("weights")
    model = _on(weighted, "demonet")
    large = _on(_times(weighted, lambda weight: 100.0 * weight), "demonet")
    torch.testing.assert_close(_logits(large), _logits(model), rtol=1e-12, atol=1e-12)
    ones = _on(_times(weighted, torch.ones_like), "demonet")
    assert torch.equal(_logits(ones), _logits(_on(_times(weighted, lambda _: None), "demonet")))
    assert not torch.allclose(_logits(model), _logits(ones))


def test_what_all_nodes_share_of_the_hash_is_held_once() -> None:
    hashed = DegreeHash(torch.arange(50), 8, 7)
    assert [rho.shape[0] for rho, _ in hashed._tasks] == [50, 1]


@torch.no_grad()
def test_an_embedding_is_dropped_by_masks_of_its_own() -> None:
    """Those of the first layer would drop the same entries again."""
    trainer = kind_trainer(Communicator(), "embedding/mlp")
    model, identity = trainer.model, torch.eye(8, dtype=torch.float64)
    assert isinstance(model, ExplicitModel)
    kept = model.rows.linear(identity, 3) != 0.0
    other = model.drop(torch.ones(NODES, 8, dtype=torch.float64), 3, 0) != 0.0
    whole = ~kept.any(dim=1)
    assert 0 < int(whole.sum()) < NODES // 2  # node_dropout takes rows, and is asked for 0.1
    # of the same mask the rarer dropout would take no entry that the other leaves
    assert bool((~kept & other)[~whole].any())
    assert bool((model.rows.linear(identity, None) != 0.0).all())


_SHAPES = [
    (kind, {"layers": layers} | ({"jump": "cat"} if kind == "jknet" else {}))
    for kind in KINDS
    for layers in (1, 3)
]


@pytest.mark.parametrize(("kind", "explicit"), _SHAPES)
def test_parameters_and_rows_that_are_sent_are_counted(
    kind: str, explicit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what the memory budget is made, to the number."""
    model = _on(make_data(GRAPH), kind, **explicit)
    config = kind_config(kind)
    settings = config.explicit.model_copy(update=explicit)
    columns = KINDS[kind].columns(config.model, settings, CLASSES)
    held = sum(parameter.numel() for parameter in model.parameters())
    assert FEATURES * columns.first + columns.weights == held
    sent, with_halo = [0], GraphPart.with_halo

    def watched(part: GraphPart, tensors: Any, *rest: Any) -> list[Tensor]:
        sent.append(sum(tensor[0].numel() for tensor in tensors))
        return with_halo(part, tensors, *rest)

    monkeypatch.setattr(GraphPart, "with_halo", watched)
    model(None)
    assert max(sent) == columns.sent


def test_constraints_of_amgcn_are_those_of_all_pairs() -> None:
    """The Gram matrices of columns stand for those of nodes."""
    trainer, _ = _built("amgcn")
    state = torch.randn(NODES, 40, dtype=torch.float64)
    _, z_t, z_ct, z_cf, z_f = state.chunk(5, dim=1)
    centre = torch.eye(NODES).double() - 1.0 / NODES

    def likeness(z: Tensor) -> Tensor:
        unit = functional.normalize(z, dim=1)
        return unit @ unit.T

    def dependence(a: Tensor, b: Tensor) -> Tensor:
        return torch.trace(centre @ a @ a.T @ centre @ b @ b.T) / (NODES - 1) ** 2

    unlike = (likeness(z_ct) - likeness(z_cf)).square().mean()
    shared = dependence(z_t, z_ct) + dependence(z_f, z_cf)
    found = trainer.model.penalty(state, 0)
    torch.testing.assert_close(found, 0.5 * unlike + 0.3 * shared, rtol=1e-10, atol=0)


def test_hashes_of_a_degree_differ_and_share_what_is_common() -> None:
    rows = torch.eye(6, dtype=torch.float64)
    one, two = (DegreeHash(torch.full((6,), d), 6, 50)(rows) for d in (1, 2))
    again = DegreeHash(torch.full((6,), 1), 6, 50)(rows)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    both = (one != 0) & (two != 0)
    assert both.any(dim=1).all()  # the task of all nodes
    assert (one.abs().sum(dim=1) <= 2.0).all()


def test_layers_that_do_not_solve_report_nothing_of_solves() -> None:
    trainer, _ = _built("gcn")
    record = trainer.train_epoch()
    names = [name for name in record.values() if "evaluations" in name or "residual" in name]
    assert names == []
    assert (record.best_epoch, trainer.best.confirmed) == (2, True) or record.best_epoch == 1
    assert trainer.chooser.candidate.weights is None
    assert trainer.planner.states == {}
    with pytest.raises(UserError, match=r"^model.kind = gcn has no equilibrium to look into"):
        _ = trainer.implicit


def test_first_maps_take_the_features_before_the_first_hop() -> None:
    """No layer of PyG has a map of F rows, so nobody exchanges F columns."""
    trainer, _ = _built("gcn")
    model = trainer.model
    assert isinstance(model.layers, nn.ModuleList)
    assert isinstance(model.layers[0].lin, nn.Identity)
