"""Differentiable collectives: each with its transpose as backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, comm: Communicator) -> Tensor:
        ctx.comm = comm
        return comm.sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.comm.sum(grad.clone()), None


def all_reduce_sum(tensor: Tensor, comm: Communicator) -> Tensor:
    """Sum over ranks whose backward sums the incoming gradients over ranks.

    A loss computed alike on every rank from such sums must be divided by the number of ranks
    before ``backward``: each rank then differentiates its share.
    """
    result: Tensor = _AllReduceSum.apply(tensor, comm)
    return result


class _SumOfShares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, comm: Communicator) -> Tensor:
        return comm.sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def sum_of_shares(tensor: Tensor, comm: Communicator) -> Tensor:
    """Sum over ranks of which each rank differentiates its own share.

    For a loss: what is computed from the sum must be computed alike on every rank. ``backward``
    then gives every rank the gradient of the whole loss with respect to its own share, without an
    exchange, and replicated parameters their gradient in parts that add up.
    """
    result: Tensor = _SumOfShares.apply(tensor, comm)
    return result
