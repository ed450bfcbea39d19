"""Triton kernels of Anderson's history: what entering and mixing iterates does in one pass each.

Arrays [O, D] are read as rows of N = O * D numbers, cut into tiles. A program takes every
PROGRAMS-th tile and keeps its sums in float64 registers, one for every lane; a second kernel adds
up what the programs found. There are no atomic additions, and the number of programs depends on N
alone, so a sum is the same every time and on every GPU.

Nothing here waits for the GPU, and weights may be read from its memory: a CUDA graph may hold all.

Letters: N numbers of an array, m iterates held, K sums, p programs.
"""

# ruff: noqa: ANN001, ANN201, C901, RUF005 - Triton compiles these functions; it has its own types
# and knows neither stars in tuples nor what a short function is worth
# mypy: disable-error-code="no-untyped-def, no-untyped-call, assignment, misc"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 1024  # eight on each unit of the largest GPUs, four of them at a time
FINISH_WARPS = 8  # with four ptxas spills on sm_80
_BLOCK = 512  # numbers of a tile: four for each thread of four warps, 16 bytes of float32
_FEW = 8  # sums in float64 registers beyond which a tile has half as many numbers


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """The arrays of an entry into the history, each [O, D] and contiguous.

    Args:
        point, ahead: z, and y or f(z).
        before: the point held so far.
        held: its residual, or its y; see ``holds_residual``.
        residual, estimate: overwritten with the changes dg and dy.
        fresh: overwritten with y - z; None to leave it.
        older: dg of the iterates before.
        holds_residual: whether ``held`` is a residual.
    """

    point: Tensor
    ahead: Tensor
    before: Tensor | None = None
    held: Tensor | None = None
    residual: Tensor | None = None
    estimate: Tensor | None = None
    fresh: Tensor | None = None
    older: Sequence[Tensor] = ()
    holds_residual: bool = False


