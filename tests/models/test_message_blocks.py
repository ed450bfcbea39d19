"""Messages that are made block by block give what all at once give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Linear, Module, ReLU
from torch_geometric.nn import MessagePassing
from torch_geometric.nn import conv as pyg

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.explicit import message_blocks
from distributed_ignn.models.explicit.exact import exact
from distributed_ignn.models.explicit.message_blocks import EdgeOrder
from tests.parity.cases import make_data
from tests.parity.explicit_cases import (
    LAYERS,
    OUT,
    WIDTH,
    built,
    curvature,
    divided,
    on_part,
    on_whole,
    rows,
    whole_edges,
)

#: Those that need messages, and leave nothing behind in the layer as TransformerConv does.
_CUT = {
    *("GAT", "GAT mean", "GAT edges", "GAT two maps", "GATv2", "GATv2 shared", "GATv2 edges"),
    *("SAGE max", "SAGE many", "GINE", "Graph weighted", "GCN weighted", "ResGated"),
    *("GAT extended", "own"),  # tried first
}


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of a few edges; as many entries as blocks were carried out."""
    monkeypatch.setattr(message_blocks, "EDGES_PER_NODE", 0)
    monkeypatch.setattr(message_blocks, "FEWEST_EDGES", 5)
    found: list[int] = []
    plain = message_blocks._Block.__call__

    def noted(self: message_blocks._Block, step: message_blocks.Step) -> Tensor:
        found.append(self.order.numel())
        return plain(self, step)

    monkeypatch.setattr(message_blocks._Block, "__call__", noted)
    return found


