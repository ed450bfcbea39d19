"""The dense product of tall rows with a small matrix.

Letters: r rows, K and D columns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def affine(
    rows: Tensor, weight: Tensor, offset: Tensor, *, offset_scale: float = 1.0, scale: float = 1.0
) -> Tensor:
    """scale rows @ weight + offset_scale offset, [r, D], without gradient.

    oneDNN where torch has it for such rows: on AMD's CPUs it is twice as fast as the library that
    torch takes by itself (measured: 198 against 80 GFLOP/s on one thread).

    Args:
        rows: [r, K].
        weight: [K, D].
        offset: [r, D].
    """
    if scale == offset_scale == 1.0 and _suits_onednn(rows, offset):
        turned = weight.T.contiguous()
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, offset, turned, None, "add")
        return total
    return torch.addmm(offset, rows, weight, beta=offset_scale, alpha=scale)


def matmul(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight [r, D], without gradient; see ``affine``."""
    if _suits_onednn(rows, rows):
        turned = weight.T.contiguous()
        total: Tensor = torch.ops.mkldnn._linear_pointwise(rows, turned, None, "none", [], "")
        return total
    return rows @ weight


def times_constant(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrix [r, D], differentiable in ``rows``; ``matrix`` counts as a constant."""
    result: Tensor = _TimesConstant.apply(rows, matrix)
    return result


class _TimesConstant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matmul(rows.contiguous(), matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return matmul(grad.contiguous(), ctx.matrix.T), None


def _suits_onednn(rows: Tensor, offset: Tensor) -> bool:
    return (
        rows.device.type == "cpu"
        and rows.dtype is torch.float32
        and rows.shape[0] > 0
        and rows.is_contiguous()
        and offset.is_contiguous()
        and _has_onednn()
    )


@cache
def _has_onednn() -> bool:
    """Whether this build of torch has the operator, which is not part of its public interface.

    Not asked while this module is imported: torch decides about huge pages when the first tensor is
    made, and a command asks for them once it has been imported (``use_huge_pages``).
    """
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        torch.ops.mkldnn._linear_pointwise(torch.ones(1, 1), torch.ones(1, 1), None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return True
