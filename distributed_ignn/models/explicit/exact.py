"""``exact``: a module of PyTorch Geometric layers that gives on k ranks what it gives on one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Dropout, Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch_geometric.nn import MessagePassing

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.models.explicit.graph_part import GraphPart
from distributed_ignn.models.explicit.layers import bind
from distributed_ignn.models.explicit.rehearsal import rehearse
from distributed_ignn.models.explicit.rules import check as check_rules
from distributed_ignn.models.explicit.rules import dropping, needs_rehearsal
from distributed_ignn.models.explicit.synchronised import synchronise

M = TypeVar("M", bound=Module)
_SEED_STEP = 4099  # keeps the masks of a model's dropouts apart


class Divided(Protocol):
    """What ``exact`` needs of a DistributedGraph."""

    @property
    def part(self) -> GraphPart:
        """This rank's part."""

    @property
    def comm(self) -> Communicator:
        """This rank's communicator."""


def exact(module: M, graph: Divided, *, seed: int = 0, check: bool = True) -> M:
    """Make PyTorch Geometric layers on k ranks give what they give in one process.

    ``module`` is a ``MessagePassing`` layer, or any module with such layers inside, and is changed
    in place, as ``convert_sync_batchnorm`` changes its argument; parameters, their names and the
    state dict stay as they are. Called as before, with tensors that have one row for every node
    that this rank owns and with ``graph.edge_index``, it returns the owned rows, [O, D], of what it
    would return for the whole graph. Every ``propagate`` fetches the rows that it reads from other
    ranks, in one exchange, and the backward pass sends their gradients home in one. A layer called
    without ``edge_index`` takes the graph's, and its weights where it has an ``edge_weight``.

    Gradients of inputs are those of the whole graph's loss; those of parameters are this rank's
    share of them, until ``graph.sum_gradients(module)`` adds the shares up. Batch normalisations
    take their statistics over all ranks. A ``Dropout`` module draws a mask per node, which does not
    depend on the ranks; dropout that a layer draws inside (``GATConv.dropout``) does, and is the
    one thing that is not the same as in one process, of which rank 0 warns (``UserWarning``).

    All ranks must call this, and then the module, alike. Parameters and buffers become those of
    rank 0.

    Args:
        module: the layer or model.
        graph: a DistributedGraph.
        seed: of the masks of ``Dropout`` modules.
        check: try modules that this package's tests do not cover on a small graph, when they are
            first called, and refuse those that are not exact.

    Raises:
        UserError: a module inside cannot be exact, such as one that reads statistics of all nodes;
            or ``graph`` is no DistributedGraph.
    """
    if not hasattr(graph, "part"):
        raise UserError(
            f"exact(module, graph) was given a graph of type {type(graph).__name__}; give a "
            "DistributedGraph, as DistributedGraph.divide(data) makes one"
        )
    check_rules(module)
    _agree_on_values(module, graph.comm)
    unknown = check and needs_rehearsal(module)
    for number, part in enumerate(list(module.modules())):
        if isinstance(part, MessagePassing):
            bind(part, graph.part)
        elif isinstance(part, (_BatchNorm, Dropout)):
            synchronise(part, graph.part, seed * _SEED_STEP + number)
    _mention_masks(module, graph.comm)
    if unknown:
        _rehearse_at_first_call(module, graph)
    return module


def _agree_on_values(module: Module, comm: Communicator) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    tensors: Iterator[Tensor] = chain(module.parameters(), module.buffers())
    for tensor in tensors:
        value = tensor.detach().clone() if comm.is_main else torch.zeros_like(tensor)
        whole = value.to(torch.uint8) if value.dtype is torch.bool else value
        tensor.data.copy_(comm.sum(whole))


def _mention_masks(module: Module, comm: Communicator) -> None:
    """Warn, on rank 0, of what is not exact: a program need not show the log."""
    names = sorted(set(dropping(module)))
    if names and comm.is_main and comm.world_size > 1:
        warnings.warn(
            f"{', '.join(names)}: masks drawn inside a layer are drawn by every rank for itself, "
            "so training is not the same as in one process; set it to 0 and use torch.nn.Dropout, "
            "whose masks belong to nodes",
            UserWarning,
            stacklevel=3,
        )


def _rehearse_at_first_call(module: Module, graph: Divided) -> None:
    @torch.compiler.disable
    def hook(called: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        graph.comm.together(lambda: rehearse(called, graph.part, args, kwargs))
        handle.remove()

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
