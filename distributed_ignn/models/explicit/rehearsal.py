"""A module tried on a small random graph, whole and in part, before it is trusted with a large one.

What other ranks would send is taken from a run on the whole small graph, so a rank tries alone. A
module that gives the same with a few messages at a time makes its messages block by block
(``message_blocks``).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import MessagePassing

from distributed_ignn.errors import UserError
from distributed_ignn.models.explicit.graph_part import GraphPart

_NODES, _OWNED = 12, 7
_DENSITY = 0.35
_EDGES_AT_ONCE = 4
_TOLERANCE = 1e-9


class _DiffersError(Exception):
    """The part has not given what the whole gives."""


def rehearse(
    module: Module, graph: GraphPart, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Compare a copy of ``module`` on a part of a small graph with itself on the whole of it.

    Args:
        module: bound to ``graph``; used in evaluation mode and float64.
        graph: the part that it is bound to.
        args, kwargs: of a call; rows of nodes and of edges are drawn from theirs. Arguments whose
            name begins with ``edge_`` belong to edges.

    Raises:
        UserError: they differ, or the part cannot be run.
    """
    if graph.num_owned == 0 or graph.edge_indices[0].shape[1] == 0:
        return  # nothing to draw from; the other ranks try it
    stage = _Stage(graph, _names(module, args), args, kwargs)
    name = type(module).__name__
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            expected = _on(module, stage.whole)(*stage.whole_args, **stage.whole_kwargs)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{name} cannot be tried on a small graph: {_in_one_line(error)}; if it works in "
                "one process, compare it yourself and give exact(..., check=False)"
            ) from error
        try:
            _compare(_on(module, stage.part)(*stage.part_args, **stage.part_kwargs), expected)
        except Exception as error:
            raise UserError(
                f"{name} is not exact on a divided graph: on a part of a small one, "
                f"{_in_one_line(error)}; take a layer that reads no more than a node's own edges, "
                "in any order"
            ) from error
        if _agrees_in_blocks(module, stage, expected):
            for layer in module.modules():
                if isinstance(layer, MessagePassing):
                    layer.exact_binding.in_blocks = True


def _agrees_in_blocks(module: Module, stage: _Stage, expected: Any) -> bool:
    """Whether the part gives the same with a few messages at a time; no fault if it does not."""
    part = replace(stage.part, edges_at_once=_EDGES_AT_ONCE)
    copied = _on(module, part)
    for layer in copied.modules():
        if isinstance(layer, MessagePassing):
            layer.exact_binding.in_blocks = True
    stage.record.begin_again()
    try:
        _compare(copied(*stage.part_args, **stage.part_kwargs), expected)
    except Exception:  # whatever it is, these messages have to be made at once
        return False
    return True


def _in_one_line(error: Exception) -> str:
    if isinstance(error, _DiffersError):
        return "it gives other rows than on the whole"
    return f"it fails with {type(error).__name__} ({' '.join(str(error).split())})"


def _names(module: Module, args: Sequence[Any]) -> tuple[str, ...]:
    """Names of positional arguments, empty where they have none."""
    binding = getattr(module, "exact_binding", None)
    forward = module.forward if binding is None else partial(binding.cls.forward, module)
    kinds = inspect.signature(forward).parameters.values()
    plain = [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD]
    return tuple(plain[i] if i < len(plain) else "" for i in range(len(args)))


def _on(module: Module, graph: GraphPart) -> Module:
    """A copy in float64 and evaluation mode, bound to ``graph``."""
    copied = copy.deepcopy(module)
    copied._forward_pre_hooks.clear()  # the one that has called this
    copied._forward_pre_hooks_with_kwargs.clear()
    part: Any
    for part in copied.modules():
        binding = getattr(part, "exact_binding", None)
        if binding is not None:
            part.exact_binding = type(binding)(graph, binding.cls)
        for key in [key for key in vars(part) if key.startswith("_cached_")]:
            setattr(part, key, None)
    return copied.to("cpu", torch.float64).eval()


