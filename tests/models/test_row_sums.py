"""Layers whose messages are only summed multiply by the edges instead; the others do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.nn import conv as pyg

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.explicit.exact import exact
from distributed_ignn.models.explicit.row_sums import RowSums
from tests.parity.explicit_cases import OUT, WIDTH, built, divided, rows

Make = Callable[[], MessagePassing]


class Halved(pyg.GCNConv):
    """Sends something else than what its product would sum."""

    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        return 0.5 * super().message(x_j, edge_weight)


class Shifted(pyg.SAGEConv):
    """Does something with the mean."""

    def update(self, inputs: Tensor) -> Tensor:
        return inputs + 1.0


def _net() -> torch.nn.Linear:
    return torch.nn.Linear(WIDTH, OUT)


_PRODUCTS: dict[str, Make] = {
    "GCN": lambda: pyg.GCNConv(WIDTH, OUT),
    "GCN plain": lambda: pyg.GCNConv(WIDTH, OUT, normalize=False),
    "SAGE": lambda: pyg.SAGEConv(WIDTH, OUT),
    "SAGE sum": lambda: pyg.SAGEConv(WIDTH, OUT, aggr="sum"),
    "GIN": lambda: pyg.GINConv(_net()),
    "Graph": lambda: pyg.GraphConv(WIDTH, OUT),
    "SGC": lambda: pyg.SGConv(WIDTH, OUT, K=2),
    "APPNP": lambda: pyg.APPNP(3, 0.1),
    "TAG": lambda: pyg.TAGConv(WIDTH, OUT, K=2),
    "LG": lambda: pyg.LGConv(),
    "Simple": lambda: pyg.SimpleConv("mean"),
}
_MESSAGES: dict[str, Make] = {
    "GAT": lambda: pyg.GATConv(WIDTH, OUT),
    "SAGE max": lambda: pyg.SAGEConv(WIDTH, OUT, aggr="max"),
    "SAGE many": lambda: pyg.SAGEConv(WIDTH, OUT, aggr=["mean", "std"]),
    "Halved": lambda: Halved(WIDTH, OUT),
    "Shifted": lambda: Shifted(WIDTH, OUT),
}


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reductions of the products that are taken from here on."""
    taken: list[str] = []
    plain = RowSums.__call__

    def noted(self: RowSums, rows: Tensor, reduce: str) -> Tensor:
        taken.append(reduce)
        return plain(self, rows, reduce)

    monkeypatch.setattr(RowSums, "__call__", noted)
    return taken


def _outcome(layer: MessagePassing, x: Tensor) -> list[Tensor]:
    """Output, and gradients by x and the parameters of a loss that weighs every entry."""
    x = x.detach().requires_grad_()
    out = layer(x)
    weights = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).view_as(out)
    leaves = [x, *layer.parameters()]
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.mark.parametrize("graph", ["plain", "awkward", "weights"])
@pytest.mark.parametrize("name", _PRODUCTS)
def test_a_product_gives_what_messages_give(name: str, graph: str, products: list[str]) -> None:
    whole = divided(graph, Communicator())
    x, layer = whole.rows(rows(1)), exact(built(_PRODUCTS[name]), whole)
    found = _outcome(layer, x)
    assert products
    products.clear()
    layer.register_message_forward_hook(lambda *_: None)  # messages are wanted now
    expected = _outcome(layer, x)
    assert not products
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", _MESSAGES)
def test_other_layers_have_their_messages(name: str, products: list[str]) -> None:
    whole = divided("plain", Communicator())
    x, plain = whole.rows(rows(1)), built(_MESSAGES[name])
    expected = plain(x, whole.edge_index)
    torch.testing.assert_close(exact(plain, whole)(x), expected, rtol=1e-12, atol=1e-12)
    assert not products


def test_weights_of_ones_own_are_messages(products: list[str]) -> None:
    """They may be learned, and no product is kept for what changes."""
    whole = divided("plain", Communicator())
    x, layer = whole.rows(rows(1)), exact(built(lambda: pyg.GraphConv(WIDTH, OUT)), whole)
    weight = torch.rand(whole.edge_index.shape[1], dtype=x.dtype, requires_grad=True)
    layer(x, whole.edge_index, weight).sum().backward()
    assert not products
    assert weight.grad is not None
    assert bool(weight.grad.any())


def test_a_product_is_made_once(products: list[str]) -> None:
    whole = divided("plain", Communicator())
    x, layer = whole.rows(rows(1)), exact(built(lambda: pyg.GCNConv(WIDTH, OUT)), whole)
    for _ in range(3):
        layer(x)
    assert products == ["add"] * 3
    assert len(layer.exact_binding.graph.sums) == 1
