"""Triton kernels of what lies between two evaluations and is small: one launch each.

What is known of an evaluation (``Progress``), and Anderson's weights with all that decides about
them (``GroupAnderson``). A program of one warp holds the numbers of one solve.

Letters: n iterates of a history, m of them count.
"""

# ruff: noqa: ANN001, ANN201 - Triton compiles these functions; it has its own types
# mypy: disable-error-code="no-untyped-def, no-untyped-call, assignment, misc"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["last"])
def judge_kernel(
    sums_ptr, residual_ptr, best_ptr, tolerance_ptr, left_ptr, going_ptr, better_ptr, last
):
    """See ``judge``; ``last`` is the place of ||f(z)||^2."""
    square = tl.load(sums_ptr)
    image_square = tl.load(sums_ptr + last)
    best, left = tl.load(best_ptr), tl.load(left_ptr) - 1.0
    going = tl.load(going_ptr) != 0
    vanished = tl.where(square < float("inf"), 1.0, float("inf")).to(tl.float64)
    divisor = tl.where(image_square == 0.0, 1.0, image_square)
    residual = tl.where(image_square == 0.0, vanished, tl.sqrt(square / divisor))
    residual = tl.where(square == 0.0, 0.0, residual)
    residual = tl.where(image_square == float("inf"), float("inf"), residual)
    better = ((residual < best) | (best == float("inf"))) & going
    above = (residual > tl.load(tolerance_ptr)) & (residual < float("inf"))
    tl.store(residual_ptr, residual)
    tl.store(best_ptr, tl.where(better, residual, best))
    tl.store(left_ptr, left)
    tl.store(going_ptr, (going & above & (left > 0.0)).to(tl.int8))
    tl.store(better_ptr, better.to(tl.int8))


@triton.jit
def weights_kernel(
    gram_ptr,
    sums_ptr,
    count_ptr,
    left_best_ptr,
    residual_ptr,
    best_ptr,
    alpha_ptr,
    beta_ptr,
    back_ptr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    REGULARIZATION: tl.constexpr,
    BETA: tl.constexpr,
    GROWTH: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """See ``weights``; SIZE is the power of two from N on. Arguments that vary would be float32."""
    place = tl.arange(0, SIZE)
    row, col = place[:, None], place[None, :]
    here = place < N
    within = (row < N) & (col < N)
    older = tl.load(gram_ptr + (row - 1) * N + col - 1, mask=within & (row > 0) & (col > 0))
    dots = tl.load(sums_ptr + place, mask=here, other=0.0)
    gram = tl.where(row == 0, dots[None, :], tl.where(col == 0, dots[:, None], older))
    tl.debug_barrier()  # all has been read that is about to be overwritten
    tl.store(gram_ptr + row * N + col, gram, mask=within)

    count = tl.minimum(tl.load(count_ptr) + 1, N)
    counts = place < count
    diagonal = tl.sum(tl.where(row == col, gram, 0.0), axis=1)
    scale = tl.sqrt(tl.maximum(diagonal, 2.2250738585072014e-308))
    identity = (row == col).to(tl.float64)
    system = gram / (scale[:, None] * scale[None, :]) + REGULARIZATION * identity
    system = tl.where(counts[:, None] & counts[None, :], system, identity)
    right = tl.where(counts, 1.0 / scale, 0.0)
    for k in tl.static_range(N):
        pivots = tl.sum(tl.where(row == k, system, 0.0), axis=0)
        pivot = tl.sum(tl.where(place == k, pivots, 0.0), axis=0)
        factors = tl.sum(tl.where(col == k, system, 0.0), axis=1) - (place == k).to(tl.float64)
        value = tl.sum(tl.where(place == k, right, 0.0), axis=0) / pivot
        system = system - factors[:, None] * (pivots / pivot)[None, :]
        right = right - factors * value
    alpha = tl.where(here, right / scale, 0.0)
    alpha = alpha / tl.sum(alpha, axis=0)
    # not a number is not within the limit
    excess = tl.sum(tl.where(tl.abs(alpha) <= LARGEST, 0, 1), axis=0)

    residual, best = tl.load(residual_ptr), tl.load(best_ptr)
    left_best = tl.load(left_best_ptr)
    grown = residual > GROWTH * best
    back = grown & (best < left_best)
    over = grown | ((excess > 0) & (count > 1))
    first = (place == 0).to(tl.float64)
    tl.store(alpha_ptr + place, tl.where(over | (count == 1), first, alpha), mask=here)
    one, beta = tl.full((), 1.0, tl.float64), tl.full((), BETA, tl.float64)
    tl.store(beta_ptr, tl.where(over, one, beta))
    tl.store(back_ptr, back.to(tl.int8))
    tl.store(left_best_ptr, tl.where(back, best, left_best))
    tl.store(count_ptr, tl.where(back, 0, tl.where(over, 1, count)).to(tl.int64))


def judge(
    sums: Tensor,
    residual: Tensor,
    best: Tensor,
    tolerance: Tensor,
    left: Tensor,
    going: Tensor,
) -> Tensor:
    """Enter an evaluation; see ``Progress.judge``.

    Args:
        sums: ||f(z) - z||^2, ..., ||f(z)||^2 over all ranks, float64.
        residual: overwritten with the relative residual, float64 like the following.
        best: the smallest so far; updated.
        tolerance: at which a solve is over.
        left: evaluations that are allowed; one less then.
        going: whether the solve is not over, bool; updated.

    Returns:
        Whether the evaluation is the best one of a solve that was not over, bool.
    """
    better = torch.empty_like(going)
    with torch.cuda.device_of(sums):
        judge_kernel[(1,)](
            sums,
            residual,
            best,
            tolerance,
            left,
            going.view(torch.int8),
            better.view(torch.int8),
            sums.numel() - 1,
            num_warps=1,
        )
    return better


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides about weights: see ``GroupAnderson`` and the limits beside it."""

    regularization: float
    beta: float
    growth: float
    largest: float


def weights(
    gram: Tensor,
    sums: Tensor,
    count: Tensor,
    left_best: Tensor,
    residual: Tensor,
    best: Tensor,
    rules: Rules,
) -> tuple[Tensor, Tensor, Tensor]:
    """Enter the newest row of the Gram matrix and find the weights of the step.

    Args:
        gram: float64 [n, n], newest first; updated.
        sums: its new row [n], and more.
        count: m before this iterate, int64; updated with all that the step decides.
        left_best: residual of the best iterate that was gone back to; updated.
        residual, best: of the newest and of the best iterate.
        rules: of the method.

    Returns:
        alpha [n], beta, and whether the step goes back to the best iterate's image, bool.
    """
    size = gram.shape[0]
    alpha, beta = gram.new_empty(size), gram.new_empty(())
    back = torch.empty((), dtype=torch.bool, device=gram.device)
    with torch.cuda.device_of(gram):
        weights_kernel[(1,)](
            gram,
            sums,
            count,
            left_best,
            residual,
            best,
            alpha,
            beta,
            back.view(torch.int8),
            N=size,
            SIZE=triton.next_power_of_2(size),
            REGULARIZATION=rules.regularization,
            BETA=rules.beta,
            GROWTH=rules.growth,
            LARGEST=rules.largest,
            num_warps=1,
        )
    return alpha, beta, back
