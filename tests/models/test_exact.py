"""``exact`` in one process: what it refuses, what it tries first, and what it leaves as it was."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import AlphaDropout, BatchNorm1d, Dropout, LayerNorm, Linear, Module
from torch_geometric.nn import GCN, GraphSAGE, LabelPropagation, MessagePassing
from torch_geometric.nn import conv as pyg
from torch_geometric.utils import degree

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.models.explicit.exact import exact
from distributed_ignn.models.explicit.graph_part import GraphPart
from tests.parity.explicit_cases import OUT, WIDTH, attributes, built, divided, rows


class Centred(Module):
    """Reads all nodes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.GCNConv(WIDTH, OUT)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x - x.mean(0), edge_index)


class OutDegrees(MessagePassing):
    """Counts edges at their sources."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        count = degree(edge_index[0], x.shape[0]).clamp(min=1.0)
        return self.propagate(edge_index, x=x / count[: x.shape[0], None])


class First(MessagePassing):
    """Takes the first of a node's edges, whichever that is."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def aggregate(self, inputs: Tensor, index: Tensor, dim_size: int) -> Tensor:
        out = inputs.new_zeros(dim_size, inputs.shape[1])
        return out.index_copy(0, index.flip(0), inputs.flip(0))


class Whole(MessagePassing):
    """Its messages read a node's tensor per edge and whole."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_j: Tensor, x: Tensor) -> Tensor:
        return x_j + x.sum()


class Broken(Module):
    """Cannot be called on a graph of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.zeros(60, WIDTH))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return x + self.rows


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: GraphSAGE(WIDTH, 8, 2, norm="graph_norm"), r"GraphNorm \(norms.0\) cannot be"),
        (lambda: GraphSAGE(WIDTH, 8, 2, norm="pair_norm"), "PairNorm .* take BatchNorm"),
        (lambda: GraphSAGE(WIDTH, 8, 2, norm="instance_norm"), "InstanceNorm .* take BatchNorm"),
        (lambda: GCN(WIDTH, 8, 2, norm="layer_norm"), "mode 'graph'.* or LayerNorm with mode='no"),
        (lambda: pyg.SAGEConv(WIDTH, OUT, aggr="lstm"), "LSTMAggregation.*order of a node's edges"),
        (lambda: pyg.SAGEConv(WIDTH, OUT, aggr="median"), "MedianAggregation.*take another aggr"),
        (lambda: pyg.SAGEConv(WIDTH, OUT, flow="target_to_source"), "flow 'target_to_source'"),
        (lambda: pyg.SuperGATConv(WIDTH, OUT), "SuperGATConv cannot .* take GATConv or GATv2Conv"),
        (lambda: pyg.ChebConv(WIDTH, OUT, 2), "ChebConv cannot .* take TAGConv"),
        (lambda: pyg.GPSConv(WIDTH, pyg.SAGEConv(WIDTH, WIDTH)), "MultiheadAttention .attn. cann"),
        (lambda: pyg.SignedConv(WIDTH, OUT, True), "SignedConv takes no edge_index"),
        (lambda: pyg.GATConv(-1, OUT), "GATConv's lin.weight is not known yet"),
        (lambda: pyg.GCNConv(WIDTH, OUT, decomposed_layers=2), "GCNConv has decomposed_layers"),
        (lambda: AlphaDropout(0.5), "AlphaDropout cannot .* take Dropout"),
        (Whole, "Whole reads x both per edge and whole"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(make: Callable[[], Module], line: str) -> None:
    with pytest.raises(UserError, match=line) as refused:
        exact(make(), divided("plain", Communicator()))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (Centred, "Centred is not exact .* it gives other rows than on the whole"),
        (OutDegrees, "OutDegrees is not exact .* it fails with"),
        (First, "First is not exact .* it gives other rows than on the whole"),
        (lambda: LabelPropagation(2, 0.5), "LabelPropagation is not exact"),
        (lambda: pyg.DirGNNConv(pyg.SAGEConv(WIDTH, OUT)), "edge_index that is not the graph's"),
        (Broken, "Broken cannot be tried on a small graph: it fails with .*check=False"),
    ],
)
def test_what_is_not_known_is_tried_before_it_is_used(
    make: Callable[[], Module], line: str
) -> None:
    graph = divided("plain", Communicator())
    module = exact(built(make), graph)
    x = graph.y if isinstance(module, LabelPropagation) else graph.rows(rows(1))
    for _ in range(2):  # it stays refused
        with pytest.raises(UserError, match=line) as refused:
            module(x, graph.edge_index)
        assert "\n" not in str(refused.value)


