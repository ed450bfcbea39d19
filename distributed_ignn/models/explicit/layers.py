"""PyTorch Geometric's message passing on a part: every ``propagate`` fetches what it reads.

A layer keeps its code and its parameters. Its class is replaced by a subclass, as torch does for
parametrisations and FSDP, whose ``propagate`` and ``edge_updater`` hand the layer's own a bipartite
graph: sources are owned and halo nodes, targets are owned nodes. All tensors outside of them have
one row for every owned node, so softmax, degrees and residual terms see whole neighbourhoods.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import GATConv, MessagePassing
from torch_geometric.nn.conv import gcn_conv

from distributed_ignn.errors import UserError
from distributed_ignn.models.explicit.graph_part import GraphPart
from distributed_ignn.models.explicit.message_blocks import (
    propagate_in_blocks,
    update_edges_in_blocks,
)
from distributed_ignn.models.explicit.normalise import gcn_norm
from distributed_ignn.models.explicit.row_sums import summed_rows
from distributed_ignn.models.explicit.rules import verified


class LayerBinding:
    """What ties a layer to a part of a graph; kept in its ``exact_binding``.

    Args:
        graph: the part.
        cls: the layer's own class.
        in_blocks: whether its messages may be made block by block.
    """

    def __init__(
        self, graph: GraphPart, cls: type[MessagePassing], *, in_blocks: bool | None = None
    ) -> None:
        self.graph = graph
        self.cls = cls
        self.in_blocks = verified(cls) if in_blocks is None else in_blocks
        self.forward = _forward_on(graph, cls)
        # of the forward pass under way, by tensor: its version, and its rows with the halo's
        self.sent: dict[int, tuple[Tensor, int, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerBinding:
        """A copied layer works on the same part."""
        return LayerBinding(self.graph, self.cls, in_blocks=self.in_blocks)

    def sources(self, layer: MessagePassing, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Rows of owned and halo nodes, of which one forward pass fetches none twice."""
        whole = self.graph.num_owned + self.graph.num_halo
        dim, name = layer.node_dim, type(layer).__name__
        new = {
            id(t): t
            for t in tensors
            if not self._has(t) and not (_lifts(self.cls) and t.shape[dim] == whole)
        }
        if new:
            found = self.graph.with_halo(list(new.values()), dim, name)
            for tensor, rows in zip(new.values(), found, strict=True):
                self.sent[id(tensor)] = tensor, _version(tensor), rows
        return [self.sent[id(t)][2] if self._has(t) else t for t in tensors]

    def _has(self, tensor: Tensor) -> bool:
        known = self.sent.get(id(tensor))
        return known is not None and known[1] == _version(tensor)


def _version(tensor: Tensor) -> int:
    """Changes when the tensor does, where torch counts that."""
    return 0 if tensor.is_inference() else tensor._version


def bind(layer: MessagePassing, graph: GraphPart) -> None:
    """Tie a layer to a part of a graph, in place.

    Raises:
        UserError: the layer works in a way that cannot be followed.
    """
    cls: type = type(layer)
    name = cls.__name__
    if layer.flow != "source_to_target":
        raise UserError(
            f"{name} has flow {layer.flow!r} and a rank knows the edges into its nodes only; use "
            "source_to_target, on a graph with all edges turned round"
        )
    if "propagate" in vars(layer):
        raise UserError(
            f"{name} has decomposed_layers or explain set, which replace propagate; leave them off"
        )
    if "edge_index" not in inspect.signature(layer.forward).parameters:
        raise UserError(
            f"{name} takes no edge_index, so it builds or reads its edges in a way of its own; use "
            "a layer that is called with edge_index"
        )
    _check_whole_arguments(layer)
    for key in [key for key in vars(layer) if key.startswith("_cached_")]:
        setattr(layer, key, None)  # of another graph
    layer.exact_binding = LayerBinding(graph, cls)
    layer.__class__ = _bound_class(cls)


def _check_whole_arguments(layer: MessagePassing) -> None:
    """A tensor of nodes cannot be handed over whole and per edge at once: which rows, then?"""
    for names in (layer._user_args, layer._edge_user_args):
        ends = {name[:-2] for name in names if name.endswith(("_i", "_j"))}
        for name in sorted(ends.intersection(names)):
            raise UserError(
                f"{type(layer).__name__} reads {name} both per edge and whole; give the whole "
                "tensor another name in its call of propagate"
            )


@cache
def _bound_class(cls: type[MessagePassing]) -> type[MessagePassing]:
    """A subclass that works on a part.

    The methods are in its own namespace: PyG compiles templates over those that it finds in bases.
    """

    def propagate(self: Any, edge_index: Tensor, size: Any = None, **kwargs: Any) -> Any:
        given = _on_part(self, self._user_args, kwargs)
        summed = summed_rows(self, cls, self.exact_binding.graph, edge_index, kwargs, given)
        if summed is not None:
            return summed
        cut = propagate_in_blocks(self, cls, self.exact_binding.graph, edge_index, given)
        return cls.propagate(self, edge_index, size=_size(self), **given) if cut is None else cut

    def edge_updater(self: Any, edge_index: Tensor, size: Any = None, **kwargs: Any) -> Any:
        given = _on_part(self, self._edge_user_args, kwargs)
        cut = update_edges_in_blocks(self, cls, self.exact_binding.graph, edge_index, given)
        return cls.edge_updater(self, edge_index, size=_size(self), **given) if cut is None else cut

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "propagate" in vars(self):
            raise UserError(
                f"{cls.__name__} had decomposed_layers or explain set after exact; leave them off"
            )
        binding = self.exact_binding
        given = _arguments(self, args, kwargs)
        try:
            with _lifting(self, given) if _lifts(cls) else nullcontext():
                return binding.forward(*given.args, **given.kwargs)
        finally:
            binding.sent.clear()

    methods = {"propagate": propagate, "edge_updater": edge_updater}
    methods["forward"] = torch.compiler.disable(forward)  # it talks to other ranks
    # behind the layer's own class, where its calls of super() look
    bases = [_counting_globally(base) for base in cls.__mro__[1:] if _normalises(base)]
    space = {**methods, "__module__": __name__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, *bases), space)


