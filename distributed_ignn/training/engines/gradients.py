"""Gradients of replicated parameters: one sum over ranks per step."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from distributed_ignn.comm.communicator import Communicator


def sum_gradients(
    parameters: Iterable[Parameter], comm: Communicator, rows: Iterable[Parameter] = ()
) -> bool:
    """Replace each gradient by its sum over ranks, with one reduction for all of them.

    A parameter without gradient on this rank (no training node, say) counts as zero, so that
    every rank reduces the same length.

    Args:
        parameters: replicated ones.
        comm: sums.
        rows: parameters of which each rank has its own rows. Their gradients are not summed; that
            one of them cannot be used travels along as one more number.

    Returns:
        Whether Adam can use the gradients of all ranks, see ``is_usable``; the same on every rank.
        Where it cannot, this rank's own gradients are left as they were.
    """
    chosen, own = list(parameters), list(rows)
    if not chosen:
        return True
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in chosen]
    parts = [g.reshape(-1) for g in grads]
    if own:
        bad = sum(p.grad is not None and not is_usable(p.grad) for p in own)
        parts.append(parts[0].new_full((1,), float(bad)))
    flat = comm.sum(torch.cat(parts))
    if own:
        flat, flag = flat[:-1], flat[-1]
    if not is_usable(flat) or (own and float(flag) > 0.0):
        return False
    for parameter, grad in zip(chosen, _split_like(flat, grads), strict=True):
        parameter.grad = grad
    return True


def is_usable(tensor: Tensor) -> bool:
    """Whether every entry's square is finite: Adam keeps squares, and an infinite one for ever."""
    return bool(torch.isfinite(tensor.square()).all())


def square_sum(tensors: Iterable[Tensor]) -> float:
    """Sum of the squares of all entries; one wait for the device."""
    squares = [tensor.double().square().sum() for tensor in tensors]
    return float(torch.stack(squares).sum()) if squares else 0.0


def square_over_ranks(
    tensors: Iterable[Tensor], names: Collection[str], comm: Communicator
) -> float:
    """The same of tensors of which each rank has its own rows; no reduction without ``names``."""
    if not names:
        return 0.0
    return float(comm.sum(torch.tensor([square_sum(tensors)], dtype=torch.float64)))


def _split_like(flat: Tensor, shapes: list[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [s.numel() for s in shapes])
    return [part.view_as(shape).clone() for part, shape in zip(parts, shapes, strict=True)]