def test_a_trial_is_made_once_and_can_be_left_out() -> None:
    graph = divided("plain", Communicator())
    x = graph.rows(rows(1))
    left_out = exact(built(Centred), graph, check=False)
    plain = built(Centred)(x, graph.edge_index)
    torch.testing.assert_close(left_out(x, graph.edge_index), plain, rtol=1e-13, atol=1e-13)
    calls: list[int] = []
    layer = exact(built(lambda: Counting(calls)), graph)
    layer(x, graph.edge_index)
    first = len(calls)
    layer(x, graph.edge_index)
    assert (first, len(calls)) == (4, 5)  # whole, part, part in blocks and the call


class Counting(MessagePassing):
    """Counts its calls."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self._calls = [calls]

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        copied = Counting(self._calls[0])
        if hasattr(self, "exact_binding"):
            copied.exact_binding = copy.copy(self.exact_binding)
            copied.__class__ = type(self)
        return copied

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        self._calls[0].append(1)
        return self.propagate(edge_index, x=x)


class WritesOver(MessagePassing):
    """Goes on with the memory of the rows that it has sent."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        sent = x + 1.0
        return self.propagate(edge_index, x=sent) + sent.mul_(2.0)


def test_rows_of_one_tensor_are_sent_as_they_are() -> None:
    """Without a copy, also where a layer writes over them afterwards."""
    graph = divided("plain", Communicator())
    seen: list[Tensor] = []

    def fetch(sent: Tensor) -> Tensor:
        seen.append(sent)
        return sent[:2]

    part = GraphPart(torch.arange(3), 2, (), (), fetch, lambda total: total)
    one, two = torch.rand(3, 4), torch.rand(3)
    assert torch.equal(part.with_halo([one], 0, "test")[0], torch.cat([one, one[:2]]))
    part.with_halo([one, two], 0, "test")
    assert seen[0].data_ptr() == one.data_ptr()
    assert torch.equal(seen[1], torch.cat([one, two[:, None]], dim=1))
    layer, x = exact(built(WritesOver), graph), graph.rows(rows(1))
    plain = built(WritesOver)(x, graph.edge_index)
    torch.testing.assert_close(layer(x, graph.edge_index), plain, rtol=1e-13, atol=1e-13)


def test_a_layer_stays_what_it_was() -> None:
    graph = divided("plain", Communicator())
    layer = built(lambda: pyg.GATConv(WIDTH, OUT))
    before = copy.deepcopy(layer.state_dict())
    same = exact(layer, graph)
    assert same is layer
    assert isinstance(layer, pyg.GATConv)
    assert repr(layer) == repr(pyg.GATConv(WIDTH, OUT))
    assert list(layer.state_dict()) == list(before)
    layer.load_state_dict(before)
    x = graph.rows(rows(1))
    with torch.inference_mode():
        expected = layer(x)
        copied = copy.deepcopy(layer)
        assert torch.equal(copied(x, graph.edge_index), expected)
        out, (edges, alpha) = layer(x, return_attention_weights=True)
    assert torch.equal(out, expected)
    assert edges.shape[1] == alpha.shape[0] == graph.edge_index.shape[1] + graph.num_owned


