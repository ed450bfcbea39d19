"""Messages of a part block by block, where a layer needs them and all at once would be too many.

A message for every edge, [E, D], is many times the state on a graph of large degree, and autograd
would keep it for the backward pass. A block is a range of owned nodes with all edges into them, and
so a graph by itself: softmax, maximum and mean over neighbours are whole in it. Its messages are
made, summed up and let go of, and made once more in the backward pass (gradient checkpointing).

Letters: O owned nodes, H halo nodes, E edges into owned nodes, D columns.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import MessagePassing

from distributed_ignn.models.explicit.graph_part import GraphPart
from distributed_ignn.models.explicit.rules import watched

EDGES_PER_NODE = 4
"""A block has so many edges for each node of the part, so its messages are four states large.

The gradient of each block is as large as a state, so there must not be many. Twelve epochs of a GAT
on flickr (7,575 nodes, 479,476 edges, 513 columns) took 29.4 s of a CPU core and 1.2 GB; 31.5 s
with 8, 32.7 s with 2, 35.6 s with 1, and without blocks 39.1 s and 4.7 GB.
"""
FEWEST_EDGES = 1 << 13
"""Nor is a block smaller than this: below, what surrounds a block takes longer than its sums."""
_KEPT_ORDERS = 2

Step = Callable[..., Tensor]


def edges_of_block(nodes: int) -> int:
    """How many messages are made at once on a part of so many owned and halo nodes."""
    return max(FEWEST_EDGES, EDGES_PER_NODE * nodes)


@dataclass(frozen=True, slots=True, eq=False)
class EdgeOrder:
    """The edges of a part in the order of their targets, cut into blocks.

    Args:
        target: int64 [E], of the edges as they were given, which tells whether it still fits.
        order: int64 [E], their places in the new order.
        nodes, edges: of each block, in order; they sum up to O and E.
    """

    target: Tensor
    order: Tensor
    nodes: tuple[int, ...]
    edges: tuple[int, ...]

    @classmethod
    def of(cls, target: Tensor, part: GraphPart) -> EdgeOrder:
        """For targets that are owned nodes."""
        order = torch.argsort(target, stable=True)
        count = torch.bincount(target, minlength=part.num_owned).cpu()
        until = count.cumsum(0)
        limit = part.edges_at_once or edges_of_block(part.num_owned + part.num_halo)
        cuts, edges = [0], [0]
        while cuts[-1] < part.num_owned:
            cut = int(torch.searchsorted(until, edges[-1] + limit, right=True))
            cuts.append(max(cut, cuts[-1] + 1))  # a node of more edges is a block by itself
            edges.append(int(until[cuts[-1] - 1]))
        nodes = tuple(b - a for a, b in pairwise(cuts))
        return cls(target.clone(), order, nodes, tuple(b - a for a, b in pairwise(edges)))


def propagate_in_blocks(
    layer: MessagePassing, cls: Any, part: GraphPart, edge_index: Tensor, rows: Mapping[str, Any]
) -> Tensor | None:
    """What ``propagate`` of a layer gives, [O, ...]; None where it has to see all edges at once.

    Args:
        layer: of the class ``cls``.
        cls: the layer's own class, a subclass of ``MessagePassing``.
        part: of the graph.
        edge_index: that the layer was given, [2, E].
        rows: further arguments of ``propagate``: pairs of source and target rows, what belongs to
            edges, [E, ...], and what belongs to neither.
    """
    if cls.update is not MessagePassing.update:
        return None
    cut = _cut(layer, cls, part, edge_index, rows)
    if cut is None:
        return None
    step = partial(cls.propagate, layer)
    return torch.cat([block(step) for block in _blocks(cut, part, edge_index, rows)])


def update_edges_in_blocks(
    layer: MessagePassing, cls: Any, part: GraphPart, edge_index: Tensor, rows: Mapping[str, Any]
) -> Tensor | None:
    """What ``edge_updater`` of a layer gives, [E, ...]; else as ``propagate_in_blocks``."""
    cut = _cut(layer, cls, part, edge_index, rows)
    if cut is None:
        return None
    step = partial(cls.edge_updater, layer)
    found = torch.cat([block(step) for block in _blocks(cut, part, edge_index, rows)])
    place = torch.empty_like(cut.order)
    place[cut.order] = torch.arange(place.numel(), device=place.device)
    return found.index_select(0, place)


def _cut(
    layer: MessagePassing, cls: Any, part: GraphPart, edge_index: Tensor, rows: Mapping[str, Any]
) -> EdgeOrder | None:
    """Where to cut the edges; None where all messages are made at once."""
    sources, number = part.num_owned + part.num_halo, edge_index.shape[1]
    if number <= (part.edges_at_once or edges_of_block(sources)) or not _can_be_cut(layer, cls):
        return None
    if number == part.num_owned or not all(_lies_in_rows(layer, each) for each in rows.values()):
        return None  # rows of edges and of nodes could not be told apart
    return _edge_order(part, edge_index)


def _blocks(
    cut: EdgeOrder, part: GraphPart, edge_index: Tensor, rows: Mapping[str, Any]
) -> Iterator[_Block]:
    """For each block what carries out a step of the layer on it."""
    sources, number = part.num_owned + part.num_halo, edge_index.shape[1]
    pieces = {name: list(_pieces(value, cut, number)) for name, value in rows.items()}
    first = 0
    for at, order in enumerate(cut.order.split(list(cut.edges))):
        given = {name: values[at] for name, values in pieces.items()}
        yield _Block(edge_index, order, first, (sources, cut.nodes[at]), given)
        first += cut.nodes[at]


def _pieces(value: Any, cut: EdgeOrder, number: int) -> Iterator[Any]:
    """What each block is given of an argument."""
    if isinstance(value, tuple):
        source, target = value
        targets: Sequence[Any] = [None] * len(cut.nodes)
        if target is not None:
            targets = target.split(list(cut.nodes))
        yield from ((source, each) for each in targets)
    elif isinstance(value, Tensor) and value.dim() and value.shape[0] == number:
        yield from value.index_select(0, cut.order).split(list(cut.edges))
    else:
        yield from [value] * len(cut.nodes)


def _can_be_cut(layer: MessagePassing, cls: Any) -> bool:
    """Whether a layer's messages are known to need no more than a node's own edges.

    A layer of a user's might look up something of its own by the number of the target, so it is
    tried first (``rehearsal``).
    """
    known: bool = layer.exact_binding.in_blocks
    return known and not (
        layer.explain or watched(layer) or _keeps_something(cls) or _normalises_edges(layer, cls)
    )


@cache
def _keeps_something(cls: Any) -> bool:
    """Whether messages leave something behind in the layer, which would be of the last block."""
    return any(
        each.opname == "STORE_ATTR"
        for method in (cls.message, cls.edge_update)
        for each in dis.get_instructions(method)
    )


def _normalises_edges(layer: MessagePassing, cls: Any) -> bool:
    """Whether messages go through a batch normalisation, whose mean is over all edges of all ranks.

    Ranks have unlike numbers of blocks, so a sum over ranks in each would not even end.
    """
    return any(
        isinstance(part, _BatchNorm)
        for name, child in layer.named_children()
        if name in _named_by_messages(cls)
        for part in child.modules()
    )


@cache
def _named_by_messages(cls: Any) -> frozenset[str]:
    """Names in the code that makes and sums up messages, and in the methods that it names."""
    found: set[str] = set()
    codes = [_code(cls, name) for name in ("message", "edge_update", "aggregate")]
    while codes:
        code = codes.pop()
        if code is None:
            continue
        new = set(code.co_names) - found
        found |= new
        codes += [_code(cls, name) for name in new]
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
    return frozenset(found)


def _code(cls: Any, name: str) -> CodeType | None:
    """Of a method of a class; None where it has no such method."""
    method = getattr(cls, name, None)
    return None if method is None else getattr(inspect.unwrap(method), "__code__", None)


def _lies_in_rows(layer: MessagePassing, value: Any) -> bool:
    """Whether nodes are the first dimension of what there is of them."""
    return not isinstance(value, tuple) or all(
        each is None or layer.node_dim in (0, -each.dim()) for each in value
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    edge_index: Tensor
    order: Tensor
    first: int
    size: tuple[int, int]
    given: Mapping[str, Any]

    def __call__(self, step: Step) -> Tensor:
        def made(**given: Any) -> Tensor:
            source, target = self.edge_index.index_select(1, self.order)
            edges = torch.stack([source, target - self.first])
            return step(edges, size=self.size, **given)

        if not torch.is_grad_enabled():
            return made(**self.given)
        found: Tensor = checkpoint(made, use_reentrant=False, **self.given)
        return found


def _edge_order(part: GraphPart, edge_index: Tensor) -> EdgeOrder:
    """The order of these edges, kept: layers that add self-loops add the same in every call."""
    target = edge_index[1]
    for at, known in enumerate(part.orders):
        if known.target.shape == target.shape and torch.equal(known.target, target):
            part.orders.insert(0, part.orders.pop(at))
            return known
    part.orders.insert(0, EdgeOrder.of(target, part))
    del part.orders[_KEPT_ORDERS:]
    return part.orders[0]