class _Stage:
    """A small graph, its first nodes as a part of it, and a call's arguments for both."""

    def __init__(
        self,
        graph: GraphPart,
        names: Sequence[str],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._graph = graph
        self._draw = torch.Generator().manual_seed(0)
        linked = torch.rand(_NODES, _NODES, generator=self._draw) < _DENSITY
        self._edges = linked.fill_diagonal_(False).nonzero().T.contiguous()
        mine = (self._edges[1] < _OWNED).nonzero().flatten()
        self._mine = mine[torch.randperm(mine.numel(), generator=self._draw)]
        own = self._edges[:, self._mine].contiguous()
        channels = len(graph.edge_indices)
        weights = [self._of_edges(w) for w in graph.edge_weights]
        self.record = record = _Record()
        self.whole = GraphPart(
            torch.arange(_NODES),
            0,
            (self._edges,) * channels,
            tuple(whole for whole, _ in weights),
            lambda rows: record.add(rows)[:0],
            record.add,
        )
        self.part = GraphPart(
            torch.arange(_OWNED),
            _NODES - _OWNED,
            (own,) * channels,
            tuple(part for _, part in weights),
            lambda rows: _replayed(record, rows),
            lambda tensor: record.next(),
        )
        pairs = list(map(self._argument, names, args))
        named = {name: self._argument(name, value) for name, value in kwargs.items()}
        self.whole_args, self.part_args = ([pair[i] for pair in pairs] for i in (0, 1))
        self.whole_kwargs, self.part_kwargs = (
            {name: pair[i] for name, pair in named.items()} for i in (0, 1)
        )

    def _argument(self, name: str, value: Any) -> tuple[Any, Any]:
        """What the whole and the part are given for an argument of the call."""
        if isinstance(value, (tuple, list)):
            both = [self._argument(name, each) for each in value]
            return type(value)(b[0] for b in both), type(value)(b[1] for b in both)
        if not isinstance(value, Tensor):
            return value, value
        graph = self._graph
        if graph.channel(value) is not None:
            return self.whole.edge_indices[0], self.part.edge_indices[0]
        if any(value is weights for weights in graph.edge_weights):
            return self.whole.edge_weights[0], self.part.edge_weights[0]
        rows = value.shape[0] if value.dim() else 0
        of_edges = rows in [index.shape[1] for index in graph.edge_indices]
        if of_edges and (name.startswith("edge_") or rows != graph.num_owned):
            return self._of_edges(value)
        if rows == graph.num_owned:
            drawn = self._drawn(value, _NODES)
            return drawn, drawn[:_OWNED]
        other = value.double() if value.is_floating_point() else value
        return other.cpu(), other.cpu()

    def _of_edges(self, value: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if value is None:
            return None, None
        rows = self._drawn(value, self._edges.shape[1])
        return rows, rows[self._mine]

    def _drawn(self, rows: Tensor, count: int) -> Tensor:
        """So many rows, drawn with replacement, in float64 if they are floating."""
        chosen = torch.randint(rows.shape[0], (count,), generator=self._draw)
        found = rows.detach().index_select(0, chosen.to(rows.device)).cpu()
        return found.double() if found.is_floating_point() else found


class _Record:
    """What the whole graph has fetched and summed up, in order."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._place = 0

    def add(self, tensor: Tensor) -> Tensor:
        self._tensors.append(tensor.clone())  # a layer may go on to write over its own rows
        return tensor

    def next(self) -> Tensor:
        self._place += 1
        return self._tensors[self._place - 1]

    def begin_again(self) -> None:
        self._place = 0


def _replayed(record: _Record, rows: Tensor) -> Tensor:
    """The halo's rows of what the whole graph had at this point."""
    whole = record.next()
    if not _close(rows, whole[:_OWNED]):
        raise _DiffersError
    return whole[_OWNED:]


def _compare(found: Any, expected: Any) -> None:
    """Rows of the part's nodes must be those of the whole; a number of no node, the same."""
    for ours, theirs in zip(_tensors(found), _tensors(expected), strict=True):
        by_node = theirs.dim() > 0 and theirs.shape[0] == _NODES
        by_edge = not by_node and ours.shape != theirs.shape
        if not by_edge and not _close(ours, theirs[: ours.shape[0]] if by_node else theirs):
            raise _DiffersError


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    return torch.allclose(
        ours.double(), theirs.double(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