@triton.jit(do_not_specialize=["steps"])
def enter_kernel(
    point_ptr,
    ahead_ptr,
    before_ptr,
    held_ptr,
    residual_ptr,
    estimate_ptr,
    fresh_ptr,
    older_ptrs,
    partial_ptr,
    count,
    steps,
    HAS_SLOT: tl.constexpr,
    HOLDS_RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr,
    EXTRA: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write dg and dy of the iterate before, and sum <g, g>, <g, dg_j> and one number more.

    Args:
        point_ptr to older_ptrs: see ``Entered``; read and written where HAS_SLOT and KEEP say so.
        partial_ptr: float64 [p, K].
        count, steps: N, and the tiles of a program.
        EXTRA: 1 sums <dg, dg> of the newest change as well, 2 <y, y>.
    """
    program = tl.program_id(0).to(tl.int64)
    sums: tl.constexpr = 1 + HAS_SLOT + len(older_ptrs) + (EXTRA > 0)
    total = ()
    for _ in tl.static_range(sums):
        total = total + (tl.zeros((BLOCK,), dtype=tl.float64),)
    for step in range(0, steps):
        at = (program + step * tl.num_programs(0)) * BLOCK + tl.arange(0, BLOCK)
        here = at < count
        point = tl.load(point_ptr + at, mask=here, other=0.0).to(COMPUTE)
        ahead = tl.load(ahead_ptr + at, mask=here, other=0.0).to(COMPUTE)
        fresh = ahead - point
        if KEEP:
            # what is stored is what is multiplied
            fresh = fresh.to(fresh_ptr.dtype.element_ty).to(COMPUTE)
        dots = (fresh,)
        if HAS_SLOT:
            before = tl.load(before_ptr + at, mask=here, other=0.0).to(COMPUTE)
            held = tl.load(held_ptr + at, mask=here, other=0.0).to(COMPUTE)
            if HOLDS_RESIDUAL:
                change = fresh - held
                moved = change + point - before
            else:
                change = (before - held) + fresh
                moved = ahead - held
            stored = change.to(residual_ptr.dtype.element_ty)
            tl.store(residual_ptr + at, stored, mask=here)
            tl.store(estimate_ptr + at, moved.to(estimate_ptr.dtype.element_ty), mask=here)
            dots = dots + (stored.to(COMPUTE),)
        if KEEP:
            tl.store(fresh_ptr + at, fresh.to(fresh_ptr.dtype.element_ty), mask=here)
        for place in tl.static_range(len(older_ptrs)):
            old = tl.load(older_ptrs[place] + at, mask=here, other=0.0).to(COMPUTE)
            dots = dots + (old,)
        next_total = ()
        wide = fresh.to(tl.float64)
        for place in tl.static_range(len(dots)):
            next_total = next_total + (total[place] + wide * dots[place].to(tl.float64),)
        if EXTRA == 1:
            last = dots[1].to(tl.float64)
            next_total = next_total + (total[sums - 1] + last * last,)
        if EXTRA == 2:
            last = ahead.to(tl.float64)
            next_total = next_total + (total[sums - 1] + last * last,)
        total = next_total
    for place in tl.static_range(sums):
        tl.store(partial_ptr + program * sums + place, tl.sum(total[place], axis=0))


@triton.jit(do_not_specialize=["programs"])
def finish_kernel(
    partial_ptr,
    total_ptr,
    programs,
    SUMS: tl.constexpr,
    GRAM: tl.constexpr,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up what programs found; one program.

    Args:
        partial_ptr: float64 [p, SUMS].
        total_ptr: float64 [SUMS].
        programs: p, at most BLOCK.
        GRAM: how many sums, the first ones, are <g, g> and <g, dg_j>, and become <g, g_i>.
        SQUARE: whether the last one is <dg, dg> and becomes the square of the residual before.
    """
    row = tl.arange(0, BLOCK)
    here = row < programs
    first = tl.sum(tl.load(partial_ptr + row * SUMS, mask=here, other=0.0), axis=0)
    tl.store(total_ptr, first)
    # g_i = g_k - sum of the changes since
    along = first
    newest = first
    for place in tl.static_range(1, SUMS):
        found = tl.sum(tl.load(partial_ptr + row * SUMS + place, mask=here, other=0.0), axis=0)
        if place < GRAM:
            if place == 1:
                newest = found
            along -= found
            found = along
        elif SQUARE:
            found += first - 2.0 * newest
        tl.store(total_ptr + place, found)


@triton.jit(do_not_specialize=["steps"])
def mix_kernel(
    point_ptr,
    residual_ptr,
    estimate_ptrs,
    change_ptrs,
    alpha_ptr,
    beta_ptr,
    mixed_ptr,
    count,
    steps,
    HOLDS_RESIDUAL: tl.constexpr,
    HAS_BETA: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """mixed = z_k + beta g_k - sum_j gamma_j (dy_j + (beta - 1) dg_j), or from y_k = z_k + g_k.


    Args:
        point_ptr, residual_ptr: z_k and g_k; y_k and anything unless HOLDS_RESIDUAL.
        estimate_ptrs, change_ptrs: dy_j and dg_j; the latter are read where HAS_BETA says so.
        alpha_ptr: float64 [m]; gamma_j is the sum of those after j.
        beta_ptr: float64 [1], where HAS_BETA.
        mixed_ptr: overwritten.
        count, steps: N, and the tiles of a program.
    """
    program = tl.program_id(0).to(tl.int64)
    older: tl.constexpr = len(estimate_ptrs)
    gamma = tl.full((), 0.0, dtype=tl.float64)
    weights = ()  # oldest first
    for place in tl.static_range(older, 0, -1):
        gamma += tl.load(alpha_ptr + place)
        weights = weights + (gamma.to(COMPUTE),)
    if HAS_BETA:
        beta = tl.load(beta_ptr).to(COMPUTE)
    for step in range(0, steps):
        at = (program + step * tl.num_programs(0)) * BLOCK + tl.arange(0, BLOCK)
        here = at < count
        mixed = tl.load(point_ptr + at, mask=here, other=0.0).to(COMPUTE)
        if HOLDS_RESIDUAL:
            residual = tl.load(residual_ptr + at, mask=here, other=0.0).to(COMPUTE)
            if HAS_BETA:
                residual *= beta
            mixed += residual
        for place in tl.static_range(older):
            moved = tl.load(estimate_ptrs[place] + at, mask=here, other=0.0).to(COMPUTE)
            if HAS_BETA:
                change = tl.load(change_ptrs[place] + at, mask=here, other=0.0).to(COMPUTE)
                moved += (beta - 1.0) * change
            mixed -= weights[older - 1 - place] * moved
        tl.store(mixed_ptr + at, mixed.to(mixed_ptr.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["steps"])
def squares_kernel(
    point_ptr,
    image_ptr,
    partial_ptr,
    count,
    steps,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """||image - point||^2 and ||image||^2 of the tiles of a program, float64 [p, 2]."""
    program = tl.program_id(0).to(tl.int64)
    change = tl.zeros((BLOCK,), dtype=tl.float64)
    size = tl.zeros((BLOCK,), dtype=tl.float64)
    for step in range(0, steps):
        at = (program + step * tl.num_programs(0)) * BLOCK + tl.arange(0, BLOCK)
        here = at < count
        image = tl.load(image_ptr + at, mask=here, other=0.0).to(COMPUTE)
        point = tl.load(point_ptr + at, mask=here, other=0.0).to(COMPUTE)
        difference = (image - point).to(tl.float64)
        change += difference * difference
        size += image.to(tl.float64) * image.to(tl.float64)
    tl.store(partial_ptr + program * 2, tl.sum(change, axis=0))
    tl.store(partial_ptr + program * 2 + 1, tl.sum(size, axis=0))


def enter(arrays: Entered, *, square_before: bool = False, image_square: bool = False) -> Tensor:
    """Enter an iterate in two launches; see ``History.push`` and ``History.enter``.

    Args:
        arrays: what is read and written.
        square_before: find the square of the residual before, too, if there is an iterate before.
        image_square: find the square of ``ahead``.

    Returns:
        <g, g_i> newest first and then the squares asked for, local, float64 on the device.
    """
    point = arrays.point
    slot = arrays.residual is not None
    extra = 1 if square_before else 2 if image_square else 0
    gram = 1 + int(slot) + len(arrays.older)
    sums = gram + int(extra > 0)
    block = _BLOCK if sums <= _FEW else _BLOCK // 2
    programs, steps = _division(point.numel(), block)
    partial = point.new_empty(programs, sums, dtype=torch.float64)

    def given(array: Tensor | None) -> Tensor:
        return point if array is None else array

    with torch.cuda.device_of(point):
        enter_kernel[(programs,)](
            point,
            arrays.ahead,
            given(arrays.before),
            given(arrays.held),
            given(arrays.residual),
            given(arrays.estimate),
            given(arrays.fresh),
            tuple(arrays.older),
            partial,
            point.numel(),
            steps,
            HAS_SLOT=slot,
            HOLDS_RESIDUAL=arrays.holds_residual,
            KEEP=arrays.fresh is not None,
            EXTRA=extra,
            COMPUTE=_compute(point),
            BLOCK=block,
        )
    return _finish(partial, gram, square=square_before)


def residual_squares(point: Tensor, image: Tensor) -> Tensor:
    """||image - point||^2 and ||image||^2 of contiguous [O, D], float64 [2], in two launches."""
    programs, steps = _division(point.numel(), _BLOCK)
    partial = point.new_empty(programs, 2, dtype=torch.float64)
    with torch.cuda.device_of(point):
        squares_kernel[(programs,)](
            point, image, partial, point.numel(), steps, COMPUTE=_compute(point), BLOCK=_BLOCK
        )
    return _finish(partial, 0, square=False)


def _finish(partial: Tensor, gram: int, *, square: bool) -> Tensor:
    programs, sums = partial.shape
    total = partial.new_empty(sums)
    with torch.cuda.device_of(partial):
        finish_kernel[(1,)](
            partial,
            total,
            programs,
            SUMS=sums,
            GRAM=gram,
            SQUARE=square,
            BLOCK=PROGRAMS,
            num_warps=FINISH_WARPS,
        )
    return total


def mix(
    newest: Tensor,
    residual: Tensor | None,
    estimates: Sequence[Tensor],
    changes: Sequence[Tensor],
    alpha: Tensor,
    beta: float | Tensor,
) -> Tensor:
    """The mixed point [O, D] in one launch; see ``History.mix``.

    Args:
        newest: z_k where ``residual`` is given, else y_k.
        residual: g_k.
        estimates, changes: dy_j and dg_j, newest first, [O, D] each.
        alpha: [m] on any device.
        beta: 1.0 unless a residual is given; a tensor is float64 without dimensions.
    """
    mixed = torch.empty_like(newest)
    weights = alpha.to(newest.device, torch.float64, non_blocking=True).contiguous()
    mixes = isinstance(beta, Tensor) or beta != 1.0
    if not mixes:
        factor = weights
    elif isinstance(beta, Tensor):
        factor = beta.to(newest.device, torch.float64, non_blocking=True)
    else:
        factor = torch.full((), beta, dtype=torch.float64, device=newest.device)
    programs, steps = _division(newest.numel(), _BLOCK)
    with torch.cuda.device_of(newest):
        mix_kernel[(programs,)](
            newest,
            newest if residual is None else residual,
            tuple(estimates),
            tuple(changes) if mixes else (),
            weights,
            factor,
            mixed,
            newest.numel(),
            steps,
            HOLDS_RESIDUAL=residual is not None,
            HAS_BETA=mixes,
            COMPUTE=_compute(newest),
            BLOCK=_BLOCK,
        )
    return mixed


def _division(count: int, block: int) -> tuple[int, int]:
    """Programs, and tiles for each of them."""
    tiles = -(-count // block)
    programs = min(max(tiles, 1), PROGRAMS)
    return programs, -(-tiles // programs)


def _compute(array: Tensor) -> Any:
    """The format that numbers are computed in; sums are float64 whatever it is."""
    return tl.float64 if array.dtype is torch.float64 else tl.float32