@pytest.mark.parametrize("graph", ["plain", "awkward"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_give_what_they_give_without_blocks(name: str, graph: str, cut: list[int]) -> None:
    """Outputs and gradients; ``awkward`` has nodes without edges, and one with many."""
    found = on_part(divided(graph, Communicator()), LAYERS[name])
    for key, value in on_whole(graph, name).items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)
    assert bool(cut) == (name in _CUT)
    assert len(cut) != 1


def test_gradients_of_gradients(cut: list[int]) -> None:
    graph = divided("plain", Communicator())
    layer, edges = built(lambda: pyg.GATConv(WIDTH, OUT)), whole_edges(make_data("plain"))
    expected = curvature(layer, rows(1), edges)
    found = curvature(exact(layer, graph), graph.rows(rows(1)), graph.edge_index)
    assert cut
    torch.testing.assert_close(graph.gather(found), expected, rtol=1e-10, atol=1e-12)


def test_masks_are_drawn_once(cut: list[int]) -> None:
    """What is dropped in the forward pass is dropped in the backward pass."""
    graph = divided("plain", Communicator())
    layer = exact(built(lambda: pyg.GATConv(WIDTH, OUT, dropout=0.5, bias=False)), graph)
    x = graph.rows(rows(1)).requires_grad_()
    layer.att_src.data.zero_()  # so that the output is linear in x
    layer.att_dst.data.zero_()
    out = layer(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert cut
    torch.testing.assert_close((gradient * x).sum(), out.sum())


class Heads(pyg.GATConv):
    """A layer of one's own whose messages need nothing else."""


class Counting(MessagePassing):
    """Looks up something of its own by the number of the target."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        self.scale = torch.bincount(edge_index[1], minlength=x.shape[0]).to(x.dtype)
        return self.propagate(edge_index, x=x)

    def message(self, x_j: Tensor, index: Tensor) -> Tensor:
        return x_j * self.scale[index, None]


@pytest.mark.parametrize(
    ("make", "cuts"), [(lambda: Heads(WIDTH, OUT), True), (Counting, False)], ids=["own", "index"]
)
def test_a_layer_of_ones_own_is_tried_first(
    make: Callable[[], MessagePassing], cuts: bool, cut: list[int]
) -> None:
    graph, edges = divided("plain", Communicator()), whole_edges(make_data("plain"))
    layer = exact(built(make), graph)
    assert not layer.exact_binding.in_blocks
    found = layer(graph.rows(rows(1)), graph.edge_index)
    assert layer.exact_binding.in_blocks == cuts
    assert bool(cut) == cuts or not cuts
    expected = built(make)(rows(1), edges)
    torch.testing.assert_close(graph.gather(found), expected, rtol=1e-12, atol=1e-12)
    cut.clear()
    untried = exact(built(make), graph, check=False)
    untried(graph.rows(rows(1)), graph.edge_index)
    assert not cut


class Scaled(MessagePassing):
    """Normalises messages in a method that ``message`` calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = BatchNorm1d(WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_j: Tensor) -> Tensor:
        return self.scaled(x_j)

    def scaled(self, rows: Tensor) -> Tensor:
        return self.norm(rows)


def _net(width: int) -> Module:
    return torch.nn.Sequential(Linear(width, OUT), BatchNorm1d(OUT), ReLU())


@pytest.mark.parametrize(
    ("make", "cuts"),
    [
        (lambda: pyg.EdgeConv(_net(2 * WIDTH)), False),
        (Scaled, False),
        (lambda: pyg.GINEConv(_net(WIDTH), edge_dim=WIDTH), True),  # after all messages
    ],
    ids=["message", "method", "update"],
)
def test_messages_that_are_normalised_together_are_made_at_once(
    make: Callable[[], MessagePassing], cuts: bool, cut: list[int]
) -> None:
    """A mean over the edges of all ranks, which every rank has to take once."""
    graph, edges = divided("plain", Communicator()), whole_edges(make_data("plain"))
    layer, whole = exact(built(make), graph), built(make)
    extra = {"edge_attr": torch.ones(edges.shape[1], WIDTH).double()} if cuts else {}
    found = layer.train()(graph.rows(rows(1)), graph.edge_index, **extra)
    expected = whole.train()(rows(1), edges, **extra)
    assert bool(cut) == cuts
    torch.testing.assert_close(graph.gather(found), expected, rtol=1e-10, atol=1e-12)
    counts = [value for name, value in layer.named_buffers() if name.endswith("tracked")]
    assert counts == [1]


def test_messages_that_are_watched_are_made_at_once(cut: list[int]) -> None:
    graph = divided("plain", Communicator())
    watched = exact(built(lambda: pyg.GATConv(WIDTH, OUT)), graph)
    watched.register_message_forward_hook(lambda *_: None)
    watched(graph.rows(rows(1)))
    assert not cut


def test_no_message_is_kept(cut: list[int]) -> None:
    """What autograd keeps for an edge is its scores; x is kept as it is, not edge by edge."""
    graph = divided("plain", Communicator())
    heads, columns = 2, 50
    layer = exact(built(lambda: pyg.GATConv(WIDTH, columns, heads=heads)), graph)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(graph.rows(rows(1)).requires_grad_())
    assert cut
    number = graph.edge_index.shape[1]
    assert number > 3 * graph.num_owned
    assert max(kept) <= max(out.numel(), number * heads) < number * heads * columns / 3


def test_the_order_of_edges_is_found_once(monkeypatch: pytest.MonkeyPatch, cut: list[int]) -> None:
    made: list[int] = []
    plain = EdgeOrder.of

    def counted(target: Tensor, part: message_blocks.GraphPart) -> EdgeOrder:
        made.append(target.numel())
        return plain(target, part)

    monkeypatch.setattr(EdgeOrder, "of", counted)
    graph = divided("plain", Communicator())
    layer = exact(built(lambda: pyg.GATConv(WIDTH, OUT)), graph)
    for _ in range(3):
        layer(graph.rows(rows(1)))
    assert cut
    assert len(made) == 1


@pytest.mark.parametrize("degrees", [[3, 0, 0, 9, 1, 1, 1, 0], [0, 0], [7], [0, 5, 5, 0], [2] * 9])
def test_blocks_have_whole_nodes_and_few_edges(degrees: list[int], cut: list[int]) -> None:
    del cut  # five edges
    target = torch.repeat_interleave(torch.arange(len(degrees)), torch.tensor(degrees))
    target = target[torch.randperm(target.numel())]
    part = _Part(len(degrees))
    order = EdgeOrder.of(target, part)  # type: ignore[arg-type]
    assert target[order.order].tolist() == sorted(target.tolist())
    assert (sum(order.nodes), sum(order.edges)) == (len(degrees), len(target))
    nodes = iter(degrees)
    for count, edges in zip(order.nodes, order.edges, strict=True):
        block = [next(nodes) for _ in range(count)]
        assert sum(block) == edges
        assert edges <= 5 or len(block) == 1


class _Part:
    """As much of a part as its order needs."""

    def __init__(self, owned: int) -> None:
        self.num_owned, self.num_halo, self.edges_at_once = owned, 0, None
