"""Batch normalisation and dropout whose results do not depend on how the graph is divided.

Letters: R rows of this rank (nodes, or edges inside a message), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Module

from distributed_ignn.models.dropout import NodeDropout, Stream
from distributed_ignn.models.explicit.graph_part import GraphPart


@dataclass(slots=True, eq=False)
class Binding:
    """What ties a module to a part of a graph; kept in its ``exact_binding``.

    Args:
        graph: the part.
        cls: the module's own class.
        seed: of its masks.
        step: how many it has drawn.
    """

    graph: GraphPart
    cls: type[Module]
    seed: int = 0
    step: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Binding:
        """A copied module works on the same part."""
        return Binding(self.graph, self.cls, self.seed, self.step)


def synchronise(module: Any, graph: GraphPart, seed: int) -> None:
    """Tie a batch normalisation or a dropout to a part of a graph, in place."""
    cls: type = type(module)
    module.exact_binding = Binding(graph, cls, seed)
    module.__class__ = _bound_class(cls)


@cache
def _bound_class(cls: type[Module]) -> type[Module]:
    """A subclass with the forward pass for a part."""
    forward = _drop_rows if issubclass(cls, Dropout) else _normalise
    methods = {
        "forward": torch.compiler.disable(forward),
        "__module__": __name__,
        "__doc__": cls.__doc__,
    }
    return type(cls.__name__, (cls,), methods)


def _normalise(self: Any, x: Tensor) -> Tensor:
    """Batch normalisation of rows [R, C, ...] by the mean and variance of all ranks' rows."""
    if not self.training and self.running_mean is not None:
        return self.exact_binding.cls.forward(self, x)
    self._check_input_dim(x)
    mean, variance, count = _moments(x, self.exact_binding.graph)
    if self.training and self.running_mean is not None:
        _update_running(self, mean.detach(), variance.detach(), count)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    out = (x - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
    if self.weight is None:
        return out
    return out * self.weight.view(shape) + self.bias.view(shape)


def _moments(x: Tensor, graph: GraphPart) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance [C] of all ranks' rows, and how many numbers they are of."""
    dims = [0, *range(2, x.dim())]
    own = x.new_tensor([x.numel() // x.shape[1]], dtype=torch.float64)
    sums = graph.total(torch.cat([x.sum(dims).double(), own]))
    count = int(sums[-1].detach())
    if count < 2:
        raise ValueError(f"a batch normalisation needs more than {count} value per channel")
    mean = (sums[:-1] / count).to(x.dtype)
    centred = x - mean.view((1, -1) + (1,) * (x.dim() - 2))
    squares = graph.total(centred.square().sum(dims).double())
    return mean, (squares / count).to(x.dtype), count


@torch.no_grad()
def _update_running(module: Any, mean: Tensor, variance: Tensor, count: int) -> None:
    """As torch does, with the unbiased variance."""
    module.num_batches_tracked += 1
    momentum = module.momentum
    if momentum is None:
        momentum = 1.0 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), momentum)
    unbiased = variance * (count / (count - 1))
    module.running_var.lerp_(unbiased.to(module.running_var.dtype), momentum)


def _drop_rows(self: Any, x: Tensor) -> Tensor:
    """Dropout of nodes' rows [O, ...]; a mask belongs to its node and to how often it is drawn."""
    binding = self.exact_binding
    if not self.training or self.p == 0.0:
        return x
    if self.p == 1.0:
        return x * 0.0
    graph = binding.graph
    graph.check_rows(x, 0, f"{type(self).__name__}(p={self.p})")
    dropout = NodeDropout(self.p, Stream.LAYERS)
    width = x[:1].numel() if graph.num_owned else 1
    mask = dropout.mask(binding.seed, binding.step, graph.owned_nodes, width)
    binding.step += 1
    return x * mask.view(x.shape) * dropout.scale