def _counting_globally(base: type[MessagePassing]) -> type[MessagePassing]:
    """A subclass whose ``forward`` counts degrees over the whole graph."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _forward_on(self.exact_binding.graph, base)(self, *args, **kwargs)

    return type(base.__name__, (base,), {"forward": forward, "__module__": __name__})


def _normalises(cls: type) -> bool:
    """Whether a class has a ``forward`` of its own that calls PyG's ``gcn_norm``."""
    names = getattr(vars(cls).get("forward"), "__globals__", {})
    return names.get("gcn_norm") is gcn_conv.gcn_norm


def _size(layer: Any) -> tuple[int, int]:
    graph = layer.exact_binding.graph
    return graph.num_owned + graph.num_halo, graph.num_owned


def _on_part(layer: Any, names: Sequence[str], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``propagate`` as pairs of source and target rows, by the names of its readers.

    Args:
        names: what is read; of a node's tensor ``x``, ``x_j`` are the rows of sources and ``x_i``
            those of targets.
    """
    from_source = {name[:-2] for name in names if name.endswith("_j")}
    from_target = {name[:-2] for name in names if name.endswith("_i")}
    pairs = {
        name: tuple(value) if isinstance(value, (tuple, list)) else (value, value)
        for name, value in kwargs.items()
        if name in from_source | from_target and value is not None
    }
    fetched = [n for n, (source, _) in pairs.items() if n in from_source and _is(source)]
    rows = layer.exact_binding.sources(layer, [pairs[name][0] for name in fetched])
    found = dict(zip(fetched, rows, strict=True))
    return kwargs | {name: (found.get(name), target) for name, (_, target) in pairs.items()}


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def _arguments(
    layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Arguments of the layer's ``forward``, with the graph's edges where none are given.

    Raises:
        UserError: the edges are not the graph's own.
    """
    graph, cls = layer.exact_binding.graph, layer.exact_binding.cls
    signature = inspect.signature(cls.forward)
    bound = signature.bind_partial(layer, *args, **kwargs)
    given = bound.arguments
    if given.get("edge_index") is None:
        given["edge_index"] = graph.edge_indices[0]
        if "edge_weight" in signature.parameters:
            given.setdefault("edge_weight", graph.edge_weights[0])
    elif graph.channel(given["edge_index"]) is None:
        raise UserError(
            f"{cls.__name__} was given an edge_index that is not the graph's own; give it "
            "graph.edge_index as it is, or none"
        )
    return bound


def _forward_on(graph: GraphPart, cls: type) -> Callable[..., Any]:
    """A layer's own ``forward`` that counts degrees over the whole graph.

    The code is the layer's; of the names that it finds in its module, ``gcn_norm`` is ours.
    """
    forward: Any = cls.forward  # type: ignore[attr-defined]
    if not _normalises(next(base for base in cls.__mro__ if "forward" in vars(base))):
        return forward
    ours = FunctionType(
        forward.__code__,
        {**forward.__globals__, "gcn_norm": partial(gcn_norm, graph)},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    ours.__kwdefaults__ = forward.__kwdefaults__
    return ours


def _lifts(cls: type) -> bool:
    """Whether a layer is GATConv, which scores sources before it propagates them.

    Both come from one linear map: where the halo's rows are fetched behind it, one exchange does.
    """
    return cls.forward is GATConv.forward  # type: ignore[attr-defined]


@contextmanager
def _lifting(layer: Any, given: inspect.BoundArguments) -> Iterator[None]:
    """Let a GATConv's linear map of sources have the halo's rows, too."""
    x = given.arguments.get("x")
    if isinstance(x, Tensor):
        given.arguments["x"] = x, x
    name = "lin" if layer.lin is not None else "lin_src"
    linear = layer._modules[name]
    layer._modules[name] = _Lifted(linear, layer)
    try:
        yield
    finally:
        layer._modules[name] = linear


class _Lifted:
    """A linear map of owned rows whose first result has the halo's rows, too.

    Args:
        linear: the map.
        layer: whose it is.
    """

    def __init__(self, linear: torch.nn.Module, layer: Any) -> None:
        self._linear = linear
        self._layer = layer
        self._seen: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._seen is not None:
            known, rows = self._seen
            return rows if x is known else self._linear(x)
        rows = self._linear(x)
        self._seen = x, rows
        graph = self._layer.exact_binding.graph
        return graph.with_halo([rows], 0, type(self._layer).__name__)[0]
