"""Gradients of replicated parameters: one sum over ranks per step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError


def sum_gradients(parameters: Iterable[Parameter], comm: Communicator) -> None:
    """Replace each gradient by its sum over ranks, with one reduction for all of them.

    A parameter without gradient on this rank (no training node, say) counts as zero, so that
    every rank reduces the same length.

    Raises:
        UserError: the sum is not finite; every rank sees the same sum, so all of them raise.
    """
    chosen = list(parameters)
    if not chosen:
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in chosen]
    flat = comm.sum(torch.cat([g.reshape(-1) for g in grads]))
    if not bool(torch.isfinite(flat).all()):
        raise UserError(
            "a gradient is not finite; lower train.lr or model.kappa, and keep model.constraint "
            "projection"
        )
    for parameter, grad in zip(chosen, _split_like(flat, grads), strict=True):
        parameter.grad = grad


def _split_like(flat: Tensor, shapes: list[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [s.numel() for s in shapes])
    return [part.view_as(shape).clone() for part, shape in zip(parts, shapes, strict=True)]