def test_compiled_models_call_layers_as_they_are() -> None:
    graph = divided("plain", Communicator())
    model = exact(built(lambda: GCN(WIDTH, 8, 2, OUT, norm="batch_norm")), graph)
    x = graph.rows(rows(1))
    with torch.no_grad():
        expected = model.eval()(x, graph.edge_index)
        found = torch.compile(model, backend="eager")(x, graph.edge_index)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_what_a_cache_held_of_another_graph_is_forgotten() -> None:
    graph = divided("plain", Communicator())
    layer = built(lambda: pyg.GCNConv(WIDTH, OUT, cached=True))
    x = graph.rows(rows(1))
    other = torch.tensor([[0, 1], [1, 0]])
    layer(x, other)
    fresh = built(lambda: pyg.GCNConv(WIDTH, OUT))
    torch.testing.assert_close(exact(layer, graph)(x), fresh(x, graph.edge_index))


def test_other_edges_and_rows_are_refused() -> None:
    graph = divided("plain", Communicator())
    layer = exact(built(lambda: pyg.SAGEConv(WIDTH, OUT)), graph)
    x = graph.rows(rows(1))
    with pytest.raises(UserError, match="SAGEConv was given an edge_index that is not the graph's"):
        layer(x, graph.edge_index.clone())
    with pytest.raises(UserError, match="SAGEConv was given 59 rows and this rank owns 60 nodes"):
        layer(x[:-1], graph.edge_index)
    with pytest.raises(UserError, match=r"SAGEConv cannot be exact .* bound to a graph already"):
        exact(layer, graph)
    layer.explain = True
    with pytest.raises(UserError, match="explain"):
        layer(x)


def test_batch_normalisation_is_torchs_in_one_process() -> None:
    graph = divided("plain", Communicator())
    x = rows(4) * 3.0 + 1.0
    for options in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}):
        ours, theirs = (BatchNorm1d(WIDTH, **options).double() for _ in range(2))
        exact(ours, graph)
        for part in (x, 2.0 * x, x):
            torch.testing.assert_close(ours(part), theirs(part), rtol=1e-12, atol=1e-12)
        ours.eval()
        theirs.eval()
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        exact(BatchNorm1d(WIDTH), graph)(torch.ones(1, WIDTH))


def test_dropout_is_drawn_anew_and_scaled() -> None:
    graph = divided("plain", Communicator())
    drop = exact(Dropout(0.25), graph, seed=1)
    x = torch.ones(60, 200, dtype=torch.float64)
    first, second = drop(x), drop(x)
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0 / 0.75}
    assert float((first == 0.0).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(drop.eval()(x), x)
    assert not exact(Dropout(1.0), graph)(x).any()
    again = exact(Dropout(0.25), graph, seed=1)
    assert torch.equal(again(x), first)
    assert not torch.equal(exact(Dropout(0.25), graph, seed=2)(x), first)


def test_row_wise_modules_pass() -> None:
    graph = divided("plain", Communicator())
    module = exact(torch.nn.Sequential(LayerNorm(WIDTH), Linear(WIDTH, OUT)).double(), graph)
    assert module(graph.rows(rows(1))).shape == (60, OUT)


def test_one_process_draws_as_it_always_did() -> None:
    """Of which there is nothing to say; warnings are errors here."""
    graph = divided("plain", Communicator())
    exact(pyg.GATConv(WIDTH, OUT, dropout=0.6), graph)


def test_edges_can_be_looked_up() -> None:
    graph = divided("directed", Communicator())
    edges = graph.global_edge_index
    layer = exact(built(lambda: pyg.GATv2Conv(WIDTH, OUT, edge_dim=2)), graph)
    with_edges = layer(graph.rows(rows(1)), graph.edge_index, attributes(edges))
    assert with_edges.shape == (60, OUT)
    assert re.fullmatch(r"DistributedGraph\(rank 0 of 1, 60 of 60 nodes, \d+ edges\)", repr(graph))
