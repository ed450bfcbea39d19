"""What a step of the paper's solver does with tall arrays: differentiable, few passes over memory.

As operations of torch each term of a sum is an array of its own, forward and backward, and a sum in
float64 copies its operand. On a CPU these, and not the map, took most of a step back through K.

Letters: O rows, D columns, m iterates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.solvers.blocks import blocks
from distributed_ignn.solvers.blocks import square_sum as sum_of_squares


def square_sum(values: Tensor) -> Tensor:
    """Sum of squares of ``values`` [O, D], float64 without dimensions, differentiable."""
    result: Tensor = _SquareSum.apply(values)
    return result


class _SquareSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return sum_of_squares(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return values * (2.0 * grad).to(values)


def mix(
    alpha: Tensor, beta: Tensor, points: Sequence[Tensor], residuals: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """sum_i alpha_i (Z_i + beta G_i) and sum_i alpha_i G_i, both [O, D], differentiable.

    Args:
        alpha: float64 [m].
        beta: float64 without dimensions.
        points: Z_i [O, D].
        residuals: G_i [O, D].
    """
    point, residual = _Mix.apply(alpha, beta, *points, *residuals)
    return point, residual


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, alpha: Tensor, beta: Tensor, *history: Tensor) -> tuple[Tensor, Tensor]:
        points, residuals = _halves(history)
        weights, step = alpha.tolist(), float(beta)
        point, residual = torch.empty_like(points[0]), torch.empty_like(points[0])
        for part in blocks(points[0]):
            _combine(weights, [z[part] for z in points], point[part])
            mixed = _combine(weights, [g[part] for g in residuals], residual[part])
            point[part].add_(mixed, alpha=step)
        ctx.weights, ctx.step = weights, step
        ctx.save_for_backward(residual, *history)
        return point, residual

    @staticmethod
    def backward(ctx: Any, grad_point: Tensor, grad_residual: Tensor) -> tuple[Tensor | None, ...]:
        residual, *history = ctx.saved_tensors
        points, residuals = _halves(history)
        weights, step = ctx.weights, ctx.step
        found = [
            torch.empty_like(each) if needed else None
            for each, needed in zip(history, ctx.needs_input_grad[2:], strict=True)
        ]
        of_points, of_residuals = _halves(found)
        of_alpha = grad_point.new_zeros(len(weights), dtype=torch.float64)
        of_beta = grad_point.new_zeros((), dtype=torch.float64)
        for part in blocks(residual):
            outer = grad_point[part]
            inner = torch.add(grad_residual[part], outer, alpha=step)
            of_beta += _dot(outer, residual[part])
            for i, weight in enumerate(weights):
                of_alpha[i] += _dot(outer, points[i][part]) + _dot(inner, residuals[i][part])
                for grads, incoming in ((of_points[i], outer), (of_residuals[i], inner)):
                    if grads is not None:
                        torch.mul(incoming, weight, out=grads[part])
        return of_alpha, of_beta, *found


def _halves(history: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    held = len(history) // 2
    return history[:held], history[held:]


def _combine(weights: Sequence[float], rows: Sequence[Tensor], out: Tensor) -> Tensor:
    """sum_i weights_i rows_i into ``out``, and return it."""
    torch.mul(rows[0], weights[0], out=out)
    for weight, each in zip(weights[1:], rows[1:], strict=True):
        out.add_(each, alpha=weight)
    return out


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return torch.dot(left.reshape(-1), right.reshape(-1))
